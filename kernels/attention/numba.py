"""Attention in blocks of queries: a block of scores stays in the cache and is never written to memory.

Forward keeps lse (B, H, T) instead of the probabilities (B, H, T, S); backward builds them again, one more
product out of five, and saves T S floats a head of memory and their way through it. In the causal case a block of
queries multiplies only the keys that it may see: about half of them. Heads are read where they lie, whatever the
strides, and results are laid out as (B, T, H, D), so that joining the heads afterwards moves nothing.
"""

from __future__ import annotations

import numpy as np

from .. import runtime
from ..jit import FLAG, IN1, INT, OUT3, OUT4, REAL, VIEW4, inner, kernel, span
from ..layout import heads_of, rows_adjacent
from ..products import product_parts
from ..threads import each_part
from .blocks import BLOCK, STRIP, backward_block, forward_block
from .reference import check_backward, check_shapes

f32 = np.float32
_NO_MASK = np.zeros((1, 1, 1, 1), np.float32)
_MINUS_INF = f32(-np.inf)


@inner
def _forward_heads(t, parts, scene, out, lse):
    queries, size, keys = out.shape[1], out.shape[3], scene[2].shape[2]
    heads = out.shape[2]
    qt, p = np.empty(size * BLOCK, np.float32), np.empty((keys + STRIP) * BLOCK, np.float32)
    start, end = span(t, parts, out.shape[0] * heads)
    for item in range(start, end):
        for i0 in range(0, queries, BLOCK):
            forward_block(scene, item // heads, item % heads, i0, min(i0 + BLOCK, queries), out, lse, qt, p)


@kernel(INT, VIEW4, VIEW4, VIEW4, VIEW4, FLAG, FLAG, REAL, OUT4, OUT3)
def _forward(parts, blas, q, k, v, mask, has_mask, causal, factor, out, lse):
    each_part(parts, _forward_heads, ((blas, q, k, v, mask, has_mask, causal, factor), out, lse))


@inner
def _backward_heads(t, parts, scene, needs, grad, out, lse, dq, dk, dv):
    """Some of the key heads: all query heads of a group are done by one thread, which adds up their dk and dv."""
    q, k = scene[1], scene[2]
    shared, group, queries = k.shape[1], q.shape[1] // max(k.shape[1], 1), q.shape[2]
    qt = np.empty(q.shape[3] * BLOCK, np.float32)
    p, dp = np.empty((k.shape[2] + STRIP) * BLOCK, np.float32), np.empty((k.shape[2] + STRIP) * BLOCK, np.float32)
    start, end = span(t, parts, q.shape[0] * shared)
    for item in range(start, end):
        b, kv = item // shared, item % shared
        if needs[1]:
            dk[b, :, kv] = 0
        if needs[2]:
            dv[b, :, kv] = 0
        for h in range(kv * group, (kv + 1) * group):
            for i0 in range(0, queries, BLOCK):
                i1 = min(i0 + BLOCK, queries)
                backward_block(scene, needs, grad, out, lse, b, h, i0, i1, dq, dk, dv, qt, p, dp)


@kernel(INT, VIEW4, VIEW4, VIEW4, VIEW4, FLAG, FLAG, REAL, FLAG, FLAG, FLAG, VIEW4, VIEW4, IN1, OUT4, OUT4, OUT4)
def _backward(parts, blas, q, k, v, mask, has_mask, causal, factor, need_q, need_k, need_v, grad, out, lse, dq, dk, dv):
    scene = (blas, q, k, v, mask, has_mask, causal, factor)
    each_part(parts, _backward_heads, (scene, (need_q, need_k, need_v), grad, out, lse, dq, dk, dv))


def _scene(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | None, causal: bool, scale: float) -> tuple:
    views = (heads_of(q), heads_of(k), heads_of(v), _additive(mask, q, k))
    return (runtime.start(), *views, mask is not None, bool(causal), float(scale))


def _additive(mask: np.ndarray | None, q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """The mask as a float view (B, H, T, S) whose last axis is contiguous; broadcast axes keep stride 0."""
    if mask is None:
        return _NO_MASK
    if mask.dtype == bool:
        mask = np.where(mask, f32(0), _MINUS_INF)
    mask = mask.astype(np.float32, copy=False)
    keys = np.broadcast_to(mask, (*mask.shape[:-1], k.shape[2]))
    return np.broadcast_to(rows_adjacent(keys), (*q.shape[:3], k.shape[2]))


def _with_heads_inside(x: np.ndarray) -> np.ndarray:
    """An empty array of shape (B, T, H, D) for a result like x (B, H, T, D)."""
    b, heads, length, size = x.shape
    return np.empty((b, length, heads, size), np.float32)


def attention_forward(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | None, causal: bool, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """See the reference; ``out`` is a view of (B, T, H, D) memory."""
    check_shapes(q, k, v)
    out, lse = _with_heads_inside(q), np.empty(q.shape[:3], np.float32)
    pieces = product_parts(q.size // max(q.shape[3], 1), k.shape[2], q.shape[3])
    _forward(pieces, *_scene(q, k, v, mask, causal, scale), out, lse)
    return out.transpose(0, 2, 1, 3), lse


def attention_backward(
    grad: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    out: np.ndarray,
    lse: np.ndarray,
    mask: np.ndarray | None,
    causal: bool,
    scale: float,
    needs: tuple[bool, bool, bool] = (True, True, True),
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """See the reference; the gradients are views of (B, T, H, D) memory."""
    check_backward(grad, q, k, v, out, lse)
    pieces = product_parts(q.size // max(q.shape[3], 1), k.shape[2], q.shape[3])
    dq, dk, dv = (_with_heads_inside(x if need else x[:0]) for x, need in zip((q, k, v), needs, strict=True))
    grad, out, lse = heads_of(grad), heads_of(out), np.ascontiguousarray(lse).reshape(-1)
    _backward(pieces, *_scene(q, k, v, mask, causal, scale), *needs, grad, out, lse, dq, dk, dv)
    back = (0, 2, 1, 3)
    return (
        dq.transpose(back) if needs[0] else None,
        dk.transpose(back) if needs[1] else None,
        dv.transpose(back) if needs[2] else None,
    )
