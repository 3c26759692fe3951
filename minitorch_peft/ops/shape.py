"""Moving elements without changing them: views, joins and their inverses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from minitorch_peft.autograd.function import Function
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.ops.promotion import as_tensor, result_dtype, to


def wrap_dim(dim: int, ndim: int, name: str) -> int:
    """``dim`` counted from the front; IndexError where it is outside [-ndim, ndim - 1] (a 0-d tensor has dim 0)."""
    bound = max(ndim, 1)
    if not -bound <= dim < bound:
        raise IndexError(f"{name}: dim {dim} is out of range for {ndim} dimension(s), expected {-bound} to {bound - 1}")
    return dim % bound


def wrap_dims(dim: int | Sequence[int] | None, ndim: int, name: str) -> tuple[int, ...]:
    """The reduced axes, counted from the front: all of them for ``None`` and ``()``."""
    if dim is None or dim == () or dim == []:
        return tuple(range(ndim))
    dims = (dim,) if isinstance(dim, int | np.integer) else tuple(dim)
    wrapped = tuple(wrap_dim(int(d), ndim, name) for d in dims)
    if len(set(wrapped)) != len(wrapped):
        raise ValueError(f"{name}: dim {dims} names the same axis twice")
    return wrapped if ndim else ()


def _sizes(sizes: tuple[Any, ...]) -> tuple[int, ...]:
    """Sizes given one by one or as one sequence."""
    if len(sizes) == 1 and not isinstance(sizes[0], int | np.integer):
        sizes = tuple(sizes[0])
    return tuple(int(s) for s in sizes)


# -- broadcasting ------------------------------------------------------------------------------------------------
class Expand(Function):
    """y = x repeated along axes of size one (a view); each x gets the sum of its copies' gradients."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, shape: tuple[int, ...]) -> np.ndarray:
        ctx.shape = x.shape
        return np.broadcast_to(x, shape)

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        return sum_to_shape(g, ctx.shape)


def sum_to_shape(g: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Sum ``g`` over the axes along which ``shape`` broadcasts to ``g.shape``."""
    lead = g.ndim - len(shape)
    axes = tuple(i for i in range(g.ndim) if i < lead or (shape[i - lead] == 1 and g.shape[i] != 1))
    return np.add.reduce(g, axis=axes, keepdims=True, dtype=g.dtype).reshape(shape)


def expand(input: Tensor, *sizes: Any) -> Tensor:
    """``input`` broadcast to ``sizes`` as a view; -1 keeps a size, new axes go in front. ValueError if it cannot.

    >>> import minitorch_peft as mp
    >>> expand(mp.tensor([[1.0], [2.0]]), 2, 3).shape
    (2, 3)
    """
    input, wanted = as_tensor(input, "expand"), _sizes(sizes)
    lead = len(wanted) - input.ndim
    shape = tuple(input.shape[i - lead] if s == -1 and i >= lead else s for i, s in enumerate(wanted))
    fits = lead >= 0 and all(n in (1, s) for n, s in zip(input.shape, shape[lead:], strict=True))
    if not fits or any(s < 0 for s in shape):
        raise ValueError(f"expand: shape {input.shape} does not broadcast to {wanted}; only axes of size 1 can grow")
    return input if shape == input.shape else Expand.apply(input, shape=shape)


def broadcast_to(input: Tensor, size: Sequence[int]) -> Tensor:
    """``expand`` with the sizes in one sequence."""
    return expand(input, *size)


def broadcast_tensors(*tensors: Tensor) -> tuple[Tensor, ...]:
    """All of ``tensors`` as views of one common shape. ValueError where two sizes differ and neither is 1."""
    shape = broadcast_shapes(*(t.shape for t in tensors))
    return tuple(t if t.shape == shape else Expand.apply(t, shape=shape) for t in tensors)


def broadcast_shapes(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        raise ValueError(
            f"shapes {' and '.join(map(str, shapes))} do not broadcast: aligned at the last axis, "
            "two sizes must be equal or one of them 1"
        ) from None


# -- views -------------------------------------------------------------------------------------------------------
class Reshape(Function):
    """y = x in another shape; the gradient goes back to the first."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, shape: tuple[int, ...]) -> np.ndarray:
        ctx.shape = x.shape
        return x.reshape(shape)

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        return g.reshape(ctx.shape)


def reshape(input: Tensor, *shape: Any) -> Tensor:
    """``input`` in another shape of as many elements, one size may be -1; a view where the layout allows it.

    >>> import minitorch_peft as mp
    >>> reshape(mp.tensor([1.0, 2.0, 3.0, 4.0]), 2, -1).shape
    (2, 2)
    """
    input = as_tensor(input, "reshape")
    sizes = _resolve(input.shape, _sizes(shape), "reshape")
    return input if sizes == input.shape else Reshape.apply(input, shape=sizes)


def _resolve(shape: tuple[int, ...], sizes: tuple[int, ...], name: str) -> tuple[int, ...]:
    """Fill in the one -1 of ``sizes``; ValueError where the elements do not fit."""
    if sizes.count(-1) > 1 or any(s < -1 for s in sizes):
        raise ValueError(f"{name}: {sizes} may hold -1 once, and nothing else below 0")
    total, known = math.prod(shape), math.prod(s for s in sizes if s != -1)
    if -1 in sizes:
        if known == 0 or total % known:
            raise ValueError(f"{name}: {total} elements of shape {shape} do not divide into {sizes}")
        sizes = tuple(total // known if s == -1 else s for s in sizes)
    if math.prod(sizes) != total:
        raise ValueError(f"{name}: shape {shape} has {total} elements, {sizes} has {math.prod(sizes)}")
    return sizes


class Permute(Function):
    """y = x with its axes reordered (a view); the inverse order brings the gradient back."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, dims: tuple[int, ...]) -> np.ndarray:
        ctx.dims = dims
        return x.transpose(dims)

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        inverse = [0] * len(ctx.dims)
        for i, d in enumerate(ctx.dims):
            inverse[d] = i
        return g.transpose(inverse)


def permute(input: Tensor, *dims: Any) -> Tensor:
    """Axis i of the result is axis ``dims[i]`` of ``input`` (a view). ValueError unless each axis is named once.

    >>> import minitorch_peft as mp
    >>> permute(mp.tensor([[1.0, 2.0, 3.0]]), 1, 0).shape
    (3, 1)
    """
    input = as_tensor(input, "permute")
    order = tuple(wrap_dim(d, input.ndim, "permute") for d in _sizes(dims))
    if sorted(order) != list(range(input.ndim)):
        raise ValueError(f"permute: {_sizes(dims)} must name each of the {input.ndim} axes of {input.shape} once")
    return Permute.apply(input, dims=order)


def transpose(input: Tensor, dim0: int, dim1: int) -> Tensor:
    """Two axes swapped (a view).

    >>> import minitorch_peft as mp
    >>> transpose(mp.tensor([[1.0, 2.0, 3.0]]), -1, 0).shape
    (3, 1)
    """
    input = as_tensor(input, "transpose")
    a, b = wrap_dim(dim0, input.ndim, "transpose"), wrap_dim(dim1, input.ndim, "transpose")
    order = list(range(input.ndim))
    if not order:
        return input
    order[a], order[b] = b, a
    return Permute.apply(input, dims=tuple(order))


def squeeze(input: Tensor, dim: int | Sequence[int] | None = None) -> Tensor:
    """Without its axes of size 1, or without those named in ``dim`` that have size 1.

    >>> import minitorch_peft as mp
    >>> squeeze(mp.tensor([[[1.0], [2.0]]])).shape, squeeze(mp.tensor([[[1.0], [2.0]]]), 0).shape
    ((2,), (2, 1))
    """
    input = as_tensor(input, "squeeze")
    dims = wrap_dims(dim, input.ndim, "squeeze")
    return reshape(input, tuple(n for i, n in enumerate(input.shape) if n != 1 or i not in dims))


def unsqueeze(input: Tensor, dim: int) -> Tensor:
    """With a new axis of size 1 at ``dim`` (-1: behind the last).

    >>> import minitorch_peft as mp
    >>> unsqueeze(mp.tensor([1.0, 2.0]), -1).shape
    (2, 1)
    """
    input = as_tensor(input, "unsqueeze")
    at = wrap_dim(dim, input.ndim + 1, "unsqueeze")
    return Reshape.apply(input, shape=(*input.shape[:at], 1, *input.shape[at:]))


def flatten(input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Axes ``start_dim`` to ``end_dim`` as one (a 0-d tensor becomes one element).

    >>> import minitorch_peft as mp
    >>> flatten(mp.tensor([[[1.0, 2.0], [3.0, 4.0]]]), 1).shape
    (1, 4)
    """
    input = as_tensor(input, "flatten")
    a, b = wrap_dim(start_dim, input.ndim, "flatten"), wrap_dim(end_dim, input.ndim, "flatten")
    if a > b:
        raise ValueError(f"flatten: start_dim {start_dim} comes after end_dim {end_dim}")
    return reshape(input, (*input.shape[:a], math.prod(input.shape[a : b + 1]), *input.shape[b + 1 :]))


# -- joining -----------------------------------------------------------------------------------------------------
class Cat(Function):
    """y = the inputs one after the other along an axis; each gets its slice of the gradient."""

    @staticmethod
    def forward(ctx: Any, *arrays: np.ndarray, dim: int) -> np.ndarray:
        ctx.dim, ctx.sizes = dim, [a.shape[dim] for a in arrays]
        return np.concatenate(arrays, axis=dim)

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(np.split(g, np.cumsum(ctx.sizes)[:-1], axis=ctx.dim))


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """The tensors joined along an axis they have; all other sizes must be equal. ValueError where they are not.

    >>> import minitorch_peft as mp
    >>> cat([mp.tensor([[1.0]]), mp.tensor([[2.0], [3.0]])]).shape
    (3, 1)
    """
    tensors = [as_tensor(t, "cat") for t in tensors]
    if not tensors:
        raise ValueError("cat: expected at least one tensor, got none")
    first = tensors[0]
    if first.ndim == 0:
        raise ValueError("cat: 0-d tensors have no axis to join along; use stack")
    dim = wrap_dim(dim, first.ndim, "cat")
    for t in tensors[1:]:
        if t.ndim != first.ndim or any(a != b for i, (a, b) in enumerate(zip(t.shape, first.shape)) if i != dim):
            raise ValueError(f"cat: shapes {first.shape} and {t.shape} differ outside axis {dim}")
    dtype = result_dtype(*tensors)
    return Cat.apply(*(to(t, dtype) for t in tensors), dim=dim)


concatenate = concat = cat
