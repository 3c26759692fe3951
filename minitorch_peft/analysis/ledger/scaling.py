"""From the shapes of small steps to those of a large one.

Every axis of every array of a step has a size a + bB + cT + dBT: a width, a batch, a sequence with k prompt vectors
before it, all tokens in line. A few small steps of different (B, T) determine the four numbers, and one more step
checks them. Where the sizes do not lie on such a plane, because they depend on the data (which expert gets a token),
they are taken to grow with B T.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod

import numpy as np

Batch = tuple[int, int]


def small_batches(batch: Batch, longest: int = 24) -> tuple[Batch, ...]:
    """(B, T) of the steps to learn from: few rows, and sequences of at most ``longest`` tokens, none above T.

    >>> small_batches((64, 512))
    ((2, 16), (3, 16), (2, 20), (3, 20), (4, 24))
    """
    top = max(4, min(batch[1], longest))
    short, middle = max(2, top * 2 // 3), max(3, top * 5 // 6)
    return (2, short), (3, short), (2, middle), (3, middle), (4, top)


@lru_cache(maxsize=100_000)
def size_at(sizes: tuple[int, ...], batches: tuple[Batch, ...], batch: Batch) -> int:
    """The size that an axis has at ``batch``, if it had ``sizes`` at ``batches``.

    >>> batches = small_batches((64, 512))
    >>> size_at(tuple(B * (T + 5) for B, T in batches), batches, (64, 512)), size_at((7,) * 5, batches, (64, 512))
    (33088, 7)
    """
    if len(set(sizes)) == 1:
        return sizes[0]
    known = np.array([terms(b) for b in batches], float)
    plane = np.linalg.lstsq(known, np.array(sizes, float), rcond=None)[0]
    if np.abs(known @ plane - sizes).max() < 1e-6:
        return round(float(terms(batch) @ plane))
    share = sum(sizes) / sum(B * T for B, T in batches)
    return round(share * batch[0] * batch[1])


def terms(batch: Batch) -> np.ndarray:
    B, T = batch
    return np.array([1.0, B, T, B * T])


def shape_at(shapes: Sequence[tuple[int, ...]], batches: tuple[Batch, ...], batch: Batch) -> tuple[int, ...]:
    """Axis by axis; by the number of elements where a kernel chose another layout for some of the batches."""
    if len({len(shape) for shape in shapes}) > 1:
        shapes = [(prod(shape),) for shape in shapes]
    return tuple(size_at(sizes, batches, batch) for sizes in zip(*shapes, strict=True))
