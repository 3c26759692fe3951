"""Products with a weight in four bits: each thread decodes a tile of W into a small buffer and multiplies by it.

Threads share the columns of the result, so that each element of W is decoded once in all, whatever the number of rows.
At 4.127 bits an element an eighth of the bytes of W is read; the tile (at most 512 KiB) stays in the core's cache, and
W in full is never there, nor transposed: y = x W.T and dx = g W read the same tile, as BLAS reads either way round.
LoRA's term is in the same block of the result before the tiles are added to it; rank 0 is the layer alone.
"""

from __future__ import annotations

import numpy as np

from ..four_bit.layout import Quantized
from ..layout import rows_of
from .backward import backward
from .forward import forward
from .reference import check_backward, check_forward, check_lora_backward, check_lora_forward

NO_MATRIX = np.zeros((0, 0), np.float32)


def linear_4bit_forward(x: np.ndarray, q: Quantized, bias: np.ndarray | None = None) -> np.ndarray:
    """See the reference."""
    check_forward(x, q, bias)
    n, k = q.shape
    y, _ = forward(x, q, bias, np.empty((0, k), np.float32), np.empty((n, 0), np.float32), 0.0)
    return y


def linear_4bit_backward(grad: np.ndarray, q: Quantized) -> np.ndarray:
    """See the reference."""
    check_backward(grad, q)
    n, k = q.shape
    g, low_rank = rows_of(grad), (np.empty((0, k), np.float32), np.empty((n, 0), np.float32))
    dx, *_ = backward(g, NO_MATRIX, NO_MATRIX, q, *low_rank, 0.0, (True, False, False, False))
    assert dx is not None
    return dx.reshape(*grad.shape[:-1], k)


def lora_linear_4bit_forward(
    x: np.ndarray, q: Quantized, bias: np.ndarray | None, lora_a: np.ndarray, lora_b: np.ndarray, scaling: float
) -> tuple[np.ndarray, np.ndarray]:
    """See the reference."""
    check_lora_forward(x, q, bias, lora_a, lora_b)
    return forward(x, q, bias, np.ascontiguousarray(lora_a), np.ascontiguousarray(lora_b), scaling)


def lora_linear_4bit_backward(
    grad: np.ndarray,
    x: np.ndarray,
    xa: np.ndarray,
    q: Quantized,
    lora_a: np.ndarray,
    lora_b: np.ndarray,
    scaling: float,
    needs: tuple[bool, bool, bool, bool] = (True, False, True, True),
) -> tuple[np.ndarray | None, ...]:
    """See the reference."""
    check_lora_backward(grad, x, xa, q, lora_a, lora_b)
    low_rank = np.ascontiguousarray(lora_a), np.ascontiguousarray(lora_b)
    dx, *others = backward(rows_of(grad), rows_of(x), rows_of(xa), q, *low_rank, scaling, needs)
    return None if dx is None else dx.reshape(x.shape), *others
