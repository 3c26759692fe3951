"""AdamW that keeps its two moments in eight bits: 2.03 bytes a parameter instead of 8."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from minitorch_peft import kernels
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.optim.adamw import AdamW
from minitorch_peft.optim.optimizer import Params

BLOCKSIZE = 256


class AdamW8bit(AdamW):
    """AdamW with block-wise 8-bit moments (Dettmers et al. 2022, arXiv 2110.02861), as in ``bitsandbytes``.

    Each block of 256 elements has a scale of its own, so one outlier costs 255 others their precision, not a whole
    matrix; the code (the dynamic map) has small values too, as moments span many decades. Parameters of fewer than
    ``min_8bit_size`` elements (biases, gains) save little and matter much: they keep moments of their own dtype.

    What is below 1.6e-7 of the largest in its block becomes 0. Where that is exp_avg_sq but not exp_avg, an element
    without a gradient moves by lr · m / ε: too far. So a parameter whose rows have gradients of very different sizes
    (an embedding, where words are rare or frequent) is better left to ``AdamW``.

    >>> import minitorch_peft as mp
    >>> p = mp.tensor([[1.0] * 64] * 64, requires_grad=True)
    >>> optimizer = AdamW8bit({"p": p}, lr=0.1)
    >>> (p * p).sum().backward()
    >>> optimizer.step(); p.data[0, 0].round(3).item()
    0.8989999890327454
    >>> {key: (array.dtype.name, array.size) for key, array in optimizer.state_dict().items() if key != "step.p"}
    {'exp_avg.p': ('uint8', 4096), 'exp_avg_absmax.p': ('float32', 16), 'exp_avg_sq.p': ..., 'exp_avg_sq_absmax.p': ...}
    """

    slots = ("exp_avg", "exp_avg_absmax", "exp_avg_sq", "exp_avg_sq_absmax")

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        min_8bit_size: int = 4096,
    ) -> None:
        self.min_8bit_size = min_8bit_size
        super().__init__(params, lr, betas, eps, weight_decay)

    def layout(self, p: Tensor) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        if p.data.size < self.min_8bit_size:
            return dict.fromkeys(AdamW.slots, (p.shape, p.dtype))
        codes, absmax = (p.shape, np.dtype(np.uint8)), ((-(-p.data.size // BLOCKSIZE),), np.dtype(np.float32))
        return dict(zip(self.slots, (codes, absmax) * 2, strict=True))

    def update(self, p: np.ndarray, g: np.ndarray, state: dict[str, Any], lr: float, group: Mapping[str, Any]) -> None:
        if "exp_avg_absmax" not in state:
            return super().update(p, g, state, lr, group)
        step_kernel = kernels.get("adamw_8bit_step", p.dtype)
        step_kernel(
            p, g, *(state[slot] for slot in self.slots),
            lr, *group["betas"], group["eps"], group["weight_decay"], state["step"],
        )  # fmt: skip
