"""Checkpoints: one file each, written atomically, checked when read."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minitorch_peft.formats.files import FileFormatError, read_arrays, read_metadata, write_arrays
from minitorch_peft.training.errors import CheckpointError
from minitorch_peft.training.fingerprint import digest

_NAME = re.compile(r"step-(\d{8})\.safetensors")
_TEMPORARY = (".step-*.tmp", ".metrics.jsonl.*.tmp")  # left by a process that was killed while it wrote


@dataclass
class Checkpoint:
    """``arrays`` by name, and ``info``: everything else, as JSON."""

    step: int
    arrays: dict[str, np.ndarray]
    info: dict[str, Any]

    def part(self, name: str) -> dict[str, np.ndarray]:
        """The arrays called ``name/...``, by the rest of their names."""
        return {key[len(name) + 1 :]: a for key, a in self.arrays.items() if key.startswith(f"{name}/")}


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """One safetensors file, a checksum in its metadata. OSError where the disk refuses."""
    info = json.dumps({"step": checkpoint.step, **checkpoint.info})
    checksum = digest(checkpoint.arrays.items(), info)
    write_arrays(path, checkpoint.arrays, {"minitorch_peft": info, "checksum": checksum})


def read_checkpoint(path: Path) -> Checkpoint:
    """Raises CheckpointError where a single bit of the file is not what was written."""
    try:
        metadata, arrays = read_metadata(path), read_arrays(path)
    except FileFormatError as error:
        raise CheckpointError(str(error)) from error
    if "minitorch_peft" not in metadata or "checksum" not in metadata:
        raise CheckpointError(f"{path}: is no checkpoint of a training run (it has no checksum)")
    if digest(arrays.items(), metadata["minitorch_peft"]) != metadata["checksum"]:
        raise CheckpointError(f"{path}: is damaged: its checksum is not that of what was written")
    info = json.loads(metadata["minitorch_peft"])
    return Checkpoint(info.pop("step"), arrays, info)


class CheckpointFolder:
    """The checkpoints of one run: ``step-00000120.safetensors`` was written after 120 steps."""

    def __init__(self, path: str | Path, keep: int) -> None:
        self.path = Path(path)
        self.keep = keep

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Make the folder, hold its lock, and remove what a killed process left half-written.

        The lock is the operating system's: it ends with the process, however that ends. (On systems without
        ``flock`` two runs in one folder are not noticed.)
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / ".lock", "w") as lock:
            self._lock(lock.fileno())
            for stale in (path for pattern in _TEMPORARY for path in self.path.glob(pattern)):
                stale.unlink()
            yield

    def _lock(self, descriptor: int) -> None:
        try:
            import fcntl
        except ImportError:
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckpointError(
                f"{self.path}: another process is training in this folder; wait for it, or choose another out"
            ) from error

    def paths(self) -> list[Path]:
        """All checkpoints, the oldest first."""
        return sorted(p for p in self.path.glob("step-*.safetensors") if _NAME.fullmatch(p.name))

    def at(self, step: int) -> Path:
        return self.path / f"step-{step:08d}.safetensors"

    def save(self, checkpoint: Checkpoint, best_step: int = 0) -> Path:
        """Write a checkpoint, and only then remove those that are neither the newest nor the best.

        Raises:
            CheckpointError: it could not be written; those that were there are untouched.
        """
        path = self.at(checkpoint.step)
        try:
            write_checkpoint(path, checkpoint)
        except OSError as error:
            raise CheckpointError(f"{path} could not be written: {error}. {self.advice()}") from error
        kept = {*self.paths()[-self.keep :], self.at(best_step), path}
        for old in self.paths():
            if old not in kept:
                with suppress(OSError):  # an old checkpoint too many does no harm
                    old.unlink()
        return path

    def advice(self) -> str:
        """Where the last good checkpoint is, as the end of an error message."""
        saved = self.paths()
        if not saved:
            return f"There is no checkpoint in {self.path} yet."
        step = int(saved[-1].name[5:13])
        return f"The last good checkpoint, after step {step}, is kept: {saved[-1]} (resume=True continues it)."

    def load_newest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; None where there is none at all.

        A damaged one is set aside (renamed to ``*.corrupt``) with a warning, and the one before it is taken.

        Raises:
            CheckpointError: there are checkpoints, and all are damaged.
        """
        problems: list[str] = []
        for path in reversed(self.paths()):
            try:
                checkpoint = read_checkpoint(path)
            except CheckpointError as error:
                os.replace(path, path.with_name(path.name + ".corrupt"))
                problems.append(str(error))
                continue
            if problems:
                warnings.warn(
                    f"{'; '.join(problems)}. Set aside as *.corrupt; going on from {path} instead",
                    stacklevel=2,
                )
            return checkpoint
        if problems:
            raise CheckpointError(f"no usable checkpoint in {self.path}: {'; '.join(problems)}. Start anew")
        return None
