"""Putting tensors together, taking them apart, and moving elements along an axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minitorch_peft.autograd.function import Function
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.ops.indexing import Slice
from minitorch_peft.ops.promotion import as_tensor, result_dtype, to
from minitorch_peft.ops.shape import as_sizes, expand, flatten, reshape, unsqueeze, wrap_dim, wrap_dims


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
    """The tensors joined along an axis that they have; all other sizes must be equal, or it is a ValueError.

    >>> import minitorch_peft as mp
    >>> cat([mp.tensor([[1.0]]), mp.tensor([[2.0], [3.0]])]).shape
    (3, 1)
    """
    tensors = [as_tensor(t, "cat") for t in tensors]
    if not tensors:
        raise ValueError("cat: expected at least one tensor, got none")
    shape = tensors[0].shape
    if not shape:
        raise ValueError("cat: 0-d tensors have no axis to join along; use stack")
    dim = wrap_dim(dim, len(shape), "cat")
    for t in tensors[1:]:
        if t.ndim != len(shape) or t.shape[:dim] != shape[:dim] or t.shape[dim + 1 :] != shape[dim + 1 :]:
            raise ValueError(f"cat: shapes {shape} and {t.shape} differ outside axis {dim}")
    dtype = result_dtype(*tensors)
    return Cat.apply(*(to(t, dtype) for t in tensors), dim=dim)


concatenate = concat = cat


def stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Tensors of one shape along a new axis ``dim``. ValueError where shapes differ.

    >>> import minitorch_peft as mp
    >>> stack([mp.tensor([1.0, 2.0]), mp.tensor([3.0, 4.0])], dim=-1).tolist()
    [[1.0, 3.0], [2.0, 4.0]]
    """
    tensors = [as_tensor(t, "stack") for t in tensors]
    if not tensors:
        raise ValueError("stack: expected at least one tensor, got none")
    if any(t.shape != tensors[0].shape for t in tensors):
        raise ValueError(f"stack: all shapes must be equal, got {', '.join(str(t.shape) for t in tensors)}")
    dim = wrap_dim(dim, tensors[0].ndim + 1, "stack")
    return cat([unsqueeze(t, dim) for t in tensors], dim)


def split(tensor: Tensor, split_size_or_sections: int | Sequence[int], dim: int = 0) -> tuple[Tensor, ...]:
    """Views along ``dim``: of one size each (the last may be shorter), or of the sizes listed.

    >>> import minitorch_peft as mp
    >>> [t.tolist() for t in split(mp.tensor([1.0, 2.0, 3.0]), 2)]
    [[1.0, 2.0], [3.0]]
    """
    x = as_tensor(tensor, "split")
    if x.ndim == 0:
        raise ValueError("split: a 0-d tensor has no axis to split")
    dim = wrap_dim(dim, x.ndim, "split")
    total = x.shape[dim]
    if isinstance(split_size_or_sections, int):
        size = split_size_or_sections
        if size < 0 or (size == 0 and total):
            raise ValueError(f"split: the size of a part must be positive, got {size}")
        ends = [min(start + size, total) for start in range(0, total, size)] if total else [0]
    else:
        sections = list(split_size_or_sections)
        if any(s < 0 for s in sections) or sum(sections) != total:
            raise ValueError(f"split: sections {sections} must add up to {total}, the size of axis {dim}")
        ends = np.cumsum(sections).tolist()
    starts = [0, *ends[:-1]]
    lead = (slice(None),) * dim
    return tuple(Slice.apply(x, index=(*lead, slice(a, b))) for a, b in zip(starts, ends, strict=True))


def chunk(input: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    """At most ``chunks`` views along ``dim``, all of one size except perhaps the last.

    >>> import minitorch_peft as mp
    >>> [t.tolist() for t in chunk(mp.tensor([1.0, 2.0, 3.0, 4.0]), 2)]
    [[1.0, 2.0], [3.0, 4.0]]
    """
    x = as_tensor(input, "chunk")
    if chunks < 1:
        raise ValueError(f"chunk: expected at least 1 chunk, got {chunks}")
    if x.ndim == 0:
        raise ValueError("chunk: a 0-d tensor has no axis to split")
    total = x.shape[wrap_dim(dim, x.ndim, "chunk")]
    return split(x, -(-total // chunks), dim) if total else split(x, [0] * chunks, dim)


def unbind(input: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    """The slices along ``dim``, without that axis (views).

    >>> import minitorch_peft as mp
    >>> [t.tolist() for t in unbind(mp.tensor([[1.0, 2.0], [3.0, 4.0]]), dim=1)]
    [[1.0, 3.0], [2.0, 4.0]]
    """
    x = as_tensor(input, "unbind")
    if x.ndim == 0:
        raise ValueError("unbind: a 0-d tensor has no axis to take apart")
    lead = (slice(None),) * wrap_dim(dim, x.ndim, "unbind")
    return tuple(Slice.apply(x, index=(*lead, i)) for i in range(x.shape[len(lead)]))


class Pad(Function):
    """y = x with constant margins; x gets the inside of the gradient."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, margins: list[tuple[int, int]], value: float) -> np.ndarray:
        y = np.full([a + n + b for n, (a, b) in zip(x.shape, margins, strict=True)], value, x.dtype)
        ctx.inside = tuple(slice(a, a + n) for n, (a, _) in zip(x.shape, margins, strict=True))
        y[ctx.inside] = x
        return y

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        return g[ctx.inside]


def pad(input: Tensor, pad: Sequence[int], mode: str = "constant", value: float = 0.0) -> Tensor:
    """``value`` around ``input``: (before, after) for the last axis, then for the one before it, and so on.

    A negative margin cuts off. Only ``mode="constant"``.

    >>> import minitorch_peft as mp
    >>> pad(mp.tensor([[1.0]]), (1, 2)).tolist()
    [[0.0, 1.0, 0.0, 0.0]]
    """
    x = as_tensor(input, "pad")
    if mode != "constant":
        raise ValueError(f"pad: only mode='constant' is supported, got {mode!r}")
    if len(pad) % 2 or len(pad) > 2 * x.ndim:
        raise ValueError(f"pad: expected (before, after) for at most {x.ndim} axes, got {tuple(pad)}")
    pairs = [(int(pad[i]), int(pad[i + 1])) for i in range(0, len(pad), 2)]
    margins = [(0, 0)] * (x.ndim - len(pairs)) + pairs[::-1]
    for n, (a, b) in zip(x.shape, margins, strict=True):
        if n + a + b < 0 or n + min(a, 0) + min(b, 0) < 0:
            raise ValueError(f"pad: margins {(a, b)} cut off more than the {n} elements that there are")
    if any(a < 0 or b < 0 for a, b in margins):
        inside = tuple(slice(max(-a, 0), n - max(-b, 0)) for n, (a, b) in zip(x.shape, margins, strict=True))
        x = Slice.apply(x, index=inside)
        margins = [(max(a, 0), max(b, 0)) for a, b in margins]
    return Pad.apply(x, margins=margins, value=value)


class Flip(Function):
    """y = x backwards along axes (a view); so is the gradient."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, dims: tuple[int, ...]) -> np.ndarray:
        ctx.dims = dims
        return np.flip(x, dims)

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        return np.flip(g, ctx.dims)


def flip(input: Tensor, *dims: Any) -> Tensor:
    """``input`` backwards along the axes ``dims``; a view, where torch copies.

    >>> import minitorch_peft as mp
    >>> flip(mp.tensor([1.0, 2.0, 3.0]), 0).tolist()
    [3.0, 2.0, 1.0]
    """
    x, named = as_tensor(input, "flip"), as_sizes(dims)
    return Flip.apply(x, dims=wrap_dims(named, x.ndim, "flip") if named else ())


class Roll(Function):
    """y_i = x_(i - shift), around the end; the gradient rolls back."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, shifts: tuple[int, ...], dims: tuple[int, ...]) -> np.ndarray:
        ctx.shifts, ctx.dims = shifts, dims
        return np.roll(x, shifts, dims)

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        return np.roll(g, tuple(-s for s in ctx.shifts), ctx.dims)


def roll(input: Tensor, shifts: int | Sequence[int], dims: int | Sequence[int] | None = None) -> Tensor:
    """Elements moved by ``shifts`` along ``dims``, those that fall off the end back to the front; without
    ``dims`` the elements as one row.

    >>> import minitorch_peft as mp
    >>> roll(mp.tensor([1.0, 2.0, 3.0]), 1, 0).tolist()
    [3.0, 1.0, 2.0]
    """
    x = as_tensor(input, "roll")
    by = as_sizes((shifts,))
    if dims is None:
        if len(by) != 1:
            raise ValueError(f"roll: {len(by)} shifts need as many dims")
        return reshape(Roll.apply(reshape(x, -1), shifts=by, dims=(0,)), x.shape)
    named = as_sizes((dims,))
    if len(by) != len(named) or x.ndim == 0:
        raise ValueError(f"roll: {len(by)} shifts for {len(named)} dims of a tensor with {x.ndim} axes")
    return Roll.apply(x, shifts=by, dims=tuple(wrap_dim(d, x.ndim, "roll") for d in named))


def tile(input: Tensor, *dims: Any) -> Tensor:
    """``input`` repeated ``dims[i]`` times along each axis; missing counts, or missing axes, are 1.

    >>> import minitorch_peft as mp
    >>> tile(mp.tensor([1.0, 2.0]), 2, 2).tolist()
    [[1.0, 2.0, 1.0, 2.0], [1.0, 2.0, 1.0, 2.0]]
    """
    x, counts = as_tensor(input, "tile"), as_sizes(dims)
    if any(c < 0 for c in counts):
        raise ValueError(f"tile: counts must not be negative, got {counts}")
    counts = (1,) * (x.ndim - len(counts)) + counts
    sizes = (1,) * (len(counts) - x.ndim) + x.shape
    apart = [n for size in sizes for n in (1, size)]
    grown = [n for count, size in zip(counts, sizes, strict=True) for n in (count, size)]
    repeated = expand(reshape(x, apart), grown)
    return reshape(repeated, [c * n for c, n in zip(counts, sizes, strict=True)])


def repeat_interleave(input: Tensor, repeats: int, dim: int | None = None) -> Tensor:
    """Each element ``repeats`` times in place along ``dim``; without ``dim`` the elements as one row.

    >>> import minitorch_peft as mp
    >>> repeat_interleave(mp.tensor([1.0, 2.0]), 2).tolist()
    [1.0, 1.0, 2.0, 2.0]
    """
    x = as_tensor(input, "repeat_interleave")
    if not isinstance(repeats, int) or repeats < 0:
        raise ValueError(f"repeat_interleave: repeats must be an integer of at least 0, got {repeats!r}")
    if dim is None or x.ndim == 0:
        x, dim = reshape(x, -1), 0
    dim = wrap_dim(dim, x.ndim, "repeat_interleave")
    wide = unsqueeze(x, dim + 1)
    return flatten(expand(wide, (*wide.shape[: dim + 1], repeats, *wide.shape[dim + 2 :])), dim, dim + 1)
