"""Argument checks that the reference and the fast version of a kernel share."""

from __future__ import annotations

import numpy as np


def same_length(what: str, left: str, left_size: int, right: str, right_size: int) -> None:
    """Raise ValueError unless two dimensions that are contracted (or paired) agree."""
    if left_size != right_size:
        raise ValueError(f"{what}: {left} is {left_size} but {right} is {right_size}; they must be equal")


def ids_within(what: str, ids: np.ndarray, size: int) -> None:
    """Raise IndexError unless 0 <= ids < size."""
    if ids.size and (ids.min() < 0 or ids.max() >= size):
        raise IndexError(f"{what}: ids must lie in [0, {size}), got {ids.min()} to {ids.max()}")
