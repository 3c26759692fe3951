"""Layer norm and RMS norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minitorch_peft.autograd.function import Function
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.ops.promotion import floating, result_dtype, to
from minitorch_peft.ops.shape import reshape


class LayerNorm(Function):
    """y = x̂ w + b, x̂ = (x - mean) / std over the last axis C; x gets (h - mean h - x̂ mean(h x̂)) / std, h = g w."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, w: np.ndarray, b: np.ndarray, *, eps: float) -> np.ndarray:
        xhat = x - x.mean(-1, keepdims=True)
        rstd = 1 / np.sqrt((xhat * xhat).mean(-1, keepdims=True) + eps)
        xhat *= rstd
        ctx.save_for_backward(xhat, rstd, w)
        return xhat * w + b

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> tuple[np.ndarray | None, ...]:
        xhat, rstd, w = ctx.saved
        lead = tuple(range(g.ndim - 1))
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            h = g * w
            dx = rstd * (h - h.mean(-1, keepdims=True) - xhat * (h * xhat).mean(-1, keepdims=True))
        if ctx.needs_input_grad[1]:
            dw = (g * xhat).sum(lead)
        if ctx.needs_input_grad[2]:
            db = g.sum(lead)
        return dx, dw, db


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Mean 0 and variance 1 over the last axes, which are ``normalized_shape``, then times weight plus bias, both
    of that shape (Ba et al. 2016, eq. 4). ValueError where shapes differ.

    >>> import minitorch_peft as mp
    >>> layer_norm(mp.tensor([[1.0, 3.0]]), (2,), eps=0.0).tolist()
    [[-1.0, 1.0]]
    """
    x, shape, (w, b) = _normalized(input, normalized_shape, (weight, bias), "layer_norm")
    return reshape(LayerNorm.apply(x, w, b, eps=eps), shape)


class RmsNorm(Function):
    """y = x r w, r = 1 / √(mean x² + eps) over the last axis; x gets r (h - x r² mean(h x)), h = g w."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, w: np.ndarray, *, eps: float) -> np.ndarray:
        r = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
        ctx.save_for_backward(x, r, w)
        return x * r * w

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
        x, r, w = ctx.saved
        dx = dw = None
        if ctx.needs_input_grad[0]:
            h = g * w
            dx = r * (h - x * (r * r * (h * x).mean(-1, keepdims=True)))
        if ctx.needs_input_grad[1]:
            dw = (g * x * r).sum(tuple(range(g.ndim - 1)))
        return dx, dw


def rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """Root mean square 1 over the last axes, which are ``normalized_shape``, then times weight (Zhang & Sennrich
    2019, eq. 4). ``eps`` is the dtype's machine epsilon by default, as in torch.

    >>> import minitorch_peft as mp
    >>> rms_norm(mp.tensor([[1.0, -1.0]]), (2,), eps=0.0).tolist()
    [[1.0, -1.0]]
    """
    x, shape, (w,) = _normalized(input, normalized_shape, (weight,), "rms_norm")
    return reshape(RmsNorm.apply(x, w, eps=float(np.finfo(x.dtype).eps) if eps is None else eps), shape)


def _normalized(
    input: Tensor, normalized_shape: Sequence[int], affine: tuple[Tensor | None, ...], name: str
) -> tuple[Tensor, tuple[int, ...], list[Tensor]]:
    """The input with its normalized axes as one, its own shape, and weight (default 1) and bias (0) as vectors."""
    x = floating(input, name)
    last = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(int(n) for n in normalized_shape)
    if not last or x.shape[-len(last) :] != last:
        raise ValueError(f"{name}: input of shape {x.shape} does not end in normalized_shape {last}")
    given = [t for t in affine if t is not None]
    for t in given:
        if t.shape != last:
            raise ValueError(f"{name}: weight and bias must have normalized_shape {last}, got {t.shape}")
    dtype = result_dtype(x, *given)
    size = int(np.prod(last))
    defaults = (np.ones, np.zeros)
    vectors = [
        Tensor(make(size, dtype)) if t is None else reshape(to(t, dtype), size)
        for t, make in zip(affine, defaults, strict=False)
    ]
    return reshape(to(x, dtype), (*x.shape[: x.ndim - len(last)], size)), x.shape, vectors
