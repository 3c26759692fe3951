"""VeRA in ``peft``'s files: the two vectors of each module, and the shared A and B if they are saved.

Of GPT-2's fused ``c_attn`` an adapter in ``peft`` has one λ_d, our q, k and v one each. Where those are equal (and
λ_b of a projection that is no target is zero) it is a renaming. Else, with A stacked three times and B cut into bands,

    [q k v] = λ_b ∘ ((λ_d ∘ (x A'ᵀ)) B'ᵀ),   A' = [A; A; A],   B' = diag(B_q, B_k, B_v),   λ_d = [λ_q, λ_k, λ_v],

exactly, at three times the rank; other modules repeat their λ_d, so that each row of B' meets it once. That needs
the file to hold A' and B'. The other way q, k and v all get λ_d, and their third of λ_b.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minitorch_peft.models import GPT
from minitorch_peft.peft.inject import base_module
from minitorch_peft.peft.interop import (
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

A_NAME, B_NAME = "base_model.vera_A", "base_model.vera_B"
OURS = "minitorch_peft.vera"
"""Metadata: our targets, and how many times A stands in A'."""
UNDERSTOOD = {
    "d_initial", "exclude_modules", "fan_in_fan_out", "init_weights", "layers_pattern", "layers_to_transform",
    "projection_prng_key", "r", "save_projection", "target_modules", "vera_dropout",
}  # fmt: skip
KINDS = {
    "r": int, "projection_prng_key": int, "save_projection": bool, "vera_dropout": int | float,
    "d_initial": int | float, "target_modules": list | str, "layers_to_transform": list | int,
    "layers_pattern": list | str, "exclude_modules": list | str,
}  # fmt: skip


class VeraFiles:
    """``peft``'s translation for VeRA."""

    # -- to peft ---------------------------------------------------------------------------------------------
    def write(self, adapter: Any) -> AdapterFiles:
        config, model, wrappers = adapter.config, adapter.model, adapter.wrappers
        modules = hf_modules(model.config)
        targeted = [m for m in modules if any(path in wrappers for path in m.ours)]
        times = 1 if all(alike(wrappers, m) for m in targeted) else max(len(m.ours) for m in targeted)
        if times > 1 and not config.save_projection:
            raise ValueError(
                "the projections of a fused module have different λ_d, which peft's file can hold only together with "
                "the matrices: train with save_projection=True, or save it with format='native'"
            )
        arrays: dict[str, np.ndarray] = {}
        for module in targeted:
            arrays |= dict(zip(names(module), vectors(model, wrappers, module, times), strict=True))
        if config.save_projection:
            A, B = adapter.projection.A, adapter.projection.B
            arrays |= {A_NAME: np.tile(A, (times, 1)), B_NAME: banded(B, model, targeted, times)}
        settings = {
            "peft_type": "VERA", "task_type": "CAUSAL_LM", "base_model_name_or_path": None, "inference_mode": True,
            "bias": "none", "init_weights": True, "modules_to_save": None, "r": config.r * times,
            "target_modules": short_names([m.name for m in targeted], [m.name for m in modules]),
            "fan_in_fan_out": any(m.conv1d for m in targeted), "projection_prng_key": config.projection_prng_key,
            "save_projection": config.save_projection, "vera_dropout": config.vera_dropout,
            "d_initial": config.d_initial,
        }  # fmt: skip
        ours = {"targets": list(wrappers), "times": times}
        return AdapterFiles(settings, arrays, {"format": "pt", OURS: json.dumps(ours)})

    # -- from peft -------------------------------------------------------------------------------------------
    def read(self, model: GPT, files: AdapterFiles) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        settings, modules = files.settings, hf_modules(model.config)
        targeted = targets_of(model, files)
        saved, given = settings.get("save_projection", True), checked(model, targeted, files)
        ours = json.loads(files.metadata.get(OURS, "{}"))
        targets = ours.get("targets") or [path for m in targeted for path in m.ours]
        times = ours.get("times", 1)
        arrays: dict[str, np.ndarray] = {}
        for module in targeted:
            b, d = (given[name] for name in names(module))
            bands = np.split(d, times) if times > 1 else [d] * len(module.ours)
            parts = np.split(b, np.cumsum(widths(model, module))[:-1])
            for path, part, band in zip(module.ours, parts, bands, strict=False):
                if path in targets:
                    arrays |= {f"{path}.vera_lambda_b": part, f"{path}.vera_lambda_d": band}
        r = settings.get("r", 256) // times
        if saved:
            arrays |= {"vera_A": given[A_NAME][:r], "vera_B": np.sum(np.split(given[B_NAME], times, axis=1), axis=0)}
        return {
            "r": r, "target_modules": short_names(targets, [path for m in modules for path in m.ours]),
            "save_projection": saved, "projection_prng_key": settings.get("projection_prng_key", 0),
            "vera_dropout": settings.get("vera_dropout", 0.0), "d_initial": settings.get("d_initial", 0.1),
        }, arrays  # fmt: skip


# -- to peft -------------------------------------------------------------------------------------------------
def names(module: HFModule) -> tuple[str, str]:
    """Of λ_b and λ_d, in the file."""
    return f"{PREFIX}{module.name}.vera_lambda_b", f"{PREFIX}{module.name}.vera_lambda_d"


def widths(model: GPT, module: HFModule) -> list[int]:
    return [base_module(model, path).out_features for path in module.ours]


def lambdas(wrappers: Mapping[str, Any], module: HFModule) -> list[np.ndarray | None]:
    """λ_d of each projection that a module stands for; None of one without an adapter."""
    return [wrappers[path].vera_lambda_d.data if path in wrappers else None for path in module.ours]


def alike(wrappers: Mapping[str, Any], module: HFModule) -> bool:
    first, *others = [d for d in lambdas(wrappers, module) if d is not None]
    return all(np.array_equal(first, d) for d in others)


def vectors(model: GPT, wrappers: Mapping[str, Any], module: HFModule, times: int) -> tuple[np.ndarray, np.ndarray]:
    """λ_b (out,) and λ_d (times r,) of a module in the file."""
    have = [d for d in lambdas(wrappers, module) if d is not None]
    b = [
        wrappers[path].vera_lambda_b.data if path in wrappers else np.zeros(n, have[0].dtype)
        for path, n in zip(module.ours, widths(model, module), strict=True)
    ]
    if len(module.ours) < times:
        return np.concatenate(b), np.tile(have[0], times)
    d = [np.zeros_like(have[0]) if d is None else d for d in lambdas(wrappers, module)]
    return np.concatenate(b), np.concatenate(d) if times > 1 else have[0]


def banded(B: np.ndarray, model: GPT, targeted: Sequence[HFModule], times: int) -> np.ndarray:
    """B' (out, times r): each row of B in the columns of the projection whose row it is, later rows in the first."""
    if times == 1:
        return B
    fused = next(m for m in targeted if len(m.ours) == times)
    owner = np.zeros(len(B), int)
    owner[: sum(widths(model, fused))] = np.repeat(np.arange(times), widths(model, fused))
    return np.concatenate([B * (owner == i)[:, None] for i in range(times)], axis=1)


# -- from peft -----------------------------------------------------------------------------------------------
def targets_of(model: GPT, files: AdapterFiles) -> list[HFModule]:
    """The modules that a file adapts; FileFormatError where it asks for what cannot be translated."""
    refuse_settings(files, UNDERSTOOD)
    check_kinds(files, KINDS)
    return targeted_modules(model, files)


def checked(model: GPT, targeted: Sequence[HFModule], files: AdapterFiles) -> dict[str, np.ndarray]:
    """The tensors, each in its shape; of A and B what these modules need of them.

    Those of an adapter that ``peft`` loaded second are the first one's, and may be larger.
    """
    r, given = files.settings.get("r", 256), dict(files.arrays)
    outs = {m: sum(widths(model, m)) for m in targeted}
    expected: dict[str, tuple[int, ...]] = {}
    for m, out in outs.items():
        expected |= dict(zip(names(m), ((out,), (r,)), strict=True))
    if files.settings.get("save_projection", True):
        rows, columns = max(outs.values()), max(base_module(model, m.ours[0]).in_features for m in targeted)
        expected |= {A_NAME: (r, columns), B_NAME: (rows, r)}
        if A_NAME in given and B_NAME in given:
            given |= {A_NAME: given[A_NAME][..., :columns], B_NAME: given[B_NAME][:rows]}
    check_tensors(expected, given, files.directory / WEIGHTS)
    return given
