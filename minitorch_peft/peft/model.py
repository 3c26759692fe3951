"""PeftModel: a frozen base and its named adapters."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.models import GPT, Cache, GPTConfig, GPTOutput
from minitorch_peft.models.generation import generate
from minitorch_peft.models.inputs import as_array
from minitorch_peft.nn import ForwardContext, Module, Parameter
from minitorch_peft.peft.adapter import Adapter
from minitorch_peft.peft.config import PeftConfig
from minitorch_peft.peft.fingerprint import changed, word_sums
from minitorch_peft.peft.hooks import TrainingHooks
from minitorch_peft.peft.inject import Wrapper, base_buffers, base_constants, base_parameters
from minitorch_peft.peft.merge import MergeCertificate, Merger
from minitorch_peft.peft.passes import BASE, begin, checked_rows, standing
from minitorch_peft.peft.registry import method_of

if TYPE_CHECKING:
    from minitorch_peft.peft.findings import Report


def get_peft_model(model: GPT, peft_config: PeftConfig, adapter_name: str = "default", seed: int = 0) -> PeftModel:
    """Freeze ``model`` and attach one adapter to it, active and trainable.

    Raises ValueError where the config does not fit the model, which is then as it was.

    >>> from minitorch_peft.models import GPT, GPTConfig
    >>> from minitorch_peft.peft import LoraConfig
    >>> base = GPT(GPTConfig(vocab_size=97, n_positions=64, n_embd=64, n_layer=3, n_head=4))
    >>> p = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    >>> p.print_trainable_parameters()
    trainable params: 3,072 || all params: 163,456 || trainable%: 1.8794
    """
    peft_model = PeftModel(model)
    with peft_model.unloaded_on_error():
        peft_model.add_adapter(adapter_name, peft_config, seed=seed)
    peft_model.set_adapter(adapter_name)
    return peft_model


class PeftModel(TrainingHooks, Module):
    """The base model, changed in place: its own parameters frozen, adapters attached from outside.

    The base's parameters are named as in the base; an adapter's are named ``<path>.<parameter>.<adapter>``.

    >>> from minitorch_peft.models import GPT, GPTConfig
    >>> from minitorch_peft.peft import BitFitConfig, LoraConfig
    >>> p = PeftModel(GPT(GPTConfig(vocab_size=97, n_positions=64, n_embd=64, n_layer=3, n_head=4)))
    >>> p.add_adapter("a", LoraConfig(r=4, target_modules=["q_proj"]))
    >>> p.add_adapter("b", BitFitConfig(target_parameters=["ln_f.bias"]))
    >>> p.set_adapter(["a", "b"], train="b")
    >>> p.active_adapters, list(p.trainable_parameters())
    (('a', 'b'), ['ln_f.bias.b'])
    """

    def __init__(self, base_model: GPT) -> None:
        if isinstance(base_model, PeftModel) or any(isinstance(m, Wrapper) for _, m in base_model.named_modules()):
            raise ValueError("this model carries adapters already: use add_adapter, or unload() first")
        if not isinstance(base_model, GPT):
            raise TypeError(
                f"adapters attach to a GPT, not to a {type(base_model).__name__}; for a classifier, "
                "SequenceClassifier(get_peft_model(gpt, config), num_labels)"
            )
        self.base_model = base_model
        self.training = base_model.training
        self.adapters: dict[str, Adapter] = {}
        self.merger: Merger | None = None
        self._trained: tuple[str, ...] = ()
        self._disabled = 0  # how many disable_adapter() are open
        self._sums = word_sums(self._base_arrays())
        self._was_trainable = {path: p.requires_grad for path, p in base_parameters(base_model)}
        for _, p in base_parameters(base_model):
            p.requires_grad_(False)

    @property
    def config(self) -> GPTConfig:
        return self.base_model.config

    # -- adapters --------------------------------------------------------------------------------------------
    def add_adapter(self, adapter_name: str, peft_config: PeftConfig, seed: int = 0) -> None:
        """Attach another adapter, neither active nor trainable yet.

        Raises ValueError where the config does not fit this model; the model is then as it was.
        """
        self._check_new(adapter_name)
        method = method_of(peft_config)
        with self.disable_adapter():  # copies of parameters are taken of the base, not of another adapter's copy
            adapter = method.adapter(adapter_name, peft_config, self.base_model, seed)
        adapter.set_trainable(False)
        self.adapters[adapter_name] = adapter
        self.train(self.training)

    def set_adapter(self, adapter_name: str | Sequence[str], train: str | Sequence[str] | None = None) -> None:
        """Choose which adapters act, and which of them train (by default all that act).

        Several act together in the order of their names here: each stands around those before it.
        """
        names = as_names(adapter_name)
        trained = names if train is None else as_names(train)
        self._known((*names, *trained))
        self._refuse_if_merged("change adapters")
        if not set(trained) <= set(names):
            raise ValueError(f"train={list(trained)} names adapters that do not act: {list(names)}")
        check_together([self.adapters[n] for n in dict.fromkeys(names)])
        for adapter in self.adapters.values():
            adapter.set_active(False)
            adapter.set_trainable(adapter.name in trained)
        for name in names:
            self.adapters[name].set_active(True)
            self.adapters[name].move_outside()
            self.adapters[name] = self.adapters.pop(name)
        self._trained = trained

    def delete_adapter(self, adapter_name: str) -> None:
        """Detach an adapter; the others stay as they are."""
        self._known([adapter_name])
        self._refuse_if_merged("delete an adapter")
        self.adapters.pop(adapter_name).detach()
        self._trained = tuple(name for name in self._trained if name != adapter_name)

    @property
    def active_adapters(self) -> tuple[str, ...]:
        return tuple(name for name, a in self.adapters.items() if a.active)

    def trained_adapters(self) -> list[Adapter]:
        return [self.adapters[name] for name in self._trained]

    @property
    def settled(self) -> bool:
        """Have the adapters that train the form that they will end in? One that is yet to be pruned has not."""
        return all(adapter.settled for adapter in self.trained_adapters())

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Inside, the base runs alone, whatever ``adapter_names`` say; afterwards those act again that acted before."""
        active = self.active_adapters
        if any(self.adapters[name].merged for name in active):
            raise RuntimeError("a merged adapter cannot be switched off: unmerge_adapter() first")
        for name in active:
            self.adapters[name].set_active(False)
        self._disabled += 1
        try:
            yield
        finally:
            self._disabled -= 1
            for adapter in self.adapters.values():
                adapter.set_active(False)
            for name in active:
                if name in self.adapters:
                    self.adapters[name].set_active(True)

    def _check_new(self, name: str) -> None:
        if name in self.adapters:
            raise ValueError(f"there is an adapter named {name!r} already")
        if name == BASE or not re.fullmatch(r"[\w-]+", name):
            raise ValueError(f"adapter name {name!r}: expected letters, digits, _ and -, and not {BASE!r}")
        self._refuse_if_merged("add an adapter")

    def _known(self, names: Sequence[str]) -> None:
        if unknown := [n for n in dict.fromkeys(names) if n not in self.adapters]:
            raise ValueError(f"no adapter named {', '.join(unknown)}; there are: {', '.join(self.adapters) or 'none'}")

    def _refuse_if_merged(self, what: str) -> None:
        if self.merger is not None:
            raise RuntimeError(f"cannot {what} while adapters are merged: unmerge_adapter() first")

    # -- forward ---------------------------------------------------------------------------------------------
    def forward(
        self,
        input_ids: Any = None,
        labels: Any = None,
        *,
        adapter_names: Sequence[str] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool = False,
        context: ForwardContext | None = None,
        **options: Any,
    ) -> GPTOutput:
        """The base's forward (see :meth:`GPT.forward`) under the active adapters, or each row under its own.

        ``adapter_names`` has one name for each row, active or not; ``"__base__"`` is a row without an adapter. In
        training too: gradients reach each row's own adapter only, and of the adapters only those that train
        (``set_adapter(["a", "b"])``).
        """
        context = self.new_context() if context is None else context
        ids = tokens_of(input_ids, inputs_embeds)
        context.adapter_names = self._rows(adapter_names, len(ids))
        cache = begin(context, self.adapters, ids, past_key_values, use_cache, options.get("attention_mask"))
        with standing(self.base_model, self.adapters, context):
            out = self.base_model(
                input_ids, labels, past_key_values=cache, inputs_embeds=inputs_embeds, use_cache=use_cache,
                context=context, **options,
            )  # fmt: skip
        if past_key_values is None and not use_cache:
            out.past_key_values = None  # a prefix's cache that nobody asked for
        return out

    def new_context(self) -> ForwardContext:
        """See :meth:`GPT.new_context`."""
        return self.base_model.new_context()

    def encode_ids(
        self, ids: np.ndarray, context: ForwardContext, cache: Cache | None = None, attention_mask: Any = None,
        position_ids: Any = None, adapter_names: Sequence[str] | None = None,
    ) -> Tensor:  # fmt: skip
        """The base's last hidden states under the active adapters: ``SequenceClassifier(peft_model, 3)`` works."""
        context.adapter_names = self._rows(adapter_names, len(ids))
        cache = begin(context, self.adapters, ids, cache, cache is not None, attention_mask)
        with standing(self.base_model, self.adapters, context):
            return self.base_model.encode_ids(ids, context, cache, attention_mask, position_ids)

    def _rows(self, names: Sequence[str] | None, batch: int) -> tuple[str, ...] | None:
        if names is None:
            return None
        self._known([n for n in names if n != BASE])
        self._refuse_if_merged("run rows under different adapters")
        rows = checked_rows(names, self.adapters, batch)
        return None if self._disabled else rows  # the base runs alone

    def positions_before(self, rows: int, adapter_names: Sequence[str] | None = None, **options: Any) -> np.ndarray:
        """int (rows,): the prompts and prefixes that the text of each row stands behind."""
        names = self._rows(adapter_names, rows)
        lengths = {a.name: a.prompt_length + a.prefix_length for a in self.adapters.values() if not a.merged}
        if names is None:
            return np.full(rows, sum(lengths.get(name, 0) for name in self.active_adapters))
        return np.array([lengths.get(name, 0) for name in names])

    def generate(self, input_ids: Any, max_new_tokens: int = 20, **options: Any) -> np.ndarray:
        """Continue each row; see :func:`minitorch_peft.models.generation.generate`. Takes ``adapter_names`` too."""
        return generate(self, input_ids, max_new_tokens, **options)

    # -- parameters ------------------------------------------------------------------------------------------
    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The base, and what adapters keep beside it."""
        yield "base_model", self.base_model
        for name, adapter in self.adapters.items():
            beside = adapter.parts | adapter.reparametrized
            yield from ((f"{name}.{part}", module) for part, module in beside.items())

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """The base's own parameters (originals, where an adapter's copy stands in), then every adapter's."""
        originals = {path: s.original for a in self.adapters.values() for path, s in a.selected.items()}
        for path, p in base_parameters(self.base_model):
            yield path, originals.get(path, p)
        for name, adapter in self.adapters.items():
            for path, p in adapter.named_parameters().items():
                yield f"{path}.{name}", p

    def named_buffers(self) -> Iterator[tuple[str, np.ndarray]]:
        """The base's: weights that it stores in four bits."""
        return base_buffers(self.base_model)

    def named_constants(self) -> dict[str, np.ndarray]:
        return base_constants(self.base_model)

    def trainable_parameters(self) -> dict[str, Parameter]:
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """(trainable, all) numbers of parameters; copies that stand in for the base's are counted once."""
        copies = sum(s.copy.data.size for a in self.adapters.values() for s in a.selected.values())
        return self.num_parameters(only_trainable=True), self.num_parameters() - copies

    def print_trainable_parameters(self) -> None:
        trainable, total = self.get_nb_trainable_parameters()
        share = f"{100 * trainable / total:.4f}"
        print(f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {share}")

    # -- checking --------------------------------------------------------------------------------------------
    def check(self, batch: Mapping[str, Any], classifier: Any = None) -> Report:
        """What would fail silently in training on such batches; see :func:`minitorch_peft.peft.check.check`.

        A ``classifier`` of this model gives itself, to be checked with it.
        """
        from minitorch_peft.peft.check import check, check_classifier

        return check(self, batch) if classifier is None else check_classifier(classifier, batch)

    def changed_since_wrapped(self) -> list[str]:
        """The base's own parameters and buffers that are not what they were when it was wrapped."""
        return changed(self._sums, self._base_arrays())

    def _base_arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        yield from ((name, p.data) for name, p in self.named_parameters() if p.owner == "base")
        yield from self.named_buffers()

    # -- merging ---------------------------------------------------------------------------------------------
    def merge_adapter(self, input_ids: Any = None, requantize: bool = False) -> MergeCertificate:
        """Write the active adapters' effect into the base's weights; returns how exact that was.

        ``input_ids`` (B, T) are what logits are compared on; by default 4 drawn rows. A weight in four bits becomes a
        dense one, since the sum does not fit into four bits; ``requantize`` rounds it back into them, and the
        certificate says what that loses. Either way unmerging gives the four bits back as they were.

        Raises ValueError where a method is no change of weights, the merge would not be finite or there is nothing to
        requantize, RuntimeError where adapters are merged already; nothing has changed then.

        >>> from minitorch_peft.models import GPT, GPTConfig
        >>> from minitorch_peft.peft import LoraConfig
        >>> base = GPT(GPTConfig(vocab_size=97, n_positions=64, n_embd=64, n_layer=3, n_head=4))
        >>> certificate = get_peft_model(base, LoraConfig(r=4)).merge_adapter()
        >>> certificate.layers, certificate.weight_difference, certificate.restores_base
        (6, 0.0, True)
        """
        self._refuse_if_merged("merge again")
        active = [self.adapters[n] for n in self.active_adapters]
        if not active:
            raise ValueError("no active adapter to merge")
        if bad := [a.name for a in active if not method_of(a.config).mergeable]:
            raise ValueError(f"adapter {', '.join(bad)} cannot be merged: its method is no change of weights")
        merger = Merger(self.base_model, active, requantize)
        certificate = merger.merge(self, input_ids)
        self.merger = merger
        return certificate

    def unmerge_adapter(self) -> None:
        """Take merged adapters out of the weights again: the base is restored bit for bit."""
        if self.merger is None:
            raise RuntimeError("nothing is merged")
        self.merger.unmerge()
        self.merger = None

    def merge_and_unload(self, input_ids: Any = None, requantize: bool = False) -> GPT:
        """The base as a plain GPT with the active adapters' effect in its weights; all adapters are gone after it.

        Where they are merged already, that merge is made final (ValueError where it was not to ``requantize`` but this
        is); else see :meth:`merge_adapter`.
        """
        if self.merger is None:
            self.merge_adapter(input_ids, requantize)
        elif requantize and not self.merger.requantize:
            raise ValueError("the adapters are merged without requantize: unmerge_adapter() first")
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

    @contextmanager
    def unloaded_on_error(self) -> Iterator[None]:
        """Where what is inside fails, the base is given back as it was."""
        try:
            yield
        except BaseException:
            self.unload()
            raise

    # -- files -----------------------------------------------------------------------------------------------
    def save_pretrained(
        self, directory: str | Path, adapter_name: str | Sequence[str] = "default", format: str | None = None
    ) -> str:
        """Write one adapter; see :func:`minitorch_peft.peft.saving.save_adapter`. Returns the format used.

        Of several, each gets a folder of its name, and ``adapters.json`` says in which order they act.
        """
        from minitorch_peft.peft.saving import save_adapter, save_adapters

        self._known(as_names(adapter_name))
        if isinstance(adapter_name, str):
            return save_adapter(self, adapter_name, Path(directory), format)
        return save_adapters(self, as_names(adapter_name), Path(directory), format)

    @classmethod
    def from_pretrained(
        cls, model: GPT, directory: str | Path, adapter_name: str = "default", is_trainable: bool = False
    ) -> PeftModel:
        """Attach an adapter that was saved here or by ``peft``; active, and frozen unless ``is_trainable``.

        Adapters that were saved together come back together, under their own names; those act that acted then, and with
        ``is_trainable`` those train that trained then (all that act, where none did).
        """
        from minitorch_peft.peft.saving import saved_together

        together = saved_together(Path(directory))
        if together is not None and adapter_name != "default":
            raise ValueError(
                f"adapter_name={adapter_name!r}: {directory} holds several adapters under names of their own "
                f"({', '.join(together.names)}); leave it out"
            )
        peft_model = cls(model)
        with peft_model.unloaded_on_error():
            if together is None:
                peft_model.load_adapter(directory, adapter_name)
            for name in together.names if together else ():
                peft_model.load_adapter(Path(directory) / name, name)
            acting = together.active if together else (adapter_name,)
            trained = (together.trained or acting) if together else acting
            peft_model.set_adapter(acting, train=trained if is_trainable else ())
        return peft_model

    def load_adapter(self, directory: str | Path, adapter_name: str) -> None:
        """Attach one more saved adapter, not active yet. Every tensor of the file must land, or nothing changes."""
        from minitorch_peft.peft.saving import load_adapter

        self._check_new(adapter_name)
        load_adapter(self, adapter_name, Path(directory))


def tokens_of(input_ids: Any, inputs_embeds: Tensor | None) -> np.ndarray:
    """The tokens of a pass (B, T), -1 for vectors; empty where nothing was given (the base says what is wrong)."""
    if input_ids is not None:
        return np.atleast_2d(as_array(input_ids))
    return np.full((0, 0) if inputs_embeds is None else inputs_embeds.shape[:2], -1)


def as_names(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(dict.fromkeys(names))


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
