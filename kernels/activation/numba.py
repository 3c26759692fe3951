"""Activations in one pass each, on the vectorised exponential (libm's tanh and erf take 10 to 40 times as long).

tanh(u) = 2 sigmoid(2 u) - 1, so GPT-2's GELU is x sigmoid(2 u). Formulas of one element are ``exact``: their bits are
the same in a vector and alone, so they do not depend on where in the array, or in memory, an element lies.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ..jit import IN1, OUT1, exact, inner, kernel, parts, share
from ..math32 import bell32, mills32, sigmoid32
from ..threads import each_part
from .reference import check_shapes

f32 = np.float32
_ZERO, _ONE, _END = f32(0), f32(1), f32(13.2)
_TWICE_TANH_SCALE = f32(2 * math.sqrt(2 / math.pi))
_TANH_CUBIC = f32(0.044715)
_THREE_TANH_CUBIC = f32(3 * 0.044715)
_DENSITY_AT_ZERO = f32(1 / math.sqrt(2 * math.pi))


@exact
def _magnitude(x):
    """|x|, or the number beyond which the normal distribution has ended for float32."""
    z = abs(x)
    return _END if z > _END else z


@exact
def _gelu_of(x):
    """max(x, 0) - |x| (1 - Phi(|x|)), which keeps the relative accuracy of the small values on the left."""
    z = _magnitude(x)
    return (x if x > _ZERO else _ZERO) - z * (mills32(z) * bell32(z))


@exact
def _gelu_slope_of(x):
    z = _magnitude(x)
    bell = bell32(z)
    left = bell * mills32(z) - z * bell * _DENSITY_AT_ZERO  # the slope at -z; those at z and -z add up to 1
    return left if x < _ZERO else _ONE - left


@exact
def _gelu_tanh_of(x):
    return x * sigmoid32(_TWICE_TANH_SCALE * (x + _TANH_CUBIC * x * x * x))


@exact
def _gelu_tanh_slope_of(x):
    s = sigmoid32(_TWICE_TANH_SCALE * (x + _TANH_CUBIC * x * x * x))
    return s + x * s * (_ONE - s) * _TWICE_TANH_SCALE * (_ONE + _THREE_TANH_CUBIC * x * x)


@exact
def _silu_of(x):
    return x * sigmoid32(x)


@exact
def _silu_slope_of(x):
    s = sigmoid32(x)
    return s * (_ONE + x * (_ONE - s))


@exact
def _swiglu_slopes_of(grad, gate, up):
    s = sigmoid32(gate)
    return grad * up * (s * (_ONE + gate * (_ONE - s))), grad * (gate * s)


@inner
def _gelu(t, parts, x, y):
    x, y = share(t, parts, x), share(t, parts, y)
    for i in range(x.size):
        y[i] = _gelu_of(x[i])


@inner
def _gelu_slope(t, parts, grad, x, dx):
    grad, x, dx = share(t, parts, grad), share(t, parts, x), share(t, parts, dx)
    for i in range(grad.size):
        dx[i] = grad[i] * _gelu_slope_of(x[i])


@inner
def _gelu_tanh(t, parts, x, y):
    x, y = share(t, parts, x), share(t, parts, y)
    for i in range(x.size):
        y[i] = _gelu_tanh_of(x[i])


@inner
def _gelu_tanh_slope(t, parts, grad, x, dx):
    grad, x, dx = share(t, parts, grad), share(t, parts, x), share(t, parts, dx)
    for i in range(grad.size):
        dx[i] = grad[i] * _gelu_tanh_slope_of(x[i])


@inner
def _silu(t, parts, x, y):
    x, y = share(t, parts, x), share(t, parts, y)
    for i in range(x.size):
        y[i] = _silu_of(x[i])


@inner
def _silu_slope(t, parts, grad, x, dx):
    grad, x, dx = share(t, parts, grad), share(t, parts, x), share(t, parts, dx)
    for i in range(grad.size):
        dx[i] = grad[i] * _silu_slope_of(x[i])


@inner
def _swiglu(t, parts, gate, up, y):
    gate, up, y = share(t, parts, gate), share(t, parts, up), share(t, parts, y)
    for i in range(gate.size):
        y[i] = _silu_of(gate[i]) * up[i]


@inner
def _swiglu_slopes(t, parts, grad, gate, up, dgate, dup):
    grad, gate, up = share(t, parts, grad), share(t, parts, gate), share(t, parts, up)
    dgate, dup = share(t, parts, dgate), share(t, parts, dup)
    for i in range(grad.size):
        dgate[i], dup[i] = _swiglu_slopes_of(grad[i], gate[i], up[i])


@kernel(IN1, OUT1)
def _gelu_forward(parts, x, y):
    each_part(parts, _gelu, (x, y))


@kernel(IN1, IN1, OUT1)
def _gelu_backward(parts, grad, x, dx):
    each_part(parts, _gelu_slope, (grad, x, dx))


@kernel(IN1, OUT1)
def _gelu_tanh_forward(parts, x, y):
    each_part(parts, _gelu_tanh, (x, y))


@kernel(IN1, IN1, OUT1)
def _gelu_tanh_backward(parts, grad, x, dx):
    each_part(parts, _gelu_tanh_slope, (grad, x, dx))


@kernel(IN1, OUT1)
def _silu_forward(parts, x, y):
    each_part(parts, _silu, (x, y))


@kernel(IN1, IN1, OUT1)
def _silu_backward(parts, grad, x, dx):
    each_part(parts, _silu_slope, (grad, x, dx))


@kernel(IN1, IN1, OUT1)
def _swiglu_forward(parts, gate, up, y):
    each_part(parts, _swiglu, (gate, up, y))


@kernel(IN1, IN1, IN1, OUT1, OUT1)
def _swiglu_backward(parts, grad, gate, up, dgate, dup):
    each_part(parts, _swiglu_slopes, (grad, gate, up, dgate, dup))


def _flat(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x).reshape(-1)


def _map(compiled: Callable, **inputs: np.ndarray) -> np.ndarray:
    check_shapes(inputs)
    y = np.empty(next(iter(inputs.values())).shape, np.float32)
    compiled(parts(y.size), *(_flat(x) for x in inputs.values()), y.reshape(-1))
    return y


def gelu_forward(x: np.ndarray) -> np.ndarray:
    """See the reference."""
    return _map(_gelu_forward, x=x)


def gelu_backward(grad: np.ndarray, x: np.ndarray) -> np.ndarray:
    """See the reference."""
    return _map(_gelu_backward, grad=grad, x=x)


def gelu_tanh_forward(x: np.ndarray) -> np.ndarray:
    """See the reference."""
    return _map(_gelu_tanh_forward, x=x)


def gelu_tanh_backward(grad: np.ndarray, x: np.ndarray) -> np.ndarray:
    """See the reference."""
    return _map(_gelu_tanh_backward, grad=grad, x=x)


def silu_forward(x: np.ndarray) -> np.ndarray:
    """See the reference."""
    return _map(_silu_forward, x=x)


def silu_backward(grad: np.ndarray, x: np.ndarray) -> np.ndarray:
    """See the reference."""
    return _map(_silu_backward, grad=grad, x=x)


def swiglu_forward(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """See the reference."""
    return _map(_swiglu_forward, gate=gate, up=up)


def swiglu_backward(grad: np.ndarray, gate: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """See the reference."""
    check_shapes({"grad": grad, "gate": gate, "up": up})
    dgate, dup = np.empty(gate.shape, np.float32), np.empty(gate.shape, np.float32)
    inputs = (_flat(x) for x in (grad, gate, up))
    _swiglu_backward(parts(gate.size), *inputs, dgate.reshape(-1), dup.reshape(-1))
    return dgate, dup
