"""LoRA layers that share their input, on the GPU: q, k, v or gate, up as one.

For n projections of M x d activations (U = M d elements, a pass over one of them):

* forward: x A_i.T for all i in one pass over x: (1 + 2 n) U in all; n layers on their own take 3 n U;
* backward: a pass over each g_i for d(xa_i) and dB_i, one over x for all dA_i, and one product for dx = Σ (g_i W_i +
  d(xa_i) A_i), whose accumulator runs through all projections: (2 n + 2) U, and the parts of the sums as in ``lora``,
  0.6 U for each g_i and 0.1 U for each A_i at r = 16 (float32, written and read). On their own the layers read x n
  times and write n gradients of x, 4 n U, and (n + 1) U more go into summing these.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..lora import triton_builds
from ..lora.triton import forward_after
from ..lora.triton_backward import a_gradients, low_gradients
from ..lora.triton_forward import down
from ..tiles.arrays import new, resident, stand_ins
from ..tiles.builds import A100, H100
from ..tiles.product import product
from .reference import check_stack, check_stack_backward


@resident
def lora_stacked_forward(
    x: Any,
    weights: Sequence[Any],
    biases: Sequence[Any],
    lora_as: Sequence[Any],
    lora_bs: Sequence[Any],
    scalings: Sequence[float],
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """See the reference; NumPy arrays, or arrays of a device in float32, float16 or bfloat16."""
    check_stack(*stand_ins(x, weights, biases, lora_as, lora_bs, scalings))
    xas = down(x, lora_as)
    projections = zip(xas, weights, biases, lora_bs, scalings, strict=True)
    return tuple(forward_after(xa, x, *projection)[0] for xa, *projection in projections), xas


@resident
def lora_stacked_backward(
    grads: Sequence[Any],
    x: Any,
    xas: Sequence[Any],
    weights: Sequence[Any],
    lora_as: Sequence[Any],
    lora_bs: Sequence[Any],
    scalings: Sequence[float],
    needs: tuple[bool, bool, bool] = (True, True, True),
) -> tuple[Any, tuple[Any, ...] | None, tuple[Any, ...] | None]:
    """See the reference; NumPy arrays, or arrays of a device in float32, float16 or bfloat16."""
    check_stack_backward(*stand_ins(grads, x, xas, weights, lora_as, lora_bs, scalings))
    if not any(needs):
        return None, None, None
    each = (low_gradients(*projection) for projection in zip(grads, xas, lora_bs, scalings, strict=True))
    dxas, dbs = zip(*each, strict=True)
    dx = None
    if needs[0]:
        size, depths = (math.prod(x.shape[:-1]), x.shape[-1]), [weight.shape[0] for weight in weights]
        dx = product(new(x, *x.shape), size, grads, weights, depths, lows=dxas, ups=lora_as)
    return dx, a_gradients(x, dxas, lora_as) if needs[1] else None, dbs if needs[2] else None


AOT = (
    triton_builds.down("x A.T of three projections", 3, drop=False, BM=64, BK=64),
    triton_builds.a_gradients("dA of three projections", 3, drop=False, BM=64, BK=64),
    triton_builds.product("dx of three projections", H100, triton_builds.WIDE, transposed=False, count=3),
    triton_builds.product("dx of three projections", A100, triton_builds.SMALL, transposed=False, count=3),
)
