"""Matrices with orthonormal rows: where they start, and the nearest one to any other."""

from __future__ import annotations

import numpy as np


def nearest_orthonormal(A: np.ndarray) -> np.ndarray:
    """The matrix with orthonormal rows that is nearest to ``A`` (r, C): U Vᵀ of its SVD, a smooth function of it.

    >>> nearest_orthonormal(np.array([[3.0, 0.0, 4.0]])).tolist()
    [[0.6..., 0.0, 0.8...]]
    """
    U, _, Vt = np.linalg.svd(A.astype(np.float64), full_matrices=False)
    return (U @ Vt).astype(A.dtype)


def orthonormal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A start for (r, C): orthonormal rows, no direction more likely than another."""
    return nearest_orthonormal(rng.standard_normal(shape))
