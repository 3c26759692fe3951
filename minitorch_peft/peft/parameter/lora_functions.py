"""More forms of the LoRA layer as one operation each: with dropout, and with an adapter for each row of the batch.

``LoraLinear`` in ``lora.py`` is the plain one. (Projections that share their input could be one operation as well,
``kernels/lora_stacked``; but a Function has one output, and cutting it up again costs more than the sharing saves.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from minitorch_peft.autograd.function import Function
from minitorch_peft.kernels import dispatch
from minitorch_peft.kernels.four_bit.layout import Quantized

MASKED = 1 << 16
"""Elements whose mask is held at a time: 256 KiB in float32, which a cache holds."""


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


class LoraDropout4bit(Function):
    """``LoraDropout`` over a weight in four bits, ``q``. Of x's size nothing is kept but x, of y's nothing.

    Both directions draw the mask of a few rows at a time; the base product decodes W in tiles.
    """

    @staticmethod
    def forward(ctx: Any, x, b, A, B, *, q: Quantized, s: float, p: float, seed: int) -> np.ndarray:  # type: ignore[no-untyped-def]
        y = dispatch.get("linear_4bit_forward", x.dtype)(x, q, b)
        rows, out = as_rows(x), as_rows(y)
        u = np.empty((len(rows), len(A)), x.dtype)
        for some, mask in masks(rows, p, seed):
            u[some] = (rows[some] * mask) @ A.T
            out[some] += s * (u[some] @ B.T)
        ctx.q, ctx.constants = q, (s, p, seed)
        ctx.save_for_backward(x, u, A, B)
        return y

    @staticmethod
    def backward(ctx: Any, G: np.ndarray) -> tuple[np.ndarray | None, ...]:
        (x, u, A, B), (s, p, seed), (need_x, need_b, need_A, need_B) = ctx.saved, ctx.constants, ctx.needs_input_grad
        g, rows = as_rows(G), as_rows(x)
        low = s * (g @ B)
        dx = dispatch.get("linear_4bit_backward", G.dtype)(g, ctx.q) if need_x else None
        dA = np.zeros(A.shape, A.dtype) if need_A else None
        for some, mask in masks(rows, p, seed) if need_x or need_A else ():
            if dx is not None:
                dx[some] += (low[some] @ A) * mask
            if dA is not None:
                dA += low[some].T @ (rows[some] * mask)
        dB = s * (g.T @ u) if need_B else None
        return None if dx is None else dx.reshape(x.shape), g.sum(0) if need_b else None, dA, dB


def as_rows(x: np.ndarray) -> np.ndarray:
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def masks(rows: np.ndarray, p: float, seed: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Some rows at a time, and what drop multiplies them by: 0 or 1 / (1 - p)."""
    uniform, width = dispatch.get("philox_uniform", np.dtype(np.float32)), rows.shape[1]
    step = max(1, MASKED // max(1, width))
    for first in range(0, len(rows), step):
        some = slice(first, min(first + step, len(rows)))
        kept = uniform(seed, first * width, rows[some].shape) >= np.float32(p)
        yield some, kept * rows.dtype.type(1 / (1 - p))


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
