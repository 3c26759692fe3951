"""y = x W.T + b and its gradient: the definition."""

from __future__ import annotations

import numpy as np

from ..checks import same_dtype, same_shape
from ..layout import rows_of


def linear_forward(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """y = x W.T + b, with x (..., K), weight (N, K), bias (N,) or None; returns (..., N).

    Raises ValueError for shapes that do not fit.

    >>> linear_forward(np.array([[1.0, 2.0]]), np.array([[1.0, 1.0], [0.0, 3.0]]), np.array([0.0, 1.0])).tolist()
    [[3.0, 7.0]]
    """
    check_forward(x, weight, bias)
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
    check_backward(grad, x, weight)
    rows = rows_of(grad)
    dx = grad @ weight if needs[0] else None
    dweight = rows.T @ rows_of(x) if needs[1] else None
    dbias = rows.sum(0) if needs[2] else None
    return dx, dweight, dbias


def check_forward(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> None:
    """Raise ValueError unless x (..., K), weight (N, K), bias (N,) or None fit together; TypeError for two dtypes."""
    same_dtype("linear", x.dtype, weight=weight, bias=bias)
    same_shape("linear", "x", x, (*x.shape[:-1], weight.shape[1]))
    if bias is not None:
        same_shape("linear", "bias", bias, weight.shape[:1])


def check_backward(grad: np.ndarray, x: np.ndarray, weight: np.ndarray) -> None:
    """Raise ValueError unless grad (..., N), x (..., K) and weight (N, K) fit together."""
    check_forward(x, weight, None)
    same_dtype("linear", x.dtype, grad=grad)
    same_shape("linear", "grad", grad, (*x.shape[:-1], weight.shape[0]))
