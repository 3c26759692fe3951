"""What four bits cost: storage, rounding errors of the weights, and a model's bits per byte."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from minitorch_peft.kernels import get
from minitorch_peft.models import GPT
from minitorch_peft.nn import Linear
from minitorch_peft.quant import bits_per_parameter, quantize_model

QUANT_TYPES = ("nf4", "fp4", "int4")
BLOCKSIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
NESTED_BLOCKSIZE = 256
_FLOAT32 = np.dtype(np.float32)


def stored_bits(blocksize: int = 64, double: bool = False) -> float:
    """Bits for each weight of a large matrix: a code, and its share of the block's scale (QLoRA, section 3).

    A scale is a float32; with double quantization a byte, and every 256 of these share a float32.

    >>> stored_bits(64), round(stored_bits(64, double=True), 3)
    (4.5, 4.127)
    """
    return 4 + (8 + 32 / NESTED_BLOCKSIZE if double else 32) / blocksize


def relative_error(weights: Iterable[np.ndarray], quant_type: str, blocksize: int = 64, double: bool = False) -> float:
    """Root mean square of what rounding changes, relative to that of the weights; all arrays are float32.

    >>> relative_error([np.array([1.0, -1.0, 0.0], np.float32)], "nf4")
    0.0
    """
    quantize, dequantize = get("quantize_4bit", _FLOAT32), get("dequantize_4bit", _FLOAT32)
    lost = total = 0.0
    for w in weights:
        change = dequantize(quantize(w, blocksize, quant_type, double)) - w
        lost += float(np.square(change, dtype=np.float64).sum())
        total += float(np.square(w, dtype=np.float64).sum())
    return (lost / total) ** 0.5 if total else 0.0


def linear_weights(model: GPT) -> list[np.ndarray]:
    """The matrices that ``quantize_model`` puts into four bits: those of all linear layers but the head."""
    layers = {path: m for path, m in model.named_modules() if isinstance(m, Linear)}
    return [layer.weight.data for path, layer in layers.items() if path != "lm_head"]


def normal_weights(size: int = 2048) -> list[np.ndarray]:
    """What NF4 is made for."""
    return [np.random.default_rng(0).standard_normal((size, size), np.float32)]


def rounding_errors(weights: dict[str, Sequence[np.ndarray]]) -> list[dict[str, Any]]:
    """A row for every set of weights, type and blocksize, with and without double quantization."""
    return [
        {
            "weights": name,
            "quant_type": quant_type,
            "blocksize": blocksize,
            "double": double,
            "bits": stored_bits(blocksize, double),
            "relative_error": relative_error(arrays, quant_type, blocksize, double),
        }
        for name, arrays in weights.items()
        for quant_type in QUANT_TYPES
        for blocksize in BLOCKSIZES
        for double in (False, True)
    ]


def quantized_models(load: Callable[[], GPT], measure: Callable[[GPT], dict[str, float]]) -> list[dict[str, Any]]:
    """The model as it is, then in four bits of each type, with and without double quantization: what is lost.

    ``bits`` counts what is stored for the weights in four bits, ``measure`` gives bits per byte by text.
    """
    model = load()
    rows: list[dict[str, Any]] = [{"quant_type": "float32", "double": False, "bits": 32.0, **_measured(model, measure)}]
    for quant_type in QUANT_TYPES:
        for double in (False, True):
            model = quantize_model(load(), quant_type, compress_statistics=double)
            row = {"quant_type": quant_type, "double": double, "bits": bits_per_parameter(model)}
            rows.append(row | _measured(model, measure))
    return rows


def _measured(model: GPT, measure: Callable[[GPT], dict[str, float]]) -> dict[str, Any]:
    return {"bits_per_byte": measure(model)}
