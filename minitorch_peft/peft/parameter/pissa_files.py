"""PiSSA in ``peft``'s files: written as the LoRA of twice the rank that it amounts to, on the base as it was.

That is what ``peft`` writes when it is told where the adapter started (``path_initial_model_for_weight_conversion``).
Its other file has A and B alone, and they belong to a base without its principal part, which is not saved; here that
part is made again from the base, as ``peft`` does when it loads one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from minitorch_peft.formats.files import FileFormatError
from minitorch_peft.models import GPT
from minitorch_peft.peft.inject import base_module
from minitorch_peft.peft.interop import CONFIG, AdapterFiles, HFModule, common, hf_modules, is_target
from minitorch_peft.peft.lowrank_files import PRINCIPAL, LowRank, LowRankFiles
from minitorch_peft.peft.patterns import by_path
from minitorch_peft.peft.principal import principal, starts, tidy

if TYPE_CHECKING:
    from minitorch_peft.peft.adapter import Adapter


class PissaFiles(LowRankFiles):
    def change(self, layer: Any) -> LowRank:
        A0, B0 = (part.data for part in layer.start)
        A, B = layer.lora_A.data, layer.lora_B.data
        return LowRank(np.concatenate([A, A0]), np.concatenate([B, -B0], axis=1), layer.scaling)

    def write(self, adapter: Adapter) -> AdapterFiles:
        files = super().write(adapter)
        return AdapterFiles(files.settings, files.arrays, files.metadata | {PRINCIPAL: "half"})

    def read(self, model: GPT, files: AdapterFiles) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """A file of ``peft``'s that has A and B alone."""
        settings = files.settings | {"init_lora_weights": True}
        plain = AdapterFiles(settings, files.arrays, {}, files.directory)
        found, arrays = super().read(model, plain)  # which checks the file
        modules = [
            m for m in hf_modules(model.config) if is_target(settings, m.name, base_module(model, m.ours[0]).takes_ids)
        ]
        if model.config.tie_word_embeddings and any(m.name == "lm_head" for m in modules):
            problem = "PiSSA of a tied head changed the embedding as well while it trained"
            raise FileFormatError(files.directory / CONFIG, problem, "train it again without lm_head")
        if not any(len(m.ours) > 1 or base_module(model, m.ours[0]).takes_ids for m in modules):
            return found | {"init_lora_weights": "pissa"}, arrays | starts(model, found, arrays)
        return super().read(model, self.doubled(model, modules, plain))

    def doubled(self, model: GPT, modules: Sequence[HFModule], files: AdapterFiles) -> AdapterFiles:
        """The same as a LoRA of the base: for a fused module, whose principal part is not that of its projections.

        On embeddings ``peft``'s PiSSA is plain LoRA.
        """
        settings, arrays = files.settings, dict(files.arrays)
        ranks, alphas = {}, {}
        for module in modules:
            r = by_path(settings.get("rank_pattern") or {}, module.name, settings.get("r", 8))
            alpha = by_path(settings.get("alpha_pattern") or {}, module.name, settings.get("lora_alpha", 8))
            ranks[module.name], alphas[module.name] = r, alpha
            if base_module(model, module.ours[0]).takes_ids:
                continue
            rslora = bool(settings.get("use_rslora"))
            weight = np.concatenate([base_module(model, path).dense_weight() for path in module.ours])
            A0, B0 = principal(weight, r, alpha / (math.sqrt(r) if rslora else r))
            a, b = self.names(model, module)
            arrays |= {a: np.concatenate([arrays[a], A0]), b: np.concatenate([arrays[b], -B0], axis=1)}
            ranks[module.name], alphas[module.name] = 2 * r, tidy(alpha * (math.sqrt(2) if rslora else 2))
        (r, rank_pattern), (lora_alpha, alpha_pattern) = common(ranks), common(alphas)
        made = {"r": r, "rank_pattern": rank_pattern, "lora_alpha": lora_alpha, "alpha_pattern": alpha_pattern}
        return AdapterFiles(settings | made, arrays, {}, files.directory)
