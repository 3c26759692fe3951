"""Linear: y = x Wᵀ + b.

``Linear``, ``TiedLinear``, ``Linear4bit`` and ``Embedding`` are the leaves that hold a weight matrix; ``Leaf`` is what
they have in common.
"""

from __future__ import annotations

import numpy as np

import minitorch_peft.functional as F
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.nn import init
from minitorch_peft.nn.embedding import Embedding
from minitorch_peft.nn.leaf import Leaf
from minitorch_peft.nn.module import Parameter


class Linear(Leaf):
    """``x`` (..., in_features) to (..., out_features); ``weight`` (out_features, in_features)."""

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, weight_init: init.Init | None = None
    ) -> None:
        self.in_features = in_features
        self.out_features = out_features
        self.weight = Parameter.empty((out_features, in_features), weight_init or init.kaiming_uniform())
        self.bias = Parameter.empty((out_features,), init.zeros) if bias else None

    def base_forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def linear_terms(self) -> tuple[Tensor, Tensor | None]:
        return self.weight, self.bias

    def dense_weight(self) -> np.ndarray:
        return self.weight.data

    def set_dense_weight(self, array: np.ndarray) -> None:
        self.weight.data = array

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}{'' if self.bias is not None else ', bias=False'}"


class TiedLinear(Leaf):
    """A head without parameters of its own: it multiplies by an embedding's weight (V, C).

    It holds the embedding *module*, outside the tree of names: an adapter that wraps the embedding does not
    change the head, while a parameter put in place of the embedding's weight is seen here too.
    """

    def __init__(self, embedding: Embedding) -> None:
        self.tied_to = (embedding,)  # in a tuple, so that the walk over sub-modules does not find it twice
        self.in_features = embedding.out_features
        self.out_features = embedding.in_features

    def base_forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.tied_to[0].weight)

    def linear_terms(self) -> tuple[Tensor, Tensor | None]:
        return self.tied_to[0].weight, None

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
