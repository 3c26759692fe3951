"""Trials on a copy of an adapted model, which itself stays as it is: which gradients arrive, what layers give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from minitorch_peft.autograd.random import generator
from minitorch_peft.autograd.tensor import Tensor, no_grad
from minitorch_peft.nn import ForwardContext, Parameter, mode_of
from minitorch_peft.peft.inject import base_buffers, base_parameters
from minitorch_peft.peft.registry import method_of
from minitorch_peft.peft.shapes import Reparam

if TYPE_CHECKING:
    from minitorch_peft.peft.model import PeftModel

STEPS = 3
STEP = 1e-2
"""What the largest element of a parameter moves by in a step of a trial."""


def trial_copy(peft_model: PeftModel) -> PeftModel:
    """A copy with adapters of its own; the base's arrays are shared, and frozen in the copy: none is written to."""
    return trial_copies(peft_model, peft_model)[1]


def trial_copies(model: Any, peft_model: PeftModel) -> tuple[Any, PeftModel]:
    """The same of a model that has ``peft_model``, or is it; and what ``peft_model`` became in it."""
    base = peft_model.base_model
    arrays = [*(p.data for _, p in base_parameters(base) if p.owner == "base"), *(a for _, a in base_buffers(base))]
    memo: dict[int, Any] = {id(array): array for array in arrays}
    copy = deepcopy(model, memo)
    inside: PeftModel = memo[id(peft_model)]
    for _, p in copy.named_parameters():
        p.grad = None
    for _, p in inside.named_parameters():
        if p.owner == "base":
            p.requires_grad_(False)
    return copy, inside


@dataclass
class Gradients:
    """What a trial found: loss and targets of the first pass, and what became of the ``names`` that train.

    ``reached``: they got a gradient; ``moved``: in one of the steps it was not zero.
    """

    loss: float = float("nan")
    num_targets: int = 0
    names: list[str] = field(default_factory=list)
    reached: set[str] = field(default_factory=set)
    moved: set[str] = field(default_factory=set)

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.loss))


def try_steps(copy: Any, batch: Mapping[str, Any]) -> Gradients:
    """Up to ``STEPS`` steps along the gradient of what training minimises, until every parameter has had one.

    One is not enough: LoRA's A has the gradient zero as long as B is zero, which it is at the start only.
    """
    parameters = {name: p for name, p in copy.named_parameters() if p.requires_grad}
    found = Gradients(names=list(parameters))
    with mode_of(copy, training=True):
        for step in range(STEPS):
            out = copy(**batch, context=ForwardContext(seed=0, step=step))
            if step == 0:
                found.loss, found.num_targets = out.loss.item(), out.num_targets
            if not found.finite or not parameters:
                break
            penalty = copy.penalty()
            objective = out.loss if penalty is None else out.loss + penalty
            if not objective.requires_grad:
                break  # nothing that trains had a part in it
            objective.backward()
            found.reached |= {name for name, p in parameters.items() if p.grad is not None}
            found.moved |= {name for name, p in parameters.items() if p.grad is not None and p.grad.any()}
            if found.moved == parameters.keys():
                break
            for p in parameters.values():
                move(p)
    return found


def move(p: Parameter) -> None:
    """Against the gradient, so that the largest element moves by ``STEP``; the gradient is dropped."""
    if p.grad is not None and (largest := np.abs(p.grad).max(initial=0)) > 0:
        p.data = p.data - (STEP / largest * p.grad).astype(p.dtype)
        p.version.count += 1
    p.grad = None


def layers_that_disagree(copy: PeftModel) -> Iterator[tuple[str, str, float, float]]:
    """(adapter, path, difference, size): layers whose output is not that of the weight that merging would write.

    Only of adapters that act and merge, and of layers that stand next to the base's own. ``size`` is the largest
    change of an output by the weight, ``difference`` how far the layer's own is from it.
    """
    with mode_of(copy, training=False), no_grad():
        for name in copy.active_adapters:
            adapter = copy.adapters[name]
            alone = method_of(adapter.config).mergeable and not adapter.reparametrized and not adapter.merged
            for path, layer in adapter.weights().items() if alone else ():
                if layer.base_layer is layer.base:
                    given, expected = changes(layer, path)
                    difference, size = np.abs(given - expected).max(), np.abs(expected).max()
                    if difference > 1e-3 * max(size, np.abs(given).max()) + 1e-5:
                        yield name, path, float(difference), float(size)


def changes(layer: Reparam, path: str) -> tuple[np.ndarray, np.ndarray]:
    """What the layer adds to the base's output for some inputs, and what its ``effective`` weight adds."""
    base: Any = layer.base
    weight = base.dense_weight().astype(np.float64)
    change, rng = layer.effective(weight) - weight, generator(0, "trial", path)
    if base.takes_ids:
        x = rng.integers(0, base.in_features, (1, 8))
        expected = change.T[x[0]]
    else:
        x = rng.standard_normal((1, 8, base.in_features)).astype(layer.adapter.dtype)
        expected = x[0].astype(np.float64) @ change.T
    given = layer.adapted(Tensor(x), None).data - base(Tensor(x), None).data
    bias = getattr(base, "bias", None)
    if bias is not None:
        own = bias.data.astype(np.float64)
        expected = expected + (layer.effective_bias(own) - own)
    return given[0], expected
