"""Has the base changed since adapters came to it? A sum over its words, cheap enough to take every time."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

Sums = dict[str, tuple[str, int]]


def word_sum(array: np.ndarray) -> int:
    """The sum of the array's words modulo 2⁶⁴: one pass at the speed of memory.

    A change of one value always shows, one of several as good as always; an exchange of values does not. For proof
    there is the checksum of merging; this is to find accidents.

    >>> a = np.ones(5, np.float32)
    >>> before = word_sum(a)
    >>> a[3] = np.nextafter(a[3], 2)
    >>> word_sum(a) - before
    1
    """
    words = np.ascontiguousarray(array).reshape(-1)
    return int(words.view(f"u{words.itemsize}").sum(dtype=np.uint64))


def word_sums(arrays: Iterable[tuple[str, np.ndarray]]) -> Sums:
    """Path to dtype and sum."""
    return {path: (array.dtype.str, word_sum(array)) for path, array in arrays}


def changed(before: Sums, arrays: Iterable[tuple[str, np.ndarray]]) -> list[str]:
    """The paths that are new, gone, or of another sum; an array that is of another dtype now cannot be compared."""
    now = word_sums(arrays)
    differ = [path for path in before.keys() & now.keys() if before[path] != now[path]]
    same_dtype = [path for path in differ if before[path][0] == now[path][0]]
    return sorted([*same_dtype, *(before.keys() ^ now.keys())])
