"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864, equation 34), Llama's half-split layout."""

from __future__ import annotations

import numpy as np

from ..checks import same_dtype


def rotary_forward(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Turn each pair (x_i, x_{i + D/2}) of x (B, H, T, D) by its position's angle.

    cos, sin: (T, D/2), or (B, T, D/2) where rows have positions of their own. Returns (B, H, T, D).
    Raises ValueError when D is odd or the shapes do not fit.

    >>> x = np.array([1.0, 0.0]).reshape(1, 1, 1, 2)
    >>> rotary_forward(x, np.array([[0.0]]), np.array([[1.0]])).ravel().tolist()
    [0.0, 1.0]
    """
    cos, sin = angles(x, cos)[:, None], angles(x, sin)[:, None]
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def rotary_backward(grad: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """dx (B, H, T, D): a rotation's transpose is the rotation by minus the angle.

    >>> grad = np.array([0.0, 1.0]).reshape(1, 1, 1, 2)
    >>> rotary_backward(grad, np.array([[0.0]]), np.array([[1.0]])).ravel().tolist()
    [1.0, 0.0]
    """
    return rotary_forward(grad, cos, -sin)


def angles(x: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Broadcast a table of cosines or sines to (B, T, D/2); ValueError for other shapes, TypeError for two dtypes."""
    same_dtype("rotary", x.dtype, **{"cos or sin": table})
    if x.ndim != 4:
        raise ValueError(f"rotary: expected x (B, H, T, D), got shape {x.shape}")
    b, _, t, d = x.shape
    if d % 2 or table.shape not in ((t, d // 2), (1, t, d // 2), (b, t, d // 2)):
        raise ValueError(
            f"rotary: x is (B, H, T, D) = {x.shape}; expected cos and sin of shape (T, D/2) = {(t, d // 2)} "
            f"or (B, T, D/2) = {(b, t, d // 2)} with D even, got {table.shape}"
        )
    return np.broadcast_to(table, (b, t, d // 2))
