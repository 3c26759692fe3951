"""Rows of a table."""

from __future__ import annotations

from typing import Any

import numpy as np

from minitorch_peft.autograd.function import Function
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.kernels import dispatch
from minitorch_peft.ops.promotion import floating, integers


class Embedding(Function):
    """y = W[ids]; a row of W (V, C) gets the sum of the gradients of its uses, the padding row none."""

    @staticmethod
    def forward(ctx: Any, w: np.ndarray, *, ids: np.ndarray, padding_idx: int | None) -> np.ndarray:
        ctx.size, ctx.padding_idx = len(w), padding_idx
        ctx.ids = ids.copy() if ctx.needs_input_grad[0] else None  # the caller may write to them before backward
        return dispatch.get("embedding_forward", w.dtype)(w, ids)

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        dw = dispatch.get("embedding_backward", g.dtype)(g, ctx.ids, ctx.size)
        if ctx.padding_idx is not None:
            dw[ctx.padding_idx] = 0
        return dw


def embedding(input: Any, weight: Tensor, padding_idx: int | None = None) -> Tensor:
    """The rows of weight (V, C) that input, integers (...), names: (..., C).

    The row ``padding_idx`` gets no gradient. IndexError for an id outside [0, V).

    >>> import minitorch_peft as mp
    >>> embedding(mp.tensor([1, 0]), mp.tensor([[1.0], [2.0]])).tolist()
    [[2.0], [1.0]]
    """
    w, ids = floating(weight, "embedding"), integers(input, "embedding", "ids")
    if w.ndim != 2:
        raise ValueError(f"embedding: expected weight (V, C), got {w.shape}")
    if padding_idx is not None and not -len(w) <= padding_idx < len(w):
        raise ValueError(f"embedding: padding_idx {padding_idx} is not one of the {len(w)} rows")
    return Embedding.apply(w, ids=ids, padding_idx=padding_idx)


def one_hot(tensor: Any, num_classes: int = -1) -> Tensor:
    """1 at each id and 0 elsewhere: integers (...) to int64 (..., num_classes), by default largest id + 1.

    >>> import minitorch_peft as mp
    >>> one_hot(mp.tensor([0, 2])).tolist()
    [[1, 0, 0], [0, 0, 1]]
    """
    ids = integers(tensor, "one_hot", "ids")
    if num_classes < 0 and not ids.size:
        raise ValueError("one_hot: give num_classes, as there is no id to count them by")
    size = int(ids.max()) + 1 if num_classes < 0 else num_classes
    if ids.size and not (ids.min() >= 0 and ids.max() < size):
        raise IndexError(f"one_hot: ids must be in [0, {size}), got {ids.min()} to {ids.max()}")
    return Tensor((ids[..., None] == np.arange(size)).astype(np.int64))
