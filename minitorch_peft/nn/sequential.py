"""Modules one after the other."""

from __future__ import annotations

from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.nn.context import ForwardContext
from minitorch_peft.nn.module import Module, ModuleList


class Sequential(ModuleList):
    """``modules[-1](... modules[0](x))``; they are named "0", "1", ..., as in ``torch.nn.Sequential``.

    >>> from minitorch_peft.nn import Activation, Linear
    >>> [name for name, _ in Sequential(Linear(3, 2), Activation("tanh"), Linear(2, 1)).named_parameters()]
    ['0.weight', '0.bias', '2.weight', '2.bias']
    """

    def __init__(self, *modules: Module) -> None:
        super().__init__(list(modules))

    def forward(self, x: Tensor, context: ForwardContext | None = None) -> Tensor:
        for module in self:
            x = module(x, context)
        return x
