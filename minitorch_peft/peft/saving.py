"""Adapters to files and back, in two formats.

``"peft"``: what ``peft`` reads and writes, for methods that it has on models of a Hugging Face family.
``"native"``: the same two files with our names, for every method; the JSON says so under ``"minitorch_peft"``, the
version of the format, so that loading needs no flag. An adapter's two files are written whole or not at all; of
several adapters none is written where one of them cannot be.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from minitorch_peft.formats.files import (
    FileFormatError,
    atomic_write,
    read_arrays,
    read_json,
    read_metadata,
    write_arrays,
    write_json,
)
from minitorch_peft.models import GPTConfig
from minitorch_peft.peft.adapter import Adapter
from minitorch_peft.peft.config import PeftConfig
from minitorch_peft.peft.interop import CONFIG, WEIGHTS, AdapterFiles, check_tensors, hf_modules
from minitorch_peft.peft.registry import METHODS, Method, method_named, method_of, method_of_settings

if TYPE_CHECKING:
    from minitorch_peft.peft.model import PeftModel

TOGETHER = "adapters.json"
MARKER, VERSION = "minitorch_peft", 1
FORMATS = ("native", "peft")
OWN = "minitorch_peft.settings"
"""Metadata of files in ``peft``'s format: what our config says that ``peft``'s JSON has no word for, so that training
goes on as it was. ``peft`` passes over it."""
IN_THE_TENSORS = {
    "exclude_modules", "init_ids", "init_text", "layers_to_transform", "prompt_tuning_init_ids",
    "prompt_tuning_init_text", "tokenizer_name_or_path",
}  # fmt: skip
"""Settings that the tensors answer: which layers there are, and what a start has become."""
HEAD = "score.weight"
HEADS = (HEAD, f"base_model.{HEAD}", f"base_model.model.{HEAD}")
"""A classifier's head beside an adapter: our name, and ``peft``'s for methods of virtual tokens and for all others."""


def save_adapter(peft_model: PeftModel, adapter_name: str, directory: str | Path, format: str | None = None) -> str:
    """Write one adapter into ``directory``, which is made where it does not exist; returns the format used.

    Args:
        format: "peft", "native", or None for "peft" where ``peft`` has the method and knows the model, else "native".

    Raises:
        ValueError: ``peft`` has no such method or model, or the adapter has no parameters.
        RuntimeError: the adapter is merged.

    >>> import tempfile
    >>> from minitorch_peft.models import GPT, GPTConfig
    >>> from minitorch_peft.peft import LoraConfig, PeftModel, get_peft_model
    >>> config, directory = GPTConfig(vocab_size=97, n_positions=64, n_embd=64, n_layer=3, n_head=4), tempfile.mkdtemp()
    >>> get_peft_model(GPT(config), LoraConfig(r=4)).save_pretrained(directory)
    'peft'
    >>> PeftModel.from_pretrained(GPT(config), directory).adapters["default"].config.target_modules
    ['q_proj', 'v_proj']
    """
    chosen, files = files_of(peft_model, adapter_name, format)
    write_files(files, Path(directory))
    return chosen


def files_of(peft_model: PeftModel, adapter_name: str, format: str | None) -> tuple[str, AdapterFiles]:
    """The format that :func:`save_adapter` uses, and what it writes."""
    adapter = peft_model.adapters[adapter_name]
    if adapter.merged:
        raise RuntimeError("cannot save an adapter while it is merged: unmerge_adapter() first")
    if format not in (None, *FORMATS):
        raise ValueError(f"unknown format {format!r}: expected {' or '.join(map(repr, FORMATS))}, or None to choose")
    problem = no_peft_format(adapter)
    if format == "peft" and problem is not None:
        raise ValueError(f"{problem}: save it with format='native'")
    chosen = format or ("peft" if problem is None else "native")
    files = to_peft(adapter) if chosen == "peft" else to_native(adapter)
    if not files.arrays:
        raise ValueError(f"adapter {adapter_name!r} has no parameters: there is nothing to save")
    return chosen, files


def write_files(files: AdapterFiles, directory: Path) -> None:
    """One adapter into a folder; if several were saved together there, it is theirs no longer."""
    write_whole({directory: files})
    (directory / TOGETHER).unlink(missing_ok=True)


def write_whole(adapters: Mapping[Path, AdapterFiles]) -> None:
    # all are complete before the first takes its place: a full disk leaves the adapters that were there
    with ExitStack() as stack:
        for directory, files in adapters.items():
            directory.mkdir(parents=True, exist_ok=True)
            config = stack.enter_context(atomic_write(directory / CONFIG))
            weights = stack.enter_context(atomic_write(directory / WEIGHTS))
            write_json(config, files.settings)
            write_arrays(weights, files.arrays, files.metadata)


class Together(NamedTuple):
    """Adapters of one folder: in the order in which they stand around each other; those that act, and that train."""

    names: tuple[str, ...]
    active: tuple[str, ...]
    trained: tuple[str, ...]


def save_adapters(peft_model: PeftModel, names: Sequence[str], directory: Path, format: str | None) -> str:
    """Write several adapters, each into ``directory/<name>``; "peft" if all are in ``peft``'s format."""
    ordered = [name for name in peft_model.adapters if name in names]  # as they stand around each other
    ordered.sort(key=lambda name: bool(method_of(peft_model.adapters[name].config).companions))  # after what they need
    files = {name: files_of(peft_model, name, format) for name in ordered}
    write_whole({directory / name: of_one for name, (_, of_one) in files.items()})
    active = [name for name in ordered if name in peft_model.active_adapters]
    trained = [a.name for a in peft_model.trained_adapters() if a.name in active]
    write_json(directory / TOGETHER, {"adapters": ordered, "active": active, "trained": trained})
    return "peft" if {format for format, _ in files.values()} == {"peft"} else "native"


def saved_together(directory: Path) -> Together | None:
    """What :func:`save_adapters` wrote there; None where it did not."""
    if not (directory / TOGETHER).is_file():
        return None
    stored = read_json(directory / TOGETHER)
    names, active = stored.get("adapters"), stored.get("active")
    trained = stored.get("trained", active)  # older files do not say
    match names, active, trained:
        case [_, *_], list(), list() if set(trained) <= set(active) <= set(names):
            return Together(tuple(names), tuple(active), tuple(trained))
    raise FileFormatError(directory / TOGETHER, "does not list adapters and those that act", "save them again")


def no_peft_format(adapter: Adapter) -> str | None:
    """Why an adapter cannot be written as ``peft`` would; None where it can."""
    method = method_of(adapter.config)
    if method.peft_files is None:
        return f"peft's files cannot hold the method {method.name!r}"
    return no_family(adapter.model.config)


def no_family(config: GPTConfig) -> str | None:
    """Why a model has no names in ``transformers``; None where it has."""
    try:
        hf_modules(config)
    except ValueError as error:
        return str(error)
    return None


def to_peft(adapter: Adapter) -> AdapterFiles:
    translation = method_of(adapter.config).peft_files
    assert translation is not None
    files = translation.write(adapter)
    if own := beside_peft(adapter.config, files.settings):
        files.metadata[OWN] = json.dumps(own, sort_keys=True)
    return files


def beside_peft(config: PeftConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What ``peft``'s JSON does not say of a config: settings that are not at their default, and the method's name."""
    said, have = IN_THE_TENSORS | settings.keys(), config.to_dict()
    own = {f.name: have[f.name] for f in fields(config) if f.name not in said and have[f.name] != f.default}
    return own if settings["peft_type"] == config.peft_type else {"peft_type": config.peft_type, **own}


def to_native(adapter: Adapter) -> AdapterFiles:
    return AdapterFiles({MARKER: VERSION, **adapter.config.to_dict()}, adapter.stored())


def load_adapter(peft_model: PeftModel, adapter_name: str, directory: str | Path) -> None:
    """Attach the adapter of a directory under ``adapter_name``, not active yet.

    Every tensor of the file must land, and every tensor of the adapter must be in the file.

    Raises:
        FileFormatError: a file is missing, damaged or empty, the method is unknown, or file and model do not agree.
            The model is then as it was.
    """
    files = read_files(Path(directory))
    if heads := sorted(files.arrays.keys() & set(HEADS)):
        problem = f"holds a classifier's head beside the adapter ({heads[0]})"
        raise FileFormatError(files.directory, problem, "load both with load_classifier(model, directory)")
    attach_files(peft_model, adapter_name, files)


def attach_files(peft_model: PeftModel, adapter_name: str, files: AdapterFiles) -> None:
    """:func:`load_adapter` of what was read already."""
    if MARKER in files.settings:
        config, arrays = from_native(files)
    else:
        config, arrays = from_peft(peft_model, files)
    try:
        peft_model.add_adapter(adapter_name, config)
    except (ValueError, TypeError) as error:
        raise FileFormatError(
            files.directory, f"does not fit this model: {error}", "load it into the model that it was trained on"
        ) from error
    try:
        fill(peft_model.adapters[adapter_name], arrays, files.directory / WEIGHTS)
    except FileFormatError:
        peft_model.delete_adapter(adapter_name)
        raise


def read_files(directory: Path) -> AdapterFiles:
    if together := saved_together(directory):
        problem = f"holds several adapters, saved together: {', '.join(together.names)}"
        advice = f"PeftModel.from_pretrained(model, {str(directory)!r}) loads them; one alone is in its sub-folder"
        raise FileFormatError(directory, problem, advice)
    settings, path = read_json(directory / CONFIG), directory / WEIGHTS
    if not path.is_file():
        found = ", ".join(sorted(f.name for f in directory.iterdir()))
        raise FileFormatError(path, f"no such file (found {found})", "save the adapter as safetensors")
    arrays = read_arrays(path)
    if not arrays:
        raise FileFormatError(path, "holds no tensors", "the adapter was empty when it was saved: train it again")
    return AdapterFiles(settings, arrays, read_metadata(path), directory)


def from_native(files: AdapterFiles) -> tuple[PeftConfig, dict[str, np.ndarray]]:
    settings = {key: value for key, value in files.settings.items() if key != MARKER}
    if files.settings[MARKER] != VERSION:
        problem = f"is of version {files.settings[MARKER]!r} of this format, known is {VERSION}"
        raise FileFormatError(files.directory / CONFIG, problem, "load it with the release that saved it")
    return config_of(method_of_file(files), settings, files), files.arrays


def from_peft(peft_model: PeftModel, files: AdapterFiles) -> tuple[PeftConfig, dict[str, np.ndarray]]:
    method = method_of_file(files)
    if method.peft_files is None:
        have = ", ".join(m.config.peft_type for m in METHODS.values() if m.peft_files is not None)
        problem = f"is an adapter of peft_type {method.config.peft_type!r} in peft's format"
        raise FileFormatError(files.directory / CONFIG, problem, f"of peft's files these can be read: {have}")
    if reason := no_family(peft_model.config):
        problem = f"names modules as transformers does, but {reason}"
        raise FileFormatError(files.directory / CONFIG, problem, "save the adapter in the native format")
    try:
        settings, arrays = method.peft_files.read(peft_model.base_model, files)
    except FileFormatError:
        raise
    except ValueError as error:  # a pattern that is no regex
        raise FileFormatError(files.directory / CONFIG, f"cannot be read: {error}", "correct it") from error
    method, own = own_settings(method, files)
    return config_of(method, own | settings, files), arrays


def own_settings(method: Method, files: AdapterFiles) -> tuple[Method, dict[str, Any]]:
    """The method and the settings that :func:`beside_peft` kept; ``method`` is the one of ``peft``'s JSON."""
    if OWN not in files.metadata:
        return method, {}
    try:
        own = dict(json.loads(files.metadata[OWN]))
        found = method_named(own.pop("peft_type")) if "peft_type" in own else method
    except (TypeError, ValueError) as error:
        raise FileFormatError(files.directory / WEIGHTS, f"metadata {OWN}: {error}", "save it again") from error
    if not issubclass(found.config, method.config):
        problem = f"is of {found.config.peft_type}, {CONFIG} of {method.config.peft_type}"
        raise FileFormatError(files.directory / WEIGHTS, problem, "these two files do not belong together")
    return found, own


def method_of_file(files: AdapterFiles) -> Method:
    try:
        return method_of_settings(files.settings)
    except ValueError as error:
        raise FileFormatError(files.directory / CONFIG, str(error), "correct its peft_type") from None


def config_of(method: Method, settings: dict[str, Any], files: AdapterFiles) -> PeftConfig:
    try:
        return method.config.from_dict(settings)
    except (ValueError, TypeError) as error:
        raise FileFormatError(files.directory / CONFIG, f"holds no such config: {error}", "correct it") from error


def fill(adapter: Adapter, arrays: dict[str, np.ndarray], path: Path) -> None:
    """Put a file's arrays into the adapter's parameters and frozen arrays, all of them or none."""
    try:
        arrays = adapter.unpacked(arrays)
    except ValueError as error:
        raise FileFormatError(path, str(error), "it is damaged, or of another model") from error
    parameters = adapter.named_parameters()
    put({name: p.data for name, p in parameters.items()} | adapter.frozen(), arrays, path)
    for p in parameters.values():
        p.version.count += 1


def put(own: Mapping[str, np.ndarray], arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Copy a file's arrays into those of the same names; or FileFormatError, with nothing changed."""
    check_tensors({name: array.shape for name, array in own.items()}, arrays, path)
    for name, array in own.items():
        if arrays[name].dtype.kind != "f" or not np.can_cast(arrays[name].dtype, array.dtype):
            problem = f"{name} is {arrays[name].dtype}, the model {array.dtype}"
            raise FileFormatError(path, problem, "values would be lost: save the adapter in the model's dtype")
    for name, array in own.items():
        array[...] = arrays[name]
