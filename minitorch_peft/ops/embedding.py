"""Rows of a table."""

from __future__ import annotations

from typing import Any

import numpy as np

from minitorch_peft.autograd.function import Function
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.ops.promotion import as_tensor


class Embedding(Function):
    """y = W[ids]; a row of W gets the sum of the gradients of its uses."""

    @staticmethod
    def forward(ctx: Any, w: np.ndarray, *, ids: np.ndarray) -> np.ndarray:
        ctx.shape, ctx.ids = w.shape, ids
        return w[ids]

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        dw = np.zeros(ctx.shape, g.dtype)
        np.add.at(dw, ctx.ids.reshape(-1), g.reshape(-1, ctx.shape[1]))
        return dw


def embedding(input: Any, weight: Tensor) -> Tensor:
    """The rows of weight (V, C) that input, integers (...), names: (..., C). IndexError for an id outside [0, V).

    >>> import minitorch_peft as mp
    >>> embedding(mp.tensor([1, 0]), mp.tensor([[1.0], [2.0]])).tolist()
    [[2.0], [1.0]]
    """
    ids, w = as_tensor(input, "embedding").data, as_tensor(weight, "embedding")
    if ids.dtype.kind not in "iu" or w.ndim != 2:
        raise ValueError(f"embedding: expected integer ids and weight (V, C), got {ids.dtype} ids and {w.shape}")
    if ids.size and (ids.min() < 0 or ids.max() >= len(w)):
        raise IndexError(f"embedding: ids must be in [0, {len(w)}), got {ids.min()} to {ids.max()}")
    return Embedding.apply(w, ids=ids)
