"""A model that labels sequences: one vector of its last hidden states, and a linear head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import minitorch_peft.functional as F
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.models.config import GPTConfig
from minitorch_peft.models.inputs import as_array, as_ids
from minitorch_peft.nn import ForwardContext, Linear, Module, init

if TYPE_CHECKING:
    from minitorch_peft.peft.findings import Report

POOLINGS = ("last", "mean")


@dataclass
class ClassifierOutput:
    """``logits`` (B, num_labels); ``loss`` () where labels were given."""

    logits: Tensor
    loss: Tensor | None = None
    num_targets: int = 0  # targets that ``loss`` is the mean over


class SequenceClassifier(Module):
    """``score`` of the last token's hidden state, padding left out (as in ``transformers``), or of the mean.

    ``model`` is a GPT, or an adapted one: then the adapters' hooks act on training here as they do there, and
    ``peft.save_classifier`` keeps adapter and head together.

    >>> from minitorch_peft.models import GPT, GPTConfig
    >>> gpt = GPT(GPTConfig(vocab_size=97, n_positions=64, n_embd=16, n_layer=1, n_head=2), seed=0)
    >>> SequenceClassifier(gpt, num_labels=3)(np.arange(10).reshape(2, 5)).logits.shape
    (2, 3)
    """

    def __init__(self, model: Any, num_labels: int, pooling: str = "last", seed: int = 0) -> None:
        if pooling not in POOLINGS:
            raise ValueError(f"pooling={pooling!r}: expected one of {POOLINGS}")
        if num_labels < 1:
            raise ValueError(f"num_labels must be at least 1, got {num_labels}")
        config = model.config
        self.model = model
        self.pooling = pooling
        self.score = Linear(config.n_embd, num_labels, False, init.normal(config.initializer_range))
        init.initialize(self.score, seed, "score.")
        self.score.astype(next(p.dtype for _, p in model.named_parameters()))

    @property
    def config(self) -> GPTConfig:
        return self.model.config

    @property
    def num_labels(self) -> int:
        return self.score.out_features

    @property
    def adapters(self) -> Mapping[str, Any]:
        """The model's, where it has any."""
        return getattr(self.model, "adapters", {})

    def forward(
        self,
        input_ids: Any,
        labels: Any = None,
        attention_mask: Any = None,
        context: ForwardContext | None = None,
        adapter_names: Sequence[str] | None = None,
    ) -> ClassifierOutput:
        """Logits of each row, and the mean cross-entropy where ``labels`` are given.

        Args:
            input_ids: int (B, T).
            labels: int (B,), each in [0, num_labels).
            attention_mask: (B, T), true (or 1) where there is a token; padding may stand on either side.
            adapter_names: for each row, the adapter of the model that it runs under. All rows share the head.
        """
        context = self.model.new_context() if context is None else context
        ids = as_ids(input_ids, self.config.vocab_size)
        tokens = token_mask(attention_mask, ids.shape)
        rows = {} if adapter_names is None else {"adapter_names": adapter_names}
        h = self.model.encode_ids(ids, context, attention_mask=attention_mask, **rows)
        logits = self.score(self.pool(h[:, -ids.shape[1] :], tokens), context)
        if labels is None:
            return ClassifierOutput(logits)
        y = class_labels(labels, logits.shape)
        return ClassifierOutput(logits, F.cross_entropy(logits, y), len(y))

    def pool(self, h: Tensor, tokens: np.ndarray) -> Tensor:
        """(B, T, C) to (B, C)."""
        if self.pooling == "last":
            T = tokens.shape[1]
            return h[np.arange(len(tokens)), T - 1 - tokens[:, ::-1].argmax(axis=1)]
        share = tokens / tokens.sum(axis=1, keepdims=True)
        return (h * Tensor(share[:, :, None].astype(h.dtype))).sum(1)

    def check(self, batch: Mapping[str, Any]) -> Report:
        """What would fail silently in training on such batches; see ``minitorch_peft.peft.check``.

        TypeError where the model has no adapters.
        """
        if not hasattr(self.model, "check"):
            kind = type(self.model).__name__
            raise TypeError(f"the classifier's model is a {kind} without adapters: there is nothing to check")
        return self.model.check(batch, classifier=self)

    # -- hooks: the trainer calls them, the adapters of the model have them -----------------------------------
    def _hand_on(self, hook: str, *arguments: Any) -> Any:
        """What the model's hook says; None where it has none."""
        return getattr(self.model, hook)(*arguments) if hasattr(self.model, hook) else None

    @property
    def settled(self) -> bool:
        return getattr(self.model, "settled", True)

    def penalty(self) -> Tensor | None:
        return self._hand_on("penalty")

    def param_groups(self) -> list[dict[str, Any]] | None:
        """Those of the model under their names here, and the head at the plain rate; None where none is asked for."""
        asked = self._hand_on("param_groups")
        if asked is None:
            return None
        below = [{**group, "params": [f"model.{name}" for name in group["params"]]} for group in asked]
        head = [f"score.{name}" for name, p in self.score.named_parameters() if p.requires_grad]
        return [*below, {"params": head}] if head else below

    def after_backward(self, step: int, total: int) -> None:
        self._hand_on("after_backward", step, total)

    def after_step(self, step: int) -> None:
        self._hand_on("after_step", step)

    def method_state(self) -> dict[str, np.ndarray]:
        return self._hand_on("method_state") or {}

    def load_method_state(self, state: dict[str, np.ndarray]) -> None:
        self._hand_on("load_method_state", state)


def class_labels(labels: Any, shape: tuple[int, ...]) -> np.ndarray:
    """int (B,), checked against the logits' shape (B, num_labels)."""
    y = as_array(labels)
    if y.shape != shape[:1] or y.dtype.kind not in "iu" or (y.size and not 0 <= y.min() <= y.max() < shape[1]):
        raise ValueError(f"labels must be {shape[0]} integers in [0, {shape[1]}), got {y.tolist()}")
    return y


def token_mask(attention_mask: Any, shape: tuple[int, ...]) -> np.ndarray:
    """bool (B, T): where there is a token."""
    if attention_mask is None:
        return np.ones(shape, bool)
    mask = as_array(attention_mask)
    if mask.shape != shape:
        raise ValueError(f"attention_mask has shape {mask.shape}, expected that of input_ids, {shape}")
    if not mask.any(axis=1).all():
        raise ValueError("a row of attention_mask hides every token: there is nothing to classify")
    return mask.astype(bool)
