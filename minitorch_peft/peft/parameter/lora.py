"""LoRA: W + s B A, a low-rank change of a frozen weight (Hu et al. 2021, eq. 3).

    y = x Wᵀ + b + s (x Aᵀ) Bᵀ,   A (r, in), B (out, r),   s = alpha / r

B starts at zero, so the adapted model starts as the base; A is random, because with both at zero neither would ever
get a gradient (dA carries a factor B, dB a factor A). Parameters: r (in + out) for each layer. Targets by default:
the query and value projections, the paper's choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

import minitorch_peft.functional as F
from minitorch_peft.autograd.function import Function
from minitorch_peft.autograd.random import counter_seed
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.kernels import dispatch
from minitorch_peft.models import GPT
from minitorch_peft.nn import Dropout, ForwardContext, Module, init
from minitorch_peft.peft.adapter import Adapter
from minitorch_peft.peft.config import LowRankConfig, check_dropout
from minitorch_peft.peft.inject import inject
from minitorch_peft.peft.lowrank_files import LowRankFiles
from minitorch_peft.peft.parameter.lora_functions import LoraDropout, LoraDropout4bit, LoraGathered
from minitorch_peft.peft.registry import Method, register
from minitorch_peft.peft.shapes import Reparam


@dataclass
class LoraConfig(LowRankConfig):
    """LoRA's settings, and the switches to two methods of its form, which have files of their own.

    ``use_dora``: DoRA (``dora.py``); ``dora_detach_norm``: with ``peft``'s gradient, which holds the norm constant.
    ``init_lora_weights="pissa"``: PiSSA (``pissa.py``).
    """

    peft_type: ClassVar[str] = "LORA"

    lora_dropout: float = 0.0  # of x, on the low-rank path only
    use_dora: bool = False
    dora_detach_norm: bool = False
    init_lora_weights: bool | str = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_dropout("lora_dropout", self.lora_dropout)
        if self.init_lora_weights not in (True, "pissa"):
            raise ValueError(f'init_lora_weights must be True or "pissa", got {self.init_lora_weights!r}')
        if self.use_dora and self.init_lora_weights == "pissa":
            raise ValueError('use_dora and init_lora_weights="pissa" are two methods: choose one of them')
        if self.dora_detach_norm and not self.use_dora:
            raise ValueError("dora_detach_norm is a setting of DoRA: set use_dora=True as well")

    def check_plain(self, method: str) -> None:
        """ValueError where a method that builds on plain LoRA is told to be another of its form."""
        if self.use_dora or self.init_lora_weights == "pissa":
            raise ValueError(f"{method} is of plain LoRA here: leave out use_dora and init_lora_weights")


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

    additive = True
    """Nothing but s B A is added to the weight: such layers can run in one operation, each for its rows."""

    def __init__(self, base_layer: Module, path: str, adapter: Adapter, config: LoraConfig) -> None:
        super().__init__(base_layer, adapter)
        base, r = self.base, config.rank(path)
        # BEGIN SOLUTION(task="3.1")
        # an embedding's A is looked up, not multiplied by; as in peft it starts at zero and B is normal
        A, B = (init.zeros, init.normal(1.0)) if base.takes_ids else (init.kaiming_uniform(), init.zeros)
        self.lora_A = adapter.new_parameter(f"{path}.lora_A", (r, base.in_features), A)
        self.lora_B = adapter.new_parameter(f"{path}.lora_B", (base.out_features, r), B)
        # END SOLUTION
        self.dropout = Dropout(config.lora_dropout, f"{adapter.name}.{path}")
        self.scaling = config.scaling(path)

    @property
    def drops(self) -> bool:
        return self.training and self.dropout.p > 0

    def factors(self) -> tuple[Tensor, Tensor]:
        """A and B of the change s B A."""
        return self.lora_A, self.lora_B

    def adapted(self, x: Tensor, context: ForwardContext | None) -> Tensor:
        alone, terms, factors = self.base_layer is self.base, self.base.linear_terms(), self.factors()
        packed = self.base.packed_terms()
        if not alone or (self.drops and terms is None and packed is None):
            return super().adapted(x, context)
        if self.drops:
            constants = {"s": self.scaling, "p": self.dropout.p, "seed": counter_seed(*self.dropout.key(context))}
            if packed is not None:
                return LoraDropout4bit.apply(x, packed[1], *factors, q=packed[0], **constants)
            return LoraDropout.apply(x, *terms, *factors, **constants)
        if terms is None:
            return self.base.low_rank(x, *factors, self.scaling)
        return LoraLinear.apply(x, *terms, *factors, s=self.scaling)

    def mixed(self, x: Tensor, context: ForwardContext | None, rows: np.ndarray) -> Tensor:
        assert context is not None and context.adapter_names is not None  # else all rows are alike
        layers, terms = self.acting(context), self.base.linear_terms()
        plain = all(isinstance(layer, LoraLayer) and layer.additive and not layer.drops for layer in layers)
        A, B = zip(*(layer.factors() for layer in layers), strict=True) if plain else ((), ())
        if terms is None or not plain or any(a.shape != A[0].shape for a in A):
            return super().mixed(x, context, rows)
        place = {layer.adapter.name: i for i, layer in enumerate(layers)}
        owner = np.array([place.get(name, -1) for name in context.adapter_names])
        return LoraGathered.apply(x, *terms, *A, *B, s=tuple(layer.scaling for layer in layers), owner=owner)

    def acting(self, context: ForwardContext) -> list[Any]:
        """The wrappers from here down to the base under which some row of the batch runs."""
        here: Any = self
        found = []
        while here is not self.base:
            if here.adapter.rows(context) is not False:
                found.append(here)
            here = here.base_layer
        return found

    def delta(self, x: Tensor, context: ForwardContext | None) -> Tensor:
        x = x if self.base.takes_ids else self.dropout(x, context)
        A, B = self.factors()
        return F.linear(self.base.project(x, A), B) * self.scaling

    def effective(self, weight: np.ndarray) -> np.ndarray:
        # BEGIN SOLUTION(task="3.4a")
        B, A = (p.data.astype(weight.dtype) for p in (self.lora_B, self.lora_A))
        return weight + self.scaling * (B @ A)
        # END SOLUTION


class Lora(Adapter):
    layer: type[LoraLayer] = LoraLayer

    def attach(self, config: LoraConfig) -> None:
        targets = config.targets(self.model)
        self.wrappers = inject(self.model, targets, lambda base, path: self.layer(base, path, self, config))


def lora_count(model: GPT, config: LoraConfig) -> int:
    """Σ r (in + out) over the targets."""
    # BEGIN SOLUTION(task="3.5")
    return sum(config.rank(path) * (t.in_features + t.out_features) for path, t in config.targets(model).items())
    # END SOLUTION


register(
    Method(
        name="lora", config=LoraConfig, adapter=Lora, shape="reparam", folder="parameter", start="bitwise",
        count=lora_count, mergeable=True, rowwise=True, stackable_with=("reparam", "around", "tokens", "select"),
        summary="a low-rank change of chosen weights",
        examples=(
            LoraConfig(r=4, lora_alpha=8),
            LoraConfig(r=2, target_modules="all-linear", use_rslora=True, lora_dropout=0.1, rank_pattern={"v_proj": 4}),
            LoraConfig(r=2, target_modules=["embed.tokens", "o_proj"]),
            LoraConfig(r=2, target_modules=["up_proj"], layers_to_transform=[0]),
        ),
        peft_files=LowRankFiles(),
    )
)  # fmt: skip
