"""Products of stacks of matrices: the definition."""

from __future__ import annotations

import numpy as np


def matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a @ b, with a (..., M, K), b (..., K, N), leading axes broadcast; returns (..., M, N).

    Its gradients are matmuls too: da = g @ b.T and db = a.T @ g (summed over broadcast axes).
    Raises ValueError for fewer than two dimensions or when the inner ones differ.

    >>> matmul(np.array([[1.0, 2.0]]), np.array([[3.0], [4.0]])).tolist()
    [[11.0]]
    """
    check_shapes(a, b)
    return a @ b


def check_shapes(a: np.ndarray, b: np.ndarray) -> None:
    """Raise ValueError unless a (..., M, K) and b (..., K, N) can be multiplied."""
    if a.ndim < 2 or b.ndim < 2:
        raise ValueError(f"matmul: expected at least two dimensions, got {a.shape} and {b.shape}")
    if a.shape[-1] != b.shape[-2]:
        raise ValueError(f"matmul: a is {a.shape} and b is {b.shape}; a.shape[-1] and b.shape[-2] must be equal")
