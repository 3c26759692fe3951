"""A classifier's files: an adapter and the head that was trained with it, together.

``peft`` keeps the head of ``task_type="SEQ_CLS"`` as one of the ``modules_to_save``: a tensor beside the adapter's. A
classifier that pools by the mean has no counterpart there and is written in our own format. Of adapters that were saved
together each has its own folder, as without a head, and the head stands beside these folders.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minitorch_peft.formats.files import (
    FileFormatError,
    atomic_write,
    read_arrays,
    read_json,
    write_arrays,
    write_json,
)
from minitorch_peft.models import GPT, SequenceClassifier
from minitorch_peft.peft.interop import CONFIG, WEIGHTS, AdapterFiles
from minitorch_peft.peft.model import PeftModel, as_names
from minitorch_peft.peft.registry import method_of
from minitorch_peft.peft.saving import (
    HEAD,
    HEADS,
    MARKER,
    TOGETHER,
    attach_files,
    files_of,
    put,
    read_files,
    save_adapters,
    saved_together,
    write_files,
)

OURS = "classifier"  # in the native JSON, and in that of several adapters: the settings of the classifier
HEAD_FILE = "classifier.safetensors"  # the head of several adapters
MODULES = ["classifier", "score"]  # names that peft looks for, of which these models have the second


def save_classifier(
    classifier: SequenceClassifier, directory: str | Path, adapter_name: str | Sequence[str] = "default",
    format: str | None = None,
) -> str:  # fmt: skip
    """Write one adapter of ``classifier.model``, or several, and the head into ``directory``; returns the format used.

    Args:
        format: "peft", "native", or None for "peft" where it can hold them, else "native".

    Raises:
        TypeError: the classifier's model has no adapters.
        ValueError, RuntimeError: as :func:`minitorch_peft.peft.saving.save_adapter`; or "peft" and another pooling.

    >>> import tempfile
    >>> from minitorch_peft.models import GPTConfig
    >>> from minitorch_peft.peft import LoraConfig, get_peft_model
    >>> config, directory = GPTConfig(vocab_size=97, n_positions=64, n_embd=64, n_layer=3, n_head=4), tempfile.mkdtemp()
    >>> save_classifier(SequenceClassifier(get_peft_model(GPT(config), LoraConfig(r=4)), num_labels=3), directory)
    'peft'
    >>> load_classifier(GPT(config), directory).num_labels
    3
    """
    peft_model = classifier.model
    if not isinstance(peft_model, PeftModel):
        kind = type(peft_model).__name__
        raise TypeError(f"the classifier's model is a {kind} without adapters: SequenceClassifier(get_peft_model(...))")
    peft_model._known(as_names(adapter_name))
    if not isinstance(adapter_name, str):
        return save_composed(classifier, as_names(adapter_name), Path(directory), format)
    if classifier.pooling != "last":
        if format == "peft":
            raise ValueError(f"peft's files cannot hold pooling={classifier.pooling!r}: save it with format='native'")
        format = "native"
    chosen, files = files_of(peft_model, adapter_name, format)
    if chosen == "peft":
        files.settings |= {"task_type": "SEQ_CLS", "modules_to_save": MODULES}
        tokens = method_of(peft_model.adapters[adapter_name].config).shape == "tokens"
        key = HEADS[1] if tokens else HEADS[2]
    else:
        files.settings[OURS] = {"pooling": classifier.pooling}
        key = HEAD
    files.arrays[key] = classifier.score.weight.data
    write_files(files, Path(directory))
    return chosen


def save_composed(classifier: SequenceClassifier, names: Sequence[str], directory: Path, format: str | None) -> str:
    """The head beside the folders of several adapters; their list says that it belongs to them."""
    chosen = save_adapters(classifier.model, names, directory, format)
    settings = read_json(directory / TOGETHER) | {OURS: {"pooling": classifier.pooling}}
    with atomic_write(directory / HEAD_FILE) as head, atomic_write(directory / TOGETHER) as listed:
        write_arrays(head, {HEAD: classifier.score.weight.data})
        write_json(listed, settings)
    return chosen


def load_classifier(
    model: GPT, directory: str | Path, adapter_name: str = "default", is_trainable: bool = False
) -> SequenceClassifier:
    """A classifier of adapters and a head that were saved here or by ``peft``; frozen unless ``is_trainable``.

    Raises FileFormatError, with ``model`` as it was, where the files do not fit it or hold no head.
    """
    folder = Path(directory)
    if saved_together(folder):
        return load_composed(model, folder, adapter_name, is_trainable)
    files = read_files(folder)
    head, settings = taken_head(files)
    peft_model = PeftModel(model)
    with peft_model.unloaded_on_error():
        attach_files(peft_model, adapter_name, files)
        classifier = with_head(peft_model, head, settings, folder / CONFIG, folder / WEIGHTS)
        peft_model.set_adapter(adapter_name, train=adapter_name if is_trainable else ())
    classifier.score.requires_grad_(is_trainable)
    return classifier


def load_composed(model: GPT, folder: Path, adapter_name: str, is_trainable: bool) -> SequenceClassifier:
    """What :func:`save_composed` wrote."""
    settings, path = read_json(folder / TOGETHER).get(OURS), folder / HEAD_FILE
    if settings is None or not path.is_file():
        advice = f"PeftModel.from_pretrained(model, {str(folder)!r}) loads the adapters alone"
        raise FileFormatError(folder, "holds several adapters, and no head that belongs to them", advice)
    head = read_arrays(path).get(HEAD, np.zeros(()))
    if head.ndim != 2 or not len(head):
        raise FileFormatError(path, f"holds no head {HEAD} (num_labels, C)", "save the classifier again")
    peft_model = PeftModel.from_pretrained(model, folder, adapter_name, is_trainable)
    with peft_model.unloaded_on_error():
        classifier = with_head(peft_model, head, settings, folder / TOGETHER, path)
    classifier.score.requires_grad_(is_trainable)
    return classifier


def with_head(
    peft_model: PeftModel, head: np.ndarray, settings: dict[str, Any], settings_file: Path, head_file: Path
) -> SequenceClassifier:
    """A classifier with this head (num_labels, C); FileFormatError, naming the file, where it cannot be made."""
    try:
        classifier = SequenceClassifier(peft_model, len(head), **settings)
    except (TypeError, ValueError) as error:
        raise FileFormatError(settings_file, f"{OURS}: {error}", "correct it") from error
    put({HEAD: classifier.score.weight.data}, {HEAD: head}, head_file)
    return classifier


def taken_head(files: AdapterFiles) -> tuple[np.ndarray, dict[str, Any]]:
    """The head (num_labels, C) and the classifier's settings, taken out of ``files``: what is left is an adapter's."""
    found = [key for key in HEADS if key in files.arrays]
    if len(found) != 1 or not len(files.arrays[found[0]]):
        problem, known = f"holds {len(found)} heads of a classifier", " or ".join(HEADS)
        raise FileFormatError(files.directory / WEIGHTS, problem, f"expected one tensor {known}")
    if MARKER in files.settings:
        return files.arrays.pop(found[0]), files.settings.pop(OURS, {})
    if set(files.settings.get("modules_to_save") or ()) <= set(MODULES):
        files.settings.pop("modules_to_save", None)
    return files.arrays.pop(found[0]), {}
