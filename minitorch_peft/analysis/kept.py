"""Results that are made once and kept in a file each, so that a stopped experiment goes on where it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from minitorch_peft.formats.files import FileFormatError, read_json, write_json


def kept(path: Path, made_with: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the file holds if it was made with the same settings; else ``make()``, which is then stored there."""
    found = stored(path, made_with)
    if found is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        found = {**make(), "made_with": made_with}
        write_json(path, found)
    return found


def stored(path: Path, made_with: dict[str, Any]) -> dict[str, Any] | None:
    """None where there is no result, or one of other settings, or a damaged one."""
    try:
        found = read_json(path)
    except FileFormatError:
        return None
    return found if found.get("made_with") == made_with else None
