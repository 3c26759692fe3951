"""Adapter: one named use of a method on one model. A method subclasses it and says how it attaches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, TypeVar

import numpy as np

from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.models import GPT
from minitorch_peft.nn import ForwardContext, Module, Parameter, init
from minitorch_peft.peft.config import PeftConfig
from minitorch_peft.peft.inject import base_parameters, eject, packed_sizes, slot
from minitorch_peft.peft.shapes import ParameterReparam, Reparam, Selected, parameters_of

M = TypeVar("M", bound=Module)


class Adapter:
    """What a method attached to ``model``: wrappers by path, copies of parameters by path, or parts of its own.

    Subclasses define :meth:`attach`. The hooks at the end do nothing unless a method overrides them.

    ``wrappers`` stand in the base's tree; ``selected`` are parameters of the base with a trainable copy;
    ``reparametrized`` are those that the method makes others of in every pass; ``parts`` are modules that stand beside
    the base (a prompt's encoder). ``prompt_length`` is the number of vectors that the method puts before the input,
    ``prefix_length`` that of the keys and values which every layer's cache starts with.
    """

    prompt_length = 0
    prefix_length = 0

    def __init__(self, name: str, config: PeftConfig, model: GPT, seed: int) -> None:
        self.name = name
        self.config: Any = deepcopy(config)  # what was attached, whatever becomes of the caller's object
        self.model = model
        self.seed = seed
        self.active = False
        self.merged = False
        self.wrappers: dict[str, Any] = {}
        self.selected: dict[str, Selected] = {}
        self.reparametrized: dict[str, ParameterReparam] = {}
        self.parts: dict[str, Module] = {}
        try:
            self.attach(self.config)
        except BaseException:
            self.detach()  # nothing half-attached stays behind
            raise

    def attach(self, config: Any) -> None:
        """Inject wrappers (``self.wrappers = inject(...)``), choose parameters (``self.select(paths)``), make parts.

        Raises ValueError, saying what would be valid, where the config does not fit the model.
        """
        raise NotImplementedError

    def detach(self) -> None:
        """Give the base back, bit for bit."""
        self.set_active(False)
        eject(self.model, self.wrappers)
        self.wrappers, self.selected, self.reparametrized, self.parts = {}, {}, {}, {}

    def move_outside(self) -> None:
        """Put the wrappers around all others that stand at their places."""
        for path, wrapper in self.wrappers.items():
            parent, name = slot(self.model, path)
            if parent.get(name) is not wrapper:
                eject(self.model, {path: wrapper})
                wrapper.base_layer = parent.get(name)
                setattr(parent, name, wrapper)

    def select(self, paths: Sequence[str]) -> None:
        """Put trainable copies beside parameters; ValueError for a weight in four bits, which has no gradient."""
        self._refuse_packed(paths)
        self.selected = {path: Selected(self.model, path, self.name) for path in paths}

    def reparametrize(self, paths: Sequence[str], make: Callable[[str, Parameter], ParameterReparam]) -> None:
        """Let ``make(path, parameter)`` say what becomes of each parameter; ValueError for a weight in four bits."""
        self._refuse_packed(paths)
        here = dict(base_parameters(self.model))
        self.reparametrized = {path: make(path, here[path]) for path in paths}

    def _refuse_packed(self, paths: Sequence[str]) -> None:
        if packed := sorted(packed_sizes(self.model).keys() & set(paths)):
            more = f" (and {len(packed) - 1} more)" if len(packed) > 1 else ""
            raise ValueError(
                f"{packed[0]}{more} is stored in four bits and cannot be trained: leave it out, use LoRA, "
                "or load the base without quantization"
            )

    @property
    def dtype(self) -> np.dtype:
        """The base's."""
        return next(p.dtype for _, p in base_parameters(self.model))

    def new_parameter(self, name: str, shape: tuple[int, ...], start: init.Init) -> Parameter:
        """A parameter of this adapter, already at its start, which depends on the seed and on its name only."""
        parameter = Parameter.empty(shape, start, owner=self.name, dtype=self.dtype)
        init.fill(parameter, self.seed, name)
        return parameter

    def new_module(self, name: str, module: M) -> M:
        """``module``, its parameters made this adapter's and put at their start in the same way."""
        for n, parameter in module.named_parameters():
            parameter.owner, parameter.data = self.name, parameter.data.astype(self.dtype)
            init.fill(parameter, self.seed, f"{name}.{n}")
        return module

    # -- state -----------------------------------------------------------------------------------------------
    def named_parameters(self) -> dict[str, Parameter]:
        """The method's own parameters by path: ``blocks.0.attn.q_proj.lora_A``, ``ln_f.bias``."""
        own = {f"{path}.{n}": p for path, w in self.wrappers.items() for n, p in parameters_of(w).items()}
        beside = {
            f"{name}.{n}": p
            for name, part in (self.reparametrized | self.parts).items()
            for n, p in part.named_parameters()
        }
        return own | beside | {path: s.copy for path, s in self.selected.items()}

    def frozen(self) -> dict[str, np.ndarray]:
        """Arrays that do not train and that files hold beside the parameters: what is loaded is put into them."""
        return {}

    def stored(self) -> dict[str, np.ndarray]:
        """What a file of our own format holds."""
        return {name: p.data for name, p in self.named_parameters().items()} | self.frozen()

    def deployed(self) -> dict[str, np.ndarray]:
        """What running it needs, without what only training needs: a prompt, not the network that made it."""
        return self.stored()

    def unpacked(self, stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The parameters and frozen arrays of what :meth:`stored` gave; ValueError where it cannot be that."""
        return stored

    @property
    def settled(self) -> bool:
        """Has it the form that it will end in? One that is yet to be pruned has not."""
        return True

    @property
    def resting(self) -> list[str]:
        """The parameters, by name, that have done their work: no gradient is expected to reach them."""
        return []

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
            if active:
                s.put_in()
            else:
                s.take_out()

    def set_trainable(self, trainable: bool) -> None:
        for p in self.named_parameters().values():
            p.requires_grad_(trainable)

    def weights(self) -> dict[str, Reparam]:
        """The layers whose weight this adapter changes by reparametrization, by path."""
        return {path: w for path, w in self.wrappers.items() if isinstance(w, Reparam)}

    def prefix(self) -> Sequence[tuple[Tensor, Tensor]] | None:
        """The keys and values (kv_heads, prefix_length, head_dim) of each layer that the cache starts with, or None.

        They are visible to every position; the input's positions are counted from ``prefix_length``.
        """
        return None

    def hidden(self, ids: np.ndarray, new: int) -> np.ndarray:
        """bool (B, new, S): the keys that the last ``new`` positions must not see, beside those after them.

        ``ids`` (B, S) are the tokens that the keys were made of, -1 for vectors of a prompt or a prefix and for what
        the attention mask hides. Called before every pass, for methods that override it.
        """
        return np.zeros((len(ids), new, ids.shape[1]), bool)

    # -- hooks: called by the trainer, through PeftModel ------------------------------------------------------
    def penalty(self) -> Tensor | None:
        """A term added to the loss."""
        return None

    def param_groups(self) -> list[dict[str, Any]] | None:
        """Groups with rates of their own: dicts with ``params`` (names) and ``lr_scale``, or any of the optimizer's
        settings (``lr``, ``weight_decay``); None for one group.
        """
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
