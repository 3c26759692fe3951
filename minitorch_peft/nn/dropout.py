"""Dropout whose mask is a function of (seed, site, step), so that a resumed run draws it again."""

from __future__ import annotations

import minitorch_peft.functional as F
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.nn.context import ForwardContext
from minitorch_peft.nn.module import Module


class Dropout(Module):
    """In training, zero each element with probability ``p`` and scale the rest by 1/(1-p) (Srivastava 2014).

    ``site`` is the name of this place in the model; two places never share a mask.
    """

    def __init__(self, p: float, site: str) -> None:
        if not 0 <= p < 1:
            raise ValueError(f"dropout probability must be in [0, 1), got {p}")
        self.p = p
        self.site = site

    def forward(self, x: Tensor, context: ForwardContext | None = None) -> Tensor:
        if not self.training or self.p == 0:
            return x
        return F.dropout(x, self.p, training=True, key=self.key(context))

    def key(self, context: ForwardContext | None) -> tuple[int, str, int]:
        if context is None:
            raise ValueError(f"dropout at {self.site!r} in training needs the pass's context: its seed and step")
        return (context.seed, self.site, context.step)

    def extra_repr(self) -> str:
        return f"p={self.p}"
