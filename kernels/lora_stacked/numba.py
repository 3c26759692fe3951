"""LoRA layers that share x: their A stand on one another, and one pass over x serves all of them.

Forward: u = x [A_1; A_2; ...].T is one product with R = r_1 + r_2 + ... columns, so x is read once for the low-rank
terms, not once for each projection. Backward: some rows at a time, their d(u) under all projections goes side by side
into scratch; then dx = d(u) [A_1; A_2; ...] is written once, where the projections alone would write as many arrays
and add them, and x is read once for all dA. The products with the frozen weights are added to that dx in place.

For P projections, in passes over arrays of R rows beside those of P plain linear layers: the low-rank terms read x
once instead of P times in each direction, and P - 1 arrays dx, written, read and added, are not made.

The projections' arrays reach the compiled code as columns of addresses, since they differ in size.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numba import prange

from .. import runtime
from ..gemm import at, gemm
from ..jit import FLAG, IDS, IN1, IN2, INT, OUT2, OUT3, inner, kernel, span
from ..layout import rows_of
from ..lowrank import block_rows, rows_times, summed
from ..pointers import row_at
from ..products import block, product_parts
from .reference import Arrays, check_stack, check_stack_backward


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


@kernel(INT, IN2, IN2, IDS, IDS, IDS, IDS, IDS, IN1, IDS, OUT2)
def _forward(parts, blas, x, lora_a, weights, biases, lora_bs, sizes, starts, scalings, ys, u):
    for t in prange(parts):
        _down(t, parts, blas, x, lora_a, u)
    for t in prange(parts):
        for i in range(sizes.size):
            first, rank = starts[i], starts[i + 1] - starts[i]
            arrays = (weights[i], biases[i], lora_bs[i])
            _adapted_block(t, parts, blas, x, u, *arrays, sizes[i], first, rank, scalings[i], ys[i])


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


@kernel(INT, IN2, IN2, IN2, IDS, IDS, IDS, IDS, IDS, IN1, FLAG, FLAG, FLAG, OUT2, OUT3, OUT2)
def _backward(parts, blas, x, u, lora_a, grads, weights, lora_bs, sizes, starts, scalings, need_x, need_a, need_b,
              dx, da, db):  # fmt: skip
    for t in prange(parts):
        needs = (need_x, need_a, need_b)
        projections = (grads, lora_bs, sizes, starts, scalings)
        _low_rank_gradients(t, parts, blas, x, u, lora_a, *projections, needs, dx, da[t], db[t])
        if need_x:
            _add_input_gradients(t, parts, blas, grads, weights, sizes, dx)


def _contiguous(arrays: Sequence[np.ndarray | None]) -> list[np.ndarray | None]:
    return [None if a is None else np.ascontiguousarray(a) for a in arrays]


def _addresses(arrays: Sequence[np.ndarray | None]) -> np.ndarray:
    """Where the arrays lie; 0 for None. The caller keeps the arrays."""
    return np.array([0 if a is None else a.ctypes.data for a in arrays], np.int64)


def _sizes(weights: Arrays, lora_as: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """The projections' widths (P,), and where in the stack each one's ranks begin (P + 1,)."""
    starts = np.cumsum([0, *(len(a) for a in lora_as)])
    return np.array([len(w) for w in weights], np.int64), starts.astype(np.int64)


def lora_stacked_forward(
    x: np.ndarray,
    weights: Arrays,
    biases: Sequence[np.ndarray | None],
    lora_as: Arrays,
    lora_bs: Arrays,
    scalings: Sequence[float],
) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """See the reference. The xas are views of one array."""
    check_stack(x, weights, biases, lora_as, lora_bs, scalings)
    rows, stack = rows_of(x), np.ascontiguousarray(np.concatenate(lora_as))
    sizes, starts = _sizes(weights, lora_as)
    columns = [_contiguous(arrays) for arrays in (weights, biases, lora_bs)]
    ys = [np.empty((len(rows), n), np.float32) for n in sizes]
    u = np.empty((len(rows), len(stack)), np.float32)
    parts = product_parts(len(rows), int(sizes.sum()), x.shape[-1])
    places = (sizes, starts, np.array(scalings, np.float32))
    _forward(parts, runtime.start(), rows, stack, *map(_addresses, columns), *places, _addresses(ys), u)
    lead, pairs = x.shape[:-1], pairwise(starts)
    u = u.reshape(*lead, len(stack))
    ys = [y.reshape(*lead, n) for y, n in zip(ys, sizes, strict=True)]
    return tuple(ys), tuple(u[..., first:last] for first, last in pairs)


def lora_stacked_backward(
    grads: Arrays,
    x: np.ndarray,
    xas: Arrays,
    weights: Arrays,
    lora_as: Arrays,
    lora_bs: Arrays,
    scalings: Sequence[float],
    needs: tuple[bool, bool, bool] = (True, True, True),
) -> tuple[np.ndarray | None, tuple[np.ndarray, ...] | None, tuple[np.ndarray, ...] | None]:
    """See the reference."""
    check_stack_backward(grads, x, xas, weights, lora_as, lora_bs, scalings)
    rows, stack = rows_of(x), np.ascontiguousarray(np.concatenate(lora_as))
    sizes, starts = _sizes(weights, lora_as)
    u = rows_of(np.concatenate(xas, axis=-1))
    columns = [_contiguous(arrays) for arrays in (grads, weights, lora_bs)]
    parts = product_parts(len(rows), int(sizes.sum()), x.shape[-1])
    ends = np.cumsum([b.size for b in lora_bs])
    shapes = (rows.shape, (parts, *stack.shape), (parts, ends[-1]))
    dx, da, db = (np.empty(s if need else (0,) * len(s), np.float32) for s, need in zip(shapes, needs, strict=True))
    places = (sizes, starts, np.array(scalings, np.float32))
    _backward(parts, runtime.start(), rows, u, stack, *map(_addresses, columns), *places, *needs, dx, da, db)
    das = np.split(summed(da), starts[1:-1]) if needs[1] else None
    dbs = np.split(summed(db), ends[:-1]) if needs[2] else None
    return (
        dx.reshape(x.shape) if needs[0] else None,
        None if das is None else tuple(das),
        None if dbs is None else tuple(d.reshape(b.shape) for d, b in zip(dbs, lora_bs, strict=True)),
    )
