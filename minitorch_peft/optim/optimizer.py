"""What every optimizer shares: named parameters in groups, and a state that is saved by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from minitorch_peft.autograd.tensor import Tensor

Params = Mapping[str, Tensor] | Iterable[tuple[str, Tensor]] | Iterable[Tensor] | Iterable[Mapping[str, Any]]


class Optimizer:
    """Changes parameters in place, from their gradients.

    ``params`` are named parameters (``model.named_parameters()``, or a dict), plain ones
    (``model.parameters()``, then named "0", "1", ... by position), or a list of groups: dicts with
    ``"params"`` in one of these forms and with options of their own. Every group has an ``"lr"`` and a
    ``"lr_scale"``; the rate of a step is lr · lr_scale · factor, ``factor`` being the schedule's value.

    State is kept by parameter *name*, so that it survives a new process. It is made at a parameter's first
    gradient; a parameter without a gradient is left alone.
    """

    slots: tuple[str, ...] = ()  # the arrays that are kept between steps; of a parameter's shape, or see ``layout``

    def __init__(self, params: Params, defaults: Mapping[str, Any]) -> None:
        self.defaults = {"lr_scale": 1.0, **defaults}
        self.param_groups: list[dict[str, Any]] = []
        self.state: dict[str, dict[str, Any]] = {}
        for group in as_groups(params):
            self.add_param_group(group)
        if not self.named_parameters():
            raise ValueError("an optimizer needs at least one parameter: is the whole model frozen?")

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add a dict with ``"params"`` and any of the options (``lr``, ``weight_decay``, ...)."""
        unknown = sorted(group.keys() - self.defaults.keys() - {"params"})
        if "params" not in group or unknown:
            raise ValueError(f"a parameter group has 'params' and any of {sorted(self.defaults)}; got {sorted(group)}")
        params = named(group["params"], first=len(self.named_parameters()))
        for held in self.param_groups:
            objects = {id(p) for p in held["params"].values()}
            twice = sorted(n for n, p in params.items() if n in held["params"] or id(p) in objects)
            if twice:
                raise ValueError(f"in two groups: {', '.join(twice)}; a parameter has one learning rate")
        full = {**self.defaults, **group, "params": params}
        self.check_group(full)
        self.param_groups.append(full)

    def check_group(self, group: Mapping[str, Any]) -> None:
        """Raise ValueError for an option that is out of range."""
        for name in ("lr", "lr_scale", "weight_decay"):
            if not group[name] >= 0:
                raise ValueError(f"{name} must be at least 0, got {group[name]}")

    def named_parameters(self) -> dict[str, Tensor]:
        return {name: p for group in self.param_groups for name, p in group["params"].items()}

    def step(self, factor: float = 1.0) -> None:
        """One update of every parameter that has a gradient, at lr · lr_scale · ``factor``."""
        for group in self.param_groups:
            lr = group["lr"] * group["lr_scale"] * factor
            for name, p in group["params"].items():
                if p.grad is not None:
                    self.update(p.data, p.grad, self._state_of(name, p), lr, group)
                    p.version.count += 1

    def update(self, p: np.ndarray, g: np.ndarray, state: dict[str, Any], lr: float, group: Mapping[str, Any]) -> None:
        """Change ``p`` in place; ``state`` holds the slots and "step", this update's number from 1."""
        raise NotImplementedError(f"{type(self).__name__} defines update(p, g, state, lr, group)")

    def zero_grad(self) -> None:
        """Drop the gradients (to None: their memory goes too)."""
        for p in self.named_parameters().values():
            p.grad = None

    def layout(self, p: Tensor) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and dtype of what is kept for ``p``, slot by slot."""
        return dict.fromkeys(self.slots, (p.shape, p.dtype))

    def _state_of(self, name: str, p: Tensor) -> dict[str, Any]:
        if name not in self.state:
            self.state[name] = {"step": 0, **{slot: np.zeros(*form) for slot, form in self.layout(p).items()}}
        self.state[name]["step"] += 1
        return self.state[name]

    # -- saving ----------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, np.ndarray]:
        """Flat: "step.<name>" (int64, ()) and "<slot>.<name>" (the parameter's shape), not copied."""
        flat: dict[str, np.ndarray] = {}
        for name, state in self.state.items():
            for key, value in state.items():
                flat[f"{key}.{name}"] = np.asarray(value)
        return flat

    def load_state_dict(self, flat: Mapping[str, np.ndarray]) -> None:
        """Take over a saved state. All of it must fit these parameters, or nothing changes."""
        self.state = {
            name: {slot: value if slot == "step" else np.array(value) for slot, value in state.items()}
            for name, state in self.fitting_state(flat).items()
        }

    def fitting_state(self, flat: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
        """A saved state by parameter, not copied. Raises KeyError or ValueError unless it fits these parameters."""
        own = self.named_parameters()
        layouts = {name: self.layout(p) for name, p in own.items()}
        found: dict[str, dict[str, Any]] = {}
        for key, value in flat.items():
            slot, _, name = key.partition(".")
            if name not in own or slot not in ("step", *layouts[name]):
                raise KeyError(f"optimizer state {key!r} fits no parameter of this {type(self).__name__}")
            if slot != "step" and (value.shape, value.dtype) != layouts[name][slot]:
                shape, dtype = layouts[name][slot]
                raise ValueError(f"optimizer state {key!r} is {value.dtype} {value.shape}, expected {dtype} {shape}")
            found.setdefault(name, {})[slot] = int(value) if slot == "step" else value
        for name, state in found.items():
            if missing := {"step", *layouts[name]} - state.keys():
                raise KeyError(f"optimizer state of {name!r} lacks {', '.join(sorted(missing))}")
        return found


def as_groups(params: Params) -> list[Mapping[str, Any]]:
    """One form for all that an optimizer is given: a list of groups."""
    if isinstance(params, Mapping):
        return [{"params": params}]
    items: list[Any] = list(params)
    if items and all(isinstance(item, Mapping) for item in items):
        return items
    return [{"params": items}]


def named(params: Any, first: int) -> dict[str, Tensor]:
    """Name to parameter; those without a name are called by their position."""
    items = list(params.items()) if isinstance(params, Mapping) else list(params)
    pairs = [item if isinstance(item, tuple) else (str(first + i), item) for i, item in enumerate(items)]
    for name, p in pairs:
        if not isinstance(p, Tensor):
            raise TypeError(f"an optimizer takes parameters, {name!r} is {type(p).__name__}")
    if len({name for name, _ in pairs}) < len(pairs) or len({id(p) for _, p in pairs}) < len(pairs):
        raise ValueError("a parameter, or a name, is given to the optimizer twice")
    return dict(pairs)
