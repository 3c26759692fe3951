"""Scaled dot-product attention, and the rotation that gives queries and keys their positions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minitorch_peft.autograd.function import Function
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.kernels import dispatch
from minitorch_peft.ops.activation import softmax
from minitorch_peft.ops.arithmetic import where
from minitorch_peft.ops.dropout import Key, dropout
from minitorch_peft.ops.joining import repeat_interleave
from minitorch_peft.ops.matmul import matmul
from minitorch_peft.ops.promotion import as_tensor, floating, result_dtype, to
from minitorch_peft.ops.shape import reshape


class Attention(Function):
    """Y = P V, P = softmax(s Q Kᵀ + mask), queries (B, H, T, D), keys and values (B, Hkv, S, D).

    dV = Pᵀ G; dS = P (dP - Σ_j dP P) with dP = G Vᵀ; dQ = s dS K, dK = s dSᵀ Q. P is not kept, but rebuilt.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        *,
        mask: np.ndarray | None,
        causal: bool,
        scale: float,
    ) -> np.ndarray:
        y, lse = dispatch.get("attention_forward", q.dtype)(q, k, v, mask, causal, scale)
        ctx.save_for_backward(q, k, v, y, lse)
        ctx.constants = mask, causal, scale
        return y

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> tuple[np.ndarray | None, ...]:
        backward = dispatch.get("attention_backward", g.dtype)
        return backward(g, *ctx.saved, *ctx.constants, ctx.needs_input_grad)


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    dropout_key: Key | None = None,
) -> Tensor:
    """softmax(query keyᵀ scale) value (Vaswani et al. 2017, eq. 1), scale 1/√D by default.

    query (..., H, T, D), key (..., H, S, D), value (..., H, S, E) give (..., H, T, E). With ``enable_gqa``
    keys and values may have fewer heads, a divisor of H: query head h uses key head h Hkv // H
    (Ainslie et al. 2023).

    ``attn_mask`` broadcasts to (..., H, T, S): bool, true where a key may be seen, or float, added to the
    scores (a constant: it gets no gradient). ``is_causal`` may stand together with a mask. It lets query i
    see keys up to i + S - T, so that the last query sees the last key, and keys may come from a cache or a
    prefix (torch lets query i see keys up to i; the two are equal where T = S). A query that sees no key
    gives zeros.
    ``dropout_p`` drops attention weights, drawn from ``dropout_key`` (see :func:`dropout`).

    >>> import minitorch_peft as mp
    >>> x = mp.tensor([[[[1.0], [3.0]]]])
    >>> scaled_dot_product_attention(x, x, x, is_causal=True).shape
    (1, 1, 2, 1)
    """
    q, k, v = _checked(query, key, value, enable_gqa)
    mask = _mask(attn_mask, (*q.shape[:-1], k.shape[-2]), q.dtype)
    scale = 1 / math.sqrt(max(q.shape[-1], 1)) if scale is None else scale
    if dropout_p > 0 or v.shape[-1] != q.shape[-1]:
        return _composed(q, k, v, mask, is_causal, scale, dropout_p, dropout_key)
    if mask is not None and q.ndim != 4:
        mask = np.broadcast_to(mask, (*q.shape[:-1], k.shape[-2])).reshape(*_four(q)[:3], k.shape[-2])
    y = Attention.apply(*(reshape(t, _four(t)) for t in (q, k, v)), mask=mask, causal=is_causal, scale=scale)
    return reshape(y, (*q.shape[:-1], v.shape[-1]))


def _composed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: np.ndarray | None,
    causal: bool,
    scale: float,
    p: float,
    key: Key | None,
) -> Tensor:
    """The same from single operations, for what the fused one lacks: dropout, values of another width."""
    if k.ndim > 2 and k.shape[-3] != q.shape[-3]:
        groups = q.shape[-3] // k.shape[-3]
        k, v = repeat_interleave(k, groups, -3), repeat_interleave(v, groups, -3)
    scores = matmul(q, k.mT) * scale
    T, S = scores.shape[-2:]
    seen: np.ndarray = np.tri(T, S, S - T if causal else S, dtype=bool)
    if mask is not None and mask.dtype == bool:
        seen = seen & mask
    elif mask is not None:
        seen = seen & (mask > -math.inf)
        scores = scores + Tensor(np.where(seen, mask, 0).astype(scores.dtype))
    any_seen = np.asarray(seen.any(-1, keepdims=True))
    weights = softmax(where(Tensor(seen | ~any_seen), scores, -math.inf), -1)
    return matmul(dropout(where(Tensor(any_seen), weights, 0.0), p, key=key), v)


def _checked(query: Tensor, key: Tensor, value: Tensor, gqa: bool) -> tuple[Tensor, ...]:
    """Query, key and value in one dtype; ValueError unless their shapes fit."""
    q, k, v = (floating(t, "scaled_dot_product_attention") for t in (query, key, value))
    fits = q.ndim == k.ndim == v.ndim >= 2 and q.shape[-1] == k.shape[-1] and k.shape[:-1] == v.shape[:-1]
    if fits and q.ndim > 2:
        heads, shared = q.shape[-3], k.shape[-3]
        same = heads == shared or (gqa and shared > 0 and heads % shared == 0)
        fits = q.shape[:-3] == k.shape[:-3] and same
    if not fits:
        raise ValueError(
            "scaled_dot_product_attention: expected query (..., H, T, D), key (..., H, S, D) and value "
            f"(..., H, S, E), fewer key heads only with enable_gqa=True; got {q.shape}, {k.shape}, {v.shape}"
        )
    dtype = result_dtype(q, k, v)
    return to(q, dtype), to(k, dtype), to(v, dtype)


def _mask(attn_mask: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray | None:
    """The mask as an array, bool or of ``dtype``; ValueError where it does not broadcast to ``shape``."""
    if attn_mask is None:
        return None
    if isinstance(attn_mask, Tensor) and attn_mask.requires_grad:
        raise ValueError("scaled_dot_product_attention: attn_mask is a constant and cannot require a gradient")
    mask = as_tensor(attn_mask, "scaled_dot_product_attention").data
    if mask.dtype.kind not in "bf":
        raise TypeError(f"scaled_dot_product_attention: attn_mask must be bool or float, got {mask.dtype}")
    sizes = zip(mask.shape[::-1], shape[::-1], strict=False)
    if mask.ndim > len(shape) or any(n not in (1, m) for n, m in sizes):
        raise ValueError(f"scaled_dot_product_attention: attn_mask {mask.shape} does not broadcast to {shape}")
    return mask if mask.dtype.kind == "b" else mask.astype(dtype, copy=False)


def _four(t: Tensor) -> tuple[int, ...]:
    """(..., H, T, D) with the leading axes as one; a matrix has one batch and one head."""
    lead = t.shape[:-2]
    return (math.prod(lead[:-1]), lead[-1] if lead else 1, *t.shape[-2:])


class Rotary(Function):
    """y = x turned, pair by pair, by its position's angle; x gets g turned back. x (B, H, T, D)."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
        ctx.save_for_backward(cos, sin)
        return dispatch.get("rotary_forward", x.dtype)(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        return dispatch.get("rotary_backward", g.dtype)(g, *ctx.saved)


def apply_rotary(input: Tensor, cos: Any, sin: Any) -> Tensor:
    """Turn each pair (x_i, x_(i + D/2)) of input (B, H, T, D) by an angle (Su et al. 2021, eq. 34).

    cos and sin, of the angles, are constants: (T, D/2), (1, T, D/2), or (B, T, D/2) where rows have positions
    of their own. Llama's layout. ValueError for other shapes, or an odd D.

    >>> import minitorch_peft as mp
    >>> x = mp.tensor([[[[1.0, 0.0]]]])
    >>> apply_rotary(x, np.array([[0.0]]), np.array([[1.0]])).tolist()
    [[[[0.0, 1.0]]]]
    """
    x = floating(input, "apply_rotary")
    if x.ndim != 4:
        raise ValueError(f"apply_rotary: expected input (B, H, T, D), got {x.shape}")
    return Rotary.apply(x, cos=_table(cos, x.dtype), sin=_table(sin, x.dtype))


def _table(angles: Any, dtype: np.dtype) -> np.ndarray:
    table = as_tensor(angles, "apply_rotary").data.astype(dtype, copy=False)
    return table[0] if table.ndim == 3 and len(table) == 1 else table
