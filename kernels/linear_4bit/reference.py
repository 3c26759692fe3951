"""Products with a weight in four bits, alone and with a low-rank term: the definition (QLoRA, arXiv 2305.14314, eq. 5).

Dequantize, then multiply. A weight is data, not a parameter: it has no gradient, so backward gives none for it.
"""

from __future__ import annotations

import numpy as np

from ..checks import same_dtype, same_shape
from ..four_bit.layout import Quantized, check_quantized
from ..four_bit.reference import dequantize_4bit
from ..layout import rows_of


def linear_4bit_forward(x: np.ndarray, q: Quantized, bias: np.ndarray | None = None) -> np.ndarray:
    """y = x W.T + b with W = dequantize_4bit(q), q.shape (N, K): x (..., K), bias (N,) or None; returns (..., N).

    Raises ValueError for shapes that do not fit, TypeError unless x and bias have one floating dtype.

    >>> from minitorch_peft.kernels.four_bit.reference import quantize_4bit
    >>> q = quantize_4bit(np.array([[1.0, -1.0], [0.0, 1.0]]))
    >>> linear_4bit_forward(np.array([[2.0, 3.0]]), q, np.array([0.0, 10.0])).tolist()
    [[-1.0, 13.0]]
    """
    check_forward(x, q, bias)
    y = x @ dense(q, x).T
    if bias is not None:
        y += bias
    return y


def linear_4bit_backward(grad: np.ndarray, q: Quantized) -> np.ndarray:
    """dx = g W (..., K) from grad (..., N).

    >>> from minitorch_peft.kernels.four_bit.reference import quantize_4bit
    >>> linear_4bit_backward(np.array([[1.0, 2.0]]), quantize_4bit(np.array([[1.0, -1.0], [0.0, 1.0]]))).tolist()
    [[1.0, 1.0]]
    """
    check_backward(grad, q)
    return grad @ dense(q, grad)


def lora_linear_4bit_forward(
    x: np.ndarray, q: Quantized, bias: np.ndarray | None, lora_a: np.ndarray, lora_b: np.ndarray, scaling: float
) -> tuple[np.ndarray, np.ndarray]:
    """y = x W.T + b + s (x A.T) B.T with W = dequantize_4bit(q); neither W nor B A outlives the call.

    x (..., K), q.shape (N, K), bias (N,) or None, lora_a (r, K), lora_b (N, r); returns y (..., N) and
    xa = x A.T (..., r), which the backward pass needs. Raises ValueError for shapes that do not fit, TypeError unless
    all arrays have one floating dtype.

    >>> from minitorch_peft.kernels.four_bit.reference import quantize_4bit
    >>> one = np.ones((1, 1))
    >>> y, xa = lora_linear_4bit_forward(3 * one, quantize_4bit(one), None, 2 * one, 5 * one, 0.1)
    >>> y.tolist(), xa.tolist()
    ([[6.0]], [[6.0]])
    """
    check_lora_forward(x, q, bias, lora_a, lora_b)
    y = x @ dense(q, x).T
    xa = x @ lora_a.T
    y += (xa @ lora_b.T) * x.dtype.type(scaling)
    if bias is not None:
        y += bias
    return y, xa


def lora_linear_4bit_backward(
    grad: np.ndarray,
    x: np.ndarray,
    xa: np.ndarray,
    q: Quantized,
    lora_a: np.ndarray,
    lora_b: np.ndarray,
    scaling: float,
    needs: tuple[bool, bool, bool, bool] = (True, False, True, True),
) -> tuple[np.ndarray | None, ...]:
    """Gradients (dx, dbias, da, db) from grad (..., N); None where ``needs`` is False.

    With d(xa) = s g B: dx = g W + d(xa) A, dbias = sum of g over rows, dA = d(xa).T x, dB = s g.T xa.

    >>> from minitorch_peft.kernels.four_bit.reference import quantize_4bit
    >>> one = np.ones((1, 1))
    >>> dx, _, da, db = lora_linear_4bit_backward(one, 3 * one, 6 * one, quantize_4bit(one), 2 * one, 5 * one, 0.1)
    >>> dx.tolist(), da.tolist(), db.round(6).tolist()
    ([[2.0]], [[1.5]], [[0.6]])
    """
    check_lora_backward(grad, x, xa, q, lora_a, lora_b)
    s = grad.dtype.type(scaling)
    g, rows = rows_of(grad), rows_of(x)
    dxa = s * (g @ lora_b)
    return (
        (g @ dense(q, grad) + dxa @ lora_a).reshape(x.shape) if needs[0] else None,
        g.sum(0) if needs[1] else None,
        dxa.T @ rows if needs[2] else None,
        s * (g.T @ rows_of(xa)) if needs[3] else None,
    )


def dense(q: Quantized, like: np.ndarray) -> np.ndarray:
    """The weight in the dtype of ``like``; its values are those of float32."""
    return dequantize_4bit(q).astype(like.dtype, copy=False)


def check_forward(x: np.ndarray, q: Quantized, bias: np.ndarray | None) -> None:
    """Raise ValueError unless x (..., K), q.shape (N, K) and bias (N,) or None fit together; TypeError for dtypes."""
    check_weight(q)
    same_dtype("linear_4bit", x.dtype, bias=bias)
    same_shape("linear_4bit", "x", x, (*x.shape[:-1], q.shape[1]))
    if bias is not None:
        same_shape("linear_4bit", "bias", bias, q.shape[:1])


def check_backward(grad: np.ndarray, q: Quantized) -> None:
    """Raise ValueError unless grad (..., N) and q.shape (N, K) fit together; TypeError unless grad holds floats."""
    check_weight(q)
    same_dtype("linear_4bit", grad.dtype)
    same_shape("linear_4bit", "grad", grad, (*grad.shape[:-1], q.shape[0]))


def check_lora_forward(
    x: np.ndarray, q: Quantized, bias: np.ndarray | None, lora_a: np.ndarray, lora_b: np.ndarray
) -> None:
    """Raise ValueError unless lora_a (r, K) and lora_b (N, r) fit too; TypeError for dtypes."""
    check_forward(x, q, bias)
    same_dtype("linear_4bit", x.dtype, lora_a=lora_a, lora_b=lora_b)
    (n, k), rank = q.shape, lora_a.shape[0]
    same_shape("linear_4bit", "lora_a", lora_a, (rank, k))
    same_shape("linear_4bit", "lora_b", lora_b, (n, rank))


def check_lora_backward(
    grad: np.ndarray, x: np.ndarray, xa: np.ndarray, q: Quantized, lora_a: np.ndarray, lora_b: np.ndarray
) -> None:
    """Raise ValueError unless grad (..., N) and xa (..., r) fit the forward pass; TypeError for dtypes."""
    check_lora_forward(x, q, None, lora_a, lora_b)
    same_dtype("linear_4bit", x.dtype, grad=grad, xa=xa)
    same_shape("linear_4bit", "grad", grad, (*x.shape[:-1], q.shape[0]))
    same_shape("linear_4bit", "xa", xa, (*x.shape[:-1], lora_a.shape[0]))


def check_weight(q: Quantized) -> None:
    """Raise ValueError unless q is a matrix whose parts fit each other."""
    check_quantized("linear_4bit", q)
    if len(q.shape) != 2:
        raise ValueError(f"linear_4bit: q must be a matrix (N, K), got shape {q.shape}")
