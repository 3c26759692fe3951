"""Attention in blocks of queries: a block of scores stays in the cache and is never written to memory.

Forward keeps lse (B, H, T) instead of the probabilities (B, H, T, S); backward builds them again, one more
product out of five, and saves T S floats a head of memory and their way through it. In the causal case a block of
queries multiplies only the keys that it may see: about half of them. Heads are read where they lie, whatever the
strides, and results are laid out as (B, T, H, D), so that joining the heads afterwards moves nothing.

In compiled code a call's constant arguments travel as one tuple, ``scene``.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from .. import runtime
from ..gemm import at, gemm
from ..jit import FLAG, INT, OUT3, OUT4, REAL, VIEW4, inner, kernel, span
from ..layout import heads_of, rows_adjacent
from ..math32 import dot, exp32, exp_shifted, row_max, scale
from ..pointers import row_at
from ..products import product_parts
from .reference import check_backward, check_shapes

f32 = np.float32
_BLOCK = 48
_NO_MASK = np.zeros((1, 1, 1, 1), np.float32)
_MINUS_INF = f32(-np.inf)


@inner
def _head(x, b, h):
    """The address of x[b, h], and the elements from one of its rows to the next (at least D, for BLAS)."""
    return x.ctypes.data + b * x.strides[0] + h * x.strides[1], max(x.strides[2] // 4, x.shape[3])


@inner
def _visible(i, queries, keys, causal):
    """How many keys query i may see."""
    return min(max(keys - queries + i + 1, 0), keys) if causal else keys


@inner
def _add_mask(row, mask, b, h, i):
    """row += mask[b, h, i]."""
    values = row_at(mask.ctypes.data + b * mask.strides[0] + h * mask.strides[1] + i * mask.strides[2], row.size)
    for j in range(row.size):
        row[j] += values[j]


@inner
def _scores(scene, b, h, i0, i1, keys, p):
    """p[:, :keys] = factor q[i0:i1] k[:keys].T + mask; rows that may see fewer keys are not cut here."""
    blas, q, k, _, mask, has_mask, _, factor = scene
    queries, q_ld = _head(q, b, h)
    shared, k_ld = _head(k, b, h * k.shape[1] // q.shape[1])
    first, rows = queries + 4 * i0 * q_ld, i1 - i0
    gemm(blas, False, True, rows, keys, q.shape[3], factor, first, q_ld, shared, k_ld, 0.0, at(p, 0), p.shape[1])
    if has_mask:
        for i in range(i0, i1):
            _add_mask(p[i - i0, :keys], mask, b, h, i)


@inner
def _softmax_row(row, seen):
    """row[:seen] = exp(row - max), the rest 0; return 1 / sum and log-sum-exp (0 and -inf if nothing is seen)."""
    row[seen:] = 0
    top = row_max(row[:seen]) if seen > 0 else _MINUS_INF
    if top == _MINUS_INF:
        row[:] = 0
        return f32(0), _MINUS_INF
    total = exp_shifted(row[:seen], top, row[:seen])
    return f32(1) / total, top + f32(math.log(total))


@inner
def _forward_block(scene, b, h, i0, i1, out, lse, p):
    blas, q, k, v, _, _, causal, _ = scene
    queries, size, count = q.shape[2], q.shape[3], k.shape[2]
    keys = _visible(i1 - 1, queries, count, causal)
    _scores(scene, b, h, i0, i1, keys, p)
    inverse = np.empty(_BLOCK, np.float32)
    for i in range(i0, i1):
        seen = _visible(i, queries, count, causal)
        inverse[i - i0], lse[b, h, i] = _softmax_row(p[i - i0, :keys], seen)
    values, v_ld = _head(v, b, h * k.shape[1] // q.shape[1])
    width = out.shape[2] * size
    first = (b * queries + i0) * width + h * size
    gemm(blas, False, False, i1 - i0, size, keys, 1.0, at(p, 0), p.shape[1], values, v_ld, 0.0, at(out, first), width)
    for i in range(i0, i1):
        scale(out[b, i, h], inverse[i - i0])


@inner
def _forward_heads(t, parts, scene, out, lse, p):
    heads, queries = out.shape[2], out.shape[1]
    start, end = span(t, parts, out.shape[0] * heads)
    for item in range(start, end):
        for i0 in range(0, queries, _BLOCK):
            _forward_block(scene, item // heads, item % heads, i0, min(i0 + _BLOCK, queries), out, lse, p)


@kernel(INT, VIEW4, VIEW4, VIEW4, VIEW4, FLAG, FLAG, REAL, OUT4, OUT3, OUT3)
def _forward(parts, blas, q, k, v, mask, has_mask, causal, factor, out, lse, scratch):
    for t in prange(parts):
        scene = (blas, q, k, v, mask, has_mask, causal, factor)
        _forward_heads(t, parts, scene, out, lse, scratch[t])


@inner
def _probability_row(row, seen, lse):
    """row[:seen] = exp(row - lse), the rest 0."""
    row[seen:] = 0
    if lse == _MINUS_INF:
        row[:] = 0
        return
    for j in range(seen):
        row[j] = exp32(row[j] - lse)


@inner
def _score_gradient_row(dp, p, delta, factor):
    for j in range(dp.size):
        dp[j] = (dp[j] - delta) * p[j] * factor


@inner
def _score_gradients(scene, grad, out, b, h, i0, i1, keys, p, dp):
    """dp = factor p (grad[i0:i1] v[:keys].T - grad . out): the gradient of q k.T."""
    blas, q, k, v, _, _, _, factor = scene
    size = q.shape[3]
    g, g_ld = _head(grad, b, h)
    o, o_ld = _head(out, b, h)
    values, v_ld = _head(v, b, h * k.shape[1] // q.shape[1])
    first, rows = g + 4 * i0 * g_ld, i1 - i0
    gemm(blas, False, True, rows, keys, size, 1.0, first, g_ld, values, v_ld, 0.0, at(dp, 0), dp.shape[1])
    for i in range(i0, i1):
        delta = dot(row_at(g + 4 * i * g_ld, size), row_at(o + 4 * i * o_ld, size))
        _score_gradient_row(dp[i - i0, :keys], p[i - i0, :keys], delta, f32(factor))


@inner
def _backward_block(scene, needs, grad, out, lse, b, h, i0, i1, dq, dk, dv, p, dp):
    blas, q, k, _, _, _, causal, _ = scene
    queries, size, count, ld = q.shape[2], q.shape[3], k.shape[2], p.shape[1]
    rows, keys, kv = i1 - i0, _visible(i1 - 1, queries, count, causal), h * k.shape[1] // q.shape[1]
    _scores(scene, b, h, i0, i1, keys, p)
    for i in range(i0, i1):
        _probability_row(p[i - i0, :keys], _visible(i, queries, count, causal), lse[b, h, i])
    width, first = k.shape[1] * size, (b * count * k.shape[1] + kv) * size
    if needs[2]:
        g, g_ld = _head(grad, b, h)
        gemm(blas, True, False, keys, size, rows, 1.0, at(p, 0), ld, g + 4 * i0 * g_ld, g_ld, 1.0, at(dv, first), width)
    if needs[0] or needs[1]:
        _score_gradients(scene, grad, out, b, h, i0, i1, keys, p, dp)
    if needs[0]:
        shared, k_ld = _head(k, b, kv)
        q_width = q.shape[1] * size
        row = at(dq, (b * queries + i0) * q_width + h * size)
        gemm(blas, False, False, rows, size, keys, 1.0, at(dp, 0), ld, shared, k_ld, 0.0, row, q_width)
    if needs[1]:
        x, q_ld = _head(q, b, h)
        x += 4 * i0 * q_ld
        gemm(blas, True, False, keys, size, rows, 1.0, at(dp, 0), ld, x, q_ld, 1.0, at(dk, first), width)


@inner
def _backward_heads(t, parts, scene, needs, grad, out, lse, dq, dk, dv, scratch):
    """Some of the key heads: all query heads of a group are done by one thread, which adds up their dk and dv."""
    q, k = scene[1], scene[2]
    shared, group, queries = k.shape[1], q.shape[1] // max(k.shape[1], 1), q.shape[2]
    start, end = span(t, parts, q.shape[0] * shared)
    for item in range(start, end):
        b, kv = item // shared, item % shared
        if needs[1]:
            dk[b, :, kv] = 0
        if needs[2]:
            dv[b, :, kv] = 0
        for h in range(kv * group, (kv + 1) * group):
            for i0 in range(0, queries, _BLOCK):
                i1 = min(i0 + _BLOCK, queries)
                _backward_block(scene, needs, grad, out, lse, b, h, i0, i1, dq, dk, dv, scratch[0], scratch[1])


@kernel(INT, VIEW4, VIEW4, VIEW4, VIEW4, FLAG, FLAG, REAL, FLAG, FLAG, FLAG, VIEW4, VIEW4, OUT3, OUT4, OUT4, OUT4, OUT4)
def _backward(parts, blas, q, k, v, mask, has_mask, causal, factor, need_q, need_k, need_v, grad, out, lse,
              dq, dk, dv, scratch):  # fmt: skip
    for t in prange(parts):
        scene = (blas, q, k, v, mask, has_mask, causal, factor)
        needs = (need_q, need_k, need_v)
        _backward_heads(t, parts, scene, needs, grad, out, lse, dq, dk, dv, scratch[t])


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
    scratch = np.empty((pieces, _BLOCK, k.shape[2]), np.float32)
    _forward(pieces, *_scene(q, k, v, mask, causal, scale), out, lse, scratch)
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
    scratch = np.empty((pieces, 2, _BLOCK, k.shape[2]), np.float32)
    grad, out, lse = heads_of(grad), heads_of(out), np.ascontiguousarray(lse)
    _backward(pieces, *_scene(q, k, v, mask, causal, scale), *needs, grad, out, lse, dq, dk, dv, scratch)
    back = (0, 2, 1, 3)
    return (
        dq.transpose(back) if needs[0] else None,
        dk.transpose(back) if needs[1] else None,
        dv.transpose(back) if needs[2] else None,
    )
