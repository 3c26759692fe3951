"""How long versions of a kernel take, beside the bytes and operations that it cannot do without."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .verify import leaves

ROUNDS = 5


def best_times(calls: Sequence[Callable[[], Any]], seconds: float) -> list[float]:
    """The shortest time of each call, in seconds; they take turns, each for about ``seconds`` altogether.

    Taking turns, they all meet the machine in its better and worse moments; the shortest time is the one that others
    disturbed least. Each has been called before (compiled, its memory there), or the first turn is a warm-up.

    >>> fast, slow = best_times([lambda: None, lambda: time.sleep(0.01)], 0.02)
    >>> fast < 0.01 < slow
    True
    """
    best, spent = [float("inf")] * len(calls), [0.0] * len(calls)
    for turn in range(1, ROUNDS + 1):
        for i, call in enumerate(calls):
            while spent[i] < seconds * turn / ROUNDS:
                start = time.perf_counter()
                call()
                took = time.perf_counter() - start
                best[i], spent[i] = min(best[i], took), spent[i] + took
    return best


def bytes_moved(args: tuple, result: Any) -> int:
    """Bytes of memory traffic that no version can avoid: every argument read once, every result written once.

    >>> x = np.ones((8, 4), np.float32)
    >>> bytes_moved((x, None, 0.5), (x, x[0]))
    272
    """
    return sum(part.nbytes for part in leaves((args, result)) if isinstance(part, np.ndarray))


def bytes_in_place(args: tuple, after: tuple) -> int:
    """The same for a kernel that writes into its arguments: what it has changed was read and written."""
    pairs = zip(leaves(args), leaves(after), strict=True)
    return bytes_moved(args, tuple(b for a, b in pairs if isinstance(a, np.ndarray) and not np.array_equal(a, b)))
