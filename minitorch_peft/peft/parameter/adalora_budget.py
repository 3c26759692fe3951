"""AdaLoRA's budget: how many ranks are left at a step, and which (Zhang et al. 2023, sections 3.2 and 3.3).

The sensitivity of a weight is I = |w ∂L/∂w| (eq. 8); its moving average Ī and the moving average U of |I - Ī| give its
score Ī U (eq. 9 to 11). A rank i, which is E_i with row i of A and column i of B, scores (eq. 7)

    S_i = s(E_i) + mean_j s(A_ij) + mean_j s(B_ji)

and those of all layers compete: the best b(t) keep their E, the others' E is set to zero. b falls from b0, what there
is at first, to bT = target_r for each layer (eq. 12, T the total):

    b(t) = b0 for t ≤ tinit;   bT + (b0 - bT) (1 - (t - tinit) / (T - tinit - tfinal))³;   bT from T - tfinal on

Until then a rank can come back, as its E still gets a gradient; from then on the choice stands. As in ``peft``, w is
the weight after the optimizer's step and the gradient is that step's (after clipping). Unlike ``peft``, the choice is
final after the last step where ``tfinal`` is 0, and ``init_r`` may be ``target_r``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from minitorch_peft.nn import Parameter

if TYPE_CHECKING:
    from minitorch_peft.peft.parameter.adalora import AdaLoraConfig


def check_schedule(config: AdaLoraConfig, total: int | None) -> None:
    """ValueError where no step is left in which ranks could be taken away."""
    if config.tinit < 0 or config.tfinal < 0 or config.deltaT < 1:
        raise ValueError("tinit and tfinal must be at least 0, deltaT at least 1")
    if total is not None and not config.tinit < total - config.tfinal:
        raise ValueError(
            f"of {total} steps, tinit={config.tinit} and tfinal={config.tfinal} leave none in which AdaLoRA could "
            "take ranks away: lower them, or train longer"
        )


class RankAllocator:
    """Chooses the ranks of ``layers``, by path, which have ``lora_A``, ``lora_E`` and ``lora_B``.

    ``kept``: path to bool (r,), the last choice. ``averages``: parameter's name to Ī and U, once there is a gradient.
    """

    def __init__(self, config: AdaLoraConfig, layers: Mapping[str, Any]) -> None:
        self.config, self.layers = config, layers
        self.total = config.total_step
        self.kept = {path: np.ones(len(layer.lora_E), bool) for path, layer in layers.items()}
        self.averages: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.first = sum(len(kept) for kept in self.kept.values())
        self.last = min(self.first, config.target_r * len(layers))

    def set_total(self, total: int) -> None:
        """The trainer's number of steps, which counts where the config has none; ValueError where it is too few."""
        if self.config.total_step is not None:
            if total <= self.final and self.last < self.first:
                raise ValueError(
                    f"total_step={self.total}: the last ranks are lost after step {self.final}, and this training has "
                    f"{total} steps (from 0): lower total_step, leave it out, or train longer"
                )
        elif self.total != total:
            check_schedule(self.config, total)
            self.total = total

    @property
    def final(self) -> int:
        """The step after which the choice stands."""
        assert self.total is not None
        return self.total - self.config.tfinal - (not self.config.tfinal)

    @property
    def settled(self) -> bool:
        """Has that been, or is there nothing to choose?"""
        spent = sum(int(kept.sum()) for kept in self.kept.values()) <= self.last
        return self.first <= self.last or (spent and not self.averages)

    def budget(self, step: int) -> int:
        """b(t): how many ranks all layers together have after ``step``."""
        assert self.total is not None
        tinit, end = self.config.tinit, self.total - self.config.tfinal
        if step <= tinit:
            return self.first
        left = 1 - (step - tinit) / (end - tinit)
        return self.last if step >= end else int((self.first - self.last) * left**3 + self.last)

    def update(self, step: int) -> None:
        """After the optimizer's step: take in its gradients, and choose if it is time to."""
        if self.total is None:
            raise RuntimeError("AdaLoRA does not know how many steps there are: set total_step, or use the trainer")
        final = self.final
        if step < self.total - self.config.tfinal:
            self._smooth()
        if step == final or (self.config.tinit < step < final and step % self.config.deltaT == 0):
            self._choose(self.last if step == final else self.budget(step))
            self._mask()
        elif step > final:
            self._mask()
        if step == final:
            self.averages = {}

    def parameters(self) -> Iterator[tuple[str, Parameter]]:
        for path, layer in self.layers.items():
            yield from ((f"{path}.{n}", getattr(layer, n)) for n in ("lora_A", "lora_E", "lora_B"))

    def _smooth(self) -> None:
        b1, b2 = self.config.beta1, self.config.beta2
        for name, p in self.parameters():
            average, uncertainty = self.averages.get(name) or (np.zeros_like(p.data), np.zeros_like(p.data))
            now = np.zeros_like(p.data) if p.grad is None else np.abs(p.data * p.grad)
            average = b1 * average + (1 - b1) * now
            self.averages[name] = average, b2 * uncertainty + (1 - b2) * np.abs(now - average)

    def scores(self) -> dict[str, np.ndarray]:
        """Path to S (r,)."""
        s = {name: average * uncertainty for name, (average, uncertainty) in self.averages.items()}
        return {
            path: s[f"{path}.lora_E"][:, 0] + (s[f"{path}.lora_A"].mean(axis=1) + s[f"{path}.lora_B"].mean(axis=0))
            for path in self.layers
        }

    def _choose(self, budget: int) -> None:
        lost = self.first - budget
        if lost <= 0:
            return
        scores = self.scores()
        threshold = np.partition(np.concatenate(list(scores.values())), lost - 1)[lost - 1]
        self.kept = {path: score > threshold for path, score in scores.items()}

    def _mask(self) -> None:
        for path, layer in self.layers.items():
            layer.lora_E.data[~self.kept[path]] = 0
            layer.lora_E.version.count += 1

    # -- state -----------------------------------------------------------------------------------------------
    def state(self) -> dict[str, np.ndarray]:
        found = {f"{path}.kept": kept for path, kept in self.kept.items()}
        for name, (average, uncertainty) in self.averages.items():
            found |= {f"{name}.importance": average, f"{name}.uncertainty": uncertainty}
        return found

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        self.kept = {path: np.array(state[f"{path}.kept"], bool) for path in self.layers}
        self.averages = {
            name: (np.array(state[f"{name}.importance"]), np.array(state[f"{name}.uncertainty"]))
            for name, _ in self.parameters() if f"{name}.importance" in state
        }  # fmt: skip
