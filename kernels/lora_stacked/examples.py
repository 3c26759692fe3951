"""Arguments of stacked LoRA: one x, and for each projection a linear layer and two factors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..examples import Draw, Example, Shape


def _arguments(d: Draw, lead: tuple[int, ...], k: int, sizes: Sequence[int], ranks: Sequence[int]) -> tuple:
    pairs = list(zip(sizes, ranks, strict=True))
    weights = tuple(d.array(n, k, spread=max(k, 1) ** -0.5) for n in sizes)
    biases = tuple(d.pick(None, d.array(n)) for n in sizes)
    lora_as = tuple(d.array(r, k, spread=max(k, 1) ** -0.5) for r in ranks)
    return (
        d.array(*lead, k),
        weights,
        biases,
        lora_as,
        tuple(d.array(n, r) for n, r in pairs),
        (0.5, 2.0, 1.0)[: len(pairs)],
    )


def _backward(d: Draw, forward: tuple) -> tuple:
    x, weights, _, lora_as, lora_bs, scalings = forward
    grads = tuple(d.array(*x.shape[:-1], len(w)) for w in weights)
    xas = tuple(d.laid_out(x @ a.T) for a in lora_as)
    return grads, x, xas, weights, lora_as, lora_bs, scalings


def _drawn(d: Draw) -> tuple:
    count = d.size(3, 1)
    return _arguments(d, d.shape(), d.size(), [d.size() for _ in range(count)], [d.size(4) for _ in range(count)])


def _drawn_backward(d: Draw) -> tuple:
    return *_backward(d, _drawn(d)), d.flags(3)


def _typical(d: Draw, s: Shape) -> tuple:
    """The projections to queries, keys and values."""
    return _arguments(d, (s.batch, s.tokens), s.width, [s.width] * 3, [s.rank] * 3)


def _typical_backward(d: Draw, s: Shape) -> tuple:
    return _backward(d, _typical(d, s))


def _flops(
    x: np.ndarray, weights: Sequence[np.ndarray], biases: object, lora_as: Sequence[np.ndarray], *_: object
) -> int:
    rows = x.size // x.shape[-1]
    return 2 * rows * sum(w.size + len(a) * sum(w.shape) for w, a in zip(weights, lora_as, strict=True))


def _flops_backward(
    grads: object, x: np.ndarray, xas: object, weights: Sequence[np.ndarray], lora_as: Sequence[np.ndarray], *_: object
) -> int:
    rows = x.size // x.shape[-1]
    return 2 * rows * sum(w.size + 2 * len(a) * sum(w.shape) for w, a in zip(weights, lora_as, strict=True))


EXAMPLES = {
    "lora_stacked_forward": Example(_drawn, _typical, _flops),
    "lora_stacked_backward": Example(_drawn_backward, _typical_backward, _flops_backward),
}
