"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from minitorch_peft.nn import Module
from minitorch_peft.optim import clip_grads_with_norm_, get_total_norm
from minitorch_peft.training.accumulate import Batch, BatchSource, accumulate
from minitorch_peft.training.config import TrainConfig
from minitorch_peft.training.errors import TrainingError
from minitorch_peft.training.evaluate import evaluate, mode_of
from minitorch_peft.training.groups import make_optimizer, trainable
from minitorch_peft.training.progress import Progress, StepReport


@dataclass
class RunState:
    """Where a run stands: all that a checkpoint holds beside arrays."""

    step: int = 0  # steps done
    tokens: int = 0
    seconds: float = 0.0
    best_loss: float = math.inf
    best_step: int = 0
    evaluations_since_best: int = 0
    stopped_early: bool = False


@dataclass
class TrainResult:
    """How a run ended. ``losses`` are of the steps that this call took, in nats per token."""

    state: RunState
    losses: list[float] = field(default_factory=list)


class Trainer:
    """Trains whatever of ``model`` requires a gradient.

    Args:
        model: ``model(**batch, context=...)`` gives ``.loss`` (a mean over ``.num_targets`` labels). It may have the
            hooks of a method: ``penalty()``, ``param_groups()``, ``after_backward(step, total)``,
            ``after_step(step)``, ``method_state()`` with ``load_method_state(state)``. Steps count from 0.
        batch: ``batch(i)`` gives the i-th batch, a dict of arrays, and must be a pure function of i: it is the
            data position. Step s takes batches s·k to (s+1)·k - 1, k = ``gradient_accumulation_steps``.
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

    def run(self) -> TrainResult:
        losses: list[float] = []
        with mode_of(self.model, training=True):
            while self.state.step < self.config.steps and not self.state.stopped_early:
                losses.append(self.step().loss)
        return TrainResult(self.state, losses)

    def step(self) -> StepReport:
        """One update, and the evaluation that is due after it."""
        start = time.perf_counter()
        try:
            report = self._update(start)
        except TrainingError as error:
            raise TrainingError(f"step {self.state.step}: {error}") from error
        return report

    def _update(self, start: float) -> StepReport:
        step, config = self.state.step, self.config
        k = config.gradient_accumulation_steps
        loss = accumulate(
            self.model, self.batch, range(step * k, (step + 1) * k), self.parameters.values(), config.seed
        )
        norm = self._finish_gradient(step)
        factor = config.factor(step)
        self.optimizer.step(factor)
        self._hook("after_step", step)
        self.optimizer.zero_grad()
        self.state.step += 1
        held_out = self._evaluate()
        seconds = time.perf_counter() - start
        self.state.tokens += loss.tokens
        self.state.seconds += seconds
        report = StepReport(
            self.state.step, config.steps, loss.loss, config.lr * factor, norm, loss.tokens, seconds,
            loss.penalty, held_out,
        )  # fmt: skip
        if self.progress is not None:
            self.progress(report)
        return report

    def _finish_gradient(self, step: int) -> float:
        """Check, hook, clip; the norm before clipping."""
        norm = get_total_norm(self._gradients())
        if not math.isfinite(norm):
            raise TrainingError(f"the gradient's norm is {norm}")
        if hasattr(self.model, "after_backward"):
            self.model.after_backward(step, self.config.steps)
            norm = get_total_norm(self._gradients())
        if self.config.max_grad_norm is not None:
            clip_grads_with_norm_(self.parameters.values(), self.config.max_grad_norm, norm)
        return norm

    def _gradients(self) -> list[np.ndarray]:
        return [p.grad for p in self.parameters.values() if p.grad is not None]

    def _hook(self, name: str, *arguments: int) -> None:
        if hasattr(self.model, name):
            getattr(self.model, name)(*arguments)

    def _evaluate(self) -> float | None:
        """The mean held-out loss, if it is due after this step; keeps count for early stopping."""
        state, config = self.state, self.config
        if not config.eval_every or (state.step % config.eval_every and state.step < config.steps):
            return None
        assert self.held_out is not None
        loss = evaluate(self.model, self.held_out()).loss
        if not math.isfinite(loss):
            raise TrainingError(f"the held-out loss is {loss}")
        if loss < state.best_loss:
            state.best_loss, state.best_step, state.evaluations_since_best = loss, state.step, 0
        else:
            state.evaluations_since_best += 1
            state.stopped_early = 0 < config.patience <= state.evaluations_since_best
        return loss


def train(
    model: Module,
    batch: BatchSource,
    config: TrainConfig,
    held_out: Callable[[], Iterable[Batch]] | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Train ``model`` in place; see :class:`Trainer` for the arguments.

    >>> import numpy as np
    >>> from minitorch_peft.models import GPT, GPTConfig
    >>> model = GPT(GPTConfig(vocab_size=7, n_positions=8, n_embd=16, n_layer=1, n_head=2))
    >>> ids = np.arange(16).reshape(2, 8) % 7
    >>> result = train(model, lambda step: {"input_ids": ids, "labels": ids}, TrainConfig(steps=20, lr=1e-2))
    >>> result.losses[0] > 1.9, result.losses[-1] < 1.0
    (True, True)
    """
    return Trainer(model, batch, config, held_out, progress).run()
