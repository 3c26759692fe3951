"""Elementwise operations of two operands, which are broadcast first: no gradient is un-broadcast here."""

from __future__ import annotations

from typing import Any

import numpy as np

from minitorch_peft.autograd.function import Function
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.ops.promotion import DEFAULT_FLOAT, NUMBERS, Number, as_tensor, result_dtype, to
from minitorch_peft.ops.shape import broadcast_tensors


def operands(a: Any, b: Any, name: str, divide: bool = False) -> tuple[Tensor, Tensor]:
    """Both operands in one dtype and one shape.

    A Python number becomes a 0-d constant, which needs no gradient and so is left to NumPy to broadcast.
    ``divide`` takes integers to floats.
    """
    a = a if isinstance(a, NUMBERS) else as_tensor(a, name)
    b = b if isinstance(b, NUMBERS) else as_tensor(b, name)
    dtype = result_dtype(a, b)
    if divide and dtype.kind != "f":
        dtype = DEFAULT_FLOAT
    if isinstance(b, NUMBERS):
        return to(as_tensor(a, name), dtype), Tensor(np.asarray(b, dtype))
    if isinstance(a, NUMBERS):
        return Tensor(np.asarray(a, dtype)), to(b, dtype)
    a, b = to(a, dtype), to(b, dtype)
    return (a, b) if a.data.shape == b.data.shape else broadcast_tensors(a, b)  # type: ignore[return-value]


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
    """input - other, broadcast. TypeError for two bools.

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
        return da, None if y is None else -da * y


def div(input: Tensor | Number, other: Tensor | Number) -> Tensor:
    """input / other, broadcast; integers divide to float32.

    >>> import minitorch_peft as mp
    >>> div(mp.tensor([1, 2]), 2).tolist()
    [0.5, 1.0]
    """
    return Div.apply(*operands(input, other, "div", divide=True))


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
    """y = a^b; a gets g b a^(b-1) (0 where b = 0), b gets g y log a (0 where a = 0 and b >= 0)."""

    @staticmethod
    def forward(ctx: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        y = a**b
        ctx.save_for_backward(a, b, y if ctx.needs_input_grad[1] else None)
        return y

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
        a, b, y = ctx.saved
        da = db = None
        with np.errstate(divide="ignore", invalid="ignore"):  # where() drops what 0^-1 and log 0 gave
            if ctx.needs_input_grad[0]:
                da = np.where(b == 0, g.dtype.type(0), g * (b * a ** (b - 1)))
            if ctx.needs_input_grad[1]:
                db = np.where((a == 0) & (b >= 0), g.dtype.type(0), g * (y * np.log(a)))
        return da, db


def pow(input: Tensor | Number, exponent: Tensor | Number) -> Tensor:
    """input to the power of exponent, broadcast. ValueError for an integer to a negative integer power.

    >>> import minitorch_peft as mp
    >>> pow(mp.tensor([1.0, 3.0]), 2).tolist()
    [1.0, 9.0]
    """
    if isinstance(exponent, NUMBERS):
        x = as_tensor(input, "pow")
        x = to(x, result_dtype(x, exponent))
        if x.data.dtype.kind != "f" and exponent < 0:
            raise ValueError(f"pow: {x.dtype} to the power of {exponent} is not an integer; convert with .float()")
        return PowScalar.apply(x, exponent=exponent)
    return Pow.apply(*operands(input, exponent, "pow"))


class _Extremum(Function):
    """The larger or the smaller of a and b gets g; where they are equal, each gets g / 2."""

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        a, b, y = ctx.saved
        share = np.where(a == b, g.dtype.type(0.5), a == y)
        da = g * share
        return da, g - da


class Maximum(_Extremum):
    @staticmethod
    def forward(ctx: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        y = np.maximum(a, b)
        ctx.save_for_backward(a, b, y)
        return y


def maximum(input: Tensor, other: Tensor | Number) -> Tensor:
    """The larger of input and other, broadcast; nan where either is.

    >>> import minitorch_peft as mp
    >>> maximum(mp.tensor([1.0, 4.0]), mp.tensor([3.0, 2.0])).tolist()
    [3.0, 4.0]
    """
    return Maximum.apply(*operands(input, other, "maximum"))


class Minimum(_Extremum):
    @staticmethod
    def forward(ctx: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        y = np.minimum(a, b)
        ctx.save_for_backward(a, b, y)
        return y


def minimum(input: Tensor, other: Tensor | Number) -> Tensor:
    """The smaller of input and other, broadcast; nan where either is.

    >>> import minitorch_peft as mp
    >>> minimum(mp.tensor([1.0, 4.0]), mp.tensor([3.0, 2.0])).tolist()
    [1.0, 2.0]
    """
    return Minimum.apply(*operands(input, other, "minimum"))


class Where(Function):
    """y = a where the condition holds, else b; each gets g where it was chosen."""

    @staticmethod
    def forward(ctx: Any, a: np.ndarray, b: np.ndarray, *, condition: np.ndarray) -> np.ndarray:
        ctx.save_for_backward(condition)
        return np.where(condition, a, b)

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
        (condition,), zero = ctx.saved, g.dtype.type(0)
        da = np.where(condition, g, zero) if ctx.needs_input_grad[0] else None
        return da, np.where(condition, zero, g) if ctx.needs_input_grad[1] else None


def where(condition: Tensor, input: Tensor | Number, other: Tensor | Number) -> Tensor:
    """input where condition (bool) is true, else other; all broadcast. TypeError unless condition is bool.

    >>> import minitorch_peft as mp
    >>> where(mp.tensor([True, False]), mp.tensor([1.0, 2.0]), 0.0).tolist()
    [1.0, 0.0]
    """
    condition = as_tensor(condition, "where")
    if condition.dtype.kind != "b":
        raise TypeError(f"where: the condition must be bool, got {condition.dtype}")
    a = input if isinstance(input, NUMBERS) else as_tensor(input, "where")
    b = other if isinstance(other, NUMBERS) else as_tensor(other, "where")
    dtype = result_dtype(a, b)
    a = Tensor(np.asarray(a, dtype)) if isinstance(a, NUMBERS) else to(a, dtype)
    b = Tensor(np.asarray(b, dtype)) if isinstance(b, NUMBERS) else to(b, dtype)
    condition, a, b = broadcast_tensors(condition, a, b)
    return Where.apply(a, b, condition=condition.data)


def masked_fill(input: Tensor, mask: Tensor, value: Number | Tensor) -> Tensor:
    """input with ``value``, a number or a 0-d tensor, where mask (bool, broadcast to input) is true.

    >>> import minitorch_peft as mp
    >>> masked_fill(mp.tensor([1.0, 2.0]), mp.tensor([False, True]), -1.0).tolist()
    [1.0, -1.0]
    """
    x = as_tensor(input, "masked_fill")
    if isinstance(value, Tensor) and value.ndim:
        raise ValueError(f"masked_fill: value must be a number or a 0-d tensor, got shape {value.shape}; use where")
    if isinstance(value, Tensor) or x.data.dtype.kind != "f":
        value = to(value if isinstance(value, Tensor) else Tensor(np.asarray(value)), x.dtype)
    return where(mask, value, x)
