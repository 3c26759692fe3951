"""Activation functions, and softmax."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minitorch_peft.autograd.function import Function
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.ops.promotion import floating
from minitorch_peft.ops.shape import wrap_dim


class Tanh(Function):
    """y = tanh x; x gets g (1 - y²)."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray) -> np.ndarray:
        y = np.tanh(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        (y,) = ctx.saved
        return g * (1 - y * y)


def tanh(input: Tensor) -> Tensor:
    """The hyperbolic tangent of each element.

    >>> import minitorch_peft as mp
    >>> tanh(mp.tensor([0.0])).tolist()
    [0.0]
    """
    return Tanh.apply(floating(input, "tanh"))


class Relu(Function):
    """y = max(x, 0); x gets g where x > 0."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray) -> np.ndarray:
        y = np.maximum(x, 0)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        return g * (ctx.saved[0] > 0)


def relu(input: Tensor) -> Tensor:
    """Each element where it is positive, else 0.

    >>> import minitorch_peft as mp
    >>> relu(mp.tensor([-1.0, 2.0])).tolist()
    [0.0, 2.0]
    """
    return Relu.apply(floating(input, "relu"))


class Silu(Function):
    """y = x s, s = sigmoid(x); x gets g (s + y (1 - s))."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray) -> np.ndarray:
        ctx.save_for_backward(x)
        return x * (0.5 * (1 + np.tanh(0.5 * x)))

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        (x,) = ctx.saved
        s = 0.5 * (1 + np.tanh(0.5 * x))
        return g * (s * (1 + x * (1 - s)))


def silu(input: Tensor) -> Tensor:
    """x sigmoid(x) (Elfwing et al. 2017, eq. 7; also called swish).

    >>> import minitorch_peft as mp
    >>> silu(mp.tensor([0.0])).tolist()
    [0.0]
    """
    return Silu.apply(floating(input, "silu"))


class Gelu(Function):
    """y = x Φ(x); x gets g (Φ(x) + x φ(x))."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray) -> np.ndarray:
        from scipy.special import ndtr

        ctx.save_for_backward(x)
        return x * ndtr(x)

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        from scipy.special import ndtr

        (x,) = ctx.saved
        return g * (ndtr(x) + x * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi))


class GeluTanh(Function):
    """y = x (1 + tanh u) / 2, u = √(2/π) (x + 0.044715 x³); the derivative by the product rule."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray) -> np.ndarray:
        ctx.save_for_backward(x)
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        (x,) = ctx.saved
        c = math.sqrt(2 / math.pi)
        t = np.tanh(c * (x + 0.044715 * x * x * x))
        return g * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x))


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """x Φ(x), Φ the normal distribution function (Hendrycks & Gimpel 2016, eq. 1), or with ``approximate="tanh"``
    its approximation (eq. 2), which GPT-2 uses.

    >>> import minitorch_peft as mp
    >>> gelu(mp.tensor([0.0])).tolist()
    [0.0]
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(f"gelu: approximate must be 'none' or 'tanh', got {approximate!r}")
    return (Gelu if approximate == "none" else GeluTanh).apply(floating(input, "gelu"))


class Softmax(Function):
    """y = e^x / Σ e^x along dim; x gets y (g - Σ g y)."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, dim: int) -> np.ndarray:
        y = x - x.max(axis=dim, keepdims=True, initial=-np.inf)
        np.exp(y, out=y)
        y /= y.sum(axis=dim, keepdims=True)
        ctx.dim = dim
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        (y,) = ctx.saved
        dx = g * y
        dx -= y * dx.sum(axis=ctx.dim, keepdims=True)
        return dx


def softmax(input: Tensor, dim: int) -> Tensor:
    """e^x normalised to sum 1 along ``dim``.

    >>> import minitorch_peft as mp
    >>> softmax(mp.tensor([0.0, 0.0]), dim=-1).tolist()
    [0.5, 0.5]
    """
    x = floating(input, "softmax")
    return Softmax.apply(x if x.ndim else x, dim=wrap_dim(dim, x.ndim, "softmax"))
