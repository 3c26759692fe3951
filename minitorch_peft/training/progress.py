"""What a run reports after each step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class StepReport:
    """One finished step: ``loss`` in nats per token, ``penalty`` apart, over ``tokens`` labels."""

    step: int  # steps done, 1 after the first
    total: int
    loss: float
    lr: float
    grad_norm: float  # before clipping
    tokens: int
    seconds: float
    penalty: float = 0.0
    held_out: float | None = None  # mean held-out loss, where this step ended with an evaluation

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


class Progress(Protocol):
    """Called after each step, in the run's own thread; what it raises ends the run."""

    def __call__(self, report: StepReport) -> None: ...
