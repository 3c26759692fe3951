"""Which parameters share a learning rate and a weight decay."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.nn import Module

_BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")
_EMBED = re.compile(r"(?:^|\.)embed\.")


def decay_groups(named_parameters: Iterable[tuple[str, Tensor]]) -> list[dict[str, Any]]:
    """Two groups of what is trainable: matrices, and the rest (biases, gains), which are not decayed.

    Decay pulls towards zero; for a gain of 1 that is not "simpler", and a bias has no scale to bound.
    """
    trainable = {name: p for name, p in named_parameters if p.requires_grad}
    matrices = {name: p for name, p in trainable.items() if p.ndim >= 2}
    rest = {name: p for name, p in trainable.items() if p.ndim < 2}
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": rest, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def layerwise_groups(model: Module, decay: float) -> list[dict[str, Any]]:
    """Lower rates for lower layers: ``lr_scale`` = ``decay`` ** (layers to the top).

    Discriminative fine-tuning (Howard & Ruder 2018, sec. 3.1).
    The final norm and the head have 1, the last block ``decay``, the one below it ``decay``², ..., the
    embedding the least. Within a layer, :func:`decay_groups`.

    >>> from minitorch_peft.models import GPT, GPTConfig
    >>> model = GPT(GPTConfig(vocab_size=7, n_positions=8, n_embd=4, n_layer=2, n_head=2))
    >>> sorted({group["lr_scale"] for group in layerwise_groups(model, 0.5)})
    [0.125, 0.25, 0.5, 1.0]
    """
    if not 0 < decay <= 1:
        raise ValueError(f"decay must be in (0, 1], got {decay}: 1 is the same rate everywhere")
    names = [name for name, _ in model.named_parameters()]
    blocks = [int(found[1]) for name in names if (found := _BLOCK.search(name))]
    if not blocks:
        raise ValueError("layerwise_groups finds layers by names like 'blocks.3.': this model has none")
    top = max(blocks) + 2
    groups = []
    for depth in range(top + 1):
        layer = [(n, p) for n, p in model.named_parameters() if depth_of(n, top) == depth]
        groups += [{**group, "lr_scale": decay ** (top - depth)} for group in decay_groups(layer)]
    return groups


def depth_of(name: str, top: int) -> int:
    """0 for the embedding, i + 1 for block i, ``top`` for what comes after the blocks."""
    if found := _BLOCK.search(name):
        return int(found[1]) + 1
    return 0 if _EMBED.search(name) else top
