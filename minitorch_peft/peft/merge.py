"""Merging: an adapter's effect written into the base's weights, with a certificate, and taken out bit for bit."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from minitorch_peft.autograd.random import generator
from minitorch_peft.autograd.tensor import no_grad
from minitorch_peft.models import GPT, GPTConfig
from minitorch_peft.nn import Module, Parameter, TiedLinear, mode_of
from minitorch_peft.peft.adapter import Adapter
from minitorch_peft.peft.inject import base_buffers, base_module, base_parameters, replace_base_module
from minitorch_peft.peft.standins import StandIns

ROUNDINGS = 1000
"""Roundings of the base's dtype, relative to the logits: what lies above them is no rounding."""


@dataclass(frozen=True)
class MergeCertificate:
    """How exact a merge was.

    ``weight_difference``: largest |merged weight - exact sum in float64|, the rounding of the store.
    ``logit_difference`` (largest), ``relative_logit_difference`` (|merged - unmerged| / |unmerged|, over all logits)
    and ``kl_divergence`` (nats, mean over positions): merged against unmerged model.
    ``requantized``: how many merged weights were put back into four bits. Then the differences are what that lost.
    ``restores_base``: unmerging was tried and gave the base back bit for bit.
    ``untied``: the head got its own copy of the embedding, since merging changed one of the two.
    """

    layers: int
    weight_difference: float
    logit_difference: float
    relative_logit_difference: float
    kl_divergence: float
    restores_base: bool
    untied: bool
    requantized: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Merger:
    """Merges ``adapters`` into ``model`` and keeps the arrays that were there before: unmerging puts them back.

    Adding a difference and subtracting it again, as ``peft`` does, drifts: floating-point sums do not cancel.
    A layer in four bits becomes a Linear of the dequantized weight; only ``requantize`` puts the sum back into four
    bits, which loses what the certificate says.
    """

    def __init__(self, model: GPT, adapters: Sequence[Adapter], requantize: bool = False) -> None:
        self.model = model
        self.adapters = list(adapters)
        self.before: dict[str, np.ndarray] = {}
        self.parameters_before: dict[str, np.ndarray] = {}
        self.stand_ins = StandIns(model)
        self.requantize = requantize
        self.tied: tuple[Module, GPTConfig] | None = None  # head and config of a model that merging unties
        self.rounding = 0.0

    def merge(self, run: Module, input_ids: Any = None) -> MergeCertificate:
        """Merge, and compare ``run(ids)`` before and after; a trial unmerge is part of it.

        Raises ValueError, the model as it was, where the ids do not fit, a merged weight is not finite, or there is
        nothing in four bits to requantize.
        """
        ids = self._probe() if input_ids is None else np.asarray(input_ids)
        fingerprint = checksum(self.model)
        unmerged = _logits(run, ids)
        try:
            self._write()
            self.unmerge()
            restored = checksum(self.model) == fingerprint
            self._write()
            merged = _logits(run, ids)
        except BaseException:
            self.unmerge()
            raise
        if self.tied is not None:
            warnings.warn(
                "merging changed a weight that the embedding and the head shared: the head was untied first and "
                "has its own copy now",
                stacklevel=3,
            )
        certificate = MergeCertificate(
            layers=len(self.before | self.parameters_before) + sum(len(a.selected) for a in self.adapters),
            weight_difference=self.rounding,
            logit_difference=float(np.abs(merged - unmerged).max(initial=0)),
            relative_logit_difference=float(np.linalg.norm(merged - unmerged) / (np.linalg.norm(unmerged) or 1)),
            kl_divergence=_mean_kl(unmerged, merged),
            restores_base=restored,
            untied=self.tied is not None,
            requantized=len(self.stand_ins.pairs) if self.requantize else 0,
        )
        rounding = ROUNDINGS * float(np.finfo(self.adapters[0].dtype).eps)
        if not self.requantize and certificate.relative_logit_difference > rounding:
            warnings.warn(
                f"the merged model is not the unmerged one: its logits differ by "
                f"{certificate.relative_logit_difference:.1g}, where rounding would give at most {rounding:.1g}; "
                "unmerge_adapter(), and merge these adapters one at a time to see which it is",
                stacklevel=3,
            )
        return certificate

    def unmerge(self) -> None:
        """Put back every array, and every layer in four bits, that was there before the merge."""
        self.stand_ins.unpack()
        # BEGIN SOLUTION(task="3.4c")
        for path, array in self.before.items():
            base_module(self.model, path).set_dense_weight(array)
        if self.tied is not None:
            head, self.model.config = self.tied
            replace_base_module(self.model, "lm_head", head)
        self._forget()
        # END SOLUTION
        parameters = dict(base_parameters(self.model))
        for path, array in self.parameters_before.items():
            put(parameters[path], array)
        self.parameters_before = {}
        self.stand_ins.leave()

    def commit(self) -> None:
        """Make the merge final: the arrays from before are let go, copies of parameters become the base's."""
        for s in (s for adapter in self.adapters for s in adapter.selected.values()):
            s.original.data = s.copy.data
            s.original.version.count += 1
        self._forget()
        self.parameters_before = {}
        self.stand_ins.pairs = {}

    def _forget(self) -> None:
        self.before, self.tied = {}, None
        for adapter in self.adapters:
            adapter.merged = False

    def _write(self) -> None:
        self._write_parameters()
        self._untie_if_touched()
        exact = self._exact()
        for path, weight in exact.items():
            leaf = self.stand_ins.settable(path, self.adapters[0].dtype)
            stored = weight.astype(leaf.dense_weight().dtype)
            check_finite(stored, path)
            # BEGIN SOLUTION(task="3.4b")
            self.before[path] = leaf.dense_weight()
            leaf.set_dense_weight(stored)
            self.rounding = max(self.rounding, float(np.abs(stored - weight).max(initial=0)))
            # END SOLUTION
        if self.requantize:
            if not self.stand_ins.pairs:
                raise ValueError("requantize: no weight that the adapters change is stored in four bits")
            self.rounding = max(self.rounding, self.stand_ins.pack(exact))
        for adapter in self.adapters:
            adapter.merged = True

    def _write_parameters(self) -> None:
        """What adapters make of single parameters and of biases, before weights are changed; copies included."""
        parameters, exact = dict(base_parameters(self.model)), dict[str, np.ndarray]()
        for adapter in self.adapters:
            for path, reparam in adapter.reparametrized.items():
                exact[path] = reparam.effective(exact.get(path, parameters[path].data.astype(np.float64)))
        self._put(parameters, exact)
        layers = [(f"{path}.bias", layer) for adapter in self.adapters for path, layer in adapter.weights().items()]
        biases = dict[str, np.ndarray]()
        for path, layer in layers:
            if path in parameters:
                bias = biases.get(path, parameters[path].data.astype(np.float64))
                if (changed := layer.effective_bias(bias)) is not bias:
                    biases[path] = changed
        self._put(parameters, biases)

    def _put(self, parameters: Mapping[str, Parameter], exact: Mapping[str, np.ndarray]) -> None:
        for path, array in exact.items():
            stored = array.astype(parameters[path].dtype)
            check_finite(stored, path)
            self.parameters_before.setdefault(path, parameters[path].data)
            put(parameters[path], stored)
            self.rounding = max(self.rounding, float(np.abs(stored - array).max(initial=0)))

    def _exact(self) -> dict[str, np.ndarray]:
        """Path to merged weight, in float64; adapters on one layer follow each other as they are wrapped."""
        exact: dict[str, np.ndarray] = {}
        for adapter in self.adapters:
            for path, layer in adapter.weights().items():
                if path not in exact:
                    exact[path] = base_module(self.model, path).dense_weight().astype(np.float64)
                exact[path] = layer.effective(exact[path])
        return exact

    def _untie_if_touched(self) -> None:
        head = base_module(self.model, "lm_head")
        touched = {path for adapter in self.adapters for path in adapter.weights()}
        if isinstance(head, TiedLinear) and touched & {"embed.tokens", "lm_head"}:
            self.tied = (head, self.model.config)
            replace_base_module(self.model, "lm_head", head.untied())
            self.model.config = replace(self.model.config, tie_word_embeddings=False)

    def _probe(self) -> np.ndarray:
        length = min(32, self.model.config.n_positions // 2)
        return generator(0, "merge").integers(0, self.model.config.vocab_size, (4, max(1, length)))


def put(parameter: Parameter, array: np.ndarray) -> None:
    parameter.data = array
    parameter.version.count += 1


def check_finite(array: np.ndarray, path: str) -> None:
    if not np.isfinite(array).all():
        raise ValueError(f"merging would put values that are not finite into {path}: is the adapter sound?")


def checksum(model: GPT) -> str:
    """A fingerprint of every parameter and buffer of the base, names and bytes."""
    digest = hashlib.sha256()
    for path, array in [*((path, p.data) for path, p in base_parameters(model)), *base_buffers(model)]:
        digest.update(path.encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _logits(run: Module, ids: np.ndarray) -> np.ndarray:
    with mode_of(run, training=False), no_grad():
        return run(ids).logits.data.astype(np.float64)


def _mean_kl(p_logits: np.ndarray, q_logits: np.ndarray) -> float:
    """KL(p || q) in nats, mean over positions."""
    log_p = p_logits - np.logaddexp.reduce(p_logits, axis=-1, keepdims=True)
    log_q = q_logits - np.logaddexp.reduce(q_logits, axis=-1, keepdims=True)
    return max(0.0, float((np.exp(log_p) * (log_p - log_q)).sum(axis=-1).mean()))
