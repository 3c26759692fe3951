"""Choosing elements: slices, fancy indices."""

from __future__ import annotations

from typing import Any

import numpy as np

from minitorch_peft.autograd.function import Function
from minitorch_peft.autograd.tensor import Tensor


class Slice(Function):
    """y = x[index] for numbers, slices, None and ... (a view); the gradient fills its place among zeros."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, index: tuple[Any, ...]) -> np.ndarray:
        ctx.shape, ctx.index = x.shape, index
        return x[index]

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        dx = np.zeros(ctx.shape, g.dtype)
        dx[ctx.index] = g
        return dx


class Index(Function):
    """y = x[index] for index arrays; an element that was chosen several times gets the sum of its gradients."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, index: tuple[Any, ...]) -> np.ndarray:
        ctx.shape, ctx.index = x.shape, index
        return x[index]

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        dx = np.zeros(ctx.shape, g.dtype)
        np.add.at(dx, ctx.index, g)
        return dx


def getitem(input: Tensor, index: Any) -> Tensor:
    """``input[index]``: numbers, slices, None, ..., integer or bool arrays, and tuples of these.

    Numbers are taken out first, as in torch, so ``x[0, :, [1, 2]]`` is ``x[0][:, [1, 2]]``. Unlike torch,
    slices may have a negative step. IndexError where an index is out of range.

    >>> import minitorch_peft as mp
    >>> getitem(mp.tensor([1.0, 2.0, 3.0]), [0, 0, 2]).tolist()
    [1.0, 1.0, 3.0]
    """
    items = [_item(i) for i in (index if isinstance(index, tuple) else (index,))]
    if not any(isinstance(i, np.ndarray) for i in items):
        return Slice.apply(input, index=tuple(items))
    basic, fancy = _split(items, input.ndim)
    if any(i != slice(None) for i in basic):
        input = Slice.apply(input, index=tuple(basic))
    return Index.apply(input, index=tuple(fancy))


def _item(i: Any) -> Any:
    """One index: tensors and lists become arrays, a 0-d integer array a number."""
    if i is None or i is Ellipsis or isinstance(i, slice):
        return i
    if isinstance(i, int | np.integer) and not isinstance(i, bool):
        return int(i)
    array = np.asarray(i.data if isinstance(i, Tensor) else i)
    if array.size == 0 and array.dtype.kind == "f":
        array = array.astype(np.int64)  # [] has no dtype of its own
    if array.dtype.kind not in "iub":
        raise IndexError(f"an index must hold integers or bools, got {array.dtype}")
    return int(array) if array.ndim == 0 and array.dtype.kind != "b" else array


def _split(items: list[Any], ndim: int) -> tuple[list[Any], list[Any]]:
    """The slices and numbers to take first, and the arrays to take from what they leave."""
    used = 0
    for i in items:
        if i is not None and i is not Ellipsis:
            used += i.ndim if isinstance(i, np.ndarray) and i.dtype.kind == "b" else 1
    if Ellipsis not in [i for i in items if not isinstance(i, np.ndarray)]:
        items = [*items, Ellipsis]
    basic: list[Any] = []
    fancy: list[Any] = []
    for i in items:
        if i is Ellipsis:
            basic += [slice(None)] * (ndim - used)
            fancy += [slice(None)] * (ndim - used)
        elif isinstance(i, np.ndarray):
            basic += [slice(None)] * (i.ndim if i.dtype.kind == "b" else 1)
            fancy.append(i)
        else:
            basic.append(i)
            if not isinstance(i, int):
                fancy.append(slice(None))
    return basic, fancy
