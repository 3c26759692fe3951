"""Dropout whose mask is a function of a key, so that it can be drawn again."""

from __future__ import annotations

from typing import Any

import numpy as np

from minitorch_peft.autograd.function import Function
from minitorch_peft.autograd.random import generator
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.ops.promotion import floating


def dropout_mask(shape: tuple[int, ...], p: float, key: tuple[Any, ...] | None, dtype: Any) -> np.ndarray:
    """0 with probability p, else 1 / (1 - p); the same for the same key, in every dtype."""
    if key is None:
        raise ValueError("dropout in training draws from key=(seed, site, step); none was given")
    seed, *site = key
    kept = generator(seed, "dropout", *site).random(shape, dtype=np.float32) >= p
    return kept * np.dtype(dtype).type(1 / (1 - p) if p < 1 else 0)


class Dropout(Function):
    """y = x m for a drawn mask m; x gets g m."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, mask: np.ndarray) -> np.ndarray:
        ctx.save_for_backward(mask)
        return x * mask

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        return g * ctx.saved[0]


def dropout(input: Tensor, p: float = 0.5, training: bool = True, key: tuple[Any, ...] | None = None) -> Tensor:
    """In training, each element is 0 with probability ``p``, else times 1 / (1 - p) (Srivastava et al. 2014).

    ``key`` is (seed, site, step): the same key gives the same mask. torch draws from a global state instead.

    >>> import minitorch_peft as mp
    >>> dropout(mp.tensor([1.0, 1.0]), p=0.5, training=False).tolist()
    [1.0, 1.0]
    """
    if not 0 <= p <= 1:
        raise ValueError(f"dropout: p must be in [0, 1], got {p}")
    x = floating(input, "dropout")
    if not training or p == 0:
        return x
    return Dropout.apply(x, mask=dropout_mask(x.shape, p, key, x.dtype))
