"""What gist tokens save, and what is lost with the prompt that they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from minitorch_peft.data.pairs import Pairs
from minitorch_peft.models import GPTConfig
from minitorch_peft.peft import PeftModel
from minitorch_peft.peft.input.gist import gist_config, with_gists
from minitorch_peft.training import evaluate


@dataclass(frozen=True)
class GistReport:
    """Sums over all prompts and continuations.

    ``keys`` are held for the prompts in every layer, ``bytes`` is the size of those keys and values in all layers, and
    ``flops`` are attention's while the continuations are read, a multiplication and an addition counted as two; each
    before compression and after. ``bits_per_byte`` are those of the continuations after the whole "prompt", after the
    "gist" alone, and after "none" (the prompt's first token stays, it begins every text). All are of one adapter, which
    may have learnt one of the three only: see :func:`share_kept`.
    """

    keys: tuple[int, int]
    bytes: tuple[int, int]
    flops: tuple[int, int]
    bits_per_byte: dict[str, float]

    @property
    def ratio(self) -> float:
        """How many keys one key of the gist stands for."""
        return self.keys[0] / self.keys[1]


def share_kept(gist: GistReport, pos_control: GistReport, neg_control: GistReport) -> float:
    """How much of what a prompt is worth its gist keeps: 1 as good as the prompt, 0 as good as none.

    The reports are of three adapters, each trained under its own ``gist_condition``, as in the paper: one that learnt
    to read gist tokens reads whole prompts badly, and answers without a prompt too.
    """
    whole, none, own = (report.bits_per_byte["gist"] for report in (pos_control, neg_control, gist))
    return (none - own) / (none - whole)


def gist_report(peft_model: PeftModel, pairs: Pairs, batch_size: int = 16) -> GistReport:
    """Measure the gist adapter that acts, on the prompts of ``pairs`` (without gist tokens) and their answers.

    Where the adapter is one of the paper's controls, "gist" is what it makes of gist tokens.
    """
    config = gist_config(peft_model)
    lengths = [len(prompt) for prompt in pairs.prompts], [config.num_gist_tokens] * len(pairs)
    before, after = (sum(prompts) for prompts in lengths)
    size = key_bytes(peft_model.config, peft_model.base_model.embed.tokens.dense_weight().dtype)
    flops = [attention_flops(peft_model.config, n, [len(y) for y in pairs.answers]) for n in lengths]
    variants = {
        "prompt": pairs,
        "gist": with_gists(pairs, config.ids),
        "none": replace(pairs, prompts=tuple(prompt[:1] for prompt in pairs.prompts)),
    }
    num_bytes = sum(len(text.encode()) for text in pairs.target_texts)
    bits = {
        name: evaluate(peft_model, variant.batches(batch_size)).bits_per_byte(num_bytes)
        for name, variant in variants.items()
    }
    return GistReport((before, after), (size * before, size * after), (flops[0], flops[1]), bits)


def key_bytes(config: GPTConfig, dtype: np.dtype) -> int:
    """Of one position's keys and values in all layers.

    >>> key_bytes(GPTConfig(vocab_size=7, n_positions=8, n_embd=4, n_layer=3, n_head=2), np.dtype(np.float32))
    96
    """
    return 2 * config.n_layer * config.kv_heads * config.head_dim * dtype.itemsize


def attention_flops(config: GPTConfig, prompts: Sequence[int], continuations: Sequence[int]) -> int:
    """Σ 4 C L (P + t) over the tokens t = 1 ... n of continuations after P keys: 2 C for q kᵀ, 2 C for their part of v.

    >>> attention_flops(GPTConfig(vocab_size=7, n_positions=8, n_embd=4, n_layer=1, n_head=2), [10], [2])
    368
    """
    seen = sum(n * P + n * (n + 1) // 2 for P, n in zip(prompts, continuations, strict=True))
    return 4 * config.n_embd * config.n_layer * seen
