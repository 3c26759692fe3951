"""Arguments of LoRA with dropout: those of LoRA, a probability and a seed."""

from __future__ import annotations

import numpy as np

from ..examples import Draw, Example, Shape
from ..lora.examples import EXAMPLES as LORA
from ..philox.reference import dropped

_FORWARD, _BACKWARD = LORA["lora_linear_forward"], LORA["lora_linear_backward"]


def _drawn(d: Draw) -> tuple:
    return *_FORWARD.drawn(d), d.pick(0.0, 0.1, 0.5, 0.9), d.pick(0, 2**40 + 1)


def _drawn_backward(d: Draw) -> tuple:
    p, seed = d.pick(0.0, 0.1, 0.5, 0.9), d.pick(0, 2**40 + 1)
    grad, x, _, w, a, b, scaling, needs = _BACKWARD.drawn(d)
    return grad, x, d.laid_out(_down(x, a, p, seed)), w, a, b, scaling, p, seed, needs


def _typical(d: Draw, s: Shape) -> tuple:
    return *_FORWARD.typical(d, s), 0.1, 2**40 + 1


def _typical_backward(d: Draw, s: Shape) -> tuple:
    grad, x, _, w, a, b, scaling, needs = _BACKWARD.typical(d, s)
    return grad, x, _down(x, a, 0.1, 2**40 + 1), w, a, b, scaling, 0.1, 2**40 + 1, needs


def _down(x: np.ndarray, lora_a: np.ndarray, p: float, seed: int) -> np.ndarray:
    return dropped(x, p, seed) @ lora_a.T


EXAMPLES = {
    "lora_dropout_forward": Example(_drawn, _typical, _FORWARD.flops),
    "lora_dropout_backward": Example(_drawn_backward, _typical_backward, _BACKWARD.flops),
}
