"""Virtual tokens in ``peft``'s files: one tensor ``prompt_embeddings``, what the encoder makes.

``peft`` throws the encoder away, so an adapter that it saved cannot be trained further as it was. Here the encoder is
written beside the table under ``prompt_encoder.``, its tensors named as in ``peft``'s own module; ``peft`` passes over
them. A file without them becomes the adapter of the table itself, which trains like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minitorch_peft.autograd.tensor import no_grad
from minitorch_peft.formats.files import FileFormatError
from minitorch_peft.models import GPT
from minitorch_peft.nn import Module, mode_of
from minitorch_peft.peft.interop import CONFIG, WEIGHTS, AdapterFiles, check_kinds, check_tensors, refuse_settings

if TYPE_CHECKING:
    from minitorch_peft.peft.adapter import Adapter
    from minitorch_peft.peft.input.virtual_tokens import VirtualTokensConfig

TABLE, ENCODER = "prompt_embeddings", "prompt_encoder."
KINDS = {
    "num_virtual_tokens": int, "encoder_hidden_size": int, "encoder_num_layers": int, "encoder_dropout": int | float,
    "prefix_projection": bool, "init_weights": str, "prompt_tuning_init": str, "encoder_reparameterization_type": str,
}  # fmt: skip
STARTED = {"prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"}
"""Settings that say where the table started; the file holds where it has come to."""


@dataclass(frozen=True)
class PromptFiles:
    """``peft``'s translation for a method whose encoder is ``encoder(model, config)``, of type ``config``.

    ``settings`` are those of its config that ``peft`` has too, ``spelled`` values of them that stand in the file as
    others. With the settings ``alone`` the encoder is the table itself. ``per_layer``: the table is a prefix.
    """

    config: type[VirtualTokensConfig]
    encoder: Callable[[GPT, Any], Module]
    settings: tuple[str, ...]
    spelled: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    alone: Mapping[str, Any] = field(default_factory=dict)
    per_layer: bool = False

    # -- to peft ---------------------------------------------------------------------------------------------
    def write(self, adapter: Adapter) -> AdapterFiles:
        config, encoder = adapter.config, adapter.parts["prompt_encoder"]
        settings = {
            "peft_type": config.peft_type, "task_type": "CAUSAL_LM", "base_model_name_or_path": None,
            "inference_mode": True, "num_virtual_tokens": config.num_virtual_tokens, **self.sizes(adapter.model),
            **{name: self.spell(name, getattr(config, name)) for name in self.settings},
        }  # fmt: skip
        own = {f"{ENCODER}{name}": p.data for name, p in encoder.named_parameters()}
        arrays = {TABLE: made(encoder)} | (own if len(own) > 1 else {})
        return AdapterFiles(settings, arrays, {"format": "pt"})

    def sizes(self, model: GPT) -> dict[str, int]:
        """What ``peft`` notes of the model; for a prefix, heads are those of keys and values."""
        c = model.config
        heads, width = (c.kv_heads, c.kv_heads * c.head_dim) if self.per_layer else (c.n_head, c.n_embd)
        return {
            "num_layers": c.n_layer, "num_attention_heads": heads, "token_dim": width, "num_transformer_submodules": 1,
        }  # fmt: skip

    def spell(self, name: str, value: Any) -> Any:
        return self.spelled.get(name, {}).get(value, value)

    # -- from peft -------------------------------------------------------------------------------------------
    def read(self, model: GPT, files: AdapterFiles) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        given, path = files.settings, files.directory / WEIGHTS
        self.check_settings(model, files)
        settings = {name: given[name] for name in ("num_virtual_tokens", *self.settings) if name in given}
        settings = {name: self.spell(name, value) for name, value in settings.items()}
        own = {name.removeprefix(ENCODER): a for name, a in files.arrays.items() if name.startswith(ENCODER)}
        table = {name: a for name, a in files.arrays.items() if not name.startswith(ENCODER)}
        if not own:
            settings |= self.alone
            own = {"embedding.weight": table.get(TABLE, np.zeros(0))}
        idle = self.config.without_effect(settings)  # peft writes them all
        settings = {name: value for name, value in settings.items() if name not in idle}
        encoder = self.encoder(model, self.config.from_dict(settings))
        k, width = given["num_virtual_tokens"], self.sizes(model)["token_dim"]
        check_tensors({TABLE: (k, 2 * model.config.n_layer * width if self.per_layer else width)}, table, path)
        check_tensors({name: p.shape for name, p in encoder.named_parameters()}, own, path)
        check_made(encoder, own, table[TABLE], path)
        return settings, {f"{ENCODER}{name}": array for name, array in own.items()}

    def check_settings(self, model: GPT, files: AdapterFiles) -> None:
        """FileFormatError where the JSON is of another model, or asks for what cannot be translated."""
        path, sizes = files.directory / CONFIG, self.sizes(model)
        refuse_settings(files, {"num_virtual_tokens", *self.settings, *sizes, *STARTED})
        check_kinds(files, KINDS | dict.fromkeys(sizes, int))
        if files.settings.get("num_virtual_tokens") is None:
            raise FileFormatError(path, "has no num_virtual_tokens", "write into it how many there are")
        for name, size in sizes.items():
            if (found := files.settings.get(name)) not in (None, size):
                problem = f"{name}={found}, for this model it is {size}"
                raise FileFormatError(path, problem, "load it into the model that it was trained on")


def made(encoder: Module) -> np.ndarray:
    """The table, without noise."""
    with no_grad(), mode_of(encoder, training=False):
        return np.array(encoder().data)


def check_made(encoder: Module, own: Mapping[str, np.ndarray], table: np.ndarray, path: Path) -> None:
    """FileFormatError where a file's encoder does not make its table: one of them was changed without the other."""
    encoder.astype(table.dtype).load_state_dict(own)
    if not np.allclose(made(encoder), table, rtol=1e-3, atol=1e-4):
        problem = f"{TABLE} is not what the encoder in {ENCODER}* makes"
        raise FileFormatError(path, problem, f"remove the tensors {ENCODER}* to go on from {TABLE} alone")
