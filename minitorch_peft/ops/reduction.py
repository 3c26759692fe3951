"""Reductions over any axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from minitorch_peft.autograd.function import Function
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.ops.promotion import as_tensor, to
from minitorch_peft.ops.shape import wrap_dims

Dim = int | Sequence[int] | None


def keep_shape(shape: tuple[int, ...], dims: tuple[int, ...]) -> tuple[int, ...]:
    """``shape`` with the reduced axes at size 1: what a reduced array broadcasts back from."""
    return tuple(1 if i in dims else n for i, n in enumerate(shape))


class Sum(Function):
    """y = sum of x over dims; every x gets the gradient of its sum (a view: the inverse of Expand)."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, dims: tuple[int, ...], keepdim: bool) -> np.ndarray:
        ctx.shape, ctx.kept = x.shape, keep_shape(x.shape, dims)
        return np.add.reduce(x, axis=dims, keepdims=keepdim)

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        return np.broadcast_to(g.reshape(ctx.kept), ctx.shape)


def sum(input: Tensor, dim: Dim = None, keepdim: bool = False) -> Tensor:
    """The sum over ``dim`` (all axes by default); integers and bools add up in int64.

    >>> import minitorch_peft as mp
    >>> sum(mp.tensor([[1.0, 2.0], [3.0, 4.0]]), dim=0).tolist()
    [4.0, 6.0]
    """
    input = as_tensor(input, "sum")
    if input.data.dtype.kind != "f":
        input = to(input, np.int64)
    return Sum.apply(input, dims=wrap_dims(dim, input.ndim, "sum"), keepdim=keepdim)


class Mean(Function):
    """y = mean of x over dims; every x gets g / n."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, dims: tuple[int, ...], keepdim: bool) -> np.ndarray:
        ctx.shape, ctx.kept = x.shape, keep_shape(x.shape, dims)
        ctx.count = math.prod(x.shape[i] for i in dims)
        total = np.add.reduce(x, axis=dims, keepdims=keepdim)
        return total / ctx.count if ctx.count else np.full_like(total, np.nan)

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        return np.broadcast_to((g / max(ctx.count, 1)).reshape(ctx.kept), ctx.shape)


def mean(input: Tensor, dim: Dim = None, keepdim: bool = False) -> Tensor:
    """The mean over ``dim`` (all axes by default); nan over no elements. TypeError for integers and bools.

    >>> import minitorch_peft as mp
    >>> mean(mp.tensor([[1.0, 2.0], [3.0, 4.0]]), dim=-1).tolist()
    [1.5, 3.5]
    """
    input = as_tensor(input, "mean")
    if input.data.dtype.kind != "f":
        raise TypeError(f"mean: expected floats, got {input.dtype}; convert first, with .float()")
    return Mean.apply(input, dims=wrap_dims(dim, input.ndim, "mean"), keepdim=keepdim)
