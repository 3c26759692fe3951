"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field

from minitorch_peft.nn import Module, mode_of
from minitorch_peft.optim import clip_grads_with_norm_, get_total_norm
from minitorch_peft.training.accumulate import Batch, BatchSource, StepLoss, accumulate
from minitorch_peft.training.config import TrainConfig
from minitorch_peft.training.errors import TrainingError, TrainingInterrupted
from minitorch_peft.training.evaluate import evaluate
from minitorch_peft.training.groups import make_optimizer, trainable
from minitorch_peft.training.interrupt import GracefulStop
from minitorch_peft.training.progress import Progress, StepReport
from minitorch_peft.training.record import RunRecord, RunState


@dataclass
class TrainResult:
    """How a run ended. ``losses`` are those of the steps that this call took, in nats per token."""

    state: RunState
    losses: list[float] = field(default_factory=list)


class Trainer:
    """Trains whatever of ``model`` requires a gradient, by the objective max Σ log P(y_t | x, y_<t).

    The prompt x is what has label -100: it is read, and no gradient comes from predicting it.

    Args:
        model: ``model(**batch, context=...)`` gives ``.loss`` (a mean over ``.num_targets`` labels). It
            may have the hooks of a method: ``penalty()``, ``param_groups()``, ``after_backward(step,
            total)``, ``after_step(step)``, ``method_state()`` with ``load_method_state(state)``; their
            steps count from 0. As long as it says of itself that it is not ``settled`` (what it will be in the end
            is still to be chosen: a mask), no evaluation counts as the best.
        batch: ``batch(i)`` gives the i-th batch, a dict of arrays, and must be a pure function of i,
            which is the data position: step s takes batches s·k to (s + 1)·k - 1, k being
            ``gradient_accumulation_steps``.
        held_out: gives the batches of an evaluation, afresh at every call.
        progress: is told of every finished step.
    """

    def __init__(
        self,
        model: Module,
        batch: BatchSource,
        config: TrainConfig,
        held_out: Callable[[], Iterable[Batch]] | None = None,
        progress: Progress | None = None,
    ) -> None:
        if config.eval_every and held_out is None:
            raise ValueError("eval_every needs held_out, a function that gives the batches to evaluate on")
        self.model, self.batch, self.config = model, batch, config
        self.held_out, self.progress = held_out, progress
        self.optimizer = make_optimizer(model, config)
        self.parameters = trainable(model)
        self.state = RunState()
        self.record: RunRecord | None = None

    # -- the run ---------------------------------------------------------------------------------------------
    def run(self, resume: bool = False) -> TrainResult:
        """Train to the end.

        With ``config.out``, everything is saved: after ``save_every`` steps, after a new best
        evaluation, at the end and on Ctrl-C. ``resume`` goes on from the newest good checkpoint there
        and ends with the same bits as a run that was never interrupted; where there is none yet, it
        starts.

        Raises:
            TrainingError: the loss, the gradient or the weights are not finite, or a file cannot be written.
            CheckpointError: what is in the folder cannot be resumed (see :meth:`RunRecord.start`).
            TrainingInterrupted: Ctrl-C or SIGTERM; the step was finished and saved.
        """
        with mode_of(self.model, training=True):
            if self.config.out is None:
                if resume:
                    raise ValueError("resume needs config.out, the folder of the run")
                return self._loop(None, None)
            self.record = RunRecord(self.model, self.batch, self.config, self.optimizer)
            with self.record.folder.opened(), closing(self.record), GracefulStop() as stop:
                self.state = self.record.start(resume)
                return self._loop(self.record, stop)

    def _loop(self, record: RunRecord | None, stop: GracefulStop | None) -> TrainResult:
        losses: list[float] = []
        while not self.finished:
            report = self.step()
            losses.append(report.loss)
            if self.progress is not None:
                self.progress(report)
            if record is not None and stop is not None:
                self._keep(record, report, stop)
        if self.config.restore_best and record is not None:
            record.restore_best(self.state)
        return TrainResult(self.state, losses)

    def _keep(self, record: RunRecord, report: StepReport, stop: GracefulStop) -> None:
        """Log the step, save if it is time to, and end the run if that was asked for."""
        record.write(report)
        every, step = self.config.save_every, self.state.step
        new_best = report.held_out is not None and self.state.best_step == step
        if (every and step % every == 0) or new_best or self.finished or stop.requested:
            path = record.save(self.state)
            if stop.requested:
                raise TrainingInterrupted(stop.requested, step, self.config.steps, path, stop.name)

    @property
    def finished(self) -> bool:
        return self.state.stopped_early or self.state.step >= self.config.steps

    # -- one step --------------------------------------------------------------------------------------------
    def step(self) -> StepReport:
        """One update, and the evaluation that is due after it.

        Raises:
            TrainingError: the loss or the gradient is not finite; the weights are those of before the step.
        """
        start, step, config = time.perf_counter(), self.state.step, self.config
        loss, norm = self._gradient(step)
        factor = config.factor(step)
        self.optimizer.step(factor)
        if hasattr(self.model, "after_step"):
            self.model.after_step(step)
        self.optimizer.zero_grad()
        seconds = time.perf_counter() - start
        self.state.step += 1
        self.state.tokens += loss.tokens
        self.state.seconds += seconds
        return StepReport(
            self.state.step, config.steps, loss.loss, config.lr * factor, norm, loss.tokens, seconds,
            loss.penalty, held_out=self._evaluate(),
        )  # fmt: skip

    def _gradient(self, step: int) -> tuple[StepLoss, float]:
        """Leave the step's gradient in the parameters; the loss, and the gradient's norm before clipping."""
        k = self.config.gradient_accumulation_steps
        batches = range(step * k, (step + 1) * k)
        try:
            loss = accumulate(self.model, self.batch, batches, self.parameters.values(), self.config.seed)
            norm = self._norm()
            if hasattr(self.model, "after_backward"):
                self.model.after_backward(step, self.config.steps)
                norm = self._norm()
        except TrainingError as error:
            self.optimizer.zero_grad()
            raise self._failure(
                f"step {step + 1}: {error}. This step has not changed the weights. If it is not the data, "
                f"lower lr (now {self.config.lr * self.config.factor(step):.3g}) or lengthen the warm-up"
            ) from error
        if self.config.max_grad_norm is not None:
            clip_grads_with_norm_(self.parameters.values(), self.config.max_grad_norm, norm)
        return loss, norm

    def _norm(self) -> float:
        norm = get_total_norm([p.grad for p in self.parameters.values() if p.grad is not None])
        if not math.isfinite(norm):
            raise TrainingError(f"the gradient's norm is {norm}")
        return norm

    def _evaluate(self) -> float | None:
        """The mean held-out loss, if it is due after this step; keeps count for early stopping."""
        state, config = self.state, self.config
        if not config.eval_every or (state.step % config.eval_every and state.step < config.steps):
            return None
        assert self.held_out is not None
        loss = evaluate(self.model, self.held_out()).loss
        if not math.isfinite(loss):
            raise self._failure(f"after step {state.step} the held-out loss is {loss}")
        if not getattr(self.model, "settled", True):
            return loss
        if state.best_loss is None or loss < state.best_loss:
            state.best_loss, state.best_step, state.evaluations_since_best = loss, state.step, 0
        else:
            state.evaluations_since_best += 1
            state.stopped_early = 0 < config.patience <= state.evaluations_since_best
        return loss

    def _failure(self, message: str) -> TrainingError:
        return TrainingError(message if self.record is None else f"{message}. {self.record.folder.advice()}")


def train(
    model: Module,
    batch: BatchSource,
    config: TrainConfig,
    held_out: Callable[[], Iterable[Batch]] | None = None,
    progress: Progress | None = None,
    resume: bool = False,
) -> TrainResult:
    """Train ``model`` in place; :class:`Trainer` tells of the arguments, :meth:`Trainer.run` of ``resume``.

    >>> import numpy as np
    >>> from minitorch_peft.models import GPT, GPTConfig
    >>> model = GPT(GPTConfig(vocab_size=7, n_positions=8, n_embd=16, n_layer=1, n_head=2))
    >>> ids = np.arange(16).reshape(2, 8) % 7
    >>> result = train(model, lambda i: {"input_ids": ids, "labels": ids}, TrainConfig(steps=20, lr=1e-2))
    >>> result.losses[0] > 1.9, result.losses[-1] < 1.0
    (True, True)
    """
    return Trainer(model, batch, config, held_out, progress).run(resume)
