"""What the checks of A3 ask of the library beside single calls: arrays in, arrays out, no verdicts."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.course.measure import traced
from minitorch_peft.kernels.lora import reference
from minitorch_peft.models import GPT, GPTConfig
from minitorch_peft.nn import Linear, Module, Parameter, TiedLinear
from minitorch_peft.peft.adapter import Adapter
from minitorch_peft.peft.inject import Wrapper, base_module, base_parameters, inject
from minitorch_peft.peft.merge import Merger
from minitorch_peft.peft.parameter.lora import Lora, LoraConfig, LoraLayer, lora_count
from minitorch_peft.peft.shapes import Reparam


def build(fields: dict[str, Any], llama: bool = False, seed: int | None = None) -> GPT:
    return GPT(GPTConfig.llama(**fields) if llama else GPTConfig(**fields), seed=seed)


# -- 3.1 the start -------------------------------------------------------------------------------------------
class Unscaled(LoraConfig):
    """Without a scaling of its own: that is another task."""

    def scaling(self, path: str) -> float:
        return 1.0


def start(
    fields: dict[str, Any], config: dict[str, Any], seed: int, dtype: str = "float32"
) -> dict[str, dict[str, Any]]:
    """Every parameter of a fresh adapter by path: its values, whose it is, and whether it trains."""
    adapter = Lora("mine", Unscaled(**config), build(fields).astype(np.dtype(dtype)), seed)
    return {
        path: {"data": p.data, "owner": p.owner, "trains": p.requires_grad}
        for path, p in adapter.named_parameters().items()
    }


# -- 3.2 and 3.3 the kernels ---------------------------------------------------------------------------------
def forward_traced(arguments: list[Any]) -> dict[str, Any]:
    """A forward pass, with the bytes that it takes."""
    return traced(lambda: reference.lora_linear_forward(*arguments))


def backward_traced(arguments: list[Any]) -> dict[str, Any]:
    """A backward pass, with the bytes that it takes."""
    return traced(lambda: reference.lora_linear_backward(*arguments[:-1], tuple(arguments[-1])))


# -- 3.4 merging ---------------------------------------------------------------------------------------------
class GivenLayer(LoraLayer):
    """A LoRA layer with given factors: how they start is another task."""

    def __init__(self, base_layer: Module, adapter: Adapter, A: np.ndarray, B: np.ndarray, s: float) -> None:
        Reparam.__init__(self, base_layer, adapter)
        self.lora_A, self.lora_B = Parameter(A, owner=adapter.name), Parameter(B, owner=adapter.name)
        self.scaling = s


class GivenAdapter(Lora):
    """An adapter of such layers: ``factors`` are [A, B, s] by path."""

    def __init__(self, name: str, model: GPT, factors: dict[str, list[Any]]) -> None:
        self.factors = factors
        super().__init__(name, LoraConfig(), model, 0)

    def attach(self, config: LoraConfig) -> None:
        self.wrappers = inject(self.model, self.factors, lambda base, path: GivenLayer(base, self, *self.factors[path]))


class Silent(Module):
    """Stands for the model where logits are compared, which needs a forward pass: its own never change."""

    def forward(self, ids: np.ndarray) -> SimpleNamespace:
        return SimpleNamespace(logits=Tensor(np.zeros((1, 1, 2))))


def effective(weight: np.ndarray, A: np.ndarray, B: np.ndarray, s: float) -> np.ndarray:
    adapter = SimpleNamespace(name="a")
    layer = GivenLayer(Linear(weight.shape[1], weight.shape[0]), adapter, A, B, s)  # type: ignore[arg-type]
    return layer.effective(weight)


def merging(
    fields: dict[str, Any], weights: dict[str, np.ndarray], factors: list[dict[str, list[Any]]], rounds: int = 1
) -> dict[str, Any]:
    """The state of a model with several adapters when merged and when unmerged, ``rounds`` times over.

    A merge that raises is reported under "error", and what it left behind under "unmerged".
    """
    model = build(fields)
    for path, p in base_parameters(model):
        p.data = weights[path].copy()
    adapters = [GivenAdapter(f"a{i}", model, given) for i, given in enumerate(factors)]
    merged, certificate, error = None, None, None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(rounds):
            merger = Merger(model, adapters)
            try:
                certificate = merger.merge(Silent(), np.zeros((1, 1), np.int64)).to_dict()
                merged = state(model, adapters)
                merger.unmerge()
            except ValueError as problem:
                error = str(problem)
    return {"merged": merged, "certificate": certificate, "error": error, "unmerged": state(model, adapters)}


def state(model: GPT, adapters: Sequence[Adapter]) -> dict[str, Any]:
    head = base_module(model, "lm_head")
    paths = [path for adapter in adapters for path in adapter.wrappers]
    return {
        "weights": {path: p.data.copy() for path, p in base_parameters(model)},
        "tied": isinstance(head, TiedLinear) and head.tied_to[0] is base_module(model, "embed.tokens"),
        "config": bool(model.config.tie_word_embeddings),
        "wrapped": all(isinstance(model.get(path), Wrapper) for path in paths),
        "flags": [adapter.merged for adapter in adapters],
    }


def base_weights(fields: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """A model's parameters by path."""
    return {path: p.data for path, p in base_parameters(build(fields, seed=seed))}


# -- 3.5 the count -------------------------------------------------------------------------------------------
def count(fields: dict[str, Any], llama: bool, config: dict[str, Any]) -> Any:
    return lora_count(build(fields, llama), LoraConfig(**config))


# -- 3.6 the scaling -----------------------------------------------------------------------------------------
def scaling(config: dict[str, Any], path: str) -> Any:
    return LoraConfig(**config).scaling(path)
