"""Activation functions, and softmax."""

from __future__ import annotations

from typing import Any

import numpy as np

from minitorch_peft.autograd.function import Function
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.kernels import dispatch
from minitorch_peft.ops.arithmetic import operands
from minitorch_peft.ops.promotion import floating
from minitorch_peft.ops.shape import reshape, wrap_dim


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


class Sigmoid(Function):
    """y = 1 / (1 + e^-x); x gets g y (1 - y)."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray) -> np.ndarray:
        y = _sigmoid(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        (y,) = ctx.saved
        return g * (y * (1 - y))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    """Without overflow: with e = e^-|x|, 1 / (1 + e) on the right and e / (1 + e) on the left."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, x.dtype.type(1), e) / (1 + e)


def sigmoid(input: Tensor) -> Tensor:
    """1 / (1 + e^-x).

    >>> import minitorch_peft as mp
    >>> sigmoid(mp.tensor([0.0])).tolist()
    [0.5]
    """
    return Sigmoid.apply(floating(input, "sigmoid"))


class Softplus(Function):
    """y = log(1 + e^(βx)) / β; x gets g sigmoid(βx). Above the threshold y is taken to be x."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, beta: float, threshold: float) -> np.ndarray:
        ctx.beta, ctx.threshold = beta, threshold
        ctx.save_for_backward(x)
        scaled = x * beta
        return np.where(scaled > threshold, x, np.logaddexp(scaled, x.dtype.type(0)) / beta)

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        scaled = ctx.saved[0] * ctx.beta
        return g * np.where(scaled > ctx.threshold, g.dtype.type(1), _sigmoid(scaled))


def softplus(input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """log(1 + e^(beta x)) / beta, a smooth relu; x itself where beta x > threshold.

    >>> import minitorch_peft as mp
    >>> softplus(mp.tensor([100.0])).tolist()
    [100.0]
    """
    return Softplus.apply(floating(input, "softplus"), beta=beta, threshold=threshold)


def logsigmoid(input: Tensor) -> Tensor:
    """log sigmoid(x) = -softplus(-x), without overflow.

    >>> import minitorch_peft as mp
    >>> logsigmoid(mp.tensor([-200.0])).tolist()
    [-200.0]
    """
    return -softplus(-floating(input, "logsigmoid"), threshold=float("inf"))


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


class LeakyRelu(Function):
    """y = x where x > 0, else a x; x gets g, or g a."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, slope: float) -> np.ndarray:
        ctx.slope = slope
        ctx.save_for_backward(x)
        return np.where(x > 0, x, x * slope)

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        return np.where(ctx.saved[0] > 0, g, g * ctx.slope)


def leaky_relu(input: Tensor, negative_slope: float = 0.01) -> Tensor:
    """Each element where it is positive, else times ``negative_slope``.

    >>> import minitorch_peft as mp
    >>> leaky_relu(mp.tensor([-1.0, 2.0]), 0.5).tolist()
    [-0.5, 2.0]
    """
    return LeakyRelu.apply(floating(input, "leaky_relu"), slope=negative_slope)


class Elu(Function):
    """y = x where x > 0, else a (e^x - 1); x gets g, or g (y + a)."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, alpha: float) -> np.ndarray:
        y = np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))
        ctx.alpha = alpha
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        x, y = ctx.saved
        return np.where(x > 0, g, g * (y + ctx.alpha))


def elu(input: Tensor, alpha: float = 1.0) -> Tensor:
    """x where it is positive, else alpha (e^x - 1) (Clevert et al. 2015, eq. 15).

    >>> import minitorch_peft as mp
    >>> elu(mp.tensor([0.0, 2.0])).tolist()
    [0.0, 2.0]
    """
    return Elu.apply(floating(input, "elu"), alpha=alpha)


class Silu(Function):
    """y = x s, s = sigmoid(x); x gets g s (1 + x (1 - s))."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray) -> np.ndarray:
        ctx.save_for_backward(x)
        return dispatch.get("silu_forward", x.dtype)(x)

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        return dispatch.get("silu_backward", g.dtype)(g, *ctx.saved)

    @staticmethod
    def again(ctx: Any) -> np.ndarray:
        return dispatch.get("silu_forward", ctx.saved[0].dtype)(*ctx.saved)


def silu(input: Tensor) -> Tensor:
    """x sigmoid(x) (Elfwing et al. 2017, eq. 7; also called swish).

    >>> import minitorch_peft as mp
    >>> silu(mp.tensor([0.0])).tolist()
    [0.0]
    """
    return Silu.apply(floating(input, "silu"))


class Swiglu(Function):
    """y = silu(a) b; a gets g b silu'(a), b gets g silu(a)."""

    @staticmethod
    def forward(ctx: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        ctx.save_for_backward(a, b)
        return dispatch.get("swiglu_forward", a.dtype)(a, b)

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return dispatch.get("swiglu_backward", g.dtype)(g, *ctx.saved)

    @staticmethod
    def again(ctx: Any) -> np.ndarray:
        return dispatch.get("swiglu_forward", ctx.saved[0].dtype)(*ctx.saved)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) up in one pass, broadcast (Shazeer 2020, eq. 6); torch has no such function.

    >>> import minitorch_peft as mp
    >>> swiglu(mp.tensor([0.0]), mp.tensor([2.0])).tolist()
    [0.0]
    """
    return Swiglu.apply(*operands(floating(gate, "swiglu"), floating(up, "swiglu"), "swiglu"))


class Gelu(Function):
    """y = x Φ(x); x gets g (Φ(x) + x φ(x)), φ = Φ'."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray) -> np.ndarray:
        ctx.save_for_backward(x)
        return dispatch.get("gelu_forward", x.dtype)(x)

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        return dispatch.get("gelu_backward", g.dtype)(g, *ctx.saved)

    @staticmethod
    def again(ctx: Any) -> np.ndarray:
        return dispatch.get("gelu_forward", ctx.saved[0].dtype)(*ctx.saved)


class GeluTanh(Function):
    """y = x (1 + t) / 2, t = tanh u, u = √(2/π) (x + 0.044715 x³); x gets g (1 + t + x (1-t²) u') / 2."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray) -> np.ndarray:
        ctx.save_for_backward(x)
        return dispatch.get("gelu_tanh_forward", x.dtype)(x)

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        return dispatch.get("gelu_tanh_backward", g.dtype)(g, *ctx.saved)

    @staticmethod
    def again(ctx: Any) -> np.ndarray:
        return dispatch.get("gelu_tanh_forward", ctx.saved[0].dtype)(*ctx.saved)


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """x Φ(x), Φ the normal distribution function (Hendrycks & Gimpel 2016, section 2).

    ``approximate="tanh"`` is the approximation given there, which GPT-2 uses.

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
        y = dispatch.get("softmax_forward", x.dtype)(x.swapaxes(dim, -1))
        ctx.dim = dim
        ctx.save_for_backward(y)
        return y.swapaxes(dim, -1)

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        dx = dispatch.get("softmax_backward", g.dtype)(g.swapaxes(ctx.dim, -1), *ctx.saved)
        return dx.swapaxes(ctx.dim, -1)


def softmax(input: Tensor, dim: int) -> Tensor:
    """e^x, normalised to sum 1 along ``dim``.

    >>> import minitorch_peft as mp
    >>> softmax(mp.tensor([0.0, 0.0]), dim=-1).tolist()
    [0.5, 0.5]
    """
    x = floating(input, "softmax")
    dim = wrap_dim(dim, x.ndim, "softmax")
    return Softmax.apply(x, dim=dim) if x.ndim else reshape(softmax(reshape(x, 1), 0), ())


class LogSoftmax(Function):
    """y = x - log Σ e^x along dim; x gets g - e^y Σ g."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, dim: int) -> np.ndarray:
        ctx.dim = dim
        if not x.size:
            return x.copy()
        y = x - x.max(axis=dim, keepdims=True)
        y -= np.log(np.exp(y).sum(axis=dim, keepdims=True))
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        if not g.size:
            return g
        (y,) = ctx.saved
        return g - np.exp(y) * g.sum(axis=ctx.dim, keepdims=True)


def log_softmax(input: Tensor, dim: int) -> Tensor:
    """The logarithm of :func:`softmax`, without overflow.

    >>> import minitorch_peft as mp
    >>> log_softmax(mp.tensor([1000.0, 0.0]), dim=-1).tolist()
    [0.0, -1000.0]
    """
    x = floating(input, "log_softmax")
    dim = wrap_dim(dim, x.ndim, "log_softmax")
    return LogSoftmax.apply(x, dim=dim) if x.ndim else reshape(log_softmax(reshape(x, 1), 0), ())
