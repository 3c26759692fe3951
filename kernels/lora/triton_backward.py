"""The gradients of A, B and of a bias on the GPU: sums over all rows, cut into parts and added in a fixed order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..device.triton import tl, triton
from ..tiles.arrays import new, start
from ..tiles.blocks import kept, part_of, partials, store_tile, sum_parts, tile
from ..tiles.host import arithmetic, config, parts, rank_block, size, tuned

STRIP = size(128, 32)
"""Columns of the gradient that a program walks down."""
LEAST = size(256, 32)
"""Rows that a part of a sum has at least."""


@tuned(
    config(4, 3, BM=64),
    config(8, 3, BM=128),
    config(8, 3, BM=32),  # float32 as three products: the largest without spills
    key=["M", "N", "rank", "parts", "PRECISION"],
)
@triton.jit
def _low_gradients(grad, xa, lora_b, dxa, db, M, N, rank, parts,
                   COMPUTE: tl.constexpr, PRECISION: tl.constexpr, R: tl.constexpr, BM: tl.constexpr,
                   BN: tl.constexpr):  # fmt: skip
    strip, part = tl.program_id(0), tl.program_id(1)
    rn, rr, rm = strip * BN + tl.arange(0, BN), tl.program_id(2) * R + tl.arange(0, R), tl.arange(0, BM)
    b = tile(lora_b, rn, rr, N, rank, rank, 1).to(COMPUTE)
    first, last = part_of(M, part, parts, BM)
    total = tl.zeros((BN, R), tl.float32)
    for m in range(first, last, BM):
        g = tile(grad, m + rm, rn, M, N, N, 1).to(COMPUTE)
        low = tile(xa, m + rm, rr, M, rank, rank, 1).to(COMPUTE)
        total = tl.dot(tl.trans(g), low, total, input_precision=PRECISION)
        of_strip = dxa + strip.to(tl.int64) * M * rank
        store_tile(of_strip, tl.dot(g, b, input_precision=PRECISION), m + rm, rr, M, rank, rank, 1)
    store_tile(db + part.to(tl.int64) * N * rank, total, rn, rr, N, rank, rank, 1)


def low_gradients(grad: Any, xa: Any, lora_b: Any, scaling: float) -> tuple[Any, Any]:
    """(d(xa) = s g B (..., r), dB = s g.T xa (N, r)) from one pass over g (..., N).

    A program holds a strip of columns and walks down some of the rows: every tile of g serves both products. What it
    knows of d(xa) is a part of the sum over N, what it knows of dB a part of the sum over rows; both are written as
    float32 parts: (N / 128) M r + S N r numbers, 10.7 MB for r = 16, M = N = 4096 and S = 9, a third of g, written
    and read once. Two passes would read g (33.6 MB) twice; atomic additions would give other bits on every run.
    """
    n, rank = lora_b.shape
    m, strips, block = math.prod(grad.shape[:-1]), triton.cdiv(n, STRIP), rank_block(rank)
    cut = parts(strips, m, LEAST)
    dxa, db = partials(grad, strips, *xa.shape), partials(grad, cut, n, rank)
    start(
        _low_gradients,
        (strips, cut, triton.cdiv(rank, block)),
        grad, xa, lora_b, dxa, db, m, n, rank, cut, R=block, BN=STRIP, **arithmetic(grad),
    )  # fmt: skip
    return sum_parts(dxa, new(grad, *xa.shape), scaling), sum_parts(db, new(lora_b, n, rank), scaling)


@tuned(
    config(4, 3, BM=64, BK=64),
    config(4, 4, BM=32, BK=64),
    key=["M", "K", "ranks", "parts", "DROP", "PRECISION"],
)
@triton.jit
def _a_gradients(x, dxas, ranks, outs, M, K, parts, p, scale, seed,
                 COMPUTE: tl.constexpr, PRECISION: tl.constexpr, DROP: tl.constexpr, R: tl.constexpr,
                 BM: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    part = tl.program_id(1)
    rk, rr, rm = tl.program_id(0) * BK + tl.arange(0, BK), tl.program_id(2) * R + tl.arange(0, R), tl.arange(0, BM)
    first, last = part_of(M, part, parts, BM)
    sums = ()
    for _ in tl.static_range(len(dxas)):
        sums += (tl.zeros((BK, R), tl.float32),)
    for m in range(first, last, BM):
        rows = tile(x, m + rm, rk, M, K, K, 1).to(COMPUTE)
        if DROP:
            rows = tl.where(kept(m + rm, rk, K, p, seed), rows, 0.0)
        more = ()
        for i in tl.static_range(len(dxas)):
            low = tile(dxas[i], m + rm, rr, M, ranks[i], ranks[i], 1).to(COMPUTE)
            more += (tl.dot(tl.trans(rows), low, sums[i], input_precision=PRECISION),)
        sums = more
    for i in tl.static_range(len(dxas)):
        out = outs[i] + part.to(tl.int64) * K * ranks[i]
        store_tile(out, sums[i] * scale, rk, rr, K, ranks[i], 1, K)


def a_gradients(x: Any, dxas: Sequence[Any], likes: Sequence[Any], p: float = 0.0, seed: int = 0) -> tuple[Any, ...]:
    """dA_i = d(xa_i).T drop(x) (r_i, K), in the dtype of ``likes``, for every projection in one pass over x (..., K).

    Computed as its transpose, whose K rows fill the tensor cores' 64; a rank of 16 would not. One column of tiles is
    too little work for a GPU (r is a single tile): the rows are cut into parts.
    """
    *lead, k = x.shape
    m, ranks = math.prod(lead), tuple(dxa.shape[-1] for dxa in dxas)
    block = rank_block(*ranks)
    blocks = triton.cdiv(max(ranks), block)
    cut = parts(triton.cdiv(k, 64) * blocks, m, LEAST)
    sums = tuple(partials(x, cut, rank, k) for rank in ranks)
    start(
        _a_gradients,
        lambda meta: (triton.cdiv(k, meta["BK"]), cut, blocks),
        x, tuple(dxas), ranks, sums, m, k, cut, float(p), 1 / (1 - p), seed, DROP=p > 0, R=block, **arithmetic(x),
    )  # fmt: skip
    return tuple(sum_parts(s, new(a, *a.shape)) for s, a in zip(sums, likes, strict=True))


@tuned(config(4, 3, BM=64, BN=64), config(4, 3, BM=32, BN=128), key=["M", "N", "parts"])
@triton.jit
def _column_sums(grad, out, M, N, parts, BM: tl.constexpr, BN: tl.constexpr):
    part = tl.program_id(1)
    rn, rm = tl.program_id(0) * BN + tl.arange(0, BN), tl.arange(0, BM)
    first, last = part_of(M, part, parts, BM)
    total = tl.zeros((BM, BN), tl.float32)
    for m in range(first, last, BM):
        total += tile(grad, m + rm, rn, M, N, N, 1).to(tl.float32)
    tl.store(out + part * N + rn, tl.sum(total, axis=0), mask=rn < N)


def column_sums(grad: Any) -> Any:
    """The gradient of a bias: the sum of g (..., N) over its rows, (N,)."""
    *lead, n = grad.shape
    m = math.prod(lead)
    cut = parts(triton.cdiv(n, 64), m, LEAST)
    sums = partials(grad, cut, n)
    start(_column_sums, lambda meta: (triton.cdiv(n, meta["BN"]), cut), grad, sums, m, n, cut)
    return sum_parts(sums, new(grad, n))
