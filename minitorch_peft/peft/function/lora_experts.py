"""Mixture of LoRA experts: routed low-rank changes beside a frozen layer (LoRAMoE, Dou et al. 2023).

    y = f(x) + s Σ_j g_j B_j A_j x,   A_j (r, in), B_j (out, r),   s = alpha / r

Which k of the N experts a token is sent to, with which g, is ``routing.py``'s (the paper mixes all: ``top_k`` = N). A
change that depends on the token cannot be merged into one weight. B starts at zero, so that the model starts as the
base. Parameters: N (r (in + out) + in) for each target. Targets by default: the linear layers of the MLPs, the paper's
choice; ``["mlp"]`` puts experts, and one router, beside each whole MLP.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

import minitorch_peft.functional as F
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.models import GPT
from minitorch_peft.nn import ForwardContext, Module, ModuleList, init
from minitorch_peft.peft.adapter import Adapter
from minitorch_peft.peft.function.routing import Routed, RoutedConfig, RoutedLayer, Router
from minitorch_peft.peft.inject import base_modules, inject
from minitorch_peft.peft.patterns import Pattern, select
from minitorch_peft.peft.registry import Method, register


@dataclass
class MoELoraConfig(RoutedConfig):
    """``target_modules``: linear layers, or ``mlp``; as a pattern, or "all-linear".

    >>> from minitorch_peft.models import GPT, GPTConfig
    >>> from minitorch_peft.peft import MoELoraConfig, get_peft_model
    >>> base = GPT(GPTConfig(vocab_size=97, n_positions=64, n_embd=64, n_layer=3, n_head=4))
    >>> get_peft_model(base, MoELoraConfig(r=2)).print_trainable_parameters()
    trainable params: 19,200 || all params: 179,584 || trainable%: 10.6914
    """

    peft_type: ClassVar[str] = "MOE_LORA"

    r: int = 4
    lora_alpha: float = 8
    target_modules: Pattern = ("mlp.*_proj",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.r, int) or isinstance(self.r, bool) or self.r < 1:
            raise ValueError(f"r must be a whole number of at least 1, got {self.r!r}")
        if not (math.isfinite(self.lora_alpha) and self.lora_alpha > 0):
            raise ValueError(f"lora_alpha must be a positive number, got {self.lora_alpha!r}")

    def targets(self, model: GPT) -> dict[str, tuple[int, int]]:
        """Path to (in, out) of everything that gets experts; ValueError where a name fits nothing."""
        C = model.config.n_embd
        leaves: dict[str, Any] = {path: m for path, m in base_modules(model) if hasattr(m, "dense_weight")}
        linear = {p: (m.in_features, m.out_features) for p, m in leaves.items() if not m.takes_ids and p != "lm_head"}
        if self.target_modules == "all-linear":
            chosen = list(linear)
        else:
            linear |= {f"blocks.{i}.mlp": (C, C) for i in range(model.config.n_layer)}
            chosen = select(self.target_modules, linear, "linear layer or mlp")
        for path in chosen:
            if self.r > min(linear[path]):
                raise ValueError(f"r={self.r} is above the rank of {path}: at most {min(linear[path])}")
        return {path: linear[path] for path in self.in_layers(chosen)}


class LowRankExpert(Module):
    """s B A x, for x (n, in)."""

    def __init__(self, path: str, adapter: Adapter, config: MoELoraConfig, width: tuple[int, int]) -> None:
        self.lora_A = adapter.new_parameter(f"{path}.lora_A", (config.r, width[0]), init.kaiming_uniform())
        self.lora_B = adapter.new_parameter(f"{path}.lora_B", (width[1], config.r), init.zeros)
        self.scaling = config.lora_alpha / config.r

    def forward(self, x: Tensor, context: ForwardContext | None = None) -> Tensor:
        return F.linear(F.linear(x, self.lora_A), self.lora_B) * self.scaling


class MoELoraLayer(RoutedLayer):
    """A layer, a router, and low-rank experts."""

    def __init__(self, base_layer: Module, path: str, adapter: Adapter, config: MoELoraConfig) -> None:
        super().__init__(base_layer, adapter)
        width = config.targets(adapter.model)[path]
        self.router = Router(path, adapter, config, width[0])
        named = [f"{path}.experts.{i}" for i in range(config.num_experts)]
        self.experts = ModuleList([LowRankExpert(name, adapter, config, width) for name in named])

    def adapted(self, x: Tensor, context: ForwardContext | None) -> Tensor:
        return self.base_layer(x, context) + self.routed(x, context)

    def mixed(self, x: Tensor, context: ForwardContext | None, rows: np.ndarray) -> Tensor:
        return self.base_layer(x, context) + self.routed(x, context, rows)


class MoELora(Routed):
    def attach(self, config: MoELoraConfig) -> None:
        paths = config.targets(self.model)
        self.wrappers = inject(self.model, paths, lambda base, path: MoELoraLayer(base, path, self, config))


def moe_lora_count(model: GPT, config: MoELoraConfig) -> int:
    """Σ N (r (in + out) + in) over the targets."""
    return sum(config.num_experts * (config.r * (i + o) + i) for i, o in config.targets(model).values())


register(
    Method(
        name="moe_lora", config=MoELoraConfig, adapter=MoELora, shape="around", folder="function", start="bitwise",
        count=moe_lora_count, mergeable=False, rowwise=True,
        stackable_with=("reparam", "around", "tokens", "select"), summary="routed low-rank changes of chosen layers",
        examples=(MoELoraConfig(num_experts=3), MoELoraConfig(target_modules=["mlp", "v_proj"], router_jitter=0.1)),
    )
)  # fmt: skip
