"""Choosing elements by index, and adding to chosen elements."""

from __future__ import annotations

from typing import Any

import numpy as np

from minitorch_peft.autograd.function import Function
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.ops.promotion import as_tensor, integers, result_dtype, to
from minitorch_peft.ops.shape import wrap_dim

Items = tuple[Any, ...]


def kept(index: Items, ctx: Any) -> Items:
    """The index for backward, its arrays copied: the caller may write to them before backward comes."""
    return tuple(np.array(i) if isinstance(i, np.ndarray) else i for i in index) if any(ctx.needs_input_grad) else index


class Slice(Function):
    """y = x[index] for numbers, slices, None and ... (a view); the gradient fills its place among zeros."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, index: Items) -> np.ndarray:
        ctx.shape, ctx.index = x.shape, index
        return x[index]

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        dx = np.zeros(ctx.shape, g.dtype)
        dx[ctx.index] = g
        return dx


class Index(Function):
    """y = x[index] for index arrays; an element that was chosen several times gets the sum of its gradients.

    ``unique`` promises that none was, which makes the sum an assignment.
    """

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, index: Items, unique: bool = False) -> np.ndarray:
        ctx.shape, ctx.index, ctx.unique = x.shape, kept(index, ctx), unique
        return x[index]

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        dx = np.zeros(ctx.shape, g.dtype)
        if ctx.unique:
            dx[ctx.index] = g
        else:
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
    x = as_tensor(input, "getitem")
    items = [_item(i) for i in (index if isinstance(index, tuple) else (index,))]
    if not any(isinstance(i, np.ndarray) for i in items):
        return Slice.apply(x, index=tuple(items))
    basic, fancy = _split(items, x.ndim)
    if any(i is None or i != slice(None) for i in basic):
        x = Slice.apply(x, index=tuple(basic))
    unique = all(i.dtype.kind == "b" for i in fancy if isinstance(i, np.ndarray))
    return Index.apply(x, index=tuple(fancy), unique=unique)


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
        raise IndexError(f"getitem: an index must hold integers or bools, got {array.dtype}")
    return int(array) if array.ndim == 0 and array.dtype.kind != "b" else array


def _split(items: list[Any], ndim: int) -> tuple[list[Any], list[Any]]:
    """The slices and numbers to take first, and the arrays to take from what they leave."""
    axes = [0 if i is None or i is Ellipsis else _axes(i) for i in items]
    if not any(i is Ellipsis for i in items):
        items, axes = [*items, Ellipsis], [*axes, 0]
    basic: list[Any] = []
    fancy: list[Any] = []
    for item, used in zip(items, axes, strict=True):
        if item is Ellipsis:
            rest = [slice(None)] * (ndim - sum(axes))
            basic += rest
            fancy += rest
        elif isinstance(item, np.ndarray):
            basic += [slice(None)] * used
            fancy.append(item)
        else:
            basic.append(item)
            if not isinstance(item, int):
                fancy.append(slice(None))
    return basic, fancy


def _axes(item: Any) -> int:
    """How many axes one index takes: a bool array takes all of its own."""
    return item.ndim if isinstance(item, np.ndarray) and item.dtype.kind == "b" else 1


# -- along one axis ------------------------------------------------------------------------------------------
def along(index: np.ndarray, dim: int) -> Items:
    """Index arrays that choose ``x[i, .., index[i, .., j, .., k], .., k]``, ``index`` at ``dim``."""
    axes = range(index.ndim)
    counters = [np.arange(index.shape[i]).reshape([-1 if d == i else 1 for d in axes]) for i in axes]
    return (*counters[:dim], index, *counters[dim + 1 :])


def gather(input: Tensor, dim: int, index: Any) -> Tensor:
    """y[.., i, ..] = input[.., index[.., i, ..], ..] along ``dim``; index has as many axes, none longer.

    >>> import minitorch_peft as mp
    >>> gather(mp.tensor([[1.0, 2.0], [3.0, 4.0]]), 1, mp.tensor([[1], [0]])).tolist()
    [[2.0], [3.0]]
    """
    x = as_tensor(input, "gather")
    where, dim = _checked(x, dim, index, "gather")
    if x.ndim == 0:
        return x
    return Index.apply(x, index=along(where, dim))


def take_along_dim(input: Tensor, indices: Any, dim: int) -> Tensor:
    """:func:`gather` with numpy's argument order; indices has input's sizes outside ``dim``.

    >>> import minitorch_peft as mp
    >>> take_along_dim(mp.tensor([[1.0, 2.0]]), mp.tensor([[1, 1]]), dim=1).tolist()
    [[2.0, 2.0]]
    """
    return gather(input, dim, indices)


def index_select(input: Tensor, dim: int, index: Any) -> Tensor:
    """The slices of input along ``dim`` that index, integers (K), names.

    >>> import minitorch_peft as mp
    >>> index_select(mp.tensor([[1.0, 2.0], [3.0, 4.0]]), 1, mp.tensor([1, 1])).tolist()
    [[2.0, 2.0], [4.0, 4.0]]
    """
    x = as_tensor(input, "index_select")
    dim = wrap_dim(dim, x.ndim, "index_select")
    chosen = _vector(index, x, dim, "index_select")
    return Index.apply(x, index=(*(slice(None),) * dim, chosen))


class ScatterAdd(Function):
    """y = x, and y[index] += s for each element of s; x gets g, s gets g[index]."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, s: np.ndarray, *, index: Items) -> np.ndarray:
        ctx.index = kept(index, ctx)
        y = np.array(x)
        np.add.at(y, index, s)
        return y

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        return g, g[ctx.index] if ctx.needs_input_grad[1] else None


def index_add(input: Tensor, dim: int, index: Any, source: Tensor, alpha: float = 1) -> Tensor:
    """input with slice i of alpha * source added to slice index[i], along ``dim``; repeated indices add up.

    >>> import minitorch_peft as mp
    >>> index_add(mp.tensor([0.0, 0.0]), 0, mp.tensor([1, 1]), mp.tensor([2.0, 3.0])).tolist()
    [0.0, 5.0]
    """
    x, s = as_tensor(input, "index_add"), as_tensor(source, "index_add")
    dim = wrap_dim(dim, x.ndim, "index_add")
    chosen = _vector(index, x, dim, "index_add")
    wanted = (*x.shape[:dim], len(chosen), *x.shape[dim + 1 :])
    if s.shape != wanted:
        raise ValueError(f"index_add: source must be {wanted} (input's axes, {dim} as long as index), got {s.shape}")
    dtype = result_dtype(x, s)
    s = to(s, dtype) if alpha == 1 else to(s, dtype) * alpha
    return ScatterAdd.apply(to(x, dtype), s, index=(*(slice(None),) * dim, chosen))


def scatter_add(input: Tensor, dim: int, index: Any, src: Tensor) -> Tensor:
    """input with src[.., i, ..] added at index[.., i, ..] along ``dim``: what :func:`gather` undoes.

    >>> import minitorch_peft as mp
    >>> scatter_add(mp.tensor([[0.0, 0.0]]), 1, mp.tensor([[1, 1]]), mp.tensor([[2.0, 3.0]])).tolist()
    [[0.0, 5.0]]
    """
    x, s = as_tensor(input, "scatter_add"), as_tensor(src, "scatter_add")
    where, dim = _checked(x, dim, index, "scatter_add")
    if s.ndim != where.ndim or any(n > m for n, m in zip(where.shape, s.shape, strict=True)):
        raise ValueError(f"scatter_add: index {where.shape} must fit into src {s.shape}")
    dtype = result_dtype(x, s)
    x, s = to(x, dtype), to(s, dtype)
    if x.ndim == 0:
        return x + s
    if s.shape != where.shape:
        s = Slice.apply(s, index=tuple(slice(n) for n in where.shape))
    return ScatterAdd.apply(x, s, index=along(where, dim))


def _checked(x: Tensor, dim: int, index: Any, name: str) -> tuple[np.ndarray, int]:
    """The index array and the axis; ValueError unless it fits, IndexError where it points outside."""
    dim = wrap_dim(dim, x.ndim, name)
    where = integers(index, name, "index")
    outside = [d for d in range(x.ndim) if d != dim]
    if where.ndim != x.ndim or any(where.shape[d] > x.shape[d] for d in outside):
        raise ValueError(f"{name}: index {where.shape} must fit into input {x.shape} outside axis {dim}")
    _in_range(where, x.shape[dim] if x.ndim else 1, name)
    return where, dim


def _vector(index: Any, x: Tensor, dim: int, name: str) -> np.ndarray:
    chosen = integers(index, name, "index")
    if x.ndim == 0 or chosen.ndim > 1:
        raise ValueError(f"{name}: expected index (K) for an input of at least 1 axis, got {chosen.shape}, {x.shape}")
    _in_range(chosen, x.shape[dim], name)
    return chosen.reshape(-1)


def _in_range(index: np.ndarray, size: int, name: str) -> None:
    if index.size and not (index.min() >= 0 and index.max() < size):
        raise IndexError(f"{name}: indices must be in [0, {size}), got {index.min()} to {index.max()}")


# -- triangles -----------------------------------------------------------------------------------------------
class Tril(Function):
    """y = x where column <= row + diagonal, else 0; so is the gradient."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, diagonal: int) -> np.ndarray:
        ctx.diagonal = diagonal
        return np.tril(x, diagonal)

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        return np.tril(g, ctx.diagonal)


def tril(input: Tensor, diagonal: int = 0) -> Tensor:
    """The lower triangle of the last two axes, up to ``diagonal`` above the main one; 0 elsewhere.

    >>> import minitorch_peft as mp
    >>> tril(mp.tensor([[1.0, 2.0], [3.0, 4.0]])).tolist()
    [[1.0, 0.0], [3.0, 4.0]]
    """
    return Tril.apply(_matrix(input, "tril"), diagonal=diagonal)


class Triu(Function):
    """y = x where column >= row + diagonal, else 0; so is the gradient."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, diagonal: int) -> np.ndarray:
        ctx.diagonal = diagonal
        return np.triu(x, diagonal)

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        return np.triu(g, ctx.diagonal)


def triu(input: Tensor, diagonal: int = 0) -> Tensor:
    """The upper triangle of the last two axes, from ``diagonal`` above the main one; 0 elsewhere.

    >>> import minitorch_peft as mp
    >>> triu(mp.tensor([[1.0, 2.0], [3.0, 4.0]]), diagonal=1).tolist()
    [[0.0, 2.0], [0.0, 0.0]]
    """
    return Triu.apply(_matrix(input, "triu"), diagonal=diagonal)


def _matrix(input: Tensor, name: str) -> Tensor:
    x = as_tensor(input, name)
    if x.ndim < 2:
        raise ValueError(f"{name}: expected at least 2 axes, got shape {x.shape}")
    return x
