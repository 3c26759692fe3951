"""Task 4.6: LoRA's backward pass over a weight in four bits, of which only a few rows are ever dequantized at once."""

from __future__ import annotations

import numpy as np

from minitorch_peft.kernels.four_bit.layout import Quantized
from minitorch_peft.kernels.four_bit.reference import dequantize_4bit
from minitorch_peft.kernels.layout import rows_of

TILE = 32
"""Rows of the weight that may be held at once."""


def weight_rows(q: Quantized, first: int, last: int) -> np.ndarray:
    """Rows ``first`` to ``last`` (exclusive) of the matrix q (N, K), in float32; no other rows are dequantized.

    A block may begin in one row and end in another. ``q.nested`` is None.
    """
    # BEGIN SOLUTION(task="4.6a")
    _, k = q.shape
    start, stop = first * k // q.blocksize, -(-last * k // q.blocksize)  # blocks that have a part in these rows
    before, size = start * q.blocksize, min(stop * q.blocksize, q.shape[0] * k) - start * q.blocksize
    packed = q.packed[before // 2 : (before + size + 1) // 2]
    part = q._replace(packed=packed, absmax=q.absmax[start:stop], shape=(size,))
    return dequantize_4bit(part)[first * k - before : last * k - before].reshape(last - first, k)
    # END SOLUTION


def lora_backward(
    grad: np.ndarray,
    x: np.ndarray,
    xa: np.ndarray,
    q: Quantized,
    lora_a: np.ndarray,
    lora_b: np.ndarray,
    scaling: float,
    needs: tuple[bool, bool, bool] = (True, True, True),
) -> tuple[np.ndarray | None, ...]:
    """Gradients (dx, da, db) of y = x W.T + s (x A.T) B.T, W = dequantize_4bit(q); None where ``needs`` is False.

    grad (..., N), x (..., K), xa = x A.T (..., r), q.shape (N, K), lora_a (r, K), lora_b (N, r). At most ``TILE`` rows
    of W are held at a time, and none where dx is not needed. The dtype is that of grad.
    """
    # BEGIN SOLUTION(task="4.6b")
    s = grad.dtype.type(scaling)
    g, rows = rows_of(grad), rows_of(x)
    dxa = s * (g @ lora_b)
    dx = None
    if needs[0]:
        dx = dxa @ lora_a
        for first in range(0, q.shape[0], TILE):
            last = min(first + TILE, q.shape[0])
            dx += g[:, first:last] @ weight_rows(q, first, last).astype(g.dtype, copy=False)
        dx = dx.reshape(x.shape)
    return dx, dxa.T @ rows if needs[1] else None, s * (g.T @ rows_of(xa)) if needs[2] else None
    # END SOLUTION
