"""The gradient of one step, added up over several batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.nn import ForwardContext
from minitorch_peft.training.errors import TrainingError
from minitorch_peft.training.evaluate import count_labels

Batch = Mapping[str, Any]
BatchSource = Callable[[int], Batch]


@dataclass
class StepLoss:
    """``nats`` over ``tokens`` labels; ``penalty``, weighted like the loss (0.0 where no method has one)."""

    nats: float = 0.0
    penalty_sum: float = 0.0
    tokens: int = 0

    @property
    def loss(self) -> float:
        return self.nats / self.tokens

    @property
    def penalty(self) -> float:
        return self.penalty_sum / self.tokens


def accumulate(model: Any, batch: BatchSource, micro_steps: range, parameters: Iterable[Tensor], seed: int) -> StepLoss:
    """Leave in ``.grad`` of ``parameters`` the gradient of the mean loss over *all* labels of all batches.

    A batch's loss is a mean over its own n_i labels, so its gradient has the weight n_i / Σ n: each
    token counts the same wherever the batches are cut. Batches are weighted by n_i as they come and the
    sum is divided at the end, so that only one graph is alive at a time. A method's penalty is added to
    every batch's loss with the same weights (a penalty that is the same for all batches counts once).

    Raises:
        TrainingError: a loss that is not finite, or no label in any of the batches.
    """
    total = StepLoss()
    for micro_step in micro_steps:
        context = ForwardContext(seed=seed, step=micro_step)
        backward(model, batch(micro_step), context, len(micro_steps) > 1, total)
    if not total.tokens:
        raise TrainingError(
            "no label in any batch of the step: there are none, or all are -100 (a prompt that fills the rows)"
        )
    if len(micro_steps) > 1:
        for p in parameters:
            if p.grad is not None:
                p.grad /= total.tokens
    return total


def backward(model: Any, batch: Batch, context: ForwardContext, weighted: bool, total: StepLoss) -> None:
    """Forward and backward of one batch; its loss and its labels are added to ``total``."""
    out = model(**batch, context=context)
    count = count_labels(out, batch)
    if not count:
        return  # nothing to learn from: the mean over no label is not a number
    penalty = model.penalty() if hasattr(model, "penalty") else None
    loss = out.loss if penalty is None else out.loss + penalty
    nats, extra = out.loss.item(), 0.0 if penalty is None else penalty.item()
    for name, value in (("loss", nats), ("penalty", extra)):
        if not math.isfinite(value):
            raise TrainingError(f"the {name} is {value}")
    loss.backward(np.full(loss.shape, count, loss.dtype) if weighted else None)
    total.nats += nats * count
    total.penalty_sum += extra * count
    total.tokens += count
