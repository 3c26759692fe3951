"""Mixture of experts: routed MLPs beside a frozen MLP, or in place of it (Shazeer et al. 2017, eq. 1).

    parallel    y = MLP(x) + Σ_j g_j E_j(x)        replace    y = Σ_j g_j E_j(x)

E_j are MLPs of the base's kind, ``expert_size`` wide; which k of the N a token is sent to, with which g, and the term
that balances them, is ``routing.py``'s. Parallel experts start with a zero last layer, so that the model starts as the
base; by default the N are together as wide as its MLP. Those that replace it start as N whole copies of it (sparse
upcycling, Komatsuzaki et al. 2023): since the g of a token sum to 1, the model starts as the base within rounding, and
the router breaks the tie between the copies.

Parameters for each block: N C of the router, and N MLPs. In place of the frozen MLP they are costly, and what other
adapters make of it would have no effect: with that mode nothing but prompts and prefixes acts together, so that it is
not for single rows of a batch either, which train together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.models import GPT
from minitorch_peft.models.gpt import MLP
from minitorch_peft.nn import ForwardContext, Module, ModuleList, init
from minitorch_peft.peft.adapter import Adapter
from minitorch_peft.peft.config import check_count
from minitorch_peft.peft.function.routing import Routed, RoutedConfig, RoutedLayer, Router
from minitorch_peft.peft.inject import base_module, inject
from minitorch_peft.peft.registry import Method, register

MODES = ("parallel", "replace")


@dataclass
class MoEConfig(RoutedConfig):
    """``mode``: "parallel" or "replace"; ``expert_size``: each expert's width, by default inner / N in parallel.

    >>> from minitorch_peft.models import GPT, GPTConfig
    >>> from minitorch_peft.peft import MoEConfig, get_peft_model
    >>> base = GPT(GPTConfig(vocab_size=97, n_positions=64, n_embd=64, n_layer=3, n_head=4))
    >>> get_peft_model(base, MoEConfig(num_experts=2, layers_to_transform=1)).print_trainable_parameters()
    trainable params: 33,280 || all params: 193,664 || trainable%: 17.1844
    """

    peft_type: ClassVar[str] = "MOE"

    expert_size: int | None = None
    mode: str = "parallel"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in MODES:
            raise ValueError(f"mode={self.mode!r}: expected one of {MODES}")
        if self.expert_size is not None:
            check_count("expert_size", self.expert_size)
        if self.mode == "replace" and (self.expert_size is not None or self.top_k == 1):
            raise ValueError(
                'mode="replace" starts from copies of the MLP whose gates sum to 1: leave expert_size out, and let '
                f"top_k be at least 2, got expert_size={self.expert_size} and top_k={self.top_k}"
            )

    def width(self, model: GPT) -> int:
        inner = model.config.inner
        return inner if self.mode == "replace" else self.expert_size or max(1, inner // self.num_experts)

    def paths(self, model: GPT) -> list[str]:
        return self.in_layers([f"blocks.{i}.mlp" for i in range(model.config.n_layer)])


class MoELayer(RoutedLayer):
    """An MLP with experts."""

    def __init__(self, base_layer: Module, path: str, adapter: Adapter, config: MoEConfig) -> None:
        super().__init__(base_layer, adapter)
        model = adapter.model
        self.replaces = config.mode == "replace"
        self.router = Router(path, adapter, config, model.config.n_embd)
        shape = replace(model.config, n_inner=config.width(model))
        experts = [MLP(shape) for _ in range(config.num_experts)]
        for expert in experts:
            expert.down_proj.weight.init = init.zeros
        self.experts = adapter.new_module(f"{path}.experts", ModuleList(experts))  # type: ignore[arg-type]
        if self.replaces:
            for expert in experts:
                copy_mlp(base_module(model, path), expert)

    def adapted(self, x: Tensor, context: ForwardContext | None) -> Tensor:
        y = self.routed(x, context)
        return y if self.replaces else self.base_layer(x, context) + y

    def mixed(self, x: Tensor, context: ForwardContext | None, rows: np.ndarray) -> Tensor:
        return self.base_layer(x, context) + self.routed(x, context, rows)  # parallel: the other is not row-wise


def copy_mlp(mlp: Module, expert: MLP) -> None:
    """The weights of ``mlp``, stored in whatever way, into an expert of its shape."""
    layers: dict[str, Any] = {name: m for name, m in expert.named_children() if hasattr(m, "dense_weight")}
    for name, layer in layers.items():
        original = base_module(mlp, name)
        layer.weight.data[...] = original.dense_weight()
        if layer.bias is not None:
            layer.bias.data[...] = original.bias.data


class MoE(Routed):
    def attach(self, config: MoEConfig) -> None:
        paths = config.paths(self.model)
        self.wrappers = inject(self.model, paths, lambda base, path: MoELayer(base, path, self, config))


def moe_count(model: GPT, config: MoEConfig) -> int:
    """N (C + the parameters of an MLP ``expert_size`` wide) for each block."""
    c, width = model.config, config.width(model)
    into = 2 if c.gated_mlp else 1
    mlp = (into + 1) * c.n_embd * width + (into * width + c.n_embd) * c.mlp_bias
    return len(config.paths(model)) * config.num_experts * (c.n_embd + mlp)


register(
    Method(
        name="moe", config=MoEConfig, adapter=MoE, shape="around", folder="function", start="bitwise", count=moe_count,
        mergeable=False, rowwise=True, stackable_with=("reparam", "around", "tokens", "select"),
        summary="routed experts beside each MLP",
        examples=(MoEConfig(), MoEConfig(num_experts=3, top_k=1, expert_size=5, router_jitter=0.1)),
    )
)  # fmt: skip
register(
    Method(
        name="moe_replace", config=MoEConfig, adapter=MoE, shape="around", folder="function", start="rounding",
        count=moe_count, mergeable=False, rowwise=False, stackable_with=("tokens",),
        summary="routed copies in place of each MLP",
        examples=(MoEConfig(mode="replace", num_experts=3),), variant={"mode": "replace"},
    )
)  # fmt: skip
