"""Which examples a training step sees: a pure function of (seed, step), so resuming needs nothing but the
step."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from minitorch_peft.autograd.random import generator


def epoch_slices(total: int, step: int, batch_size: int, seed: int, site: str) -> Iterator[tuple[int, np.ndarray]]:
    """The examples of one step: (epoch, indices below ``total``), one item for each epoch that the step
    touches.

    Every epoch is a shuffle of its own, so each example is seen once before any is seen again.

    >>> for step in range(3):
    ...     print([(epoch, len(indices)) for epoch, indices in epoch_slices(3, step, 2, 0, "doc")])
    [(0, 2)]
    [(0, 1), (1, 1)]
    [(1, 2)]

    Raises:
        ValueError: a step below 0 or a batch size below 1.
    """
    if step < 0 or batch_size < 1:
        raise ValueError(f"expected step >= 0 and batch_size >= 1, got step {step} and batch_size {batch_size}")
    position, stop = step * batch_size, (step + 1) * batch_size
    while position < stop:
        epoch, offset = divmod(position, total)
        count = min(total - offset, stop - position)
        yield epoch, _shuffle(total, seed, site, epoch)[offset : offset + count]
        position += count


@lru_cache(maxsize=8)
def _shuffle(total: int, seed: int, site: str, epoch: int) -> np.ndarray:
    indices = generator(seed, "data", site, "shuffle", epoch).permutation(total)
    indices.setflags(write=False)  # shared by every caller
    return indices
