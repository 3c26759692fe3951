"""dx = s g B A + g W on the CPU, and the gradients of A, B and the bias.

First the low-rank part, row by row, as without four bits; then threads share the columns of dx, so that each element
of W is decoded once.
"""

from __future__ import annotations

import numpy as np

from .. import runtime
from ..four_bit.layout import Quantized
from ..gemm import at, gemm
from ..jit import FLAG, IN2, INT, OUT1, OUT2, OUT3, REAL, inner, kernel, span
from ..lowrank import block_rows, gradient_block, summed
from ..nibbles import WEIGHT, arguments, decode_tile
from ..products import bias_gradient, product_parts
from ..threads import each_part
from .tiles import tile_shape


@inner
def _low_rank_gradients(t, parts, blas, grad, x, xa, lora_a, lora_b, scaling, needs, dx, da, db):
    """A thread's rows of dx = s grad B A, and their share of dA and dB, in one pass over grad and x."""
    (first, last), (rank, k), n = span(t, parts, len(x)), lora_a.shape, grad.shape[1]
    step = block_rows(n, k, rank)
    low, da, db = np.empty((step, rank), np.float32), da[t], db[t]
    da[:], db[:] = 0, 0
    for r in range(first, last, step):
        g, rows, u, out = at(grad, r * n), at(x, r * k), at(xa, r * rank), at(dx, r * k if needs[0] else 0)
        a, b, scratch, to_a, to_b = at(lora_a, 0), at(lora_b, 0), at(low, 0), at(da, 0), at(db, 0)
        count = min(step, last - r)
        gradient_block(blas, count, n, k, rank, scaling, needs, g, rows, u, a, b, scratch, out, to_a, to_b)


@inner
def _inputs(t, parts, blas, grad, weight, beta, high, wide, tiles, dx):
    """Some columns of dx = grad W + beta dx, for which the thread decodes the same columns of W."""
    (rows, n), k, tile = grad.shape, dx.shape[1], tiles[t]
    first, last = span(t, parts, k)
    for k0 in range(first, last, wide):
        k1 = min(k0 + wide, last)
        for n0 in range(0, max(n, 1), high):
            n1 = min(n0 + high, n)
            decode_tile(weight, k, n0, n1, k0, k1, at(tile, 0))
            g, out, keep = at(grad, n0), at(dx, k0), beta if n0 == 0 else 1.0
            gemm(blas, False, False, rows, k1 - k0, n1 - n0, 1.0, g, n, at(tile, 0), k1 - k0, keep, out, k)


@kernel(INT, IN2, IN2, IN2, *WEIGHT, IN2, IN2, REAL, INT, INT, FLAG, FLAG, FLAG, FLAG, OUT2, OUT2, OUT1, OUT3, OUT3)
def _backward(parts, blas, grad, x, xa, packed, absmax, nested_map, nested_absmax, offset, blocksize, table,
              lora_a, lora_b, scaling, high, wide, need_x, need_bias, need_a, need_b, tiles, dx, dbias, da,
              db):  # fmt: skip
    weight, beta = (packed, absmax, nested_map, nested_absmax, offset, blocksize, table), 0.0
    if len(lora_a):
        needs, beta = (need_x, need_a, need_b), 1.0
        each_part(parts, _low_rank_gradients, (blas, grad, x, xa, lora_a, lora_b, scaling, needs, dx, da, db))
    if need_x:
        each_part(parts, _inputs, (blas, grad, weight, beta, high, wide, tiles, dx))
    if need_bias:
        each_part(parts, bias_gradient, (grad, dbias))


def backward(
    g: np.ndarray, x: np.ndarray, xa: np.ndarray, q: Quantized, lora_a: np.ndarray, lora_b: np.ndarray,
    scaling: float, needs: tuple[bool, bool, bool, bool],
) -> tuple[np.ndarray | None, ...]:  # fmt: skip
    """dx, dbias, dA and dB from contiguous matrices, None where they are not needed; rank 0 is the layer alone."""
    n, k = q.shape
    parts, (high, wide) = product_parts(len(g), n, k), tile_shape(len(g), n, k, sums_over_rows=True)
    shapes = ((len(g), k), (n,), (parts, *lora_a.shape), (parts, *lora_b.shape))
    out = [np.empty(s if need else (0,) * len(s), np.float32) for s, need in zip(shapes, needs, strict=True)]
    tiles = np.empty((parts, high * wide if needs[0] else 0), np.float32)
    _kept, weight = arguments(q)
    inputs = (runtime.start(), g, x, xa, *weight, lora_a, lora_b, float(scaling), high, wide, *needs)
    _backward(parts, *inputs, tiles, *out)
    dx, dbias, da, db = (gradient if need else None for gradient, need in zip(out, needs, strict=True))
    return dx, dbias, None if da is None else summed(da), None if db is None else summed(db)
