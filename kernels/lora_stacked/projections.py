"""Stacked LoRA in compiled code. The projections' arrays come as columns of addresses, since they differ in size."""

from __future__ import annotations

import numpy as np

from ..gemm import at, gemm
from ..jit import FLAG, IDS, IN1, IN2, INT, OUT2, OUT3, inner, kernel, span
from ..lowrank import block_rows, rows_times
from ..pointers import row_at
from ..products import block
from ..threads import each_part


@inner
def _down(t, parts, blas, x, lora_a, u):
    """Some rows of u = x A.T."""
    (first, last), (rank, k) = span(t, parts, len(x)), lora_a.shape
    out = at(u, first * rank)
    rows_times(blas, True, last - first, rank, k, 1.0, at(x, first * k), k, at(lora_a, 0), k, out, rank)


@inner
def _adapted_block(t, parts, blas, x, u, weight, bias, lora_b, n, first, rank, scaling, y):
    """A block of one projection's y; weight, bias (0: none), lora_b and y are addresses."""
    (rows, k), width = x.shape, u.shape[1]
    r0, r1, n0, n1 = block(t, parts, rows, n)
    beta = 0.0
    if bias != 0:
        beta = 1.0
        for r in range(r0, r1):
            row_at(y + 4 * (r * n + n0), n1 - n0)[:] = row_at(bias + 4 * n0, n1 - n0)
    out, low = y + 4 * (r0 * n + n0), at(u, r0 * width + first)
    gemm(blas, False, True, r1 - r0, n1 - n0, rank, scaling, low, width, lora_b + 4 * n0 * rank, rank, beta, out, n)
    gemm(blas, False, True, r1 - r0, n1 - n0, k, 1.0, at(x, r0 * k), k, weight + 4 * n0 * k, k, 1.0, out, n)


@inner
def _outputs(t, parts, blas, x, weights, biases, lora_bs, sizes, starts, scalings, ys, u):
    for i in range(sizes.size):
        first, rank = starts[i], starts[i + 1] - starts[i]
        arrays = (weights[i], biases[i], lora_bs[i])
        _adapted_block(t, parts, blas, x, u, *arrays, sizes[i], first, rank, scalings[i], ys[i])


@kernel(INT, IN2, IN2, IDS, IDS, IDS, IDS, IDS, IN1, IDS, OUT2)
def forward(parts, blas, x, lora_a, weights, biases, lora_bs, sizes, starts, scalings, ys, u):
    each_part(parts, _down, (blas, x, lora_a, u))
    each_part(parts, _outputs, (blas, x, weights, biases, lora_bs, sizes, starts, scalings, ys, u))


@inner
def _of_projections(blas, r, rows, grads, u, lora_bs, sizes, starts, scalings, low, need_b, db):
    """From some rows' gradients: low = d(u), side by side, and their share of every dB."""
    width, done = u.shape[1], 0
    for i in range(sizes.size):
        n, first, rank = sizes[i], starts[i], starts[i + 1] - starts[i]
        g, s = grads[i] + 4 * r * n, scalings[i]
        gemm(blas, False, False, rows, rank, n, s, g, n, lora_bs[i], rank, 0.0, at(low, first), width)
        if need_b:
            mine = at(u, r * width + first)
            gemm(blas, True, False, n, rank, rows, s, g, n, mine, width, 1.0, at(db, done), rank)
        done += n * rank


@inner
def _low_rank_gradients(t, parts, blas, x, u, lora_a, grads, lora_bs, sizes, starts, scalings, needs, dx, da, db):
    """A thread's rows of dx = d(u) A, and their share of dA = d(u).T x and of every dB."""
    (first, last), (rank, k) = span(t, parts, len(x)), lora_a.shape
    step = block_rows(max(sizes.max(), k), k, rank)
    low = np.empty((step, rank), np.float32)
    da[:], db[:] = 0, 0
    for r in range(first, last, step):
        rows = min(step, last - r)
        _of_projections(blas, r, rows, grads, u, lora_bs, sizes, starts, scalings, low, needs[2], db)
        if needs[0]:
            gemm(blas, False, False, rows, k, rank, 1.0, at(low, 0), rank, at(lora_a, 0), k, 0.0, at(dx, r * k), k)
        if needs[1]:
            gemm(blas, True, False, rank, k, rows, 1.0, at(low, 0), rank, at(x, r * k), k, 1.0, at(da, 0), k)


@inner
def _add_input_gradients(t, parts, blas, grads, weights, sizes, dx):
    """Some rows of dx += grad_1 W_1 + grad_2 W_2 + ..."""
    rows, k = dx.shape
    r0, r1 = span(t, parts, rows)
    for i in range(sizes.size):
        n = sizes[i]
        gemm(blas, False, False, r1 - r0, k, n, 1.0, grads[i] + 4 * r0 * n, n, weights[i], k, 1.0, at(dx, r0 * k), k)


@inner
def _gradients(t, parts, blas, x, u, lora_a, grads, weights, lora_bs, sizes, starts, scalings, needs, dx, da, db):
    projections = (grads, lora_bs, sizes, starts, scalings)
    _low_rank_gradients(t, parts, blas, x, u, lora_a, *projections, needs, dx, da[t], db[t])
    if needs[0]:
        _add_input_gradients(t, parts, blas, grads, weights, sizes, dx)


@kernel(INT, IN2, IN2, IN2, IDS, IDS, IDS, IDS, IDS, IN1, FLAG, FLAG, FLAG, OUT2, OUT3, OUT2)
def backward(parts, blas, x, u, lora_a, grads, weights, lora_bs, sizes, starts, scalings, need_x, need_a, need_b,
              dx, da, db):  # fmt: skip
    given = (blas, x, u, lora_a, grads, weights, lora_bs, sizes, starts, scalings, (need_x, need_a, need_b))
    each_part(parts, _gradients, (*given, dx, da, db))
