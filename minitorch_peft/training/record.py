"""What a run leaves on disk, and how it comes back from there."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.nn import Module
from minitorch_peft.optim import Optimizer
from minitorch_peft.training.accumulate import BatchSource
from minitorch_peft.training.checkpoint import Checkpoint, CheckpointFolder, read_checkpoint
from minitorch_peft.training.config import TrainConfig
from minitorch_peft.training.errors import CheckpointError, TrainingError
from minitorch_peft.training.fingerprint import differences, environment, fingerprint
from minitorch_peft.training.metrics import MetricsLog
from minitorch_peft.training.progress import StepReport
from minitorch_peft.training.tree import pack, unpack


@dataclass
class RunState:
    """Where a run stands: what a checkpoint holds beside arrays. ``step`` is the number of steps done."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_loss: float | None = None  # held-out, in nats per token
    best_step: int = 0
    evaluations_since_best: int = 0
    stopped_early: bool = False


class RunRecord:
    """The folder of a run: its checkpoints and ``metrics.jsonl``.

    A checkpoint holds what trains, the optimizer's and the method's state, the :class:`RunState` and
    the fingerprint of configuration, model and data. Data position, schedule and random numbers are
    functions of the step and the seed, so nothing more is needed. What is frozen is not copied, only
    recognized.
    """

    def __init__(self, model: Module, batch: BatchSource, config: TrainConfig, optimizer: Optimizer) -> None:
        assert config.out is not None
        self.model, self.config, self.optimizer = model, config, optimizer
        self.parameters: Mapping[str, Tensor] = optimizer.named_parameters()
        self.folder = CheckpointFolder(config.out, config.keep)
        self.fingerprint = fingerprint(model, config, batch)
        self.log: MetricsLog | None = None

    # -- starting --------------------------------------------------------------------------------------------
    def start(self, resume: bool) -> RunState:
        """The state to go on from: that of the newest good checkpoint, or step 0 where there is none.

        Raises:
            CheckpointError: there is a run in the folder and ``resume`` is not set; the checkpoint belongs to
                another configuration, model or data; or every checkpoint is damaged.
        """
        if self.folder.paths() and not resume:
            raise CheckpointError(
                f"{self.folder.path} already holds a run. {self.folder.advice()} Or choose another out"
            )
        checkpoint = self.folder.load_newest()
        state = RunState() if checkpoint is None else self._restore(checkpoint)
        self.log = MetricsLog(self.folder.path / "metrics.jsonl", state.step)
        return state

    def _restore(self, checkpoint: Checkpoint) -> RunState:
        found = differences(checkpoint.info["fingerprint"], self.fingerprint)
        if found:
            more = f" (and {len(found) - 5} more)" if len(found) > 5 else ""
            raise CheckpointError(
                f"cannot resume from {self.folder.at(checkpoint.step)}, which is of another run: "
                f"{'; '.join(found[:5])}{more}. Use the settings of before, or another out"
            )
        elsewhere = differences(checkpoint.info["environment"], environment())
        if elsewhere:
            warnings.warn(
                f"resuming under other conditions ({'; '.join(elsewhere)}): the weights may differ in their "
                "last bits from those of an uninterrupted run",
                stacklevel=2,
            )
        self._set_model(checkpoint)
        self.optimizer.load_state_dict(checkpoint.part("optimizer"))
        return RunState(**checkpoint.info["state"])

    def _set_model(self, checkpoint: Checkpoint) -> None:
        """The weights, and what their method knew beside them."""
        for name, array in checkpoint.part("model").items():
            self.parameters[name].data[...] = array
            self.parameters[name].version.count += 1
        if hasattr(self.model, "load_method_state"):
            self.model.load_method_state(unpack(checkpoint.info["method"], checkpoint.arrays))

    def restore_best(self, state: RunState) -> None:
        """Put the weights of the best evaluation into the model, and the method's state of then."""
        if state.best_loss is not None and state.best_step < state.step:
            self._set_model(read_checkpoint(self.folder.at(state.best_step)))

    # -- going on --------------------------------------------------------------------------------------------
    def write(self, report: StepReport) -> None:
        """One line of the log. CheckpointError where the disk refuses."""
        if report.step % self.config.log_every and report.held_out is None and report.step < report.total:
            return
        assert self.log is not None
        try:
            self.log.write({k: v for k, v in asdict(report).items() if v is not None and k != "total"})
        except OSError as error:
            raise CheckpointError(f"{self.log.path} could not be written: {error}. {self.folder.advice()}") from error

    def save(self, state: RunState) -> Path:
        """Write a checkpoint.

        Raises:
            CheckpointError: it could not be written; what was there before is untouched.
            TrainingError: the weights are not finite; they are not saved.
        """
        if bad := [name for name, p in self.parameters.items() if not np.isfinite(p.data).all()]:
            raise TrainingError(
                f"step {state.step} left weights that are not finite ({', '.join(bad[:3])}): they are "
                f"not saved. {self.folder.advice()}"
            )
        assert self.log is not None
        self.log.sync()
        return self.folder.save(self._checkpoint(state), state.best_step)

    def _checkpoint(self, state: RunState) -> Checkpoint:
        arrays = {f"model/{name}": p.data for name, p in self.parameters.items()}
        arrays |= {f"optimizer/{key}": a for key, a in self.optimizer.state_dict().items()}
        method = self.model.method_state() if hasattr(self.model, "method_state") else {}
        info: dict[str, Any] = {
            "state": asdict(state),
            "next_batch": state.step * self.config.gradient_accumulation_steps,
            "seed": self.config.seed,
            "method": pack(method, arrays, "method"),
            "fingerprint": self.fingerprint,
            "environment": environment(),
        }
        return Checkpoint(state.step, arrays, info)

    def close(self) -> None:
        if self.log is not None:
            self.log.close()
