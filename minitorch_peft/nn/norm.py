"""Layer norm (Ba et al. 2016) and root-mean-square norm (Zhang and Sennrich 2019) over the last axis."""

from __future__ import annotations

import minitorch_peft.functional as F
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.nn import init
from minitorch_peft.nn.context import ForwardContext
from minitorch_peft.nn.module import Module, Parameter


class LayerNorm(Module):
    """(x - mean) / sqrt(var + eps) * weight + bias, for ``x`` (..., C)."""

    def __init__(self, features: int, eps: float = 1e-5) -> None:
        self.eps = eps
        self.weight = Parameter.empty((features,), init.ones)
        self.bias = Parameter.empty((features,), init.zeros)

    def forward(self, x: Tensor, context: ForwardContext | None = None) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps:g}"


class RMSNorm(Module):
    """x / sqrt(mean(x²) + eps) * weight, for ``x`` (..., C)."""

    def __init__(self, features: int, eps: float = 1e-6) -> None:
        self.eps = eps
        self.weight = Parameter.empty((features,), init.ones)

    def forward(self, x: Tensor, context: ForwardContext | None = None) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps:g}"
