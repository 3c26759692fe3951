"""Models from files, and into files: the embedded checkpoints and Hugging Face directories."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minitorch_peft.formats.files import FileFormatError, read_arrays, read_json, write_arrays, write_json
from minitorch_peft.formats.hf import WEIGHTS, read_directory, write_directory
from minitorch_peft.formats.hf_config import CONFIG
from minitorch_peft.kernels.four_bit.layout import Quantized
from minitorch_peft.models.config import GPTConfig
from minitorch_peft.models.gpt import GPT
from minitorch_peft.nn import Linear4bit
from minitorch_peft.quant import BitsAndBytesConfig, quantize_model, quantized_layers

EMBEDDED = Path(__file__).parent / "checkpoints"


def embedded_names() -> list[str]:
    """The checkpoints that ship with the package."""
    return sorted(path.stem for path in EMBEDDED.glob("*.safetensors"))


def load_pretrained(name_or_path: str | Path, quantization_config: BitsAndBytesConfig | None = None) -> GPT:
    """A model in float32, in evaluation mode (no dropout; ``train()`` changes that), as in ``transformers``.

    Linear layers whose weights the files hold in four bits stay in four bits.

    Args:
        name_or_path: the name of an embedded checkpoint ("tiny"), a directory with ``config.json`` and
            ``model.safetensors``, or a ``.safetensors`` file that :func:`save_embedded` wrote. Where a
            directory has the name of an embedded checkpoint, write "./tiny" for the directory.
        quantization_config: with ``load_in_4bit=True`` the linear layers are quantized after loading.

    Raises:
        FileFormatError: there is no such model, or its files are damaged or unsupported.
        ValueError: the model is to be quantized, and is in four bits already.
    """
    if not isinstance(quantization_config, BitsAndBytesConfig | None):
        kind = type(quantization_config).__name__
        raise TypeError(f"quantization_config must be a BitsAndBytesConfig, e.g. QLORA, got a {kind}")
    path = Path(name_or_path)
    if str(name_or_path) in embedded_names():
        path = EMBEDDED / f"{name_or_path}.safetensors"
    state: Mapping[str, np.ndarray | Quantized]
    if path.suffix == ".safetensors" and path.is_file():
        fields, state = read_embedded(path)
        settings = _card_path(path)
    elif path.is_dir():
        fields, state = read_directory(path)
        settings = path / CONFIG
    else:
        names = ", ".join(embedded_names()) or "none in this installation"
        advice = f"expected an embedded checkpoint ({names}) or a directory with {CONFIG} and {WEIGHTS}"
        raise FileFormatError(name_or_path, "no such model", advice)
    try:
        model = GPT(GPTConfig(**fields), seed=None)
    except (TypeError, ValueError) as error:
        raise FileFormatError(settings, f"describes no GPT ({error})", "correct it") from error
    fill(model, state)
    if quantization_config is not None and quantization_config.load_in_4bit:
        quantize_model(model, **quantization_config.arguments())
    return model.eval()


def fill(model: GPT, state: Mapping[str, np.ndarray | Quantized]) -> None:
    """Put arrays into the parameters of the same names; a weight in four bits makes its layer a ``Linear4bit``."""
    packed = {name: value for name, value in state.items() if isinstance(value, Quantized)}
    for name, weight in packed.items():
        path = name.removesuffix(".weight")
        model.set(path, Linear4bit(weight, model.get(path).bias))
    arrays = {name: value for name, value in state.items() if isinstance(value, np.ndarray)}
    model.load_state_dict({**dict(model.named_buffers()), **model.named_constants(), **arrays})


def save_pretrained(model: GPT, directory: str | Path, format: str | None = None) -> None:
    """Write the directory that ``transformers`` loads, "gpt2" or "llama" (None: the one that fits)."""
    if any(p.owner != "base" for p in model.parameters()):
        raise ValueError("adapters are attached to this model: save merge_and_unload() or unload() of it instead")
    dense = {name: p.data for name, p in model.named_parameters()}
    packed = {f"{path}.weight": layer.weight for path, layer in quantized_layers(model).items()}
    write_directory(directory, model.config.to_dict(), {**dense, **packed}, format)


def save_embedded(model: GPT, path: str | Path, card: Mapping[str, Any]) -> None:
    """Write ``NAME.safetensors``, float16 under our own names, and its card ``NAME.json`` with the config.

    ValueError where a weight is too large for float16, is not finite, or is in four bits.
    """
    path = Path(path)
    if quantized_layers(model):
        raise ValueError("such a file holds float16: dequantize_model(model) first, or use save_pretrained")
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: expected a name that ends in .safetensors")
    half = {name: _half(name, array) for name, array in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_arrays(path, half)
    write_json(_card_path(path), {**card, "config": model.config.to_dict()})


def read_embedded(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(config fields, name to float32 array) of what :func:`save_embedded` wrote."""
    card = read_json(_card_path(path))
    if "config" not in card:
        raise FileFormatError(_card_path(path), "has no 'config'", "it is not the card of a checkpoint")
    return card["config"], {name: array.astype(np.float32) for name, array in read_arrays(path).items()}


def _card_path(path: Path) -> Path:
    return path.with_suffix(".json")


def _half(name: str, array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if not np.isfinite(half).all():
        raise ValueError(f"{name} holds {np.abs(array).max():g}, too large for float16: is the model trained?")
    return half
