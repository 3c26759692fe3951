"""Softmax, row by row while the row is in the cache."""

from __future__ import annotations

import numpy as np
from numba import prange

from ..checks import same_shape
from ..jit import IN2, OUT2, inner, kernel, parts, span
from ..layout import rows_of
from ..math32 import dot, exp_shifted, row_max, scale

f32 = np.float32


@inner
def _softmax(x, y):
    for i in range(len(x)):
        total = exp_shifted(x[i], row_max(x[i]), y[i])
        scale(y[i], f32(1) / total)


@kernel(IN2, OUT2)
def _forward(parts, x, y):
    for t in prange(parts):
        a, b = span(t, parts, len(x))
        _softmax(x[a:b], y[a:b])


@inner
def _gradient_row(grad, y, dx):
    mean = dot(grad, y)
    for j in range(y.size):
        dx[j] = y[j] * (grad[j] - mean)


@inner
def _gradient(grad, y, dx):
    for i in range(len(y)):
        _gradient_row(grad[i], y[i], dx[i])


@kernel(IN2, IN2, OUT2)
def _backward(parts, grad, y, dx):
    for t in prange(parts):
        a, b = span(t, parts, len(y))
        _gradient(grad[a:b], y[a:b], dx[a:b])


def softmax_forward(x: np.ndarray) -> np.ndarray:
    """See the reference."""
    rows = rows_of(x)
    y = np.empty(rows.shape, np.float32)
    _forward(parts(rows.size), rows, y)
    return y.reshape(x.shape)


def softmax_backward(grad: np.ndarray, y: np.ndarray) -> np.ndarray:
    """See the reference."""
    same_shape("softmax", "grad", grad, y.shape)
    g, rows = rows_of(grad), rows_of(y)
    dx = np.empty(rows.shape, np.float32)
    _backward(parts(rows.size), g, rows, dx)
    return dx.reshape(y.shape)
