"""AdaLoRA: a low-rank change in the form of an SVD, whose ranks go where they matter (Zhang et al. 2023, eq. 3).

    y = x Wᵀ + b + s (x (A ⊙ E)ᵀ) Bᵀ,   A (r, in), E (r, 1), B (out, r),   s = alpha / (init_r + 1e-5)

A and B are the paper's Q and P, E its Λ. E starts at zero, so the adapted model starts as the base; A and B are
N(0, 0.02²) and kept near orthonormal by a penalty, the mean of ‖P Pᵀ - I‖_F over all A and Bᵀ, as in ``peft`` (the
paper's eq. 4 sums the squares). During training ``RankAllocator`` sets the E of the least important ranks to zero,
until ``target_r`` remain on average; the trainer calls it. s stays that of ``init_r``, as in ``peft``. A file holds the
ranks that are left. Parameters: r (in + out + 1) for each layer, r = init_r. Targets by default: the query and value
projections.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

import minitorch_peft.functional as F
from minitorch_peft.autograd.function import Function
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.models import GPT
from minitorch_peft.nn import Dropout, ForwardContext, Module, init
from minitorch_peft.peft.adapter import Adapter
from minitorch_peft.peft.config import PeftConfig, check_dropout, is_whole
from minitorch_peft.peft.hooks import check_state
from minitorch_peft.peft.inject import inject
from minitorch_peft.peft.parameter.adalora_budget import RankAllocator, check_schedule
from minitorch_peft.peft.parameter.adalora_files import AdaLoraFiles, among_first, ranks_left
from minitorch_peft.peft.parameter.lora import LoraLinear
from minitorch_peft.peft.patterns import Pattern, target_leaves
from minitorch_peft.peft.registry import Method, register
from minitorch_peft.peft.shapes import Reparam


@dataclass
class AdaLoraConfig(PeftConfig):
    """``init_r`` ranks at first, ``target_r`` on average at last; ``total_step``: by default all that are trained.

    ``rank_pattern`` says of a target, by path, which of the ``init_r`` ranks it has left: that of a trained file.
    """

    peft_type: ClassVar[str] = "ADALORA"

    target_r: int = 8
    init_r: int = 12
    tinit: int = 0  # steps before the first rank is taken away
    tfinal: int = 0  # steps after the last one
    deltaT: int = 1  # noqa: N815  (steps from one choice of ranks to the next)
    beta1: float = 0.85  # of the moving average of importance
    beta2: float = 0.85  # of that of its uncertainty
    orth_reg_weight: float = 0.5
    total_step: int | None = None
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    target_modules: Pattern = ("q_proj", "v_proj")
    layers_to_transform: int | list[int] | None = None
    exclude_modules: Pattern | None = None
    rank_pattern: dict[str, list[bool]] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("init_r", "target_r", "tinit", "tfinal", "deltaT", "total_step"):
            value = getattr(self, name)
            if not is_whole(value) and (name, value) != ("total_step", None):
                raise ValueError(f"{name} must be a whole number, got {value!r}")
        check_dropout("lora_dropout", self.lora_dropout)
        if not 1 <= self.target_r <= self.init_r:
            raise ValueError(f"target_r must be from 1 to init_r={self.init_r}, got {self.target_r!r}")
        if not (0 < self.beta1 < 1 and 0 < self.beta2 < 1):
            raise ValueError(f"beta1 and beta2 must lie between 0 and 1, got {self.beta1!r} and {self.beta2!r}")
        if not (0 <= self.orth_reg_weight < math.inf and 0 < self.lora_alpha < math.inf):
            raise ValueError("orth_reg_weight must be at least 0, lora_alpha above it, and both finite")
        check_schedule(self, self.total_step)
        if not isinstance(self.rank_pattern, dict | None):
            raise ValueError(f"rank_pattern must be a dict from paths to lists, got {self.rank_pattern!r}")
        for path, kept in (self.rank_pattern or {}).items():
            if not isinstance(kept, list) or not all(isinstance(k, bool) for k in kept):
                raise ValueError(f"rank_pattern of {path} must be a list of True and False, got {kept!r}")
            if len(kept) != self.init_r:
                raise ValueError(f"rank_pattern of {path} has {len(kept)} entries, init_r is {self.init_r}")

    def targets(self, model: GPT) -> dict[str, Any]:
        """Path to module of every layer that the config names; ValueError where a name fits none."""
        found = target_leaves(model, self.target_modules, self.layers_to_transform, self.exclude_modules)
        if unknown := sorted((self.rank_pattern or {}).keys() - found.keys()):
            raise ValueError(f"rank_pattern: {unknown[0]!r} is no target; the targets are {', '.join(found)}")
        for path, leaf in found.items():
            if leaf.takes_ids:
                raise ValueError(f"AdaLoRA adapts layers that multiply by a weight, {path} looks rows up: use LoRA")
            if (r := self.rank(path)) > (most := min(leaf.in_features, leaf.out_features)):
                raise ValueError(f"init_r={r} is above the rank of {path} ({leaf!r}): at most {most}")
        return found

    def rank(self, path: str) -> int:
        return sum((self.rank_pattern or {}).get(path, [True] * self.init_r))

    @property
    def scaling(self) -> float:
        return self.lora_alpha / (self.init_r + 1e-5)


class NonOrthonormality(Function):
    """f = ‖D‖_F with D = P Pᵀ - I of P (r, n): how far its rows are from orthonormal.

    f df = ⟨D, dP Pᵀ + P dPᵀ⟩ = 2 ⟨D P, dP⟩, as D is symmetric: dP = 2 G D P / f, and 0 at the minimum f = 0.
    """

    @staticmethod
    def forward(ctx: Any, P: np.ndarray) -> np.ndarray:
        D = P @ P.T - np.eye(len(P), dtype=P.dtype)
        f = np.sqrt(np.square(D).sum())
        ctx.save_for_backward(P, D, f)
        return np.asarray(f)

    @staticmethod
    def backward(ctx: Any, G: np.ndarray) -> np.ndarray:
        P, D, f = ctx.saved
        return np.zeros_like(P) if f == 0 else (2 * G / f) * (D @ P)


class AdaLoraLayer(Reparam):
    """A frozen layer and its change s B diag(E) A."""

    def __init__(self, base_layer: Module, path: str, adapter: Adapter, config: AdaLoraConfig) -> None:
        super().__init__(base_layer, adapter)
        base, r = self.base, config.rank(path)
        self.lora_A = adapter.new_parameter(f"{path}.lora_A", (r, base.in_features), init.normal(0.02))
        self.lora_E = adapter.new_parameter(f"{path}.lora_E", (r, 1), init.zeros)
        self.lora_B = adapter.new_parameter(f"{path}.lora_B", (base.out_features, r), init.normal(0.02))
        self.dropout = Dropout(config.lora_dropout, f"{adapter.name}.{path}")
        self.scaling = config.scaling

    def adapted(self, x: Tensor, context: ForwardContext | None) -> Tensor:
        alone, terms = self.base_layer is self.base, self.base.linear_terms()
        if not alone or (self.training and self.dropout.p > 0):
            return super().adapted(x, context)
        scaled_A = self.lora_A * self.lora_E
        if terms is None:
            return self.base.low_rank(x, scaled_A, self.lora_B, self.scaling)
        return LoraLinear.apply(x, *terms, scaled_A, self.lora_B, s=self.scaling)

    def delta(self, x: Tensor, context: ForwardContext | None) -> Tensor:
        low = F.linear(self.dropout(x, context), self.lora_A * self.lora_E)
        return F.linear(low, self.lora_B) * self.scaling

    def leave(self, kept: np.ndarray) -> None:
        """Drop all ranks but these, bool (r,)."""
        for p, of_ranks in ((self.lora_A, kept), (self.lora_E, kept), (self.lora_B, (slice(None), kept))):
            p.data = np.ascontiguousarray(p.data[of_ranks])
            p.version.count += 1

    def effective(self, weight: np.ndarray) -> np.ndarray:
        A, E, B = (p.data.astype(weight.dtype) for p in (self.lora_A, self.lora_E, self.lora_B))
        return weight + self.scaling * (B @ (A * E))


class AdaLora(Adapter):
    """The layers, and the allocator of their ranks.

    >>> from minitorch_peft.models import GPT, GPTConfig
    >>> from minitorch_peft.peft import get_peft_model
    >>> from minitorch_peft.training import TrainConfig, train
    >>> model = GPT(GPTConfig(vocab_size=7, n_positions=8, n_embd=16, n_layer=2, n_head=2))
    >>> p = get_peft_model(model, AdaLoraConfig(init_r=4, target_r=2))
    >>> ids = np.arange(16).reshape(2, 8) % 7
    >>> result = train(p, lambda i: {"input_ids": ids, "labels": ids}, TrainConfig(steps=10, lr=1e-2))
    >>> ranks = p.adapters["default"].ranks()
    >>> list(ranks), sum(ranks.values())
    (['blocks.0.attn.q_proj', 'blocks.0.attn.v_proj', 'blocks.1.attn.q_proj', 'blocks.1.attn.v_proj'], 8)
    """

    def attach(self, config: AdaLoraConfig) -> None:
        targets = config.targets(self.model)
        self.wrappers = inject(self.model, targets, lambda base, path: AdaLoraLayer(base, path, self, config))
        self.allocator = RankAllocator(config, self.wrappers)

    def ranks(self) -> dict[str, int]:
        """How many ranks each target has left: of the last choice. Take it after every step to plot them over time."""
        return {path: int(kept.sum()) for path, kept in self.allocator.kept.items()}

    @property
    def settled(self) -> bool:
        """Only with the last choice is the budget kept to: no look before it is the best one of a run."""
        return self.allocator.settled

    def penalty(self) -> Tensor | None:
        """``orth_reg_weight`` times the mean of ‖P Pᵀ - I‖_F over all A and B (Bᵀ's rows)."""
        if not self.config.orth_reg_weight:
            return None
        matrices = [P for w in self.wrappers.values() for P in (w.lora_A, w.lora_B.transpose(0, 1))]
        first, *others = (NonOrthonormality.apply(P) for P in matrices)
        return sum(others, start=first) * (self.config.orth_reg_weight / len(matrices))

    def after_backward(self, step: int, total: int) -> None:
        self.allocator.set_total(total)

    def after_step(self, step: int) -> None:
        self.allocator.update(step)

    def method_state(self) -> dict[str, np.ndarray]:
        return self.allocator.state()

    def load_method_state(self, state: dict[str, np.ndarray]) -> None:
        check_state(self.name, state, [f"{path}.kept" for path in self.wrappers])
        self.allocator.load_state(state)

    # -- files -----------------------------------------------------------------------------------------------
    def stored(self) -> dict[str, np.ndarray]:
        """The parameters of the ranks that are left; where some are lost, ``kept``, uint8 (r,), says which are not."""
        found = super().stored()
        for path in self.wrappers:
            if not (kept := ranks_left(self, path)).all():
                for name in ("lora_A", "lora_E"):
                    found[f"{path}.{name}"] = found[f"{path}.{name}"][kept]
                found[f"{path}.lora_B"] = found[f"{path}.lora_B"][:, kept]
                found[f"{path}.kept"] = kept.astype(np.uint8)
        return found

    def unpacked(self, stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What a file has lost is gone from the layers, and from the config's ``rank_pattern``: it trains no more."""
        masks = {path: stored[f"{path}.kept"] for path in self.wrappers if f"{path}.kept" in stored}
        if not masks:
            return stored
        for path, mask in masks.items():
            if mask.dtype != np.uint8 or mask.shape != (self.config.rank(path),):
                expected = f"uint8 ({self.config.rank(path)},)"
                raise ValueError(f"{path}.kept is {mask.dtype} {mask.shape}, expected {expected}")
        patterns = dict(self.config.rank_pattern or {})
        for path, mask in masks.items():
            patterns[path] = among_first(self.config, path, mask.astype(bool))
            self.wrappers[path].leave(mask.astype(bool))
        self.config.rank_pattern = patterns
        self.allocator = RankAllocator(self.config, self.wrappers)
        return {name: array for name, array in stored.items() if not name.endswith(".kept")}


def adalora_count(model: GPT, config: AdaLoraConfig) -> int:
    """Σ r (in + out + 1) over the targets."""
    return sum(config.rank(path) * (t.in_features + t.out_features + 1) for path, t in config.targets(model).items())


register(
    Method(
        name="adalora", config=AdaLoraConfig, adapter=AdaLora, shape="reparam", folder="parameter", start="bitwise",
        count=adalora_count, mergeable=True, rowwise=True, stackable_with=("reparam", "around", "tokens", "select"),
        summary="a low-rank change of chosen weights, its ranks allotted by importance",
        examples=(
            AdaLoraConfig(init_r=4, target_r=2, lora_alpha=16),
            AdaLoraConfig(
                init_r=3, target_r=1, tinit=1, tfinal=3, deltaT=2, lora_dropout=0.1, lora_alpha=16,
                target_modules=["q_proj", "k_proj", "v_proj", "up_proj"],
            ),
        ),
        peft_files=AdaLoraFiles(),
    )
)  # fmt: skip
