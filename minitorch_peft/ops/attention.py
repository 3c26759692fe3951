"""Scaled dot-product attention, and the rotation that gives queries and keys their positions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minitorch_peft.autograd.function import Function
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.ops.dropout import dropout_mask
from minitorch_peft.ops.promotion import as_tensor


class Attention(Function):
    """Y = P V, P = softmax(Q Kᵀ s + mask); dV = Pᵀ G, dS = P (dP - Σ dP P), dP = G Vᵀ, dQ = dS K s, dK = dSᵀ Q s."""

    @staticmethod
    def forward(
        ctx: Any, q: np.ndarray, k: np.ndarray, v: np.ndarray, *, mask: Any, causal: bool, scale: float, drop: Any
    ) -> np.ndarray:
        group = q.shape[-3] // k.shape[-3]
        kk, vv = np.repeat(k, group, -3), np.repeat(v, group, -3)
        s = (q @ kk.swapaxes(-1, -2)) * scale
        if causal:
            s = np.where(np.tri(*s.shape[-2:], s.shape[-1] - s.shape[-2], dtype=bool), s, -np.inf)
        if mask is not None:
            s = np.where(mask, s, -np.inf) if mask.dtype == bool else s + mask
        top = s.max(-1, keepdims=True, initial=-np.inf)
        s -= np.where(np.isfinite(top), top, 0)
        np.exp(s, out=s)
        total = s.sum(-1, keepdims=True)
        s /= np.where(total == 0, 1, total)
        ctx.save_for_backward(q, k, v, s, drop)
        ctx.scale = scale
        return (s if drop is None else s * drop) @ vv

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        q, k, v, p, drop = ctx.saved
        group = q.shape[-3] // k.shape[-3]
        kk, vv = np.repeat(k, group, -3), np.repeat(v, group, -3)
        dv = (p if drop is None else p * drop).swapaxes(-1, -2) @ g
        ds = g @ vv.swapaxes(-1, -2)
        if drop is not None:
            ds *= drop
        ds *= p
        ds -= p * ds.sum(-1, keepdims=True)
        ds *= ctx.scale
        dq, dk = ds @ kk, ds.swapaxes(-1, -2) @ q
        if group > 1:
            fold = (*k.shape[:-2], group)
            dk = dk.reshape(*fold, *k.shape[-2:]).sum(-3)
            dv = dv.reshape(*fold, *v.shape[-2:]).sum(-3)
        return dq, dk, dv


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    dropout_key: tuple[Any, ...] | None = None,
) -> Tensor:
    """softmax(query keyᵀ · scale) value (Vaswani et al. 2017, eq. 1).

    query (B, H, T, D), key (B, H, S, D), value (B, H, S, E) give (B, H, T, E).
    """
    q, k, v = (as_tensor(t, "scaled_dot_product_attention") for t in (query, key, value))
    mask = attn_mask.data if isinstance(attn_mask, Tensor) else attn_mask
    drop = None
    if dropout_p > 0:
        drop = dropout_mask((*q.shape[:-1], k.shape[-2]), dropout_p, dropout_key, q.dtype)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    return Attention.apply(q, k, v, mask=mask, causal=is_causal, scale=scale, drop=drop)


class Rotary(Function):
    """y = x cos + J x sin, J (x1, x2) = (-x2, x1); Jᵀ = -J, so x gets g cos - J (g sin)."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
        ctx.save_for_backward(cos, sin)
        return x * cos + _turn(x) * sin

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        cos, sin = ctx.saved
        return g * cos - _turn(g * sin)


def _turn(x: np.ndarray) -> np.ndarray:
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([-b, a], axis=-1)


def apply_rotary(input: Tensor, cos: Any, sin: Any) -> Tensor:
    """Rotate each pair (x_i, x_{i + D/2}) of input (..., T, D) by its angle (Su et al. 2021, eq. 34).

    cos and sin broadcast to input, (..., T, D), the two halves alike; they are constants.
    """
    x = as_tensor(input, "apply_rotary")
    return Rotary.apply(x, cos=as_tensor(cos, "apply_rotary").data, sin=as_tensor(sin, "apply_rotary").data)
