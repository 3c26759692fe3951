"""Time contenders fairly: one process each, driven alternately.

Two thread pools in one process corrupt each other's timings, and a machine's speed drifts: so each contender lives in
a process of its own, and the driver lets them run in turn, a slice at a time, for several rounds. Ratios are of
medians, with the spread over the rounds.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# The clone's folder must not be on the path of a process that imports the peers: they look for a package called
# ``kernels`` and would find ours. So it is there only while the package ``benchmarks`` is found.
BOOTSTRAP = f"""
import runpy, sys
sys.argv.pop(0)
sys.path.append({str(Path(__file__).resolve().parents[1])!r})
import benchmarks
sys.path.pop()
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
KEEP_BUFFERS = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
"""Settings with which the C library keeps freed buffers, as our kernels ask of it (kernels/memory.py)."""

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclass
class Contender:
    """A process that answers ``time`` and ``memory``: ``benchmarks.<module>``, run with ``arguments``."""

    name: str
    module: str
    arguments: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    memory: int = 0

    def start(self, threads: int) -> None:
        env = dict(os.environ) | dict.fromkeys(THREAD_VARIABLES, str(threads)) | self.environment
        self.rounds: list[list[float]] = []
        command = [sys.executable, "-P", "-c", BOOTSTRAP, f"benchmarks.{self.module}", *self.arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        self.hello = self._read()

    def ask(self, command: str, *values: Any) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join([command, *map(str, values)]) + "\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"contender {self.name} died (exit {self.process.wait()}); its message is above")
        return json.loads(line)

    def stop(self) -> None:
        self.process.stdin.close()  # type: ignore[union-attr]
        self.process.wait(timeout=60)

    @property
    def seconds(self) -> float:
        return statistics.median(t for times in self.rounds for t in times)


def run(contenders: list[Contender], rounds: int, slice_seconds: float, threads: int) -> None:
    """Start all, let each run ``slice_seconds`` in every round, in turn."""
    for c in contenders:
        c.start(threads)
    try:
        for _ in range(rounds):
            for c in contenders:
                c.rounds.append(c.ask("time", slice_seconds))
                time.sleep(0.2)  # let its workers go to sleep before the next one starts
        for c in contenders:
            c.memory = c.ask("memory")
    finally:
        for c in contenders:
            c.stop()


def ratio(peer: Contender, ours: Contender) -> tuple[float, float, float]:
    """peer's time / our time, above 1 is faster: of the medians, and the lowest and highest round."""
    by_round = [statistics.median(p) / statistics.median(o) for p, o in zip(peer.rounds, ours.rounds, strict=True)]
    return peer.seconds / ours.seconds, min(by_round), max(by_round)


def serve(step: Callable[[], float], baseline: int) -> None:
    """A contender's side: run warm-up steps, report their losses, then answer commands until input ends."""
    say([round(step(), 5) for _ in range(3)])
    for line in sys.stdin:
        command, *values = line.split()
        if command == "time":
            say(times_of(step, float(values[0])))
        elif command == "memory":
            say(peak_bytes(step) - baseline)


class Prepared(NamedTuple):
    """One case of a contender: what to time, the arrays that it computes, and the work that it cannot do without."""

    step: Callable[[], Any]
    arrays: Callable[[], Any]
    """An array, or a tuple or list of them (None where there is none)."""
    bytes: int = 0
    flops: int = 0


def serve_cases(prepare: Callable[[str], Prepared]) -> None:
    """The side of a contender that runs many cases: ``prepare NAME`` (once), then ``time SECONDS`` (as often as asked).

    The first answers with a fingerprint of the results, bytes and operations.
    """
    say("ready")
    for line in sys.stdin:
        command, value = line.split(maxsplit=1)
        if command == "prepare":
            case = prepare(value.strip())
            say([fingerprint(case.arrays()), case.bytes, case.flops])
        elif command == "time":
            say(times_of(case.step, float(value)))


def times_of(step: Callable[[], Any], seconds: float) -> list[float]:
    """How long each step took, of at least two and as many as begin within ``seconds``."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return times


def fingerprint(results: Any) -> list[tuple[float, float]]:
    """Of each array of a result its norm, and its product with a fixed vector: equal arrays have equal ones.

    >>> fingerprint((np.array([3.0, 4.0]), None))[0][0]
    5.0
    """
    arrays = results if isinstance(results, (tuple, list)) else (results,)
    flat = [np.asarray(a, np.float64).reshape(-1) for a in arrays if a is not None]
    return [(float(np.linalg.norm(a)), float(a @ np.cos(0.7 * np.arange(a.size)))) for a in flat]


def say(value: Any) -> None:
    print(json.dumps(value), flush=True)


def resident_bytes() -> int:
    """Memory of this process now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak_bytes(step: Callable[[], float]) -> int:
    """The highest resident memory while one step runs (Linux: the peak counter is reset first)."""
    Path("/proc/self/clear_refs").write_text("5")
    step()
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
