"""A model's linear layers into four bits, and out of them again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import numpy as np

from minitorch_peft.nn import Linear, Linear4bit, Module
from minitorch_peft.quant.config import BitsAndBytesConfig

M = TypeVar("M", bound=Module)


def quantize_model(
    model: M,
    quant_type: str = "nf4",
    blocksize: int = 64,
    compress_statistics: bool = True,
    skip: Iterable[str] = ("lm_head",),
) -> M:
    """Put a ``Linear4bit`` in place of every ``Linear`` of ``model``, in place, and return it.

    With the defaults a weight takes 4.127 bits instead of 32. Embeddings, a head that is tied to one, norms and biases
    stay as they are: they are few, and their rounding would be felt most.

    Args:
        quant_type: "nf4", "fp4", or "int4" (for comparison).
        blocksize: elements that share an absmax: 32, 64, ..., 4096.
        compress_statistics: the absmax in eight bits too (double quantization).
        skip: layers to leave alone, by name or dotted suffix; every entry must name one.

    Raises:
        ValueError: the model is quantized already, carries adapters, has no such layers or weights that are not
            finite. Nothing has changed then.

    >>> from minitorch_peft.models import GPT, GPTConfig
    >>> model = quantize_model(GPT(GPTConfig(vocab_size=97, n_positions=64, n_embd=64, n_layer=3, n_head=4)))
    >>> model.get("blocks.0.attn.q_proj"), model.num_parameters()
    (Linear4bit(64, 64, nf4 in blocks of 64, nested), 160384)
    """
    if done := quantized_layers(model):
        raise ValueError(f"the model is quantized already ({len(done)} layers): dequantize_model(model) first")
    _refuse_adapters(model, "quantize the base, then attach them")
    if skip is None:
        raise TypeError("skip must be names of layers, () for none, got None")
    layers = {path: m for path, m in model.named_modules() if isinstance(m, Linear)}
    kept = _skipped(list(dict(model.named_modules())), skip)
    chosen = {path: layer for path, layer in layers.items() if path not in kept}
    if not chosen:
        raise ValueError("the model has no linear layer to quantize, or all of them are skipped")
    how = {"quant_type": quant_type, "blocksize": blocksize, "compress_statistics": compress_statistics}
    packed = {path: _packed(path, layer, how) for path, layer in chosen.items()}
    for path, layer in packed.items():
        layer.training = chosen[path].training
        model.set(path, layer)
    return model


def dequantize_model(model: M) -> M:
    """Put a ``Linear`` of the same values in place of every ``Linear4bit``, in place: the weight it stands for.

    Raises ValueError where adapters are attached: the base would train beside them.
    """
    _refuse_adapters(model, "detach them (unload() or merge_and_unload()), then dequantize the base")
    dtype = next((p.dtype for p in model.parameters()), np.dtype(np.float32))
    for path, layer in quantized_layers(model).items():
        dense = layer.dense(dtype)
        dense.training = layer.training
        dense.weight.requires_grad_()
        model.set(path, dense)
    return model


def prepare_model_for_kbit_training(model: M) -> M:
    """What is not in four bits frozen, and in float32 where it is narrower (norms above all), as ``peft`` does it.

    ``peft`` also makes the embedding's output require a gradient, without which its recomputation of blocks would cut
    the graph off. Here gradients pass through frozen layers to whatever trains below them, so nothing is to be done.

    Raises ValueError where nothing is in four bits, or where adapters are attached, which would be frozen too.
    """
    _refuse_adapters(model, "prepare the base, then attach them")
    if not quantized_layers(model):
        raise ValueError("nothing in this model is in four bits: quantize_model(model) first")
    model.requires_grad_(False)
    for p in model.parameters():
        if p.dtype.itemsize < 4:
            p.data = p.data.astype(np.float32)
    return model


def quantized_layers(model: Module) -> dict[str, Linear4bit]:
    """Path to layer of those that are in four bits."""
    return {path: m for path, m in model.named_modules() if isinstance(m, Linear4bit)}


def quantization_of(model: Module) -> BitsAndBytesConfig:
    """The settings under which the model's linear layers are stored as they are; ValueError where types are mixed.

    Double quantization is that of any layer: parts of a fused module may have lost it as files were read.

    >>> from minitorch_peft.models import GPT, GPTConfig
    >>> model = GPT(GPTConfig(vocab_size=97, n_positions=64, n_embd=64, n_layer=1, n_head=4))
    >>> quantization_of(model).load_in_4bit, quantization_of(quantize_model(model)).bnb_4bit_quant_type
    (False, 'nf4')
    """
    layers = quantized_layers(model)
    types = sorted({layer.quant_type for layer in layers.values()})
    if not types:
        return BitsAndBytesConfig()
    if len(types) > 1:
        raise ValueError(f"the model's layers are stored in different types: {', '.join(types)}")
    dense = [path for path, m in model.named_modules() if isinstance(m, Linear)]
    usual = "lm_head" not in layers and dense in ([], ["lm_head"])
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=types[0],
        bnb_4bit_use_double_quant=any(layer.nested_absmax is not None for layer in layers.values()),
        llm_int8_skip_modules=None if usual else tuple(dense),
    )  # fmt: skip


def bits_per_parameter(model: Module) -> float:
    """Stored bits for each number of the weights that are in four bits: codes, absmax and all that is nested.

    >>> from minitorch_peft.models import GPT, GPTConfig
    >>> model = GPT(GPTConfig(vocab_size=97, n_positions=64, n_embd=128, n_layer=2, n_head=4))
    >>> round(bits_per_parameter(quantize_model(model)), 3)
    4.128
    """
    layers = list(quantized_layers(model).values())
    if not layers:
        raise ValueError("nothing in this model is in four bits")
    stored = sum(array.nbytes for layer in layers for _, array in layer.named_buffers())
    return 8 * stored / sum(layer.packed_parameters for layer in layers)


def _refuse_adapters(model: Module, advice: str) -> None:
    if owners := sorted({p.owner for p in model.parameters()} - {"base"}):
        raise ValueError(f"the model carries adapters ({', '.join(owners)}): {advice}")


def _skipped(paths: list[str], skip: Iterable[str]) -> set[str]:
    """The paths that ``skip`` names."""
    found: set[str] = set()
    for entry in (skip,) if isinstance(skip, str) else skip:
        named = {path for path in paths if path == entry or path.endswith(f".{entry}")}
        if not named:
            raise ValueError(f"skip: {entry!r} names no module of the model")
        found |= {path for path in paths if any(path == n or path.startswith(f"{n}.") for n in named)}
    return found


def _packed(path: str, layer: Linear, how: dict) -> Linear4bit:
    try:
        return Linear4bit.from_linear(layer, **how)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
