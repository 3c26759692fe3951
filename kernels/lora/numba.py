"""The LoRA linear layer in one pass over the rows: the low-rank term is added where the base product is accumulated.

Passes over the (R, N) output: one (bias, low-rank term and base product all go into the same block of rows); unfused it
is written by each of the two products and read and written by their sum. xa (R, r) is kept, so backward reads x once for
dA and never multiplies it by A again; d(xa) (R, r) is the only temporary.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from .. import runtime
from ..gemm import at, gemm
from ..jit import FLAG, IN1, IN2, INT, NO_VECTOR, OUT1, OUT2, REAL, inner, kernel, parts, span
from ..layout import rows_of
from ..linear.numba import bias_gradient, block, fill_bias, input_gradient, weight_gradient
from .reference import check_shapes


@inner
def _down(t, parts, blas, x, lora_a, xa):
    """Some rows of xa = x A.T."""
    (rows, k), rank = x.shape, lora_a.shape[0]
    r0, r1 = span(t, parts, rows)
    gemm(
        blas,
        False,
        True,
        r1 - r0,
        rank,
        k,
        1.0,
        at(x, r0 * k),
        k,
        at(lora_a, 0),
        k,
        0.0,
        at(xa, r0 * rank),
        rank,
    )


@inner
def _forward_block(t, parts, blas, x, weight, bias, lora_b, scaling, xa, y):
    (rows, k), (n, rank) = x.shape, lora_b.shape
    r0, r1, n0, n1 = block(t, parts, rows, n)
    beta = fill_bias(y, bias, r0, r1, n0, n1)
    out = at(y, r0 * n + n0)
    gemm(blas, False, True, r1 - r0, n1 - n0, rank, scaling, at(xa, r0 * rank), rank, at(lora_b, n0 * rank), rank,
         beta, out, n)  # fmt: skip
    gemm(blas, False, True, r1 - r0, n1 - n0, k, 1.0, at(x, r0 * k), k, at(weight, n0 * k), k, 1.0, out, n)


@kernel(INT, IN2, IN2, IN1, IN2, IN2, REAL, OUT2, OUT2)
def _forward(parts, blas, x, weight, bias, lora_a, lora_b, scaling, xa, y):
    for t in prange(parts):
        _down(t, parts, blas, x, lora_a, xa)
    for t in prange(parts):
        _forward_block(t, parts, blas, x, weight, bias, lora_b, scaling, xa, y)


@inner
def _up(t, parts, blas, grad, lora_b, scaling, dxa):
    """Some rows of d(xa) = s grad B."""
    (rows, n), rank = grad.shape, lora_b.shape[1]
    r0, r1 = span(t, parts, rows)
    gemm(blas, False, False, r1 - r0, rank, n, scaling, at(grad, r0 * n), n, at(lora_b, 0), rank, 0.0,
         at(dxa, r0 * rank), rank)  # fmt: skip


@inner
def _adapter_gradients(t, parts, blas, grad, x, xa, dxa, scaling, need_a, need_b, da, db):
    """Some columns of dA = d(xa).T x and some rows of dB = s grad.T xa: each owned by one thread."""
    (rows, n), k, rank = grad.shape, x.shape[1], xa.shape[1]
    if need_a:
        k0, k1 = span(t, parts, k)
        gemm(blas, True, False, rank, k1 - k0, rows, 1.0, at(dxa, 0), rank, at(x, k0), k, 0.0, at(da, k0), k)
    if need_b:
        n0, n1 = span(t, parts, n)
        gemm(blas, True, False, n1 - n0, rank, rows, scaling, at(grad, n0), n, at(xa, 0), rank, 0.0,
             at(db, n0 * rank), rank)  # fmt: skip


@inner
def _backward_block(
    t, parts, blas, grad, x, xa, weight, lora_a, scaling, dxa, needs, dx, dweight, dbias, da, db
):
    need_x, need_weight, need_bias, need_a, need_b = needs
    if need_x:
        input_gradient(t, parts, blas, dxa, lora_a, 0.0, dx)
        input_gradient(t, parts, blas, grad, weight, 1.0, dx)
    if need_weight:
        weight_gradient(t, parts, blas, grad, x, dweight)
    if need_bias:
        bias_gradient(t, parts, grad, dbias)
    _adapter_gradients(t, parts, blas, grad, x, xa, dxa, scaling, need_a, need_b, da, db)


@kernel(
    INT,
    IN2,
    IN2,
    IN2,
    IN2,
    IN2,
    IN2,
    REAL,
    OUT2,
    FLAG,
    FLAG,
    FLAG,
    FLAG,
    FLAG,
    OUT2,
    OUT2,
    OUT1,
    OUT2,
    OUT2,
)
def _backward(parts, blas, grad, x, xa, weight, lora_a, lora_b, scaling, dxa, need_x, need_weight, need_bias, need_a,
              need_b, dx, dweight, dbias, da, db):  # fmt: skip
    needs = (need_x, need_weight, need_bias, need_a, need_b)
    for t in prange(parts):
        _up(t, parts, blas, grad, lora_b, scaling, dxa)
    for t in prange(parts):
        _backward_block(
            t, parts, blas, grad, x, xa, weight, lora_a, scaling, dxa, needs, dx, dweight, dbias, da, db
        )


def lora_linear_forward(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    lora_a: np.ndarray,
    lora_b: np.ndarray,
    scaling: float,
) -> tuple[np.ndarray, np.ndarray]:
    """See the reference."""
    check_shapes(x, weight, lora_a, lora_b)
    rows, (n, k), rank = rows_of(x), weight.shape, lora_a.shape[0]
    y, xa = np.empty((rows.shape[0], n), np.float32), np.empty((rows.shape[0], rank), np.float32)
    bias = NO_VECTOR if bias is None else np.ascontiguousarray(bias)
    weight, lora_a, lora_b = (np.ascontiguousarray(m) for m in (weight, lora_a, lora_b))
    _forward(parts(y.size * k), runtime.start(), rows, weight, bias, lora_a, lora_b, float(scaling), xa, y)
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
    g, rows, xa_rows = rows_of(grad), rows_of(x), rows_of(xa)
    weight, lora_a, lora_b = (np.ascontiguousarray(m) for m in (weight, lora_a, lora_b))
    shapes = (rows.shape, weight.shape, weight.shape[:1], lora_a.shape, lora_b.shape)
    out = [
        np.empty(shape if need else (0,) * len(shape), np.float32)
        for shape, need in zip(shapes, needs, strict=True)
    ]
    _backward(
        parts(g.size * weight.shape[1]), runtime.start(), g, rows, xa_rows, weight, lora_a, lora_b, float(scaling),
        np.empty(xa_rows.shape, np.float32), *needs, *out,
    )  # fmt: skip
    out[0] = out[0].reshape(x.shape) if needs[0] else out[0]
    return tuple(gradient if need else None for gradient, need in zip(out, needs, strict=True))
