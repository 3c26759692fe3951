"""y = x W.T + b + s (x A.T) B.T (Hu et al. 2021, arXiv 2106.09685, equation 3) and its gradient: the definition."""

from __future__ import annotations

import numpy as np

from ..checks import same_dtype, same_shape
from ..layout import rows_of


def lora_linear_forward(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    lora_a: np.ndarray,
    lora_b: np.ndarray,
    scaling: float,
) -> tuple[np.ndarray, np.ndarray]:
    """y = x W.T + b + s (x A.T) B.T; the product B A is never formed.

    x (..., K), weight (N, K), bias (N,) or None, lora_a (r, K), lora_b (N, r); returns y (..., N) and
    xa = x A.T (..., r), which the backward pass needs. Raises ValueError for shapes that do not fit.

    >>> one = np.ones((1, 1))
    >>> y, xa = lora_linear_forward(np.array([[3.0]]), one, None, 2 * one, 5 * one, 0.1)
    >>> y.tolist(), xa.tolist()
    ([[6.0]], [[6.0]])
    """
    check_forward(x, weight, bias, lora_a, lora_b)
    # BEGIN SOLUTION(task="3.2")
    y = x @ weight.T
    xa = x @ lora_a.T
    y += (xa @ lora_b.T) * x.dtype.type(scaling)
    if bias is not None:
        y += bias
    return y, xa
    # END SOLUTION


def lora_linear_backward(
    grad: np.ndarray,
    x: np.ndarray,
    xa: np.ndarray,
    weight: np.ndarray,
    lora_a: np.ndarray,
    lora_b: np.ndarray,
    scaling: float,
    needs: tuple[bool, bool, bool, bool, bool] = (True, False, False, True, True),
) -> tuple[np.ndarray | None, ...]:
    """Gradients (dx, dweight, dbias, da, db) from grad (..., N); None where ``needs`` is False.

    With d(xa) = s g B: dx = g W + d(xa) A, dA = d(xa).T x, dB = s g.T xa; a frozen W costs no product of its own.

    >>> one = np.ones((1, 1))
    >>> dx, _, _, da, db = lora_linear_backward(one, 3 * one, 6 * one, one, 2 * one, 5 * one, 0.1)
    >>> dx.tolist(), da.tolist(), db.round(6).tolist()
    ([[2.0]], [[1.5]], [[0.6]])
    """
    check_backward(grad, x, xa, weight, lora_a, lora_b)
    # BEGIN SOLUTION(task="3.3")
    s = grad.dtype.type(scaling)
    g, rows = rows_of(grad), rows_of(x)
    dxa = s * (g @ lora_b)
    return (
        (g @ weight + dxa @ lora_a).reshape(x.shape) if needs[0] else None,
        g.T @ rows if needs[1] else None,
        g.sum(0) if needs[2] else None,
        dxa.T @ rows if needs[3] else None,
        s * (g.T @ rows_of(xa)) if needs[4] else None,
    )
    # END SOLUTION


def check_forward(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, lora_a: np.ndarray, lora_b: np.ndarray
) -> None:
    """Raise ValueError unless x (..., K), weight (N, K), bias (N,), lora_a (r, K) and lora_b (N, r) fit together, and
    TypeError unless all have the dtype of x."""
    (n, k), rank = weight.shape, lora_a.shape[0]
    same_shape("lora_linear", "x", x, (*x.shape[:-1], k))
    same_shape("lora_linear", "lora_a", lora_a, (rank, k))
    same_shape("lora_linear", "lora_b", lora_b, (n, rank))
    if bias is not None:
        same_shape("lora_linear", "bias", bias, (n,))
    same_dtype("lora_linear", x.dtype, weight=weight, bias=bias, lora_a=lora_a, lora_b=lora_b)


def check_backward(
    grad: np.ndarray, x: np.ndarray, xa: np.ndarray, weight: np.ndarray, lora_a: np.ndarray, lora_b: np.ndarray
) -> None:
    """Raise ValueError unless grad (..., N) and xa (..., r) fit the arguments of the forward pass."""
    check_forward(x, weight, None, lora_a, lora_b)
    same_shape("lora_linear", "grad", grad, (*x.shape[:-1], weight.shape[0]))
    same_shape("lora_linear", "xa", xa, (*x.shape[:-1], lora_a.shape[0]))
    same_dtype("lora_linear", x.dtype, grad=grad, xa=xa)
