"""Softmax from naive to fast: passes over memory, and what the compiler may reorder.

Times are for (8, 256, 1024) float32 (2.1 million elements), AVX-512, one thread up to the last step.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numba
import numpy as np

from ..jit import FAST
from ..ladder import Rung
from ..layout import rows_of
from ..math32 import exp_shifted, row_max, scale
from .numba import softmax_forward

f32 = np.float32


@numba.njit
def _sweeps(x, y):
    rows, columns = x.shape
    top, total = np.full(rows, f32(-np.inf)), np.zeros(rows, np.float32)
    for i in range(rows):
        for j in range(columns):
            top[i] = max(top[i], x[i, j])
    for i in range(rows):
        for j in range(columns):
            y[i, j] = math.exp(x[i, j] - top[i])
    for i in range(rows):
        for j in range(columns):
            total[i] += y[i, j]
    for i in range(rows):
        for j in range(columns):
            y[i, j] /= total[i]


@numba.njit
def _rows(x, y):
    for i in range(len(x)):
        top, total = f32(-np.inf), f32(0)
        for j in range(x.shape[1]):
            top = max(top, x[i, j])
        for j in range(x.shape[1]):
            y[i, j] = math.exp(x[i, j] - top)
            total += y[i, j]
        for j in range(x.shape[1]):
            y[i, j] /= total


@numba.njit(error_model="numpy", fastmath=FAST)
def _polynomial(x, y):
    for i in range(len(x)):
        top = f32(-np.inf)
        for j in range(x.shape[1]):
            top = max(top, x[i, j])
        scale(y[i], f32(1) / exp_shifted(x[i], top, y[i]))


@numba.njit(error_model="numpy", fastmath=FAST)
def _integers(x, y):
    for i in range(len(x)):
        scale(y[i], f32(1) / exp_shifted(x[i], row_max(x[i]), y[i]))


def _version(compiled: Callable) -> Callable[[np.ndarray], np.ndarray]:
    def softmax(x: np.ndarray) -> np.ndarray:
        rows = rows_of(x)
        y = np.empty(rows.shape, np.float32)
        compiled(rows, y)
        return y.reshape(x.shape)

    return softmax


LADDER = {
    "softmax_forward": (
        Rung(
            "sweeps",
            _version(_sweeps),
            "Four sweeps over the whole matrix, as one writes it first: maximum, exponential, sum, division. Each "
            "fetches from memory what the sweep before it has put there: 24 bytes an element. But what takes the time "
            "is libm's exp, called 2.1 million times: 10 ms, where NumPy's vectorised one takes 3.",
        ),
        Rung(
            "rows",
            _version(_rows),
            "All of it for one row, then for the next: a row (4 KB) stays in the first cache from its first sweep to "
            "its last, so memory sees each element once in and once out, 8 bytes instead of 24. 1.2 times as fast "
            "here, where the matrix (8 MB) still fits into the last cache; 1.3 times for 32,000 columns.",
        ),
        Rung(
            "polynomial",
            _version(_polynomial),
            "An exponential of additions and multiplications only (kernels/math32.py) that is vectorised together "
            "with its sum: fastmath lets 16 partial sums run side by side, where Python's order allows one addition "
            "after the other. And one division a row instead of one an element. 4.7 times as fast.",
        ),
        Rung(
            "integers",
            _version(_integers),
            "Now the maximum takes half of the time: max() has an answer for NaN, which no vector instruction gives, "
            "so it stays scalar. The bits of floats, read as integers, have the same order (the negative ones turned "
            "round), and a maximum of integers is vectorised. Twice as fast, and a NaN still comes out as NaN.",
        ),
        Rung(
            "numba",
            softmax_forward,
            "Each thread takes its share of the rows; no row needs another. It gains what memory allows.",
        ),
    )
}
