"""IA3: learned scalings of keys, values and the MLP's inner activation (Liu et al. 2022, section 3.3).

    softmax(Q (l_k ⊙ K)ᵀ / √d) (l_v ⊙ V)          (l_ff ⊙ f(W₁ x)) W₂

For a layer W (out, in): ``y = l ⊙ (x Wᵀ + b)`` with l (out, 1); for a feedforward layer, whose input is the inner
activation, ``y = (l ⊙ x) Wᵀ + b`` with l (1, in). All l start at one, so the adapted model starts as the base.
Parameters: out, or in of a feedforward layer. Targets by default, as in the paper: ``k_proj``, ``v_proj`` and, as
feedforward layer, ``down_proj``. Merging scales rows of W and b, or columns of W: it is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.models import GPT
from minitorch_peft.nn import ForwardContext, Module, init
from minitorch_peft.peft.adapter import Adapter
from minitorch_peft.peft.config import PeftConfig
from minitorch_peft.peft.function.ia3_files import IA3Files
from minitorch_peft.peft.inject import inject
from minitorch_peft.peft.patterns import Pattern, select, target_leaves
from minitorch_peft.peft.registry import Method, register
from minitorch_peft.peft.shapes import Around, Reparam


@dataclass
class IA3Config(PeftConfig):
    """``feedforward_modules``: those of the targets whose input is scaled, not their output; may be empty.

    >>> from minitorch_peft.models import GPT, GPTConfig
    >>> model = GPT(GPTConfig(vocab_size=97, n_positions=64, n_embd=64, n_layer=3, n_head=4))
    >>> ia3_count(model, IA3Config()), 3 * (64 + 64 + 256)
    (1152, 1152)
    """

    peft_type: ClassVar[str] = "IA3"

    target_modules: Pattern = ("k_proj", "v_proj", "down_proj")
    feedforward_modules: Pattern | None = ("down_proj",)
    exclude_modules: Pattern | None = None

    def targets(self, model: GPT) -> dict[str, tuple[Any, bool]]:
        """Path to (layer, is it a feedforward layer?) of every target; ValueError where a name fits none."""
        found = target_leaves(model, self.target_modules, exclude_modules=self.exclude_modules)
        if ids := [path for path, leaf in found.items() if leaf.takes_ids]:
            raise ValueError(f"IA3 scales the layers that multiply by a weight, {ids[0]} looks rows up: leave it out")
        try:
            inner = set(select(self.feedforward_modules, found, "target") if self.feedforward_modules else ())
        except ValueError as error:
            raise ValueError(
                f"feedforward_modules: {error}. They are some of target_modules; [] is none of them"
            ) from None
        return {path: (leaf, path in inner) for path, leaf in found.items()}


class IA3Layer(Around, Reparam):
    """A layer with its output scaled, or its input. ``ia3_l`` (out, 1), or (1, in) for the input."""

    def __init__(self, base_layer: Module, path: str, adapter: Adapter, feedforward: bool) -> None:
        super().__init__(base_layer, adapter)
        self.feedforward = feedforward
        shape = (1, self.base.in_features) if feedforward else (self.base.out_features, 1)
        self.ia3_l = adapter.new_parameter(f"{path}.ia3_l", shape, init.ones)

    def before(self, x: Tensor, context: ForwardContext | None) -> Tensor:
        return x * self.ia3_l.reshape(-1) if self.feedforward else x

    def after(self, y: Tensor, x: Tensor, context: ForwardContext | None) -> Tensor:
        return y if self.feedforward else y * self.ia3_l.reshape(-1)

    def effective(self, weight: np.ndarray) -> np.ndarray:
        return weight * self.ia3_l.data.astype(weight.dtype)

    def effective_bias(self, bias: np.ndarray) -> np.ndarray:
        return bias if self.feedforward else bias * self.ia3_l.data.reshape(-1).astype(bias.dtype)


class IA3(Adapter):
    def attach(self, config: IA3Config) -> None:
        targets = config.targets(self.model)
        self.wrappers = inject(self.model, targets, lambda base, path: IA3Layer(base, path, self, targets[path][1]))


def ia3_count(model: GPT, config: IA3Config) -> int:
    """Σ out over the targets, Σ in over the feedforward ones."""
    return sum(leaf.in_features if inner else leaf.out_features for leaf, inner in config.targets(model).values())


register(
    Method(
        name="ia3", config=IA3Config, adapter=IA3, shape="around", folder="function", start="bitwise",
        count=ia3_count, mergeable=True, rowwise=True, stackable_with=("reparam", "around", "tokens", "select"),
        summary="scalings of keys, values and the MLP's inner activation",
        examples=(IA3Config(), IA3Config(["q_proj", "o_proj", "up_proj"], feedforward_modules=["o_proj"])),
        peft_files=IA3Files(),
    )
)  # fmt: skip
