"""Products with a weight in four bits on the GPU, forward and backward, alone and with LoRA in the same pass.

The weight is decoded tile by tile in registers: never written in full, in no pass. Of few rows decoding it is the bound
(``triton_decode``, up to 16), of many the tensor cores (``triton_train``). The low-rank term starts the accumulator, so
LoRA costs what it costs a dense layer: x A.T in a pass of its own over x, and the passes of its gradients (``lora``).
"""

from __future__ import annotations

import math
from typing import Any

from ..four_bit.layout import Quantized, check_quantized
from ..lora.triton_backward import a_gradients, column_sums, low_gradients
from ..lora.triton_forward import down
from ..tiles.arrays import resident, stand_ins
from .reference import check_backward, check_forward, check_lora_backward, check_lora_forward
from .triton_builds import AOT
from .triton_decode import MOST_ROWS, few_rows
from .triton_train import forward, grad_x

__all__ = ["AOT", "linear_4bit_backward", "linear_4bit_forward", "lora_linear_4bit_backward",
           "lora_linear_4bit_forward"]  # fmt: skip


@resident
def linear_4bit_forward(x: Any, q: Quantized, bias: Any = None) -> Any:
    """See the reference; NumPy arrays, or arrays of a device in float32, float16 or bfloat16."""
    check_forward(*stand_ins(x, _checked(q), bias))
    return _forward(x, q, bias)


@resident
def linear_4bit_backward(grad: Any, q: Quantized) -> Any:
    """See the reference; NumPy arrays, or arrays of a device in float32, float16 or bfloat16."""
    check_backward(*stand_ins(grad, _checked(q)))
    return grad_x(grad, q)


@resident
def lora_linear_4bit_forward(
    x: Any, q: Quantized, bias: Any, lora_a: Any, lora_b: Any, scaling: float
) -> tuple[Any, Any]:
    """See the reference; NumPy arrays, or arrays of a device in float32, float16 or bfloat16."""
    check_lora_forward(*stand_ins(x, _checked(q), bias, lora_a, lora_b))
    (xa,) = down(x, (lora_a,))
    return _forward(x, q, bias, xa, lora_b, scaling), xa


@resident
def lora_linear_4bit_backward(
    grad: Any,
    x: Any,
    xa: Any,
    q: Quantized,
    lora_a: Any,
    lora_b: Any,
    scaling: float,
    needs: tuple[bool, bool, bool, bool] = (True, False, True, True),
) -> tuple[Any, ...]:
    """See the reference; NumPy arrays, or arrays of a device in float32, float16 or bfloat16."""
    check_lora_backward(*stand_ins(grad, x, xa, _checked(q), lora_a, lora_b))
    need_x, need_bias, need_a, need_b = needs
    dxa, db = low_gradients(grad, xa, lora_b, scaling) if need_x or need_a or need_b else (None, None)
    dx = grad_x(grad, q, dxa, lora_a) if need_x else None
    dbias = column_sums(grad) if need_bias else None
    da = a_gradients(x, (dxa,), (lora_a,))[0] if need_a else None
    return dx, dbias, da, db if need_b else None


def _forward(x: Any, q: Quantized, bias: Any, *low_rank_term: Any) -> Any:
    product = few_rows if math.prod(x.shape[:-1]) <= MOST_ROWS else forward
    return product(x, q, bias, *low_rank_term)


def _checked(q: Quantized) -> Quantized:
    check_quantized("linear_4bit", *stand_ins(q))
    return q
