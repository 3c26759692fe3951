"""LSTM: layers of a recurrence, in one direction or both."""

from __future__ import annotations

import math

import minitorch_peft.functional as F
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.nn import init
from minitorch_peft.nn.context import ForwardContext
from minitorch_peft.nn.dropout import Dropout
from minitorch_peft.nn.module import Module, Parameter


class LSTM(Module):
    """``x`` (B, T, input_size) to the hidden states (B, T, D · hidden_size) of the last layer, D directions.

    Parameters, their names, their order of gates and their start U(±1/√hidden_size) are those of ``torch.nn.LSTM``
    (there with ``batch_first=True``): for layer l ``weight_ih_l{l}`` (4H, I), ``weight_hh_l{l}`` (4H, H),
    ``bias_ih_l{l}`` and ``bias_hh_l{l}`` (4H), and with ``_reverse`` at the end for the way back. A later layer reads
    both directions of the one before. ``dropout`` is of the output of every layer but the last; ``site`` names it.

    >>> import numpy as np
    >>> lstm = LSTM(3, 2, bidirectional=True)
    >>> lstm(Tensor(np.zeros((1, 5, 3), np.float32))).shape
    (1, 5, 4)
    """

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True, dropout: float = 0.0,
        bidirectional: bool = False, site: str = "lstm",
    ) -> None:  # fmt: skip
        if min(input_size, hidden_size, num_layers) < 1:
            sizes = f"{input_size}, {hidden_size} and {num_layers}"
            raise ValueError(f"input_size, hidden_size and num_layers must be at least 1, got {sizes}")
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.directions = ("", "_reverse") if bidirectional else ("",)
        start = init.uniform(1 / math.sqrt(hidden_size))
        for layer in range(num_layers):
            width = input_size if layer == 0 else hidden_size * len(self.directions)
            for direction in self.directions:
                for name, *columns in (("weight_ih", width), ("weight_hh", hidden_size), ("bias_ih",), ("bias_hh",)):
                    parameter = Parameter.empty((4 * hidden_size, *columns), start) if columns or bias else None
                    setattr(self, f"{name}_l{layer}{direction}", parameter)
            if layer < num_layers - 1:
                setattr(self, f"dropout_l{layer}", Dropout(dropout, f"{site}.l{layer}"))

    def forward(self, x: Tensor, context: ForwardContext | None = None) -> Tensor:
        for layer in range(self.num_layers):
            ways = [self.one_way(x, layer, direction) for direction in self.directions]
            x = ways[0] if len(ways) == 1 else F.cat(ways, dim=2)
            if layer < self.num_layers - 1:
                x = self.get(f"dropout_l{layer}")(x, context)
        return x

    def one_way(self, x: Tensor, layer: int, direction: str) -> Tensor:
        """What one direction of a layer makes of its input."""
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        W, U, b, d = (self.get(f"{name}_l{layer}{direction}") for name in names)
        return F.lstm_layer(x, W, U, b, d, reverse=direction != "")

    def extra_repr(self) -> str:
        ways = ", bidirectional=True" if len(self.directions) == 2 else ""
        return f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}{ways}"
