"""Broadcasting, and other shapes of the same elements (views where the layout allows)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from minitorch_peft.autograd.function import Function
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.ops.promotion import as_tensor


def wrap_dim(dim: int, ndim: int, name: str) -> int:
    """``dim`` counted from the front; IndexError outside [-ndim, ndim - 1] (0-d tensors: 0 and -1)."""
    bound = max(ndim, 1)
    if not -bound <= dim < bound:
        raise IndexError(f"{name}: dim {dim} is out of range for {ndim} axes, expected {-bound} to {bound - 1}")
    return dim % bound


def wrap_dims(dim: int | Sequence[int] | None, ndim: int, name: str) -> tuple[int, ...]:
    """The named axes, counted from the front: all of them for ``None`` and ``()``."""
    if dim is None:
        return tuple(range(ndim))
    dims = (dim,) if isinstance(dim, int | np.integer) else tuple(dim)
    wrapped = tuple(wrap_dim(int(d), ndim, name) for d in dims)
    if len(set(wrapped)) != len(wrapped):
        raise ValueError(f"{name}: dim {dims} names the same axis twice")
    if not ndim:
        return ()
    return wrapped or tuple(range(ndim))


def as_sizes(sizes: tuple[Any, ...]) -> tuple[int, ...]:
    """Sizes given one by one, f(2, 3), or as one sequence, f((2, 3))."""
    if len(sizes) == 1 and not isinstance(sizes[0], int | np.integer):
        sizes = tuple(sizes[0])
    return tuple(int(s) for s in sizes)


# -- broadcasting --------------------------------------------------------------------------------------------
class Expand(Function):
    """y = x repeated along axes of size one (a view); each x gets the sum of its copies' gradients."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, shape: tuple[int, ...]) -> np.ndarray:
        ctx.shape = x.shape
        return broadcast_view(x, shape)

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        return sum_to_shape(g, ctx.shape)


def broadcast_view(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """``x`` broadcast to ``shape`` without a copy (and still writable where nothing is repeated)."""
    if x.ndim < len(shape):
        x = x.reshape((1,) * (len(shape) - x.ndim) + x.shape)
    return x if x.shape == shape else np.broadcast_to(x, shape)


def sum_to_shape(g: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Sum ``g`` over the axes along which ``shape`` broadcasts to ``g.shape``."""
    # BEGIN SOLUTION(task="1.1a")
    lead = g.ndim - len(shape)
    axes = tuple(i for i in range(g.ndim) if i < lead or (shape[i - lead] == 1 and g.shape[i] != 1))
    return g.sum(axis=axes).reshape(shape)
    # END SOLUTION


def expand(input: Tensor, *sizes: Any) -> Tensor:
    """``input`` broadcast to ``sizes`` as a view; -1 keeps a size, new axes go in front. ValueError if not.

    >>> import minitorch_peft as mp
    >>> expand(mp.tensor([[1.0], [2.0]]), 2, 3).shape
    (2, 3)
    """
    input, wanted = as_tensor(input, "expand"), as_sizes(sizes)
    lead = len(wanted) - input.ndim
    shape = tuple(input.shape[i - lead] if s == -1 and i >= lead else s for i, s in enumerate(wanted))
    fits = lead >= 0 and all(n in (1, s) for n, s in zip(input.shape, shape[lead:], strict=True))
    if not fits or any(s < 0 for s in shape):
        raise ValueError(f"expand: {input.shape} does not broadcast to {wanted}; only axes of size 1 can grow")
    return input if shape == input.shape else Expand.apply(input, shape=shape)


def broadcast_to(input: Tensor, size: Sequence[int]) -> Tensor:
    """:func:`expand` with the sizes in one sequence.

    >>> import minitorch_peft as mp
    >>> broadcast_to(mp.tensor([1.0]), (2, 1)).shape
    (2, 1)
    """
    return expand(input, tuple(size))


def broadcast_tensors(*tensors: Tensor) -> tuple[Tensor, ...]:
    """All of ``tensors`` as views of one common shape. ValueError where two sizes differ and neither is 1.

    >>> import minitorch_peft as mp
    >>> [t.shape for t in broadcast_tensors(mp.tensor([[1.0], [2.0]]), mp.tensor([1.0, 2.0, 3.0]))]
    [(2, 3), (2, 3)]
    """
    shape = broadcast_shapes(*(t.shape for t in tensors))
    return tuple(t if t.data.shape == shape else Expand.apply(t, shape=shape) for t in tensors)


def broadcast_shapes(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that all of ``shapes`` broadcast to. ValueError where two sizes differ and neither is 1.

    >>> broadcast_shapes((2, 1), (3,))
    (2, 3)
    """
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        raise ValueError(
            f"shapes {' and '.join(map(str, shapes))} do not broadcast: aligned at the last axis, "
            "two sizes must be equal or one of them 1"
        ) from None


# -- other shapes --------------------------------------------------------------------------------------------
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
    sizes = _resolve(input.shape, as_sizes(shape), "reshape")
    return input if sizes == input.shape else Reshape.apply(input, shape=sizes)


def view(input: Tensor, *shape: Any) -> Tensor:
    """:func:`reshape` that never copies: ValueError where the layout does not allow a view.

    >>> import minitorch_peft as mp
    >>> view(mp.tensor([[1.0, 2.0]]), -1).shape
    (2,)
    """
    input = as_tensor(input, "view")
    out = reshape(input, *shape)
    if out is not input and input.data.size and not np.may_share_memory(out.data, input.data):
        raise ValueError(f"view: the layout of this {input.shape} does not allow {out.shape}; use reshape")
    return out


def _resolve(shape: tuple[int, ...], sizes: tuple[int, ...], name: str) -> tuple[int, ...]:
    """Fill in the one -1 of ``sizes``; ValueError where the elements do not fit."""
    if sizes.count(-1) > 1 or any(s < -1 for s in sizes):
        raise ValueError(f"{name}: {sizes} may hold -1 once, and nothing else below 0")
    total, known = math.prod(shape), math.prod(s for s in sizes if s != -1)
    if -1 in sizes:
        if known == 0 or total % known:
            raise ValueError(f"{name}: {total} elements of shape {shape} do not divide into {sizes}")
        return tuple(total // known if s == -1 else s for s in sizes)
    if known != total:
        raise ValueError(f"{name}: shape {shape} has {total} elements, {sizes} has {known}")
    return sizes


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


def unflatten(input: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    """Axis ``dim`` as several, of ``sizes`` (one may be -1): what :func:`flatten` undoes.

    >>> import minitorch_peft as mp
    >>> unflatten(mp.tensor([[1.0, 2.0, 3.0, 4.0]]), 1, (2, -1)).shape
    (1, 2, 2)
    """
    input = as_tensor(input, "unflatten")
    at = wrap_dim(dim, input.ndim, "unflatten")
    parts = _resolve(input.shape[at : at + 1], as_sizes((sizes,)), "unflatten")
    return reshape(input, (*input.shape[:at], *parts, *input.shape[at + 1 :]))


def squeeze(input: Tensor, dim: int | Sequence[int] | None = None) -> Tensor:
    """Without its axes of size 1, or without those named in ``dim`` that have size 1.

    >>> import minitorch_peft as mp
    >>> squeeze(mp.tensor([[[1.0], [2.0]]])).shape, squeeze(mp.tensor([[[1.0], [2.0]]]), 0).shape
    ((2,), (2, 1))
    """
    input = as_tensor(input, "squeeze")
    if isinstance(dim, Sequence) and not dim:
        return input
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


# -- other orders of the axes --------------------------------------------------------------------------------
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
    """Axis i of the result is axis ``dims[i]`` of ``input`` (a view). ValueError unless each is named once.

    >>> import minitorch_peft as mp
    >>> permute(mp.tensor([[1.0, 2.0, 3.0]]), 1, 0).shape
    (3, 1)
    """
    input, named = as_tensor(input, "permute"), as_sizes(dims)
    order = tuple(wrap_dim(d, input.ndim, "permute") for d in named)
    if sorted(order) != list(range(input.ndim)):
        raise ValueError(f"permute: {named} must name each of the {input.ndim} axes of {input.shape} once")
    return Permute.apply(input, dims=order)


def transpose(input: Tensor, dim0: int, dim1: int) -> Tensor:
    """Two axes swapped (a view).

    >>> import minitorch_peft as mp
    >>> transpose(mp.tensor([[1.0, 2.0, 3.0]]), -1, 0).shape
    (3, 1)
    """
    input = as_tensor(input, "transpose")
    a, b = wrap_dim(dim0, input.ndim, "transpose"), wrap_dim(dim1, input.ndim, "transpose")
    if a == b:
        return input
    order = list(range(input.ndim))
    order[a], order[b] = b, a
    return Permute.apply(input, dims=tuple(order))


def movedim(input: Tensor, source: int | Sequence[int], destination: int | Sequence[int]) -> Tensor:
    """The axes ``source`` at the places ``destination``, the others in their order (a view).

    >>> import minitorch_peft as mp
    >>> movedim(mp.tensor([[[1.0, 2.0]]]), -1, 0).shape
    (2, 1, 1)
    """
    input = as_tensor(input, "movedim")
    from_dims = (source,) if isinstance(source, int) else tuple(source)
    to_dims = (destination,) if isinstance(destination, int) else tuple(destination)
    if len(from_dims) != len(to_dims):
        raise ValueError(f"movedim: {len(from_dims)} source axes for {len(to_dims)} destinations")
    if not from_dims or not input.ndim:
        return input
    moved = dict(
        zip(
            wrap_dims(to_dims, input.ndim, "movedim"),
            wrap_dims(from_dims, input.ndim, "movedim"),
            strict=True,
        )
    )
    rest = iter(d for d in range(input.ndim) if d not in moved.values())
    return permute(input, tuple(moved[i] if i in moved else next(rest) for i in range(input.ndim)))


def t(input: Tensor) -> Tensor:
    """A matrix transposed (a view); vectors and 0-d tensors as they are. ValueError for more than 2 axes.

    >>> import minitorch_peft as mp
    >>> t(mp.tensor([[1.0, 2.0]])).shape
    (2, 1)
    """
    input = as_tensor(input, "t")
    if input.ndim > 2:
        raise ValueError(f"t: expected at most 2 axes, got shape {input.shape}; use .mT, transpose or permute")
    return input if input.ndim < 2 else transpose(input, 0, 1)


class Clone(Function):
    """y = a copy of x, in C order; x gets g."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray) -> np.ndarray:
        return np.array(x, order="C")

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        return g


def clone(input: Tensor) -> Tensor:
    """A copy with memory of its own, through which gradients flow.

    >>> import minitorch_peft as mp
    >>> clone(mp.tensor([1.0, 2.0])).tolist()
    [1.0, 2.0]
    """
    return Clone.apply(as_tensor(input, "clone"))


def contiguous(input: Tensor) -> Tensor:
    """``input`` itself where its elements lie in C order, else a copy that does.

    >>> import minitorch_peft as mp
    >>> contiguous(mp.tensor([[1.0, 2.0], [3.0, 4.0]]).T).data.flags.c_contiguous
    True
    """
    input = as_tensor(input, "contiguous")
    return input if input.data.flags.c_contiguous else Clone.apply(input)
