"""Arguments of the products with a 4-bit weight: a linear layer's, its weight quantized, with and without LoRA."""

from __future__ import annotations

import numpy as np

from ..examples import Draw, Example, Shape
from ..four_bit.layout import Quantized
from ..four_bit.reference import quantize_4bit
from ..linear import examples as linear


def _drawn(d: Draw) -> tuple:
    """Also rows that are no whole number of blocks, and more than one nested block."""
    k, n, lead = d.pick(d.size(), d.size(70), 64), d.pick(d.size(), d.size(40)), d.shape()
    q = quantize_4bit(d.array(n, k), d.pick(32, 64), d.pick("nf4", "fp4", "int4"), d.pick(True, False))
    return d.array(*lead, k), q, d.pick(None, d.array(n))


def _drawn_backward(d: Draw) -> tuple:
    x, q, _ = _drawn(d)
    return d.array(*x.shape[:-1], q.shape[0]), q


def _drawn_lora(d: Draw) -> tuple:
    (x, q, b), r = _drawn(d), d.size(4)
    return x, q, b, d.array(r, q.shape[1]), d.array(q.shape[0], r), 0.5


def _drawn_lora_backward(d: Draw) -> tuple:
    x, q, _, a, b, s = _drawn_lora(d)
    xa = d.laid_out((x @ a.T).astype(np.float32))
    return d.array(*x.shape[:-1], q.shape[0]), x, xa, q, a, b, s, d.flags(4)


def _typical(d: Draw, s: Shape) -> tuple:
    x, w, b = linear.typical(d, s)
    return x, quantize_4bit(w, compress_statistics=True), b


def _typical_backward(d: Draw, s: Shape) -> tuple:
    x, q, _ = _typical(d, s)
    return d.array(*x.shape[:-1], q.shape[0]), q


def _typical_lora(d: Draw, s: Shape) -> tuple:
    x, q, b = _typical(d, s)
    return x, q, b, d.array(s.rank, s.width, spread=s.width**-0.5), d.array(q.shape[0], s.rank), 0.5


def _typical_lora_backward(d: Draw, s: Shape) -> tuple:
    x, q, _, a, b, scaling = _typical_lora(d, s)
    return d.array(*x.shape[:-1], q.shape[0]), x, x @ a.T, q, a, b, scaling, (True, False, True, True)


def _products(x: np.ndarray, q: Quantized, rank: int = 0, passes: int = 1) -> int:
    rows = x.size // x.shape[-1]
    return 2 * rows * (q.shape[0] * q.shape[1] + passes * rank * sum(q.shape))


EXAMPLES = {
    "linear_4bit_forward": Example(_drawn, _typical, lambda x, q, b: _products(x, q)),
    "linear_4bit_backward": Example(_drawn_backward, _typical_backward, _products),
    "lora_linear_4bit_forward": Example(_drawn_lora, _typical_lora, lambda x, q, b, a, *rest: _products(x, q, len(a))),
    "lora_linear_4bit_backward": Example(
        _drawn_lora_backward, _typical_lora_backward, lambda g, x, xa, q, a, *rest: _products(x, q, len(a), passes=2)
    ),
}
