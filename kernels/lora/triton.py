"""The LoRA linear layer on the GPU: what is fused, and what is not, follows from counted bytes.

With U = M d elements, one pass over an activation (33.6 MB in bfloat16 for M = d = 4096: 10 us on an H100):

===================================================  ======================  ==========================
passes over activations                              forward                 backward
===================================================  ======================  ==========================
this file, x A.T in a pass of its own                3 U                     4.7 U
this file, x A.T in the loop of the product          2 U                     the same
a linear layer without LoRA, frozen                  2 U                     2 U
unfused (x A.T, its product with B.T, a scaled sum)  9 U                     11 U
===================================================  ======================  ==========================

Forward, the pass of its own reads x once more (U) whatever the rank. In the loop x is not read again, but x A.T is
computed again for every column of tiles: they cross where rank times columns of tiles is what the device computes while
it reads a byte (``choice``), 295 on an H100 and 153 on an A100. Counted for M = K = 4096 and r = 16 on an H100, apart
and in the loop: 45.7 and 37.0 us for N = 1024, 150.3 and 148.1 for 4096, 499.0 and 518.5 for 14336. Tiles are 256
columns wide on sm_90, 128 on sm_80 (with 256 the second accumulator spills); half of that in float32.
Backward: one pass over g for d(xa) = s g B and dB, one over x for dA, and dx = g W + d(xa) A by the forward's kernel:
g read, dx written. The float32 parts of the sums are written and read: 0.7 U for r = 16, the price of the same bits on
every run (atomic additions would save it); they fit the second-level cache. x A.T is kept, M r numbers, never computed
again; B A is never formed; a frozen weight has no gradient.
"""

from __future__ import annotations

import functools
import math
from typing import Any

from ..device import cuda
from ..device.roofline import A100, H100
from ..tiles.arrays import INTERPRETED, dtype_name, new, resident, stand_ins
from ..tiles.product import product
from .choice import in_loop_pays
from .reference import check_backward, check_forward
from .triton_backward import a_gradients, column_sums, low_gradients
from .triton_builds import AOT
from .triton_forward import down, in_loop

__all__ = ["AOT", "lora_linear_backward", "lora_linear_forward"]


@resident
def lora_linear_forward(x: Any, weight: Any, bias: Any, lora_a: Any, lora_b: Any, scaling: float) -> tuple[Any, Any]:
    """See the reference; NumPy arrays, or arrays of a device in float32, float16 or bfloat16."""
    check_forward(*stand_ins(x, weight, bias, lora_a, lora_b))
    if in_loop_pays(lora_a.shape[0], weight.shape[0], widest_tile(x), ridge(x)):
        return in_loop(x, weight, bias, lora_a, lora_b, scaling)
    return forward_after(down(x, (lora_a,))[0], x, weight, bias, lora_b, scaling)


def forward_after(xa: Any, x: Any, weight: Any, bias: Any, lora_b: Any, scaling: float) -> tuple[Any, Any]:
    """(y, xa) where xa = x A.T is there already: the accumulator starts with s xa B.T."""
    (*lead, k), n = x.shape, weight.shape[0]
    size = math.prod(lead), n
    y = product(new(x, *lead, n), size, (x,), (weight,), (k,), lows=(xa,), ups=(lora_b,), scaling=scaling, bias=bias,
                w_transposed=True)  # fmt: skip
    return y, xa


@resident
def lora_linear_backward(
    grad: Any,
    x: Any,
    xa: Any,
    weight: Any,
    lora_a: Any,
    lora_b: Any,
    scaling: float,
    needs: tuple[bool, bool, bool, bool, bool] = (True, False, False, True, True),
) -> tuple[Any, ...]:
    """See the reference; NumPy arrays, or arrays of a device in float32, float16 or bfloat16."""
    check_backward(*stand_ins(grad, x, xa, weight, lora_a, lora_b))
    (n, k), m = weight.shape, math.prod(x.shape[:-1])
    dxa, db = low_gradients(grad, xa, lora_b, scaling) if needs[0] or needs[3] or needs[4] else (None, None)
    dx = dweight = None
    if needs[0]:
        dx = product(new(x, *x.shape), (m, k), (grad,), (weight,), (n,), lows=(dxa,), ups=(lora_a,))
    if needs[1]:
        dweight = product(new(weight, n, k), (n, k), (grad,), (x,), (m,), x_transposed=True)
    dbias = column_sums(grad) if needs[2] else None
    da = a_gradients(x, (dxa,), (lora_a,))[0] if needs[3] else None
    return dx, dweight, dbias, da, db if needs[4] else None


def widest_tile(x: Any) -> int:
    """Columns of the widest tile of which no register spills, on this device, with x A.T beside it."""
    h100 = capability() >= (9, 0)
    return (128 if h100 else 64) if dtype_name(x) == "float32" else (256 if h100 else 128)


def ridge(x: Any) -> float:
    """Operations that the device computes while it reads a byte; in float32, three TF32 products an element of four
    bytes, a third of it (TF32 runs at half of bfloat16's rate)."""
    gpu = H100 if capability() >= (9, 0) else A100
    return gpu.tensor / gpu.bandwidth / (3 if dtype_name(x) == "float32" else 1)


@functools.cache
def capability() -> tuple[int, int]:
    """The device's compute capability; in the interpreter that of an H100."""
    return (9, 0) if INTERPRETED else cuda.device().capability
