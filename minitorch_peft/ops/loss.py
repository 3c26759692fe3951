"""Losses."""

from __future__ import annotations

from typing import Any

import numpy as np

from minitorch_peft.autograd.function import Function
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.ops.promotion import floating
from minitorch_peft.ops.shape import permute, reshape

REDUCTIONS = ("mean", "sum", "none")


class CrossEntropy(Function):
    """l_r = logsumexp(x_r) - Σ_v q_rv x_rv, q the one-hot target mixed with 1/V; x gets g (softmax(x) - q)."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, target: np.ndarray, ignore_index: int, reduction: str, smoothing: float):
        keep = target != ignore_index
        rows, safe = np.arange(len(x)), np.where(keep, target, 0)
        z = x - x.max(-1, keepdims=True, initial=-np.inf)
        p = np.exp(z)
        total = p.sum(-1, keepdims=True)
        p /= total
        loss = np.log(total[:, 0]) - (1 - smoothing) * z[rows, safe]
        if smoothing:
            loss -= smoothing * z.mean(-1)
        loss *= keep
        ctx.save_for_backward(p)
        ctx.target, ctx.keep, ctx.smoothing = safe, keep, smoothing
        ctx.scale = None if reduction == "none" else 1.0 if reduction == "sum" else 1 / max(int(keep.sum()), 1)
        if reduction == "none":
            return loss
        if reduction == "mean" and not keep.any():
            return np.array(np.nan, x.dtype)
        return np.asarray(loss.sum() * ctx.scale)

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        (p,) = ctx.saved
        q = p - ctx.smoothing / p.shape[-1]
        q[np.arange(len(p)), ctx.target] -= 1 - ctx.smoothing
        weight = g * ctx.keep if ctx.scale is None else g * ctx.keep * p.dtype.type(ctx.scale)
        q *= weight[:, None]
        return q


def cross_entropy(
    input: Tensor,
    target: Any,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """-log softmax(input)[target]: logits (R, V) with target int (R), (V) with target (), or (N, V, d1, ...) with
    target (N, d1, ...). Rows whose target is ``ignore_index`` count nothing; "mean" is over the others.

    >>> import minitorch_peft as mp
    >>> round(cross_entropy(mp.tensor([[0.0, 0.0]]), mp.tensor([1])).item(), 4)
    0.6931
    """
    x = floating(input, "cross_entropy")
    y = target.data if isinstance(target, Tensor) else np.asarray(target)
    if reduction not in REDUCTIONS:
        raise ValueError(f"cross_entropy: reduction must be one of {REDUCTIONS}, got {reduction!r}")
    axis = min(1, x.ndim - 1)
    if x.shape[:axis] + x.shape[axis + 1 :] != y.shape or y.dtype.kind not in "iu":
        raise ValueError(f"cross_entropy: input {x.shape} needs integer targets, got {y.dtype} {y.shape}")
    if axis != x.ndim - 1:
        x = permute(x, 0, *range(2, x.ndim), 1)
    loss = CrossEntropy.apply(
        reshape(x, -1, x.shape[-1]),
        target=y.reshape(-1), ignore_index=ignore_index, reduction=reduction, smoothing=label_smoothing,
    )  # fmt: skip
    return reshape(loss, y.shape) if reduction == "none" else loss
