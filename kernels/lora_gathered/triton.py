"""A LoRA layer on the GPU where each row of the batch has its own adapter, in training too.

The frozen product is one for all rows; a tile of it starts from the low-rank term of its rows' adapter. With U = M d
elements, a pass over an activation: forward 3 U as for one adapter, backward 5 U (g is read for d(xa), for dB and for
dx, x for dA; dx is written). Each adapter that occurs is read once for each of its tiles: r (K + N) elements, 262 KB in
bfloat16 for r = 16 and K = N = 4096, which bounds a batch of many adapters with one row each.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..tiles.arrays import resident, stand_ins
from .reference import check_gather, check_gather_backward
from .triton_builds import AOT
from .triton_rows import rows_product, rows_to_rank, sum_by_adapter
from .triton_schedule import schedule

__all__ = ["AOT", "lora_gathered_backward", "lora_gathered_forward"]


def lora_gathered_forward(
    x: Any, weight: Any, bias: Any, lora_a: Any, lora_b: Any, scaling: Any, adapter: np.ndarray
) -> tuple[Any, Any]:
    """See the reference; NumPy arrays, or arrays of a device in float32, float16 or bfloat16; adapter: NumPy."""
    check_gather(*stand_ins(x, weight, bias, lora_a, lora_b, scaling, adapter))
    plan = schedule(adapter, x.shape[1], lora_a.shape[0])
    return _forward(x, weight, bias, lora_a, lora_b, scaling, plan)


@resident
def _forward(x, weight, bias, lora_a, lora_b, scaling, plan):
    xa = rows_to_rank(x, lora_a, None, lora_a.shape[1], plan, transposed=True)
    return rows_product(x, weight, bias, xa, lora_b, scaling, weight.shape[0], plan, transposed=True), xa


def lora_gathered_backward(
    grad: Any,
    x: Any,
    xa: Any,
    weight: Any,
    lora_a: Any,
    lora_b: Any,
    scaling: Any,
    adapter: np.ndarray,
    needs: tuple[bool, bool, bool] = (True, True, True),
) -> tuple[Any, Any, Any]:
    """See the reference; NumPy arrays, or arrays of a device in float32, float16 or bfloat16; adapter: NumPy."""
    check_gather_backward(*stand_ins(grad, x, xa, weight, lora_a, lora_b, scaling, adapter))
    plan = schedule(adapter, x.shape[1], lora_a.shape[0])
    return _backward(grad, x, xa, weight, lora_a, lora_b, scaling, needs, plan)


@resident
def _backward(grad, x, xa, weight, lora_a, lora_b, scaling, needs, plan):
    dx = da = None
    if needs[0] or needs[1]:
        dxa = rows_to_rank(grad, lora_b, scaling, lora_b.shape[2], plan, transposed=False)
        if needs[0]:
            dx = rows_product(grad, weight, None, dxa, lora_a, None, weight.shape[1], plan, transposed=False)
        if needs[1]:
            da = sum_by_adapter(x, dxa, None, lora_a, plan, transposed=True)
    return dx, da, sum_by_adapter(grad, xa, scaling, lora_b, plan, transposed=False) if needs[2] else None
