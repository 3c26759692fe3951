"""What the lecture says of the methods, each as a rule on measured figures: did it hold at this scale?

A method's *share* is how much of the way from the untouched base to full fine-tuning it goes, in bits per byte on
held-out books: 0 learned nothing, 1 as much as full fine-tuning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from minitorch_peft.analysis.summary import Row
from minitorch_peft.autograd.random import generator
from minitorch_peft.autograd.tensor import no_grad
from minitorch_peft.models import GPT
from minitorch_peft.nn import Linear
from minitorch_peft.peft import PeftConfig, get_peft_model


@dataclass(frozen=True)
class Verdict:
    """``rule`` is what had to be true of ``figures``; ``held`` whether it was."""

    claim: str
    rule: str
    held: bool
    figures: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def share(row: Row, full: Row, before: Mapping[str, float]) -> float:
    """See the top of this file."""
    start = before["held_out"]
    return (start - row.bits["held_out"].mean) / (start - full.bits["held_out"].mean)


def carried_over(row: Row, before: Mapping[str, float]) -> float:
    """How much of the gain on held-out books is also had on books of another kind than those trained on: 1 is all."""
    gain = {name: before[name] - row.bits[name].mean for name in ("held_out", "out_of_domain")}
    return gain["out_of_domain"] / gain["held_out"]


def spread_of(row: Row) -> float:
    """Bits per byte that two runs of a method may differ by, by the spread over seeds."""
    return 2 * (row.bits["held_out"].std or 0.0)


def limited_by_capacity(prompts: Sequence[Row], lora: Sequence[Row], full: Row, before: Mapping[str, float]) -> Verdict:
    """Prompts of growing length against LoRA of growing rank, both from few parameters to many."""
    of_prompts = {r.trainable: share(r, full, before) for r in prompts}
    of_lora = {r.trainable: share(r, full, before) for r in lora}
    longest, best = max(of_prompts), max(of_prompts.values())
    no_larger = [s for n, s in of_lora.items() if n <= longest]
    grows = all(a < b for a, b in pairwise(of_prompts[n] for n in sorted(of_prompts)))
    return Verdict(
        "prompt tuning underperforms for lack of capacity",
        "a longer prompt has a larger share, yet none has that of LoRA with no more parameters than the longest",
        grows and bool(no_larger) and best < max(no_larger),
        {"prompt_tuning": of_prompts, "lora": of_lora},
    )


def better_with_more(adapters: Sequence[Row], full: Row, before: Mapping[str, float]) -> Verdict:
    ordered = sorted(adapters, key=lambda r: r.trainable)
    shares = {r.trainable: share(r, full, before) for r in ordered}
    return Verdict(
        "adapters do better with more parameters",
        "every larger bottleneck has a larger share, by more than the spread over seeds",
        all(apart(a, b) for a, b in pairwise(ordered)),
        {"adapter": shares},
    )


def apart(worse: Row, better: Row) -> bool:
    """Is the second better than the first by more than the spread over seeds?"""
    return worse.bits["held_out"].mean - better.bits["held_out"].mean > max(spread_of(worse), spread_of(better))


def close_to_full(lora: Sequence[Row], full: Row, before: Mapping[str, float], close: float = 0.9) -> Verdict:
    shares = {r.trainable: share(r, full, before) for r in sorted(lora, key=lambda r: r.trainable)}
    return Verdict(
        "LoRA comes close to full fine-tuning as its rank grows",
        f"the largest rank has a share of at least {close:g}",
        list(shares.values())[-1] >= close,
        {"lora": shares, "full": full.trainable},
    )


def catches_up(by_size: Mapping[str, tuple[Row, Row, Mapping[str, float]]]) -> Verdict:
    """``by_size``: from the smallest base to the largest, its prompt tuning, full fine-tuning and untouched bits."""
    shares = {name: share(prompt, full, before) for name, (prompt, full, before) in by_size.items()}
    values = list(shares.values())
    return Verdict(
        "prompt tuning catches up as the model grows",
        "the share of the same prompt grows from each base to the next larger one",
        all(a < b for a, b in pairwise(values)),
        {"prompt_tuning": shares},
    )


def better_outside(
    prompts: Mapping[str, Row], others: Mapping[str, Row], full: Row, before: Mapping[str, float], least: float = 0.1
) -> Verdict:
    """``least``: a prompt that learned less than this share has nothing to carry over."""
    carried = {name: carried_over(r, before) for name, r in {**prompts, **others}.items()}
    learned = {name: share(r, full, before) for name, r in prompts.items()}
    return Verdict(
        "prompts and prefixes are more robust out of domain",
        f"each has a share of at least {least:g}, and carries more of its gain over to books of another kind",
        min(learned.values()) >= least
        and min(carried[name] for name in prompts) > max(carried[name] for name in others),
        {"carried_over": carried, "share": learned},
    )


def nothing_without_weights(base: GPT, prompts: Mapping[str, PeftConfig], others: Mapping[str, PeftConfig]) -> Verdict:
    """What random adapters change in the logits of ``base`` once the weights of its blocks are zero; it is spoilt."""
    for module in (m for _, m in base.blocks.named_modules() if isinstance(m, Linear)):
        for p in module.parameters():
            p.data[...] = 0
    changed = {name: largest_change(base, config) for name, config in {**prompts, **others}.items()}
    return Verdict(
        "with zero pretrained weights, prompts can do nothing",
        "random prompts and prefixes change no logit; random adapters of other kinds do",
        all(changed[name] == 0 for name in prompts) and all(changed[name] > 0 for name in others),
        changed,
    )


def largest_change(base: GPT, config: PeftConfig) -> float:
    """The largest change of a logit, when every parameter of a fresh adapter is moved by a random number."""
    ids = generator(0, "claims").integers(0, base.config.vocab_size, (2, 12))
    with no_grad():
        positions = np.arange(ids.shape[1])[None]
        model = get_peft_model(base, config)
        first = max(a.prompt_length + a.prefix_length for a in model.adapters.values())
        with model.disable_adapter():  # at the positions that the text has under the adapter
            before = base(ids, position_ids=positions + first).logits.data
        for name, p in model.adapters["default"].named_parameters().items():
            p.data[...] += generator(1, name).standard_normal(p.shape)
        after = model(ids).logits.data
        model.unload()
    return float(np.abs(after - before).max())
