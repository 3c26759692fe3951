"""Files of arrays (safetensors) and of settings (JSON): written whole or not at all, read or refused."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy


class FileFormatError(ValueError):
    """A file that is missing, damaged or of the wrong kind: which, what is wrong with it, what to do."""

    def __init__(self, path: str | Path, problem: str, advice: str) -> None:
        super().__init__(f"{path}: {problem}; {advice}")
        self.path = Path(path)


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path``, which takes its place when the block ends without an error.

    Whatever happens, ``path`` holds either what it held before or all that is new: the new bytes are on the
    disk before the rename. An error removes the temporary file; only a killed process can leave one
    (``.NAME.*.tmp``).

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "notes.txt"
    >>> with atomic_write(path) as temporary:
    ...     _ = temporary.write_text("all of it")
    >>> path.read_text()
    'all of it'
    """
    target = Path(os.path.realpath(path))  # through a link, to the file that it names
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, target)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
    if hasattr(os, "O_DIRECTORY"):  # make the rename itself durable, where a directory can be flushed
        _flush(target.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_arrays(path: str | Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file of named arrays, each in its own dtype, atomically."""
    # safetensors takes an array's memory as it lies, so transposed and sliced arrays are laid out first
    dense = {name: np.asarray(a, order="C") for name, a in arrays.items()}
    data = safetensors.numpy.save(dense, dict(metadata) if metadata else None)
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Name to array, in the file's dtypes; bfloat16, which NumPy lacks, becomes float32, value for value."""
    with _opened(path) as file:
        kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        arrays = {name: file.get_tensor(name) for name, kind in kinds.items() if kind in _NUMPY}
    if "BF16" in kinds.values():
        arrays |= _read_bfloat16(Path(path))
    if unknown := sorted(set(kinds.values()) - _NUMPY - {"BF16"}):
        raise FileFormatError(path, f"holds {', '.join(unknown)} tensors", "convert them to float32 first")
    return {name: arrays[name] for name in kinds}


def read_metadata(path: str | Path) -> dict[str, str]:
    """The text that was written beside the arrays, {} where there is none."""
    with _opened(path) as file:
        return file.metadata() or {}


_NUMPY = {"F64", "F32", "F16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"}


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    if not Path(path).is_file():
        raise FileFormatError(path, "no such file", "check the path")
    try:
        with safetensors.safe_open(path, framework="np") as file:
            yield file
    except safetensors.SafetensorError as error:
        advice = "it is truncated, corrupt or not a safetensors file: copy or write it again"
        raise FileFormatError(path, f"cannot be read ({error})", advice) from error


def _read_bfloat16(path: Path) -> dict[str, np.ndarray]:
    """Its bfloat16 tensors, widened: a bfloat16 is the upper half of a float32, so no value changes."""
    wide = {}
    for name, tensor in safetensors.deserialize(path.read_bytes()):
        if tensor["dtype"] == "BF16":
            upper = np.frombuffer(tensor["data"], "<u2").astype(np.uint32) << 16
            wide[name] = upper.view(np.float32).reshape(tensor["shape"])
    return wide


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON (indented, keys sorted), atomically; ValueError for NaN and infinities, which JSON lacks."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise FileFormatError(path, "no such file", "check the path") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FileFormatError(path, f"is not JSON ({error})", "copy or write it again") from error
    if not isinstance(value, dict):
        raise FileFormatError(path, f"holds a JSON {type(value).__name__}", "expected an object: {...}")
    return value
