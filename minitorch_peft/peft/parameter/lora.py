"""LoRA: W + s B A, a low-rank change of a frozen weight (Hu et al. 2021, eq. 3).

    y = x Wᵀ + b + s (x Aᵀ) Bᵀ,   A (r, in), B (out, r),   s = α / r   (rsLoRA, Kalajdzievski 2023: α / √r)

B starts at zero, so the adapted model starts as the base; A is random, because with both at zero neither would ever
get a gradient (dA carries a factor B, dB a factor A). Parameters: r (in + out) for each layer. Targets by default:
the query and value projections, the paper's choice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

import minitorch_peft.functional as F
from minitorch_peft.autograd.function import Function
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.kernels import dispatch
from minitorch_peft.models import GPT
from minitorch_peft.nn import Dropout, ForwardContext, Module, init
from minitorch_peft.peft.adapter import Adapter
from minitorch_peft.peft.config import PeftConfig
from minitorch_peft.peft.inject import Pattern, inject, slot, target_leaves, unwrap
from minitorch_peft.peft.registry import Method, register
from minitorch_peft.peft.shapes import Reparam


@dataclass
class LoraConfig(PeftConfig):
    peft_type: ClassVar[str] = "LORA"

    r: int = 8
    lora_alpha: float = 8
    target_modules: Pattern = ("q_proj", "v_proj")
    lora_dropout: float = 0.0
    use_rslora: bool = False
    layers_to_transform: int | Sequence[int] | None = None
    exclude_modules: Pattern | None = None

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ValueError(f"r must be at least 1, got {self.r}")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout must be in [0, 1), got {self.lora_dropout}")

    @property
    def scaling(self) -> float:
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)


class LoraLinear(Function):
    """y = x Wᵀ + b + s (x Aᵀ) Bᵀ in one pass over y; B A is never formed, and a frozen W costs no gradient.

    With u = x Aᵀ (..., r), which is kept, and G = dL/dy:

        dB = s Gᵀ u      dA = (s G B)ᵀ x      dx = G W + (s G B) A
    """

    @staticmethod
    def forward(ctx: Any, x, W, b, A, B, *, s: float) -> np.ndarray:  # type: ignore[no-untyped-def]
        y, u = dispatch.get("lora_linear_forward", x.dtype)(x, W, b, A, B, s)
        ctx.s = s
        ctx.save_for_backward(x, u, W, A, B)
        return y

    @staticmethod
    def backward(ctx: Any, G: np.ndarray) -> tuple[np.ndarray | None, ...]:
        x, u, W, A, B = ctx.saved
        backward = dispatch.get("lora_linear_backward", G.dtype)
        return backward(G, x, u, W, A, B, ctx.s, ctx.needs_input_grad)


class LoraLayer(Reparam):
    """A frozen layer and its low-rank change."""

    def __init__(self, base_layer: Module, path: str, adapter: Adapter, config: LoraConfig) -> None:
        super().__init__(base_layer, path, adapter)
        base = self.base
        shapes = {"lora_A": (config.r, base.in_features), "lora_B": (base.out_features, config.r)}
        # an embedding's A is looked up, not multiplied by; as in peft it starts at zero and B is normal
        starts = (init.zeros, init.normal(1.0)) if base.takes_ids else (init.kaiming_uniform(), init.zeros)
        dtype = base.dense_weight().dtype
        self.lora_A, self.lora_B = (
            adapter.new_parameter(path, name, shape, start, dtype)
            for (name, shape), start in zip(shapes.items(), starts, strict=True)
        )
        self.dropout = Dropout(config.lora_dropout, f"{adapter.name}.{path}")
        self.scaling = config.scaling

    def adapted(self, x: Tensor, context: ForwardContext | None) -> Tensor:
        alone = self.base_layer is self.base and not (self.training and self.dropout.p)
        terms = self.base.linear_terms() if alone else None
        if terms is None:
            return super().adapted(x, context)
        return LoraLinear.apply(x, *terms, self.lora_A, self.lora_B, s=self.scaling)

    def delta(self, x: Tensor, context: ForwardContext | None) -> Tensor:
        x = x if self.base.takes_ids else self.dropout(x, context)
        return F.linear(self.base.project(x, self.lora_A), self.lora_B) * self.scaling

    def effective(self, weight: np.ndarray) -> np.ndarray:
        return weight + self.scaling * (self.lora_B.data.astype(weight.dtype) @ self.lora_A.data.astype(weight.dtype))


class Lora(Adapter):
    def attach(self, config: LoraConfig) -> None:
        targets = lora_targets(self.model, config)
        for path, features in targets.items():
            if config.r > min(features):
                raise ValueError(f"r={config.r} is above the rank of {path} {features}; at most {min(features)}")
        self.wrappers = inject(self.model, targets, lambda base, path: LoraLayer(base, path, self, config))


def lora_targets(model: GPT, config: LoraConfig) -> dict[str, tuple[int, int]]:
    """Path to (in_features, out_features) of every layer that the config names."""
    paths = target_leaves(model, config.target_modules, config.layers_to_transform, config.exclude_modules)
    leaves = {path: unwrap(slot(model, path)[0].get(path.rpartition(".")[2])) for path in paths}
    return {path: (leaf.in_features, leaf.out_features) for path, leaf in leaves.items()}


def lora_count(model: GPT, config: LoraConfig) -> int:
    """r (in + out), summed over the targets."""
    return sum(config.r * (n_in + n_out) for n_in, n_out in lora_targets(model, config).values())


register(
    Method(
        name="lora",
        config=LoraConfig,
        adapter=Lora,
        shape="reparam",
        folder="parameter",
        start="bitwise",
        count=lora_count,
        mergeable=True,
        rowwise=True,
        stackable_with=("reparam", "around", "tokens", "select"),
        summary="a low-rank change of chosen weights",
        examples=(
            LoraConfig(r=4, lora_alpha=8),
            LoraConfig(r=2, lora_alpha=8, target_modules="all-linear", use_rslora=True, lora_dropout=0.1),
            LoraConfig(r=2, target_modules=["embed.tokens", "o_proj"]),
            LoraConfig(r=2, target_modules=["up_proj"], layers_to_transform=[0]),
        ),
    )
)
