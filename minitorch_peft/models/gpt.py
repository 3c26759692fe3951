"""One GPT for two families: GPT-2 (Radford et al. 2019) and Llama (Touvron et al. 2023).

It contains no word of any adaptation method; methods attach to its named sub-modules from outside. Axes: B
rows of the batch, T new positions, S keys (those in the cache, then the T new ones), C channels, H heads, D
channels of a head, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import minitorch_peft.functional as F
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.models.cache import Cache
from minitorch_peft.models.config import GPTConfig
from minitorch_peft.models.generation import generate
from minitorch_peft.models.inputs import as_ids, prepare, shifted_labels, start_at_the_text
from minitorch_peft.nn import (
    Activation,
    Dropout,
    Embedding,
    ForwardContext,
    LayerNorm,
    Linear,
    Module,
    ModuleList,
    RMSNorm,
    TiedLinear,
    init,
)

if TYPE_CHECKING:
    from minitorch_peft.quant import BitsAndBytesConfig


@dataclass
class GPTOutput:
    """``logits`` (B, T, V); ``loss`` () where there are labels; ``hidden_states`` n_layer + 1 (B, T, C)."""

    logits: Tensor
    loss: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: list[Tensor] | None = None
    num_targets: int = 0  # targets that ``loss`` is the mean over


class Embed(Module):
    """``embed.tokens(ids)`` gives vectors, ``embed(vectors)`` adds positions: prompts enter between them."""

    def __init__(self, config: GPTConfig) -> None:
        std = init.normal(config.initializer_range)
        self.tokens = Embedding(config.vocab_size, config.n_embd, std)
        if config.position_embedding == "learned":
            self.positions = Embedding(config.n_positions, config.n_embd, std)
        self.dropout = Dropout(config.embd_pdrop, "embed")

    def forward(self, vectors: Tensor, context: ForwardContext) -> Tensor:
        if "positions" in vars(self):
            vectors = vectors + self.positions(context.position_ids, context)
        return self.dropout(vectors, context)


class Attention(Module):
    """softmax(q kᵀ / √D) v over the keys at or before each query (Vaswani et al. 2017, eq. 1), H heads."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        std = config.initializer_range
        width, kv_width = config.n_embd, config.kv_heads * config.head_dim
        self.layer = layer
        self.head_dim = config.head_dim
        self.q_proj = Linear(width, width, config.attention_bias, init.normal(std))
        self.k_proj = Linear(width, kv_width, config.attention_bias, init.normal(std))
        self.v_proj = Linear(width, kv_width, config.attention_bias, init.normal(std))
        self.o_proj = Linear(width, width, config.attention_bias, residual_init(config))
        self.dropout = Dropout(config.attn_pdrop, f"blocks.{layer}.attn")

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        q = self.heads(self.q_proj(x, context))
        k = self.heads(self.k_proj(x, context))
        v = self.heads(self.v_proj(x, context))
        if context.rotary is not None:
            q, k = F.apply_rotary(q, *context.rotary), F.apply_rotary(k, *context.rotary)
        if context.cache is not None:
            k, v = context.cache.update(self.layer, k, v, context.past_length)
        dropout_p, key = 0.0, None
        if self.training and self.dropout.p > 0:
            dropout_p, key = self.dropout.p, self.dropout.key(context)
        y = F.scaled_dot_product_attention(
            q, k, v, context.keep, dropout_p, is_causal=True, enable_gqa=True, dropout_key=key
        )
        B, H, T, D = y.shape
        return self.o_proj(y.transpose(1, 2).reshape(B, T, H * D), context)

    def heads(self, x: Tensor) -> Tensor:
        """(B, T, H * D) to (B, H, T, D)."""
        B, T, width = x.shape
        return x.reshape(B, T, width // self.head_dim, self.head_dim).transpose(1, 2)


class MLP(Module):
    """down(act(up(x))), or down(act(gate(x)) * up(x)) where the config is gated (Shazeer 2020)."""

    def __init__(self, config: GPTConfig) -> None:
        std = init.normal(config.initializer_range)
        if config.gated_mlp:
            self.gate_proj = Linear(config.n_embd, config.inner, config.mlp_bias, std)
        self.up_proj = Linear(config.n_embd, config.inner, config.mlp_bias, std)
        self.act = Activation(config.activation_function)
        self.down_proj = Linear(config.inner, config.n_embd, config.mlp_bias, residual_init(config))

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        h = self.up_proj(x, context)
        h = self.act(self.gate_proj(x, context)) * h if "gate_proj" in vars(self) else self.act(h)
        return self.down_proj(h, context)


class Block(Module):
    """x + attn(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        self.ln_1 = make_norm(config)
        self.attn = Attention(config, layer)
        self.attn_dropout = Dropout(config.resid_pdrop, f"blocks.{layer}.attn_dropout")
        self.ln_2 = make_norm(config)
        self.mlp = MLP(config)
        self.mlp_dropout = Dropout(config.resid_pdrop, f"blocks.{layer}.mlp_dropout")

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        x = x + self.attn_dropout(self.attn(self.ln_1(x, context), context), context)
        return x + self.mlp_dropout(self.mlp(self.ln_2(x, context), context), context)


class Blocks(ModuleList):
    """The stack; a module of its own, so that a method can stand around the whole loop."""

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        for block in self:
            if context.hidden_states is not None:
                context.hidden_states.append(x)
            x = block(x, context)
        return x


class GPT(Module):
    """A decoder-only language model.

    >>> model = GPT(GPTConfig(vocab_size=97, n_positions=64, n_embd=64, n_layer=3, n_head=4), seed=0)
    >>> model(np.arange(10).reshape(2, 5)).logits.shape
    (2, 5, 97)
    """

    def __init__(self, config: GPTConfig, seed: int | None = 0) -> None:
        """``seed`` draws the starting weights; None leaves zeros, for a state that is to be loaded."""
        self.config = config
        self.passes = 0  # in training, without a context of the caller's
        self.embed = Embed(config)
        self.blocks = Blocks([Block(config, i) for i in range(config.n_layer)])
        self.ln_f = make_norm(config)
        self.lm_head: Module = (
            TiedLinear(self.embed.tokens)
            if config.tie_word_embeddings
            else Linear(config.n_embd, config.vocab_size, False, init.normal(config.initializer_range))
        )
        if seed is not None:
            init.initialize(self, seed)

    def forward(
        self,
        input_ids: Any = None,
        labels: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool = False,
        output_hidden_states: bool = False,
        context: ForwardContext | None = None,
    ) -> GPTOutput:
        """Logits, and the loss where ``labels`` are given.

        Args:
            input_ids: int (B, T), each in [0, V).
            labels: int (B, T), -100 where there is nothing to predict. The model shifts: the logits at a
                position are held against the label of the next one, and those of the last prompt vector, if
                an adapter put prompts before the input, against the first label, also in a row padded on the
                left. Without a prompt the last position of padding there predicts the first word, as in
                ``transformers``: give that word -100 if it is not to count.
            attention_mask: (B, S) or (B, 1, T, S), true (or 1) where a key may be attended to. Where S is
                left short, the keys before it (a prefix, a prompt) are visible. Causality holds besides.
            position_ids: int (B, T), counted from the text's first word, in later passes too: what adapters put
                before it is added. By default each row counts its unmasked keys, so that a left-padded row
                has the positions that it would have alone.
            past_key_values: a cache, written to.
            inputs_embeds: (B, T, C) in place of ``input_ids``.
            context: made by ``PeftModel`` where adapters act on this pass.

        Raises:
            ValueError: an id outside the vocabulary, more positions than the model has, shapes that disagree.
        """
        context = self.new_context() if context is None else context
        context.hidden_states = [] if output_hidden_states else None
        cache = Cache() if use_cache and past_key_values is None else past_key_values
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if inputs_embeds is None:
            ids = as_ids(input_ids, self.config.vocab_size)
            shape = ids.shape
            h = self.encode_ids(ids, context, cache, attention_mask, position_ids)
        else:
            shape = inputs_embeds.shape[:2]
            h = self.encode(inputs_embeds, context, cache, attention_mask, position_ids)
        logits, loss, num_targets = self.predict(h, shape[1], labels, context)
        if context.hidden_states is not None:
            context.hidden_states.append(h)
        return GPTOutput(logits, loss, cache, context.hidden_states, num_targets)

    def new_context(self) -> ForwardContext:
        """The context of a pass that was given none: in training, a hand-written loop draws dropout anew each time."""
        self.passes += self.training
        return ForwardContext(step=self.passes)

    def encode_ids(
        self, ids: np.ndarray, context: ForwardContext, cache: Cache | None = None,
        attention_mask: Any = None, position_ids: Any = None,
    ) -> Tensor:  # fmt: skip
        """:meth:`encode` of the token vectors of ``ids`` (B, T)."""
        vectors = self.embed.tokens(ids, context)
        return self.encode(vectors, context, cache, attention_mask, position_ids)

    def encode(
        self, vectors: Tensor, context: ForwardContext, cache: Cache | None = None,
        attention_mask: Any = None, position_ids: Any = None,
    ) -> Tensor:  # fmt: skip
        """Token vectors (B, T, C) to the last hidden states (B, prompt + T, C), after the final norm."""
        prepare(context, self.config, vectors, cache, attention_mask, position_ids)
        return self.ln_f(self.blocks(self.embed(vectors, context), context), context)

    def predict(self, h: Tensor, T: int, labels: Any, context: ForwardContext) -> tuple[Tensor, Tensor | None, int]:
        """Logits of the last T positions, the mean cross-entropy of the labels but -100, and their number."""
        if labels is None:
            return self.lm_head(h if h.shape[1] == T else h[:, -T:], context), None, 0
        one_before = h.shape[1] > T
        logits = self.lm_head(h[:, -(T + 1) :] if one_before else h, context)
        targets = shifted_labels(labels, (h.shape[0], T), one_before, self.config.vocab_size)
        if one_before and context.prompt_keep is not None:
            targets[~context.prompt_keep[:, -1], 0] = -100  # a row without a prompt has nothing before its first token
        if one_before and context.first is not None:
            start_at_the_text(targets, context.first, context.prompt_keep)
        loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))
        return (logits[:, 1:] if one_before else logits), loss, int((targets != -100).sum())

    def positions_before(self, rows: int, **options: Any) -> np.ndarray:
        """int (rows,): the positions that are taken before the text of each row, were it given these options."""
        return np.zeros(rows, int)

    def generate(self, input_ids: Any, max_new_tokens: int = 20, **options: Any) -> np.ndarray:
        """Continue each row; see :func:`minitorch_peft.models.generation.generate`."""
        return generate(self, input_ids, max_new_tokens, **options)

    def untie(self) -> None:
        """Give the head its own copy of the embedding's weight, if it shares it."""
        if isinstance(self.lm_head, TiedLinear):
            self.lm_head = self.lm_head.untied()
            self.config = replace(self.config, tie_word_embeddings=False)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, quantization_config: BitsAndBytesConfig | None = None) -> GPT:
        """An embedded checkpoint ("tiny-0.25m", "tiny", "tiny-2m") or a Hugging Face directory.

        >>> from minitorch_peft.quant import BitsAndBytesConfig
        >>> GPT.from_pretrained("tiny", quantization_config=BitsAndBytesConfig(load_in_4bit=True)).blocks[0].attn.q_proj
        Linear4bit(128, 128, fp4 in blocks of 64)
        """
        from minitorch_peft.models.pretrained import load_pretrained

        return load_pretrained(name_or_path, quantization_config)

    def save_pretrained(self, directory: str | Path, format: str | None = None) -> None:
        """Write what ``transformers`` loads: ``config.json`` and ``model.safetensors``, "gpt2" or "llama".

        What is in four bits is written in four bits, as ``bitsandbytes`` does.
        """
        from minitorch_peft.models.pretrained import save_pretrained

        save_pretrained(self, directory, format)


def make_norm(config: GPTConfig) -> Module:
    norm = LayerNorm if config.norm == "layer" else RMSNorm
    return norm(config.n_embd, config.layer_norm_epsilon)


def residual_init(config: GPTConfig) -> init.Init:
    """GPT-2's start of the projections that write to the residual stream: std / √(2 n_layer)."""
    return init.normal(config.initializer_range / math.sqrt(2 * config.n_layer))
