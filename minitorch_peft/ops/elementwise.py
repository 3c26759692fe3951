"""Elementwise functions of one variable."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minitorch_peft.autograd.function import Function
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.ops.promotion import as_tensor, floating


class Neg(Function):
    """y = -x; x gets -g."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray) -> np.ndarray:
        return -x

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        return -g


def neg(input: Tensor) -> Tensor:
    """-input. TypeError for bool.

    >>> import minitorch_peft as mp
    >>> neg(mp.tensor([1.0, -2.0])).tolist()
    [-1.0, 2.0]
    """
    return Neg.apply(as_tensor(input, "neg"))


class Abs(Function):
    """y = |x|; x gets g sign(x), which is 0 at 0."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray) -> np.ndarray:
        ctx.save_for_backward(x)
        return np.abs(x)

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        return g * np.sign(ctx.saved[0])


def abs(input: Tensor) -> Tensor:
    """The absolute value of each element.

    >>> import minitorch_peft as mp
    >>> abs(mp.tensor([1.0, -2.0])).tolist()
    [1.0, 2.0]
    """
    return Abs.apply(as_tensor(input, "abs"))


# -- exponentials and logarithms -----------------------------------------------------------------------------
class Exp(Function):
    """y = e^x; x gets g y."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray) -> np.ndarray:
        y = np.exp(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        return g * ctx.saved[0]


def exp(input: Tensor) -> Tensor:
    """e to the power of each element.

    >>> import minitorch_peft as mp
    >>> exp(mp.tensor([0.0])).tolist()
    [1.0]
    """
    return Exp.apply(floating(input, "exp"))


class Expm1(Function):
    """y = e^x - 1; x gets g (y + 1)."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray) -> np.ndarray:
        y = np.expm1(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        return g * (ctx.saved[0] + 1)


def expm1(input: Tensor) -> Tensor:
    """e^x - 1, exact also near 0.

    >>> import minitorch_peft as mp
    >>> expm1(mp.tensor([0.0])).tolist()
    [0.0]
    """
    return Expm1.apply(floating(input, "expm1"))


class Log(Function):
    """y = ln x; x gets g / x."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray) -> np.ndarray:
        ctx.save_for_backward(x)
        return np.log(x)

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        return g / ctx.saved[0]


def log(input: Tensor) -> Tensor:
    """The natural logarithm of each element; -inf at 0, nan below.

    >>> import minitorch_peft as mp
    >>> log(mp.tensor([1.0])).tolist()
    [0.0]
    """
    return Log.apply(floating(input, "log"))


class Log1p(Function):
    """y = ln(1 + x); x gets g / (1 + x)."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray) -> np.ndarray:
        ctx.save_for_backward(x)
        return np.log1p(x)

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        return g / (1 + ctx.saved[0])


def log1p(input: Tensor) -> Tensor:
    """ln(1 + x), exact also near 0.

    >>> import minitorch_peft as mp
    >>> log1p(mp.tensor([0.0])).tolist()
    [0.0]
    """
    return Log1p.apply(floating(input, "log1p"))


class Log2(Function):
    """y = log2 x; x gets g / (x ln 2)."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray) -> np.ndarray:
        ctx.save_for_backward(x)
        return np.log2(x)

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        return g / (ctx.saved[0] * math.log(2))


def log2(input: Tensor) -> Tensor:
    """The logarithm to base 2 of each element: bits.

    >>> import minitorch_peft as mp
    >>> log2(mp.tensor([8.0])).tolist()
    [3.0]
    """
    return Log2.apply(floating(input, "log2"))


# -- roots ---------------------------------------------------------------------------------------------------
class Sqrt(Function):
    """y = √x; x gets g / (2 y)."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray) -> np.ndarray:
        y = np.sqrt(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        return g / (2 * ctx.saved[0])


def sqrt(input: Tensor) -> Tensor:
    """The square root of each element; nan below 0.

    >>> import minitorch_peft as mp
    >>> sqrt(mp.tensor([4.0])).tolist()
    [2.0]
    """
    return Sqrt.apply(floating(input, "sqrt"))


class Rsqrt(Function):
    """y = 1 / √x; x gets -g y³ / 2."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray) -> np.ndarray:
        y = 1 / np.sqrt(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        (y,) = ctx.saved
        return -0.5 * g * (y * y * y)


def rsqrt(input: Tensor) -> Tensor:
    """One over the square root of each element.

    >>> import minitorch_peft as mp
    >>> rsqrt(mp.tensor([4.0])).tolist()
    [0.5]
    """
    return Rsqrt.apply(floating(input, "rsqrt"))


class Square(Function):
    """y = x²; x gets 2 g x."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray) -> np.ndarray:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        return 2 * g * ctx.saved[0]


def square(input: Tensor) -> Tensor:
    """The square of each element.

    >>> import minitorch_peft as mp
    >>> square(mp.tensor([3.0])).tolist()
    [9.0]
    """
    return Square.apply(as_tensor(input, "square"))


class Reciprocal(Function):
    """y = 1 / x; x gets -g y²."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray) -> np.ndarray:
        y = 1 / x
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        (y,) = ctx.saved
        return -g * (y * y)


def reciprocal(input: Tensor) -> Tensor:
    """One over each element.

    >>> import minitorch_peft as mp
    >>> reciprocal(mp.tensor([4.0])).tolist()
    [0.25]
    """
    return Reciprocal.apply(floating(input, "reciprocal"))


# -- circular functions, and the error function --------------------------------------------------------------
class Sin(Function):
    """y = sin x; x gets g cos x."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray) -> np.ndarray:
        ctx.save_for_backward(x)
        return np.sin(x)

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        return g * np.cos(ctx.saved[0])


def sin(input: Tensor) -> Tensor:
    """The sine of each element.

    >>> import minitorch_peft as mp
    >>> sin(mp.tensor([0.0])).tolist()
    [0.0]
    """
    return Sin.apply(floating(input, "sin"))


class Cos(Function):
    """y = cos x; x gets -g sin x."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray) -> np.ndarray:
        ctx.save_for_backward(x)
        return np.cos(x)

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        return -g * np.sin(ctx.saved[0])


def cos(input: Tensor) -> Tensor:
    """The cosine of each element.

    >>> import minitorch_peft as mp
    >>> cos(mp.tensor([0.0])).tolist()
    [1.0]
    """
    return Cos.apply(floating(input, "cos"))


class Erf(Function):
    """y = 2/√π ∫₀ˣ e^(-t²) dt; x gets g 2/√π e^(-x²)."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray) -> np.ndarray:
        from scipy.special import erf  # here, because importing the package must not load scipy

        ctx.save_for_backward(x)
        return erf(x)

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        (x,) = ctx.saved
        return g * (2 / math.sqrt(math.pi) * np.exp(-x * x))


def erf(input: Tensor) -> Tensor:
    """The error function of each element.

    >>> import minitorch_peft as mp
    >>> erf(mp.tensor([0.0])).tolist()
    [0.0]
    """
    return Erf.apply(floating(input, "erf"))


# -- bounds and steps ----------------------------------------------------------------------------------------
class Clamp(Function):
    """y = x held within [low, high]; x gets g where it was within, the bounds included."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, low: float | None, high: float | None) -> np.ndarray:
        y = np.clip(x, low, high)
        ctx.save_for_backward(x == y)
        return y

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        return g * ctx.saved[0]


def clamp(input: Tensor, min: float | None = None, max: float | None = None) -> Tensor:
    """Each element, or the nearer bound where it is outside [min, max]; the bounds are numbers.

    >>> import minitorch_peft as mp
    >>> clamp(mp.tensor([-2.0, 0.5, 2.0]), min=-1.0, max=1.0).tolist()
    [-1.0, 0.5, 1.0]
    """
    if min is None and max is None:
        raise ValueError("clamp: give min, max or both")
    if isinstance(min, Tensor | np.ndarray) or isinstance(max, Tensor | np.ndarray):
        raise TypeError("clamp: min and max must be numbers; for tensors use maximum and minimum")
    return Clamp.apply(as_tensor(input, "clamp"), low=min, high=max)


class _Step(Function):
    """Constant between its jumps: the gradient is 0 everywhere else, and taken to be 0 there."""

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        return np.zeros_like(g)


class Sign(_Step):
    @staticmethod
    def forward(ctx: Any, x: np.ndarray) -> np.ndarray:
        return np.sign(x)


def sign(input: Tensor) -> Tensor:
    """-1, 0 or 1 for each element; the gradient is 0.

    >>> import minitorch_peft as mp
    >>> sign(mp.tensor([-2.0, 0.0, 3.0])).tolist()
    [-1.0, 0.0, 1.0]
    """
    return Sign.apply(as_tensor(input, "sign"))


class Floor(_Step):
    @staticmethod
    def forward(ctx: Any, x: np.ndarray) -> np.ndarray:
        return np.floor(x)


def floor(input: Tensor) -> Tensor:
    """The largest whole number at or below each element; the gradient is 0.

    >>> import minitorch_peft as mp
    >>> floor(mp.tensor([-1.5, 1.5])).tolist()
    [-2.0, 1.0]
    """
    return Floor.apply(as_tensor(input, "floor"))


class Ceil(_Step):
    @staticmethod
    def forward(ctx: Any, x: np.ndarray) -> np.ndarray:
        return np.ceil(x)


def ceil(input: Tensor) -> Tensor:
    """The smallest whole number at or above each element; the gradient is 0.

    >>> import minitorch_peft as mp
    >>> ceil(mp.tensor([-1.5, 1.5])).tolist()
    [-1.0, 2.0]
    """
    return Ceil.apply(as_tensor(input, "ceil"))


class Round(_Step):
    @staticmethod
    def forward(ctx: Any, x: np.ndarray) -> np.ndarray:
        return np.rint(x) if x.dtype.kind == "f" else x


def round(input: Tensor) -> Tensor:
    """The nearest whole number, halves to the even one; the gradient is 0.

    >>> import minitorch_peft as mp
    >>> round(mp.tensor([0.5, 1.5, -0.7])).tolist()
    [0.0, 2.0, -1.0]
    """
    return Round.apply(as_tensor(input, "round"))
