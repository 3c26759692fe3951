"""Dropout whose mask is a function of a key, so that it can be drawn again.

Element i of the flattened input is kept where number i of the key's stream is at least p, here as in the LoRA kernels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitorch_peft.autograd.function import Function
from minitorch_peft.autograd.random import counter_seed
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.kernels import dispatch
from minitorch_peft.ops.promotion import floating

Key = tuple[Any, ...]


class Dropout(Function):
    """y = x m / (1 - p) for a mask m of 0 and 1; x gets g m / (1 - p)."""

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, *, kept: np.ndarray, p: float) -> np.ndarray:
        ctx.scale = 1 / (1 - p) if p < 1 else 0.0
        ctx.save_for_backward(kept)
        y = np.multiply(x, kept, order="C")
        y *= ctx.scale
        return y

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> np.ndarray:
        (kept,) = ctx.saved
        dx = np.multiply(g, kept, order="C")
        dx *= ctx.scale
        return dx


def dropout(input: Tensor, p: float = 0.5, training: bool = True, key: Key | None = None) -> Tensor:
    """In training, each element is 0 with probability ``p``, else times 1 / (1 - p) (Srivastava et al. 2014).

    ``key`` is (seed, site, step), integers and names: the same key gives the same mask, in every dtype and
    whatever was drawn before (torch draws from a global state). ValueError in training without a key.

    >>> import minitorch_peft as mp
    >>> dropout(mp.tensor([1.0, 1.0, 1.0, 1.0]), p=0.5, key=(0, "site", 2)).tolist()
    [0.0, 0.0, 2.0, 2.0]
    """
    if not 0 <= p <= 1:
        raise ValueError(f"dropout: p must be in [0, 1], got {p}")
    x = floating(input, "dropout")
    if not training or p == 0:
        return x
    if key is None:
        raise ValueError("dropout: in training, give key=(seed, site, step), from which the mask is drawn")
    uniform = dispatch.get("philox_uniform", np.dtype(np.float32))(counter_seed(*key), 0, x.shape)
    return Dropout.apply(x, kept=uniform >= np.float32(p), p=p)
