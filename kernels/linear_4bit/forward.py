"""y = bias + s (x A.T) B.T + x W.T on the CPU: threads share the columns of y, so each element of W is decoded once."""

from __future__ import annotations

import numpy as np

from .. import runtime
from ..four_bit.layout import Quantized
from ..gemm import at, gemm
from ..jit import IN1, IN2, INT, NO_VECTOR, OUT2, REAL, inner, kernel, span
from ..layout import rows_of
from ..lowrank import rows_times
from ..nibbles import WEIGHT, arguments, decode_tile
from ..products import fill_bias, product_parts
from ..threads import each_part
from .tiles import tile_shape


@inner
def _down(t, parts, blas, x, lora_a, xa):
    """Some rows of xa = x A.T."""
    (first, last), (rank, k) = span(t, parts, len(x)), lora_a.shape
    up, out = at(x, first * k), at(xa, first * rank)
    rows_times(blas, True, last - first, rank, k, 1.0, up, k, at(lora_a, 0), k, out, rank)


@inner
def _outputs(t, parts, blas, x, weight, bias, lora_b, scaling, xa, high, wide, tiles, y):
    """Some columns of y = bias + s xa B.T + x W.T, for which the thread decodes the rows of W."""
    (rows, k), (n, rank), tile = x.shape, lora_b.shape, tiles[t]
    first, last = span(t, parts, n)
    beta = fill_bias(y, bias, 0, rows, first, last)
    if rank:
        up, out = at(lora_b, first * rank), at(y, first)
        gemm(blas, False, True, rows, last - first, rank, scaling, at(xa, 0), rank, up, rank, beta, out, n)
        beta = 1.0
    for n0 in range(first, last, high):
        n1 = min(n0 + high, last)
        for k0 in range(0, max(k, 1), wide):
            k1 = min(k0 + wide, k)
            decode_tile(weight, k, n0, n1, k0, k1, at(tile, 0))
            keep = beta if k0 == 0 else 1.0
            gemm(blas, False, True, rows, n1 - n0, k1 - k0, 1.0, at(x, k0), k, at(tile, 0), k1 - k0, keep, at(y, n0), n)


@kernel(INT, IN2, *WEIGHT, IN1, IN2, IN2, REAL, INT, INT, OUT2, OUT2, OUT2)
def _forward(parts, blas, x, packed, absmax, nested_map, nested_absmax, offset, blocksize, table, bias,
             lora_a, lora_b, scaling, high, wide, tiles, xa, y):  # fmt: skip
    weight = packed, absmax, nested_map, nested_absmax, offset, blocksize, table
    if len(lora_a):
        each_part(parts, _down, (blas, x, lora_a, xa))
    each_part(parts, _outputs, (blas, x, weight, bias, lora_b, scaling, xa, high, wide, tiles, y))


def forward(
    x: np.ndarray, q: Quantized, bias: np.ndarray | None, lora_a: np.ndarray, lora_b: np.ndarray, scaling: float
) -> tuple[np.ndarray, np.ndarray]:
    """y (..., N) and xa (..., r); rank 0 is the layer alone."""
    rows, (n, k), rank = rows_of(x), q.shape, len(lora_a)
    y, xa = np.empty((len(rows), n), np.float32), np.empty((len(rows), rank), np.float32)
    bias = NO_VECTOR if bias is None else np.ascontiguousarray(bias)
    parts, (high, wide) = product_parts(len(rows), n, k), tile_shape(len(rows), n, k, sums_over_rows=False)
    tiles = np.empty((parts, high * wide), np.float32)
    _kept, weight = arguments(q)
    inputs = (runtime.start(), rows, *weight, bias, lora_a, lora_b, float(scaling), high, wide)
    _forward(parts, *inputs, tiles, xa, y)
    return y.reshape(*x.shape[:-1], n), xa.reshape(*x.shape[:-1], rank)
