"""The loss on text that is not trained on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from minitorch_peft.autograd.tensor import no_grad
from minitorch_peft.nn import Module, mode_of

IGNORE = -100


class Evaluation(NamedTuple):
    """``nats``: -Σ log P(y_t | ...) of all predicted tokens; ``tokens``: how many they are."""

    nats: float
    tokens: int

    @property
    def loss(self) -> float:
        """Mean nats per token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss)

    def bits_per_byte(self, num_bytes: float) -> float:
        """``nats`` as bits for each of the ``num_bytes`` of text (UTF-8) that the tokens stand for.

        >>> round(Evaluation(nats=math.log(2) * 300, tokens=50).bits_per_byte(200), 6)
        1.5
        """
        return self.nats / math.log(2) / num_bytes


def evaluate(model: Module, windows: Iterable[Mapping[str, Any]]) -> Evaluation:
    """Total nats and number of predicted tokens over batches (dicts that ``model`` takes, with ``labels``).

    The mean loss of each batch is weighted by the labels that it is the mean of, so the sum does not
    depend on how rows are put into batches. Dropout is off; every module's mode is put back afterwards.

    Raises:
        ValueError: there was no label in any batch.
    """
    nats, tokens = 0.0, 0
    with mode_of(model, training=False), no_grad():
        for batch in windows:
            out = model(**batch)
            count = count_labels(out, batch)
            if count:
                nats += out.loss.item() * count
                tokens += count
    if not tokens:
        raise ValueError("nothing to evaluate: no batch has a label (all are -100, or there is no batch)")
    return Evaluation(nats, tokens)


def count_labels(out: Any, batch: Mapping[str, Any]) -> int:
    """How many labels ``out.loss`` is the mean of.

    That is ``out.num_targets`` where the model says it (one that shifts labels must), else all that are
    not -100.
    """
    if hasattr(out, "num_targets"):
        return int(out.num_targets)
    return int((np.asarray(batch["labels"]) != IGNORE).sum())
