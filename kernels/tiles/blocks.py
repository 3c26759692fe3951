"""Functions that kernels call: which tile a program computes, loading and storing a ragged one, dropout by counter."""

from __future__ import annotations

import math
from typing import Any

from ..device.triton import tl, triton
from .arrays import new, start
from .host import config, tuned


@triton.jit
def tile_place(M, N, BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr):
    """The tile (row, column) of this program. GROUP rows of tiles are walked column by column, so that what programs
    close in time load is still in the second-level cache."""
    rows, columns = tl.cdiv(M, BM), tl.cdiv(N, BN)
    pid = tl.program_id(0)
    return tl.swizzle2d(pid // columns, pid % columns, rows, columns, GROUP)


@triton.jit
def tile(base, rows, columns, row_count, column_count, row_step, column_step):
    """[rows, columns] of a matrix, zero beyond its edges. Addresses have 64 bits: it may have over 2**31 elements."""
    at = rows.to(tl.int64)[:, None] * row_step + columns.to(tl.int64)[None, :] * column_step
    return tl.load(base + at, mask=(rows < row_count)[:, None] & (columns < column_count)[None, :], other=0)


@triton.jit
def store_tile(base, value, rows, columns, row_count, column_count, row_step, column_step):
    """Write what lies within the matrix, rounded to its dtype."""
    at = rows.to(tl.int64)[:, None] * row_step + columns.to(tl.int64)[None, :] * column_step
    inside = (rows < row_count)[:, None] & (columns < column_count)[None, :]
    tl.store(base + at, value.to(base.dtype.element_ty), mask=inside)


@triton.jit
def part_of(length, part, parts, BLOCK: tl.constexpr):
    """Where part number ``part`` of a sum over ``length`` begins and ends: whole blocks, but for the end."""
    step = tl.cdiv(tl.cdiv(length, BLOCK), parts) * BLOCK
    first = tl.minimum(part * step, length)
    return first, tl.minimum(first + step, length)


@triton.jit
def kept(rows, columns, row_step, p, seed):
    """Dropout's mask [rows, columns], drawn again wherever it is wanted: element i of the flattened matrix stays where
    number i of the generator (Philox4x32-10, ``kernels/philox``) is at least p."""
    at = rows.to(tl.int64)[:, None] * row_step + columns.to(tl.int64)[None, :]
    return tl.rand(seed, at) >= p


@tuned(config(4, 1, BLOCK=1024), config(4, 1, BLOCK=256), key=["count", "parts"])
@triton.jit
def _sum_parts(partial, out, count, parts, scale, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for part in range(parts):
        total += tl.load(partial + part * count + i, mask=i < count, other=0)
    tl.store(out + i, (total * scale).to(out.dtype.element_ty), mask=i < count)


def sum_parts(partial: Any, out: Any, scale: float = 1.0) -> Any:
    """Fill ``out`` with scale times the sum over the first axis of ``partial`` (parts, ...) float32; return it.

    One thread adds the parts of an element, in their order: the same bits on every run, which atomic additions are not,
    for a given configuration of the kernel that made the parts (its tile decides where they end).
    """
    parts, *shape = partial.shape
    count = math.prod(shape)
    start(_sum_parts, lambda meta: (triton.cdiv(count, meta["BLOCK"]),), partial, out, count, parts, float(scale))
    return out


def partials(like: Any, parts: int, *shape: int) -> Any:
    """Room for ``parts`` float32 sums of this shape."""
    return new(like, parts, *shape, dtype="float32")
