"""Stochastic gradient descent, with momentum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from minitorch_peft.optim.optimizer import Optimizer, Params


class SGD(Optimizer):
    """p ← p - lr · g. A momentum μ puts b ← μ b + (1 - τ) g in place of g, Nesterov's form g + μ b.

    As in ``torch`` (Sutskever et al. 2013, eq. 3-4, with the rate outside the buffer): the first buffer
    is the first gradient whatever the dampening τ, and a weight decay λ adds λ p to the gradient.

    >>> import minitorch_peft as mp
    >>> p = mp.tensor([1.0, -2.0], requires_grad=True)
    >>> (p * p).sum().backward()
    >>> SGD({"p": p}, lr=0.1).step(); p
    tensor([ 0.8, -1.6], requires_grad=True)
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("nesterov needs a momentum above 0 and a dampening of 0")
        self.slots = ("momentum_buffer",) if momentum else ()
        defaults = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "nesterov": nesterov})

    def check_group(self, group: Mapping[str, Any]) -> None:
        super().check_group(group)
        if not group["momentum"] >= 0:
            raise ValueError(f"momentum must be at least 0, got {group['momentum']}")
        if group["momentum"] and not self.slots:
            raise ValueError("a group with momentum needs an optimizer with momentum, which decides what is kept")

    def update(self, p: np.ndarray, g: np.ndarray, state: dict[str, Any], lr: float, group: Mapping[str, Any]) -> None:
        if group["weight_decay"]:
            g = g + group["weight_decay"] * p
        if group["momentum"]:
            buffer = state["momentum_buffer"]
            buffer *= group["momentum"]
            buffer += g if state["step"] == 1 else (1 - group["dampening"]) * g
            g = g + group["momentum"] * buffer if group["nesterov"] else buffer
        p -= lr * g
