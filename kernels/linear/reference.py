"""y = x W.T + b and its gradient: the definition."""

from __future__ import annotations

import numpy as np

from ..checks import same_length
from ..layout import rows_of


def linear_forward(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """y = x W.T + b, with x (..., K), weight (N, K), bias (N,) or None; returns (..., N).

    Raises ValueError when x's last axis is not K.

    >>> linear_forward(np.array([[1.0, 2.0]]), np.array([[1.0, 1.0], [0.0, 3.0]]), np.array([0.0, 1.0])).tolist()
    [[3.0, 7.0]]
    """
    same_length("linear", "x.shape[-1]", x.shape[-1], "weight.shape[1]", weight.shape[1])
    y = x @ weight.T
    if bias is not None:
        y += bias
    return y


def linear_backward(
    grad: np.ndarray, x: np.ndarray, weight: np.ndarray, needs: tuple[bool, bool, bool] = (True, True, True)
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """Gradients (dx (..., K), dweight (N, K), dbias (N,)) from grad (..., N); None where ``needs`` is False.

    y_rn = sum_k x_rk W_nk + b_n, so dx = g W, dW = g.T x and db = sum_r g_r.

    >>> dx, dw, db = linear_backward(np.array([[1.0, 2.0]]), np.array([[3.0]]), np.array([[4.0], [5.0]]))
    >>> dx.tolist(), dw.tolist(), db.tolist()
    ([[14.0]], [[3.0], [6.0]], [1.0, 2.0])
    """
    rows = rows_of(grad)
    dx = grad @ weight if needs[0] else None
    dweight = rows.T @ rows_of(x) if needs[1] else None
    dbias = rows.sum(0) if needs[2] else None
    return dx, dweight, dbias
