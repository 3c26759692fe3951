"""Hugging Face directories in four bits: which tensors are, what config.json says, fused modules taken apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minitorch_peft.formats.bitsandbytes import from_tensors, quantized_names, to_tensors
from minitorch_peft.formats.families import Row
from minitorch_peft.formats.files import FileFormatError
from minitorch_peft.formats.packed import join_rows, split_rows
from minitorch_peft.kernels.eight_bit.codes import create_dynamic_map
from minitorch_peft.kernels.four_bit.layout import Quantized

KEY = "quantization_config"
DENSE = "save the model in float32, float16 or bfloat16 and quantize it here"
State = Mapping[str, np.ndarray | Quantized]


def check_quantization(config: Mapping[str, Any], path: str | Path) -> bool:
    """Are the weights in four bits? FileFormatError where they are quantized in any other way than bitsandbytes' own.

    What a GPU was to compute in (``bnb_4bit_compute_dtype``) is read and left: here it is float32.
    """
    settings = config.get(KEY)
    if settings is None:
        return False
    if not isinstance(settings, dict) or settings.get("quant_method", "bitsandbytes") != "bitsandbytes":
        method = settings.get("quant_method") if isinstance(settings, dict) else settings
        raise FileFormatError(path, f"the weights are quantized by {method!r}", DENSE)
    if not settings.get("load_in_4bit", settings.get("_load_in_4bit")):
        raise FileFormatError(path, "the weights are quantized, but not in four bits", DENSE)
    if (storage := settings.get("bnb_4bit_quant_storage") or "uint8") != "uint8":
        raise FileFormatError(path, f"bnb_4bit_quant_storage is {storage!r}, only 'uint8' can be read", DENSE)
    return True


def take_packed(arrays: dict[str, np.ndarray], path: str | Path) -> dict[str, Quantized]:
    """Name to weight of the 4-bit ones, whose tensors leave ``arrays``. FileFormatError where one is damaged."""
    packed: dict[str, Quantized] = {}
    for name in quantized_names(arrays):
        try:
            packed[name] = _known(name, from_tensors(name, arrays))
        except (KeyError, ValueError, TypeError) as error:
            problem = error.args[0] if isinstance(error, KeyError) else error
            raise FileFormatError(
                path, f"a weight in four bits is damaged: {problem}", "copy or write it again"
            ) from error
        for key in [key for key in arrays if key == name or key.startswith(f"{name}.")]:
            del arrays[key]
    return packed


def _known(name: str, q: Quantized) -> Quantized:
    """q itself; ValueError where its absmax is nested by other means than bitsandbytes'."""
    if q.nested is not None and not np.array_equal(q.nested.code, create_dynamic_map()):
        raise ValueError(f"{name}.nested_quant_map is not the dynamic map of bitsandbytes")
    return q


def split_packed(row: Row, q: Quantized, shape: tuple[int, ...], path: str | Path) -> list[Quantized]:
    """A file's weight to ours; bitsandbytes stores it (out, in), also where the dense one is turned.

    FileFormatError for a weight that only a linear layer can have in four bits, and for another shape.
    """
    if len(shape) != 2 or row.ours[0].startswith("embed."):
        raise FileFormatError(path, f"{row.theirs} is in four bits, which only linear layers can be here", DENSE)
    logical = shape[::-1] if row.transposed else shape
    if q.shape != logical:
        problem = f"{row.theirs} is a 4-bit tensor of shape {q.shape}, the config makes it {logical}"
        raise FileFormatError(path, problem, "copy config and weights from one save")
    try:
        return split_rows(q, len(row.ours))
    except ValueError as error:
        raise FileFormatError(path, f"{row.theirs} cannot be taken apart without loss: {error}", DENSE) from error


def join_packed(row: Row, weights: Sequence[np.ndarray | Quantized]) -> dict[str, np.ndarray]:
    """Our weights to a file's tensors; ValueError where they do not go into one module there."""
    packed = [w for w in weights if isinstance(w, Quantized)]
    names = ", ".join(row.ours)
    if len(packed) < len(weights):
        raise ValueError(f"{names} are one module in this format: quantize all of them, or none")
    try:
        return to_tensors(row.theirs, join_rows(packed))
    except ValueError as error:
        raise ValueError(f"{names} cannot be written in this format: {error}") from error


def quantization_config(rows: Sequence[Row], state: State) -> dict[str, Any]:
    """What config.json says under ``quantization_config``, with the keys and values of ``transformers``."""
    packed = [w for w in state.values() if isinstance(w, Quantized)]
    dense = [
        row.theirs.removesuffix(".weight") for row in rows
        if len(row.shape) == 2 and row.shape[0] not in "VP" and not isinstance(state[row.ours[0]], Quantized)
    ]  # fmt: skip
    head = isinstance(state.get("lm_head.weight"), Quantized)
    skip = [*dense, *([] if head else ["lm_head"])] if dense or head else None  # None: the head alone
    return {
        "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "_load_in_4bit": True,
        "_load_in_8bit": False, "bnb_4bit_quant_type": packed[0].quant_type,
        "bnb_4bit_use_double_quant": any(q.nested is not None for q in packed), "bnb_4bit_compute_dtype": "float32",
        "bnb_4bit_quant_storage": "uint8", "llm_int8_skip_modules": skip, "llm_int8_threshold": 6.0,
        "llm_int8_enable_fp32_cpu_offload": False, "llm_int8_has_fp16_weight": False,
    }  # fmt: skip
