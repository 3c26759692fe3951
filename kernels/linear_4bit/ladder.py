"""A product with a weight in four bits from naive to fast: how often an element is decoded, and what holds it then.

Times are for (2048, 384) by (1536, 384) (2.4 GFLOP; 590 thousand weights), AVX-512, one thread up to the last step.
"""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np

from .. import runtime
from ..four_bit.layout import Quantized
from ..four_bit.numba import dequantize_4bit
from ..four_bit.reference import dequantized_absmax
from ..gemm import at, gemm
from ..jit import FAST
from ..ladder import Rung
from ..layout import rows_of
from ..nibbles import arguments, code_table, decode_tile
from .numba import linear_4bit_forward
from .reference import check_forward

f32 = np.float32
_fast = numba.njit(error_model="numpy", fastmath=FAST)


@_fast
def _element(packed, absmax, table, blocksize, i):
    return table[packed[i // 2] >> (4 - i % 2 * 4) & 15] * absmax[i // blocksize]


@_fast
def _dot(a, b):
    total = f32(0)
    for j in range(a.size):
        total += a[j] * b[j]
    return total


@_fast
def _rows(x, packed, absmax, table, blocksize, y):
    k = x.shape[1]
    row = np.empty(k, f32)
    for n in range(y.shape[1]):
        for j in range(k):
            row[j] = _element(packed, absmax, table, blocksize, n * k + j)
        for r in range(len(x)):
            y[r, n] += _dot(x[r], row)


@_fast
def _blas(blas, x, weight, y):
    (rows, k), n = x.shape, len(weight)
    gemm(blas, False, True, rows, n, k, 1.0, at(x, 0), k, at(weight, 0), k, 1.0, at(y, 0), n)


@_fast
def _tiles(blas, x, packed, absmax, nested_map, nested_absmax, offset, blocksize, table, high, wide, y):
    weight = packed, absmax, nested_map, nested_absmax, offset, blocksize, table
    (rows, k), n = x.shape, y.shape[1]
    tile = np.empty(high * wide, f32)
    for n0 in range(0, n, high):
        n1 = min(n0 + high, n)
        for k0 in range(0, k, wide):
            k1 = min(k0 + wide, k)
            decode_tile(weight, k, n0, n1, k0, k1, at(tile, 0))
            gemm(blas, False, True, rows, n1 - n0, k1 - k0, 1.0, at(x, k0), k, at(tile, 0), k1 - k0, 1.0, at(y, n0), n)


def _plainly(product: Callable) -> Callable[[np.ndarray, Quantized, np.ndarray], None]:
    def run(x: np.ndarray, q: Quantized, y: np.ndarray) -> None:
        packed, absmax = np.ascontiguousarray(q.packed), np.ascontiguousarray(dequantized_absmax(q))
        product(x, packed, absmax, code_table(q.quant_type), q.blocksize, y)

    return run


def _dense(x: np.ndarray, q: Quantized, y: np.ndarray) -> None:
    _blas(runtime.start(), x, dequantize_4bit(q), y)


def _tiled(x: np.ndarray, q: Quantized, y: np.ndarray) -> None:
    _kept, weight = arguments(q)
    _tiles(runtime.start(), x, *weight, 512, 256, y)


def _version(product: Callable[[np.ndarray, Quantized, np.ndarray], None]) -> Callable[..., np.ndarray]:
    def linear(x: np.ndarray, q: Quantized, bias: np.ndarray | None = None) -> np.ndarray:
        check_forward(x, q, bias)
        rows = rows_of(x)
        y = np.empty((len(rows), q.shape[0]), np.float32)
        y[...] = f32(0) if bias is None else bias
        product(rows, q, y)
        return y.reshape(*x.shape[:-1], q.shape[0])

    return linear


LADDER = {
    "linear_4bit_forward": (
        Rung(
            "rows",
            _version(_plainly(_rows)),
            "A row of W is decoded once, one table look-up an element, and then used for every row of x: decoding (590 "
            "thousand elements) is a thousandth of the work. But each row of x is loaded anew for every row of W, two "
            "loads a multiply-add: 80 ms. With 4 rows of x and a W of 4096 x 4096: 38 ms.",
        ),
        Rung(
            "dense",
            _version(_dense),
            "All of W is decoded by the kernel for that, then BLAS multiplies: what bitsandbytes does in training, "
            "forward and backward. 3.3 times as fast, 24 ms, since BLAS uses a loaded number many times. But W is "
            "there in full, eight times its stored size (2.4 MB of 0.3), which is what four bits were to avoid; and "
            "with 4 rows, writing 64 MB and reading them again is all there is to do: 20 ms.",
        ),
        Rung(
            "tiles",
            _version(_tiled),
            "512 rows by 256 columns of W are decoded into half a megabyte, multiplied and forgotten: the tile never "
            "leaves the cache, and W is never held. For a large product that saves memory, not time (26 ms: BLAS "
            "arranges x for each tile anew); with 4 rows 14 ms, since an eighth of the bytes come from memory.",
        ),
        Rung(
            "numba",
            linear_4bit_forward,
            "Threads share the columns of y, so that each element is decoded by one of them, once. Up to 64 rows of x "
            "the tile is 16 rows of W by 4096 columns: so small a product BLAS computes from where the operands lie, "
            "without copying them into its own order first, which takes longer than multiplying: 2.9 ms with 4 rows, "
            "4.7 times as fast, and 6.8 times as fast as decoding W first.",
        ),
    )
}
