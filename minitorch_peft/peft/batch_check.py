"""What is wrong with a batch, as far as its labels say: targets that are not there, rows without one, padding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from minitorch_peft.models.inputs import as_array
from minitorch_peft.peft.findings import Finding, failure, remark

if TYPE_CHECKING:
    from minitorch_peft.peft.model import PeftModel

IGNORED = -100


def usable_labels(peft_model: PeftModel, batch: Mapping[str, Any]) -> tuple[dict[str, Any], list[Finding]]:
    """The batch with labels that a trial can use, and what is wrong with its own."""
    ids, labels = ids_of(batch), batch.get("labels")
    if labels is None:
        advice = "labels=input_ids for language modelling: the model shifts them itself"
        return {**batch, "labels": ids}, [failure("labels-missing", "labels", "there is no loss without them", advice)]
    targets = np.atleast_2d(as_array(labels)) != IGNORED
    learnt = targets.copy()
    learnt[~after_prompts(peft_model, batch.get("adapter_names"), len(targets)), :1] = False
    if not learnt.any():
        problem = "none of them is a target, all are -100 or stand at the first position"
        advice = "give the answer's tokens their ids; a prompt that fills the rows leaves nothing to learn"
        return {**batch, "labels": ids}, [failure("labels-ignored", "labels", problem, advice)]
    return dict(batch), list(label_remarks(targets, learnt, batch.get("attention_mask")))


def after_prompts(peft_model: PeftModel, names: Any, rows: int) -> np.ndarray:
    """bool (rows,): those whose first token is a target too, as vectors of a prompt stand before it."""
    prompts = {name: a.prompt_length > 0 for name, a in peft_model.adapters.items()}
    if names is None:
        return np.full(rows, any(prompts[name] for name in peft_model.active_adapters))
    return np.array([prompts.get(name, False) for name in names], bool)


def label_remarks(targets: np.ndarray, learnt: np.ndarray, mask: Any) -> Iterator[Finding]:
    if empty := int((~learnt.any(axis=1)).sum()):
        problem = f"{empty} of {len(learnt)} rows have no target"
        yield remark("rows-without-target", "labels", problem, "cut prompts shorter, or leave these rows out")
    padding = None if mask is None else np.atleast_2d(as_array(mask)) == 0
    if padding is not None and padding.shape == targets.shape and (on := int((targets & padding).sum())):
        problem, advice = f"{on} targets are padding", "set labels to -100 where attention_mask is 0"
        yield remark("labels-on-padding", "labels", problem, advice)


def usable_classes(batch: Mapping[str, Any]) -> tuple[dict[str, Any], list[Finding]]:
    """The same of a classifier's batch, whose labels (B,) are classes."""
    rows = len(ids_of(batch))
    if batch.get("labels") is None:
        found = failure("labels-missing", "labels", "there is no loss without them", "give each row its class")
        return {**batch, "labels": np.zeros(rows, int)}, [found]
    return dict(batch), []


def ids_of(batch: Mapping[str, Any]) -> np.ndarray:
    if batch.get("input_ids") is None:
        raise ValueError(f"a batch has input_ids and labels, this one has {', '.join(batch) or 'nothing'}")
    return np.atleast_2d(as_array(batch["input_ids"]))
