"""Products with a weight that is stored in four bits: data, so no gradient is ever made for it."""

from __future__ import annotations

from typing import Any

import numpy as np

from minitorch_peft.autograd.function import Function
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.kernels import dispatch
from minitorch_peft.kernels.four_bit.layout import Quantized
from minitorch_peft.ops.promotion import as_tensor, result_dtype, to


class Linear4bit(Function):
    """Y = X Wᵀ + b with W decoded from ``q``, X (..., I), b (O) or None; dX = G W, db = Σ G over all rows.

    X is not kept: there is no dW that would need it.
    """

    @staticmethod
    def forward(ctx: Any, x: np.ndarray, b: np.ndarray | None, *, q: Quantized) -> np.ndarray:
        ctx.q = q
        return dispatch.get("linear_4bit_forward", x.dtype)(x, q, b)

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> tuple[np.ndarray | None, ...]:
        need_x, need_b = ctx.needs_input_grad
        dx = dispatch.get("linear_4bit_backward", g.dtype)(g, ctx.q) if need_x else None
        return dx, g.sum(axis=tuple(range(g.ndim - 1))) if need_b else None


class LoraLinear4bit(Function):
    """Y = X Wᵀ + b + s (X Aᵀ) Bᵀ with W decoded from ``q``; the gradients of X, b, A and B, as without four bits."""

    @staticmethod
    def forward(ctx: Any, x, b, A, B, *, q: Quantized, s: float) -> np.ndarray:  # type: ignore[no-untyped-def]
        y, u = dispatch.get("lora_linear_4bit_forward", x.dtype)(x, q, b, A, B, s)
        ctx.q, ctx.s = q, s
        ctx.save_for_backward(x, u, A, B)
        return y

    @staticmethod
    def backward(ctx: Any, G: np.ndarray) -> tuple[np.ndarray | None, ...]:
        x, u, A, B = ctx.saved
        backward = dispatch.get("lora_linear_4bit_backward", G.dtype)
        return backward(G, x, u, ctx.q, A, B, ctx.s, ctx.needs_input_grad)


def linear_4bit(input: Tensor, weight: Quantized, bias: Tensor | None = None) -> Tensor:
    """input (..., I) times a weight (O, I) in four bits, transposed, plus bias (O): (..., O). ValueError otherwise.

    >>> import minitorch_peft as mp
    >>> from minitorch_peft.kernels.four_bit.reference import quantize_4bit
    >>> linear_4bit(mp.tensor([1.0, 2.0]), quantize_4bit(np.array([[1.0, -1.0]])), mp.tensor([0.5])).tolist()
    [-0.5]
    """
    x, b = _checked(input, weight, bias)
    return Linear4bit.apply(x, b, q=weight)


def lora_linear_4bit(input: Tensor, weight: Quantized, bias: Tensor | None, A: Tensor, B: Tensor, s: float) -> Tensor:
    """:func:`linear_4bit` with the weight W + s B A, in one pass; A (r, I), B (O, r)."""
    x, b = _checked(input, weight, bias)
    return LoraLinear4bit.apply(x, b, to(A, x.dtype), to(B, x.dtype), q=weight, s=s)


def _checked(input: Tensor, weight: Quantized, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Input and bias in one floating dtype."""
    x = as_tensor(input, "linear_4bit")
    b = None if bias is None else as_tensor(bias, "linear_4bit")
    if x.ndim == 0 or x.shape[-1] != weight.shape[1] or (b is not None and b.shape != weight.shape[:1]):
        raise ValueError(
            f"linear_4bit: expected input (..., I), weight (O, I) and bias (O), got {x.shape}, {weight.shape} and "
            f"{None if b is None else b.shape}"
        )
    if x.dtype.kind != "f":
        raise TypeError(f"linear_4bit: expected floating-point input, got {x.dtype}")
    dtype = x.dtype if b is None else result_dtype(x, b)
    return to(x, dtype), None if b is None else to(b, dtype)
