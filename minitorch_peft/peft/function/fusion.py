"""AdapterFusion: attention over what several trained bottleneck adapters would do (Pfeiffer et al. 2021, section 3).

    Δ_i = s_i (W_up f(W_down z))              of adapter i of n, (C,) for each token; z is what the adapters read
    p   = softmax_i((W_Q z + b_Q) · W_K Δ_i)
    y   = h + W_V Σ_i p_i Δ_i                 h is the sub-layer's output, without any adapter; W_Q, W_K, W_V (C, C)

It stands where the fused adapters stand, which are frozen and do not act themselves: h is computed once, all Δ_i on it.
Knowledge is composed without loss, the paper's claim: they are trained apart, for a task each, and only the attention
learns to choose among them, token by token. Parameters: 3 C² + C for each place, 2 C² + C without ``value``. Start, as
in AdapterHub: W_Q and W_K from N(0, 0.02²), so that p is about 1 / n, W_V the identity with 1e-6 beside its diagonal:
the mean of the adapters, which is not the base. W_V is held near the identity by a penalty of 0.01 ‖I - W_V‖².

AdapterHub gives W_K a bias too. It would add the same to all n scores, which softmax does not see; it is left out. The
scores are computed as (W_Kᵀ (W_Q z + b_Q)) · Δ_i, and W_V is applied to the sum: C² operations for each, not n C².
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

import minitorch_peft.functional as F
from minitorch_peft.autograd.tensor import Tensor, no_grad
from minitorch_peft.models import GPT
from minitorch_peft.nn import ForwardContext, Linear, Module, init
from minitorch_peft.peft.adapter import Adapter
from minitorch_peft.peft.config import PeftConfig
from minitorch_peft.peft.function.bottleneck import BottleneckLayer, SeqBnConfig
from minitorch_peft.peft.function.fusion_function import Attended, attention
from minitorch_peft.peft.inject import base_modules, inject, slot
from minitorch_peft.peft.registry import Method, register
from minitorch_peft.peft.shapes import Around, Attached

if TYPE_CHECKING:
    from minitorch_peft.peft.model import PeftModel


@dataclass
class AdapterFusionConfig(PeftConfig):
    """``adapters``: the names of those to fuse, which must be attached before, all at the same places.

    ``value``: is there a W_V (AdapterHub's "dynamic" fusion) or not ("static")? ``regularization``: its penalty.

    >>> from minitorch_peft.models import GPT, GPTConfig
    >>> from minitorch_peft.peft import PeftModel, SeqBnConfig
    >>> p = PeftModel(GPT(GPTConfig(vocab_size=97, n_positions=64, n_embd=64, n_layer=3, n_head=4)))
    >>> p.add_adapter("old", SeqBnConfig())
    >>> p.add_adapter("new", SeqBnConfig())
    >>> p.add_adapter("both", AdapterFusionConfig(["old", "new"]))
    >>> p.set_adapter("both")
    >>> p.print_trainable_parameters()
    trainable params: 37,056 || all params: 200,920 || trainable%: 18.4432
    >>> fusion_weights(p, [[1, 2, 3, 4, 5]], "both")["blocks.0.mlp"].shape
    (1, 5, 2)
    """

    peft_type: ClassVar[str] = "ADAPTER_FUSION"

    adapters: list[str] = field(default_factory=list)
    value: bool = True
    regularization: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.adapters, str) or not self.adapters or len(set(self.adapters)) < len(self.adapters):
            raise ValueError(f"adapters must name the adapters to fuse, each once, got {self.adapters!r}")

    def paths(self, model: GPT) -> list[str]:
        """Where the fused adapters stand; ValueError where one is missing, is no bottleneck, or stands elsewhere."""
        standing = {path: layers_at(model, path) for path, _ in base_modules(model)}
        places = {name: [path for path, here in standing.items() if name in here] for name in self.adapters}
        for name, paths in places.items():
            if not paths:
                names = dict.fromkeys(name for here in standing.values() for name in here)
                there = f"those that do: {', '.join(names) or 'none'}"
                raise ValueError(f"fusion: no adapter {name!r} stands around a module; {there}; attach it first")
            check_fusable(name, [standing[path][name] for path in paths])
            if paths != places[self.adapters[0]]:
                raise ValueError(
                    f"fusion: {name} stands at {', '.join(paths)}, {self.adapters[0]} at "
                    f"{', '.join(places[self.adapters[0]])}: fuse adapters of the same places"
                )
        first = places[self.adapters[0]]
        check_one_kind({name: standing[first[0]][name] for name in self.adapters})
        return first


def layers_at(model: Module, path: str) -> dict[str, Any]:
    """The wrappers at ``path`` by their adapters' names, outermost first."""
    parent, name = slot(model, path)
    here = parent.get(name)
    return {layer.adapter.name: layer for layer in here.chain()} if isinstance(here, Attached) else {}


def check_fusable(name: str, layers: list[Any]) -> None:
    if not all(isinstance(layer, BottleneckLayer) for layer in layers):
        fusable = "SeqBnConfig, DoubleSeqBnConfig or ParBnConfig"
        raise ValueError(f"fusion: {name} is no bottleneck adapter: fuse adapters of {fusable}")


def check_one_kind(layers: Mapping[str, Any]) -> None:
    if len({layer.is_parallel for layer in layers.values()}) > 1:
        raise ValueError(f"fusion: some of {', '.join(layers)} are parallel, some not: fuse adapters of one kind")


class FusionLayer(Around):
    """A sub-layer, and the attention over what the fused adapters would make of it."""

    def __init__(self, base_layer: Module, path: str, adapter: Adapter, config: AdapterFusionConfig) -> None:
        super().__init__(base_layer, adapter)
        C, small = adapter.model.config.n_embd, init.normal(0.02)
        self.path, self.names = path, tuple(config.adapters)
        self.query = adapter.new_module(f"{path}.query", Linear(C, C, weight_init=small))
        self.key = adapter.new_module(f"{path}.key", Linear(C, C, bias=False, weight_init=small))
        if config.value:
            self.value = adapter.new_module(f"{path}.value", Linear(C, C, bias=False, weight_init=near_identity))
        self.weights: list[np.ndarray] | None = None  # a list put here is filled: see fusion_weights

    def after(self, y: Tensor, x: Tensor, context: ForwardContext | None) -> Tensor:
        fused = self.fused(context)
        z = fused[0].reads(y, x)
        changes = [layer.added(z, frozen=True) for layer in fused]
        asked = F.matmul(self.query(z), self.key.weight)  # W_Kᵀ (W_Q z + b_Q), (B, T, C)
        if self.weights is not None:
            self.weights.append(attention(asked.data, [change.data for change in changes]))
        mean = Attended.apply(asked, *changes)
        return y + (self.value(mean) if "value" in vars(self) else mean)

    def fused(self, context: ForwardContext | None) -> list[BottleneckLayer]:
        """The fused adapters' layers of this place, wherever they stand around it."""
        here, own = layers_at(self.adapter.model, self.path), self.adapter.name
        for name in self.names:
            if name not in here:
                raise ValueError(f"{own} fuses {name}, which was deleted: add or load it again, or delete {own} too")
            check_fusable(name, [here[name]])
            if here[name].adapter.active and (context is None or context.adapter_names is None):
                raise ValueError(
                    f"{name} is fused by {own} and acts itself, which is twice: set_adapter({own!r}) alone"
                )
        found = {name: here[name] for name in self.names}
        check_one_kind(found)  # one may have been deleted since, and added as another
        return list(found.values())


def near_identity(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.where(np.eye(shape[0]) == 1, 1.0, 1e-6)


class AdapterFusion(Adapter):
    def attach(self, config: AdapterFusionConfig) -> None:
        paths = config.paths(self.model)
        self.wrappers = inject(self.model, paths, lambda base, path: FusionLayer(base, path, self, config))

    def penalty(self) -> Tensor | None:
        """0.01 Σ ‖I - W_V‖² over the places."""
        if not (self.config.value and self.config.regularization):
            return None
        identity = Tensor(np.eye(self.model.config.n_embd, dtype=self.dtype))
        away = [layer.value.weight - identity for layer in self.wrappers.values()]
        squares = [(d * d).sum() for d in away]
        return sum(squares[1:], start=squares[0]) * 0.01


def fusion_weights(peft_model: PeftModel, input_ids: Any, adapter_name: str, **options: Any) -> dict[str, np.ndarray]:
    """For each place, how much each fused adapter counts: p (B, T, n), which sums to 1 over the n.

    ``options`` are those of the forward pass, an ``attention_mask`` for instance. ValueError where ``adapter_name`` is
    no fusion, or does not act.
    """
    adapter = peft_model.adapters.get(adapter_name)
    if not isinstance(adapter, AdapterFusion) or not adapter.active:
        active = ", ".join(peft_model.active_adapters) or "none"
        raise ValueError(f"{adapter_name!r} is no fusion that acts: set_adapter() the fusion first; active: {active}")
    layers = adapter.wrappers
    try:
        for layer in layers.values():
            layer.weights = []
        with no_grad():
            peft_model(input_ids, **options)
        return {path: layer.weights[-1] for path, layer in layers.items()}
    finally:
        for layer in layers.values():
            layer.weights = None


def fusion_count(model: GPT, config: AdapterFusionConfig) -> int:
    """(3 or 2) C² + C for each place."""
    C = model.config.n_embd
    return len(config.paths(model)) * ((3 if config.value else 2) * C * C + C)


register(
    Method(
        name="fusion",
        config=AdapterFusionConfig,
        adapter=AdapterFusion,
        shape="around",
        folder="function",
        start="none",
        count=fusion_count,
        mergeable=False,
        rowwise=True,
        stackable_with=("reparam", "around", "tokens", "select"),
        summary="attention over several trained bottleneck adapters",
        examples=(AdapterFusionConfig(["a", "b"]), AdapterFusionConfig(["b", "a"], value=False)),
        companions={"a": SeqBnConfig(bottleneck_size=4), "b": SeqBnConfig(bottleneck_size=3, non_linearity="gelu")},
    )
)
