"""Rows of many adapters, sorted on the host so that a tile holds rows of one adapter.

No row is moved: a tile reads its rows where they lie (``order`` says where) and writes there.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np

from ..device.triton import tl, triton
from ..tiles.host import size


class Schedule(NamedTuple):
    """Which rows a tile holds."""

    order: Any
    """(rows,) int32: the rows, sorted by adapter"""
    first: Any
    """(tiles,) int32: where a tile's rows begin in ``order``"""
    last: Any
    """(tiles,) int32: and end"""
    adapter: Any
    """(tiles,) int32: -1 for none"""
    bounds: Any
    """(adapters + 1,) int32: where the rows of an adapter begin in ``order``; those of none come before"""
    tile_rows: int
    """rows in a full tile"""


def schedule(adapter: np.ndarray, tokens: int, count: int) -> Schedule:
    """Sort the rows of a batch, ``tokens`` for each entry of ``adapter``, and cut each adapter's into tiles.

    Tiles are of 16 rows where adapters have few, so that little of a tile is empty.

    >>> schedule(np.array([1, -1, 1, 0]), 2, 2).order.tolist(), schedule(np.array([1, -1, 1, 0]), 2, 2).bounds.tolist()
    ([2, 3, 6, 7, 0, 1, 4, 5], [2, 4, 8])
    """
    by_adapter = np.argsort(adapter, kind="stable")
    order = (by_adapter[:, None] * tokens + np.arange(tokens)).reshape(-1).astype(np.int32)
    bounds = np.searchsorted(adapter[by_adapter], np.arange(-1, count + 1)) * tokens
    used = max(1, np.count_nonzero(np.diff(bounds)))
    tile_rows = 16 if order.size < 32 * used else size(64, 32)
    first = [np.arange(a, b, tile_rows) for a, b in itertools.pairwise(bounds)]
    of_tile = np.repeat(np.arange(-1, count), [len(f) for f in first])
    starts = np.concatenate(first)
    ends = np.minimum(starts + tile_rows, bounds[of_tile + 2])
    to_int32 = (order, starts, ends, of_tile, bounds[1:])
    return Schedule(*(a.astype(np.int32) for a in to_int32), tile_rows)


@triton.jit
def rows_of_tile(order, first, last, t, M, BM: tl.constexpr):
    """The rows of tile ``t``; M, which is beyond all rows, where it is not full."""
    i = tl.load(first + t) + tl.arange(0, BM)
    return tl.load(order + i, mask=i < tl.load(last + t), other=M)
