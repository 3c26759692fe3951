"""Full fine-tuning: every parameter of the base, from φ₀ to φ₀ + Δφ.

    max over φ of Σ_(x,y) Σ_t log P_φ(y_t | x, y_<t)

Parameters: all of them, so one copy of the model for every task. Targets by default: all, there is no other choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from minitorch_peft.models import GPT
from minitorch_peft.peft.adapter import Adapter
from minitorch_peft.peft.config import PeftConfig
from minitorch_peft.peft.inject import parameter_sizes
from minitorch_peft.peft.registry import Method, register


@dataclass
class FullConfig(PeftConfig):
    peft_type: ClassVar[str] = "FULL"


class Full(Adapter):
    def attach(self, config: FullConfig) -> None:
        self.select(list(parameter_sizes(self.model)))


def full_count(model: GPT, config: FullConfig) -> int:
    """|θ|."""
    return sum(parameter_sizes(model).values())


register(
    Method(
        name="full",
        config=FullConfig,
        adapter=Full,
        shape="select",
        folder="parameter",
        start="bitwise",
        count=full_count,
        mergeable=True,
        rowwise=False,
        stackable_with=("reparam", "around", "tokens", "select"),
        summary="every parameter",
        examples=(FullConfig(),),
    )
)
