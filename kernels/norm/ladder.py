"""Layer norm from naive to fast: a sum is a chain of additions, unless the compiler may cut it.

Times are for (8, 256, 384) float32 (0.8 million elements), AVX-512, one thread up to the last step.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numba
import numpy as np

from ..jit import FAST
from ..ladder import Rung
from ..layout import rows_of
from .numba import layer_norm_forward
from .reference import check_shapes

f32 = np.float32


def _rows(x, weight, bias, eps, y, mean, rstd):
    rows, columns = x.shape
    for i in range(rows):
        total, square = f32(0), f32(0)
        for j in range(columns):
            total += x[i, j]
        centre = total / f32(columns)
        for j in range(columns):
            square += (x[i, j] - centre) * (x[i, j] - centre)
        slope = f32(1 / math.sqrt(square / f32(columns) + eps))
        for j in range(columns):
            y[i, j] = (x[i, j] - centre) * slope * weight[j] + bias[j]
        mean[i], rstd[i] = centre, slope


def _version(compiled: Callable) -> Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]]:
    def layer_norm(
        x: np.ndarray, weight: np.ndarray | None, bias: np.ndarray | None, eps: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        check_shapes("layer_norm", x, {"weight": weight, "bias": bias})
        rows, columns = rows_of(x), x.shape[-1]
        weight = np.ones(columns, np.float32) if weight is None else np.ascontiguousarray(weight)
        bias = np.zeros(columns, np.float32) if bias is None else np.ascontiguousarray(bias)
        y, mean, rstd = (np.empty(shape, np.float32) for shape in (rows.shape, len(rows), len(rows)))
        compiled(rows, weight, bias, eps, y, mean, rstd)
        return y.reshape(x.shape), mean.reshape(x.shape[:-1]), rstd.reshape(x.shape[:-1])

    return layer_norm


LADDER = {
    "layer_norm_forward": (
        Rung(
            "rows",
            _version(numba.njit(_rows)),
            "One row after the other, three sweeps over each while it lies in the cache: 8 bytes of memory an element "
            "instead of NumPy's 48. And yet no faster than NumPy (1.3 ms to 1.1): a sum in Python's order is a chain, "
            "each addition waits four cycles for the one before it, and 15 of 16 lanes are idle.",
        ),
        Rung(
            "lanes",
            _version(numba.njit(error_model="numpy", fastmath=FAST)(_rows)),
            "The same source. fastmath's 'reassoc' says that the order of a sum does not matter, so 16 lanes of "
            "several registers each sum their share and are added up at the end. (This sum is also the more accurate "
            "one: its chains are shorter.) Ten times as fast: 45 GB/s, out of the last cache.",
        ),
        Rung(
            "numba",
            layer_norm_forward,
            "Each thread takes its share of the rows. RMS norm runs the same code with the mean left out.",
        ),
    )
}
