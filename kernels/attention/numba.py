"""Attention in blocks of queries: a block of scores stays in the cache and is never written to memory.

Forward keeps lse (B, H, T) instead of the probabilities (B, H, T, S); backward builds them again, one more product
out of five, and saves T S floats a head of memory and their way through it. In the causal case a block of queries
multiplies only the keys that it may see: about half of them. Heads are read where they lie, whatever the strides, and
results are laid out as (B, T, H, D), so that joining the heads afterwards moves nothing.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from .. import runtime
from ..gemm import at, gemm
from ..jit import FLAG, INT, OUT3, OUT4, REAL, VIEW4, inner, kernel, parts, span
from ..layout import heads_of, rows_adjacent
from ..math32 import dot, exp32, exp_shifted, row_max, scale
from ..pointers import row_at
from .reference import check_shapes

f32 = np.float32
_BLOCK = 64
_NO_MASK = np.zeros((1, 1, 1, 1), np.float32)
_MINUS_INF = f32(-np.inf)


@inner
def _head(x, b, h):
    return x.ctypes.data + b * x.strides[0] + h * x.strides[1]


@inner
def _row_distance(x):
    """Elements from one row of a head to the next (a single row has none: BLAS wants at least D)."""
    return max(x.strides[2] // 4, x.shape[3])


@inner
def _visible(i, queries, keys, causal):
    """How many keys query i may see."""
    return min(max(keys - queries + i + 1, 0), keys) if causal else keys


@inner
def _add_mask(row, mask, b, h, i):
    """row += mask[b, h, i]."""
    values = row_at(_head(mask, b, h) + i * mask.strides[2], row.size)
    for j in range(row.size):
        row[j] += values[j]


@inner
def _scores(blas, q, k, mask, has_mask, causal, factor, b, h, i0, i1, keys, p):
    """p[:, :keys] = factor q[i0:i1] k[:keys].T + mask; nothing is done about rows that see fewer keys."""
    size, group = q.shape[3], q.shape[1] // k.shape[1]
    first = _head(q, b, h) + i0 * q.strides[2]
    gemm(blas, False, True, i1 - i0, keys, size, factor, first, _row_distance(q), _head(k, b, h // group),
         _row_distance(k), 0.0, at(p, 0), p.shape[1])  # fmt: skip
    if has_mask:
        for i in range(i0, i1):
            _add_mask(p[i - i0, :keys], mask, b, h, i)


@inner
def _softmax_row(row, seen):
    """row[:seen] = exp(row - max), the rest 0; return (1 / sum, log-sum-exp), (0, -inf) if nothing is seen."""
    row[seen:] = 0
    top = row_max(row[:seen]) if seen > 0 else _MINUS_INF
    if top == _MINUS_INF:
        row[:] = 0
        return f32(0), _MINUS_INF
    total = exp_shifted(row[:seen], top)
    return f32(1) / total, top + f32(math.log(total))


@inner
def _forward_block(blas, q, k, v, mask, has_mask, causal, factor, b, h, i0, i1, out, lse, p):
    queries, size, count, group = q.shape[2], q.shape[3], k.shape[2], q.shape[1] // k.shape[1]
    keys = _visible(i1 - 1, queries, count, causal)
    _scores(blas, q, k, mask, has_mask, causal, factor, b, h, i0, i1, keys, p)
    inverse = np.empty(_BLOCK, np.float32)
    for i in range(i0, i1):
        seen = _visible(i, queries, count, causal)
        inverse[i - i0], lse[b, h, i] = _softmax_row(p[i - i0, :keys], seen)
    width = out.shape[2] * size
    first = ((b * queries + i0) * out.shape[2] + h) * size
    gemm(blas, False, False, i1 - i0, size, keys, 1.0, at(p, 0), p.shape[1], _head(v, b, h // group), _row_distance(v),
         0.0, at(out, first), width)  # fmt: skip
    for i in range(i0, i1):
        scale(out[b, i, h], inverse[i - i0])


@inner
def _forward_heads(t, parts, blas, q, k, v, mask, has_mask, causal, factor, out, lse, scratch):
    heads, queries = q.shape[1], q.shape[2]
    total = q.shape[0] * heads
    start, end = span(t, parts, total)
    for item in range(start, end):
        for i0 in range(0, queries, _BLOCK):
            i1 = min(i0 + _BLOCK, queries)
            _forward_block(blas, q, k, v, mask, has_mask, causal, factor, item // heads, item % heads, i0, i1, out, lse,
                           scratch[t])  # fmt: skip


@kernel(INT, VIEW4, VIEW4, VIEW4, VIEW4, FLAG, FLAG, REAL, OUT4, OUT3, OUT3)
def _forward(parts, blas, q, k, v, mask, has_mask, causal, factor, out, lse, scratch):
    for t in prange(parts):
        _forward_heads(t, parts, blas, q, k, v, mask, has_mask, causal, factor, out, lse, scratch)


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
def _backward_block(blas, grad, q, k, v, out, lse, mask, has_mask, causal, factor, need_qk, need_v, b, h, i0, i1,
                    dq, dk, dv, p, dp):  # fmt: skip
    queries, size, count, group = q.shape[2], q.shape[3], k.shape[2], q.shape[1] // k.shape[1]
    rows, keys, shared = i1 - i0, _visible(i1 - 1, queries, count, causal), h // group
    _scores(blas, q, k, mask, has_mask, causal, factor, b, h, i0, i1, keys, p)
    for i in range(i0, i1):
        _probability_row(p[i - i0, :keys], _visible(i, queries, count, causal), lse[b, h, i])
    ld = p.shape[1]
    g, g_ld = _head(grad, b, h) + i0 * grad.strides[2], _row_distance(grad)
    kv_first, kv_width = (b * count * k.shape[1] + shared) * size, k.shape[1] * size
    if need_v:
        gemm(blas, True, False, keys, size, rows, 1.0, at(p, 0), ld, g, g_ld, 1.0, at(dv, kv_first), kv_width)
    if not need_qk:
        return
    gemm(
        blas,
        False,
        True,
        rows,
        keys,
        size,
        1.0,
        g,
        g_ld,
        _head(v, b, shared),
        _row_distance(v),
        0.0,
        at(dp, 0),
        ld,
    )
    for i in range(i0, i1):
        delta = dot(
            row_at(g + (i - i0) * grad.strides[2], size), row_at(_head(out, b, h) + i * out.strides[2], size)
        )
        _score_gradient_row(dp[i - i0, :keys], p[i - i0, :keys], delta, f32(factor))
    q_first, q_width = ((b * queries + i0) * q.shape[1] + h) * size, q.shape[1] * size
    gemm(blas, False, False, rows, size, keys, 1.0, at(dp, 0), ld, _head(k, b, shared), _row_distance(k), 0.0,
         at(dq, q_first), q_width)  # fmt: skip
    gemm(blas, True, False, keys, size, rows, 1.0, at(dp, 0), ld, _head(q, b, h) + i0 * q.strides[2], _row_distance(q),
         1.0, at(dk, kv_first), kv_width)  # fmt: skip


@inner
def _backward_heads(t, parts, blas, grad, q, k, v, out, lse, mask, has_mask, causal, factor, need_qk, need_v,
                    dq, dk, dv, scratch):  # fmt: skip
    """Some of the key heads: all query heads of a group are done by one thread, which adds up their dk and dv."""
    shared, group, queries = k.shape[1], q.shape[1] // k.shape[1], q.shape[2]
    total = q.shape[0] * shared
    start, end = span(t, parts, total)
    for item in range(start, end):
        b, first = item // shared, item % shared * group
        if need_qk:
            dk[b, :, item % shared] = 0
        if need_v:
            dv[b, :, item % shared] = 0
        for h in range(first, first + group):
            for i0 in range(0, queries, _BLOCK):
                i1 = min(i0 + _BLOCK, queries)
                _backward_block(blas, grad, q, k, v, out, lse, mask, has_mask, causal, factor, need_qk, need_v, b, h,
                                i0, i1, dq, dk, dv, scratch[2 * t], scratch[2 * t + 1])  # fmt: skip


@kernel(
    INT,
    VIEW4,
    VIEW4,
    VIEW4,
    VIEW4,
    VIEW4,
    OUT3,
    VIEW4,
    FLAG,
    FLAG,
    REAL,
    FLAG,
    FLAG,
    OUT4,
    OUT4,
    OUT4,
    OUT3,
)
def _backward(parts, blas, grad, q, k, v, out, lse, mask, has_mask, causal, factor, need_qk, need_v, dq, dk, dv,
              scratch):  # fmt: skip
    for t in prange(parts):
        _backward_heads(t, parts, blas, grad, q, k, v, out, lse, mask, has_mask, causal, factor, need_qk, need_v,
                        dq, dk, dv, scratch)  # fmt: skip


def _additive(mask: np.ndarray | None, q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """The mask as a float view (B, H, T, S) whose last axis is contiguous; broadcast axes keep stride 0."""
    if mask is None:
        return _NO_MASK
    if mask.dtype == bool:
        mask = np.where(mask, f32(0), _MINUS_INF)
    mask = mask.astype(np.float32, copy=False).reshape((1,) * (4 - mask.ndim) + mask.shape)
    keys = np.broadcast_to(mask, (*mask.shape[:-1], k.shape[2]))
    return np.broadcast_to(rows_adjacent(keys), (*q.shape[:3], k.shape[2]))


def attention_forward(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | None, causal: bool, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """See the reference; ``out`` is a view of (B, T, H, D) memory."""
    check_shapes(q, k, v)
    b, heads, queries, size = q.shape
    out, lse = np.empty((b, queries, heads, size), np.float32), np.empty((b, heads, queries), np.float32)
    pieces = parts(q.size * k.shape[2])
    scratch = np.empty((pieces, _BLOCK, k.shape[2]), np.float32)
    _forward(
        pieces, runtime.start(), heads_of(q), heads_of(k), heads_of(v), _additive(mask, q, k), mask is not None, causal,
        float(scale), out, lse, scratch,
    )  # fmt: skip
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
    check_shapes(q, k, v)
    need_qk, need_v = needs[0] or needs[1], needs[2]
    pieces = parts(q.size * k.shape[2])
    dq, dk, dv = (np.empty((x.shape[0], x.shape[2], x.shape[1], x.shape[3]), np.float32) for x in (q, k, v))
    _backward(
        pieces, runtime.start(), heads_of(grad), heads_of(q), heads_of(k), heads_of(v), heads_of(out),
        np.ascontiguousarray(lse), _additive(mask, q, k), mask is not None, causal, float(scale), need_qk, need_v,
        dq, dk, dv, np.empty((2 * pieces, _BLOCK, k.shape[2]), np.float32),
    )  # fmt: skip
    gradients = zip((dq, dk, dv), needs, strict=True)
    return tuple(x.transpose(0, 2, 1, 3) if need else None for x, need in gradients)
