"""IA3 in ``peft``'s files: one vector ``ia3_l`` for each module, (out, 1) or, of a feedforward module, (1, in).

GPT-2's fused ``c_attn`` has one vector for q, k and v. Those that are not adapted have ones in it, which is exact; the
other way each takes its third, and one that is all ones is left out. A feedforward ``c_attn`` scales the input that
the three share, so all three must scale it alike.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from minitorch_peft.formats.files import FileFormatError
from minitorch_peft.models import GPT
from minitorch_peft.peft.inject import base_module
from minitorch_peft.peft.interop import (
    CONFIG,
    PREFIX,
    WEIGHTS,
    AdapterFiles,
    HFModule,
    check_kinds,
    check_tensors,
    hf_modules,
    refuse_settings,
    short_names,
    targeted_modules,
)
from minitorch_peft.peft.patterns import regex

if TYPE_CHECKING:
    from minitorch_peft.peft.adapter import Adapter

PARTS = "minitorch_peft.parts"
"""Metadata: which projections of a fused module are adapted, where its vector does not show it (ones that stayed)."""
UNDERSTOOD = {"exclude_modules", "feedforward_modules", "init_ia3_weights", "target_modules"}
KINDS = {"target_modules": list | str, "exclude_modules": list | str, "feedforward_modules": list | str}


class IA3Files:
    # -- to peft ---------------------------------------------------------------------------------------------
    def write(self, adapter: Adapter) -> AdapterFiles:
        modules, layers, model = hf_modules(adapter.model.config), adapter.wrappers, adapter.model
        arrays: dict[str, np.ndarray] = {}
        inner, parts = {}, {}
        for module in [m for m in modules if any(path in layers for path in m.ours)]:
            have = [path for path in module.ours if path in layers]
            inner[module.name] = any(layers[path].feedforward for path in have)
            arrays[key(module)] = join(module, layers, [base_module(model, path).out_features for path in module.ours])
            if have != adapted(module, arrays[key(module)], None):
                parts[module.name] = have
        targets = short_names(list(inner), [module.name for module in modules])
        ends = {target: {inner[name] for name in inner if name.endswith(target)} for target in targets}
        if any(len(kinds) > 1 for kinds in ends.values()):  # a name of both kinds of modules
            targets, ends = list(inner), {name: {is_inner} for name, is_inner in inner.items()}
        settings = {
            "peft_type": adapter.config.peft_type, "task_type": "CAUSAL_LM", "base_model_name_or_path": None,
            "inference_mode": True, "modules_to_save": None, "init_ia3_weights": True, "target_modules": targets,
            "feedforward_modules": [target for target in targets if ends[target] == {True}],
            "fan_in_fan_out": any(module.conv1d for module in modules if module.name in inner),
        }  # fmt: skip
        return AdapterFiles(settings, arrays, {"format": "pt"} | ({PARTS: json.dumps(parts)} if parts else {}))

    # -- from peft -------------------------------------------------------------------------------------------
    def read(self, model: GPT, files: AdapterFiles) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        refuse_settings(files, UNDERSTOOD | {"fan_in_fan_out"})
        check_kinds(files, KINDS)
        settings, modules = files.settings, hf_modules(model.config)
        if settings.get("feedforward_modules") is None:
            advice = "write the list of such modules into it"
            raise FileFormatError(files.directory / CONFIG, "has no feedforward_modules", advice)
        kinds = {
            module: is_feedforward(settings["feedforward_modules"], module.name)
            for module in targeted_modules(model, files)
        }
        leaves = {module: [base_module(model, path) for path in module.ours] for module in kinds}
        shapes = {
            module: (1, leaves[module][0].in_features) if inner else (sum(x.out_features for x in leaves[module]), 1)
            for module, inner in kinds.items()
        }
        check_tensors({key(m): shape for m, shape in shapes.items()}, files.arrays, files.directory / WEIGHTS)
        recorded = json.loads(files.metadata.get(PARTS, "{}"))
        arrays: dict[str, np.ndarray] = {}
        for module, inner in kinds.items():
            whole, widths = files.arrays[key(module)], [x.out_features for x in leaves[module]]
            thirds = [whole] * len(widths) if inner else np.split(whole, np.cumsum(widths)[:-1])
            have = adapted(module, whole, recorded.get(module.name))
            arrays |= {f"{p}.ia3_l": third for p, third in zip(module.ours, thirds, strict=True) if p in have}
        ours = [path for module in modules for path in module.ours]
        paths = [name.removesuffix(".ia3_l") for name in arrays]
        of_input = [path for module, inner in kinds.items() if inner for path in module.ours if path in paths]
        return {
            "target_modules": short_names(paths, ours),
            "feedforward_modules": short_names(of_input, ours) if of_input else [],
        }, arrays


def key(module: HFModule) -> str:
    return f"{PREFIX}{module.name}.ia3_l"


def join(module: HFModule, layers: Mapping[str, Any], widths: Sequence[int]) -> np.ndarray:
    """The vector of a module, of those of the projections it stands for."""
    have = [layers[path] for path in module.ours if path in layers]
    if not any(layer.feedforward for layer in have):
        one = np.ones((1, 1), have[0].ia3_l.dtype)
        vectors = [
            layers[path].ia3_l.data if path in layers else one.repeat(width, 0)
            for path, width in zip(module.ours, widths, strict=True)
        ]
        return np.concatenate(vectors)
    first = have[0].ia3_l.data
    alike = all(layer.feedforward and np.array_equal(layer.ia3_l.data, first) for layer in have)
    if len(have) < len(widths) or not alike:
        raise ValueError(
            f"{', '.join(module.ours)} are one module {module.name} in peft, whose input has one scaling: it cannot "
            "hold scalings that differ or stand on some of them only. Save it with format='native', or merge it"
        )
    return first


def adapted(module: HFModule, whole: np.ndarray, recorded: list[str] | None) -> list[str]:
    """The projections that a module's vector adapts: those ``recorded``, or those whose part is not all ones."""
    if len(module.ours) == 1 or whole.shape[0] == 1:
        return list(module.ours)
    parts = np.split(whole, len(module.ours))
    changed = [path for path, part in zip(module.ours, parts, strict=True) if (part != 1).any()]
    if recorded is not None and set(changed) <= set(recorded) <= set(module.ours):
        return [path for path in module.ours if path in recorded]
    return changed or list(module.ours)


def is_feedforward(names: str | Sequence[str], module: str) -> bool:
    """As ``peft`` decides it: the end of the module's name, not only whole segments of it."""
    return regex(names).fullmatch(module) is not None if isinstance(names, str) else module.endswith(tuple(names))
