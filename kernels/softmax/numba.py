"""Softmax, row by row while the row is in the cache."""

from __future__ import annotations

import numpy as np

from ..checks import same_dtype, same_shape
from ..jit import IN2, OUT2, inner, kernel, parts, row_loop, span
from ..layout import rows_of
from ..math32 import dot, exp_shifted, row_max, scale
from ..threads import each_part

f32 = np.float32


@inner
def _softmax(t, parts, x, y):
    first, last = span(t, parts, len(x))
    for i in range(first, last):
        total = exp_shifted(x[i], row_max(x[i]), y[i])
        scale(y[i], f32(1) / total)


@kernel(IN2, OUT2)
def _forward(parts, x, y):
    each_part(parts, _softmax, (x, y))


@row_loop
def _gradient_row(grad, y, dx):
    mean = dot(grad, y)
    for j in range(y.size):
        dx[j] = y[j] * (grad[j] - mean)


@inner
def _gradient(t, parts, grad, y, dx):
    first, last = span(t, parts, len(y))
    for i in range(first, last):
        _gradient_row(grad[i], y[i], dx[i])


@kernel(IN2, IN2, OUT2)
def _backward(parts, grad, y, dx):
    each_part(parts, _gradient, (grad, y, dx))


def softmax_forward(x: np.ndarray) -> np.ndarray:
    """See the reference."""
    same_dtype("softmax", x.dtype)
    rows = rows_of(x)
    y = np.empty(rows.shape, np.float32)
    _forward(parts(rows.size), rows, y)
    return y.reshape(x.shape)


def softmax_backward(grad: np.ndarray, y: np.ndarray) -> np.ndarray:
    """See the reference."""
    same_dtype("softmax", y.dtype, grad=grad)
    same_shape("softmax", "grad", grad, y.shape)
    g, rows = rows_of(grad), rows_of(y)
    dx = np.empty(rows.shape, np.float32)
    _backward(parts(rows.size), g, rows, dx)
    return dx.reshape(y.shape)
