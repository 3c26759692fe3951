"""AdamW (Loshchilov and Hutter 2017, arXiv 1711.05101, algorithm 2) in torch's order of operations; clipping's norm."""

from __future__ import annotations

import math

import numpy as np

from ..checks import same_dtype


def adamw_step(
    param: np.ndarray,
    grad: np.ndarray,
    exp_avg: np.ndarray,
    exp_avg_sq: np.ndarray,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
) -> None:
    """Update param, exp_avg (m) and exp_avg_sq (v), all of one shape, in place; ``step`` counts from 1.

    p <- p (1 - lr wd);  m <- m + (1 - b1) (g - m);  v <- b2 v + (1 - b2) g**2;
    p <- p - lr / (1 - b1**step) m / (sqrt(v) / sqrt(1 - b2**step) + eps).
    Raises ValueError for differing shapes or a step below 1.

    >>> p, m, v = np.array([1.0]), np.zeros(1), np.zeros(1)
    >>> adamw_step(p, np.array([2.0]), m, v, 0.1, 0.9, 0.999, 0.0, 0.0, 1)
    >>> p.round(6).tolist(), m.round(6).tolist(), v.round(6).tolist()
    ([0.9], [0.2], [0.004])
    """
    check_state(param, grad, exp_avg, exp_avg_sq, step)
    # BEGIN SOLUTION(task="2.5")
    param *= 1 - lr * weight_decay
    exp_avg += (1 - beta1) * (grad - exp_avg)
    exp_avg_sq *= beta2
    exp_avg_sq += (1 - beta2) * grad * grad
    denominator = np.sqrt(exp_avg_sq) / math.sqrt(1 - beta2**step) + eps
    param -= (lr / (1 - beta1**step)) * (exp_avg / denominator)
    # END SOLUTION


def square_norm(x: np.ndarray) -> float:
    """The sum of the squares of x (any shape), added up in float64.

    >>> square_norm(np.array([[3.0], [4.0]]))
    25.0
    """
    return float(np.square(x, dtype=np.float64).sum())


def check_state(param: np.ndarray, grad: np.ndarray, exp_avg: np.ndarray, exp_avg_sq: np.ndarray, step: int) -> None:
    """Raise ValueError unless the four arrays have one shape and the step is at least 1; TypeError for two dtypes."""
    same_dtype("adamw_step", param.dtype, grad=grad, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq)
    shapes = {
        "param": param.shape,
        "grad": grad.shape,
        "exp_avg": exp_avg.shape,
        "exp_avg_sq": exp_avg_sq.shape,
    }
    if len(set(shapes.values())) != 1:
        raise ValueError(f"adamw_step: expected four arrays of one shape, got {shapes}")
    if step < 1:
        raise ValueError(f"adamw_step: step counts from 1, got {step}")
