"""Prompt tuning: k trainable vectors before the input, at the first layer only (Lester et al. 2021, section 2).

    Pr(Y | [P; X]),   P (k, C),   [P; X] (B, k + T, C) before the positions are added

The model is frozen; it reads P as words that no vocabulary has. Positions 0 ... k - 1 are the prompt's, the input's
follow, and the loss also holds the prediction of the first token against it, made at the last prompt vector, as in
``peft``. Parameters: k C.

Starts (the paper's section 3.2): ``RANDOM``, N(0, 1) as in ``peft``, which is far from where words are (GPT-2's have
a standard deviation of 0.14): it takes more steps; ``SAMPLE_VOCAB``, words drawn from the vocabulary by the seed;
``TEXT``, given words, best the names of the classes, repeated or cut to k.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from minitorch_peft.models import GPT
from minitorch_peft.nn import init
from minitorch_peft.peft.input.prompt_files import PromptFiles
from minitorch_peft.peft.input.starts import at, sampled_rows, vocabulary, words
from minitorch_peft.peft.input.virtual_tokens import PromptAdapter, Table, VirtualTokensConfig, check_ids
from minitorch_peft.peft.registry import Method, register

STARTS = ("RANDOM", "SAMPLE_VOCAB", "TEXT")


@dataclass
class PromptTuningConfig(VirtualTokensConfig):
    """``prompt_tuning_init_ids`` are the words of ``TEXT`` as ids; without them ``prompt_tuning_init_text`` is encoded.

    ``tokenizer_name_or_path`` None is the shipped tokenizer. An adapter's own config holds the ids that were used, so
    that loading it needs no tokenizer.

    >>> from minitorch_peft.models import GPT
    >>> from minitorch_peft.peft import get_peft_model
    >>> config = PromptTuningConfig(8, "TEXT", prompt_tuning_init_text="modern or old")
    >>> p = get_peft_model(GPT.from_pretrained("tiny-0.25m"), config)
    >>> p.adapters["default"].config.prompt_tuning_init_ids
    [95, 340, 705, 608, 280, 391, 95, 340]
    """

    peft_type: ClassVar[str] = "PROMPT_TUNING"

    prompt_tuning_init: str = "RANDOM"
    prompt_tuning_init_text: str | None = None
    tokenizer_name_or_path: str | None = None
    prompt_tuning_init_ids: list[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ids("prompt_tuning_init_ids", self.prompt_tuning_init_ids)
        if self.prompt_tuning_init not in STARTS:
            raise ValueError(f"prompt_tuning_init={self.prompt_tuning_init!r}: expected one of {', '.join(STARTS)}")
        given = self.prompt_tuning_init_text is not None or self.prompt_tuning_init_ids is not None
        if given != (self.prompt_tuning_init == "TEXT"):
            needs = 'prompt_tuning_init="TEXT" needs prompt_tuning_init_text or prompt_tuning_init_ids'
            raise ValueError(f"{needs}, and only it does; got prompt_tuning_init={self.prompt_tuning_init!r}")

    @classmethod
    def without_effect(cls, settings: Mapping[str, Any]) -> dict[str, str]:
        text = settings.get("prompt_tuning_init_text") is not None
        return {} if text else {"tokenizer_name_or_path": "prompt_tuning_init_text"}


class PromptTuning(PromptAdapter):
    def attach(self, config: PromptTuningConfig) -> None:
        if config.prompt_tuning_init == "TEXT":
            config.prompt_tuning_init_ids = words(
                self.model, config.num_virtual_tokens, config.prompt_tuning_init_ids, config.prompt_tuning_init_text,
                config.tokenizer_name_or_path,
            )  # fmt: skip
        self.add_prompt(prompt_table)


def prompt_table(model: GPT, config: PromptTuningConfig) -> Table:
    starts = {
        "RANDOM": lambda: init.normal(1.0),
        "SAMPLE_VOCAB": lambda: sampled_rows(vocabulary(model)),
        "TEXT": lambda: at(vocabulary(model)[config.prompt_tuning_init_ids]),
    }
    return Table(config.num_virtual_tokens, model.config.n_embd, starts[config.prompt_tuning_init]())


def prompt_count(model: GPT, config: PromptTuningConfig) -> int:
    """k C."""
    return config.num_virtual_tokens * model.config.n_embd


register(
    Method(
        name="prompt_tuning", config=PromptTuningConfig, adapter=PromptTuning, shape="tokens", folder="input",
        start="none", count=prompt_count, mergeable=False, rowwise=True,
        stackable_with=("reparam", "around", "tokens", "select"),
        summary="trainable vectors before the input",
        examples=(
            PromptTuningConfig(num_virtual_tokens=3),
            PromptTuningConfig(num_virtual_tokens=4, prompt_tuning_init="TEXT", prompt_tuning_init_ids=[5, 6, 7, 5]),
        ),
        peft_files=PromptFiles(
            PromptTuningConfig, prompt_table, ("prompt_tuning_init",),
            spelled={"prompt_tuning_init": {"TEXT": "RANDOM"}},
        ),
    )
)  # fmt: skip
