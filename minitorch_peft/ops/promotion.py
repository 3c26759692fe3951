"""Which dtype an operation computes in, and the cast that takes its operands there (torch's rules)."""

from __future__ import annotations

from typing import Any

import numpy as np

from minitorch_peft.autograd.function import Function
from minitorch_peft.autograd.tensor import Tensor

DEFAULT_FLOAT = np.dtype(np.float32)
INT64 = np.dtype(np.int64)
BOOL = np.dtype(np.bool_)
NUMBERS = (bool, int, float)  # a tuple, not a union: isinstance is several times faster on it
Number = bool | int | float
_KINDS = {"b": 0, "u": 1, "i": 1, "f": 2}  # bool < integers < floats


class Cast(Function):
    """y = x in another floating dtype; the gradient is cast back."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, dtype: np.dtype) -> np.ndarray:
        ctx.dtype = x.dtype
        return x.astype(dtype)

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        return g.astype(ctx.dtype)


def to(input: Tensor, dtype: Any) -> Tensor:
    """``input`` in ``dtype`` (any shape): itself where it has it already, else a copy.

    A cast between floating dtypes is differentiated; a cast to integers or bool ends the graph.

    >>> import minitorch_peft as mp
    >>> to(mp.tensor([1.0, 2.0]), np.float64).dtype
    dtype('float64')
    """
    if input.data.dtype == dtype:
        return input
    dtype = np.dtype(dtype)
    if dtype.kind not in _KINDS:
        raise TypeError(f"to: expected a real number type such as np.float32, np.int64 or bool, got {dtype}")
    if dtype.kind != "f":
        return Tensor(input.data.astype(dtype))
    return Cast.apply(input, dtype=dtype)


def as_tensor(x: Any, name: str) -> Tensor:
    """``x`` as a Tensor: arrays are wrapped without a copy, else a TypeError names the operation."""
    if isinstance(x, Tensor):
        return x
    if isinstance(x, np.ndarray | np.generic):
        return Tensor(np.asarray(x))
    raise TypeError(f"{name}: expected a Tensor or an array, got {type(x).__name__}")


def floating(x: Any, name: str) -> Tensor:
    """``x`` as a Tensor of floats: integers and bools become float32, as in torch."""
    x = as_tensor(x, name)
    return x if x.data.dtype.kind == "f" else to(x, DEFAULT_FLOAT)


def integers(x: Any, name: str, what: str) -> np.ndarray:
    """``x`` (a Tensor, an array or nested lists) as an array of integers, or a TypeError."""
    array = np.asarray(x.data if isinstance(x, Tensor) else x)
    if array.dtype.kind not in "iu":
        if array.size or isinstance(x, Tensor | np.ndarray):
            raise TypeError(f"{name}: {what} must be integers, got {array.dtype}")
        array = array.astype(np.int64)  # an empty list has no dtype of its own
    return array


def result_dtype(*operands: Tensor | Number) -> np.dtype:
    """The dtype in which torch combines these: shaped tensors first, then 0-d tensors, then Python numbers.

    A lower rank changes the result only by a higher kind (bool < integer < float), so ``float32 * 2.0`` and
    ``float32 * (0-d float64)`` stay float32, and an integer tensor times ``0.5`` is float32.
    """
    ranks: list[np.dtype | None] = [None, None, None]
    for x in operands:
        if isinstance(x, Tensor):
            rank, dtype = int(x.data.ndim == 0), x.data.dtype
            if dtype.kind not in _KINDS:
                raise TypeError(f"expected bool, integer or float tensors, got {dtype}")
        else:
            rank, dtype = 2, _number_dtype(x)
        known = ranks[rank]
        ranks[rank] = dtype if known is None else promote(known, dtype)
    result: np.dtype | None = None
    for candidate in ranks:
        if candidate is not None and (result is None or _KINDS[candidate.kind] > _KINDS[result.kind]):
            result = candidate
    assert result is not None, "result_dtype needs at least one operand"
    return result


def promote(a: np.dtype, b: np.dtype) -> np.dtype:
    """The common dtype of two tensors of equal rank; int64 with float32 is float32, not NumPy's float64."""
    if a == b:
        return a
    kind_a, kind_b = _KINDS[a.kind], _KINDS[b.kind]
    if kind_a != kind_b:
        return a if kind_a > kind_b else b
    return np.promote_types(a, b)


def _number_dtype(x: Number) -> np.dtype:
    if isinstance(x, bool):
        return BOOL
    return INT64 if isinstance(x, int) else DEFAULT_FLOAT
