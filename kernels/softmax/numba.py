"""Softmax, row by row while the row is in the cache."""

from __future__ import annotations

import numpy as np
from numba import prange

from ..jit import IN2, INT, OUT2, inner, kernel, parts
from ..layout import rows_of
from ..math32 import dot, exp_shifted, row_max, scale

f32 = np.float32


@inner
def _forward_rows(t, parts, x, y):
    for i in range(t * x.shape[0] // parts, (t + 1) * x.shape[0] // parts):
        row = y[i]
        row[:] = x[i]
        total = exp_shifted(row, row_max(row))
        scale(row, f32(1) / total)


@kernel(INT, IN2, OUT2)
def _forward(parts, x, y):
    if parts == 1:
        _forward_rows(0, 1, x, y)
        return
    for t in prange(parts):
        _forward_rows(t, parts, x, y)


@inner
def _backward_row(grad, y, dx):
    mean = dot(grad, y)
    for j in range(y.size):
        dx[j] = y[j] * (grad[j] - mean)


@inner
def _backward_rows(t, parts, grad, y, dx):
    for i in range(t * y.shape[0] // parts, (t + 1) * y.shape[0] // parts):
        _backward_row(grad[i], y[i], dx[i])


@kernel(INT, IN2, IN2, OUT2)
def _backward(parts, grad, y, dx):
    if parts == 1:
        _backward_rows(0, 1, grad, y, dx)
        return
    for t in prange(parts):
        _backward_rows(t, parts, grad, y, dx)


def softmax_forward(x: np.ndarray) -> np.ndarray:
    """See the reference."""
    rows = rows_of(x)
    y = np.empty(rows.shape, np.float32)
    _forward(parts(rows.size), rows, y)
    return y.reshape(x.shape)


def softmax_backward(grad: np.ndarray, y: np.ndarray) -> np.ndarray:
    """See the reference."""
    g, rows = rows_of(grad), rows_of(y)
    dx = np.empty(rows.shape, np.float32)
    _backward(parts(rows.size), g, rows, dx)
    return dx.reshape(y.shape)
