"""The LoRA linear layer in one pass over the rows: the low-rank term is added where the base product is accumulated.

Forward has no (R, N) temporary: bias, low-rank term and base product go into one block of rows. Unfused, two products
are written, read again, and their sum written. xa (R, r) is kept: backward does not multiply x by A again, and d(xa)
(R, r) is its only temporary. The rank is small, so every product with it is cut for BLAS by ``skinny_step``.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from .. import runtime
from ..gemm import at, gemm
from ..jit import FLAG, IN1, IN2, INT, NO_VECTOR, OUT1, OUT2, REAL, inner, kernel, span
from ..layout import rows_of
from ..lowrank import adapted_block, rows_times, sum_over_rows
from ..products import bias_gradient, product_parts, weight_gradient
from .reference import check_backward, check_forward


@inner
def _down(t, parts, blas, x, lora_a, xa):
    """Some rows of xa = x A.T."""
    (first, last), (rank, k) = span(t, parts, len(x)), lora_a.shape
    rows_times(
        blas, True, last - first, rank, k, 1.0, at(x, first * k), k, at(lora_a, 0), k, at(xa, first * rank), rank
    )


@kernel(INT, IN2, IN2, IN1, IN2, IN2, REAL, OUT2, OUT2)
def _forward(parts, blas, x, weight, bias, lora_a, lora_b, scaling, xa, y):
    for t in prange(parts):
        _down(t, parts, blas, x, lora_a, xa)
    for t in prange(parts):
        adapted_block(t, parts, blas, x, weight, bias, lora_b, scaling, xa, y)


@inner
def _up(t, parts, blas, grad, lora_b, scaling, dxa):
    """Some rows of d(xa) = s grad B."""
    (first, last), (n, rank) = span(t, parts, len(grad)), lora_b.shape
    g, out = at(grad, first * n), at(dxa, first * rank)
    rows_times(blas, False, last - first, rank, n, scaling, g, n, at(lora_b, 0), rank, out, rank)


@inner
def _x_gradient(t, parts, blas, grad, weight, dxa, lora_a, dx):
    """Some rows of dx = d(xa) A + grad W."""
    (rows, n), (rank, k) = grad.shape, lora_a.shape
    r0, r1 = span(t, parts, rows)
    out = at(dx, r0 * k)
    rows_times(blas, False, r1 - r0, k, rank, 1.0, at(dxa, r0 * rank), rank, at(lora_a, 0), k, out, k)
    gemm(blas, False, False, r1 - r0, k, n, 1.0, at(grad, r0 * n), n, at(weight, 0), k, 1.0, out, k)


@inner
def _a_gradient(t, parts, blas, dxa, x, da):
    """Some columns of dA = d(xa).T x: each thread owns its columns."""
    (rows, k), rank = x.shape, dxa.shape[1]
    k0, k1 = span(t, parts, k)
    sum_over_rows(blas, rows, rank, k1 - k0, 1.0, at(dxa, 0), rank, at(x, k0), k, 0.0, at(da, k0), k)


@inner
def _b_gradient(t, parts, blas, grad, xa, scaling, db):
    """Some rows of dB = s grad.T xa: each thread owns its rows."""
    (rows, n), rank = grad.shape, xa.shape[1]
    n0, n1 = span(t, parts, n)
    sum_over_rows(blas, rows, n1 - n0, rank, scaling, at(grad, n0), n, at(xa, 0), rank, 0.0, at(db, n0 * rank), rank)


@inner
def _gradients(t, parts, blas, grad, x, xa, weight, lora_a, scaling, needs, dxa, dx, dweight, dbias, da, db):
    if needs[0]:
        _x_gradient(t, parts, blas, grad, weight, dxa, lora_a, dx)
    if needs[1]:
        weight_gradient(t, parts, blas, grad, x, dweight)
    if needs[2]:
        bias_gradient(t, parts, grad, dbias)
    if needs[3]:
        _a_gradient(t, parts, blas, dxa, x, da)
    if needs[4]:
        _b_gradient(t, parts, blas, grad, xa, scaling, db)


@kernel(
    INT, IN2, IN2, IN2, IN2, IN2, IN2, REAL, FLAG, FLAG, FLAG, FLAG, FLAG, OUT2, OUT2, OUT2, OUT1, OUT2, OUT2
)  # fmt: skip
def _backward(parts, blas, grad, x, xa, weight, lora_a, lora_b, scaling, need_x, need_weight, need_bias, need_a,
              need_b, dxa, dx, dweight, dbias, da, db):  # fmt: skip
    for t in prange(parts):
        _up(t, parts, blas, grad, lora_b, scaling, dxa)
    for t in prange(parts):
        needs = (need_x, need_weight, need_bias, need_a, need_b)
        _gradients(t, parts, blas, grad, x, xa, weight, lora_a, scaling, needs, dxa, dx, dweight, dbias, da, db)


def lora_linear_forward(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    lora_a: np.ndarray,
    lora_b: np.ndarray,
    scaling: float,
) -> tuple[np.ndarray, np.ndarray]:
    """See the reference."""
    check_forward(x, weight, bias, lora_a, lora_b)
    rows, (n, k), rank = rows_of(x), weight.shape, lora_a.shape[0]
    y, xa = np.empty((rows.shape[0], n), np.float32), np.empty((rows.shape[0], rank), np.float32)
    bias = NO_VECTOR if bias is None else np.ascontiguousarray(bias)
    weight, lora_a, lora_b = (np.ascontiguousarray(m) for m in (weight, lora_a, lora_b))
    inputs = (runtime.start(), rows, weight, bias, lora_a, lora_b, float(scaling))
    _forward(product_parts(len(rows), n, k), *inputs, xa, y)
    return y.reshape(*x.shape[:-1], n), xa.reshape(*x.shape[:-1], rank)


def lora_linear_backward(
    grad: np.ndarray,
    x: np.ndarray,
    xa: np.ndarray,
    weight: np.ndarray,
    lora_a: np.ndarray,
    lora_b: np.ndarray,
    scaling: float,
    needs: tuple[bool, bool, bool, bool, bool] = (True, False, False, True, True),
) -> tuple[np.ndarray | None, ...]:
    """See the reference."""
    check_backward(grad, x, xa, weight, lora_a, lora_b)
    g, rows, xa_rows = rows_of(grad), rows_of(x), rows_of(xa)
    weight, lora_a, lora_b = (np.ascontiguousarray(m) for m in (weight, lora_a, lora_b))
    shapes = (rows.shape, weight.shape, weight.shape[:1], lora_a.shape, lora_b.shape)
    out = [np.empty(s if need else (0,) * len(s), np.float32) for s, need in zip(shapes, needs, strict=True)]
    inputs = (runtime.start(), g, rows, xa_rows, weight, lora_a, lora_b, float(scaling), *needs)
    _backward(product_parts(len(g), *weight.shape), *inputs, np.empty(xa_rows.shape, np.float32), *out)
    out[0] = out[0].reshape(x.shape) if needs[0] else out[0]
    return tuple(gradient if need else None for gradient, need in zip(out, needs, strict=True))
