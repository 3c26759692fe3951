"""Builds the mock driver and starts processes that find it: for the tests of what stands on the device."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def build(folder: Path) -> Path:
    """The mock as libcuda.so.1 in ``folder``; Triton's caches go there too. Skips the test where it cannot be built."""
    triton, compiler = find_spec("triton"), shutil.which("cc")
    if triton is None or triton.origin is None or compiler is None:
        pytest.skip("needs triton and a C compiler")
    header = Path(triton.origin).parent / "backends" / "nvidia" / "include"
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-I", header, HERE / "mock_libcuda.c"]
    subprocess.run([*command, "-o", folder / "libcuda.so.1"], check=True)
    return folder


class Outcome:
    """A process that ran with the mock: its exit status and output, the launches, the account of memory."""

    def __init__(self, mock: Path, log: Path, *command: object, **settings: str):
        paths = {"LD_LIBRARY_PATH": mock, "TRITON_LIBCUDA_PATH": mock, "TRITON_CACHE_DIR": mock / "cache"}
        environment = os.environ | {k: str(v) for k, v in paths.items()} | {"MOCK_LOG": str(log)} | settings
        if "TRITON_INTERPRET" not in settings:
            environment.pop("TRITON_INTERPRET", None)
        folder = HERE.parents[1]  # where `python -m benchmarks.gpu` is run from
        run = [sys.executable, *map(str, command)]
        done = subprocess.run(run, env=environment, capture_output=True, text=True, cwd=folder)
        self.status, self.output, self.errors = done.returncode, done.stdout, done.stderr
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        self.launches = [line for line in lines if "kernel" in line]
        self.memory = next((line for line in lines if "granted" in line), None)

    @property
    def message(self) -> str:
        """The last line on stderr."""
        return (self.errors.strip().splitlines() or [""])[-1]

    @property
    def result(self) -> dict:
        assert self.status == 0, self.errors
        return json.loads(self.output)
