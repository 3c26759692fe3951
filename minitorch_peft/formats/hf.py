"""Hugging Face directories, ``config.json`` and ``model.safetensors``, for model types gpt2 and llama.

``transformers`` writes and loads them. Here they become plain dicts: the fields of a ``GPTConfig`` and arrays
under our parameters' names. The tables of both families are in :mod:`minitorch_peft.formats.families`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minitorch_peft.formats.families import Family, Fields, expand, join, sizes, split, stored_shape
from minitorch_peft.formats.files import FileFormatError, read_arrays, read_json, write_arrays, write_json
from minitorch_peft.formats.hf_4bit import (
    KEY,
    State,
    check_quantization,
    join_packed,
    quantization_config,
    split_packed,
    take_packed,
)
from minitorch_peft.formats.hf_config import CONFIG, choose_family, read_config, write_config
from minitorch_peft.kernels.four_bit.layout import Quantized

WEIGHTS = "model.safetensors"
SAFE = "save it with transformers as one safetensors file: model.save_pretrained(dir, max_shard_size='100GB')"


def read_directory(directory: str | Path) -> tuple[dict[str, Any], dict[str, np.ndarray | Quantized]]:
    """(config fields, name to float32 array, or to ``Quantized``) of a saved model; float16 and bfloat16 are widened.

    A weight in four bits stands for the float32 values that it decodes to.

    Raises:
        FileFormatError: a file is missing or damaged, the model type is another, the config asks for what
            this GPT does not do (scaled rotary positions, ...), or a tensor is missing, unexpected or of
            another shape.
    """
    directory = Path(directory)
    config = read_json(directory / CONFIG)
    family, fields = read_config(config, directory / CONFIG)
    in_four_bits = check_quantization(config, directory / CONFIG)
    path = directory / WEIGHTS
    if not path.is_file():
        others = sorted(f.name for f in directory.glob("*") if f.suffix in (".safetensors", ".bin", ".json"))
        sharded = "is in several shards" if f"{WEIGHTS}.index.json" in others else "is missing"
        raise FileFormatError(path, f"{sharded} (found {', '.join(others)})", SAFE)
    state = from_hf(family, fields, read_arrays(path), path)
    if in_four_bits != any(isinstance(value, Quantized) for value in state.values()):
        problem = f"{'holds no' if in_four_bits else 'holds'} weights in four bits, against {CONFIG}"
        raise FileFormatError(path, problem, "copy both from one save")
    return fields, state


def write_directory(directory: str | Path, fields: Fields, state: State, format: str | None = None) -> None:
    """Write what ``transformers`` loads; the inverse of :func:`read_directory`.

    Args:
        directory: made where it does not exist.
        fields: those of the GPTConfig.
        state: our name to float32 array, or to ``Quantized``, of every parameter.
        format: "gpt2" or "llama"; None for the one that the config fits.

    Raises:
        ValueError: no format, or not this one, can hold such a model; or an array is not float32.
    """
    family = choose_family(fields, format)
    config, arrays = write_config(family, fields), to_hf(family, fields, state)
    if any(isinstance(value, Quantized) for value in state.values()):
        config[KEY] = quantization_config(list(expand(family, fields)), state)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_arrays(directory / WEIGHTS, arrays, {"format": "pt"})  # transformers 4 refuses a file without it
    write_json(directory / CONFIG, config)


def from_hf(
    family: Family, fields: Fields, arrays: Mapping[str, np.ndarray], path: str | Path = WEIGHTS
) -> dict[str, np.ndarray | Quantized]:
    """A file's tensors (or gradients, of the same names) to arrays under our names, all float32 or ``Quantized``."""
    rest = {name: a for name, a in arrays.items() if not name.endswith(family.buffers)}
    packed = {_full(name, family): q for name, q in take_packed(rest, path).items()}
    given: dict[str, Any] = {_full(name, family): a for name, a in rest.items()} | packed
    rows, axes = list(expand(family, fields)), sizes(fields)
    if fields["tie_word_embeddings"]:
        _drop_tied_head(given, rows[0].theirs, path)
    missing, unexpected = _differences({row.theirs for row in rows}, set(given))
    if missing or unexpected:
        problem = f"lacks {_some(missing)}, holds unknown {_some(unexpected)}"
        raise FileFormatError(path, problem, f"it does not belong to this {CONFIG}: copy both from one save")
    state: dict[str, np.ndarray | Quantized] = {}
    for row in rows:
        array, shape = given[row.theirs], stored_shape(row, axes)
        if isinstance(array, Quantized):
            state.update(zip(row.ours, split_packed(row, array, shape, path), strict=True))
            continue
        if array.shape != shape or array.dtype not in (np.float32, np.float16):
            problem = f"{row.theirs} is {array.dtype} {array.shape}, {CONFIG} makes it {shape}"
            raise FileFormatError(path, problem, "expected that shape, in float32, float16 or bfloat16")
        state.update(zip(row.ours, split(row, array.astype(np.float32, copy=False)), strict=True))
    return state


def to_hf(family: Family, fields: Fields, state: State) -> dict[str, np.ndarray]:
    """The inverse of :func:`from_hf`: arrays under our names to a file's tensors."""
    for name, array in state.items():
        if isinstance(array, np.ndarray) and array.dtype != np.float32:
            raise ValueError(f"{name} is {array.dtype}: these files hold float32, use model.astype first")
    rows = list(expand(family, fields))
    missing, unexpected = _differences({name for row in rows for name in row.ours}, set(state))
    if missing or unexpected:
        problem = f"it lacks {_some(missing)}, holds unknown {_some(unexpected)}"
        raise ValueError(f"the state is not that of a plain GPT: {problem}; merge or unload adapters first")
    tensors: dict[str, np.ndarray] = {}
    for row in rows:
        ours = [state[name] for name in row.ours]
        dense = [array for array in ours if isinstance(array, np.ndarray)]
        tensors |= {row.theirs: join(row, dense)} if len(dense) == len(ours) else join_packed(row, ours)
    return tensors


def _full(name: str, family: Family) -> str:
    """A tensor's name with the prefix, which files of the base model alone leave out."""
    return name if name.startswith((family.prefix, "lm_head.")) else family.prefix + name


def _drop_tied_head(given: dict[str, Any], embedding: str, path: str | Path) -> None:
    """Some files hold the shared weight twice."""
    head = given.pop("lm_head.weight", None)
    if isinstance(head, Quantized):
        problem = f"lm_head.weight is in four bits, though {CONFIG} ties it to the embedding"
        raise FileFormatError(path, problem, f"set tie_word_embeddings to false in {CONFIG}")
    if head is not None and embedding in given and not np.array_equal(head, given[embedding]):
        problem = f"lm_head.weight differs from {embedding} though {CONFIG} ties them"
        raise FileFormatError(path, problem, f"set tie_word_embeddings to false in {CONFIG}")


def _differences(expected: set[str], given: set[str]) -> tuple[list[str], list[str]]:
    return sorted(expected - given), sorted(given - expected)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (", ".join(names[:3]) + more) if names else "nothing"
