"""Partial fine-tuning: the top layers, or any parameters that a pattern names; the rest stays frozen.

Lower layers hold what is common to all texts, upper ones what is particular to a task, so on little data the top
k blocks, the final norm and the head learn and the rest is kept (Howard and Ruder 2018, section 3.3). A head that
is tied to the embedding belongs to both ends and stays frozen. Parameters: those chosen. Targets by default: none, the
config says which.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from minitorch_peft.models import GPT
from minitorch_peft.peft.adapter import Adapter
from minitorch_peft.peft.config import PeftConfig, is_whole
from minitorch_peft.peft.inject import parameter_sizes
from minitorch_peft.peft.patterns import Pattern, layer_index, select
from minitorch_peft.peft.registry import Method, register


@dataclass
class PartialConfig(PeftConfig):
    """``top_layers``: how many blocks from the top; or ``target_parameters``: a pattern over parameter names."""

    peft_type: ClassVar[str] = "PARTIAL"

    top_layers: int | None = None
    target_parameters: Pattern | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.top_layers is None) == (self.target_parameters is None):
            raise ValueError("give either top_layers (a number) or target_parameters (a pattern)")
        if self.top_layers is not None and (not is_whole(self.top_layers) or self.top_layers < 0):
            raise ValueError(f"top_layers must be a whole number of at least 0, got {self.top_layers!r}")


class Partial(Adapter):
    def attach(self, config: PartialConfig) -> None:
        self.select(list(partial_targets(self.model, config)))


def partial_targets(model: GPT, config: PartialConfig) -> dict[str, int]:
    """Path to size of every chosen parameter."""
    sizes = parameter_sizes(model)
    if config.target_parameters is not None:
        return {path: sizes[path] for path in select(config.target_parameters, sizes, "parameter")}
    layers = model.config.n_layer
    if config.top_layers > layers:  # type: ignore[operator]
        raise ValueError(f"top_layers={config.top_layers}, the model has {layers} blocks")
    # BEGIN SOLUTION(task="2.7a")
    lowest = layers - config.top_layers  # type: ignore[operator]
    return {path: size for path, size in sizes.items() if is_above(path, lowest)}
    # END SOLUTION


def is_above(path: str, lowest: int) -> bool:
    """Is a parameter in block ``lowest`` or above it, in the final norm, or in an untied head?"""
    # BEGIN SOLUTION(task="2.7b")
    layer = layer_index(path)
    return layer >= lowest if layer is not None else path.startswith(("ln_f.", "lm_head."))
    # END SOLUTION


def partial_count(model: GPT, config: PartialConfig) -> int:
    """The sum of the chosen parameters' sizes."""
    return sum(partial_targets(model, config).values())


register(
    Method(
        name="partial",
        config=PartialConfig,
        adapter=Partial,
        shape="select",
        folder="parameter",
        start="bitwise",
        count=partial_count,
        mergeable=True,
        rowwise=False,
        stackable_with=("reparam", "around", "tokens", "select"),
        summary="the top layers, or any pattern",
        examples=(PartialConfig(top_layers=1), PartialConfig(target_parameters=["ln_1.**", "mlp.down_proj.weight"])),
    )
)
