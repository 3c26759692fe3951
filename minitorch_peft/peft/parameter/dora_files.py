"""DoRA in ``peft``'s files: LoRA's tensors, and the lengths m of each module's rows.

A length is one row's own, so of a module that ``transformers`` fuses m is that of its parts behind each other; a part
without an adapter has the lengths of its weight, which change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from minitorch_peft.formats.files import FileFormatError
from minitorch_peft.models import GPT
from minitorch_peft.peft.inject import base_module
from minitorch_peft.peft.interop import PREFIX, WEIGHTS, AdapterFiles, check_tensors, hf_modules
from minitorch_peft.peft.lowrank_files import LowRankFiles

if TYPE_CHECKING:
    from minitorch_peft.peft.adapter import Adapter

MAGNITUDE = "lora_magnitude_vector"


@dataclass(frozen=True)
class DoraFiles(LowRankFiles):
    """``peft``'s translation for DoRA."""

    more: tuple[str, ...] = ("use_dora",)

    def write(self, adapter: Adapter) -> AdapterFiles:
        files, model = super().write(adapter), adapter.model
        for module in hf_modules(model.config):
            layers = [adapter.wrappers.get(path) for path in module.ours]
            if all(layer is None for layer in layers):
                continue
            parts = [
                lengths_of(model, path) if layer is None else layer.lora_magnitude_vector.data
                for path, layer in zip(module.ours, layers, strict=True)
            ]
            files.arrays[f"{PREFIX}{module.name}.{MAGNITUDE}"] = np.concatenate(parts).astype(adapter.dtype)
        return AdapterFiles(files.settings | {"use_dora": True}, files.arrays, files.metadata)

    def read(self, model: GPT, files: AdapterFiles) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        given = {name: array for name, array in files.arrays.items() if name.endswith(f".{MAGNITUDE}")}
        rest = {name: array for name, array in files.arrays.items() if name not in given}
        settings, arrays = super().read(model, AdapterFiles(files.settings, rest, files.metadata, files.directory))
        adapted = {name.removesuffix(".lora_A") for name in arrays if name.endswith(".lora_A")}
        modules = [m for m in hf_modules(model.config) if adapted & set(m.ours)]
        widths = {m: [base_module(model, path).out_features for path in m.ours] for m in modules}
        names = {m: f"{PREFIX}{m.name}.{MAGNITUDE}" for m in modules}
        check_tensors({names[m]: (sum(widths[m]),) for m in modules}, given, files.directory / WEIGHTS)
        for m in modules:
            parts = np.split(given[names[m]], np.cumsum(widths[m])[:-1])
            for path, part in zip(m.ours, parts, strict=True):
                if path in adapted:
                    arrays[f"{path}.{MAGNITUDE}"] = part
                elif not np.allclose(part, lengths_of(model, path), rtol=1e-4):
                    problem = f"{m.name} changes the lengths of {path}, whose part of lora_B is zero"
                    raise FileFormatError(files.directory / WEIGHTS, problem, "train it further, or merge it with peft")
        return settings | {"use_dora": True}, arrays


def lengths_of(model: GPT, path: str) -> np.ndarray:
    """‖w_i‖ of the rows of the base's weight (out,)."""
    return np.linalg.norm(base_module(model, path).dense_weight().astype(np.float64), axis=1)
