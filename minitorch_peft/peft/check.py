"""What would fail silently: a linter for an adapted model, the batch that it is to train on, and its files.

Each finding has a code, the place, what is wrong there and what to do about it. A *failure* spoils the training or the
adapter; a *remark* is right for some and worth knowing. Nothing of the model changes: trials run on a copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minitorch_peft.autograd.tensor import no_grad
from minitorch_peft.formats.files import FileFormatError
from minitorch_peft.nn import Module, mode_of
from minitorch_peft.peft.batch_check import usable_classes, usable_labels
from minitorch_peft.peft.findings import Finding, Report, failure, remark
from minitorch_peft.peft.interop import some
from minitorch_peft.peft.settings_check import settings_findings
from minitorch_peft.peft.trial import Gradients, layers_that_disagree, trial_copies, trial_copy, try_steps

if TYPE_CHECKING:
    from minitorch_peft.models import SequenceClassifier
    from minitorch_peft.peft.adapter import Adapter
    from minitorch_peft.peft.model import PeftModel


def check(peft_model: PeftModel, batch: Mapping[str, Any]) -> Report:
    """What is wrong with ``peft_model``, ready to be trained on batches like this one (the arguments of its forward).

    >>> from minitorch_peft.models import GPT, GPTConfig
    >>> from minitorch_peft.peft import LoraConfig, get_peft_model
    >>> base = GPT(GPTConfig(vocab_size=97, n_positions=64, n_embd=64, n_layer=3, n_head=4))
    >>> p = get_peft_model(base, LoraConfig(r=4))
    >>> ids = np.arange(10).reshape(2, 5)
    >>> p.check({"input_ids": ids, "labels": ids}).ok
    True
    >>> p.set_adapter("default", train=())
    >>> print(p.check({"input_ids": ids, "labels": np.full((2, 5), -100)}))
    2 failures
    FAILURE frozen-adapter at default: it acts, but nothing of it trains
        do: set_adapter('default'), or from_pretrained(..., is_trainable=True)
    FAILURE labels-ignored at labels: none of them is a target, all are -100 or stand at the first position
        do: give the answer's tokens their ids; a prompt that fills the rows leaves nothing to learn
    """
    batch, labels = usable_labels(peft_model, batch)
    return report(peft_model, peft_model, batch, labels)


def check_classifier(classifier: SequenceClassifier, batch: Mapping[str, Any]) -> Report:
    """The same of a classifier whose model has adapters; the arguments of its forward are the batch.

    >>> from minitorch_peft.models import GPT, GPTConfig, SequenceClassifier
    >>> from minitorch_peft.peft import LoraConfig, get_peft_model
    >>> base = GPT(GPTConfig(vocab_size=97, n_positions=64, n_embd=64, n_layer=3, n_head=4))
    >>> classifier = SequenceClassifier(get_peft_model(base, LoraConfig(r=4)), num_labels=2)
    >>> classifier.check({"input_ids": np.arange(10).reshape(2, 5), "labels": [0, 1]}).ok
    True
    """
    batch, labels = usable_classes(batch)
    return report(classifier, classifier.model, batch, [*labels, *head_findings(classifier)])


def report(model: Module, peft_model: PeftModel, batch: Mapping[str, Any], before: Sequence[Finding]) -> Report:
    """All findings of ``model``, which is ``peft_model`` or has it; ``before`` are those of the batch."""
    copy, adapted_copy = trial_copies(model, peft_model)
    gradients = try_steps(copy, batch)
    return Report(
        (
            *adapter_findings(peft_model, batch),
            *base_findings(peft_model),
            *(f for adapter in peft_model.adapters.values() for f in settings_findings(adapter)),
            *before,
            *gradient_findings(model, peft_model, gradients),
            *scaling_findings(peft_model, adapted_copy),
        )
    )


# -- adapters and the base -------------------------------------------------------------------------------------
def adapter_findings(peft_model: PeftModel, batch: Mapping[str, Any]) -> Iterator[Finding]:
    if not peft_model.adapters:
        yield failure("no-adapter", "the model", "nothing is attached to it", "add_adapter(name, config)")
        return
    acting = {*peft_model.active_adapters, *(batch.get("adapter_names") or ())}
    trains = {name for name, a in peft_model.adapters.items() if any_trains(a)}
    for name, adapter in peft_model.adapters.items():
        if adapter.merged:
            problem = "it is merged: the base's weights hold its effect, and no gradient reaches it"
            yield failure("merged-adapter", name, problem, "unmerge_adapter() before training")
        elif name not in acting:
            kind = failure if name in trains or not acting & peft_model.adapters.keys() else remark
            yield kind("inactive-adapter", name, "it is attached, but does not act", f"set_adapter({name!r})")
        elif name not in trains:
            advice = f"set_adapter({name!r}), or from_pretrained(..., is_trainable=True)"
            kind = remark if acting & trains else failure
            yield kind("frozen-adapter", name, "it acts, but nothing of it trains", advice)
        elif still := [n for n, p in adapter.named_parameters().items() if not p.requires_grad]:
            advice = "leave it if that is meant, else set_adapter again"
            yield remark("frozen-parameter", f"{name}: {some(still)}", "it does not train with the rest", advice)


def any_trains(adapter: Adapter) -> bool:
    return any(p.requires_grad for p in adapter.named_parameters().values())


def base_findings(peft_model: PeftModel) -> Iterator[Finding]:
    own = {name: p for name, p in peft_model.named_parameters() if p.owner == "base"}
    if trains := [name for name, p in own.items() if p.requires_grad]:
        advice = "base_model.requires_grad_(False), or choose them with PartialConfig"
        yield failure("trainable-base", some(trains), "the base's own parameters train beside the adapter", advice)
    if peft_model.merger is None and (changed := peft_model.changed_since_wrapped()):
        advice = "load the base again and attach the adapter to it: the adapter belongs to the base that it came to"
        yield failure("changed-base", some(changed), "the base is not what it was when it was wrapped", advice)
    shared = {"embed.tokens", "lm_head"} if peft_model.config.tie_word_embeddings else set()
    for name, adapter in peft_model.adapters.items():
        if touched := sorted(adapter.weights().keys() & shared):
            problem = f"embedding and head share one weight, and the adapter changes it in {' and '.join(touched)} only"
            if len(touched) == 2:
                problem = "embedding and head share one weight, and the adapter has a change of its own for each"
            advice = "merging gives the head a copy of its own first (and warns): save the merged model untied"
            yield remark("tied-weights", name, problem, advice)


def head_findings(classifier: SequenceClassifier) -> Iterator[Finding]:
    if not any(p.requires_grad for p in classifier.score.parameters()):
        advice = "leave it if that is meant, else score.requires_grad_(True)"
        yield remark("frozen-head", "score", "it does not train with the adapters", advice)


# -- the trial -----------------------------------------------------------------------------------------------
def gradient_findings(model: Module, peft_model: PeftModel, found: Gradients) -> Iterator[Finding]:
    bad = [n for n, p in model.named_parameters() if not np.isfinite(p.data).all()]
    if bad or not found.finite:
        advice = "load or attach it again; if training made it so, lower the rate or clip gradients"
        yield failure("not-finite", some(bad) if bad else "loss", f"the loss is {found.loss}", advice)
        return
    own = (p for a in peft_model.adapters.values() for n, p in a.named_parameters().items() if n in without_gradient(a))
    excused = {id(p) for p in own}
    names = [name for name, p in model.named_parameters() if name in found.names and id(p) not in excused]
    if missing := [name for name in names if name not in found.reached]:
        problem = "no gradient reaches it: the loss of this batch does not depend on it"
        advice = "let its adapter act (set_adapter, adapter_names), and train what is used"
        yield failure("no-gradient", some(missing), problem, advice)
    if zero := [name for name in names if name in found.reached - found.moved]:
        problem = "its gradient is zero, and stays zero once the others have moved"
        advice = "start it, or what it is multiplied by, away from zero; is a factor, or a path to the loss, cut?"
        yield failure("zero-gradient", some(zero), problem, advice)


def without_gradient(adapter: Adapter) -> list[str]:
    """Its parameters that need none: of a merged one (see above), or those that have done their work."""
    return list(adapter.named_parameters()) if adapter.merged else adapter.resting


def scaling_findings(peft_model: PeftModel, copy: PeftModel) -> Iterator[Finding]:
    """Changes that act more than once, or otherwise than they will when they are merged."""
    for name in peft_model.active_adapters:
        adapter = peft_model.adapters[name]
        declared: Any = getattr(adapter.config, "scaling", None)
        for path, layer in adapter.wrappers.items() if callable(declared) else ():
            now, said = getattr(layer, "scaling", None), declared(path)
            if now is not None and now != said:
                problem = f"the factor is {now:g}, the config says {said:g}"
                advice = "set lora_alpha in the config; a factor of the layer's own is not saved"
                yield failure("double-scaling", f"{name}: {path}", problem, advice)
    for name, path, difference, size in layers_that_disagree(copy):
        problem = f"its output is {difference:.2g} away from the weight's that merging writes ({size:.2g} at most)"
        advice = "forward and effective must apply the same factor, once"
        yield failure("two-answers", f"{name}: {path}", problem, advice)
    yield from (
        failure("same-adapter-twice", f"{a} and {b}", "both act and are equal bit for bit: the change is applied twice",
                f"set_adapter({a!r}), or give one of them another seed")
        for a, b in twins([peft_model.adapters[n] for n in peft_model.active_adapters])
    )  # fmt: skip


def twins(adapters: Sequence[Adapter]) -> Iterator[tuple[str, str]]:
    for i, first in enumerate(adapters):
        for second in adapters[i + 1 :]:
            a, b = first.named_parameters(), second.named_parameters()
            if a and a.keys() == b.keys() and all(np.array_equal(a[n].data, b[n].data) for n in a):
                yield first.name, second.name


# -- files ---------------------------------------------------------------------------------------------------
def check_file(peft_model: PeftModel, directory: str | Path) -> Report:
    """What is wrong with a saved adapter, on the base of ``peft_model``: does all of it land, and does it act?

    Of adapters that were saved together each acts alone, with those loaded that it may build on.
    """
    from minitorch_peft.peft.saving import saved_together

    folder, copy = Path(directory), trial_copy(peft_model)
    together = saved_together(folder)
    if together is None:
        return Report(tuple(file_findings(copy, folder, "file-under-check")))
    for name in copy.adapters.keys() & set(together.names):
        copy.delete_adapter(name)
    return Report(tuple(f for name in together.names for f in file_findings(copy, folder / name, name)))


def file_findings(copy: PeftModel, directory: Path, name: str) -> Iterator[Finding]:
    """Load the adapter into a copy, where it stays."""
    try:
        copy.load_adapter(directory, name)
    except FileFormatError as error:
        yield failure("file-refused", str(directory), str(error), "what the message says, or save the adapter again")
        return
    arrays = {n: p.data for n, p in copy.adapters[name].named_parameters().items()}
    if bad := [n for n, array in arrays.items() if not np.isfinite(array).all()]:
        advice = "take an earlier checkpoint of the training"
        yield failure("not-finite", f"{directory}: {some(bad)}", "it holds values that are not finite", advice)
    elif not acts(copy, name):
        problem = "the outputs under it are the base's, bit for bit: it is saved as it started"
        advice = "save it after training, under the name of the adapter that trained"
        yield failure("file-without-effect", str(directory), problem, advice)


def acts(copy: PeftModel, name: str) -> bool:
    """Does an adapter change the base's outputs?"""
    length = min(8, copy.config.n_positions // 2)
    ids = np.arange(4 * length).reshape(4, length) % copy.config.vocab_size
    with mode_of(copy, training=False), no_grad():
        copy.set_adapter(name)
        under = copy(ids).logits.data
        with copy.disable_adapter():
            return not np.array_equal(under, copy(ids).logits.data)
