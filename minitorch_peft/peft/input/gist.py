"""Gist tokens: k new words into which the model learns to compress what stands before them (Mu et al. 2023).

    p(y | t, g_1 ... g_k) ≈ p(y | G(t)),   G(t) = keys and values of g_1 ... g_k, computed from the prompt t

That is what the paper's eq. 2 asks for, learnt by a mask alone: the gist tokens see the prompt, and what comes after
them sees the gist tokens in its stead (section 3, figure 2). A prompt read once is then kept as k keys and values a
layer: :func:`compress`. A run of gist tokens ends with the next other token, and what comes after it sees no other
word of before; so a text may hold several runs, and the mask of a token never depends on later ones.

The vectors (k, C) of the new words are the adapter's; they start at the mean of the vocabulary, as the authors' do
(where the one word is repeated k times). The paper trains the whole model; here LoRA learns to compress, in the same
adapter. Parameters: k C + Σ r (in + out). Targets by default: the query and value projections. ``gist_condition`` names
the authors' two controls: "pos_control" hides nothing, "neg_control" hides the gist tokens too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

import minitorch_peft.functional as F
from minitorch_peft.autograd.tensor import Tensor, no_grad
from minitorch_peft.data.pairs import Pairs
from minitorch_peft.data.tokenizer import RESERVED, VOCAB_SIZE
from minitorch_peft.models import GPT, Cache
from minitorch_peft.models.inputs import as_array, as_ids
from minitorch_peft.nn import ForwardContext, Module, mode_of
from minitorch_peft.peft.adapter import Adapter
from minitorch_peft.peft.config import check_count
from minitorch_peft.peft.inject import inject
from minitorch_peft.peft.input.starts import at, vocabulary
from minitorch_peft.peft.input.virtual_tokens import check_ids
from minitorch_peft.peft.model import PeftModel
from minitorch_peft.peft.parameter.lora import LoraConfig, LoraLayer, lora_count
from minitorch_peft.peft.registry import Method, register
from minitorch_peft.peft.shapes import Around, Attached, on_rows

EMBEDDING = "embed.tokens"
CONDITIONS = ("gist", "pos_control", "neg_control")
SPARE = range(3, len(RESERVED))  # ids that the shipped tokenizer keeps for such tasks


@dataclass
class GistConfig(LoraConfig):
    """``gist_token_ids`` are ids that no text holds; by default the first spare ones of the shipped tokenizer, for
    models of its vocabulary alone.
    """

    peft_type: ClassVar[str] = "GIST"

    num_gist_tokens: int = 1  # k
    gist_token_ids: list[int] | None = None
    gist_condition: str = "gist"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_plain("gisting")
        check_count("num_gist_tokens", self.num_gist_tokens)
        check_ids("gist_token_ids", self.gist_token_ids)
        if self.gist_condition not in CONDITIONS:
            raise ValueError(f"gist_condition={self.gist_condition!r}: expected one of {', '.join(CONDITIONS)}")
        if len(set(self.ids)) != self.num_gist_tokens or len(self.ids) != self.num_gist_tokens:
            given = (
                f"{len(SPARE)} spare ids" if self.gist_token_ids is None else f"gist_token_ids={self.gist_token_ids}"
            )
            raise ValueError(f"num_gist_tokens={self.num_gist_tokens} needs as many different ids, there are {given}")

    @property
    def ids(self) -> list[int]:
        return list(SPARE[: self.num_gist_tokens]) if self.gist_token_ids is None else self.gist_token_ids


class GistEmbedding(Around):
    """Stands around the token embedding: at gist tokens (B, T) the adapter's vectors take the place of the base's."""

    adapter: Gist

    def __init__(self, base_layer: Module, adapter: Gist, config: GistConfig) -> None:
        super().__init__(base_layer, adapter)
        mean = vocabulary(adapter.model).mean(axis=0)
        start = at(np.tile(mean, (config.num_gist_tokens, 1)))
        self.vectors = adapter.new_parameter(f"{EMBEDDING}.vectors", (config.num_gist_tokens, len(mean)), start)

    def after(self, y: Tensor, x: Any, context: ForwardContext | None) -> Tensor:
        same = as_array(x)[..., None] == np.array(self.adapter.config.ids)  # (B, T, k)
        return F.where(Tensor(same.any(-1)[..., None]), self.vectors[same.argmax(-1)], y)

    def mixed(self, x: Any, context: ForwardContext | None, rows: np.ndarray) -> Tensor:
        y = self.base_layer(x, context)
        return on_rows(rows, self.after(y, x, context), y)


class Gist(Adapter):
    def attach(self, config: GistConfig) -> None:
        size = self.model.config.vocab_size
        if config.gist_token_ids is None and size != VOCAB_SIZE:
            raise ValueError(
                f"gist_token_ids must name ids that no text holds: the model has a vocabulary of {size}, and only "
                f"of the shipped tokenizer's {VOCAB_SIZE} it is known that {config.ids} are spare"
            )
        as_ids(np.array([config.ids]), size)
        targets = config.targets(self.model)
        if EMBEDDING in targets:
            raise ValueError(f"target_modules names {EMBEDDING}, which holds the gist tokens: leave it out")
        self.wrappers = inject(self.model, [*targets, EMBEDDING], self.wrapped)

    def wrapped(self, base: Module, path: str) -> Attached:
        if path == EMBEDDING:
            return GistEmbedding(base, self, self.config)
        return LoraLayer(base, path, self, self.config)

    def hidden(self, ids: np.ndarray, new: int) -> np.ndarray:
        """Words of a segment that a run of gist tokens has closed; vectors of prompts and prefixes are words too."""
        gist = np.isin(ids, self.config.ids)
        opens = np.pad(gist[:, :-1] & ~gist[:, 1:], ((0, 0), (1, 0)))
        segment = np.cumsum(opens, axis=1)
        closed = segment[:, None, :] < segment[:, -new:, None]
        shown = {"gist": gist, "pos_control": np.ones_like(gist), "neg_control": np.zeros_like(gist)}
        return closed & ~shown[self.config.gist_condition][:, None, :]


def with_gists(pairs: Pairs, gist_token_ids: Sequence[int]) -> Pairs:
    """Training data: the same pairs, with gist tokens between the prompt and the answer.

    ValueError where a pair holds one of them already: it would be a gist of what stands before it.

    >>> pairs = Pairs((1,), ([0, 5, 2],), ([7, 0],), ("a",), ("b",), 0, pad=1)
    >>> with_gists(pairs, [3, 4]).prompts
    ([0, 5, 2, 3, 4],)
    """
    for i, texts in enumerate(zip(pairs.prompts, pairs.answers, strict=True)):
        if held := sorted(set(gist_token_ids) & {token for text in texts for token in text}):
            raise ValueError(f"pair {i} holds {held}: gist_token_ids must be ids that no text holds")
    return replace(pairs, prompts=tuple([*prompt, *gist_token_ids] for prompt in pairs.prompts))


def compress(peft_model: PeftModel, prompt_ids: Any) -> Cache:
    """Read a prompt once and keep the keys and values of its gist tokens: a cache to go on from.

    Args:
        prompt_ids: int (B, T), rows of one length, without gist tokens.

    Returns:
        A cache of k keys a layer; positions go on after the prompt's T and the k. It may be used many times:
        ``peft_model.generate(ids, past_key_values=cache)``.

    Raises:
        ValueError: not one gist adapter acts (with ``gist_condition="gist"``), or the prompt holds gist tokens.

    >>> from minitorch_peft.models import GPTConfig
    >>> from minitorch_peft.peft import get_peft_model
    >>> model = GPT(GPTConfig(vocab_size=97, n_positions=64, n_embd=64, n_layer=3, n_head=4))
    >>> config = GistConfig(num_gist_tokens=2, gist_token_ids=[95, 96])
    >>> cache = compress(get_peft_model(model, config), [list(range(10, 50))])
    >>> cache.length, cache.next_position
    (2, 42)
    """
    config = gist_config(peft_model)
    if config.gist_condition != "gist":
        raise ValueError(f"the adapter is a control ({config.gist_condition!r}): only gist_condition='gist' compresses")
    prompt = as_ids(prompt_ids, peft_model.config.vocab_size)
    if np.isin(prompt, config.ids).any():
        raise ValueError(f"the prompt holds gist tokens ({config.ids}) already: they are put at its end here")
    whole = np.concatenate([prompt, np.tile(config.ids, (len(prompt), 1))], axis=1)
    with no_grad(), mode_of(peft_model, training=False):
        cache = peft_model(whole, use_cache=True).past_key_values
    assert cache is not None
    cache.select(range(cache.length - config.num_gist_tokens, cache.length))
    return cache


def gist_config(peft_model: PeftModel) -> GistConfig:
    """That of the one gist adapter that acts."""
    acting = [a.config for a in map(peft_model.adapters.get, peft_model.active_adapters) if isinstance(a, Gist)]
    if len(acting) != 1:
        raise ValueError(f"one gist adapter must act, there are {len(acting)}: set_adapter() to it")
    return acting[0]


def gist_count(model: GPT, config: GistConfig) -> int:
    """k C + Σ r (in + out)."""
    return config.num_gist_tokens * model.config.n_embd + lora_count(model, config)


register(
    Method(
        name="gist", config=GistConfig, adapter=Gist, shape="around", folder="input", start="none",
        count=gist_count, mergeable=False, rowwise=True,
        stackable_with=("reparam", "around", "tokens", "select"),
        summary="new words that a prompt is compressed into, by a mask",
        examples=(
            GistConfig(num_gist_tokens=2, gist_token_ids=[27, 1], r=2),
            GistConfig(num_gist_tokens=3, gist_token_ids=[7, 24, 21], r=2, target_modules=["o_proj", "up_proj"]),
        ),
    )
)  # fmt: skip
