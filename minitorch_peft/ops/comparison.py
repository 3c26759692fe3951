"""Comparisons and logic: bool results, which no gradient passes."""

from __future__ import annotations

from typing import Any

import numpy as np

from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.ops.promotion import NUMBERS, Number, as_tensor
from minitorch_peft.ops.reduction import Dim
from minitorch_peft.ops.shape import broadcast_shapes, wrap_dims


def _compare(ufunc: np.ufunc, input: Any, other: Any, name: str) -> Tensor:
    a = input if isinstance(input, NUMBERS) else as_tensor(input, name).data
    b = other if isinstance(other, NUMBERS) else as_tensor(other, name).data
    broadcast_shapes(np.shape(a), np.shape(b))
    return Tensor(np.asarray(ufunc(a, b)))


def eq(input: Tensor, other: Tensor | Number) -> Tensor:
    """input == other, elementwise, broadcast.

    >>> import minitorch_peft as mp
    >>> eq(mp.tensor([1, 2]), 2).tolist()
    [False, True]
    """
    return _compare(np.equal, input, other, "eq")


def ne(input: Tensor, other: Tensor | Number) -> Tensor:
    """input != other, elementwise, broadcast.

    >>> import minitorch_peft as mp
    >>> ne(mp.tensor([1, 2]), 2).tolist()
    [True, False]
    """
    return _compare(np.not_equal, input, other, "ne")


def lt(input: Tensor, other: Tensor | Number) -> Tensor:
    """input < other, elementwise, broadcast.

    >>> import minitorch_peft as mp
    >>> lt(mp.tensor([1, 2]), 2).tolist()
    [True, False]
    """
    return _compare(np.less, input, other, "lt")


def le(input: Tensor, other: Tensor | Number) -> Tensor:
    """input <= other, elementwise, broadcast.

    >>> import minitorch_peft as mp
    >>> le(mp.tensor([1, 2]), 1).tolist()
    [True, False]
    """
    return _compare(np.less_equal, input, other, "le")


def gt(input: Tensor, other: Tensor | Number) -> Tensor:
    """input > other, elementwise, broadcast.

    >>> import minitorch_peft as mp
    >>> gt(mp.tensor([1, 2]), 1).tolist()
    [False, True]
    """
    return _compare(np.greater, input, other, "gt")


def ge(input: Tensor, other: Tensor | Number) -> Tensor:
    """input >= other, elementwise, broadcast.

    >>> import minitorch_peft as mp
    >>> ge(mp.tensor([1, 2]), 2).tolist()
    [False, True]
    """
    return _compare(np.greater_equal, input, other, "ge")


def logical_and(input: Tensor, other: Tensor) -> Tensor:
    """Both are nonzero, elementwise, broadcast.

    >>> import minitorch_peft as mp
    >>> logical_and(mp.tensor([True, True]), mp.tensor([True, False])).tolist()
    [True, False]
    """
    return _compare(np.logical_and, input, other, "logical_and")


def logical_or(input: Tensor, other: Tensor) -> Tensor:
    """At least one is nonzero, elementwise, broadcast.

    >>> import minitorch_peft as mp
    >>> logical_or(mp.tensor([False, True]), mp.tensor([False, False])).tolist()
    [False, True]
    """
    return _compare(np.logical_or, input, other, "logical_or")


def logical_not(input: Tensor) -> Tensor:
    """True where input is zero.

    >>> import minitorch_peft as mp
    >>> logical_not(mp.tensor([True, False])).tolist()
    [False, True]
    """
    return Tensor(np.asarray(np.logical_not(as_tensor(input, "logical_not").data)))


def isnan(input: Tensor) -> Tensor:
    """True where input is not a number.

    >>> import minitorch_peft as mp
    >>> isnan(mp.tensor([1.0, float("nan")])).tolist()
    [False, True]
    """
    return Tensor(np.asarray(np.isnan(as_tensor(input, "isnan").data)))


def isinf(input: Tensor) -> Tensor:
    """True where input is inf or -inf.

    >>> import minitorch_peft as mp
    >>> isinf(mp.tensor([1.0, float("-inf")])).tolist()
    [False, True]
    """
    return Tensor(np.asarray(np.isinf(as_tensor(input, "isinf").data)))


def isfinite(input: Tensor) -> Tensor:
    """True where input is neither infinite nor nan.

    >>> import minitorch_peft as mp
    >>> isfinite(mp.tensor([1.0, float("inf")])).tolist()
    [True, False]
    """
    return Tensor(np.asarray(np.isfinite(as_tensor(input, "isfinite").data)))


def any(input: Tensor, dim: Dim = None, keepdim: bool = False) -> Tensor:
    """Is at least one element nonzero, over ``dim`` (all axes by default)?

    >>> import minitorch_peft as mp
    >>> any(mp.tensor([False, True])).item()
    True
    """
    x = as_tensor(input, "any")
    return Tensor(np.asarray(np.any(x.data, axis=wrap_dims(dim, x.ndim, "any"), keepdims=keepdim)))


def all(input: Tensor, dim: Dim = None, keepdim: bool = False) -> Tensor:
    """Are all elements nonzero, over ``dim`` (all axes by default)?

    >>> import minitorch_peft as mp
    >>> all(mp.tensor([False, True])).item()
    False
    """
    x = as_tensor(input, "all")
    return Tensor(np.asarray(np.all(x.data, axis=wrap_dims(dim, x.ndim, "all"), keepdims=keepdim)))
