"""What the peers launch for the same results, counted in their sources (versions of mid 2026).

* ``peft``, tuners/lora/layer.py: result + lora_B(lora_A(x)) * scaling, a launch for each operation, without dropout;
* ``unsloth``, kernels/utils.py and fast_lora.py: the update is added in place; backward recomputes x A.T;
* ``LoRAFusion`` (arXiv 2510.00206): as here, with atomic additions where we write parts of sums;
* ``bitsandbytes``, MatMul4Bit, which the first two call too: the weight is dequantized into memory before a product,
  in both passes, by three launches where its block maxima are quantized as well.

Passes over activations of 4096 x 4096, in U = 33.6 MB: peft 9 and 11, unsloth 5 and 9, LoRAFusion 3 and 4.
"""

from __future__ import annotations

from .roofline import Launch
from .traffic import HALF, SINGLE, Counted, product, skinny


def dequantize(m: int, n: int, k: int, r: int) -> list[Launch]:
    """bitsandbytes: the block maxima to float32, their offset added, then the weight, which reads them as float32."""
    blocks = n * k / 64
    return [Launch(blocks * (1 + SINGLE)), Launch(2 * SINGLE * blocks), Launch((0.5 + SINGLE / 64 + HALF) * n * k)]


def peft_forward(m: int, n: int, k: int, r: int) -> list[Launch]:
    """result = x W.T; x A.T; times B.T; times scaling; added to the result: 2 tensors of x's size, 7 of y's."""
    return [product(m, n, k), skinny(m, k, r), skinny(m, n, r), _pass(2 * m * n), _pass(3 * m * n)]


def peft_backward(m: int, n: int, k: int, r: int) -> list[Launch]:
    """g W; s g; dB; d(xa); dA; d(xa) A; added to g W: 6 tensors of x's size, 5 of y's."""
    by_n, by_k = [skinny(m, n, r)] * 2, [skinny(m, k, r)] * 2
    return [product(m, k, n), _pass(2 * m * n), *by_n, *by_k, _pass(3 * m * k)]


def unsloth_forward(m: int, n: int, k: int, r: int) -> list[Launch]:
    """x W.T; x A.T; addmm into the result, which is read and written again."""
    return [product(m, n, k), skinny(m, k, r), _added(m, n, r)]


def unsloth_backward(m: int, n: int, k: int, r: int) -> list[Launch]:
    """g W; g B, then dA; x A.T again, then dB; g B again, then addmm into g W: 5 tensors of x's size, 4 of y's."""
    by_n, by_k = [skinny(m, n, r)] * 3, [skinny(m, k, r)] * 2
    return [product(m, k, n), *by_n, *by_k, _added(m, k, r)]


def fusion_forward(m: int, n: int, k: int, r: int) -> list[Launch]:
    """LoRAFusion: x A.T in a pass of its own, then one product that starts from its product with B.T."""
    return [skinny(m, k, r), product(m, n, k, r)]


def fusion_backward(m: int, n: int, k: int, r: int) -> list[Launch]:
    """LoRAFusion: one pass over g for d(xa) and dB, one over x for dA, then dx."""
    low = skinny(m, n, r)
    return [Launch(low.nbytes + HALF * r * (m + n), 2 * low.flops), skinny(m, k, r), product(m, k, n, r)]


def _pass(elements: float) -> Launch:
    return Launch(HALF * elements)


def _added(m: int, n: int, r: int) -> Launch:
    """addmm: (m, r) by (r, n), added to an (m, n) that is read and written."""
    low = skinny(m, n, r)
    return Launch(low.nbytes + HALF * m * n, low.flops)


def _dequantized(then: Counted) -> Counted:
    """The weight dequantized into memory, before launches on the dense one."""
    return lambda m, n, k, r: [*dequantize(m, n, k, r), *then(m, n, k, r)]


_FORWARD: dict[str, Counted] = {"peft": peft_forward, "unsloth": unsloth_forward}
_BACKWARD: dict[str, Counted] = {"peft": peft_backward, "unsloth": unsloth_backward}
PEERS: dict[str, dict[str, Counted]] = {
    "dequantize_4bit": {"bitsandbytes": dequantize},
    "linear_4bit_forward": {"bitsandbytes": _dequantized(lambda m, n, k, r: [product(m, n, k)])},
    "linear_4bit_backward": {"bitsandbytes": _dequantized(lambda m, n, k, r: [product(m, k, n)])},
    "lora_linear_forward": {**_FORWARD, "LoRAFusion": fusion_forward},
    "lora_linear_backward": {**_BACKWARD, "LoRAFusion": fusion_backward},
    "lora_linear_4bit_forward": {name: _dequantized(count) for name, count in _FORWARD.items()},
    "lora_linear_4bit_backward": {name: _dequantized(count) for name, count in _BACKWARD.items()},
}
"""Kernel -> peer -> its launches."""
