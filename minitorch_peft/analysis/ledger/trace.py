"""One step as the engine saw it: recorded in a real step, or put together from small ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

import numpy as np

from minitorch_peft.analysis.ledger.scaling import Batch, shape_at
from minitorch_peft.autograd.profiler import Call, Meter, Piece, metered, root
from minitorch_peft.autograd.tensor import Tensor, no_grad
from minitorch_peft.models import GPT, GPTConfig
from minitorch_peft.nn import ForwardContext, Module
from minitorch_peft.peft import PeftConfig, PeftModel
from minitorch_peft.peft.registry import method_of
from minitorch_peft.training.accumulate import StepLoss, backward
from minitorch_peft.training.evaluate import mode_of

Configs = PeftConfig | Sequence[PeftConfig] | Mapping[str, PeftConfig] | None


@dataclass(frozen=True)
class Trace:
    """Operations, arrays, and when these came and went, in the order of :class:`Meter`."""

    calls: Sequence[Call]
    pieces: Sequence[Piece]
    events: Sequence[tuple[int, bool]]
    turn: int  # of the events, those before the backward pass


@contextmanager
def prepared(model: GPT | PeftModel | GPTConfig, config: Configs, seed: int) -> Iterator[Any]:
    """The model with adapters attached that all act and train; afterwards it is as it was, but without gradients.

    Without a config, the model as it stands.
    """
    model = GPT(model, seed=seed) if isinstance(model, GPTConfig) else model
    named = by_name(config)
    if not named:
        yield model
        model.zero_grad()
        return
    if not isinstance(model, GPT):
        raise ValueError("a PeftModel has its adapters already: leave out the config, or give the base")
    peft_model = PeftModel(model)
    try:
        for name, companion in companions(named).items():
            peft_model.add_adapter(name, companion, seed=seed)
        for name, of in named.items():
            peft_model.add_adapter(name, of, seed=seed)
        peft_model.set_adapter(list(named))
        yield peft_model
    finally:
        peft_model.unload()


def by_name(config: Configs) -> dict[str, PeftConfig]:
    """Adapters by name; those that are given without names are called after their methods."""
    if config is None or isinstance(config, Mapping):
        return dict(config or {})
    several = [config] if isinstance(config, PeftConfig) else list(config)
    names = [method_of(c).name for c in several]
    return {f"{n}_{i}" if names.count(n) > 1 else n: c for i, (n, c) in enumerate(zip(names, several, strict=True))}


def companions(named: Mapping[str, PeftConfig]) -> dict[str, PeftConfig]:
    """What the methods build on, without what is there already."""
    found = {n: c for config in named.values() for n, c in method_of(config).companions.items()}
    return {name: config for name, config in found.items() if name not in named}


def weights_of(model: Any) -> dict[str, list[np.ndarray]]:
    """The arrays that a model stores: the base's, and those of the methods, drawn ones that never train included."""
    parameters = list(model.named_parameters())
    base = [p.data for _, p in parameters if p.owner == "base"] + [a for _, a in model.named_buffers()]
    method = [p.data for _, p in parameters if p.owner != "base"]
    held = (value for _, module in model.named_modules() for value in vars(module).values())
    fixed = (v.data if isinstance(v, Tensor) else v for v in held if isinstance(v, Tensor | np.ndarray))
    known = {id(root(a)) for a in (*base, *method)}
    return {"base": base, "method": [*method, *(a for a in fixed if id(root(a)) not in known)]}


def record(model: Any, batch: Batch, training: bool) -> Trace:
    """Run a step of drawn tokens, of the trainer's own code (or a pass without a graph) and note what happened."""
    known = [a for arrays in weights_of(model).values() for a in arrays]
    model.zero_grad()
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, batch)
    data = {"input_ids": ids, "labels": ids} if training else {"input_ids": ids}
    with metered(known) as meter, noting_paths(model, meter), mode_of(model, training):
        context = ForwardContext(seed=0, step=0)
        if training:
            backward(model, data, context, False, StepLoss())
        else:
            with no_grad():
                model(**data, context=context)
        events = list(meter.events)
    turn = len(events) if meter.turn is None else meter.turn
    return Trace(meter.calls, meter.pieces, events, turn)


@contextmanager
def noting_paths(model: Module, meter: Meter) -> Iterator[None]:
    """Inside, the meter knows which module runs: each one's ``forward`` notes its path, and is then as it was."""
    modules = {id(m): (path, m) for path, m in model.named_modules()}
    with ExitStack() as stack:
        for path, module in modules.values():
            own = path.replace("base_model", "").replace(".base_layer", "").strip(".")
            vars(module)["forward"] = noting(module.forward, own, meter)
            stack.callback(vars(module).pop, "forward")
        yield


def noting(forward: Any, path: str, meter: Meter) -> Any:
    @wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        before, meter.path = meter.path, path
        try:
            return forward(*args, **kwargs)
        finally:
            meter.path = before

    return run


def scaled(traces: Sequence[Trace], batches: tuple[Batch, ...], batch: Batch) -> Trace:
    """The trace of a step of ``batch`` from those of small steps: the same calls and events, with other shapes.

    ValueError where the small steps did not do the same operations, which then depend on the data or on the sizes.
    """
    first = traces[0]
    for trace in traces[1:]:
        check_alike(first, trace)
    calls = [call_at(same, batches, batch) for same in zip(*(t.calls for t in traces), strict=True)]
    pieces = [
        replace(same[0], shape=shape_at([p.shape for p in same], batches, batch))
        for same in zip(*(t.pieces for t in traces), strict=True)
    ]
    return Trace(calls, pieces, first.events, first.turn)


def check_alike(a: Trace, b: Trace) -> None:
    advice = "it depends on the data, and cannot be scaled; measure() counts a real step"
    for x, y in zip(a.calls, b.calls, strict=False):
        if (x.name, x.path) != (y.name, y.path):
            here, there = (f"{c.name} in {c.path or 'an adapter'}" for c in (x, y))
            raise ValueError(f"what small steps do differs ({here}, {there}): {advice}")
    if len(a.calls) != len(b.calls) or a.events != b.events:
        raise ValueError(f"what small steps hold differs: {advice}")


def call_at(same: Sequence[Call], batches: tuple[Batch, ...], batch: Batch) -> Call:
    def at(shapes: tuple[Any, ...]) -> Any:
        return None if shapes[0] is None else shape_at(shapes, batches, batch)

    first = same[0]
    return replace(
        first,
        inputs=tuple(at(s) for s in zip(*(c.inputs for c in same), strict=True)),
        saved=tuple(at(s) for s in zip(*(c.saved for c in same), strict=True)),
        output=shape_at([c.output for c in same], batches, batch),
    )
