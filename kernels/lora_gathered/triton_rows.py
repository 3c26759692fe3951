"""Products on rows of many adapters. Gradients of an adapter are sums over its own rows, taken by one program in their
order: no atomics, the same bits on every run.
"""

from __future__ import annotations

from typing import Any

from ..device.triton import tl, triton
from ..tiles.arrays import new, start
from ..tiles.blocks import part_of, partials, store_tile, sum_parts, tile
from ..tiles.host import arithmetic, config, parts, rank_block, size, tuned
from .triton_schedule import Schedule, rows_of_tile

LEAST = size(512, 32)


@tuned(config(4, 4, BK=64), config(4, 4, BK=32), key=["M", "K", "rank", "parts", "TRANSPOSED", "PRECISION"])
@triton.jit
def _rows_to_rank(x, downs, scaling, order, first, last, adapter, out, M, K, rank, parts,
                  COMPUTE: tl.constexpr, PRECISION: tl.constexpr, TRANSPOSED: tl.constexpr, R: tl.constexpr,
                  BM: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    t, part = tl.program_id(0), tl.program_id(1)
    e, rm = tl.load(adapter + t), rows_of_tile(order, first, last, t, M, BM)
    rr, rk = tl.program_id(2) * R + tl.arange(0, R), tl.arange(0, BK)
    of_adapter = downs + e.to(tl.int64) * K * rank
    begin, end = part_of(tl.where(e < 0, 0, K), part, parts, BK)
    acc = tl.zeros((BM, R), tl.float32)
    for k in range(begin, end, BK):
        rows = tile(x, rm, k + rk, M, K, K, 1).to(COMPUTE)
        if TRANSPOSED:
            a = tl.trans(tile(of_adapter, rr, k + rk, rank, K, K, 1))
        else:
            a = tile(of_adapter, k + rk, rr, K, rank, rank, 1)
        acc = tl.dot(rows, a.to(COMPUTE), acc, input_precision=PRECISION)
    if scaling is not None:
        acc *= tl.load(scaling + e, mask=e >= 0, other=0).to(tl.float32)
    store_tile(out + part.to(tl.int64) * M * rank, acc, rm, rr, M, rank, rank, 1)


def rows_to_rank(x: Any, downs: Any, scaling: Any, rank: int, plan: Schedule, transposed: bool) -> Any:
    """Each row of x (B, T, K) times its adapter's (K, r) matrix, and its scaling where given: (B, T, r).

    ``downs`` (E, K, r), in memory as (E, r, K) where ``transposed``. Zero for a row without an adapter.
    """
    batch, tokens, k = x.shape
    m, tiles, block = batch * tokens, plan.first.shape[0], rank_block(rank)
    cut = parts(tiles * triton.cdiv(rank, block), k, LEAST)
    out = new(x, batch, tokens, rank)
    sums = partials(x, cut, *out.shape) if cut > 1 else out
    start(
        _rows_to_rank, (tiles, cut, triton.cdiv(rank, block)),
        x, downs, scaling, plan.order, plan.first, plan.last, plan.adapter, sums, m, k, rank, cut,
        TRANSPOSED=transposed, R=block, BM=plan.tile_rows, **arithmetic(x),
    )  # fmt: skip
    return sum_parts(sums, out) if cut > 1 else out


@tuned(
    config(8, 3, BN=256, BK=64),
    config(8, 3, BN=128, BK=32),
    config(4, 4, BN=64, BK=32),
    key=["M", "N", "K", "BM", "TRANSPOSED", "PRECISION"],
)
@triton.jit
def _rows_product(x, weight, bias, low, ups, scaling, order, first, last, adapter, out, M, N, K, rank,
                  COMPUTE: tl.constexpr, PRECISION: tl.constexpr, TRANSPOSED: tl.constexpr, R: tl.constexpr,
                  BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    t = tl.program_id(0)
    e, rm = tl.load(adapter + t), rows_of_tile(order, first, last, t, M, BM)
    rn, rk, rr = tl.program_id(1) * BN + tl.arange(0, BN), tl.arange(0, BK), tl.arange(0, R)
    of_adapter = ups + e.to(tl.int64) * N * rank
    acc = tl.zeros((BM, BN), tl.float32)
    for r in range(0, tl.where(e < 0, 0, rank), R):
        if TRANSPOSED:
            up = tl.trans(tile(of_adapter, rn, r + rr, N, rank, rank, 1))
        else:
            up = tile(of_adapter, r + rr, rn, rank, N, N, 1)
        rows = tile(low, rm, r + rr, M, rank, rank, 1).to(COMPUTE)
        acc = tl.dot(rows, up.to(COMPUTE), acc, input_precision=PRECISION)
    if scaling is not None:
        acc *= tl.load(scaling + e, mask=e >= 0, other=0).to(tl.float32)
    for k in range(0, K, BK):
        rows = tile(x, rm, k + rk, M, K, K, 1).to(COMPUTE)
        w = tl.trans(tile(weight, rn, k + rk, N, K, K, 1)) if TRANSPOSED else tile(weight, k + rk, rn, K, N, N, 1)
        acc = tl.dot(rows, w.to(COMPUTE), acc, input_precision=PRECISION)
    if bias is not None:
        acc += tl.load(bias + rn, mask=rn < N, other=0).to(tl.float32)[None, :]
    store_tile(out, acc, rm, rn, M, N, N, 1)


def rows_product(x: Any, weight: Any, bias: Any, low: Any, ups: Any, scaling: Any, n: int, plan: Schedule,
                 transposed: bool) -> Any:  # fmt: skip
    """x (B, T, K) W + bias + each row of low (B, T, r) times its adapter's (r, N) matrix: (B, T, N).

    weight (K, N) and ups (E, r, N); in memory as (N, K) and (E, N, r) where ``transposed``.
    """
    (*lead, k), rank = x.shape, low.shape[-1]
    out = new(x, *lead, n)
    start(
        _rows_product, lambda meta: (plan.first.shape[0], triton.cdiv(n, meta["BN"])),
        x, weight, bias, low, ups, scaling, plan.order, plan.first, plan.last, plan.adapter, out, lead[0] * lead[1],
        n, k, rank, TRANSPOSED=transposed, R=rank_block(rank), BM=plan.tile_rows, **arithmetic(x),
    )  # fmt: skip
    return out


@tuned(config(4, 3, BM=64, BK=64), config(4, 4, BM=32, BK=64), key=["M", "K", "rank", "PRECISION"])
@triton.jit
def _sum_by_adapter(x, low, scaling, order, bounds, out, M, K, rank, k_step, r_step,
                    COMPUTE: tl.constexpr, PRECISION: tl.constexpr, R: tl.constexpr, BM: tl.constexpr,
                    BK: tl.constexpr):  # fmt: skip
    e, rk = tl.program_id(1), tl.program_id(0) * BK + tl.arange(0, BK)
    rr = tl.program_id(2) * R + tl.arange(0, R)
    first, last = tl.load(bounds + e), tl.load(bounds + e + 1)
    acc = tl.zeros((BK, R), tl.float32)
    for i in range(first, last, BM):
        at = i + tl.arange(0, BM)
        rm = tl.load(order + at, mask=at < last, other=M)
        rows = tile(x, rm, rk, M, K, K, 1).to(COMPUTE)
        lows = tile(low, rm, rr, M, rank, rank, 1).to(COMPUTE)
        acc = tl.dot(tl.trans(rows), lows, acc, input_precision=PRECISION)
    if scaling is not None:
        acc *= tl.load(scaling + e).to(tl.float32)
    store_tile(out + e.to(tl.int64) * K * rank, acc, rk, rr, K, rank, k_step, r_step)


def sum_by_adapter(x: Any, low: Any, scaling: Any, like: Any, plan: Schedule, transposed: bool) -> Any:
    """For each adapter the sum over its rows of x (B, T, K) times low (B, T, r): (E, K, r), or transposed (E, r, K)."""
    (batch, tokens, k), rank, count = x.shape, low.shape[-1], like.shape[0]
    block, out = rank_block(rank), new(like, *like.shape)
    steps = (1, k) if transposed else (rank, 1)
    start(
        _sum_by_adapter, lambda meta: (triton.cdiv(k, meta["BK"]), count, triton.cdiv(rank, block)),
        x, low, scaling, plan.order, plan.bounds, out, batch * tokens, k, rank, *steps, R=block, **arithmetic(x),
    )  # fmt: skip
    return out
