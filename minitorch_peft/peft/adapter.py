"""Adapter: one named use of a method on one model. A method subclasses it and says how it attaches."""

from __future__ import annotations

from typing import Any

import numpy as np

from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.models import GPT
from minitorch_peft.nn import ForwardContext, Parameter, init
from minitorch_peft.peft.config import PeftConfig
from minitorch_peft.peft.inject import eject, slot
from minitorch_peft.peft.shapes import Attached, Reparam, Selected, parameters_of


class Adapter:
    """What a method attached to ``model``: wrappers by path, or copies of parameters by path.

    Subclasses define :meth:`attach`. The five hooks at the end do nothing unless a method overrides them.
    """

    prompt_length = 0  # vectors that it puts before the input
    wrappers: dict[str, Any]
    selected: dict[str, Selected]

    def __init__(self, name: str, config: PeftConfig, model: GPT, seed: int) -> None:
        self.name = name
        self.config = config
        self.model = model
        self.seed = seed
        self.active = False
        self.merged = False
        self.wrappers = {}
        self.selected = {}
        try:
            self.attach(config)
        except Exception:
            self.detach()  # nothing half-attached stays behind
            raise

    def attach(self, config: Any) -> None:
        """Inject wrappers (``self.wrappers = inject(...)``) or choose parameters (``self.select(paths)``)."""
        raise NotImplementedError

    def detach(self) -> None:
        """Give the base back, bit for bit."""
        self.set_active(False)
        eject(self.model, self.wrappers)
        self.wrappers, self.selected = {}, {}

    def select(self, paths: list[str]) -> None:
        self.selected = {path: Selected(*slot(self.model, path), self.name) for path in paths}

    def new_parameter(
        self, path: str, name: str, shape: tuple[int, ...], start: init.Init, dtype: Any = np.float32
    ) -> Parameter:
        """A parameter of this adapter, already at its start, which depends on the seed and on its name only."""
        parameter = Parameter.empty(shape, start, owner=self.name, dtype=dtype)
        init.fill(parameter, self.seed, f"{path}.{name}")
        return parameter

    # -- state -----------------------------------------------------------------------------------------------
    def named_parameters(self) -> dict[str, Parameter]:
        """The method's own parameters by path: ``blocks.0.attn.q_proj.lora_A``, ``ln_f.bias``."""
        own = {f"{path}.{n}": p for path, w in self.wrappers.items() for n, p in parameters_of(w).items()}
        return own | {path: s.copy for path, s in self.selected.items()}

    def rows(self, context: ForwardContext | None) -> bool | np.ndarray:
        """Which rows run under this adapter: all (True), none (False), or bool (B,)."""
        if self.merged:
            return False  # its effect is in the base's weights
        named = None if context is None else context.rows(self.name)
        if named is None:
            return self.active
        return bool(named.all()) if named.all() or not named.any() else named

    def set_active(self, active: bool) -> None:
        """Let the adapter act, or the base alone; copies of parameters change places with the originals."""
        self.active = active
        for s in self.selected.values():
            s.place(s.copy if active else s.original)

    def set_trainable(self, trainable: bool) -> None:
        for p in self.named_parameters().values():
            p.requires_grad_(trainable)

    def weights(self) -> dict[str, Reparam]:
        """The layers whose weight this adapter changes by reparametrization, by path."""
        return {path: w for path, w in self.wrappers.items() if isinstance(w, Reparam)}

    @property
    def mergeable(self) -> bool:
        """Can its effect be written into the base's parameters?"""
        return bool(self.selected) or (bool(self.wrappers) and len(self.weights()) == len(self.wrappers))

    @property
    def rowwise(self) -> bool:
        """Can the rows of one batch run under different adapters of this method?"""
        return not self.selected and all(isinstance(w, Attached) for w in self.wrappers.values()) and not self.prompt_length

    # -- hooks: called by the trainer, through PeftModel ------------------------------------------------------
    def penalty(self) -> Tensor | None:
        """A term added to the loss."""
        return None

    def param_groups(self) -> list[dict[str, Any]] | None:
        """Groups with rates of their own: dicts with ``params`` (names) and ``lr_scale``; None for one group."""
        return None

    def after_backward(self, step: int, total: int) -> None:
        """Called when the gradients of a step are complete."""

    def after_step(self, step: int) -> None:
        """Called when the optimizer has changed the parameters."""

    def method_state(self) -> dict[str, np.ndarray]:
        """What a checkpoint must hold beside the parameters."""
        return {}

    def load_method_state(self, state: dict[str, np.ndarray]) -> None:
        """Take back what :meth:`method_state` gave."""
