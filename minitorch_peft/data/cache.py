"""Parsed data kept on disk: written atomically, checked when read, made again when stale or damaged."""

from __future__ import annotations

import hashlib
import os
import sys
import warnings
from pathlib import Path

from minitorch_peft.formats.files import atomic_write

_MAGIC = "minitorch-peft cache 1"


def cache_dir() -> Path:
    """Where parsed data is kept: ``$MINITORCH_CACHE``, or the user's cache folder of the platform."""
    override = os.environ.get("MINITORCH_CACHE")
    if override:
        return Path(override)
    if sys.platform == "win32":
        root = os.environ.get("LOCALAPPDATA", str(Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        root = str(Path.home() / "Library" / "Caches")
    else:
        root = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    return Path(root) / "minitorch-peft"


def read(name: str, key: str) -> bytes | None:
    """The bytes stored as ``name`` under ``key``, or None when absent, made under another key, or damaged."""
    try:
        content = (cache_dir() / name).read_bytes()
    except OSError:
        return None
    header, _, body = content.partition(b"\n")
    return body if header == _header(key, body) else None


def write(name: str, key: str, body: bytes) -> None:
    """Store ``body`` so that a reader sees the old file or the whole new one. A folder that cannot be
    written costs time at the next start and nothing else, so it is a warning."""
    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / name) as temporary:
            temporary.write_bytes(_header(key, body) + b"\n" + body)
    except OSError as error:
        warnings.warn(
            f"cannot cache parsed data in {folder} ({error}); it will be parsed again next time. "
            "Set MINITORCH_CACHE to a folder that can be written.",
            stacklevel=2,
        )


def _header(key: str, body: bytes) -> bytes:
    digest = hashlib.blake2b(body, digest_size=16).hexdigest()
    return f"{_MAGIC} {key} {digest}".encode()
