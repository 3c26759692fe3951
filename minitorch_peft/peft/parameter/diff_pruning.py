"""Diff pruning: a sparse difference of the parameters, whose places are learned (Guo et al. 2021, sections 2.1 and 3).

    θ' = θ + φ,   φ = z ∘ w,   loss + λ Σ P(z_i > 0),   z a hard-concrete gate of alpha   (``hard_concrete.py``)

θ, w and alpha are of one shape, any parameter's. w starts at zero, so the adapted model starts as the base; alpha
starts at 5, where a gate is open with probability 0.993. ``structured``: one more gate for each parameter tensor
multiplies all its z (section 3.2), and a place is open only where both are. In evaluation the gates have no noise.
After a fraction ``fixmask_after`` of the training the mask b is fixed: the ``sparsity`` of all entries whose |φ| is
largest stay, as w ← z w, and only they train on; a task is then stored as their places and values. The variants:

    additive    θ' = θ + z ∘ w                 φ_i = 0 where b_i = 0
    masked      θ' = z ∘ θ + z ∘ w             the sparse result θ ∘ b + φ: the largest |θ'| stay, w as it is
    magnitude   θ' = θ + w, then θ + b ∘ w     no gates: pruned by |φ| alone

Parameters: |θ| of w, as many of alpha (none for ``magnitude``), and one for each tensor where structured: in training
this saves nothing. Targets by default: all parameters of the blocks. The masked one starts as the base in evaluation;
in training the noise closes some gates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.models import GPT
from minitorch_peft.peft.adapter import Adapter
from minitorch_peft.peft.config import PeftConfig
from minitorch_peft.peft.inject import parameter_sizes, slot
from minitorch_peft.peft.interop import some
from minitorch_peft.peft.parameter.difference import CERTAIN, Difference
from minitorch_peft.peft.patterns import Pattern, select
from minitorch_peft.peft.registry import Method, register

VARIANTS = ("additive", "masked", "magnitude")


@dataclass
class DiffPruningConfig(PeftConfig):
    """``sparsity``: the fraction of all targeted entries that may differ in the end; ``l0_penalty``: λ.

    >>> from minitorch_peft.models import GPT, GPTConfig
    >>> model = GPT(GPTConfig(vocab_size=7, n_positions=8, n_embd=4, n_layer=1, n_head=2))
    >>> config = DiffPruningConfig(target_parameters=["ln_1.**"], structured=True)
    >>> diff_targets(model, config), diff_count(model, config)
    ({'blocks.0.ln_1.weight': 4, 'blocks.0.ln_1.bias': 4}, 18)
    """

    peft_type: ClassVar[str] = "DIFF_PRUNING"

    target_parameters: Pattern = ("blocks.**",)
    variant: str = "additive"
    structured: bool = False
    sparsity: float = 0.005
    fixmask_after: float = 0.5  # of the training's steps
    l0_penalty: float = 1.25e-7
    alpha_init: float = 5.0
    alpha_lr: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {self.variant!r}")
        if self.structured and not self.gated:
            raise ValueError("structured is of gates, and variant='magnitude' has none: leave one of them out")
        for name in ("sparsity", "fixmask_after"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} is a fraction above 0 and at most 1, got {getattr(self, name)!r}")
        for name in ("l0_penalty", "alpha_lr"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)!r}")
        if not abs(self.alpha_init) < CERTAIN:
            raise ValueError(f"alpha_init must lie within ±{CERTAIN:g}, got {self.alpha_init!r}")

    @property
    def gated(self) -> bool:
        return self.variant != "magnitude"


class DiffPruning(Adapter):
    total: int | None = None

    def attach(self, config: DiffPruningConfig) -> None:
        targets = diff_targets(self.model, config)
        self.reparametrize(list(targets), lambda path, theta: Difference(path, theta, self, config))

    @property
    def differences(self) -> dict[str, Difference]:
        return self.reparametrized  # type: ignore[return-value]

    @property
    def fixed(self) -> bool:
        return all(d.mask is not None for d in self.differences.values())

    @property
    def settled(self) -> bool:
        """Only then is the difference sparse: no look before it is the best one of a run."""
        return self.fixed

    # -- training --------------------------------------------------------------------------------------------
    def penalty(self) -> Tensor | None:
        """λ times the expected number of open places; None where no gate learns."""
        if self.fixed or not self.config.gated or not self.config.l0_penalty:
            return None
        first, *others = (d.expected_l0() for d in self.differences.values())
        return sum(others, start=first) * self.config.l0_penalty

    def param_groups(self) -> list[dict[str, Any]] | None:
        names = list(self.named_parameters())
        gates = [name for name in names if name.endswith("alpha")]
        if not gates:
            return None
        values = [name for name in names if name not in gates]
        return [{"params": values}, {"params": gates, "lr": self.config.alpha_lr, "weight_decay": 0.0}]

    def after_backward(self, step: int, total: int) -> None:
        self.total = total

    def after_step(self, step: int) -> None:
        if self.total is None:
            raise RuntimeError("diff pruning does not know how many steps there are: call after_backward(step, total)")
        if self.fixed:
            for difference in self.differences.values():
                difference.hold()
        elif step + 1 >= max(1, round(self.config.fixmask_after * self.total)):
            self.fix_mask()

    def fix_mask(self) -> None:
        """Keep exactly the wanted fraction of all entries: the largest, and of equals the first."""
        sizes = [d.magnitude(value_at(self.model, path)) for path, d in self.differences.items()]
        mask = largest(np.concatenate(sizes), kept_count(self.model, self.config))
        parts = np.split(mask, np.cumsum([len(size) for size in sizes])[:-1])
        for difference, part in zip(self.differences.values(), parts, strict=True):
            difference.fix(part)

    def method_state(self) -> dict[str, np.ndarray]:
        return {f"{path}.mask": d.mask for path, d in self.differences.items() if d.mask is not None}

    def load_method_state(self, state: dict[str, np.ndarray]) -> None:
        for path, d in self.differences.items():
            d.mask = np.array(state[f"{path}.mask"], bool) if f"{path}.mask" in state else None

    @property
    def resting(self) -> list[str]:
        """The parameters that have done their work: with a fixed mask the gates, and a w of which nothing is left."""
        gates = [name for name in self.named_parameters() if name.endswith("alpha")]
        pruned = [f"{path}.w" for path, d in self.differences.items() if d.mask is not None and not d.mask.any()]
        return gates + pruned if self.fixed else []

    # -- files -----------------------------------------------------------------------------------------------
    def stored(self) -> dict[str, np.ndarray]:
        """All parameters, or of a fixed mask the places of what differs, and its values: 8 bytes for each."""
        if not self.fixed:
            return super().stored()
        found: dict[str, np.ndarray] = {}
        for path, mask in self.method_state().items():
            w = self.differences[path.removesuffix(".mask")].w
            found[f"{path}.places"] = np.flatnonzero(mask).astype(np.uint32)
            found[f"{path}.values"] = w.data[mask]
        return found

    def unpacked(self, stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Of places and values, the masks are fixed, and what else is in them is zero."""
        packed = {name for path in self.differences for name in (f"{path}.mask.places", f"{path}.mask.values")}
        if not packed & stored.keys():
            return stored
        if stored.keys() != packed:
            raise ValueError(f"it holds {some(sorted(stored.keys() ^ packed))} too much or too little")
        for path, d in self.differences.items():
            places, values = stored[f"{path}.mask.places"], stored[f"{path}.mask.values"]
            if places.shape != values.shape or places.dtype.kind not in "iu" or places.max(initial=0) >= d.w.data.size:
                raise ValueError(f"the places of {path} do not fit its {d.w.data.size} entries")
            if not np.can_cast(values.dtype, d.w.dtype):
                raise ValueError(f"the values of {path} are {values.dtype}, the model is {d.w.dtype}")
        for path, d in self.differences.items():
            places, mask = stored[f"{path}.mask.places"], np.zeros(d.w.data.size, bool)
            mask[places] = True
            d.fix(mask)
            d.w.data.reshape(-1)[places] = stored[f"{path}.mask.values"]
        return super().stored()


def value_at(model: GPT, path: str) -> np.ndarray:
    holder, name = slot(model, path)
    return holder.get(name).data


def largest(magnitudes: np.ndarray, count: int) -> np.ndarray:
    """bool (n,): the ``count`` largest, and of equals the first.

    >>> largest(np.array([2.0, 1.0, 3.0, 2.0]), 2).tolist()
    [True, False, True, False]
    """
    last = np.partition(magnitudes, len(magnitudes) - count)[len(magnitudes) - count]
    chosen = magnitudes > last
    chosen[np.flatnonzero(magnitudes == last)[: count - chosen.sum()]] = True
    return chosen


def diff_targets(model: GPT, config: DiffPruningConfig) -> dict[str, int]:
    """Path to size of every parameter that may differ."""
    sizes = parameter_sizes(model)
    return {path: sizes[path] for path in select(config.target_parameters, sizes, "parameter")}


def kept_count(model: GPT, config: DiffPruningConfig) -> int:
    """How many entries may differ once the mask is fixed; at least one."""
    return max(1, round(config.sparsity * sum(diff_targets(model, config).values())))


def diff_count(model: GPT, config: DiffPruningConfig) -> int:
    """Σ |θ|, twice that with gates (alpha), and one for each tensor where structured: until the mask is fixed."""
    sizes = diff_targets(model, config)
    return sum(sizes.values()) * (1 + config.gated) + config.structured * len(sizes)


register(
    Method(
        name="diff_pruning", config=DiffPruningConfig, adapter=DiffPruning, shape="reparam", folder="parameter",
        start="bitwise", count=diff_count, mergeable=True, rowwise=False,
        stackable_with=("reparam", "around", "tokens", "select"), summary="a sparse difference, its places learned",
        examples=(
            DiffPruningConfig(sparsity=0.1, fixmask_after=0.6),
            DiffPruningConfig(variant="magnitude", target_parameters=["ln_1.**", "mlp.down_proj.weight"], sparsity=0.2),
            DiffPruningConfig(
                target_parameters=["tokens.weight", "attn.**"], structured=True, sparsity=0.2, fixmask_after=0.6
            ),
        ),
    )
)  # fmt: skip
