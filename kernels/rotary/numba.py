"""Rotary position embedding in one pass, from any layout into (B, T, H, D) memory."""

from __future__ import annotations

import numpy as np

from ..jit import OUT4, REAL, VIEW3, VIEW4, inner, kernel, parts, row_loop, span
from ..layout import rows_adjacent
from ..pointers import row_at
from ..threads import each_part
from .reference import angles

f32 = np.float32


@row_loop
def _rotate(x, cos, sin, sign, y):
    half = cos.size
    for j in range(half):
        y[j] = x[j] * cos[j] - x[half + j] * (sign * sin[j])
        y[half + j] = x[half + j] * cos[j] + x[j] * (sign * sin[j])


@inner
def _positions(t, parts, x, cos, sin, sign, out):
    batch, length, heads, size = out.shape
    first, last = span(t, parts, batch * length)
    for i in range(first, last):
        b, p = i // length, i % length
        c = row_at(cos.ctypes.data + b * cos.strides[0] + p * cos.strides[1], size // 2)
        s = row_at(sin.ctypes.data + b * sin.strides[0] + p * sin.strides[1], size // 2)
        for h in range(heads):
            row = row_at(x.ctypes.data + b * x.strides[0] + h * x.strides[1] + p * x.strides[2], size)
            _rotate(row, c, s, f32(sign), out[b, p, h])


@kernel(VIEW4, VIEW3, VIEW3, REAL, OUT4)
def _rotary(parts, x, cos, sin, sign, out):
    each_part(parts, _positions, (x, cos, sin, sign, out))


def _run(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, sign: float) -> np.ndarray:
    cos, sin = (rows_adjacent(angles(x, table)) for table in (cos, sin))
    b, h, t, d = x.shape
    out = np.empty((b, t, h, d), np.float32)
    _rotary(parts(out.size), rows_adjacent(x), cos, sin, sign, out)
    return out.transpose(0, 2, 1, 3)


def rotary_forward(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """See the reference."""
    return _run(x, cos, sin, 1.0)


def rotary_backward(grad: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """See the reference."""
    return _run(grad, cos, sin, -1.0)
