"""Attention of one query over n changes of a hidden state, as one operation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minitorch_peft.autograd.function import Function
from minitorch_peft.kernels import dispatch


def attention(q: np.ndarray, changes: Sequence[np.ndarray]) -> np.ndarray:
    """p (..., n), softmax over the n of q · Δ_i; q and each Δ_i (..., C)."""
    scores = np.stack([np.einsum("...c,...c->...", q, change) for change in changes], axis=-1)
    return dispatch.get("softmax_forward", scores.dtype)(scores)


class Attended(Function):
    """y = Σ_i p_i Δ_i, p = softmax_i(q · Δ_i), all but p (..., C). Kept are q, p and the Δ_i. With G = dL/dy:

    e_i = p_i (G · Δ_i - G · y)      dq = Σ_i e_i Δ_i      dΔ_i = p_i G + e_i q
    """

    @staticmethod
    def forward(ctx: Any, q: np.ndarray, *changes: np.ndarray) -> np.ndarray:
        p = attention(q, changes)
        ctx.save_for_backward(q, p, *changes)
        return weighted(p, changes)

    @staticmethod
    def backward(ctx: Any, G: np.ndarray) -> tuple[np.ndarray | None, ...]:
        q, p, *changes = ctx.saved
        of_p = np.stack([np.einsum("...c,...c->...", G, change) for change in changes], axis=-1)
        e = p * (of_p - (p * of_p).sum(axis=-1, keepdims=True))
        need_q, *need = ctx.needs_input_grad
        of_changes = [weighted(np.stack([p[..., i], e[..., i]], -1), (G, q)) if n else None for i, n in enumerate(need)]
        return weighted(e, changes) if need_q else None, *of_changes


def weighted(p: np.ndarray, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Σ_i p_i a_i; p (..., n), each a_i (..., C)."""
    total = p[..., :1] * arrays[0]
    for i, array in enumerate(arrays[1:], 1):
        total += p[..., i : i + 1] * array
    return total
