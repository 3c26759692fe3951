"""The whole field: every method with its paper's defaults, and at equal budgets of trainable parameters.

The budgets are about 4,000 and 40,000 numbers, for the tiny checkpoint (4 layers of 128 channels). A method that
cannot have so few or so many says why. Diff pruning, which trains gates for all that it may change, is counted by what
it keeps, as in its paper. A comparison finds the rate of each contender by the same search; those found last stand in
``RATES``, for other uses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from minitorch_peft.analysis.contenders import Contender
from minitorch_peft.models import GPT
from minitorch_peft.peft import METHODS
from minitorch_peft.peft.parameter.diff_pruning import kept_count

BUDGETS = {"paper": None, "4k": 4_000, "40k": 40_000}
TOLERANCE = 0.3  # of a budget, either way
QV: dict[str, Any] = {"target_modules": ["q_proj", "v_proj"]}
ALL: dict[str, Any] = {"target_modules": "all-linear"}


@dataclass(frozen=True)
class Entry:
    """One method in the field: its settings by budget, or the reason why there are none."""

    name: str
    method: str
    title: str
    settings: Mapping[str, Mapping[str, Any] | str]

    def contender(self, budget: str) -> Contender | None:
        settings = self.settings[budget]
        if isinstance(settings, str):
            return None
        return Contender(f"{self.name}-{budget}", self.title, self.method, 0.0, settings, budget=budget)


def entry(
    name: str, title: str, paper: Mapping[str, Any] | str, small: Mapping[str, Any] | str,
    large: Mapping[str, Any] | str, method: str | None = None,
) -> Entry:  # fmt: skip
    return Entry(name, method or name, title, {"paper": paper, "4k": small, "40k": large})


def lora_like(r: int, alpha: float, targets: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"r": r, "lora_alpha": alpha, **targets, **more}


def field(budgets: Iterable[str] = tuple(BUDGETS), names: Iterable[str] | None = None) -> tuple[Contender, ...]:
    """Every contender of these budgets, and of these entries; ValueError for a name that there is not."""
    budgets = list(budgets)
    if unknown := [b for b in budgets if b not in BUDGETS]:
        raise ValueError(f"unknown budget {', '.join(unknown)}: expected some of {', '.join(BUDGETS)}")
    chosen = [e.name for e in ENTRIES] if names is None else list(names)
    if unknown := sorted(set(chosen) - {e.name for e in ENTRIES}):
        raise ValueError(f"unknown method {', '.join(unknown)}: expected some of {', '.join(e.name for e in ENTRIES)}")
    made = [e.contender(budget) for budget in budgets for e in ENTRIES if e.name in chosen]
    return tuple(c for c in made if c is not None)


def fitting(contenders: Iterable[Contender], base: GPT) -> tuple[tuple[Contender, ...], dict[str, dict[str, str]]]:
    """The contenders that can take part on ``base`` and keep their budget there; and by budget, why others do not."""
    fit: list[Contender] = []
    why: dict[str, dict[str, str]] = {}
    for contender in contenders:
        try:
            count = counted(contender, base)
        except ValueError as error:
            why.setdefault(contender.budget, {})[contender.title] = f"does not apply to this base: {error}"
            continue
        wanted = BUDGETS[contender.budget]
        if wanted is not None and abs(count / wanted - 1) > TOLERANCE:
            why.setdefault(contender.budget, {})[contender.title] = f"would have {count:,} numbers on this base"
        else:
            fit.append(contender)
    return tuple(fit), why


def counted(contender: Contender, base: GPT) -> int:
    """What a budget counts: the trainable parameters, of diff pruning what is kept."""
    config = contender.config()
    if contender.method == "diff_pruning":
        return kept_count(base, config)  # type: ignore[arg-type]
    return METHODS[contender.method].count(base, config)


def outside(budgets: Iterable[str] = tuple(BUDGETS)) -> dict[str, dict[str, str]]:
    """By budget, the methods that are not in it and why."""
    return {budget: {e.title: why for e in ENTRIES if isinstance(why := e.settings[budget], str)} for budget in budgets}


WHOLE = "trains every parameter"
LOWEST = [f"blocks.{i}.{part}" for i in (1, 2, 3) for part in ("ln_1.**", "ln_2.**", "mlp.*.bias")]
BIASES = [f"{layer}.bias" for layer in ("q_proj", "k_proj", "v_proj", "up_proj")]
VOCABULARY = {"prompt_tuning_init": "SAMPLE_VOCAB"}
EVERYWHERE = {"prefix_positions": None}  # by default the first three tokens, which is meant for short questions
LSTM = {"encoder_reparameterization_type": "LSTM"}

ENTRIES: tuple[Entry, ...] = (
    entry("full", "full fine-tuning", {}, WHOLE, WHOLE),
    entry(
        "partial",
        "partial",
        {"top_layers": 1},
        {"target_parameters": LOWEST},
        {"target_parameters": ["blocks.3.attn.q_proj.**", "blocks.3.attn.v_proj.**"]},
    ),
    entry(
        "random_mask",
        "random mask",
        {"num_parameters": 5_760},  # as many as BitFit's, the control of its paper
        {"num_parameters": 4_000},
        {"num_parameters": 40_000},
    ),
    entry("bitfit", "BitFit", {}, {"target_parameters": BIASES}, "has 5,760 biases and no more"),
    entry("lora", "LoRA", lora_like(8, 16, QV), lora_like(2, 8, QV), lora_like(4, 16, ALL)),
    entry(
        "dora",
        "DoRA",
        lora_like(8, 16, QV),
        lora_like(1, 4, QV),
        lora_like(4, 16, ALL),
    ),
    entry("pissa", "PiSSA", lora_like(8, 8, QV), lora_like(2, 2, QV), lora_like(4, 4, ALL)),
    entry("lora_plus", "LoRA+", lora_like(8, 16, QV), lora_like(2, 8, QV), lora_like(4, 16, ALL)),
    entry(
        "adalora",
        "AdaLoRA",
        {"init_r": 12, "target_r": 8, **QV},
        {"init_r": 2, "target_r": 1, **QV},
        {"init_r": 4, "target_r": 3, **ALL},
    ),
    entry(
        "vera", "VeRA", {"r": 256, **QV}, {"r": 384, **QV}, "would need a rank of 1,536, twelve times the model's width"
    ),
    entry("ia3", "IA3", {}, {}, "scales 3,072 activations and no more"),
    entry("diff_pruning", "diff pruning", {}, {}, {"sparsity": 0.05}),
    entry(
        "prompt_tuning",
        "prompt tuning",
        {"num_virtual_tokens": 100, **VOCABULARY},
        {"num_virtual_tokens": 32, **VOCABULARY},
        "would put 320 vectors before a row, and the model has 256 positions",
    ),
    entry(
        "prefix_tuning",
        "prefix tuning",
        {"num_virtual_tokens": 10, "prefix_projection": True, "encoder_hidden_size": 512},
        {"num_virtual_tokens": 4},
        {"num_virtual_tokens": 40},
    ),
    entry(
        "p_tuning",
        "P-tuning",
        {"num_virtual_tokens": 20, "encoder_hidden_size": 128, **LSTM},
        {"num_virtual_tokens": 8, "encoder_hidden_size": 10},
        {"num_virtual_tokens": 20, "encoder_hidden_size": 96},
    ),
    entry("seq_bn", "adapter (Pfeiffer)", {}, {"bottleneck_size": 4}, {"bottleneck_size": 38}),
    entry("double_seq_bn", "adapter (Houlsby)", {}, {"bottleneck_size": 1}, {"bottleneck_size": 19}),
    entry("par_bn", "parallel adapter", {}, {"bottleneck_size": 4}, {"bottleneck_size": 38}),
    entry(
        "mam",
        "MAM",
        {},
        {"num_virtual_tokens": 2, "prefix_projection": False, "bottleneck_size": 2},
        {"num_virtual_tokens": 16, "prefix_projection": False, "bottleneck_size": 24},
    ),
    entry("loreft", "LoReFT", {"r": 4}, {"r": 4, **EVERYWHERE}, {"r": 38, **EVERYWHERE}),
    entry(
        "ladder",
        "ladder side-tuning",
        {},
        {"reduction_factor": 32},
        "has 25,444 numbers at a width of 16 and 75,460 at the next, 32",
    ),
    entry(
        "moe",
        "experts",
        {},
        {"num_experts": 2, "top_k": 1, "expert_size": 1},
        {"num_experts": 4, "expert_size": 8},
    ),
    entry(
        "moe_lora",
        "LoRA experts",
        {},
        {"num_experts": 2, "top_k": 1, "r": 1, "lora_alpha": 2, "target_modules": ["mlp"]},
        {"num_experts": 4, "r": 8, "lora_alpha": 16, "target_modules": ["mlp"]},
    ),
)
NOT_COMPARED: dict[str, str] = {
    "p_tuning_v2": "it is prefix tuning with a classification head, which modelling a text does not need",
    "gist": "it compresses prompts, and there is none here",
    "fusion": "it mixes adapters that were trained before",
    "moe_replace": "it trains two copies or more of every MLP: more numbers than full fine-tuning",
}
"""Methods that have no place in a comparison of language modelling, and why."""

RATES: dict[str, float] = {
    "full": 0.003,
    "partial": 0.01,
    "random_mask": 0.1,
    "bitfit": 0.1,
    "lora": 0.03,
    "dora": 0.03,
    "pissa": 0.03,
    "lora_plus": 0.003,
    "adalora": 0.1,
    "vera": 0.3,
    "ia3": 0.3,
    "diff_pruning": 0.03,
    "prompt_tuning": 0.1,
    "prefix_tuning": 0.3,
    "p_tuning": 0.01,
    "seq_bn": 0.03,
    "double_seq_bn": 0.03,
    "par_bn": 0.01,
    "mam": 0.003,
    "loreft": 0.1,
    "ladder": 0.1,
    "moe": 0.01,
    "moe_lora": 0.01,
}
"""By method, the rate that the stored comparison found for its paper's defaults: what ``adapt`` starts with. Prefix and
P-tuning have other networks there than by default here (an MLP, an LSTM): theirs are of 40,000 parameters."""
