"""``peft``'s files: how it names modules, which of its settings mean something here, and how tensors are checked.

``peft`` adapts the modules of ``transformers``. Their names follow from the tables in ``formats.families``; for
Llama a module there is a module here, for GPT-2 one fused ``c_attn`` stands for our q, k and v projections.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import numpy as np

from minitorch_peft.formats.families import expand
from minitorch_peft.formats.files import FileFormatError
from minitorch_peft.formats.hf_config import choose_family
from minitorch_peft.models import GPT, GPTConfig
from minitorch_peft.peft.inject import base_module
from minitorch_peft.peft.patterns import regex

if TYPE_CHECKING:
    from minitorch_peft.peft.adapter import Adapter

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
MERGE = "merge the adapter with peft (merge_and_unload), save that model and load it with GPT.from_pretrained"
V = TypeVar("V", bound=Hashable)


@dataclass
class AdapterFiles:
    """What an adapter's directory holds: the JSON, the tensors and the text beside them."""

    settings: dict[str, Any]
    arrays: dict[str, np.ndarray]
    metadata: dict[str, str] = field(default_factory=dict)
    directory: Path = field(default_factory=Path)


class PeftFiles(Protocol):
    """A method's translation to and from ``peft``'s files."""

    def write(self, adapter: Adapter) -> AdapterFiles:
        """ValueError where the adapter has no counterpart in ``peft``."""

    def read(self, model: GPT, files: AdapterFiles) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Our config's settings, and name to array as in ``Adapter.named_parameters``."""


class HFModule(NamedTuple):
    """A weight-holding module of ``transformers`` and the paths of ours that it stands for, in the order of its rows.

    ``conv1d``: its weight is stored (in, out).
    """

    name: str
    ours: tuple[str, ...]
    conv1d: bool = False


def hf_modules(config: GPTConfig) -> list[HFModule]:
    """All of them, for a model of this config; ValueError where it is of no Hugging Face family.

    >>> for m in hf_modules(GPTConfig(vocab_size=7, n_positions=8, n_embd=4, n_layer=1, n_head=2))[2:4]:
    ...     print(m.name, *m.ours)
    transformer.h.0.attn.c_attn blocks.0.attn.q_proj blocks.0.attn.k_proj blocks.0.attn.v_proj
    transformer.h.0.attn.c_proj blocks.0.attn.o_proj
    """
    fields = config.to_dict()
    rows = [row for row in expand(choose_family(fields), fields) if len(row.shape) == 2]
    modules = [HFModule(_module(r.theirs), tuple(map(_module, r.ours)), r.transposed) for r in rows]
    return [*modules, HFModule("lm_head", ("lm_head",))] if config.tie_word_embeddings else modules


def _module(weight: str) -> str:
    return weight.removesuffix(".weight")


# -- settings ------------------------------------------------------------------------------------------------
INERT = {
    "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision",
    "runtime_config", "task_type",
}  # fmt: skip
"""Settings of any method that do not change what the adapter computes."""


def refuse_settings(files: AdapterFiles, understood: Iterable[str]) -> None:
    """FileFormatError for a setting that is switched on and that neither we nor ``INERT`` know."""
    settings = {k: v for k, v in files.settings.items() if k not in INERT and k not in set(understood)}
    if on := {k: v for k, v in settings.items() if v and v != "none"}:
        listed = ", ".join(f"{key}={value!r}" for key, value in on.items())
        raise FileFormatError(files.directory / CONFIG, f"asks for what has no counterpart here: {listed}", MERGE)


def check_kinds(files: AdapterFiles, kinds: Mapping[str, type | UnionType]) -> None:
    """FileFormatError where a setting is of another type; for a dict, its values are looked at."""
    for key, kind in kinds.items():
        value = files.settings.get(key)
        for part in value.values() if isinstance(value, dict) else [value]:
            if part is not None and not isinstance(part, kind):
                raise FileFormatError(files.directory / CONFIG, f"{key}={value!r} is not understood", "correct it")


def is_target(settings: Mapping[str, Any], name: str, takes_ids: bool) -> bool:
    """Does an adapter's JSON target the module ``name``? As ``peft`` decides it."""
    targets, excluded = settings["target_modules"], settings.get("exclude_modules") or []
    if _names(excluded, name):
        return False
    if targets == "all-linear":
        return not takes_ids and name != "lm_head"
    layers = settings.get("layers_to_transform")
    if isinstance(targets, str) or layers is None or layers == []:
        return _names(targets, name)
    if name in targets:
        return True  # peft looks at the layers only where the entry is a suffix
    patterns = settings.get("layers_pattern") or [r"[^.]*"]
    patterns = [patterns] if isinstance(patterns, str) else patterns
    found = next((m for p in patterns if (m := regex(rf"(?:^|.*?\.){p}\.(\d+)\.").match(name))), None)
    wanted = [layers] if isinstance(layers, int) else layers
    return _names(targets, name) and found is not None and int(found[1]) in wanted


def targeted_modules(model: GPT, files: AdapterFiles) -> list[HFModule]:
    """The modules that a file's JSON targets; FileFormatError where these are none."""
    settings, path, modules = files.settings, files.directory / CONFIG, hf_modules(model.config)
    if not settings.get("target_modules"):
        raise FileFormatError(path, "has no target_modules", "write the list of adapted modules into it")
    if found := [m for m in modules if is_target(settings, m.name, base_module(model, m.ours[0]).takes_ids)]:
        return found
    names = [module.name for module in modules]
    problem = f"target_modules={settings['target_modules']} names no module of this model"
    raise FileFormatError(path, problem, f"its modules are: {', '.join(short_names(names, names))}")


def _names(pattern: str | Sequence[str], name: str) -> bool:
    if isinstance(pattern, str):
        return regex(pattern).fullmatch(name) is not None
    return any(name == entry or name.endswith(f".{entry}") for entry in pattern)


def short_names(chosen: Sequence[str], everything: Iterable[str]) -> list[str]:
    """The shortest list of suffixes that names exactly ``chosen`` among ``everything``: what a person would write."""
    everything = set(everything)
    for depth in (1, 2):
        names = [_suffix(name, depth) for name in chosen]
        if {e for e in everything if _names(names, e)} == set(chosen):
            return list(dict.fromkeys(names))
    return list(chosen)


def _suffix(name: str, depth: int) -> str:
    """Its last ``depth`` segments, if they stand below a layer's number."""
    below = re.split(r"\.\d+\.", name)[-1].split(".")
    return name if name == ".".join(below) or len(below) < depth else ".".join(below[-depth:])


def common(values: Mapping[str, V]) -> tuple[V, dict[str, V]]:
    """The most frequent value, and those that differ, by name or suffix: ``r`` and ``rank_pattern``.

    >>> common({"h.0.c_fc": 4, "h.0.c_attn": 12, "h.1.c_fc": 4, "h.1.c_attn": 12, "lm_head": 4})
    (4, {'c_attn': 12})
    """
    most = Counter(values.values()).most_common(1)[0][0]
    others = {value: [n for n, v in values.items() if v == value] for value in values.values() if value != most}
    return most, {name: value for value, names in others.items() for name in short_names(names, values)}


# -- tensors -------------------------------------------------------------------------------------------------
def check_tensors(expected: Mapping[str, tuple[int, ...]], given: Mapping[str, np.ndarray], path: str | Path) -> None:
    """FileFormatError, naming both sides, unless the file has exactly the expected tensors in their shapes."""
    missing, unexpected = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
    if missing or unexpected:
        problem = f"the model expects {some(missing)}, the file has instead {some(unexpected)}"
        raise FileFormatError(path, problem, "it was saved from another model or method, or with other targets")
    for name, shape in expected.items():
        if given[name].shape != shape:
            problem = f"{name} has shape {given[name].shape}, the model and {CONFIG} make it {shape}"
            raise FileFormatError(path, problem, "load it into the model that it was trained on")


def some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (", ".join(names[:3]) + more) if names else "nothing"
