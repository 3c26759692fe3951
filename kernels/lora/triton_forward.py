"""x A.T on the GPU: in a pass of its own over x, or inside the loop of the layer's product."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..device.triton import tl, triton
from ..tiles.arrays import new, start
from ..tiles.blocks import kept, part_of, partials, store_tile, sum_parts, tile, tile_place
from ..tiles.host import arithmetic, config, parts, rank_block, size, tuned

LEAST = size(512, 32)
"""Columns of x that a part of the sum has at least."""


@tuned(
    config(4, 4, BM=64, BK=64),
    config(4, 4, BM=64, BK=32),
    config(4, 4, BM=16, BK=64),  # few rows
    key=["M", "K", "ranks", "parts", "DROP", "PRECISION"],
)
@triton.jit
def _down(x, lora_as, ranks, outs, M, K, parts, p, scale, seed,
          COMPUTE: tl.constexpr, PRECISION: tl.constexpr, DROP: tl.constexpr, R: tl.constexpr,
          BM: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    part = tl.program_id(1)
    rm, rk = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, BK)
    rr = tl.program_id(2) * R + tl.arange(0, R)
    first, last = part_of(K, part, parts, BK)
    sums = ()
    for _ in tl.static_range(len(lora_as)):
        sums += (tl.zeros((BM, R), tl.float32),)
    for k in range(first, last, BK):
        rows = tile(x, rm, k + rk, M, K, K, 1).to(COMPUTE)
        if DROP:
            rows = tl.where(kept(rm, k + rk, K, p, seed), rows, 0.0)
        more = ()
        for i in tl.static_range(len(lora_as)):
            a = tile(lora_as[i], rr, k + rk, ranks[i], K, K, 1).to(COMPUTE)
            more += (tl.dot(rows, tl.trans(a), sums[i], input_precision=PRECISION),)
        sums = more
    for i in tl.static_range(len(lora_as)):
        out = outs[i] + part.to(tl.int64) * M * ranks[i]
        store_tile(out, sums[i] * scale, rm, rr, M, ranks[i], ranks[i], 1)


def down(x: Any, lora_as: Sequence[Any], p: float = 0.0, seed: int = 0) -> tuple[Any, ...]:
    """x A_i.T (..., r_i) of x (..., K), with dropout of x where p > 0, for every A_i (r_i, K) in one pass over x.

    Reads x once whatever the number of A: M K elements, and what it writes is r / K of that. With few rows K is cut
    into parts, summed by a second kernel in their order.
    """
    *lead, k = x.shape
    m, ranks = math.prod(lead), tuple(a.shape[0] for a in lora_as)
    block = rank_block(*ranks)
    cut = parts(triton.cdiv(m, 64) * triton.cdiv(max(ranks), block), k, LEAST)
    outs = tuple(new(x, *lead, rank) for rank in ranks)
    sums = tuple(partials(x, cut, *out.shape) for out in outs) if cut > 1 else outs
    start(
        _down,
        lambda meta: (triton.cdiv(m, meta["BM"]), cut, triton.cdiv(max(ranks), block)),
        x, tuple(lora_as), ranks, sums, m, k, cut, float(p), 1 / (1 - p), seed,
        DROP=p > 0, R=block, **arithmetic(x),
    )  # fmt: skip
    return tuple(sum_parts(part, out) for part, out in zip(sums, outs, strict=True)) if cut > 1 else outs


@tuned(
    config(8, 3, BM=128, BN=256, BK=64, GROUP=8),  # H100: 197 registers
    config(8, 3, BM=128, BN=128, BK=64, GROUP=8),  # A100: 128 registers
    config(8, 3, BM=128, BN=128, BK=32, GROUP=8),  # float32 as three products on an H100,
    config(8, 3, BM=128, BN=64, BK=32, GROUP=8),  # and on an A100
    key=["M", "N", "K", "PRECISION"],
)
@triton.jit
def _in_loop(x, weight, bias, lora_a, lora_b, y, xa, M, N, K, rank, scaling,
             COMPUTE: tl.constexpr, PRECISION: tl.constexpr, R: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
             BK: tl.constexpr, GROUP: tl.constexpr):  # fmt: skip
    row, column = tile_place(M, N, BM, BN, GROUP)
    rm, rn, rk, rr = row * BM + tl.arange(0, BM), column * BN + tl.arange(0, BN), tl.arange(0, BK), tl.arange(0, R)
    acc, low = tl.zeros((BM, BN), tl.float32), tl.zeros((BM, R), tl.float32)
    for k in range(0, K, BK):
        rows = tile(x, rm, k + rk, M, K, K, 1).to(COMPUTE)
        w = tile(weight, rn, k + rk, N, K, K, 1).to(COMPUTE)
        a = tile(lora_a, rr, k + rk, rank, K, K, 1).to(COMPUTE)
        acc = tl.dot(rows, tl.trans(w), acc, input_precision=PRECISION)
        low = tl.dot(rows, tl.trans(a), low, input_precision=PRECISION)
    store_tile(xa, low, rm, rr, M, tl.where(column == 0, rank, 0), rank, 1)
    b = tile(lora_b, rn, rr, N, rank, rank, 1).to(COMPUTE)
    acc = tl.dot((low * scaling).to(COMPUTE), tl.trans(b), acc, input_precision=PRECISION)
    if bias is not None:
        acc += tl.load(bias + rn, mask=rn < N, other=0).to(tl.float32)[None, :]
    store_tile(y, acc, rm, rn, M, N, N, 1)


def in_loop(x: Any, weight: Any, bias: Any, lora_a: Any, lora_b: Any, scaling: float) -> tuple[Any, Any]:
    """The layer and x A.T in one launch, for ranks up to 64: every column of tiles computes x A.T again from the tiles
    of x that it loads anyway."""
    *lead, k = x.shape
    m, (n, rank) = math.prod(lead), lora_b.shape
    y, xa = new(x, *lead, n), new(x, *lead, rank)
    start(
        _in_loop,
        lambda meta: (triton.cdiv(m, meta["BM"]) * triton.cdiv(n, meta["BN"]),),
        x, weight, bias, lora_a, lora_b, y, xa, m, n, k, rank, float(scaling), R=rank_block(rank), **arithmetic(x),
    )  # fmt: skip
    return y, xa
