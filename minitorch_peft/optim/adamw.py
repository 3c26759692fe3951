"""AdamW: Adam with decoupled weight decay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from minitorch_peft import kernels
from minitorch_peft.optim.optimizer import Optimizer, Params


class AdamW(Optimizer):
    """Adam (Kingma & Ba 2015, alg. 1) with decoupled weight decay (Loshchilov & Hutter 2019, alg. 2).

    At step t: p ← (1 - lr λ) p; m ← β₁ m + (1 - β₁) g; v ← β₂ v + (1 - β₂) g²;
    p ← p - lr / (1 - β₁ᵗ) · m / (√v / √(1 - β₂ᵗ) + ε). As in ``torch``, the decay is multiplied by the rate.

    >>> import minitorch_peft as mp
    >>> p = mp.tensor([1.0, -2.0], requires_grad=True)
    >>> optimizer = AdamW({"p": p}, lr=0.1)
    >>> (p * p).sum().backward()
    >>> optimizer.step(); p
    tensor([ 0.899, -1.898], requires_grad=True)
    """

    slots: tuple[str, ...] = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def check_group(self, group: Mapping[str, Any]) -> None:
        super().check_group(group)
        if not all(0 <= beta < 1 for beta in group["betas"]):
            raise ValueError(f"betas must be in [0, 1), got {group['betas']}")
        if not group["eps"] >= 0:
            raise ValueError(f"eps must be at least 0, got {group['eps']}")

    def update(self, p: np.ndarray, g: np.ndarray, state: dict[str, Any], lr: float, group: Mapping[str, Any]) -> None:
        step_kernel = kernels.get("adamw_step", p.dtype)
        step_kernel(
            p, g, state["exp_avg"], state["exp_avg_sq"],
            lr, *group["betas"], group["eps"], group["weight_decay"], state["step"],
        )  # fmt: skip
