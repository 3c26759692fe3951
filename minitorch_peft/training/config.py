"""TrainConfig: all settings of a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minitorch_peft.optim import SCHEDULES, SGD, AdamW, AdamW8bit, Optimizer, PagedAdamW, PagedAdamW8bit

OPTIMIZERS: dict[str, type[Optimizer]] = {
    "adamw": AdamW, "sgd": SGD, "adamw_bnb_8bit": AdamW8bit,
    "paged_adamw_32bit": PagedAdamW, "paged_adamw_8bit": PagedAdamW8bit,
}  # fmt: skip
"""What ``optimizer`` names, as in ``transformers``."""
PAGED = tuple(name for name in OPTIMIZERS if name.startswith("paged"))
SMALLEST_BUDGET = 64 << 10
HARMLESS = ("out", "save_every", "keep", "log_every", "optimizer_budget")
"""Settings that change no weight: a run may be resumed with others."""
_AT_LEAST_0 = (
    "lr", "warmup", "final_lr", "momentum", "weight_decay", "eval_every", "patience", "save_every",
)  # fmt: skip


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a run. ``steps`` are updates; each takes ``gradient_accumulation_steps`` batches.

    >>> TrainConfig(steps=100, lr=3e-3, warmup=10).schedule
    'cosine'
    """

    steps: int
    lr: float = 1e-3
    optimizer: str = "adamw"  # or another of OPTIMIZERS
    optimizer_budget: int | None = None  # of a paged one: bytes of memory for its state; None: 256 MiB
    schedule: str = "cosine"
    warmup: int = 0  # steps
    final_lr: float = 0.0  # what the schedule falls to, as a fraction of ``lr``
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.0  # of sgd
    weight_decay: float = 0.0  # of matrices only: biases and gains are never decayed
    layer_decay: float = 1.0  # below 1, lower layers learn more slowly (optim.layerwise_groups)
    max_grad_norm: float | None = 1.0
    gradient_accumulation_steps: int = 1
    eval_every: int = 0  # steps between evaluations on held-out text; 0: none
    patience: int = 0  # stop after so many evaluations in a row without a new best; 0: never
    restore_best: bool = False  # end with the weights of the best evaluation instead of the last
    seed: int = 0  # of dropout and noise
    out: str | Path | None = None  # folder of checkpoints and metrics.jsonl; None writes nothing
    save_every: int = 0  # steps between checkpoints; 0: only the best, the last, and on Ctrl-C
    keep: int = 2  # checkpoints that are kept, besides the best one
    log_every: int = 1

    def __post_init__(self) -> None:
        self._check_choices()
        for name in ("steps", "gradient_accumulation_steps", "keep", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in _AT_LEAST_0:
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm must be above 0 (None: no clipping), got {self.max_grad_norm}")

    def _check_choices(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule={self.schedule!r}: expected one of {', '.join(SCHEDULES)}")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer={self.optimizer!r}: expected one of {', '.join(OPTIMIZERS)}")
        if self.optimizer_budget is not None:
            self._check_budget(self.optimizer_budget)
        if (self.patience or self.restore_best) and not self.eval_every:
            raise ValueError("patience and restore_best need eval_every: they look at the held-out loss")
        if self.restore_best and self.out is None:
            raise ValueError("restore_best needs out: the best weights are kept on disk, not in memory")
        if self.save_every and self.out is None:
            raise ValueError("save_every needs out, the folder that checkpoints go to")

    def _check_budget(self, budget: int) -> None:
        if self.optimizer not in PAGED:
            known = " or ".join(PAGED)
            raise ValueError(f"optimizer_budget is of a paged optimizer ({known}); {self.optimizer} keeps its state")
        if isinstance(budget, bool) or not isinstance(budget, int) or budget < SMALLEST_BUDGET:
            raise ValueError(f"optimizer_budget must be whole bytes, at least {SMALLEST_BUDGET}, got {budget!r}")

    def factor(self, step: int) -> float:
        """The schedule's fraction of ``lr`` at ``step``, counted from 0."""
        return SCHEDULES[self.schedule](step, self.steps, self.warmup, self.final_lr)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "betas": list(self.betas), "out": None if self.out is None else str(self.out)}
