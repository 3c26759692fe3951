"""Linear: y = x Wᵀ + b.

``Linear``, ``TiedLinear`` and ``Embedding`` are the leaves that hold a weight matrix. They share one small interface,
so that a method needs no test for types: ``in_features``, ``out_features``, ``takes_ids``, ``base_forward(x)``,
``linear_terms()``, ``project(x, rows)``, ``dense_weight()`` and ``set_dense_weight(array)``.
"""

from __future__ import annotations

import numpy as np

import minitorch_peft.functional as F
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.nn import init
from minitorch_peft.nn.context import ForwardContext
from minitorch_peft.nn.embedding import Embedding
from minitorch_peft.nn.module import Module, Parameter


class Linear(Module):
    """``x`` (..., in_features) to (..., out_features); ``weight`` (out_features, in_features)."""

    takes_ids = False

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, weight_init: init.Init | None = None
    ) -> None:
        self.in_features = in_features
        self.out_features = out_features
        self.weight = Parameter.empty((out_features, in_features), weight_init or init.kaiming_uniform())
        self.bias = Parameter.empty((out_features,), init.zeros) if bias else None

    def forward(self, x: Tensor, context: ForwardContext | None = None) -> Tensor:
        return self.base_forward(x)

    def base_forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def linear_terms(self) -> tuple[Tensor, Tensor | None]:
        """Weight (out, in) and bias (out,) of a layer that is x Wᵀ + b; None from a layer of another form."""
        return self.weight, self.bias

    def project(self, x: Tensor, rows: Tensor) -> Tensor:
        """``x`` through another weight, ``rows`` (r, in_features), to (..., r)."""
        return F.linear(x, rows)

    def dense_weight(self) -> np.ndarray:
        """The weight as a dense array (out_features, in_features)."""
        return self.weight.data

    def set_dense_weight(self, array: np.ndarray) -> None:
        """Put ``array`` (out_features, in_features) in place of the weight's."""
        self.weight.data = array

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}{'' if self.bias is not None else ', bias=False'}"


class TiedLinear(Module):
    """A head without parameters of its own: it multiplies by an embedding's weight (V, C).

    It holds the embedding *module*, outside the tree of names: an adapter that wraps the embedding does not
    change the head, while a parameter put in place of the embedding's weight is seen here too.
    """

    takes_ids = False

    def __init__(self, embedding: Embedding) -> None:
        self.tied_to = (embedding,)  # in a tuple, so that the walk over sub-modules does not find it twice
        self.in_features = embedding.out_features
        self.out_features = embedding.in_features

    def forward(self, x: Tensor, context: ForwardContext | None = None) -> Tensor:
        return self.base_forward(x)

    def base_forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.tied_to[0].weight)

    def linear_terms(self) -> tuple[Tensor, Tensor | None]:
        return self.tied_to[0].weight, None

    def project(self, x: Tensor, rows: Tensor) -> Tensor:
        return F.linear(x, rows)

    def dense_weight(self) -> np.ndarray:
        return self.tied_to[0].weight.data

    def set_dense_weight(self, array: np.ndarray) -> None:
        raise RuntimeError("this head shares the embedding's weight: untie it first (model.untie())")

    def untied(self) -> Linear:
        """A Linear with a copy of the shared weight."""
        head = Linear(self.in_features, self.out_features, bias=False)
        head.weight.data = self.dense_weight().copy()
        head.weight.requires_grad_(self.tied_to[0].weight.requires_grad)
        return head

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, tied"
