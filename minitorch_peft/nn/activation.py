"""Activations as modules, under the names that Hugging Face configs use."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import minitorch_peft.functional as F
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.nn.context import ForwardContext
from minitorch_peft.nn.module import Module

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "tanh": F.tanh,
}


class Activation(Module):
    """One of ``ACTIVATIONS``, element by element."""

    def __init__(self, name: str) -> None:
        if name not in ACTIVATIONS:
            raise ValueError(f"unknown activation {name!r}; known: {', '.join(ACTIVATIONS)}")
        self.name = name
        self.function = ACTIVATIONS[name]

    def forward(self, x: Tensor, context: ForwardContext | None = None) -> Tensor:
        return self.function(x)

    def extra_repr(self) -> str:
        return self.name
