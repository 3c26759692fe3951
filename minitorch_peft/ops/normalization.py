"""Layer norm and RMS norm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from minitorch_peft.autograd.function import Function
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.kernels import dispatch
from minitorch_peft.ops.promotion import floating, result_dtype, to
from minitorch_peft.ops.shape import as_sizes, reshape


class LayerNorm(Function):
    """y = h w + b, h = (x - mean) / std over the last axis; x (..., C), w and b (C) or None.

    With d = g w, x gets (d - mean d - h mean(d h)) / std; w gets Σ g h, b gets Σ g.
    """

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, w: np.ndarray | None, b: np.ndarray | None, *, eps: float) -> np.ndarray:
        y, mean, rstd = dispatch.get("layer_norm_forward", x.dtype)(x, w, b, eps)
        ctx.eps = eps
        ctx.save_for_backward(x, w, b, mean, rstd)
        return y

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> tuple[np.ndarray | None, ...]:
        x, w, _, mean, rstd = ctx.saved
        return dispatch.get("layer_norm_backward", g.dtype)(g, x, w, mean, rstd, ctx.needs_input_grad)

    @staticmethod
    def again(ctx: Any) -> np.ndarray:
        x, w, b, *_ = ctx.saved
        return dispatch.get("layer_norm_forward", x.dtype)(x, w, b, ctx.eps)[0]


def layer_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Mean 0 and variance 1 over the last axes, which are ``normalized_shape``; then times weight, plus bias.

    Both have that shape (Ba et al. 2016, eq. 4). ValueError where shapes differ.

    >>> import minitorch_peft as mp
    >>> layer_norm(mp.tensor([[1.0, 3.0]], dtype="float64"), (2,), eps=0.0).tolist()
    [[-1.0, 1.0]]
    """
    x, (w, b), rows = _rows(input, normalized_shape, (weight, bias), "layer_norm")
    return reshape(LayerNorm.apply(reshape(x, rows), w, b, eps=eps), x.shape)


class RmsNorm(Function):
    """y = h w, h = x / rms over the last axis; x (..., C), w (C) or None.

    With d = g w, x gets (d - h mean(d h)) / rms; w gets Σ g h.
    """

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, w: np.ndarray | None, *, eps: float) -> np.ndarray:
        y, rstd = dispatch.get("rms_norm_forward", x.dtype)(x, w, eps)
        ctx.eps = eps
        ctx.save_for_backward(x, w, rstd)
        return y

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> tuple[np.ndarray | None, ...]:
        return dispatch.get("rms_norm_backward", g.dtype)(g, *ctx.saved, ctx.needs_input_grad)

    @staticmethod
    def again(ctx: Any) -> np.ndarray:
        x, w, _ = ctx.saved
        return dispatch.get("rms_norm_forward", x.dtype)(x, w, ctx.eps)[0]


def rms_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """Root mean square 1 over the last axes, which are ``normalized_shape``; then times weight.

    Zhang & Sennrich 2019, eq. 4. ``eps`` is the dtype's machine epsilon by default, as in torch. ValueError
    where shapes differ.

    >>> import minitorch_peft as mp
    >>> rms_norm(mp.tensor([[1.0, -1.0]], dtype="float64"), (2,), eps=0.0).tolist()
    [[1.0, -1.0]]
    """
    x, (w,), rows = _rows(input, normalized_shape, (weight,), "rms_norm")
    eps = float(np.finfo(x.dtype).eps) if eps is None else eps
    return reshape(RmsNorm.apply(reshape(x, rows), w, eps=eps), x.shape)


def _rows(
    input: Tensor, normalized_shape: int | Sequence[int], affine: tuple[Tensor | None, ...], name: str
) -> tuple[Tensor, list[Tensor | None], tuple[int, ...]]:
    """The input, weight and bias as vectors, and the input's shape with the normalized axes as one."""
    x = floating(input, name)
    last = as_sizes((normalized_shape,))
    if not last or x.shape[-len(last) :] != last:
        raise ValueError(f"{name}: input of shape {x.shape} does not end in normalized_shape {last}")
    given = [t for t in affine if t is not None]
    for t in given:
        if t.shape != last:
            raise ValueError(f"{name}: weight and bias must have normalized_shape {last}, got {t.shape}")
    dtype, size = result_dtype(x, *given), math.prod(last)
    vectors = [None if t is None else reshape(to(t, dtype), size) for t in affine]
    return to(x, dtype), vectors, (*x.shape[: x.ndim - len(last)], size)
