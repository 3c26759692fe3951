"""LoRA where each row of the batch has its own adapter: one product with the frozen weight, small ones for the rest.

Neighbouring rows of the batch under one adapter form a segment, and a segment has one small product. Nothing is
gathered: rows are multiplied where they lie, with the factors of their adapter where these lie. (An adapter for each
row separately would copy r (K + N) numbers for every row.) The base product does not know of adapters, so its
blocks are as large as without them. Batches that are sorted by adapter have the fewest and largest segments.

The factors of all adapters stand in one array. A model keeps them apart and stacks them for each call: a copy of
E r (K + N) numbers for E adapters, however many rows there are.

In training each thread sums what its rows add to the dA and dB of their adapters; these sums are added in a fixed
order. They take E r (K + N) numbers for every thread.
"""

from __future__ import annotations

import numpy as np

from .. import runtime
from ..gemm import at, gemm
from ..jit import FLAG, IDS, IN1, IN2, INT, NO_VECTOR, OUT2, OUT4, VIEW3, inner, kernel, span
from ..layout import rows_of
from ..lowrank import add_input_gradient, block_rows, gradient_block, rows_times, summed
from ..products import block, fill_bias, product_parts
from ..threads import each_part
from .reference import check_gather, check_gather_backward


@inner
def _down(t, parts, blas, x, bounds, adapters, lora_a, xa):
    """Some rows of xa = x A_e.T; zero without an adapter."""
    (first, last), (rank, k) = span(t, parts, len(x)), lora_a.shape[1:]
    for i in range(adapters.size):
        r0, r1, e = max(first, bounds[i]), min(last, bounds[i + 1]), adapters[i]
        if e < 0:
            xa[r0 : max(r0, r1)] = 0
        else:
            a, out = at(lora_a, e * rank * k), at(xa, r0 * rank)
            rows_times(blas, True, r1 - r0, rank, k, 1.0, at(x, r0 * k), k, a, k, out, rank)


@inner
def _forward_block(t, parts, blas, x, weight, bias, bounds, adapters, lora_b, scaling, xa, y):
    """A block of y = x W.T + c, and s_e xa B_e.T added to the rows of each segment."""
    (rows, k), (n, rank) = x.shape, lora_b.shape[1:]
    first, last, n0, n1 = block(t, parts, rows, n)
    beta = fill_bias(y, bias, first, last, n0, n1)
    out = at(y, first * n + n0)
    gemm(blas, False, True, last - first, n1 - n0, k, 1.0, at(x, first * k), k, at(weight, n0 * k), k, beta, out, n)
    for i in range(adapters.size):
        r0, r1, e = max(first, bounds[i]), min(last, bounds[i + 1]), adapters[i]
        if e >= 0:
            low, b, out = at(xa, r0 * rank), at(lora_b, (e * n + n0) * rank), at(y, r0 * n + n0)
            gemm(blas, False, True, r1 - r0, n1 - n0, rank, scaling[e], low, rank, b, rank, 1.0, out, n)


@kernel(INT, IN2, IN2, IN1, IDS, IDS, VIEW3, VIEW3, IN1, OUT2, OUT2)
def _forward(parts, blas, x, weight, bias, bounds, adapters, lora_a, lora_b, scaling, xa, y):
    each_part(parts, _down, (blas, x, bounds, adapters, lora_a, xa))
    each_part(parts, _forward_block, (blas, x, weight, bias, bounds, adapters, lora_b, scaling, xa, y))


@inner
def _segment_gradients(blas, r0, r1, grad, x, xa, lora_a, lora_b, scaling, needs, low, dx, da, db):
    """Rows r0 to r1 of dx = s grad B A under one adapter, and their share of its dA and dB."""
    (rank, k), n, step = lora_a.shape, len(lora_b), len(low)
    for r in range(r0, r1, step):
        g, rows, u, out = at(grad, r * n), at(x, r * k), at(xa, r * rank), at(dx, r * k if needs[0] else 0)
        a, b, scratch, to_a, to_b = at(lora_a, 0), at(lora_b, 0), at(low, 0), at(da, 0), at(db, 0)
        count = min(step, r1 - r)
        gradient_block(blas, count, n, k, rank, scaling, needs, g, rows, u, a, b, scratch, out, to_a, to_b)


@inner
def _low_rank_gradients(t, parts, blas, grad, x, xa, bounds, adapters, lora_a, lora_b, scaling, needs, dx, da, db):
    (first, last), (rank, k), n = span(t, parts, len(x)), lora_a.shape[1:], grad.shape[1]
    low = np.empty((block_rows(n, k, rank), rank), np.float32)
    da[:], db[:] = 0, 0
    for i in range(adapters.size):
        r0, r1, e = max(first, bounds[i]), min(last, bounds[i + 1]), adapters[i]
        if e >= 0:
            to_a, to_b = da[e if needs[1] else 0], db[e if needs[2] else 0]
            arrays = (grad, x, xa, lora_a[e], lora_b[e])
            _segment_gradients(blas, r0, r1, *arrays, scaling[e], needs, low, dx, to_a, to_b)
        elif needs[0]:
            dx[r0 : max(r0, r1)] = 0


@inner
def _gradients(t, parts, blas, grad, x, xa, weight, bounds, adapters, lora_a, lora_b, scaling, needs, dx, da, db):
    low_rank = (lora_a, lora_b, scaling, needs, dx, da[t], db[t])
    _low_rank_gradients(t, parts, blas, grad, x, xa, bounds, adapters, *low_rank)
    if needs[0]:
        add_input_gradient(t, parts, blas, grad, weight, dx)


@kernel(INT, IN2, IN2, IN2, IN2, IDS, IDS, VIEW3, VIEW3, IN1, FLAG, FLAG, FLAG, OUT2, OUT4, OUT4)
def _backward(parts, blas, grad, x, xa, weight, bounds, adapters, lora_a, lora_b, scaling, need_x, need_a, need_b,
              dx, da, db):  # fmt: skip
    given = (blas, grad, x, xa, weight, bounds, adapters, lora_a, lora_b, scaling, (need_x, need_a, need_b))
    each_part(parts, _gradients, (*given, dx, da, db))


def segments(adapter: np.ndarray, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Where segments of equal adapter begin and end (S + 1,), in rows of (B * tokens, K); and whose they are (S,).

    >>> bounds, adapters = segments(np.array([1, 1, -1, 0]), 10)
    >>> bounds.tolist(), adapters.tolist()
    ([0, 20, 30, 40], [1, -1, 0])
    """
    adapter = adapter.astype(np.int64)
    first = np.flatnonzero(np.diff(adapter, prepend=-2))
    return np.append(first, len(adapter)) * tokens, adapter[first]


def lora_gathered_forward(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    lora_a: np.ndarray,
    lora_b: np.ndarray,
    scaling: np.ndarray,
    adapter: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """See the reference."""
    check_gather(x, weight, bias, lora_a, lora_b, scaling, adapter)
    rows, (n, k), rank = rows_of(x), weight.shape, lora_a.shape[1]
    y, xa = np.empty((len(rows), n), np.float32), np.empty((len(rows), rank), np.float32)
    bias = NO_VECTOR if bias is None else np.ascontiguousarray(bias)
    factors = [np.ascontiguousarray(m) for m in (lora_a, lora_b, scaling)]
    inputs = (runtime.start(), rows, np.ascontiguousarray(weight), bias, *segments(adapter, x.shape[1]), *factors)
    _forward(product_parts(len(rows), n, k), *inputs, xa, y)
    return y.reshape(*x.shape[:2], n), xa.reshape(*x.shape[:2], rank)


def lora_gathered_backward(
    grad: np.ndarray,
    x: np.ndarray,
    xa: np.ndarray,
    weight: np.ndarray,
    lora_a: np.ndarray,
    lora_b: np.ndarray,
    scaling: np.ndarray,
    adapter: np.ndarray,
    needs: tuple[bool, bool, bool] = (True, True, True),
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """See the reference."""
    check_gather_backward(grad, x, xa, weight, lora_a, lora_b, scaling, adapter)
    g, rows, u = rows_of(grad), rows_of(x), rows_of(xa)
    weight, *factors = (np.ascontiguousarray(m) for m in (weight, lora_a, lora_b, scaling))
    parts = product_parts(len(rows), *weight.shape)
    shapes = (rows.shape, (parts, *lora_a.shape), (parts, *lora_b.shape))
    out = [np.empty(s if need else (0,) * len(s), np.float32) for s, need in zip(shapes, needs, strict=True)]
    _backward(parts, runtime.start(), g, rows, u, weight, *segments(adapter, x.shape[1]), *factors, *needs, *out)
    dx, da, db = (gradient if need else None for gradient, need in zip(out, needs, strict=True))
    return (
        None if dx is None else dx.reshape(x.shape),
        None if da is None else summed(da),
        None if db is None else summed(db),
    )
