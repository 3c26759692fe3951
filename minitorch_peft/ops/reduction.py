"""Reductions over any axes. (Here ``sum``, ``max``, ``min`` are the operations, not Python's.)"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from minitorch_peft.autograd.function import Function
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.ops.promotion import as_tensor, floating, to
from minitorch_peft.ops.shape import broadcast_view, wrap_dim, wrap_dims

Dim = int | Sequence[int] | None


def keep_shape(shape: tuple[int, ...], dims: tuple[int, ...]) -> tuple[int, ...]:
    """``shape`` with the reduced axes at size 1: what a reduced array broadcasts back from."""
    return tuple(1 if i in dims else n for i, n in enumerate(shape))


def floats_only(x: Any, name: str) -> Tensor:
    x = as_tensor(x, name)
    if x.data.dtype.kind != "f":
        raise TypeError(f"{name}: expected floats, got {x.dtype}; convert first, with .float()")
    return x


# -- sums ----------------------------------------------------------------------------------------------------
class Sum(Function):
    """y = Σ x over dims; every x gets its sum's gradient (Sum and Expand are each other's backward)."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, dims: tuple[int, ...], keepdim: bool) -> np.ndarray:
        ctx.shape, ctx.kept = x.shape, keep_shape(x.shape, dims)
        return x.sum(axis=dims, keepdims=keepdim)

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        # BEGIN SOLUTION(task="1.1b")
        return broadcast_view(g.reshape(ctx.kept), ctx.shape)
        # END SOLUTION


def sum(input: Tensor, dim: Dim = None, keepdim: bool = False) -> Tensor:
    """The sum over ``dim`` (all axes by default); integers and bools add up in int64.

    >>> import minitorch_peft as mp
    >>> sum(mp.tensor([[1.0, 2.0], [3.0, 4.0]]), dim=0).tolist()
    [4.0, 6.0]
    """
    x = as_tensor(input, "sum")
    x = x if x.data.dtype.kind == "f" else to(x, np.int64)
    return Sum.apply(x, dims=wrap_dims(dim, x.ndim, "sum"), keepdim=keepdim)


class Mean(Function):
    """y = Σ x / n over dims; every x gets g / n."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, dims: tuple[int, ...], keepdim: bool) -> np.ndarray:
        ctx.shape, ctx.kept = x.shape, keep_shape(x.shape, dims)
        ctx.count = math.prod(x.shape[i] for i in dims)
        total = x.sum(axis=dims, keepdims=keepdim)
        return total / ctx.count if ctx.count else np.full_like(total, np.nan)

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        # BEGIN SOLUTION(task="1.1c")
        share = g / ctx.count if ctx.count else g
        return broadcast_view(share.reshape(ctx.kept), ctx.shape)
        # END SOLUTION


def mean(input: Tensor, dim: Dim = None, keepdim: bool = False) -> Tensor:
    """The mean over ``dim`` (all axes by default); nan over no elements. TypeError for integers and bools.

    >>> import minitorch_peft as mp
    >>> mean(mp.tensor([[1.0, 2.0], [3.0, 4.0]]), dim=-1).tolist()
    [1.5, 3.5]
    """
    x = floats_only(input, "mean")
    return Mean.apply(x, dims=wrap_dims(dim, x.ndim, "mean"), keepdim=keepdim)


class CumSum(Function):
    """y_i = Σ_{j<=i} x_j along dim; x_j gets Σ_{i>=j} g_i."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, dim: int) -> np.ndarray:
        ctx.dim = dim
        return np.cumsum(x, axis=dim)

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        return np.flip(np.cumsum(np.flip(g, ctx.dim), axis=ctx.dim), ctx.dim)


def cumsum(input: Tensor, dim: int) -> Tensor:
    """Running sums along ``dim``; integers and bools add up in int64.

    >>> import minitorch_peft as mp
    >>> cumsum(mp.tensor([1.0, 2.0, 3.0]), 0).tolist()
    [1.0, 3.0, 6.0]
    """
    x = as_tensor(input, "cumsum")
    x = x if x.data.dtype.kind == "f" else to(x, np.int64)
    dim = wrap_dim(dim, x.ndim, "cumsum")
    return CumSum.apply(x, dim=dim) if x.ndim else x


class Prod(Function):
    """y = Π x over dims; each x gets g times the product of the others, also where some are 0."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, dims: tuple[int, ...], keepdim: bool) -> np.ndarray:
        ctx.dims = dims
        ctx.save_for_backward(x)
        return x.prod(axis=dims, keepdims=keepdim)

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        (x,), dims = ctx.saved, ctx.dims
        last = tuple(range(x.ndim - len(dims), x.ndim))
        moved = np.moveaxis(x, dims, last)
        rows = moved.reshape(*moved.shape[: x.ndim - len(dims)], math.prod(x.shape[d] for d in dims))
        before, after = np.ones_like(rows), np.ones_like(rows)
        np.cumprod(rows[..., :-1], axis=-1, out=before[..., 1:])
        np.cumprod(rows[..., :0:-1], axis=-1, out=after[..., -2::-1])
        others = np.moveaxis((before * after).reshape(moved.shape), last, dims)
        return g.reshape(keep_shape(x.shape, dims)) * others


def prod(input: Tensor, dim: Dim = None, keepdim: bool = False) -> Tensor:
    """The product over ``dim`` (all axes by default; torch takes one axis); integers multiply in int64.

    >>> import minitorch_peft as mp
    >>> prod(mp.tensor([[1.0, 2.0], [3.0, 4.0]]), dim=1).tolist()
    [2.0, 12.0]
    """
    x = as_tensor(input, "prod")
    x = x if x.data.dtype.kind == "f" else to(x, np.int64)
    return Prod.apply(x, dims=wrap_dims(dim, x.ndim, "prod"), keepdim=keepdim)


# -- moments -------------------------------------------------------------------------------------------------
class Var(Function):
    """y = Σ d² / (n - c), d = x - mean x; x gets 2 g d / (n - c), as Σ d = 0."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, dims: tuple[int, ...], correction: float, keepdim: bool) -> np.ndarray:
        d, y, ctx.kept, ctx.freedom = _variance(x, dims, correction, keepdim)
        ctx.save_for_backward(d)
        return y

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        (d,) = ctx.saved
        with np.errstate(divide="ignore", invalid="ignore"):
            return d * (g * np.divide(2, ctx.freedom, dtype=g.dtype)).reshape(ctx.kept)


def var(input: Tensor, dim: Dim = None, correction: float = 1, keepdim: bool = False) -> Tensor:
    """The variance over ``dim`` (all axes by default), divided by n - correction. TypeError unless floats.

    >>> import minitorch_peft as mp
    >>> var(mp.tensor([1.0, 3.0])).item(), var(mp.tensor([1.0, 3.0]), correction=0).item()
    (2.0, 1.0)
    """
    x = floats_only(input, "var")
    return Var.apply(x, dims=wrap_dims(dim, x.ndim, "var"), correction=correction, keepdim=keepdim)


class Std(Function):
    """y = √var; x gets g d / ((n - c) y), 0 where y is 0."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, dims: tuple[int, ...], correction: float, keepdim: bool) -> np.ndarray:
        d, y, ctx.kept, ctx.freedom = _variance(x, dims, correction, keepdim)
        y = np.sqrt(y)
        ctx.save_for_backward(d, y)
        return y

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        d, y = ctx.saved
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = np.where(y == 0, g.dtype.type(0), g / (y * g.dtype.type(ctx.freedom)))
        return d * scale.reshape(ctx.kept)


def std(input: Tensor, dim: Dim = None, correction: float = 1, keepdim: bool = False) -> Tensor:
    """The standard deviation over ``dim``: the root of :func:`var`.

    >>> import minitorch_peft as mp
    >>> std(mp.tensor([1.0, 3.0]), correction=0).item()
    1.0
    """
    x = floats_only(input, "std")
    return Std.apply(x, dims=wrap_dims(dim, x.ndim, "std"), correction=correction, keepdim=keepdim)


def _variance(x: np.ndarray, dims: tuple[int, ...], correction: float, keepdim: bool) -> tuple[Any, ...]:
    """Deviations, variance, the shape it broadcasts back from, degrees of freedom (0 gives inf or nan)."""
    count = math.prod(x.shape[i] for i in dims)
    kept = keep_shape(x.shape, dims)
    freedom = count - correction if count > correction else 0
    with np.errstate(divide="ignore", invalid="ignore"):
        d = x - x.sum(axis=dims, keepdims=True) / x.dtype.type(count)
        y = (d * d).sum(axis=dims, keepdims=keepdim) / x.dtype.type(freedom)
    return d, y, kept, freedom


class Norm(Function):
    """y = √Σ x²; x gets g x / y, 0 where y is 0."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, dims: tuple[int, ...], keepdim: bool) -> np.ndarray:
        y = np.sqrt((x * x).sum(axis=dims, keepdims=keepdim))
        ctx.kept = keep_shape(x.shape, dims)
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        x, y = ctx.saved
        scale = np.divide(g, y, out=np.zeros_like(g, subok=False), where=y != 0)
        return x * scale.reshape(ctx.kept)


def norm(input: Tensor, p: float = 2, dim: Dim = None, keepdim: bool = False) -> Tensor:
    """The Euclidean length over ``dim`` (all axes by default); only ``p=2``. TypeError unless floats.

    >>> import minitorch_peft as mp
    >>> norm(mp.tensor([3.0, 4.0])).item()
    5.0
    """
    if p != 2:
        raise ValueError(f"norm: only p=2 is supported, got {p!r}; for p=1 use abs().sum(), for inf abs().amax()")
    x = floats_only(input, "norm")
    return Norm.apply(x, dims=wrap_dims(dim, x.ndim, "norm"), keepdim=keepdim)


class LogSumExp(Function):
    """y = log Σ e^x; x gets g e^(x - y), the softmax."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, dims: tuple[int, ...], keepdim: bool) -> np.ndarray:
        top = np.max(x, axis=dims, keepdims=True, initial=-np.inf)
        shift = np.where(np.isfinite(top), top, x.dtype.type(0))
        with np.errstate(divide="ignore"):  # log 0: no element, or none above -inf
            y = np.log(np.exp(x - shift).sum(axis=dims, keepdims=True)) + shift
        ctx.save_for_backward(x, y)
        return y if keepdim else y.reshape([n for i, n in enumerate(x.shape) if i not in dims])

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        x, y = ctx.saved
        return g.reshape(y.shape) * np.exp(x - np.where(np.isfinite(y), y, y.dtype.type(0)))


def logsumexp(input: Tensor, dim: Dim, keepdim: bool = False) -> Tensor:
    """log of the sum of e^x over ``dim``, without overflow.

    >>> import minitorch_peft as mp
    >>> logsumexp(mp.tensor([1000.0, 1000.0]), 0).item() > 1000.69
    True
    """
    x = floating(input, "logsumexp")
    return LogSumExp.apply(x, dims=wrap_dims(dim, x.ndim, "logsumexp"), keepdim=keepdim)


# -- extremes ------------------------------------------------------------------------------------------------
class _Extreme(Function):
    """The elements equal to the largest (or smallest) share g among them."""

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        x, y = ctx.saved
        chosen = x == y
        share = g.reshape(y.shape) / chosen.sum(axis=ctx.dims, keepdims=True, dtype=g.dtype)
        return chosen * share


class Amax(_Extreme):
    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, dims: tuple[int, ...], keepdim: bool) -> np.ndarray:
        y = np.max(x, axis=dims, keepdims=True)
        ctx.dims = dims
        ctx.save_for_backward(x, y)
        return y if keepdim else y.squeeze(dims)


def amax(input: Tensor, dim: Dim = None, keepdim: bool = False) -> Tensor:
    """The largest element over ``dim`` (all axes by default); equal ones share the gradient.

    ValueError where there is no element.

    >>> import minitorch_peft as mp
    >>> amax(mp.tensor([[1.0, 2.0], [4.0, 3.0]]), dim=1).tolist()
    [2.0, 4.0]
    """
    x = as_tensor(input, "amax")
    return Amax.apply(x, dims=nonempty_dims(x, dim, "amax"), keepdim=keepdim)


class Amin(_Extreme):
    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, dims: tuple[int, ...], keepdim: bool) -> np.ndarray:
        y = np.min(x, axis=dims, keepdims=True)
        ctx.dims = dims
        ctx.save_for_backward(x, y)
        return y if keepdim else y.squeeze(dims)


def amin(input: Tensor, dim: Dim = None, keepdim: bool = False) -> Tensor:
    """The smallest element over ``dim`` (all axes by default); equal ones share the gradient.

    ValueError where there is no element.

    >>> import minitorch_peft as mp
    >>> amin(mp.tensor([[1.0, 2.0], [4.0, 3.0]]), dim=1).tolist()
    [1.0, 3.0]
    """
    x = as_tensor(input, "amin")
    return Amin.apply(x, dims=nonempty_dims(x, dim, "amin"), keepdim=keepdim)


def nonempty_dims(x: Tensor, dim: Dim, name: str) -> tuple[int, ...]:
    """The reduced axes; ValueError where one of them is empty, as then no element is the largest."""
    dims = wrap_dims(dim, x.ndim, name)
    if 0 in (x.shape[i] for i in dims):
        raise ValueError(f"{name}: shape {x.shape} has no elements along axes {dims}")
    return dims


def argmax(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """The index (int64) of the largest element along ``dim``, or among all; the first of equals.

    >>> import minitorch_peft as mp
    >>> argmax(mp.tensor([[1.0, 2.0], [4.0, 3.0]]), dim=1).tolist()
    [1, 0]
    """
    return _index_of(np.argmax, input, dim, keepdim, "argmax")


def argmin(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """The index (int64) of the smallest element along ``dim``, or among all; the first of equals.

    >>> import minitorch_peft as mp
    >>> argmin(mp.tensor([[1.0, 2.0], [4.0, 3.0]]), dim=1).tolist()
    [0, 1]
    """
    return _index_of(np.argmin, input, dim, keepdim, "argmin")


def _index_of(find: Any, input: Tensor, dim: int | None, keepdim: bool, name: str) -> Tensor:
    x = as_tensor(input, name)
    dims = nonempty_dims(x, dim, name)
    axis = dims[0] if dim is not None and x.ndim else None
    return Tensor(np.asarray(find(x.data, axis=axis, keepdims=keepdim), dtype=np.int64))
