"""Elementwise arithmetic and functions of one variable."""

from __future__ import annotations

from typing import Any

import numpy as np

from minitorch_peft.autograd.function import Function
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.ops.promotion import DEFAULT_FLOAT, as_tensor, floating, result_dtype, to
from minitorch_peft.ops.shape import broadcast_tensors

Number = bool | int | float


def operands(a: Tensor | Number, b: Tensor | Number, name: str, divide: bool = False) -> tuple[Tensor, Tensor]:
    """Both operands in one dtype and one shape; a Python number becomes a 0-d constant, which NumPy broadcasts."""
    a = a if isinstance(a, Number) else as_tensor(a, name)
    b = b if isinstance(b, Number) else as_tensor(b, name)
    dtype = result_dtype(a, b)
    if divide and dtype.kind != "f":
        dtype = DEFAULT_FLOAT
    if not isinstance(a, Tensor):
        return Tensor(np.asarray(a, dtype)), to(as_tensor(b, name), dtype)
    if not isinstance(b, Tensor):
        return to(a, dtype), Tensor(np.asarray(b, dtype))
    a, b = to(a, dtype), to(b, dtype)
    return (a, b) if a.shape == b.shape else broadcast_tensors(a, b)  # type: ignore[return-value]


# -- arithmetic --------------------------------------------------------------------------------------------------
class Add(Function):
    """y = a + b; both get g."""

    @staticmethod
    def forward(ctx: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return a + b

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return g, g


def add(input: Tensor | Number, other: Tensor | Number) -> Tensor:
    """input + other, broadcast.

    >>> import minitorch_peft as mp
    >>> add(mp.tensor([1.0, 2.0]), 1.0).tolist()
    [2.0, 3.0]
    """
    return Add.apply(*operands(input, other, "add"))


class Sub(Function):
    """y = a - b; a gets g, b gets -g."""

    @staticmethod
    def forward(ctx: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return a - b

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        return g, -g if ctx.needs_input_grad[1] else None


def sub(input: Tensor | Number, other: Tensor | Number) -> Tensor:
    """input - other, broadcast.

    >>> import minitorch_peft as mp
    >>> sub(mp.tensor([1.0, 2.0]), 1.0).tolist()
    [0.0, 1.0]
    """
    return Sub.apply(*operands(input, other, "sub"))


class Mul(Function):
    """y = a b; a gets g b, b gets g a."""

    @staticmethod
    def forward(ctx: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        ctx.save_for_backward(a if ctx.needs_input_grad[1] else None, b if ctx.needs_input_grad[0] else None)
        return a * b

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
        a, b = ctx.saved
        return None if b is None else g * b, None if a is None else g * a


def mul(input: Tensor | Number, other: Tensor | Number) -> Tensor:
    """input * other, broadcast.

    >>> import minitorch_peft as mp
    >>> mul(mp.tensor([1.0, 2.0]), mp.tensor([[3.0], [4.0]])).tolist()
    [[3.0, 6.0], [4.0, 8.0]]
    """
    return Mul.apply(*operands(input, other, "mul"))


class Div(Function):
    """y = a / b; a gets g / b, b gets -g y / b."""

    @staticmethod
    def forward(ctx: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        y = a / b
        ctx.save_for_backward(b, y if ctx.needs_input_grad[1] else None)
        return y

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        b, y = ctx.saved
        da = g / b
        return da, -da * y if ctx.needs_input_grad[1] else None


def div(input: Tensor | Number, other: Tensor | Number) -> Tensor:
    """input / other, broadcast; integers divide to float32.

    >>> import minitorch_peft as mp
    >>> div(mp.tensor([1, 2]), 2).tolist()
    [0.5, 1.0]
    """
    return Div.apply(*operands(input, other, "div", divide=True))


class Neg(Function):
    """y = -x; x gets -g."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray) -> np.ndarray:
        return -x

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        return -g


def neg(input: Tensor) -> Tensor:
    """-input.

    >>> import minitorch_peft as mp
    >>> neg(mp.tensor([1.0, -2.0])).tolist()
    [-1.0, 2.0]
    """
    return Neg.apply(as_tensor(input, "neg"))


class PowScalar(Function):
    """y = x^p for a number p; x gets g p x^(p-1)."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, exponent: Number) -> np.ndarray:
        ctx.save_for_backward(x)
        ctx.exponent = exponent
        return x**exponent

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        (x,), p = ctx.saved, ctx.exponent
        return np.zeros_like(x) if p == 0 else g * (p * x ** (p - 1))


class Pow(Function):
    """y = a^b; a gets g b a^(b-1), b gets g y log a (0 where a = 0 and b >= 0)."""

    @staticmethod
    def forward(ctx: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        y = a**b
        ctx.save_for_backward(a, b, y if ctx.needs_input_grad[1] else None)
        return y

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
        a, b, y = ctx.saved
        da = db = None
        with np.errstate(divide="ignore", invalid="ignore"):  # where() drops what log 0 and 0^-1 gave
            if ctx.needs_input_grad[0]:
                da = np.where(b == 0, g.dtype.type(0), g * (b * a ** (b - 1)))
            if ctx.needs_input_grad[1]:
                db = np.where((a == 0) & (b >= 0), g.dtype.type(0), g * (y * np.log(a)))
        return da, db


def pow(input: Tensor | Number, exponent: Tensor | Number) -> Tensor:
    """input to the power of exponent, broadcast.

    >>> import minitorch_peft as mp
    >>> pow(mp.tensor([1.0, 3.0]), 2).tolist()
    [1.0, 9.0]
    """
    if isinstance(exponent, Number):
        x = as_tensor(input, "pow")
        return PowScalar.apply(to(x, result_dtype(x, exponent)), exponent=exponent)
    return Pow.apply(*operands(input, exponent, "pow"))


# -- functions of one variable -----------------------------------------------------------------------------------
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
    """The natural logarithm of each element.

    >>> import minitorch_peft as mp
    >>> log(mp.tensor([1.0])).tolist()
    [0.0]
    """
    return Log.apply(floating(input, "log"))
