"""What diff pruning makes of one parameter: see ``diff_pruning.py``."""

from __future__ import annotations

from functools import partial, reduce
from operator import mul
from typing import TYPE_CHECKING, Any

import numpy as np

from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.nn import ForwardContext, Parameter, init
from minitorch_peft.peft.adapter import Adapter
from minitorch_peft.peft.parameter.hard_concrete import gate, hard_concrete, open_probability
from minitorch_peft.peft.shapes import ParameterReparam

if TYPE_CHECKING:
    from minitorch_peft.peft.parameter.diff_pruning import DiffPruningConfig

CERTAIN = 100.0
"""An alpha at which no noise closes a gate; with a minus, at which none opens it."""


class Difference(ParameterReparam):
    """One parameter's w, with the gates that say where it counts, or once they are fixed the ``mask``."""

    mask: np.ndarray | None = None  # bool, of the parameter's shape
    alpha: Parameter | None = None
    group_alpha: Parameter | None = None

    def __init__(self, path: str, theta: Parameter, adapter: Adapter, config: DiffPruningConfig) -> None:
        self.site, self.masked = f"{adapter.name}.{path}", config.variant == "masked"
        start, scalar = partial(constant, config.alpha_init), (1,) * theta.ndim
        self.w = adapter.new_parameter(f"{path}.w", theta.shape, init.zeros)
        if config.gated:
            self.alpha = adapter.new_parameter(f"{path}.alpha", theta.shape, start)
        if config.structured:
            self.group_alpha = adapter.new_parameter(f"{path}.group_alpha", scalar, start)

    @property
    def alphas(self) -> dict[str, Parameter]:
        both = {"alpha": self.alpha, "group_alpha": self.group_alpha}
        return {name: a for name, a in both.items() if a is not None}

    def tensor(self, theta: Tensor, context: ForwardContext | None) -> Tensor:
        z = self.gates(context)
        if z is None:
            return theta + self.w
        return theta * z + z * self.w if self.masked else theta + z * self.w

    def effective(self, theta: np.ndarray) -> np.ndarray:
        z, w = self.openness(theta.dtype), self.w.data.astype(theta.dtype)
        return theta * z + z * w if self.masked else theta + z * w

    def gates(self, context: ForwardContext | None) -> Tensor | None:
        """z; None where there are no gates and no mask yet."""
        if self.mask is not None:
            return Tensor(self.mask.astype(self.w.dtype))
        if self.training and context is None and self.alphas:
            raise ValueError(f"the gates of {self.site!r} in training need the pass's context: its seed and step")
        noisy = context if self.training else None
        z = [
            gate(a, None if noisy is None else (noisy.seed, f"{self.site}.{name}", noisy.step))
            for name, a in self.alphas.items()
        ]
        return product(z) if z else None

    def openness(self, dtype: Any) -> np.ndarray:
        """z without noise; ones where there are no gates."""
        z = np.ones(self.w.shape, dtype) if self.mask is None else self.mask.astype(dtype)
        for a in self.alphas.values() if self.mask is None else ():
            z = z * hard_concrete(a.data.astype(dtype))
        return z

    def expected_l0(self) -> Tensor:
        """Σ P(z > 0)."""
        return product([open_probability(a) for a in self.alphas.values()]).sum()

    def magnitude(self, theta: np.ndarray) -> np.ndarray:
        """What decides which entries stay, flat: |φ|, or where the result is to be sparse |θ'|."""
        return np.abs(self.effective(theta) if self.masked else self.openness(self.w.dtype) * self.w.data).ravel()

    def fix(self, mask: np.ndarray) -> None:
        """Gates give way to ``mask``, flat; they read the same from now on, with any noise."""
        if not self.masked:
            self.w.data *= self.openness(self.w.dtype)
        self.mask = mask.reshape(self.w.shape)
        for a in self.alphas.values():
            a.data[...] = np.where(self.mask, CERTAIN, -CERTAIN) if a is self.alpha else CERTAIN
            a.version.count += 1
        self.hold()

    def hold(self) -> None:
        """Zero outside the mask, whatever momentum the optimizer has left."""
        self.w.data[~self.mask] = 0  # type: ignore[operator]
        self.w.version.count += 1


def product(factors: list[Tensor]) -> Tensor:
    first, *others = factors
    return reduce(mul, others, first)


def constant(value: float, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.full(shape, value)
