"""y_b = x_b W.T + c + s_e (x_b A_e.T) B_e.T with e the adapter of row b of the batch, and the gradient: the definition.

Many users, one batch (punica: Chen et al. 2023, arXiv 2310.18547): the frozen product is one for all rows, and only
the small products differ from row to row. In training too: each adapter gets the gradient of its own rows.
"""

from __future__ import annotations

import numpy as np

from ..checks import same_dtype, same_shape, whole_numbers
from ..linear.reference import linear_backward, linear_forward
from ..lora.reference import lora_linear_backward, lora_linear_forward


def lora_gathered_forward(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    lora_a: np.ndarray,
    lora_b: np.ndarray,
    scaling: np.ndarray,
    adapter: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """(y (B, T, N), xa (B, T, r)): each row of the batch under its own adapter; xa is zero where there is none.

    x (B, T, K), weight (N, K), bias (N,) or None, lora_a (E, r, K), lora_b (E, N, r), scaling (E,), adapter (B,)
    integers in [0, E), or -1 for a row of the frozen layer alone. Raises ValueError for shapes that do not fit,
    TypeError for an adapter that is no integer, IndexError for one outside.

    >>> one, two = np.ones((1, 1)), np.array([[[1.0]], [[2.0]]])
    >>> y, xa = lora_gathered_forward(np.ones((3, 1, 1)), one, None, two, two, np.ones(2), np.array([1, -1, 0]))
    >>> y.ravel().tolist(), xa.ravel().tolist()
    ([5.0, 1.0, 2.0], [2.0, 0.0, 1.0])
    """
    check_gather(x, weight, bias, lora_a, lora_b, scaling, adapter)
    y, xa = linear_forward(x, weight, bias), np.zeros((*x.shape[:2], lora_a.shape[1]), x.dtype)
    for e in range(len(lora_a)):
        rows = adapter == e
        y[rows], xa[rows] = lora_linear_forward(x[rows], weight, bias, lora_a[e], lora_b[e], scaling[e])
    return y, xa


def lora_gathered_backward(
    grad: np.ndarray,
    x: np.ndarray,
    xa: np.ndarray,
    weight: np.ndarray,
    lora_a: np.ndarray,
    lora_b: np.ndarray,
    scaling: np.ndarray,
    adapter: np.ndarray,
    needs: tuple[bool, bool, bool] = (True, True, True),
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """(dx (B, T, K), da (E, r, K), db (E, N, r)) from grad (B, T, N); None where ``needs`` is False.

    An adapter that no row names gets zeros. The weight is frozen.

    >>> one, two = np.ones((1, 1)), np.array([[[1.0]], [[2.0]]])
    >>> g, xa = np.ones((3, 1, 1)), np.array([[[2.0]], [[0.0]], [[1.0]]])
    >>> dx, da, db = lora_gathered_backward(g, g, xa, one, two, two, np.ones(2), np.array([1, -1, 0]))
    >>> dx.ravel().tolist(), da.ravel().tolist(), db.ravel().tolist()
    ([5.0, 1.0, 2.0], [1.0, 2.0], [1.0, 2.0])
    """
    check_gather_backward(grad, x, xa, weight, lora_a, lora_b, scaling, adapter)
    dx = linear_backward(grad, x, weight, (needs[0], False, False))[0]
    da, db = (np.zeros_like(m) if need else None for m, need in zip((lora_a, lora_b), needs[1:], strict=True))
    of_each = (needs[0], False, False, needs[1], needs[2])
    for e in range(len(lora_a)):
        rows = adapter == e
        each = lora_linear_backward(grad[rows], x[rows], xa[rows], weight, lora_a[e], lora_b[e], scaling[e], of_each)
        for whole, place, part in ((dx, rows, each[0]), (da, e, each[3]), (db, e, each[4])):
            if whole is not None:
                whole[place] = part
    return dx, da, db


def check_gather(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    lora_a: np.ndarray,
    lora_b: np.ndarray,
    scaling: np.ndarray,
    adapter: np.ndarray,
) -> None:
    """Raise unless the arguments of ``lora_gathered_forward`` fit together, and every adapter is there."""
    if x.ndim != 3 or lora_a.ndim != 3:
        raise ValueError(f"lora_gathered: x must be (B, T, K), lora_a (E, r, K); got {x.shape} and {lora_a.shape}")
    (n, k), (count, rank) = weight.shape, lora_a.shape[:2]
    same_shape("lora_gathered", "x", x, (*x.shape[:2], k))
    same_shape("lora_gathered", "lora_a", lora_a, (count, rank, k))
    same_shape("lora_gathered", "lora_b", lora_b, (count, n, rank))
    same_shape("lora_gathered", "scaling", scaling, (count,))
    same_shape("lora_gathered", "adapter", adapter, x.shape[:1])
    if bias is not None:
        same_shape("lora_gathered", "bias", bias, (n,))
    same_dtype("lora_gathered", x.dtype, weight=weight, bias=bias, lora_a=lora_a, lora_b=lora_b, scaling=scaling)
    whole_numbers("lora_gathered", "adapter", adapter)
    if adapter.size and (adapter.min() < -1 or adapter.max() >= count):
        got = f"{adapter.min()} to {adapter.max()}"
        raise IndexError(f"lora_gathered: adapter must lie in [0, {count}), or be -1 for none; got {got}")


def check_gather_backward(
    grad: np.ndarray, x: np.ndarray, xa: np.ndarray, weight: np.ndarray, lora_a: np.ndarray, lora_b: np.ndarray,
    scaling: np.ndarray, adapter: np.ndarray,
) -> None:  # fmt: skip
    """Raise unless grad (B, T, N) and xa (B, T, r) fit the arguments of the forward pass."""
    check_gather(x, weight, None, lora_a, lora_b, scaling, adapter)
    same_shape("lora_gathered", "grad", grad, (*x.shape[:2], weight.shape[0]))
    same_shape("lora_gathered", "xa", xa, (*x.shape[:2], lora_a.shape[1]))
    same_dtype("lora_gathered", x.dtype, grad=grad, xa=xa)
