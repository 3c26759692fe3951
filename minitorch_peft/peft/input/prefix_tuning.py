"""Prefix tuning: k trainable keys and values that every layer attends to (Li and Liang 2021, eq. 3).

    head = softmax(q [K_P; K]ᵀ / √D) [V_P; V],   K_P, V_P (kv_heads, k, D) of each layer

All positions see the prefix; the input's positions are counted from k. A table P (k, 2 L kv), kv = kv_heads D, holds
them, K of layer l in the columns from 2 l kv, V in those from (2 l + 1) kv. It is trained itself, or made from a
smaller one E (k, kv) by a network that may be thrown away after training (``prefix_projection``, the paper's eq. 5,
said there to be more stable):

    P = tanh(E W₁ᵀ + b₁) W₂ᵀ + b₂,   W₁ (h, kv),   W₂ (2 L kv, h)

Parameters: 2 k L kv; with the projection k kv + h (kv + 1) + 2 L kv (h + 1). Starts: random, N(0, 1) or a network's, as
in ``peft``; ``"zero"``; or ``"text"``, the keys and values of real words, the paper's choice where data is scarce
(section 7.4): the model then starts exactly as if those words stood before the text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.models import GPT
from minitorch_peft.nn import Activation, Embedding, ForwardContext, Linear, Module, Sequential, init
from minitorch_peft.peft.config import check_count
from minitorch_peft.peft.input.prompt_files import PromptFiles
from minitorch_peft.peft.input.starts import activations, solved, words
from minitorch_peft.peft.input.virtual_tokens import Table, VirtualTokens, VirtualTokensConfig, check_ids
from minitorch_peft.peft.registry import Method, register

STARTS = (None, "zero", "text")


@dataclass
class PrefixTuningConfig(VirtualTokensConfig):
    """``encoder_hidden_size`` is h, by default kv. For ``init_weights="text"`` the words are ``init_ids``, or those of
    ``init_text`` by ``tokenizer_name_or_path`` (None: the shipped tokenizer), repeated or cut to k; a network starts
    at the smallest W₂, b₂ that make them.

    >>> from minitorch_peft.models import GPT
    >>> from minitorch_peft.peft import get_peft_model
    >>> config = PrefixTuningConfig(num_virtual_tokens=9, init_weights="text", init_text="In the old tongue:")
    >>> pairs = get_peft_model(GPT.from_pretrained("tiny-0.25m"), config).adapters["default"].prefix()
    >>> len(pairs), pairs[0][0].shape
    (4, (2, 9, 32))
    """

    peft_type: ClassVar[str] = "PREFIX_TUNING"

    prefix_projection: bool = False
    encoder_hidden_size: int | None = None
    init_weights: str | None = None
    init_text: str | None = None
    tokenizer_name_or_path: str | None = None
    init_ids: list[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoder_hidden_size is not None:
            check_count("encoder_hidden_size", self.encoder_hidden_size)
        check_ids("init_ids", self.init_ids)
        if self.init_weights not in STARTS:
            raise ValueError(f'init_weights={self.init_weights!r}: expected None, "zero" or "text"')
        if (self.init_text is not None or self.init_ids is not None) != (self.init_weights == "text"):
            needs = 'init_weights="text" needs init_text or init_ids'
            raise ValueError(f"{needs}, and only it does; got init_weights={self.init_weights!r}")

    @classmethod
    def without_effect(cls, settings: Mapping[str, Any]) -> dict[str, str]:
        found = {} if settings.get("prefix_projection") else {"encoder_hidden_size": "prefix_projection=True"}
        return found if settings.get("init_text") is not None else found | {"tokenizer_name_or_path": "init_text"}


class PrefixTuning(VirtualTokens):
    def attach(self, config: PrefixTuningConfig) -> None:
        k = self.prefix_length = config.num_virtual_tokens
        self.add_encoder(prefix_encoder)
        if config.init_weights == "text":
            ids = words(self.model, k, config.init_ids, config.init_text, config.tokenizer_name_or_path)
            config.init_ids = ids
            self.encoder.start_at(activations(self.model, ids))

    def prefix(self) -> Sequence[tuple[Tensor, Tensor]]:
        c, table = self.model.config, self.table()
        # BEGIN SOLUTION(task="5.4")
        parts = table.reshape(len(table), 2 * c.n_layer, c.kv_heads, c.head_dim).permute(1, 2, 0, 3)
        return [(parts[2 * layer], parts[2 * layer + 1]) for layer in range(c.n_layer)]
        # END SOLUTION


class PrefixTable(Table):
    def start_at(self, table: np.ndarray) -> None:
        self.embedding.weight.data[...] = table


class Projection(Module):
    """Makes the table from a smaller one."""

    def __init__(self, k: int, kv: int, hidden: int, width: int, start: init.Init | None) -> None:
        self.embedding = Embedding(k, kv)
        self.transform = Sequential(Linear(kv, hidden), Activation("tanh"), Linear(hidden, width, weight_init=start))

    def forward(self, context: ForwardContext | None = None) -> Tensor:
        return self.transform(self.embedding.weight, context)

    def start_at(self, table: np.ndarray) -> None:
        """Let it make ``table`` from the E, W₁ and b₁ that it has, by the smallest W₂ and b₂ that do."""
        into, tanh, out = self.transform
        inner = tanh(into(self.embedding.weight)).data
        last = solved(np.concatenate([inner, np.ones_like(inner[:, :1])], axis=1), table)
        out.weight.data[...], out.bias.data[...] = last[:-1].T, last[-1]


def prefix_encoder(model: GPT, config: PrefixTuningConfig) -> Module:
    k, kv, hidden, width = prefix_sizes(model, config)
    start: init.Init | None = init.zeros if config.init_weights == "zero" else None
    if config.prefix_projection:
        return Projection(k, kv, hidden, width, start)
    return PrefixTable(k, width, start)


def prefix_sizes(model: GPT, config: PrefixTuningConfig) -> tuple[int, int, int, int]:
    """k, kv, h and 2 L kv."""
    kv = model.config.kv_heads * model.config.head_dim
    return config.num_virtual_tokens, kv, config.encoder_hidden_size or kv, 2 * model.config.n_layer * kv


def prefix_count(model: GPT, config: PrefixTuningConfig) -> int:
    """2 k L kv, or k kv + h (kv + 1) + 2 L kv (h + 1) with the projection."""
    k, kv, h, width = prefix_sizes(model, config)
    return k * kv + h * (kv + 1) + width * (h + 1) if config.prefix_projection else k * width


register(
    Method(
        name="prefix_tuning", config=PrefixTuningConfig, adapter=PrefixTuning, shape="tokens", folder="input",
        start="none", count=prefix_count, mergeable=False, rowwise=True,
        stackable_with=("reparam", "around", "tokens", "select"),
        summary="trainable keys and values in every layer",
        examples=(
            PrefixTuningConfig(num_virtual_tokens=3, init_weights="text", init_ids=[5, 6, 7]),
            PrefixTuningConfig(num_virtual_tokens=2, prefix_projection=True, encoder_hidden_size=5),
        ),
        peft_files=PromptFiles(
            PrefixTuningConfig, prefix_encoder, ("prefix_projection", "encoder_hidden_size", "init_weights"),
            spelled={"init_weights": {"text": None}}, alone={"prefix_projection": False}, per_layer=True,
        ),
    )
)  # fmt: skip
