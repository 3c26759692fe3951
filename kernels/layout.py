"""Bring an array into the one layout that a compiled kernel expects."""

from __future__ import annotations

import math

import numpy as np


def rows_of(x: np.ndarray) -> np.ndarray:
    """(..., C) as contiguous rows (R, C); a copy only if it has to be.

    >>> rows_of(np.zeros((2, 3, 4))).shape, rows_of(np.zeros((2, 0, 4))).shape
    ((6, 4), (0, 4))
    """
    return np.ascontiguousarray(x).reshape(math.prod(x.shape[:-1]), x.shape[-1])


def rows_adjacent(x: np.ndarray) -> np.ndarray:
    """x itself if its last axis lies contiguously in memory, else a contiguous copy."""
    return x if x.shape[-1] <= 1 or x.strides[-1] == x.itemsize else np.ascontiguousarray(x)


def heads_of(x: np.ndarray) -> np.ndarray:
    """(B, H, T, D) such that each head is a matrix BLAS can read (rows contiguous, at least D apart); else a copy."""
    row = x.shape[-1] * x.itemsize
    if x.strides[-1] == x.itemsize and (x.shape[-2] <= 1 or x.strides[-2] >= row):
        return x
    return np.ascontiguousarray(x)
