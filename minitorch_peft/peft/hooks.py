"""The five hooks for methods that act on training: the trainer calls them on the model, which hands them on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.peft.adapter import Adapter
from minitorch_peft.peft.interop import some


class TrainingHooks:
    """Hands every hook on to the adapters that train. Names get the adapter's name at the end, or in front."""

    def trained_adapters(self) -> Sequence[Adapter]:
        raise NotImplementedError

    def penalty(self) -> Tensor | None:
        """The sum of the terms that methods add to the loss; None where there is none."""
        terms = [t for t in (a.penalty() for a in self.trained_adapters()) if t is not None]
        return sum(terms[1:], start=terms[0]) if terms else None

    def param_groups(self) -> list[dict[str, Any]] | None:
        """The groups that methods ask for (names as in ``named_parameters``); None where none does.

        Without the parameters that do not train, and the groups that have no others.
        """
        asked = {a.name: (a, a.param_groups()) for a in self.trained_adapters()}
        if not any(groups for _, groups in asked.values()):
            return None
        found = []
        for name, (adapter, groups) in asked.items():
            own = adapter.named_parameters()
            for group in groups or [{"params": list(own)}]:
                if trained := [f"{path}.{name}" for path in group["params"] if own[path].requires_grad]:
                    found.append({**group, "params": trained})
        return found

    def after_backward(self, step: int, total: int) -> None:
        for adapter in self.trained_adapters():
            adapter.after_backward(step, total)

    def after_step(self, step: int) -> None:
        for adapter in self.trained_adapters():
            adapter.after_step(step)

    def method_state(self) -> dict[str, np.ndarray]:
        """What a checkpoint must hold beside the parameters, as ``<adapter>/<key>``."""
        return {f"{a.name}/{key}": v for a in self.trained_adapters() for key, v in a.method_state().items()}

    def load_method_state(self, state: dict[str, np.ndarray]) -> None:
        for adapter in self.trained_adapters():
            prefix = f"{adapter.name}/"
            own = {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}
            adapter.load_method_state(own)


def check_state(adapter: str, state: Collection[str], names: Collection[str]) -> None:
    """ValueError where a method's state, of a checkpoint, lacks some of these ``names``."""
    if missing := sorted(set(names) - set(state)):
        raise ValueError(
            f"the state of adapter {adapter!r} has no {some(missing)}: it is of another method or configuration"
        )
