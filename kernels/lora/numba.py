"""The LoRA linear layer: the low-rank term is added to a tile of the base product while that is in the cache.

Forward makes xa (R, r), which is kept: backward does not multiply x by A again. Then a tile of y is the sum of bias,
base product and low-rank term before it is left (``gemm_sum``); there is no (R, N) temporary.

Backward takes up to 128 rows at a time and makes their d(xa) and their share of dA and dB while they are in the cache,
so x and grad are read from memory once for these; grad alone is read once more, for dx = grad W + d(xa) A, a tile at a
time as in forward. Each thread sums the shares of its rows; these are added in a fixed order.

Passes over memory, in arrays of R rows (x or dx, y or grad):

===========  ============  =====  =======
             plain linear  fused  unfused
===========  ============  =====  =======
forward      2             3      9
backward     2             4      11
===========  ============  =====  =======

Fused, forward reads x again for xa; backward reads grad and x again. Unfused, y, s v and y + s v, or s grad and the two
terms of dx, are arrays of their own. (Where the product is BLAS's, it is two calls: y or dx is written and read once
more.)

B A is never formed, and a frozen W costs no product. xa is a pass of its own, not part of the base product: it takes
r / N of that product's time.
"""

from __future__ import annotations

import numpy as np

from .. import runtime
from ..gemm import at, gemm_sum
from ..jit import FLAG, IN1, IN2, INT, NO_VECTOR, OUT1, OUT2, OUT3, REAL, inner, kernel, span
from ..layout import rows_of
from ..lowrank import adapted_block, block_rows, gradient_block, rows_times, summed
from ..math32 import fill
from ..products import bias_gradient, product_parts, weight_gradient
from ..threads import each_part
from .reference import check_backward, check_forward

f32 = np.float32


@inner
def _down(t, parts, blas, x, lora_a, xa):
    """Some rows of xa = x A.T."""
    (first, last), (rank, k) = span(t, parts, len(x)), lora_a.shape
    rows_times(
        blas, True, last - first, rank, k, 1.0, at(x, first * k), k, at(lora_a, 0), k, at(xa, first * rank), rank
    )


@kernel(INT, IN2, IN2, IN1, IN2, IN2, REAL, OUT2, OUT2)
def _forward(parts, blas, x, weight, bias, lora_a, lora_b, scaling, xa, y):
    each_part(parts, _down, (blas, x, lora_a, xa))
    each_part(parts, adapted_block, (blas, x, weight, bias, lora_b, scaling, xa, y))


@inner
def _low_rank_gradients(t, parts, blas, grad, x, xa, lora_a, lora_b, scaling, needs, low, da, db):
    """A thread's rows of low = s grad B, and their share of dA and dB, in one pass over grad and x."""
    (first, last), (rank, k), n = span(t, parts, len(x)), lora_a.shape, grad.shape[1]
    step, needs = block_rows(n, k, rank), (False, needs[3], needs[4])
    fill(da.reshape(-1), f32(0))
    fill(db.reshape(-1), f32(0))
    for r in range(first, last, step):
        g, rows, u, count = at(grad, r * n), at(x, r * k), at(xa, r * rank), min(step, last - r)
        a, b, to_a, to_b = at(lora_a, 0), at(lora_b, 0), at(da, 0), at(db, 0)
        gradient_block(blas, count, n, k, rank, scaling, needs, g, rows, u, a, b, at(low, r * rank), 0, to_a, to_b)


@inner
def _input_gradient(t, parts, blas, grad, weight, low, lora_a, dx):
    """A thread's rows of dx = grad W + low A: the low-rank term is added to a tile while it is in the cache."""
    (first, last), (rank, k), n = span(t, parts, len(grad)), lora_a.shape, grad.shape[1]
    g, u, out = at(grad, first * n), at(low, first * rank), at(dx, first * k)
    gemm_sum(blas, False, last - first, k, n, g, n, at(weight, 0), k, 0, rank, 1.0, u, rank, at(lora_a, 0), k, out, k)


@inner
def _gradients(t, parts, blas, grad, x, xa, weight, lora_a, lora_b, scaling, needs, low, dx, dweight, dbias, da, db):
    if needs[0] or needs[3] or needs[4]:
        _low_rank_gradients(t, parts, blas, grad, x, xa, lora_a, lora_b, scaling, needs, low, da[t], db[t])
    if needs[0]:
        _input_gradient(t, parts, blas, grad, weight, low, lora_a, dx)
    if needs[1]:
        weight_gradient(t, parts, blas, grad, x, dweight)
    if needs[2]:
        bias_gradient(t, parts, grad, dbias)


@kernel(
    INT, IN2, IN2, IN2, IN2, IN2, IN2, REAL, FLAG, FLAG, FLAG, FLAG, FLAG, OUT2, OUT2, OUT2, OUT1, OUT3, OUT3
)  # fmt: skip
def _backward(parts, blas, grad, x, xa, weight, lora_a, lora_b, scaling, need_x, need_weight, need_bias, need_a,
              need_b, low, dx, dweight, dbias, da, db):  # fmt: skip
    needs = (need_x, need_weight, need_bias, need_a, need_b)
    given = (blas, grad, x, xa, weight, lora_a, lora_b, scaling, needs)
    each_part(parts, _gradients, (*given, low, dx, dweight, dbias, da, db))


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
    low = np.empty(u.shape, np.float32)
    _backward(parts, runtime.start(), g, rows, u, weight, lora_a, lora_b, float(scaling), *needs, low, *out)
    dx, dweight, dbias, da, db = (gradient if need else None for gradient, need in zip(out, needs, strict=True))
    return (
        None if dx is None else dx.reshape(x.shape), dweight, dbias,
        None if da is None else summed(da), None if db is None else summed(db),
    )  # fmt: skip
