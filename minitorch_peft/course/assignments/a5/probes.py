"""What the checks of A5 ask of the library beside single calls: arrays in, arrays out, no verdicts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np

from minitorch_peft.analysis.unified_view import GatedAttention
from minitorch_peft.autograd.function import Context
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.models import GPT, Cache, GPTConfig
from minitorch_peft.models.inputs import prepare
from minitorch_peft.nn import ForwardContext, Module
from minitorch_peft.peft import SeqBnConfig, get_peft_model
from minitorch_peft.peft.adapter import Adapter
from minitorch_peft.peft.function.bottleneck import BottleneckLayer
from minitorch_peft.peft.function.bottleneck_function import NON_LINEARITIES, Bottleneck
from minitorch_peft.peft.inject import inject
from minitorch_peft.peft.input.prefix_tuning import PrefixTuning, PrefixTuningConfig
from minitorch_peft.peft.parameter import hard_concrete as gates
from minitorch_peft.peft.parameter.bitfit import BitFitConfig, bitfit_count, bitfit_targets
from minitorch_peft.peft.passes import begin
from minitorch_peft.peft.shapes import Tokens


def build(fields: dict[str, Any], llama: bool = False, seed: int | None = None) -> GPT:
    return GPT(GPTConfig.llama(**fields) if llama else GPTConfig(**fields), seed=seed)


# -- 5.1 and 5.2: one operation ----------------------------------------------------------------------------------------
def forward(arrays: list[Any], f: str, s: float, to_z: bool) -> dict[str, Any]:
    """y of (h, z, W_down, b_down, W_up, b_up, scale), and the narrow u that is kept for the backward pass."""
    context = Context("Bottleneck", (True,) * 7)
    y = Bottleneck.forward(context, *arrays, f=NON_LINEARITIES[f], s=s, to_z=to_z)
    return {"y": y, "u": context.saved[1]}


def reads(y: np.ndarray, x: np.ndarray, parallel: bool) -> Any:
    """What an adapter takes in at a sub-layer with this input and this output."""
    layer: Any = SimpleNamespace(is_parallel=parallel)
    return BottleneckLayer.reads(layer, Tensor(y), Tensor(x)).data


def backward(G: np.ndarray, saved: list[Any], f: str, learned: bool, to_z: bool, needs: list[bool]) -> Any:
    """The gradients of the seven inputs; ``saved`` is (z, u, W_down, W_up, b_up, s)."""
    context = Context("Bottleneck", tuple(needs))
    context.saved = tuple(saved)
    vars(context).update(f=NON_LINEARITIES[f], learned=learned, to_z=to_z)
    return Bottleneck.backward(context, G)


# -- 5.3 prompts -------------------------------------------------------------------------------------------------------
class GivenPrompt(Tokens):
    """A layer of virtual tokens whose prompt is given."""

    def __init__(self, base_layer: Module, prompt: np.ndarray, name: str, rows: Any = True) -> None:
        self.base_layer = base_layer
        self.adapter: Any = SimpleNamespace(name=name, rows=lambda context: rows)
        self.given = Tensor(prompt, requires_grad=True)

    def prompt(self) -> Tensor:
        return self.given


class Same(Module):
    """Gives what it takes."""

    def forward(self, x: Tensor, context: ForwardContext | None = None) -> Tensor:
        return x


def prompted(x: np.ndarray, prompts: list[Any], rows: list[Any], names: list[str] | None, announced: int) -> Any:
    """What comes out of layers with these prompts, the first one innermost, around nothing.

    ``rows``: of each, whether its adapter acts: true, false, or of each row. ``announced``: the prompt_length of the
    pass.
    """
    layer: Module = Same()
    for number, (prompt, acts) in enumerate(zip(prompts, rows, strict=True)):
        layer = GivenPrompt(layer, prompt, f"a{number}", acts)
    context = ForwardContext(adapter_names=None if names is None else tuple(names), prompt_length=announced)
    return layer(Tensor(x), context).data


def prompt_gradients(x: np.ndarray, prompt: np.ndarray, g: np.ndarray) -> dict[str, Any]:
    """The output of a layer without a context, and the gradients of the prompt and of x."""
    layer, vectors = GivenPrompt(Same(), prompt, "a"), Tensor(x, requires_grad=True)
    y = layer(vectors)
    y.backward(g)
    return {"y": y.data, "prompt": layer.given.grad, "x": vectors.grad}


def prompted_model(fields: dict[str, Any], llama: bool, seed: int, prompt: np.ndarray, passes: list[Any]) -> Any:
    """The logits of one sequence, fed to a model in several passes; only the first one announces the prompt."""
    model = build(fields, llama, seed)
    inject(model, ["embed"], lambda base, path: GivenPrompt(base, prompt, "a"))
    cache, logits = Cache(), []
    for number, ids in enumerate(passes):
        context = ForwardContext(prompt_length=0 if number else len(prompt))
        logits.append(model(ids, past_key_values=cache, context=context).logits.data)
    return logits


# -- 5.4 from a table to keys and values -------------------------------------------------------------------------------
def prefix(fields: dict[str, Any], llama: bool, table: np.ndarray, weights: list[Any] | None = None) -> dict[str, Any]:
    """Keys and values of each layer for this table, and the table's gradient if each of them has these ``weights``."""
    config = PrefixTuningConfig(num_virtual_tokens=len(table))
    adapter = PrefixTuning("a", config, build(fields, llama).astype(table.dtype), 0)
    adapter.encoder.start_at(table)
    trained = adapter.encoder.embedding.weight
    pairs = adapter.prefix()
    found = {"pairs": [[key.data, value.data] for key, value in pairs], "gradient": None}
    if weights is not None:
        total = sum(
            (part * Tensor(w)).sum()
            for pair, of in zip(pairs, weights, strict=True)
            for part, w in zip(pair, of, strict=True)
        )
        total.backward()
        found["gradient"] = trained.grad
    return found


def projected_prefix(fields: dict[str, Any], llama: bool, k: int, hidden: int, seed: int) -> dict[str, Any]:
    """Keys and values of a prefix whose table a network makes, and the network's parameters in order."""
    config = PrefixTuningConfig(num_virtual_tokens=k, prefix_projection=True, encoder_hidden_size=hidden)
    adapter = PrefixTuning("a", config, build(fields, llama).astype(np.dtype(np.float64)), seed)
    pairs = [[key.data, value.data] for key, value in adapter.prefix()]
    return {"pairs": pairs, "parameters": [p.data for p in adapter.encoder.parameters()]}


# -- 5.5 where the cache starts ----------------------------------------------------------------------------------------
class Given(Adapter):
    """An adapter with a given prefix, or none, and a prompt of given length."""

    def __init__(self, name: str, pairs: Any, prompt_length: int, active: bool) -> None:
        self.name, self.prompt_length, self.active, self.merged = name, prompt_length, active, False
        self.tensors = None if pairs is None else [tuple(Tensor(t, requires_grad=True) for t in p) for p in pairs]

    def prefix(self) -> Any:
        return self.tensors


def given(adapters: list[Any]) -> dict[str, Adapter]:
    """From [name, pairs, prompt_length, active]."""
    return {name: Given(name, pairs, prompt_length, active) for name, pairs, prompt_length, active in adapters}


def started(
    adapters: list[Any], batch: int, length: int, names: list[str] | None, own_cache: bool, passes: int = 1
) -> list[Any]:
    """What ``begin`` makes of context and cache in the first pass, and in later ones, after the tokens were added.

    ``own_cache``: the caller gave one, which is asked afterwards.
    """
    acting, cache, found = given(adapters), Cache() if own_cache else None, []
    for _ in range(passes):
        context = ForwardContext(adapter_names=None if names is None else tuple(names))
        after = begin(context, acting, np.zeros((batch, length), np.int64), cache, own_cache)
        cache = cache if own_cache else after
        found.append(None if cache is None else told(cache) | {"prompt": context.prompt_length})
        if cache is None:
            return found
        for layer, (key, _) in cache.entries.items():  # as the model does
            B, heads, past, width = key.shape
            new = Tensor(np.full((B, heads, length, width), 7.0))
            cache.update(layer, new, new, past)
        cache.next_position += length
    return found


def told(cache: Cache) -> dict[str, Any]:
    """A cache's keys and values by layer, where positions go on, and which keys are real."""
    pairs = [[key.data, value.data] for _, (key, value) in sorted(cache.entries.items())]
    return {"pairs": pairs, "layers": sorted(cache.entries), "next": cache.next_position, "real": cache.real}


def prefix_gradients(pairs: list[Any], batch: int, weights: list[Any]) -> list[Any]:
    """Gradients of a prefix's keys and values where each number in the cache has one of these ``weights``."""
    acting = given([["a", pairs, 0, True]])
    cache = begin(ForwardContext(), acting, np.zeros((batch, 1), np.int64), Cache(), True)
    assert cache is not None
    total = sum(
        (part * Tensor(w)).sum()
        for layer, of in enumerate(weights)
        for part, w in zip(cache.entries[layer], of, strict=True)
    )
    total.backward()  # type: ignore[union-attr]
    return [[t.grad for t in pair] for pair in acting["a"].prefix() or ()]


def prefixed_model(fields: dict[str, Any], llama: bool, seed: int, pairs: list[Any], passes: list[Any]) -> Any:
    """The logits of a batch that is fed to a model with this prefix in several passes."""
    model, acting = build(fields, llama, seed), given([["a", pairs, 0, True]])
    cache, logits = Cache(), []
    for ids in passes:
        context = ForwardContext()
        begin(context, acting, ids, cache, True)
        logits.append(model(ids, past_key_values=cache, context=context).logits.data)
    return logits


# -- 5.6 BitFit --------------------------------------------------------------------------------------------------------
def biases(fields: dict[str, Any], llama: bool, config: dict[str, Any], beside: bool = False) -> dict[str, Any]:
    """The targets with their sizes, and the count. ``beside``: while an adapter with biases of its own is attached."""
    model = build(fields, llama)
    if beside:
        get_peft_model(model, SeqBnConfig(bottleneck_size=2))
    chosen = BitFitConfig(**config)
    return {"targets": bitfit_targets(model, chosen), "count": bitfit_count(model, chosen)}


# -- 5.7 the gate ------------------------------------------------------------------------------------------------------
@contextmanager
def stretched(left: float, right: float) -> Iterator[None]:
    """Other ends for the interval that s is stretched to."""
    before = gates.LEFT, gates.RIGHT
    gates.LEFT, gates.RIGHT = left, right
    try:
        yield
    finally:
        gates.LEFT, gates.RIGHT = before


def gate(alpha: np.ndarray, noise: Any, left: float, right: float) -> Any:
    with stretched(left, right):
        return gates.hard_concrete(alpha, noise)


def gate_backward(G: np.ndarray, z: np.ndarray, left: float, right: float) -> Any:
    """The gradient of alpha, of which only z was kept."""
    context = Context("HardConcrete", (True,))
    context.save_for_backward(z)
    with stretched(left, right):
        return gates.HardConcrete.backward(context, G)


def open_probability(alpha: np.ndarray, left: float, right: float) -> dict[str, Any]:
    with stretched(left, right):
        p = gates.open_probability(Tensor(alpha, requires_grad=True))
    return {"value": p.data, "trains": bool(p.requires_grad)}


# -- 5.8 a prefix, without one -----------------------------------------------------------------------------------------
def gated(
    fields: dict[str, Any], seed: int, pair: list[Any], x: np.ndarray, mask: Any, g: np.ndarray | None = None
) -> dict[str, Any]:
    """What the first attention layer gives for x with the gated change, and the gradients of keys and values."""
    model = build(fields, seed=seed).astype(x.dtype)
    keys, values = (Tensor(t, requires_grad=True) for t in pair)
    layer, context, given_x = GatedAttention(model.blocks[0].attn, keys, values), ForwardContext(), Tensor(x)
    prepare(context, model.config, given_x, None, mask, None)
    y = layer(given_x, context)
    if g is not None:
        y.backward(g)
    return {"y": y.data, "keys": keys.grad, "values": values.grad}
