"""A linear layer from naive to fast: how often a number is used once it is there.

Times are for (2048, 384) by (1536, 384) (2.4 GFLOP), AVX-512, one thread up to the last step.
"""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np

from .. import runtime
from ..gemm import at, gemm
from ..jit import FAST
from ..ladder import Rung
from ..layout import rows_of
from .numba import linear_forward
from .reference import check_forward

f32 = np.float32
_SIDE = 4
_BLOCK = 64


def _dots(x, weight, y, r0, r1, n0, n1):
    """y[r0:r1, n0:n1] += x weight.T there, one dot product after the other."""
    for r in range(r0, r1):
        for n in range(n0, n1):
            total = f32(0)
            for k in range(x.shape[1]):
                total += x[r, k] * weight[n, k]
            y[r, n] += total


_fast = numba.njit(error_model="numpy", fastmath=FAST)
_plain_dots, _fast_dots = numba.njit(_dots), _fast(_dots)


@_fast
def _tile(x0, x1, x2, x3, w0, w1, w2, w3, out):
    """16 dot products at once: out (4, 4) += four rows of x times four rows of the weight."""
    a00 = a01 = a02 = a03 = a10 = a11 = a12 = a13 = f32(0)
    a20 = a21 = a22 = a23 = a30 = a31 = a32 = a33 = f32(0)
    for k in range(x0.size):
        b0, b1, b2, b3 = w0[k], w1[k], w2[k], w3[k]
        a00, a01, a02, a03 = a00 + x0[k] * b0, a01 + x0[k] * b1, a02 + x0[k] * b2, a03 + x0[k] * b3
        a10, a11, a12, a13 = a10 + x1[k] * b0, a11 + x1[k] * b1, a12 + x1[k] * b2, a13 + x1[k] * b3
        a20, a21, a22, a23 = a20 + x2[k] * b0, a21 + x2[k] * b1, a22 + x2[k] * b2, a23 + x2[k] * b3
        a30, a31, a32, a33 = a30 + x3[k] * b0, a31 + x3[k] * b1, a32 + x3[k] * b2, a33 + x3[k] * b3
    for r, row in enumerate(((a00, a01, a02, a03), (a10, a11, a12, a13), (a20, a21, a22, a23), (a30, a31, a32, a33))):
        for n in range(_SIDE):
            out[r, n] += row[n]


@_fast
def _tiles(x, weight, y):
    rows, columns = len(x) // _SIDE * _SIDE, len(weight) // _SIDE * _SIDE
    for first in range(0, columns, _BLOCK):
        for r in range(0, rows, _SIDE):
            for n in range(first, min(first + _BLOCK, columns), _SIDE):
                out = y[r : r + _SIDE, n : n + _SIDE]
                _tile(x[r], x[r + 1], x[r + 2], x[r + 3], weight[n], weight[n + 1], weight[n + 2], weight[n + 3], out)
    _fast_dots(x, weight, y, 0, rows, columns, len(weight))
    _fast_dots(x, weight, y, rows, len(x), 0, len(weight))


@numba.njit
def _blas(blas, x, weight, y):
    (rows, k), n = x.shape, len(weight)
    gemm(blas, False, True, rows, n, k, 1.0, at(x, 0), k, at(weight, 0), k, 1.0, at(y, 0), n)


def _version(product: Callable[[np.ndarray, np.ndarray, np.ndarray], None]) -> Callable[..., np.ndarray]:
    def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        check_forward(x, weight, bias)
        rows, weight = rows_of(x), np.ascontiguousarray(weight)
        y = np.empty((len(rows), len(weight)), np.float32)
        y[...] = f32(0) if bias is None else bias
        product(rows, weight, y)
        return y.reshape(*x.shape[:-1], len(weight))

    return linear


LADDER = {
    "linear_forward": (
        Rung(
            "loops",
            _version(lambda x, w, y: _plain_dots(x, w, y, 0, len(x), 0, len(w))),
            "Three loops. Every multiply-add loads two numbers, and every addition waits for the one before it (a sum "
            "in Python's order is a chain): 2.6 GFLOP/s, 910 ms, 33 times NumPy's time.",
        ),
        Rung(
            "lanes",
            _version(lambda x, w, y: _fast_dots(x, w, y, 0, len(x), 0, len(w))),
            "The same source; fastmath lets 16 lanes of several registers sum side by side. 12 times as fast. Now the "
            "loads are the bound: two vectors of 64 bytes for one multiply-add, and a core loads two in a cycle.",
        ),
        Rung(
            "tiles",
            _version(_tiles),
            "16 dot products at once, of four rows by four: eight vectors are loaded for 16 multiply-adds, so a "
            "loaded number is used four times, and the 16 sums stay in registers. Blocks of 64 rows of the weight (96 "
            "KB) are used up while they lie in a near cache, instead of fetching 2.4 MB anew for every four rows of "
            "x. 1.8 times as fast: 62 GFLOP/s.",
        ),
        Rung(
            "blas",
            _version(lambda *arrays: _blas(runtime.start(), *arrays)),
            "OpenBLAS's sgemm on one thread: larger tiles in hand-written assembly, and both operands first copied "
            "into the order in which they are read. 1.6 times as fast, 100 GFLOP/s: decades of work that a kernel had "
            "better call than repeat.",
        ),
        Rung(
            "numba",
            linear_forward,
            "Each thread of the one pool multiplies its own rows with single-threaded BLAS. Twice as fast on two "
            "cores. BLAS's own threads would do the same, but beside Numba's they wait by spinning, and each pool "
            "slows the other down threefold. The bias is put there first and the product added to it: no second pass "
            "over y.",
        ),
    )
}
