"""What DoRA needs beside LoRA: products with the base's weight, the lengths of its rows, and a factor for each output.

None of it makes an array of the weight's size, but for the lengths of a weight in four bits, which are made once.
"""

from __future__ import annotations

import weakref
import zlib
from typing import Any

import numpy as np

from minitorch_peft.autograd.function import Function
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.kernels import dispatch
from minitorch_peft.kernels.four_bit.layout import Quantized


class Rescaled(Function):
    """y = v + (g - 1)(v - b): outputs v (..., out) without their bias b, (out,) or None, times g (out,), and with it.

        dv = g G      dg = Σ G (v - b)      db = Σ (1 - g) G      (sums over all rows)

    Where g is 1 it is v, bit for bit.
    """

    @staticmethod
    def forward(ctx: Any, v: np.ndarray, g: np.ndarray, b: np.ndarray | None) -> np.ndarray:
        ctx.save_for_backward(v if ctx.needs_input_grad[1] else None, g, b)
        y = v.copy() if b is None else v - b
        y *= g - 1
        y += v
        return y

    @staticmethod
    def backward(ctx: Any, G: np.ndarray) -> tuple[np.ndarray | None, ...]:
        (v, g, b), (need_v, need_g, need_b) = ctx.saved, ctx.needs_input_grad
        rows = G.reshape(-1, len(g))
        dg = np.einsum("to,to->o", rows, v.reshape(-1, len(g))) if need_g else None
        if dg is not None and b is not None:
            dg -= b * rows.sum(0)
        return G * g if need_v else None, dg, (1 - g) * rows.sum(0) if need_b else None


def weight_of(base: Any) -> tuple[Tensor | None, Quantized | None]:
    """A layer's weight (out, in), as a tensor or in four bits; the other one is None."""
    if (packed := base.packed_terms()) is not None:
        return None, packed[0]
    return base.weight.transpose(0, 1) if base.takes_ids else base.linear_terms()[0], None


def times_transposed(X: np.ndarray, W: np.ndarray | None, q: Quantized | None) -> np.ndarray:
    """X Wᵀ (r, out) for X (r, in)."""
    return dispatch.get("linear_4bit_forward", X.dtype)(X, q, None) if W is None else X @ W.T


def times(X: np.ndarray, W: np.ndarray | None, q: Quantized | None) -> np.ndarray:
    """X W (r, in) for X (r, out)."""
    return dispatch.get("linear_4bit_backward", X.dtype)(X, q) if W is None else X @ W


class RowLengths:
    """‖w_i‖² of the rows of a layer's weight: made once, and again when the weight has changed."""

    def __init__(self) -> None:
        self.of: tuple[weakref.ref[np.ndarray], int] | None = None
        self.squares = np.empty(0)

    def of_rows(self, base: Any) -> np.ndarray:
        """float64 (out,)."""
        if not self.current(base):
            array, count = identity(base)
            weight = base.dense_weight()
            self.of, self.squares = (weakref.ref(array), count), np.einsum("oi,oi->o", weight, weight, dtype=np.float64)
        return self.squares

    def current(self, base: Any) -> bool:
        """Are they known, of the weight as it is now?"""
        array, count = identity(base)
        return self.of is not None and self.of[0]() is array and self.of[1] == count


def identity(base: Any) -> tuple[np.ndarray, int]:
    """The array that holds a layer's weight, and a number that changes with its values.

    Of a tensor, its version; four bits have none, but a sum of their blocks' factors, which are few, tells as much.
    """
    if (packed := base.packed_terms()) is not None:
        q = packed[0]
        nested = b"" if q.nested is None else q.nested.absmax.tobytes()
        return q.packed, zlib.crc32(q.absmax.tobytes() + nested)
    weight = base.weight if base.takes_ids else base.linear_terms()[0]
    return weight.data, weight.version.count
