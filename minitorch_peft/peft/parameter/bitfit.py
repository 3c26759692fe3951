"""BitFit: the bias vectors alone (Ben Zaken et al. 2021, section 3).

    y = x Wᵀ + b + Δb

Parameters: all biases, of linear layers and of layer norms; about a thousandth of a large model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from minitorch_peft.models import GPT
from minitorch_peft.peft.adapter import Adapter
from minitorch_peft.peft.config import PeftConfig
from minitorch_peft.peft.inject import base_parameters
from minitorch_peft.peft.patterns import Pattern, select
from minitorch_peft.peft.registry import Method, register


@dataclass
class BitFitConfig(PeftConfig):
    """``target_parameters``: a pattern over the names of biases; by default all of them."""

    peft_type: ClassVar[str] = "BITFIT"

    target_parameters: Pattern = ("bias",)


class BitFit(Adapter):
    def attach(self, config: BitFitConfig) -> None:
        self.select(list(bitfit_targets(self.model, config)))


def bitfit_targets(model: GPT, config: BitFitConfig) -> dict[str, int]:
    """Path to size of every chosen bias."""
    biases = {path: p.data.size for path, p in base_parameters(model) if path.endswith(".bias")}
    if not biases:
        raise ValueError("this model has no biases (Llama's family has none by default): BitFit has nothing to train")
    return {path: biases[path] for path in select(config.target_parameters, biases, "bias")}


def bitfit_count(model: GPT, config: BitFitConfig) -> int:
    """The sum of the biases' sizes."""
    return sum(bitfit_targets(model, config).values())


register(
    Method(
        name="bitfit",
        config=BitFitConfig,
        adapter=BitFit,
        shape="select",
        folder="parameter",
        start="bitwise",
        count=bitfit_count,
        mergeable=True,
        rowwise=False,
        stackable_with=("reparam", "around", "tokens", "select"),
        summary="the biases",
        examples=(BitFitConfig(), BitFitConfig(target_parameters=["q_proj.bias", "up_proj.bias"])),
    )
)
