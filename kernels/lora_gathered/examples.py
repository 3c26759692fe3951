"""Arguments of gathered LoRA: a linear layer, several adapters, and whose row is whose."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..examples import Draw, Example, Shape

ADAPTERS = 4


def _arguments(d: Draw, lead: tuple[int, int], k: int, n: int, r: int, adapters: int, owners: Sequence[int]) -> tuple:
    x, weight, bias = d.array(*lead, k), d.array(n, k, spread=max(k, 1) ** -0.5), d.pick(None, d.array(n))
    lora_a = d.array(adapters, r, k, spread=max(k, 1) ** -0.5)
    return x, weight, bias, lora_a, d.array(adapters, n, r), d.array(adapters), np.array(owners, np.int64)


def _backward(d: Draw, forward: tuple) -> tuple:
    x, weight, _, lora_a, lora_b, scaling, adapter = forward
    xa = np.where(adapter[:, None, None] < 0, np.float32(0), x @ lora_a[adapter].swapaxes(1, 2))
    return d.array(*x.shape[:2], len(weight)), x, d.laid_out(xa), weight, lora_a, lora_b, scaling, adapter


def _drawn(d: Draw) -> tuple:
    batch, adapters = d.size(6), d.size(4, 1)
    owners = [d.size(adapters) - 1 for _ in range(batch)]
    return _arguments(d, (batch, d.size(5)), d.size(), d.size(), d.size(4), adapters, owners)


def _drawn_backward(d: Draw) -> tuple:
    return *_backward(d, _drawn(d)), d.flags(3)


def _typical(d: Draw, s: Shape) -> tuple:
    """One row for each adapter, then the next row for each."""
    owners = [b % ADAPTERS for b in range(s.batch)]
    return _arguments(d, (s.batch, s.tokens), s.width, s.width, s.rank, ADAPTERS, owners)


def _typical_backward(d: Draw, s: Shape) -> tuple:
    return _backward(d, _typical(d, s))


def _flops(x: np.ndarray, weight: np.ndarray, bias: object, lora_a: np.ndarray, *_: object) -> int:
    rows = x.size // x.shape[-1]
    return 2 * rows * (weight.size + lora_a.shape[1] * sum(weight.shape))


def _flops_backward(grad: object, x: np.ndarray, xa: np.ndarray, weight: np.ndarray, *_: object) -> int:
    rows = x.size // x.shape[-1]
    return 2 * rows * (weight.size + 2 * xa.shape[-1] * sum(weight.shape))


EXAMPLES = {
    "lora_gathered_forward": Example(_drawn, _typical, _flops),
    "lora_gathered_backward": Example(_drawn_backward, _typical_backward, _flops_backward),
}
