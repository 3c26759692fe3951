"""Embedding: rows of a table, chosen by integer ids."""

from __future__ import annotations

import numpy as np

import minitorch_peft.functional as F
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.nn import init
from minitorch_peft.nn.leaf import Leaf
from minitorch_peft.nn.module import Parameter


class Embedding(Leaf):
    """``ids`` (...) of integers below in_features to (..., out_features); ``weight`` (in_features, out_features).

    Seen as a linear map of one-hot vectors, its dense weight (out, in) is ``weight`` transposed.
    """

    takes_ids = True

    def __init__(self, num_embeddings: int, embedding_dim: int, weight_init: init.Init | None = None) -> None:
        self.in_features = num_embeddings
        self.out_features = embedding_dim
        self.weight = Parameter.empty((num_embeddings, embedding_dim), weight_init or init.normal(1.0))

    def base_forward(self, ids: Tensor | np.ndarray) -> Tensor:
        return F.embedding(ids, self.weight)

    def project(self, ids: Tensor | np.ndarray, rows: Tensor) -> Tensor:
        """The columns of ``rows`` (r, in_features) that ``ids`` (...) choose, as (..., r)."""
        return F.embedding(ids, rows.transpose(0, 1))

    def dense_weight(self) -> np.ndarray:
        return self.weight.data.T

    def set_dense_weight(self, array: np.ndarray) -> None:
        self.weight.data = np.ascontiguousarray(array.T)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}"
