"""What is the same for every run of a comparison."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minitorch_peft.training import TrainConfig


@dataclass(frozen=True)
class Plan:
    """``eval_rows``: rows that bits per byte are taken on, of each text."""

    base: str = "tiny"
    translation: str = "wyc"
    steps: int = 80
    batch_size: int = 16
    length: int = 128
    warmup: int = 10
    eval_rows: int = 128

    def training(self, lr: float, seed: int) -> TrainConfig:
        from minitorch_peft.training import TrainConfig

        return TrainConfig(self.steps, lr, schedule="linear", warmup=self.warmup, seed=seed)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
