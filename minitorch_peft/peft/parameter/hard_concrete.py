"""The hard-concrete gate: a number from 0 to 1 that is often exactly 0 or 1 and still has a gradient.

    s = sigmoid(ε + alpha),   z = min(1, max(0, s (r - l) + l)),   ε = log u - log (1 - u),   u uniform

(Louizos et al. 2018, eq. 10 and 11, at temperature 1; Guo et al. 2021, eq. 4). As l < 0 and r > 1, both ends have a
probability of their own, and what an L0 penalty counts is known in closed form:

    P(z = 0) = sigmoid(log(-l / r) - alpha)
    P(z = 1) = sigmoid(alpha - log((1 - l) / (r - 1)))
    E‖z‖₀ = P(z > 0) = sigmoid(alpha - log(-l / r))
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import minitorch_peft.functional as F
from minitorch_peft.autograd.function import Function
from minitorch_peft.autograd.random import counter_seed
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.kernels import dispatch

LEFT, RIGHT = -1.5, 1.5
"""l and r, between which s is stretched."""


def logistic(key: tuple[Any, ...], shape: tuple[int, ...]) -> np.ndarray:
    """ε, float64: the same ``key`` (seed, site, step) gives the same numbers.

    u is the middle of one of 2²⁴ equal steps, so that neither end of (0, 1) is drawn.
    """
    steps = dispatch.get("philox_uniform", np.dtype(np.float32))(counter_seed(*key), 0, shape)
    u = steps.astype(np.float64) + 2.0**-25
    return np.log(u) - np.log1p(-u)


def hard_concrete(alpha: np.ndarray, noise: np.ndarray | float = 0.0) -> np.ndarray:
    """z of ``alpha``; without ``noise`` the gate of evaluation, u = 1/2.

    >>> hard_concrete(np.array([-5.0, 0.0, 0.5, 5.0])).round(3).tolist()
    [0.0, 0.0, 0.367, 1.0]
    """
    # BEGIN SOLUTION(task="5.7a")
    s = 0.5 + 0.5 * np.tanh((alpha + noise) / 2)
    return np.clip(s * (RIGHT - LEFT) + LEFT, 0, 1)
    # END SOLUTION


class HardConcrete(Function):
    """z of alpha, the noise being given: dalpha = G (r - l) s (1 - s) where 0 < z < 1, and 0 where z is held at an end.

    Between the ends s is read off z again, s = (z - l) / (r - l), so that only z is kept.
    """

    @staticmethod
    def forward(ctx: Any, alpha: np.ndarray, *, noise: np.ndarray | float = 0.0) -> np.ndarray:
        z = hard_concrete(alpha, noise)
        ctx.save_for_backward(z)
        return z

    @staticmethod
    def backward(ctx: Any, G: np.ndarray) -> np.ndarray:
        (z,) = ctx.saved
        # BEGIN SOLUTION(task="5.7b")
        s = (z - LEFT) / (RIGHT - LEFT)
        return G * np.where((z > 0) & (z < 1), (RIGHT - LEFT) * s * (1 - s), 0).astype(z.dtype)
        # END SOLUTION


def gate(alpha: Tensor, key: tuple[Any, ...] | None = None) -> Tensor:
    """z of ``alpha``, with the noise of ``key``; None is the gate of evaluation."""
    noise = 0.0 if key is None else logistic(key, alpha.shape).astype(alpha.dtype)
    return HardConcrete.apply(alpha, noise=noise)


def open_probability(alpha: Tensor) -> Tensor:
    """P(z > 0), each gate's share of the expected L0 norm."""
    # BEGIN SOLUTION(task="5.7c")
    return F.sigmoid(alpha - math.log(-LEFT / RIGHT))
    # END SOLUTION
