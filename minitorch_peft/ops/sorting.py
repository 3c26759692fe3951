"""Elements in order, and the first of them: find indices, then gather, which is the differentiable part."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.ops.arithmetic import maximum, minimum
from minitorch_peft.ops.indexing import Index, along
from minitorch_peft.ops.promotion import NUMBERS, as_tensor
from minitorch_peft.ops.reduction import amax, amin, nonempty_dims
from minitorch_peft.ops.shape import squeeze, wrap_dim


class ValuesIndices(NamedTuple):
    values: Tensor
    indices: Tensor


def max(input: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
    """max(x): the largest element; max(x, dim): (values, indices) along an axis, the first of equals;
    max(x, other): elementwise, as :func:`maximum`.

    >>> import minitorch_peft as mp
    >>> values, indices = max(mp.tensor([[1.0, 2.0], [4.0, 3.0]]), dim=1)
    >>> values.tolist(), indices.tolist()
    ([2.0, 4.0], [1, 0])
    """
    if isinstance(dim, Tensor | np.ndarray):
        return maximum(input, as_tensor(dim, "max"))
    return amax(input) if dim is None else _extreme(np.argmax, input, dim, keepdim, "max")


def min(input: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
    """min(x): the smallest element; min(x, dim): (values, indices) along an axis, the first of equals;
    min(x, other): elementwise, as :func:`minimum`.

    >>> import minitorch_peft as mp
    >>> values, indices = min(mp.tensor([[1.0, 2.0], [4.0, 3.0]]), dim=1)
    >>> values.tolist(), indices.tolist()
    ([1.0, 3.0], [0, 1])
    """
    if isinstance(dim, Tensor | np.ndarray):
        return minimum(input, as_tensor(dim, "min"))
    return amin(input) if dim is None else _extreme(np.argmin, input, dim, keepdim, "min")


def _extreme(find: Any, input: Tensor, dim: int, keepdim: bool, name: str) -> ValuesIndices:
    x = as_tensor(input, name)
    if not isinstance(dim, NUMBERS):
        raise TypeError(f"{name}: dim must be one axis, got {dim!r}; over several axes use a{name}")
    nonempty_dims(x, dim, name)
    if x.ndim == 0:
        return ValuesIndices(x, Tensor(np.zeros((), np.int64)))
    dim = wrap_dim(dim, x.ndim, name)
    chosen = _take(x, find(x.data, axis=dim, keepdims=True), dim)
    return chosen if keepdim else ValuesIndices(*(squeeze(t, dim) for t in chosen))


def sort(input: Tensor, dim: int = -1, descending: bool = False, stable: bool = False) -> ValuesIndices:
    """The elements along ``dim`` in order, and where they were. Always stable; nan counts as the largest.

    >>> import minitorch_peft as mp
    >>> values, indices = sort(mp.tensor([3.0, 1.0, 2.0]))
    >>> values.tolist(), indices.tolist()
    ([1.0, 2.0, 3.0], [1, 2, 0])
    """
    x = as_tensor(input, "sort")
    if x.ndim == 0:
        return ValuesIndices(x, Tensor(np.zeros((), np.int64)))
    dim = wrap_dim(dim, x.ndim, "sort")
    return _take(x, _order(x.data, dim, descending), dim)


def argsort(input: Tensor, dim: int = -1, descending: bool = False, stable: bool = False) -> Tensor:
    """The indices (int64) of :func:`sort`.

    >>> import minitorch_peft as mp
    >>> argsort(mp.tensor([3.0, 1.0, 2.0]), descending=True).tolist()
    [0, 2, 1]
    """
    return sort(as_tensor(input, "argsort").detach(), dim, descending).indices


def topk(input: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> ValuesIndices:
    """The ``k`` largest (or smallest) elements along ``dim``, in order, the first of equals first.

    >>> import minitorch_peft as mp
    >>> values, indices = topk(mp.tensor([3.0, 1.0, 2.0]), 2)
    >>> values.tolist(), indices.tolist()
    ([3.0, 2.0], [0, 2])
    """
    x = as_tensor(input, "topk")
    size = x.shape[wrap_dim(dim, x.ndim, "topk")] if x.ndim else 1
    if not 0 <= k <= size:
        raise ValueError(f"topk: k must be in [0, {size}], the size of axis {dim}, got {k}")
    if x.ndim == 0:
        return ValuesIndices(x, Tensor(np.zeros((), np.int64)))
    dim = wrap_dim(dim, x.ndim, "topk")
    first = (*(slice(None),) * dim, slice(k))
    return _take(x, _order(x.data, dim, largest)[first], dim)


def _order(x: np.ndarray, dim: int, descending: bool) -> np.ndarray:
    """Indices that sort ``x``; equal elements keep their order, also where descending (reversed twice)."""
    if not descending:
        return np.argsort(x, axis=dim, kind="stable")
    backwards = np.argsort(np.flip(x, dim), axis=dim, kind="stable")
    return np.flip(x.shape[dim] - 1 - backwards, dim)


def _take(x: Tensor, index: np.ndarray, dim: int) -> ValuesIndices:
    index = np.ascontiguousarray(index, dtype=np.int64)
    return ValuesIndices(Index.apply(x, index=along(index, dim), unique=True), Tensor(index))
