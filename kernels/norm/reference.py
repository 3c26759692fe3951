"""Layer norm (Ba et al. 2016, arXiv 1607.06450) and RMS norm (Zhang and Sennrich 2019, arXiv 1910.07467)."""

from __future__ import annotations

import numpy as np

from ..checks import same_dtype, same_shape


def layer_norm_forward(
    x: np.ndarray, weight: np.ndarray | None, bias: np.ndarray | None, eps: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """y = (x - mean) * rstd * weight + bias over the last axis, with rstd = 1 / sqrt(variance + eps).

    x (..., C), weight and bias (C,) or None; returns y (..., C), mean (...,) and rstd (...,).
    Raises ValueError for other shapes.

    >>> y, mean, rstd = layer_norm_forward(np.array([[1.0, 3.0]]), None, None, 0.0)
    >>> y.tolist(), mean.tolist(), rstd.tolist()
    ([[-1.0, 1.0]], [2.0], [1.0])
    """
    check_shapes("layer_norm", x, {"weight": weight, "bias": bias})
    # BEGIN SOLUTION(task="1.4a")
    mean = x.mean(-1, keepdims=True)
    centred = x - mean
    rstd = 1 / np.sqrt((centred * centred).mean(-1, keepdims=True) + x.dtype.type(eps))
    return _affine(centred * rstd, weight, bias), mean[..., 0], rstd[..., 0]
    # END SOLUTION


def layer_norm_backward(
    grad: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray | None,
    mean: np.ndarray,
    rstd: np.ndarray,
    needs: tuple[bool, bool, bool] = (True, True, True),
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """Gradients (dx, dweight, dbias) from grad (..., C); None where ``needs`` is False.

    With h = (x - mean) rstd and d = grad weight: dx = rstd (d - mean(d) - h mean(d h)), as moving along the mean or
    along h itself changes nothing; dweight = sum grad h, dbias = sum grad.

    >>> x = np.array([[1.0, 3.0]])
    >>> layer_norm_backward(np.array([[1.0, 0.0]]), x, None, np.array([2.0]), np.array([1.0]))[2].tolist()
    [1.0, 0.0]
    """
    check_shapes("layer_norm", x, {"weight": weight}, grad, {"mean": mean, "rstd": rstd})
    # BEGIN SOLUTION(task="1.4b")
    h = (x - mean[..., None]) * rstd[..., None]
    dx = None
    if needs[0]:
        d = grad if weight is None else grad * weight
        dx = rstd[..., None] * (d - d.mean(-1, keepdims=True) - h * (d * h).mean(-1, keepdims=True))
    return dx, _sum_rows(grad * h) if needs[1] else None, _sum_rows(grad) if needs[2] else None
    # END SOLUTION


def rms_norm_forward(x: np.ndarray, weight: np.ndarray | None, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """y = x * rstd * weight over the last axis, with rstd = 1 / sqrt(mean(x**2) + eps).

    x (..., C), weight (C,) or None; returns y (..., C) and rstd (...,). Raises ValueError for other shapes.

    >>> y, rstd = rms_norm_forward(np.array([[3.0, -3.0]]), None, 0.0)
    >>> y.round(6).tolist()
    [[1.0, -1.0]]
    """
    check_shapes("rms_norm", x, {"weight": weight})
    # BEGIN SOLUTION(task="1.4c")
    rstd = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + x.dtype.type(eps))
    return _affine(x * rstd, weight, None), rstd[..., 0]
    # END SOLUTION


def rms_norm_backward(
    grad: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray | None,
    rstd: np.ndarray,
    needs: tuple[bool, bool] = (True, True),
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Gradients (dx, dweight) from grad (..., C); None where ``needs`` is False.

    As for layer norm without the mean: with h = x rstd and d = grad weight, dx = rstd (d - h mean(d h)).

    >>> dx, dw = rms_norm_backward(np.array([[1.0, 1.0]]), np.array([[2.0, 2.0]]), None, np.array([0.5]))
    >>> dx.tolist(), dw.tolist()
    ([[0.0, 0.0]], [1.0, 1.0])
    """
    check_shapes("rms_norm", x, {"weight": weight}, grad, {"rstd": rstd})
    # BEGIN SOLUTION(task="1.4d")
    h = x * rstd[..., None]
    dx = None
    if needs[0]:
        d = grad if weight is None else grad * weight
        dx = rstd[..., None] * (d - h * (d * h).mean(-1, keepdims=True))
    return dx, _sum_rows(grad * h) if needs[1] else None
    # END SOLUTION


def _affine(h: np.ndarray, weight: np.ndarray | None, bias: np.ndarray | None) -> np.ndarray:
    if weight is not None:
        h = h * weight
    return h if bias is None else h + bias


def _sum_rows(x: np.ndarray) -> np.ndarray:
    return x.sum(axis=tuple(range(x.ndim - 1)))


def check_shapes(
    kernel: str,
    x: np.ndarray,
    parameters: dict[str, np.ndarray | None],
    grad: np.ndarray | None = None,
    statistics: dict[str, np.ndarray] | None = None,
) -> None:
    """Raise ValueError unless, for x (..., C), parameters are (C,) or None, grad (..., C) and statistics (...,).

    TypeError unless all have the dtype of x.
    """
    same_dtype(kernel, x.dtype, grad=grad, **parameters, **(statistics or {}))
    for name, array in parameters.items():
        if array is not None:
            same_shape(kernel, name, array, x.shape[-1:])
    if grad is not None:
        same_shape(kernel, "grad", grad, x.shape)
    for name, array in (statistics or {}).items():
        same_shape(kernel, name, array, x.shape[:-1])
