"""AdaLoRA in ``peft``'s files: ``lora_A`` (r, in), ``lora_E`` (r, 1), ``lora_B`` (out, r), without the lost ranks.

``rank_pattern`` says which of the ``init_r`` ranks a module still has, perhaps none; s = alpha / (init_r + 1e-5) is one
for all modules. GPT-2's fused ``c_attn`` holds the ranks of q, k and v beside each other: A and E stacked, B
block-diagonal. Where these are more than ``init_r``, the file's ``init_r`` is their number, and its alpha grows so that
s stays. The other way q, k and v each have all ranks of ``c_attn``, or where its B is block-diagonal their own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from minitorch_peft.formats.files import FileFormatError
from minitorch_peft.models import GPT
from minitorch_peft.peft.inject import base_module
from minitorch_peft.peft.interop import (
    CONFIG,
    MERGE,
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
from minitorch_peft.peft.lowrank_files import LowRank, column_owners, fuse, tidy, without_base_copies

if TYPE_CHECKING:
    from minitorch_peft.peft.adapter import Adapter

OWN = "minitorch_peft.adalora"
"""Metadata of files with a fused module: our own settings that the file has in another form."""
SHARED = ("tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "lora_dropout")
KINDS = {
    "init_r": int, "target_r": int, "tinit": int, "tfinal": int, "deltaT": int, "total_step": int, "rank_pattern": list,
    "beta1": int | float, "beta2": int | float, "orth_reg_weight": int | float, "lora_alpha": int | float,
    "lora_dropout": int | float, "target_modules": list | str, "exclude_modules": list | str,
    "layers_to_transform": list | int, "layers_pattern": list | str,
}  # fmt: skip
INERT = {  # peft's AdaLoRA has them from LoRA and does not look at them
    "alpha_pattern", "eva_config", "fan_in_fan_out", "init_lora_weights", "loftq_config", "megatron_core",
    "qalora_group_size", "r", "use_rslora",
}  # fmt: skip


class AdaLoraFiles:
    # -- to peft ---------------------------------------------------------------------------------------------
    def write(self, adapter: Adapter) -> AdapterFiles:
        model, config, modules = adapter.model, adapter.config, hf_modules(adapter.model.config)
        patterns = {path: pattern_left(adapter, path) for path in adapter.wrappers}
        targeted = [module for module in modules if any(path in adapter.wrappers for path in module.ours)]
        arrays: dict[str, np.ndarray] = {}
        own: dict[str, list[bool]] = {}
        for module in targeted:
            parts = [left(adapter, path) if path in adapter.wrappers else None for path in module.ours]
            A, B, _ = fuse(parts, [base_module(model, path).out_features for path in module.ours])
            arrays |= dict(zip(names(module), (A[:, 1:], A[:, :1], B), strict=True))
            own[module.name] = patterns[module.ours[0]] if len(module.ours) == 1 else [True] * len(A)
        init_r = max([config.init_r, *map(len, own.values())])
        own = {name: kept + [False] * (init_r - len(kept)) for name, kept in own.items()}
        settings = {
            "peft_type": config.peft_type, "task_type": "CAUSAL_LM", "base_model_name_or_path": None,
            "inference_mode": True, "bias": "none", "init_lora_weights": True, "modules_to_save": None,
            "target_modules": short_names([m.name for m in targeted], [m.name for m in modules]),
            "fan_in_fan_out": any(module.conv1d for module in targeted), "init_r": init_r,
            "lora_alpha": config.lora_alpha if init_r == config.init_r else tidy(config.scaling * (init_r + 1e-5)),
            "target_r": max(1, round(config.target_r * len(patterns) / len(targeted))),
            "total_step": adapter.allocator.total or no_total(config.tinit, config.tfinal),  # type: ignore[attr-defined]
            "rank_pattern": None if all(all(kept) for kept in own.values())
            else {f"{name}.lora_E": kept for name, kept in own.items()},
            **{name: getattr(config, name) for name in SHARED},
        }  # fmt: skip
        record = {"init_r": config.init_r, "lora_alpha": config.lora_alpha, "target_r": config.target_r}
        fused = any(len(module.ours) > 1 for module in targeted)
        metadata = {OWN: json.dumps(record | {"rank_pattern": patterns})} if fused else {}
        return AdapterFiles(settings, arrays, {"format": "pt"} | metadata)

    # -- from peft -------------------------------------------------------------------------------------------
    def read(self, model: GPT, files: AdapterFiles) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        settings, modules = files.settings, hf_modules(model.config)
        refuse_settings(files, {*KINDS, *INERT})
        check_kinds(files, KINDS)
        targeted = targeted_modules(model, files)
        kept = kept_ranks(files, targeted)
        given, expected = without_base_copies(model, modules, files), dict[str, tuple[int, ...]]()
        for module in targeted:
            leaves, r = [base_module(model, path) for path in module.ours], int(kept[module].sum())
            shapes = (r, leaves[0].in_features), (r, 1), (sum(leaf.out_features for leaf in leaves), r)
            expected |= dict(zip(names(module), shapes, strict=True))
        check_tensors(expected, given, files.directory / WEIGHTS)

        record = own_record(files)
        arrays: dict[str, np.ndarray] = {}
        patterns: dict[str, list[bool]] = {}
        shares: list[float] = []
        for module in targeted:
            A, E, B = (given[name] for name in names(module))
            blocks = np.split(B, np.cumsum([base_module(model, path).out_features for path in module.ours])[:-1])
            for i, (path, mine) in enumerate(zip(module.ours, ranks_of(module, blocks, record), strict=True)):
                if mine is None:
                    continue
                arrays |= {f"{path}.lora_A": A[mine], f"{path}.lora_E": E[mine], f"{path}.lora_B": blocks[i][:, mine]}
                shares.append(mine.mean() if mine.size else 1)
                positions = np.flatnonzero(kept[module])[mine]
                patterns[path] = np.isin(np.arange(len(kept[module])), positions).tolist()
        ours = [path for module in modules for path in module.ours]
        return {
            **{name: settings[name] for name in SHARED if name in settings},
            **own_settings(files, patterns, record, float(np.mean(shares))),
            "target_modules": short_names(list(patterns), ours),
        }, arrays


def names(module: HFModule) -> tuple[str, str, str]:
    """Of A, E and B in the file."""
    a, e, b = (f"{PREFIX}{module.name}.lora_{x}" for x in "AEB")
    return a, e, b


def no_total(tinit: int, tfinal: int) -> int:
    """What stands for an unknown number of steps, as ``peft`` wants one: the least that it takes."""
    return tinit + tfinal + 1


def ranks_left(adapter: Adapter, path: str) -> np.ndarray:
    """bool (r,): the ranks that a target has and that are not lost: nothing of what acts is left out."""
    kept: np.ndarray = adapter.allocator.kept[path]  # type: ignore[attr-defined]
    return kept | (adapter.wrappers[path].lora_E.data[:, 0] != 0)


def pattern_left(adapter: Adapter, path: str) -> list[bool]:
    """The same among the ``init_r`` ranks that it had at first."""
    return among_first(adapter.config, path, ranks_left(adapter, path))


def among_first(config: Any, path: str, kept: np.ndarray) -> list[bool]:
    """``kept`` of the ranks that a target has by ``config``, as those of its ``init_r`` ranks."""
    pattern = np.array((config.rank_pattern or {}).get(path, [True] * config.init_r))
    pattern[pattern] = kept
    return pattern.tolist()


def left(adapter: Adapter, path: str) -> LowRank:
    """What is left of a target. E stands before A, as its first column, since the two are put together alike."""
    layer, kept = adapter.wrappers[path], ranks_left(adapter, path)
    return LowRank(np.hstack([layer.lora_E.data, layer.lora_A.data])[kept], layer.lora_B.data[:, kept], layer.scaling)


def kept_ranks(files: AdapterFiles, targeted: list[HFModule]) -> dict[HFModule, np.ndarray]:
    """bool (init_r,) of each module: which ranks its tensors have."""
    init_r, patterns = files.settings.get("init_r", 12), files.settings.get("rank_pattern") or {}
    found = {module: patterns.get(f"{module.name}.lora_E", [True] * init_r) for module in targeted}
    if unknown := sorted(patterns.keys() - {f"{module.name}.lora_E" for module in targeted}):
        problem = f"rank_pattern names {unknown[0]}, which is no target in this model"
        raise FileFormatError(files.directory / CONFIG, problem, MERGE)
    if wrong := [m.name for m, kept in found.items() if len(kept) != init_r]:
        problem = f"rank_pattern of {wrong[0]} has {len(patterns[wrong[0] + '.lora_E'])} entries, init_r is {init_r}"
        raise FileFormatError(files.directory / CONFIG, problem, "correct it")
    return {module: np.array(kept, bool) for module, kept in found.items()}


def ranks_of(module: HFModule, blocks: list[np.ndarray], record: Mapping[str, Any]) -> list[np.ndarray | None]:
    """For each projection of a module which of its ranks it has, bool (r,); None where it is no target."""
    r = blocks[0].shape[1]
    own = {path: sum(kept) for path, kept in record.get("rank_pattern", {}).items() if path in module.ours}
    recorded = [own.get(path, 0) for path in module.ours] if own else None
    if r == 0:  # no column shows whose it is
        return [np.zeros(0, bool) if path in own or not own else None for path in module.ours]
    if (owners := column_owners(blocks, recorded)) is None:
        return [np.ones(r, bool)] * len(module.ours)
    found = [owners == i for i in range(len(module.ours))]
    return [mine if mine.any() or path in own else None for path, mine in zip(module.ours, found, strict=True)]


def own_record(files: AdapterFiles) -> dict[str, Any]:
    """Our own settings of a file that was written here and has the same s still."""
    record: dict[str, Any] = json.loads(files.metadata.get(OWN, "{}"))
    settings = files.settings
    if record and math.isclose(
        record["lora_alpha"] / (record["init_r"] + 1e-5),
        settings.get("lora_alpha", 8) / (settings.get("init_r", 12) + 1e-5),
        rel_tol=1e-6,
    ):
        return record
    return {}


def own_settings(
    files: AdapterFiles, patterns: dict[str, list[bool]], record: Mapping[str, Any], share: float
) -> dict[str, Any]:
    """What says of which ranks the targets are, in our form: as recorded, or as the file has it.

    ``share`` is the mean part of its module's ranks that a target has: its ``target_r`` is as much smaller.
    """
    settings = files.settings
    total, no = settings.get("total_step"), no_total(settings.get("tinit", 0), settings.get("tfinal", 0))
    if record and record["rank_pattern"].keys() == patterns.keys():
        patterns = record["rank_pattern"]
        found = {name: record[name] for name in ("init_r", "lora_alpha", "target_r")}
    else:
        init_r, target_r = settings.get("init_r", 12), round(settings.get("target_r", 8) * share)
        found = {
            "init_r": init_r,
            "lora_alpha": settings.get("lora_alpha", 8),
            "target_r": min(init_r, max(1, target_r)),
        }
    lost = {path: kept for path, kept in patterns.items() if not all(kept)}
    return {**found, "total_step": None if total == no else total, "rank_pattern": lost or None}
