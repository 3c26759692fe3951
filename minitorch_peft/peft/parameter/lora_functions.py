"""Two more forms of the LoRA layer as one operation each: with dropout, and with an adapter for each row of the batch.

``LoraLinear`` in ``lora.py`` is the plain one. (Projections that share their input could be one operation as well,
``kernels/lora_stacked``; but a Function has one output, and cutting it up again costs more than the sharing saves.)
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minitorch_peft.autograd.function import Function
from minitorch_peft.kernels import dispatch


class LoraDropout(Function):
    """``LoraLinear`` with dropout of x on its low-rank path, by a mask that both directions draw and neither keeps.

    ``seed`` (64 bits) determines the mask: x_i is kept where ``philox_uniform(seed, 0, ...)`` i is at least p.
    """

    @staticmethod
    def forward(ctx: Any, x, W, b, A, B, *, s: float, p: float, seed: int) -> np.ndarray:  # type: ignore[no-untyped-def]
        y, u = dispatch.get("lora_dropout_forward", x.dtype)(x, W, b, A, B, s, p, seed)
        ctx.constants = s, p, seed
        ctx.save_for_backward(x, u, W, A, B)
        return y

    @staticmethod
    def backward(ctx: Any, G: np.ndarray) -> tuple[np.ndarray | None, ...]:
        backward = dispatch.get("lora_dropout_backward", G.dtype)
        return backward(G, *ctx.saved, *ctx.constants, ctx.needs_input_grad)


class LoraGathered(Function):
    """``LoraLinear`` where row b of x (B, ..., K) runs under adapter ``owner[b]``, or under none where that is -1.

    Inputs: x, W and b, then A of each adapter, then B of each; their ranks are equal. ``s`` has the adapters' factors.
    Each adapter gets the gradient of its own rows.
    """

    @staticmethod
    def forward(ctx: Any, x, W, b, *factors, s: tuple[float, ...], owner: np.ndarray) -> np.ndarray:  # type: ignore[no-untyped-def]
        A, B = np.stack(factors[: len(s)]), np.stack(factors[len(s) :])
        ctx.s, ctx.owner, ctx.shape = np.array(s, x.dtype), owner, x.shape
        rows = x.reshape(len(x), math.prod(x.shape[1:-1]), x.shape[-1])
        y, u = dispatch.get("lora_gathered_forward", x.dtype)(rows, W, b, A, B, ctx.s, owner)
        ctx.save_for_backward(rows, u, W, A, B)
        return y.reshape(*x.shape[:-1], len(W))

    @staticmethod
    def backward(ctx: Any, G: np.ndarray) -> tuple[np.ndarray | None, ...]:
        need_x, need_W, need_b, *need = ctx.needs_input_grad
        count, (x, _, W, _, _) = len(ctx.s), ctx.saved
        g, dW, db = G.reshape(*x.shape[:2], len(W)), None, None
        needs = (need_x, any(need[:count]), any(need[count:]))
        dx, dA, dB = dispatch.get("lora_gathered_backward", G.dtype)(g, *ctx.saved, ctx.s, ctx.owner, needs)
        if need_W or need_b:
            _, dW, db = dispatch.get("linear_backward", G.dtype)(g, x, W, (False, need_W, need_b))
        each = (d for of_all in (dA, dB) for d in ([None] * count if of_all is None else of_all))
        return None if dx is None else dx.reshape(ctx.shape), dW, db, *each
