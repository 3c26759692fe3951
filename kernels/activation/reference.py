"""GELU (Hendrycks and Gimpel 2016, arXiv 1606.08415), SiLU, SwiGLU (Shazeer 2020, arXiv 2002.05202): the definition."""

from __future__ import annotations

import math

import numpy as np

from ..checks import same_dtype, same_shape

_TANH_SCALE = math.sqrt(2 / math.pi)
_TANH_CUBIC = 0.044715


def gelu_forward(x: np.ndarray) -> np.ndarray:
    """x Phi(x), where Phi is the normal distribution function; x of any shape.

    >>> gelu_forward(np.array([-1.0, 0.0, 1.0])).round(4).tolist()
    [-0.1587, 0.0, 0.8413]
    """
    return x * _normal_cdf(x)


def gelu_backward(grad: np.ndarray, x: np.ndarray) -> np.ndarray:
    """grad (Phi(x) + x phi(x)), where phi = Phi' is the normal density.

    >>> gelu_backward(np.ones(1), np.zeros(1)).tolist()
    [0.5]
    """
    check_shapes({"grad": grad, "x": x})
    density = np.exp(-0.5 * x * x) * x.dtype.type(1 / math.sqrt(2 * math.pi))
    return grad * (_normal_cdf(x) + x * density)


def gelu_tanh_forward(x: np.ndarray) -> np.ndarray:
    """GELU with Phi(x) approximated by (1 + tanh u) / 2, u = sqrt(2/pi) (x + 0.044715 x**3): GPT-2's ``gelu_new``.

    >>> gelu_tanh_forward(np.array([-1.0, 0.0, 1.0])).round(4).tolist()
    [-0.1588, 0.0, 0.8412]
    """
    return 0.5 * x * (1 + np.tanh(_tanh_argument(x)))


def gelu_tanh_backward(grad: np.ndarray, x: np.ndarray) -> np.ndarray:
    """grad ((1 + tanh u) / 2 + x (1 - tanh(u)**2) u' / 2).

    >>> gelu_tanh_backward(np.ones(1), np.zeros(1)).tolist()
    [0.5]
    """
    check_shapes({"grad": grad, "x": x})
    tanh = np.tanh(_tanh_argument(x))
    slope = _TANH_SCALE * (1 + 3 * _TANH_CUBIC * x * x)
    return grad * (0.5 * (1 + tanh) + 0.5 * x * (1 - tanh * tanh) * slope)


def silu_forward(x: np.ndarray) -> np.ndarray:
    """x sigmoid(x).

    >>> silu_forward(np.array([0.0, 1.0])).round(4).tolist()
    [0.0, 0.7311]
    """
    return x * _sigmoid(x)


def silu_backward(grad: np.ndarray, x: np.ndarray) -> np.ndarray:
    """grad s (1 + x (1 - s)) with s = sigmoid(x).

    >>> silu_backward(np.ones(1), np.zeros(1)).tolist()
    [0.5]
    """
    check_shapes({"grad": grad, "x": x})
    s = _sigmoid(x)
    return grad * s * (1 + x * (1 - s))


def swiglu_forward(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """silu(gate) * up, both of one shape.

    >>> swiglu_forward(np.array([1.0]), np.array([2.0])).round(4).tolist()
    [1.4621]
    """
    check_shapes({"gate": gate, "up": up})
    return silu_forward(gate) * up


def swiglu_backward(grad: np.ndarray, gate: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gradients (dgate, dup): silu's own with grad * up coming in, and grad * silu(gate).

    >>> dgate, dup = swiglu_backward(np.ones(1), np.zeros(1), np.array([4.0]))
    >>> dgate.tolist(), dup.tolist()
    ([2.0], [0.0])
    """
    check_shapes({"grad": grad, "gate": gate, "up": up})
    return silu_backward(grad * up, gate), grad * silu_forward(gate)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))


def _tanh_argument(x: np.ndarray) -> np.ndarray:
    return _TANH_SCALE * (x + _TANH_CUBIC * x * x * x)


def _normal_cdf(x: np.ndarray) -> np.ndarray:
    from scipy.special import erfc  # loaded only where it is used: SciPy takes longer to import than NumPy

    return 0.5 * erfc(x * x.dtype.type(-math.sqrt(0.5)))


def check_shapes(inputs: dict[str, np.ndarray]) -> None:
    """Raise ValueError unless all inputs have one shape, TypeError unless they have one dtype, a floating one."""
    first = next(iter(inputs.values()))
    same_dtype("activation", first.dtype, **inputs)
    for name, array in inputs.items():
        same_shape("activation", name, array, first.shape)
