"""y = x W.T + b + s (drop(x) A.T) B.T and its gradient: dropout on the low-rank path alone, as in ``peft``.

drop(x) = m x / (1 - p) elementwise, with m drawn from a counter (``philox``): forward and backward draw the same mask
and neither stores it. A mask of bytes would take a quarter of x's memory from forward to backward.
"""

from __future__ import annotations

import numpy as np

from ..checks import probability
from ..linear.reference import linear_backward, linear_forward
from ..lora.reference import check_backward, check_forward, lora_linear_backward, lora_linear_forward
from ..philox.reference import counter_start, dropped


def lora_dropout_forward(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    lora_a: np.ndarray,
    lora_b: np.ndarray,
    scaling: float,
    p: float,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """y = x W.T + b + s (drop(x) A.T) B.T; element i of the flattened x is kept where ``philox_uniform`` i is >= p.

    x (..., K), weight (N, K), bias (N,) or None, lora_a (r, K), lora_b (N, r), p in [0, 1), seed in [0, 2**64);
    returns y (..., N) and xa = drop(x) A.T (..., r). Raises ValueError for others.

    >>> one = np.ones((1, 1))
    >>> y, xa = lora_dropout_forward(np.ones((3, 1)), one, None, one, one, 0.5, 0.5, seed=1)
    >>> y.ravel().tolist(), xa.ravel().tolist()
    ([1.0, 2.0, 1.0], [0.0, 2.0, 0.0])
    """
    check_dropout(x, weight, bias, lora_a, lora_b, p, seed)
    frozen_zero = np.zeros_like(weight)  # the low-rank path is a LoRA layer whose frozen weight is zero
    low, xa = lora_linear_forward(dropped(x, p, seed), frozen_zero, None, lora_a, lora_b, scaling)
    return linear_forward(x, weight, bias) + low, xa


def lora_dropout_backward(
    grad: np.ndarray,
    x: np.ndarray,
    xa: np.ndarray,
    weight: np.ndarray,
    lora_a: np.ndarray,
    lora_b: np.ndarray,
    scaling: float,
    p: float,
    seed: int,
    needs: tuple[bool, bool, bool, bool, bool] = (True, False, False, True, True),
) -> tuple[np.ndarray | None, ...]:
    """Gradients (dx, dweight, dbias, da, db) from grad (..., N); None where ``needs`` is False.

    The gradient of drop is drop itself: what comes back along the low-rank path passes through the same mask.

    >>> one = np.ones((1, 1))
    >>> x, xa = np.ones((3, 1)), np.array([[0.0], [2.0], [0.0]])
    >>> dx, _, _, da, db = lora_dropout_backward(np.ones((3, 1)), x, xa, one, one, one, 0.5, 0.5, seed=1)
    >>> dx.ravel().tolist(), da.tolist(), db.tolist()
    ([1.0, 2.0, 1.0], [[1.0]], [[1.0]])
    """
    check_dropout_backward(grad, x, xa, weight, lora_a, lora_b, p, seed)
    frozen_zero = np.zeros_like(weight)
    of_low = (needs[0], False, False, needs[3], needs[4])
    dlow, _, _, da, db = lora_linear_backward(
        grad, dropped(x, p, seed), xa, frozen_zero, lora_a, lora_b, scaling, of_low
    )
    dx, dweight, dbias = linear_backward(grad, x, weight, needs[:3])
    return dx if dx is None or dlow is None else dx + dropped(dlow, p, seed), dweight, dbias, da, db


def check_dropout(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, lora_a: np.ndarray, lora_b: np.ndarray, p: float,
    seed: int,
) -> None:  # fmt: skip
    """Raise unless the arrays fit together as in ``lora``, p lies in [0, 1) and the seed in [0, 2**64)."""
    check_forward(x, weight, bias, lora_a, lora_b)
    probability("lora_dropout", "p", p)
    counter_start("lora_dropout", seed)


def check_dropout_backward(
    grad: np.ndarray, x: np.ndarray, xa: np.ndarray, weight: np.ndarray, lora_a: np.ndarray, lora_b: np.ndarray,
    p: float, seed: int,
) -> None:  # fmt: skip
    """Raise unless grad (..., N) and xa (..., r) fit the arguments of the forward pass."""
    check_backward(grad, x, xa, weight, lora_a, lora_b)
    probability("lora_dropout", "p", p)
    counter_start("lora_dropout", seed)
