"""The LoRA linear layer: the low-rank term is added where the base product is accumulated.

Forward has no (R, N) temporary: bias, low-rank term and base product go into one block of rows. Unfused, two products
are written, read again, and their sum written. xa (R, r) is kept: backward does not multiply x by A again.

Backward takes up to 128 rows at a time and makes all low-rank products of them while they are in the cache: d(xa), dx,
and their share of dA and dB. So x and grad are read from memory once for these, and once more, grad alone, for the
base's dx = grad W, which wants large blocks. Each thread sums the shares of its rows; these are added in a fixed order.

Passes over memory, in arrays of R rows (x or dx, y or grad):

===========  ============  =====  =======
             plain linear  fused  unfused
===========  ============  =====  =======
forward      2             5      9
backward     2             6      11
===========  ============  =====  =======

Fused, forward reads x again for xa, and writes and reads y between the two products; backward reads grad and x again,
and writes and reads dx. Unfused, y, s v and y + s v, or s grad and the two terms of dx, are arrays of their own.

B A is never formed, and a frozen W costs no product. xa is a pass of its own, not part of the base product, which BLAS
does in one piece; it takes r / N of that product's time.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from .. import runtime
from ..gemm import at
from ..jit import FLAG, IN1, IN2, INT, NO_VECTOR, OUT1, OUT2, OUT3, REAL, inner, kernel, span
from ..layout import rows_of
from ..lowrank import adapted_block, add_input_gradient, block_rows, gradient_block, rows_times, summed
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
def _low_rank_gradients(t, parts, blas, grad, x, xa, lora_a, lora_b, scaling, needs, dx, da, db):
    """A thread's rows of dx = s grad B A, and their share of dA and dB, in one pass over grad and x."""
    (first, last), (rank, k), n = span(t, parts, len(x)), lora_a.shape, grad.shape[1]
    step = block_rows(n, k, rank)
    low = np.empty((step, rank), np.float32)
    da[:], db[:] = 0, 0
    for r in range(first, last, step):
        g, rows, u, out = at(grad, r * n), at(x, r * k), at(xa, r * rank), at(dx, r * k if needs[0] else 0)
        a, b, scratch, to_a, to_b = at(lora_a, 0), at(lora_b, 0), at(low, 0), at(da, 0), at(db, 0)
        count = min(step, last - r)
        gradient_block(blas, count, n, k, rank, scaling, needs, g, rows, u, a, b, scratch, out, to_a, to_b)


@kernel(
    INT, IN2, IN2, IN2, IN2, IN2, IN2, REAL, FLAG, FLAG, FLAG, FLAG, FLAG, OUT2, OUT2, OUT1, OUT3, OUT3
)  # fmt: skip
def _backward(parts, blas, grad, x, xa, weight, lora_a, lora_b, scaling, need_x, need_weight, need_bias, need_a,
              need_b, dx, dweight, dbias, da, db):  # fmt: skip
    for t in prange(parts):
        if need_x or need_a or need_b:
            needs = (need_x, need_a, need_b)
            _low_rank_gradients(t, parts, blas, grad, x, xa, lora_a, lora_b, scaling, needs, dx, da[t], db[t])
        if need_x:
            add_input_gradient(t, parts, blas, grad, weight, dx)
        if need_weight:
            weight_gradient(t, parts, blas, grad, x, dweight)
        if need_bias:
            bias_gradient(t, parts, grad, dbias)


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
    g, rows, u = rows_of(grad), rows_of(x), rows_of(xa)
    weight, lora_a, lora_b = (np.ascontiguousarray(m) for m in (weight, lora_a, lora_b))
    parts = product_parts(len(g), *weight.shape)
    shapes = (rows.shape, weight.shape, weight.shape[:1], (parts, *lora_a.shape), (parts, *lora_b.shape))
    out = [np.empty(s if need else (0,) * len(s), np.float32) for s, need in zip(shapes, needs, strict=True)]
    _backward(parts, runtime.start(), g, rows, u, weight, lora_a, lora_b, float(scaling), *needs, *out)
    dx, dweight, dbias, da, db = (gradient if need else None for gradient, need in zip(out, needs, strict=True))
    return (
        None if dx is None else dx.reshape(x.shape), dweight, dbias,
        None if da is None else summed(da), None if db is None else summed(db),
    )  # fmt: skip
