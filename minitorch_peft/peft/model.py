"""PeftModel: a frozen base and its named adapters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.models import GPT, GPTOutput
from minitorch_peft.models.generation import generate
from minitorch_peft.nn import ForwardContext, Module, Parameter
from minitorch_peft.peft.adapter import Adapter
from minitorch_peft.peft.config import PeftConfig
from minitorch_peft.peft.inject import base_parameters
from minitorch_peft.peft.merge import MergeCertificate, Merger
from minitorch_peft.peft.registry import method_of

BASE = "__base__"  # in adapter_names: a row that runs under no adapter


def get_peft_model(
    model: GPT, peft_config: PeftConfig, adapter_name: str = "default", seed: int = 0
) -> PeftModel:
    """Freeze ``model`` and attach one adapter to it, active and trainable.

    >>> from minitorch_peft.models import GPT, GPTConfig
    >>> from minitorch_peft.peft import LoraConfig
    >>> base = GPT(GPTConfig(vocab_size=97, n_positions=64, n_embd=64, n_layer=3, n_head=4))
    >>> p = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    >>> p.print_trainable_parameters()
    trainable params: 3,072 || all params: 163,328 || trainable%: 1.8809
    """
    peft_model = PeftModel(model)
    peft_model.add_adapter(adapter_name, peft_config, seed=seed)
    peft_model.set_adapter(adapter_name)
    return peft_model


class PeftModel(Module):
    """The base model, changed in place: its own parameters frozen, adapters attached from outside.

    The base's parameters are named as in the base; an adapter's are named ``<path>.<parameter>.<adapter>``.
    """

    def __init__(self, base_model: GPT) -> None:
        self.base_model = base_model
        self.config = base_model.config
        self.adapters: dict[str, Adapter] = {}
        self.merger: Merger | None = None
        self._trained: tuple[str, ...] = ()
        self._was_trainable = {path: p.requires_grad for path, p in base_parameters(base_model)}
        for _, p in base_parameters(base_model):
            p.requires_grad_(False)

    # -- adapters --------------------------------------------------------------------------------------------
    def add_adapter(self, adapter_name: str, peft_config: PeftConfig, seed: int = 0) -> None:
        """Attach another adapter, neither active nor trainable yet.

        Raises ValueError where the config does not fit this model; the model is then as it was.
        """
        if adapter_name in self.adapters or adapter_name == BASE or not adapter_name.isidentifier():
            raise ValueError(f"adapter name {adapter_name!r} is taken, reserved or not an identifier")
        self._refuse_if_merged("add an adapter")
        method = method_of(peft_config)
        with self.disable_adapter():  # copies of parameters are taken of the base, not of another adapter's copy
            self.adapters[adapter_name] = method.adapter(adapter_name, peft_config, self.base_model, seed)
        self.adapters[adapter_name].set_trainable(False)
        self.train(self.training)

    def set_adapter(self, adapter_name: str | Sequence[str], train: str | Sequence[str] | None = None) -> None:
        """Choose which adapters act, in the order given, and which of them train (by default all that act)."""
        names = as_names(adapter_name)
        trained = names if train is None else as_names(train)
        self._known((*names, *trained))
        self._refuse_if_merged("change adapters")
        if not set(trained) <= set(names):
            raise ValueError(f"train={list(trained)} names adapters that do not act: {list(names)}")
        check_together([self.adapters[n] for n in names])
        for adapter in self.adapters.values():
            adapter.set_active(False)
        for name in names:
            self.adapters[name].set_active(True)
        for name, adapter in self.adapters.items():
            adapter.set_trainable(name in trained)
        self._trained = trained

    def delete_adapter(self, adapter_name: str) -> None:
        """Detach an adapter; the others stay as they are."""
        self._known([adapter_name])
        self._refuse_if_merged("delete an adapter")
        self.adapters.pop(adapter_name).detach()

    @property
    def active_adapters(self) -> tuple[str, ...]:
        return tuple(name for name, a in self.adapters.items() if a.active)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Inside, the base runs alone."""
        active = [a for a in self.adapters.values() if a.active]
        if any(a.merged for a in active):
            raise RuntimeError("a merged adapter cannot be switched off: unmerge_adapter() first")
        for adapter in active:
            adapter.set_active(False)
        try:
            yield
        finally:
            for adapter in active:
                adapter.set_active(True)

    def _known(self, names: Sequence[str]) -> None:
        if unknown := [n for n in names if n not in self.adapters]:
            raise ValueError(f"no adapter named {', '.join(unknown)}; there are: {', '.join(self.adapters) or 'none'}")

    def _refuse_if_merged(self, what: str) -> None:
        if self.merger is not None:
            raise RuntimeError(f"cannot {what} while adapters are merged: unmerge_adapter() first")

    # -- forward ---------------------------------------------------------------------------------------------
    def forward(
        self, *args: Any, adapter_names: Sequence[str] | None = None, context: ForwardContext | None = None,
        **kwargs: Any,
    ) -> GPTOutput:  # fmt: skip
        """The base's forward under the active adapters, or each row under its own (``adapter_names``).

        ``"__base__"`` names a row without an adapter. In training too, gradients reach each row's adapter only.
        """
        context = ForwardContext() if context is None else context
        if adapter_names is not None:
            context.adapter_names = self._checked_rows(adapter_names, *args, **kwargs)
        context.prompt_length = sum(a.prompt_length for a in self.adapters.values() if a.active)
        return self.base_model(*args, context=context, **kwargs)

    def _checked_rows(
        self, names: Sequence[str], input_ids: Any = None, *_: Any, inputs_embeds: Any = None, **__: Any
    ) -> tuple[str, ...]:
        given = inputs_embeds if input_ids is None else input_ids
        batch = len(given)
        if len(names) != batch:
            raise ValueError(f"adapter_names has {len(names)} names for {batch} rows")
        self._known([n for n in names if n != BASE])
        self._refuse_if_merged("run rows under different adapters")
        involved = {n for n in names if n != BASE} | {n for n, a in self.adapters.items() if a.active and a.selected}
        if bad := sorted(n for n in involved if not self.adapters[n].rowwise):
            raise ValueError(
                f"adapter {', '.join(bad)} changes the whole batch at once (its method is not row-wise): "
                "run its rows in a batch of their own, and deactivate it here"
            )
        return tuple(names)

    def generate(self, input_ids: Any, max_new_tokens: int = 20, **options: Any) -> np.ndarray:
        """Continue each row; see :func:`minitorch_peft.models.generation.generate`. Takes ``adapter_names`` too."""
        return generate(self, input_ids, max_new_tokens, **options)

    # -- parameters ------------------------------------------------------------------------------------------
    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """The base's own parameters (originals, where an adapter's copy stands in), then every adapter's."""
        originals = {path: s.original for a in self.adapters.values() for path, s in a.selected.items()}
        for path, p in base_parameters(self.base_model):
            yield path, originals.get(path, p)
        for name, adapter in self.adapters.items():
            for path, p in adapter.named_parameters().items():
                yield f"{path}.{name}", p

    def trainable_parameters(self) -> dict[str, Parameter]:
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """(trainable, all) numbers of parameters; copies that stand in for the base's are counted once."""
        trainable = sum(p.data.size for p in self.trainable_parameters().values())
        everything = dict(self.named_parameters())
        copies = sum(s.copy.data.size for a in self.adapters.values() for s in a.selected.values())
        return trainable, sum(p.data.size for p in everything.values()) - copies

    def print_trainable_parameters(self) -> None:
        trainable, total = self.get_nb_trainable_parameters()
        print(f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {100 * trainable / total:.4f}")

    # -- merging ---------------------------------------------------------------------------------------------
    def merge_adapter(self, input_ids: Any = None) -> MergeCertificate:
        """Write the active adapters' effect into the base's weights; returns how exact that was.

        ``input_ids`` (B, T) are what logits are compared on; by default 4 drawn rows.
        """
        self._refuse_if_merged("merge again")
        active = [self.adapters[n] for n in self.active_adapters]
        if not active:
            raise ValueError("no active adapter to merge")
        if bad := [a.name for a in active if not a.mergeable]:
            raise ValueError(f"adapter {', '.join(bad)} cannot be merged: its method is no change of weights")
        merger = Merger(self.base_model, active)
        certificate = merger.merge(self, input_ids)
        self.merger = merger
        return certificate

    def unmerge_adapter(self) -> None:
        """Take merged adapters out of the weights again: the base is restored bit for bit."""
        if self.merger is None:
            raise RuntimeError("nothing is merged")
        self.merger.unmerge()
        self.merger = None

    def merge_and_unload(self, input_ids: Any = None) -> GPT:
        """The base as a plain GPT with the active adapters' effect in its weights; adapters are gone after it."""
        if self.merger is None:
            self.merge_adapter(input_ids)
        assert self.merger is not None
        self.merger.commit()
        self.merger = None
        return self.unload()

    def unload(self) -> GPT:
        """The base as a plain GPT, as it was before adapters came."""
        self._refuse_if_merged("unload")
        for name in list(self.adapters):
            self.delete_adapter(name)
        for path, p in base_parameters(self.base_model):
            p.requires_grad_(self._was_trainable.get(path, True))
        return self.base_model

    # -- files -----------------------------------------------------------------------------------------------
    def save_pretrained(
        self, directory: str | Path, adapter_name: str = "default", format: str | None = None
    ) -> str:
        """Write one adapter; see :func:`minitorch_peft.peft.saving.save_adapter`. Returns the format used."""
        from minitorch_peft.peft.saving import save_adapter

        self._known([adapter_name])
        return save_adapter(self, adapter_name, Path(directory), format)

    @classmethod
    def from_pretrained(
        cls, model: GPT, directory: str | Path, adapter_name: str = "default", is_trainable: bool = False
    ) -> PeftModel:
        """Attach an adapter that was saved here or by ``peft``; active, and frozen unless ``is_trainable``."""
        peft_model = cls(model)
        try:
            peft_model.load_adapter(directory, adapter_name)
        except Exception:
            peft_model.unload()
            raise
        peft_model.set_adapter(adapter_name, train=adapter_name if is_trainable else ())
        return peft_model

    def load_adapter(self, directory: str | Path, adapter_name: str) -> None:
        """Attach one more saved adapter, not active yet. Every tensor of the file must land, or nothing changes."""
        from minitorch_peft.peft.saving import load_adapter

        load_adapter(self, adapter_name, Path(directory))

    # -- hooks of the methods in training ----------------------------------------------------------------------
    def _training(self) -> list[Adapter]:
        return [self.adapters[n] for n in self._trained if n in self.adapters]

    def penalty(self) -> Tensor | None:
        terms = [t for t in (a.penalty() for a in self._training()) if t is not None]
        return sum(terms[1:], start=terms[0]) if terms else None

    def param_groups(self) -> list[dict[str, Any]] | None:
        """The groups that methods ask for (names as in ``named_parameters``); None where none does."""
        asked = {a.name: a.param_groups() for a in self._training()}
        if not any(asked.values()):
            return None
        return [
            {**group, "params": [f"{path}.{name}" for path in group["params"]]}
            for name, groups in asked.items()
            for group in groups or [{"params": list(self.adapters[name].named_parameters())}]
        ]

    def after_backward(self, step: int, total: int) -> None:
        for adapter in self._training():
            adapter.after_backward(step, total)

    def after_step(self, step: int) -> None:
        for adapter in self._training():
            adapter.after_step(step)

    def method_state(self) -> dict[str, np.ndarray]:
        return {f"{a.name}/{key}": v for a in self._training() for key, v in a.method_state().items()}

    def load_method_state(self, state: dict[str, np.ndarray]) -> None:
        for adapter in self._training():
            prefix = f"{adapter.name}/"
            adapter.load_method_state({k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)})


def as_names(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def check_together(adapters: Sequence[Adapter]) -> None:
    """Raise where two adapters cannot act at once: their methods say no, or both replace one parameter."""
    for i, first in enumerate(adapters):
        for second in adapters[i + 1 :]:
            a, b = method_of(first.config), method_of(second.config)
            both = sorted(first.selected.keys() & second.selected.keys())
            if both:
                raise ValueError(f"{first.name} and {second.name} both put a copy in place of {both[0]}")
            if b.shape not in a.stackable_with or a.shape not in b.stackable_with:
                raise ValueError(f"{first.name} ({a.name}) and {second.name} ({b.name}) do not act together")
