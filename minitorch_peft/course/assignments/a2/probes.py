"""What the checks of A2 ask of the library beside single calls: arrays in, arrays out, no verdicts."""

from __future__ import annotations

from typing import Any

import numpy as np

from minitorch_peft.autograd.function import Context
from minitorch_peft.autograd.tensor import Tensor, tensor
from minitorch_peft.data.pairs import Pairs
from minitorch_peft.models import GPT, GPTConfig, generation
from minitorch_peft.models.cache import Cache
from minitorch_peft.models.inputs import shifted_labels
from minitorch_peft.nn import ForwardContext
from minitorch_peft.ops.matmul import Linear, linear
from minitorch_peft.peft import get_peft_model
from minitorch_peft.peft.parameter.partial import PartialConfig, partial_targets


# -- 2.3 the cache -------------------------------------------------------------------------------------------
def updates(calls: list[dict], next_position: int) -> dict[str, Any]:
    """Calls of ``Cache.update`` one after another: what each returned, and what the cache then held."""
    cache = Cache()
    cache.next_position = next_position
    returned = []
    for call in calls:
        key, value = cache.update(call["layer"], Tensor(call["key"]), Tensor(call["value"]), call["past_length"])
        returned.append([key.data, value.data])
    return {"returned": returned, "held": held(cache), "next_position": cache.next_position}


def cache_gradients(calls: list[dict], weights: list[list[np.ndarray]]) -> list[list[np.ndarray | None]]:
    """The gradients at every call's key and value of the sum, over all calls, of what it returned times weights."""
    cache, leaves = Cache(), []
    total: Any = 0.0
    for call, (key_weight, value_weight) in zip(calls, weights, strict=True):
        key, value = (tensor(call[name], requires_grad=True) for name in ("key", "value"))
        leaves.append((key, value))
        key, value = cache.update(call["layer"], key, value, call["past_length"])
        total = total + (key * Tensor(key_weight)).sum() + (value * Tensor(value_weight)).sum()
    if total.requires_grad:
        total.backward()
    return [[key.grad, value.grad] for key, value in leaves]


def selected(layers: list[list[np.ndarray]], keep: list[int], next_position: int) -> dict[str, Any]:
    """What a cache holds after ``select``, and the gradients of the sum of it."""
    cache = Cache()
    leaves = [(tensor(key, requires_grad=True), tensor(value, requires_grad=True)) for key, value in layers]
    cache.entries = dict(enumerate(leaves))
    cache.next_position = next_position
    cache.select(keep)
    total: Any = 0.0
    for key, value in cache.entries.values():
        total = total + key.sum() + value.sum()
    if total.requires_grad:
        total.backward()
    return {
        "held": held(cache),
        "length": cache.length,
        "next_position": cache.next_position,
        "gradients": [[key.grad, value.grad] for key, value in leaves],
    }


def held(cache: Cache) -> dict[str, list[np.ndarray]]:
    return {str(layer): [key.data, value.data] for layer, (key, value) in cache.entries.items()}


# -- 2.4 the masked loss -------------------------------------------------------------------------------------
def shifted(labels: np.ndarray, one_before: bool, vocab_size: int) -> np.ndarray:
    return shifted_labels(labels, labels.shape, one_before, vocab_size)  # type: ignore[arg-type]


def pairs_of(prompts: list[list[int]], answers: list[list[int]], pad: int) -> Pairs:
    count = len(prompts)
    return Pairs(tuple(range(count)), tuple(prompts), tuple(answers), ("",) * count, ("",) * count, 0, pad)


def rows(
    prompts: list[list[int]], answers: list[list[int]], pad: int, indices: list[int], side: Any
) -> list[dict[str, np.ndarray]]:
    """The same rows, asked for twice."""
    pairs = pairs_of(prompts, answers, pad)
    return [pairs._rows(indices, side) for _ in range(2)]


def conditional_loss(
    prompts: list[list[int]], answers: list[list[int]], pad: int, side: Any, hidden: np.ndarray, head: np.ndarray
) -> dict[str, Any]:
    """The loss of all pairs as one batch, where ``hidden`` (B, T or T + 1, C) is what the blocks are said to give."""
    (batch,) = pairs_of(prompts, answers, pad).batches(len(prompts), side)
    vocab_size, width = head.shape
    fields = {"n_positions": 64, "n_embd": width, "n_layer": 1, "n_head": 1, "tie_word_embeddings": False}
    model = GPT(GPTConfig(vocab_size=vocab_size, **fields), seed=None).astype(np.float64)
    model.lm_head.set_dense_weight(head)  # type: ignore[attr-defined]
    length = batch["input_ids"].shape[1]
    _, loss, counted = model.predict(Tensor(hidden), length, batch["labels"], ForwardContext())
    assert loss is not None
    return {"loss": loss.item(), "targets": counted}


# -- 2.6 sampling --------------------------------------------------------------------------------------------
class Fixed:
    """A generator whose next number is known."""

    def __init__(self, u: float) -> None:
        self.u = u

    def random(self) -> float:
        return self.u


def drawn(p: np.ndarray, numbers: list[float]) -> list[Any]:
    """What ``sample`` draws from ``p`` where the random number is each of ``numbers``."""
    before = generation.generator
    draws = []
    try:
        for u in numbers:
            generation.generator = lambda *site, u=u: Fixed(u)  # type: ignore[assignment, misc]
            draws.append(generation.sample(p, 0, 0, 0))
    finally:
        generation.generator = before
    return draws


# -- 2.7 freezing --------------------------------------------------------------------------------------------
def build(fields: dict[str, Any], llama: bool) -> GPT:
    return GPT(GPTConfig.llama(**fields) if llama else GPTConfig(**fields), seed=None)


def trained(fields: dict[str, Any], llama: bool, top_layers: int) -> dict[str, Any]:
    """Names and sizes of the parameters that are chosen, and names of what trains once the adapter is attached."""
    model = build(fields, llama)
    config = PartialConfig(top_layers=top_layers)
    chosen = {name: int(size) for name, size in partial_targets(model, config).items()}
    adapted = get_peft_model(model, config)
    training = [name for name, p in adapted.named_parameters() if p.requires_grad]
    return {"chosen": chosen, "training": training}


def linear_gradients(
    x: np.ndarray, w: np.ndarray, b: np.ndarray | None, g: np.ndarray, needs: list[bool]
) -> list[np.ndarray | None]:
    """Forward and backward of the rule alone, where ``needs`` says which inputs train."""
    ctx = Context("Linear", tuple(needs))
    Linear.forward(ctx, x, w, b)
    return list(Linear.backward(ctx, g))


def two_layers(x: np.ndarray, frozen: np.ndarray, w: np.ndarray, g: np.ndarray) -> dict[str, np.ndarray | None]:
    """Gradients of x and of three weights: a trained layer below, a frozen one, a trained one on top."""
    leaves = {
        "below": tensor(np.eye(x.shape[-1]), requires_grad=True),
        "frozen": Tensor(frozen),
        "above": tensor(w, requires_grad=True),
    }
    y = Tensor(x)
    for leaf in leaves.values():
        y = linear(y, leaf)
    y.backward(gradient=g)
    return {name: leaf.grad for name, leaf in leaves.items()}
