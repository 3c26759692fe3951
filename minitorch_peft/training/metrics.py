"""The log of a run: one JSON object a line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from minitorch_peft.formats.files import atomic_write


class MetricsLog:
    """Appends to ``path``. Each line reaches the operating system at once, so a killed process loses none.

    Opening it for a run that stands after ``step`` steps drops a torn last line and the lines of later steps,
    which will be taken again.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        rewind(path, step)
        self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (see close)

    def write(self, line: dict[str, Any]) -> None:
        """Raises OSError where the disk refuses."""
        self.file.write(json.dumps(line, allow_nan=False) + "\n")
        self.file.flush()

    def sync(self) -> None:
        os.fsync(self.file.fileno())

    def close(self) -> None:
        self.file.close()


def rewind(path: Path, step: int) -> None:
    """Keep the whole lines up to ``step``. The file is replaced, never cut in place."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return
    kept = [line for line in lines if (found := step_of(line)) is not None and found <= step]
    if len(kept) < len(lines):
        with atomic_write(path) as temporary:
            temporary.write_bytes(b"".join(kept))


def step_of(line: bytes) -> int | None:
    """The line's step, None where the line is torn."""
    try:
        return json.loads(line)["step"] if line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError):
        return None
