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
        self.bias = bias
        self.directions = ("", "_reverse") if bidirectional else ("",)
        start = init.uniform(1 / math.sqrt(hidden_size))
        for layer in range(num_layers):
            width = input_size if layer == 0 else hidden_size * len(self.directions)
            for direction in self.directions:
                shapes = {"weight_ih": (4 * hidden_size, width), "weight_hh": (4 * hidden_size, hidden_size)}
                if bias:
                    shapes |= {"bias_ih": (4 * hidden_size,), "bias_hh": (4 * hidden_size,)}
                for name, shape in shapes.items():
                    setattr(self, f"{name}_l{layer}{direction}", Parameter.empty(shape, start))
            if layer < num_layers - 1:
                setattr(self, f"dropout_l{layer}", Dropout(dropout, f"{site}.l{layer}"))

    def forward(self, x: Tensor, context: ForwardContext | None = None) -> Tensor:
        for layer in range(self.num_layers):
            ways = [F.lstm_layer(x, *self.terms(layer, way), reverse=way != "") for way in self.directions]
            x = ways[0] if len(ways) == 1 else F.cat(ways, dim=2)
            if layer < self.num_layers - 1:
                x = self.get(f"dropout_l{layer}")(x, context)
        return x

    def terms(self, layer: int, direction: str) -> list[Parameter]:
        """The weights, and biases where there are any, of one layer and direction."""
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh") if self.bias else ("weight_ih", "weight_hh")
        return [self.get(f"{name}_l{layer}{direction}") for name in names]

    def extra_repr(self) -> str:
        ways = ", bidirectional=True" if len(self.directions) == 2 else ""
        return f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}{ways}"
