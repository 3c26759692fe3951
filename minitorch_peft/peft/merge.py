"""Merging: an adapter's effect written into the base's weights, with a certificate, and taken out bit for bit."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from minitorch_peft.autograd.random import generator
from minitorch_peft.autograd.tensor import no_grad
from minitorch_peft.models import GPT
from minitorch_peft.nn import Module, TiedLinear
from minitorch_peft.peft.adapter import Adapter
from minitorch_peft.peft.inject import Wrapper, base_parameters, slot, unwrap


@dataclass(frozen=True)
class MergeCertificate:
    """How exact a merge was.

    ``weight_difference``: largest |merged weight - exact sum in float64|, the rounding of the store.
    ``logit_difference`` and ``kl_divergence`` (nats, mean over positions): merged against unmerged model.
    ``restores_base``: unmerging was tried and gave the base back bit for bit.
    ``untied``: the head got its own copy of the embedding, since merging changed one of the two.
    """

    layers: int
    weight_difference: float
    logit_difference: float
    kl_divergence: float
    restores_base: bool
    untied: bool = field(default=False)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Merger:
    """Merges ``adapters`` into ``model`` and keeps the arrays that were there before: unmerging puts them back."""

    def __init__(self, model: GPT, adapters: Sequence[Adapter]) -> None:
        self.model = model
        self.adapters = list(adapters)
        self.before: dict[str, np.ndarray] = {}
        self.tied_head: Module | None = None
        self.rounding = 0.0

    def merge(self, run: Any, input_ids: Any = None) -> MergeCertificate:
        """Merge, and compare ``run(ids)`` before and after; a trial unmerge is part of it."""
        ids = self._probe() if input_ids is None else np.asarray(input_ids)
        fingerprint = checksum(self.model)
        unmerged = _logits(run, ids)
        self._write()
        self.unmerge()
        restored = checksum(self.model) == fingerprint
        self._write()
        merged = _logits(run, ids)
        if self.tied_head is not None:
            warnings.warn(
                "merging changed a weight that the embedding and the head shared: the head was untied first and "
                "has its own copy now",
                stacklevel=3,
            )
        return MergeCertificate(
            layers=len(self.before) + sum(len(a.selected) for a in self.adapters),
            weight_difference=self.rounding,
            logit_difference=float(np.abs(merged - unmerged).max(initial=0)),
            kl_divergence=_mean_kl(unmerged, merged),
            restores_base=restored,
            untied=self.tied_head is not None,
        )

    def unmerge(self) -> None:
        """Put back every array that was there before the merge."""
        for path, array in self.before.items():
            _leaf(self.model, path).set_dense_weight(array)
        if self.tied_head is not None:
            _replace_leaf(self.model, "lm_head", self.tied_head)
        self.before, self.tied_head = {}, None
        for adapter in self.adapters:
            adapter.merged = False

    def commit(self) -> None:
        """Make the merge final: the arrays from before are let go, copies of parameters become the base's."""
        for adapter in self.adapters:
            adapter.merged = False
            for s in adapter.selected.values():
                s.original.data = s.copy.data
                s.original.version.count += 1
        self.before, self.tied_head = {}, None

    def _write(self) -> None:
        touched = {path for a in self.adapters for path in a.weights()}
        if touched & {"embed.tokens", "lm_head"} and isinstance(_leaf(self.model, "lm_head"), TiedLinear):
            self.tied_head = _leaf(self.model, "lm_head")
            _replace_leaf(self.model, "lm_head", self.tied_head.untied())
        exact: dict[str, np.ndarray] = {}
        for adapter in self.adapters:
            for path, layer in adapter.weights().items():
                weight = exact[path] if path in exact else _leaf(self.model, path).dense_weight().astype(np.float64)
                exact[path] = layer.effective(weight)
        for path, weight in exact.items():
            leaf = _leaf(self.model, path)
            self.before[path] = leaf.dense_weight()
            stored = weight.astype(self.before[path].dtype)
            leaf.set_dense_weight(stored)
            self.rounding = max(self.rounding, float(np.abs(stored - weight).max(initial=0)))
        for adapter in self.adapters:
            adapter.merged = True

    def _probe(self) -> np.ndarray:
        length = min(32, self.model.config.n_positions // 2)
        return generator(0, "merge").integers(0, self.model.config.vocab_size, (4, max(1, length)))


def _leaf(model: GPT, path: str) -> Any:
    parent, name = slot(model, path)
    return unwrap(parent.get(name))


def _replace_leaf(model: GPT, path: str, leaf: Module) -> None:
    """Put ``leaf`` in place of the base's module at ``path``, under whatever wraps it."""
    parent, name = slot(model, path)
    here = parent.get(name)
    if not isinstance(here, Wrapper):
        setattr(parent, name, leaf)
        return
    while isinstance(here.base_layer, Wrapper):
        here = here.base_layer
    here.base_layer = leaf


def checksum(model: GPT) -> str:
    """A fingerprint of every parameter of the base, names and bytes."""
    digest = hashlib.sha256()
    for path, p in base_parameters(model):
        digest.update(path.encode() + np.ascontiguousarray(p.data).tobytes())
    return digest.hexdigest()


def _logits(run: Any, ids: np.ndarray) -> np.ndarray:
    training = run.training
    run.eval()
    with no_grad():
        logits = run(ids).logits.data.astype(np.float64)
    run.train(training)
    return logits


def _mean_kl(p_logits: np.ndarray, q_logits: np.ndarray) -> float:
    """KL(p || q) in nats, mean over positions."""
    log_p = p_logits - np.logaddexp.reduce(p_logits, axis=-1, keepdims=True)
    log_q = q_logits - np.logaddexp.reduce(q_logits, axis=-1, keepdims=True)
    return max(0.0, float((np.exp(log_p) * (log_p - log_q)).sum(axis=-1).mean()))
