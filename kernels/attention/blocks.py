"""What a thread does for a block of queries of one head: scores, their softmax, and their gradients.

Scores are kept transposed: a row for each key, in it one number for each query of the block, ``width`` of them, which
is a multiple of LANES. So the softmax of sixteen queries is one vector operation for each key (no sums across a
vector, no loops over odd lengths), and in all products the wide operand is read the way it lies.

A call's constant arguments travel as one tuple, ``scene``.
"""

from __future__ import annotations

import math

import numpy as np

from ..gemm import at, gemm
from ..jit import inner, row_loop
from ..math32 import dot, exp32, fill, scale
from ..pointers import row_at
from ..transpose import transpose

f32 = np.float32
BLOCK, LANES, STRIP = 32, 16, 16
_ZERO, _INF = f32(0), f32(np.inf)


@inner
def head(x, b, h):
    """The address of x[b, h], and the elements from one of its rows to the next (at least D, for BLAS)."""
    return x.ctypes.data + b * x.strides[0] + h * x.strides[1], max(x.strides[2] // 4, x.shape[3])


@inner
def visible(i, queries, keys, causal):
    """How many keys query i may see."""
    return min(max(keys - queries + i + 1, 0), keys) if causal else keys


@row_loop
def turned(x, i0, rows, size, ld, width, out):
    """out (size, width) = x[i0 : i0 + rows].T, and 0 in the columns beyond."""
    if rows < width:
        fill(row_at(at(out, 0), size * width), _ZERO)
    transpose(x + 4 * i0 * ld, ld, rows, size, at(out, 0), width)


@row_loop
def _add_mask(p, width, mask, b, h, i0, rows, keys):
    """p[j, r] += mask[b, h, i0 + r, j]."""
    for r in range(rows):
        address = mask.ctypes.data + b * mask.strides[0] + h * mask.strides[1] + (i0 + r) * mask.strides[2]
        values, column = row_at(address, keys), row_at(at(p, r), keys * width)
        for j in range(keys):
            column[j * width] += values[j]


@row_loop
def _hide(p, width, i0, rows, queries, count, keys):
    """-inf where a key comes after the query: key j is seen by the queries from j + queries - count on."""
    for j in range(max(i0 + 1 + count - queries, 0), keys):
        for r in range(min(j + queries - count - i0, rows)):
            p[j * width + r] = -_INF


@inner
def scores(scene, b, h, i0, rows, keys, width, qt, p):
    """p (keys, width) = factor k q.T + mask for the queries from i0 on; return in how many strips."""
    blas, q, k, _, mask, has_mask, causal, factor = scene
    queries, size = q.shape[2], q.shape[3]
    x, q_ld = head(q, b, h)
    shared, k_ld = head(k, b, h * k.shape[1] // q.shape[1])
    turned(x, i0, rows, size, q_ld, width, qt)
    gemm(blas, False, False, keys, width, size, factor, shared, k_ld, at(qt, 0), width, 0.0, at(p, 0), width)
    if has_mask:
        _add_mask(p, width, mask, b, h, i0, rows, keys)
    if causal:
        _hide(p, width, i0, rows, queries, k.shape[2], keys)
    strips = (keys + STRIP - 1) // STRIP
    fill(row_at(at(p, keys * width), (strips * STRIP - keys) * width), -_INF)
    return strips


@row_loop
def _spread(tile, width):
    """Repeat the first row of a strip in all of its rows."""
    for i in range(width, STRIP * width):
        tile[i] = tile[i - width]


@row_loop
def _softmax(p, strips, width):
    """p = exp(p - top) of each column, where top is the largest number in it; return top and the sums.

    The columns of queries that see nothing are 0, and their top too.
    """
    size = STRIP * width
    top, total = np.empty(size, np.float32), np.zeros(size, np.float32)
    fill(top, -_INF)
    for s in range(strips):
        strip = row_at(at(p, s * size), size)
        for i in range(size):
            top[i] = strip[i] if strip[i] > top[i] else top[i]
    half = size // 2
    while half >= width:
        for i in range(half):
            top[i] = top[half + i] if top[half + i] > top[i] else top[i]
        half //= 2
    for r in range(width):
        top[r] = top[r] if top[r] > -_INF else _ZERO
    _spread(top, width)
    for s in range(strips):
        strip = row_at(at(p, s * size), size)
        for i in range(size):
            strip[i] = exp32(strip[i] - top[i])
        for i in range(size):
            total[i] += strip[i]
    half = size // 2
    while half >= width:
        for i in range(half):
            total[i] += total[half + i]
        half //= 2
    return top, total


@inner
def forward_block(scene, b, h, i0, i1, out, lse, qt, p):
    """Rows i0 to i1 of out[b, :, h] and lse[b, h]."""
    blas, q, k, v, _, _, causal, _ = scene
    queries, size, count = q.shape[2], q.shape[3], k.shape[2]
    rows, keys = i1 - i0, visible(i1 - 1, queries, count, causal)
    width = (rows + LANES - 1) // LANES * LANES
    strips = scores(scene, b, h, i0, rows, keys, width, qt, p)
    top, total = _softmax(p, strips, width)
    values, v_ld = head(v, b, h * k.shape[1] // q.shape[1])
    across = out.shape[2] * size
    first = at(out, (b * queries + i0) * across + h * size)
    gemm(blas, True, False, rows, size, keys, 1.0, at(p, 0), width, values, v_ld, 0.0, first, across)
    for r in range(rows):
        seen = total[r] != _ZERO
        lse[b, h, i0 + r] = top[r] + f32(math.log(total[r])) if seen else -_INF
        scale(row_at(first + 4 * r * across, size), f32(1) / total[r] if seen else _ZERO)


@row_loop
def _probabilities(p, strips, width, lse, first, rows):
    """p = exp(p - lse) of each column; 0 where the query sees nothing, and in columns that are no query's."""
    size = STRIP * width
    shift = np.empty(size, np.float32)
    fill(shift, _INF)
    for r in range(rows):
        shift[r] = lse[first + r] if lse[first + r] != -_INF else _INF
    _spread(shift, width)
    for s in range(strips):
        strip = row_at(at(p, s * size), size)
        for i in range(size):
            strip[i] = exp32(strip[i] - shift[i])


@row_loop
def _score_gradients(p, dp, strips, width, delta, factor):
    """dp = factor p (dp - delta), the gradient of q k.T, where dp is that of p."""
    size = STRIP * width
    for s in range(strips):
        strip, gradient = row_at(at(p, s * size), size), row_at(at(dp, s * size), size)
        for i in range(size):
            gradient[i] = (gradient[i] - delta[i]) * strip[i] * factor


@inner
def backward_block(scene, needs, grad, out, lse, b, h, i0, i1, dq, dk, dv, qt, p, dp):
    """Rows i0 to i1 of dq[b, :, h], and what these queries add to dk and dv of their key head."""
    blas, q, k, v, _, _, causal, factor = scene
    queries, size, count, heads = q.shape[2], q.shape[3], k.shape[2], k.shape[1]
    rows, keys, kv = i1 - i0, visible(i1 - 1, queries, count, causal), h * heads // q.shape[1]
    width = (rows + LANES - 1) // LANES * LANES
    strips = scores(scene, b, h, i0, rows, keys, width, qt, p)
    _probabilities(p, strips, width, lse, (b * q.shape[1] + h) * queries + i0, rows)
    across, first = heads * size, (b * count * heads + kv) * size
    (g, g_ld), (o, o_ld) = head(grad, b, h), head(out, b, h)
    g, o = g + 4 * i0 * g_ld, o + 4 * i0 * o_ld
    if needs[2]:
        gemm(blas, False, False, keys, size, rows, 1.0, at(p, 0), width, g, g_ld, 1.0, at(dv, first), across)
    if not needs[0] and not needs[1]:
        return
    turned(g, 0, rows, size, g_ld, width, qt)
    values, v_ld = head(v, b, kv)
    gemm(blas, False, False, keys, width, size, 1.0, values, v_ld, at(qt, 0), width, 0.0, at(dp, 0), width)
    delta = np.zeros(STRIP * width, np.float32)
    for r in range(rows):
        delta[r] = dot(row_at(g + 4 * r * g_ld, size), row_at(o + 4 * r * o_ld, size))
    _spread(delta, width)
    _score_gradients(p, dp, strips, width, delta, f32(factor))
    if needs[0]:
        shared, k_ld = head(k, b, kv)
        q_across = q.shape[1] * size
        row = at(dq, (b * queries + i0) * q_across + h * size)
        gemm(blas, True, False, rows, size, keys, 1.0, at(dp, 0), width, shared, k_ld, 0.0, row, q_across)
    if needs[1]:
        x, q_ld = head(q, b, h)
        x += 4 * i0 * q_ld
        gemm(blas, False, False, keys, size, rows, 1.0, at(dp, 0), width, x, q_ld, 1.0, at(dk, first), across)
