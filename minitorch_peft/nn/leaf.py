"""What the leaves that hold a weight matrix have in common, so that a method needs no test for types."""

from __future__ import annotations

from typing import Any

import numpy as np

import minitorch_peft.functional as F
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.kernels.four_bit.layout import Quantized
from minitorch_peft.nn.context import ForwardContext
from minitorch_peft.nn.module import Module


class Leaf(Module):
    """A layer with one weight matrix W (out_features, in_features), however it is stored.

    ``takes_ids``: its input is integer ids, rows of the identity to multiply by.
    """

    takes_ids = False
    in_features: int
    out_features: int

    def forward(self, x: Any, context: ForwardContext | None = None) -> Tensor:
        return self.base_forward(x)

    def base_forward(self, x: Any) -> Tensor:
        raise NotImplementedError

    def linear_terms(self) -> tuple[Tensor, Tensor | None] | None:
        """Weight (out, in) and bias (out,) where the layer is x Wᵀ + b of two tensors; else None."""
        return None

    def packed_terms(self) -> tuple[Quantized, Tensor | None] | None:
        """Weight (out, in) in four bits and bias (out,) where the layer is x Wᵀ + b of these; else None."""
        return None

    def project(self, x: Any, rows: Tensor) -> Tensor:
        """``x`` through another weight, ``rows`` (r, in_features), to (..., r)."""
        return F.linear(x, rows)

    def low_rank(self, x: Any, A: Tensor, B: Tensor, s: float) -> Tensor:
        """The layer with the weight W + s B A, without forming that; A (r, in_features), B (out_features, r)."""
        return self.base_forward(x) + F.linear(self.project(x, A), B) * s

    def dense_weight(self) -> np.ndarray:
        """The weight as a dense array (out_features, in_features)."""
        raise NotImplementedError

    def set_dense_weight(self, array: np.ndarray) -> None:
        """Put ``array`` (out_features, in_features) in place of the weight's."""
        raise NotImplementedError

    def dense(self, dtype: Any) -> Leaf:
        """The layer with a weight that can be set: itself, or where it is packed a Linear of ``dtype``."""
        return self

    def repacked(self, dense: Leaf) -> Leaf:
        """``dense`` stored as this layer is: the inverse of :meth:`dense`, but for the loss of packing."""
        return dense
