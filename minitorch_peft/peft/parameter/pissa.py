"""PiSSA: LoRA on a weight's principal part (Meng et al. 2024, eqs. 2 to 5).

    W = U S Vᵀ,   A₀ = √S_r V_rᵀ / √s,   B₀ = U_r √S_r / √s,   y = x (W - s B₀A₀ + s B A)ᵀ + b

A and B start at A₀ (r, in) and B₀ (out, r), the r largest singular values with their vectors, so that the adapted
model starts as the base, and steps move it along the directions that matter most to it. Parameters: LoRA's. Targets
by default: the query and value projections.

The paper, and ``peft``, put W - s B₀A₀ in W's place, which changes the base. Here it stays: A₀ and B₀ are kept beside
it, frozen, and stored with A and B, so that the change is the same whatever the singular vectors of a base are. As

    B A - B₀A₀ = (B - B₀) A + B₀ (A - A₀) = [B - B₀, B₀] [A; A - A₀]

the change is a LoRA of rank 2 r, which starts at exactly zero; all of LoRA's operations serve it. ``peft``'s file
holds [B, -B₀] [A; A₀] with twice the alpha: a LoRA for every reader, of the base as it was.

On a base in four bits the principal part is that of its values. (The paper's QPiSSA packs W - s B₀A₀ instead.)
"""

from __future__ import annotations

import numpy as np

import minitorch_peft.functional as F
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.nn import Module
from minitorch_peft.peft.adapter import Adapter
from minitorch_peft.peft.hooks import check_state
from minitorch_peft.peft.parameter.lora import Lora, LoraConfig, LoraLayer, lora_count
from minitorch_peft.peft.parameter.pissa_files import PissaFiles
from minitorch_peft.peft.principal import STARTS, principal
from minitorch_peft.peft.registry import Method, register


class PissaLayer(LoraLayer):
    """A frozen layer, the low-rank change, and where that started."""

    def __init__(self, base_layer: Module, path: str, adapter: Adapter, config: LoraConfig) -> None:
        super().__init__(base_layer, path, adapter, config)
        try:
            start = principal(self.base.dense_weight(), config.rank(path), self.scaling)
        except ValueError as error:
            raise ValueError(f"PiSSA cannot start at {path}: {error}") from None
        self.start = tuple(Tensor(part.astype(adapter.dtype, copy=False)) for part in start)  # A₀ (r, in), B₀ (out, r)
        for parameter, part in zip((self.lora_A, self.lora_B), self.start, strict=True):
            parameter.data[...] = part.data

    def factors(self) -> tuple[Tensor, Tensor]:
        """[A; A - A₀] (2 r, in) and [B - B₀, B₀] (out, 2 r)."""
        A, B = self.lora_A, self.lora_B
        A0, B0 = (part.to(A.dtype) for part in self.start)
        return F.cat([A, A - A0], dim=0), F.cat([B - B0, B0], dim=1)

    def effective(self, weight: np.ndarray) -> np.ndarray:
        A0, B0 = (part.data.astype(weight.dtype) for part in self.start)
        return super().effective(weight) - self.scaling * (B0 @ A0)


class Pissa(Lora):
    layer = PissaLayer

    def frozen(self) -> dict[str, np.ndarray]:
        """A₀ and B₀ of every layer."""
        return {
            f"{path}.{name}": part.data
            for path, layer in self.wrappers.items()
            for name, part in zip(STARTS, layer.start, strict=True)
        }

    def method_state(self) -> dict[str, np.ndarray]:
        return self.frozen()

    def load_method_state(self, state: dict[str, np.ndarray]) -> None:
        check_state(self.name, state, self.frozen())
        for name, array in self.frozen().items():
            array[...] = state[name]


register(
    Method(
        name="pissa", config=LoraConfig, variant={"init_lora_weights": "pissa"}, adapter=Pissa, shape="reparam",
        folder="parameter", start="bitwise", count=lora_count, mergeable=True, rowwise=True,
        stackable_with=("reparam", "around", "tokens", "select"), summary="LoRA on the principal part of the weights",
        examples=(
            LoraConfig(r=4, lora_alpha=8, init_lora_weights="pissa"),
            LoraConfig(
                r=2, target_modules=["k_proj", "down_proj", "embed.tokens"], lora_dropout=0.1, use_rslora=True,
                rank_pattern={"down_proj": 3}, init_lora_weights="pissa",
            ),
        ),
        peft_files=PissaFiles(),
    )
)  # fmt: skip
