"""A low-rank change s B A of a weight, in ``peft``'s files: LoRA, and methods of its form.

Where GPT-2 fuses three projections into ``c_attn``, three adapters are one: with A stacked and B block-diagonal,

    [q k v] = x (B A)ᵀ,   A = [A_q; A_k; A_v],   B = diag(B_q, B_k, B_v),   r = r_q + r_k + r_v,

exactly, and alpha grows with r so that s stays. The other way, ``peft``'s own adapter of ``c_attn`` gives q, k and v
all of A and their third of B.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

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
    common,
    hf_modules,
    refuse_settings,
    short_names,
    targeted_modules,
)
from minitorch_peft.peft.patterns import by_path
from minitorch_peft.peft.principal import halved, tidy

if TYPE_CHECKING:
    from minitorch_peft.peft.adapter import Adapter

SPLITS = "minitorch_peft.splits"
"""Metadata: the rank of each projection in a fused module, where B does not show it (an untrained B is zero)."""
PRINCIPAL = "minitorch_peft.principal"
"""Metadata: the later half of each A, and of each B with a minus, is the start of PiSSA."""
UNDERSTOOD = {
    "alpha_pattern", "exclude_modules", "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha",
    "lora_dropout", "r", "rank_pattern", "target_modules", "use_rslora",
}  # fmt: skip
KINDS = {
    "r": int, "rank_pattern": int, "lora_alpha": int | float, "alpha_pattern": int | float, "lora_dropout": int | float,
    "target_modules": list | str, "exclude_modules": list | str, "layers_to_transform": list | int,
    "layers_pattern": list | str,
}  # fmt: skip
INERT = {"eva_config", "fan_in_fan_out", "loftq_config", "megatron_core", "qalora_group_size"}
STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""Values of ``init_lora_weights`` that leave the base alone; others train on a changed base, which is not saved."""


class LowRank(NamedTuple):
    """B A with its s: ``A`` (r, in), ``B`` (out, r)."""

    A: np.ndarray
    B: np.ndarray
    scaling: float


@dataclass(frozen=True)
class LowRankFiles:
    """``peft``'s translation for a method whose layers have ``lora_A``, ``lora_B`` and ``scaling``.

    ``linear`` and ``embedding`` are the names of A and B in the file, for the two kinds of layers; ``more`` are
    settings that the method understands beside LoRA's.
    """

    linear: tuple[str, str] = ("lora_A.weight", "lora_B.weight")
    embedding: tuple[str, str] = ("lora_embedding_A", "lora_embedding_B")
    more: tuple[str, ...] = ()

    # -- to peft ---------------------------------------------------------------------------------------------
    def write(self, adapter: Adapter) -> AdapterFiles:
        modules, config, model = hf_modules(adapter.model.config), adapter.config, adapter.model
        arrays: dict[str, np.ndarray] = {}
        ranks, alphas, splits = {}, {}, {}
        targeted = [module for module in modules if any(path in adapter.wrappers for path in module.ours)]
        for module in targeted:
            layers = [adapter.wrappers.get(path) for path in module.ours]
            parts = [layer if layer is None else self.change(layer) for layer in layers]
            widths = [base_module(model, path).out_features for path in module.ours]
            fused = fuse(parts, widths)
            arrays |= dict(zip(self.names(model, module), fused[:2], strict=True))
            ranks[module.name] = len(fused.A)
            alphas[module.name] = alpha_of(fused.scaling, len(fused.A), config.use_rslora)
            if (own := [len(part.A) if part else 0 for part in parts]) != visible_ranks(fused.B, widths):
                splits[module.name] = own
        r, rank_pattern = common(ranks)
        alpha, alpha_pattern = common(alphas)
        settings = {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": None,
            "inference_mode": True, "bias": "none", "init_lora_weights": True, "modules_to_save": None,
            "target_modules": short_names([m.name for m in targeted], [m.name for m in modules]),
            "fan_in_fan_out": any(module.conv1d for module in targeted),
            "r": r, "rank_pattern": rank_pattern, "lora_alpha": alpha, "alpha_pattern": alpha_pattern,
            "lora_dropout": config.lora_dropout, "use_rslora": config.use_rslora,
        }  # fmt: skip
        return AdapterFiles(settings, arrays, {"format": "pt"} | ({SPLITS: json.dumps(splits)} if splits else {}))

    def change(self, layer: Any) -> LowRank:
        """What a layer adds to its weight."""
        return LowRank(layer.lora_A.data, layer.lora_B.data, layer.scaling)

    def names(self, model: GPT, module: HFModule) -> tuple[str, str]:
        """Of A and B, in the file."""
        a, b = self.embedding if base_module(model, module.ours[0]).takes_ids else self.linear
        return f"{PREFIX}{module.name}.{a}", f"{PREFIX}{module.name}.{b}"

    # -- from peft -------------------------------------------------------------------------------------------
    def read(self, model: GPT, files: AdapterFiles) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        check_settings(files, self.more)
        settings, modules = files.settings, hf_modules(model.config)
        targeted, given = targeted_modules(model, files), without_base_copies(model, modules, files)
        expected: dict[str, tuple[int, int]] = {}
        for module in targeted:
            expected |= dict(zip(self.names(model, module), shapes(model, module, settings), strict=True))
        check_tensors(expected, given, files.directory / WEIGHTS)
        recorded = json.loads(files.metadata.get(SPLITS, "{}"))
        arrays: dict[str, np.ndarray] = {}
        ranks, alphas = {}, {}
        for module in targeted:
            A, B = (given[name] for name in self.names(model, module))
            alpha = by_path(settings.get("alpha_pattern") or {}, module.name, settings.get("lora_alpha", 8))
            widths = [base_module(model, path).out_features for path in module.ours]
            for path, a, b in split(module.ours, A, B, widths, recorded.get(module.name)):
                arrays |= {f"{path}.lora_A": a, f"{path}.lora_B": b}
                share = len(a) / len(A)
                ranks[path] = len(a)
                alphas[path] = tidy(alpha * (math.sqrt(share) if settings.get("use_rslora") else share))
        r, rank_pattern = common(ranks)
        lora_alpha, alpha_pattern = common(alphas)
        ours = [path for m in modules for path in m.ours]
        found = {
            "r": r, "rank_pattern": rank_pattern, "lora_alpha": lora_alpha, "alpha_pattern": alpha_pattern,
            "target_modules": short_names(list(ranks), ours),
            "lora_dropout": settings.get("lora_dropout", 0.0), "use_rslora": bool(settings.get("use_rslora")),
        }  # fmt: skip
        return halved(model, found, arrays) if PRINCIPAL in files.metadata else (found, arrays)


def fuse(parts: Sequence[LowRank | None], widths: Sequence[int]) -> LowRank:
    """Adapters of modules with one input as one adapter of them all; ``widths`` are their output features.

    Where their s differ, those of the later ones are put into their B.
    """
    if len(parts) == 1:
        assert parts[0] is not None
        return parts[0]
    have = [part for part in parts if part is not None]
    A, s = np.concatenate([part.A for part in have]), have[0].scaling
    B = np.zeros((sum(widths), len(A)), A.dtype)
    row = column = 0
    for part, width in zip(parts, widths, strict=True):
        if part is not None:
            r = len(part.A)
            B[row : row + width, column : column + r] = part.B if part.scaling == s else part.B * (part.scaling / s)
            column += r
        row += width
    return LowRank(A, B, s)


def split(
    paths: Sequence[str], A: np.ndarray, B: np.ndarray, widths: Sequence[int], recorded: list[int] | None
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(path, A, B) of each module that a fused adapter changes: the inverse of :func:`fuse`.

    Where B is not block-diagonal each has all of A and its rows of B.
    """
    blocks = np.split(B, np.cumsum(widths)[:-1])
    owners = column_owners(blocks, recorded)
    for i, (path, block) in enumerate(zip(paths, blocks, strict=True)):
        if owners is None:
            yield path, A, block
        elif (owners == i).any():
            yield path, A[owners == i], block[:, owners == i]


def column_owners(blocks: Sequence[np.ndarray], recorded: list[int] | None) -> np.ndarray | None:
    """Which block each column of a block-diagonal B lies in, (r,); None where it is not block-diagonal.

    A column of zeros belongs to the block of the last other one before it, unless the ranks are ``recorded``.
    """
    used = np.array([(block != 0).any(axis=0) for block in blocks])  # (blocks, r)
    if recorded is not None and sum(recorded) == used.shape[1] and len(recorded) == len(blocks):
        owners = np.repeat(np.arange(len(blocks)), recorded)
        if not (used & (owners != np.arange(len(blocks))[:, None])).any():
            return owners
    if len(blocks) > 1 and (used.sum(axis=0).max() > 1 or not used.any()):
        return None
    known = np.flatnonzero(used.any(axis=0))
    before = np.maximum(np.searchsorted(known, np.arange(used.shape[1]), side="right") - 1, 0)
    return used.argmax(axis=0)[known[before]] if known.size else np.zeros(used.shape[1], int)


def visible_ranks(B: np.ndarray, widths: Sequence[int]) -> list[int] | None:
    """The columns of each block of a block-diagonal B, as far as the zeros show them."""
    owners = column_owners(np.split(B, np.cumsum(widths)[:-1]), None)
    return None if owners is None else np.bincount(owners, minlength=len(widths)).tolist()


def shapes(model: GPT, module: HFModule, settings: Mapping[str, Any]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Of A and B of a module of the file."""
    r = by_path(settings.get("rank_pattern") or {}, module.name, settings.get("r", 8))
    leaves = [base_module(model, path) for path in module.ours]
    return (r, leaves[0].in_features), (sum(leaf.out_features for leaf in leaves), r)


def alpha_of(scaling: float, r: int, use_rslora: bool) -> float:
    return tidy(scaling * (math.sqrt(r) if use_rslora else r))


def check_settings(files: AdapterFiles, more: Sequence[str] = ()) -> None:
    """FileFormatError where the JSON asks for what cannot be translated; ``more`` can, beside LoRA's own."""
    path = files.directory / CONFIG
    refuse_settings(files, UNDERSTOOD | INERT | set(more))
    check_kinds(files, KINDS)
    if files.settings.get("init_lora_weights", True) not in STARTS:
        start = files.settings["init_lora_weights"]
        raise FileFormatError(path, f"init_lora_weights={start!r} trained on a base that it changed", MERGE)


def without_base_copies(model: GPT, modules: Sequence[HFModule], files: AdapterFiles) -> dict[str, np.ndarray]:
    """The tensors without the embeddings that ``peft`` saves beside adapted ones, which must be the base's."""
    given = dict(files.arrays)
    for module in modules:
        leaf = base_module(model, module.ours[0])
        if not leaf.takes_ids and module.name != "lm_head":
            continue
        own = leaf.dense_weight().T if leaf.takes_ids else leaf.dense_weight()
        for name in (f"{PREFIX}{module.name}.base_layer.weight", f"{PREFIX}{module.name}.weight"):
            copy = given.pop(name, None)
            if copy is not None and not np.array_equal(copy.astype(own.dtype), own):
                problem = f"{name} is a weight of the base, and not that of this model"
                raise FileFormatError(files.directory / WEIGHTS, problem, "load the adapter into its own base")
    return given
