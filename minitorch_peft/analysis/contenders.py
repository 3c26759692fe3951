"""What is compared: methods with their settings, and the rate that suits each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from minitorch_peft.models import GPT
from minitorch_peft.peft import METHODS, PeftConfig
from minitorch_peft.quant import QLORA, BitsAndBytesConfig


@dataclass(frozen=True)
class Contender:
    """``method`` is a name of the registry, ``settings`` are its config's, ``lr`` the peak rate.

    ``quantization`` is how the base is stored, which is no matter of the method: LoRA on four bits is QLoRA.
    ``budget``: of a comparison at equal numbers of parameters, which one ("" where there is none).
    """

    name: str
    title: str
    method: str
    lr: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    quantization: BitsAndBytesConfig = field(default_factory=BitsAndBytesConfig)
    budget: str = ""

    @property
    def folder(self) -> str:
        """What the method changes: "parameter", "input" or "function"."""
        return METHODS[self.method].folder

    def base(self, name: str) -> GPT:
        return GPT.from_pretrained(name, quantization_config=self.quantization)

    def config(self) -> PeftConfig:
        return METHODS[self.method].make(self.settings)

    def resolved(self) -> dict[str, Any]:
        """All that a run depends on, defaults of the method included."""
        return {**self.to_dict(), "config": self.config().to_dict()}

    def to_dict(self) -> dict[str, Any]:
        stored = {"quantization": self.quantization.to_dict()} if self.quantization.load_in_4bit else {}
        return {"method": self.method, "lr": self.lr, "settings": dict(self.settings), **stored}


ALL_LINEAR = {"target_modules": "all-linear"}

# The rates are the best of ``minitorch-peft compare --sweep``, which judges on a training book that it sets aside.
CONTENDERS: tuple[Contender, ...] = (
    Contender("full", "full fine-tuning", "full", 3e-3),
    Contender("lora-r16", "LoRA r=16", "lora", 1e-2, {"r": 16, "lora_alpha": 32, **ALL_LINEAR}),
    Contender("qlora", "QLoRA r=16", "lora", 1e-2, {"r": 16, "lora_alpha": 32, **ALL_LINEAR}, QLORA),
    Contender("lora-r4", "LoRA r=4", "lora", 1e-2, {"r": 4, "lora_alpha": 16, **ALL_LINEAR}),
    Contender("bitfit", "BitFit", "bitfit", 0.12),
    Contender("top-layer", "top layer", "partial", 1e-2, {"top_layers": 1}),
)


def contenders_named(names: list[str]) -> tuple[Contender, ...]:
    """Those of these names, in the order of the table; ValueError for an unknown one."""
    known = [c.name for c in CONTENDERS]
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"unknown method {', '.join(unknown)}: expected some of {', '.join(known)}")
    return tuple(c for c in CONTENDERS if c.name in names)
