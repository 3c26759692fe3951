"""The grader's side of a student's process: start it, ask it, and end it, whatever it does."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minitorch_peft.course import sandbox, wire

BOOT = (
    "import runpy, sys; runpy.run_path(sys.argv[1])['confine'](sys.argv[2]); sys.path.insert(0, sys.argv[3]); "
    "from minitorch_peft.course.worker import serve; serve(sys.argv[4])"
)


class Stopped(BaseException):
    """The process cannot answer any more. Not an Exception: Hypothesis must not try again with smaller examples."""


@dataclass(frozen=True)
class Limits:
    """Seconds of wall clock for one call and for all, of CPU for all; bytes of memory; bytes of prints kept."""

    call_seconds: float = 10.0
    total_seconds: float = 60.0
    cpu_seconds: int = 40
    memory: int = 2 << 30
    printed: int = 4000


class Process:
    """Runs ``library`` (a folder with the package in it) under the sandbox's ``layers``.

    ``hidden``: folders that hold the reference, which it must not be able to read.
    """

    def __init__(
        self, library: Path, probes: str, limits: Limits, layers: tuple[str, ...], hidden: list[str] | None = None
    ) -> None:
        self.limits = limits
        self.deadline = time.monotonic() + limits.total_seconds
        self.folder = tempfile.TemporaryDirectory(prefix="course-empty-", ignore_cleanup_errors=True)
        settings = {
            "layers": list(layers),
            "cpu_seconds": limits.cpu_seconds,
            "memory": limits.memory,
            "readable": [*sandbox.readable_paths(str(library), hidden or []), self.folder.name],
        }
        command = [sys.executable, "-I", "-B", "-u", "-X", "utf8", "-c", BOOT]
        arguments = [str(Path(sandbox.__file__)), json.dumps(settings), str(library), probes]
        self.process = subprocess.Popen(
            command + arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            cwd=self.folder.name, env=environment(), start_new_session=True,
        )  # fmt: skip
        self.prints = b""
        self.frames: queue.Queue[Any] = queue.Queue(maxsize=4)
        self.gone = threading.Event()
        for job in (self._read_frames, self._read_prints):
            threading.Thread(target=job, daemon=True).start()

    def call(self, target: str, args: list[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The outcome of one call, as ``worker.perform`` gives it. Callbacks are answered on the way.

        Raises Stopped where the process ends, stays silent for too long, or says what nobody can read.
        """
        functions: list[Callable] = []
        until = min(time.monotonic() + self.limits.call_seconds, self.deadline)
        self._send({"target": target, "args": args, "kwargs": kwargs}, functions)
        while True:
            message = self._next(until)
            if isinstance(message, dict) and "callback" in message:
                self._answer(message, functions)
            elif is_outcome(message):
                return message
            else:
                self.close()
                raise Stopped("the process sent something that is no answer: does the code write to open files?")

    def _answer(self, message: dict[str, Any], functions: list[Callable]) -> None:
        number, arguments = message["callback"], message.get("arguments")
        if type(number) is not int or not 0 <= number < len(functions) or not isinstance(arguments, list):
            self.close()
            raise Stopped("the process called a function that it was not given")
        self._send(functions[number](*arguments), [])

    def _send(self, value: Any, functions: list[Callable]) -> None:
        assert self.process.stdin is not None
        try:
            wire.send(self.process.stdin, value, functions)
        except (BrokenPipeError, OSError):
            raise Stopped(self._how_it_ended()) from None

    def _next(self, until: float) -> Any:
        try:
            message = self.frames.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            spent = time.monotonic() >= self.deadline
            self.close()
            if spent:
                raise Stopped(f"the task took more than {self.limits.total_seconds:g} s in all") from None
            raise Stopped(f"no answer within {self.limits.call_seconds:g} s: an endless loop?") from None
        if isinstance(message, wire.WireError):
            self.close()
            raise Stopped(f"the process sent something that is no answer ({message})")
        if message is None:
            raise Stopped(self._how_it_ended())
        return message

    def _how_it_ended(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=2)
        code = self.process.poll()
        self.close()
        if code is None:
            return "the process closed its pipe without an answer"
        if code == 0:
            return "the process ended during the call, without an answer (a call of os._exit?)"
        if code < 0:
            return f"the process was ended by signal {-code} ({SIGNALS.get(-code, 'a crash')})"
        tail = self.prints.decode(errors="replace").strip().splitlines()
        return f"the process ended with exit code {code}" + (f": {tail[-1][:200]}" if tail else "")

    def _read_frames(self) -> None:
        """Frames into the queue; None at the end. The queue is short, so a flood of answers waits in the pipe."""
        assert self.process.stdout is not None
        while not self.gone.is_set():
            try:
                message: Any = wire.receive(self.process.stdout, refuse)
            except (EOFError, ValueError, OSError):
                message = None
            except wire.WireError as error:
                message = error
            while not self.gone.is_set():
                with contextlib.suppress(queue.Full):
                    self.frames.put(message, timeout=0.2)
                    break
            if message is None or isinstance(message, wire.WireError):
                return

    def _read_prints(self) -> None:
        assert self.process.stderr is not None
        with contextlib.suppress(ValueError, OSError):
            while part := self.process.stderr.read1(1 << 16):  # type: ignore[attr-defined]
                room = self.limits.printed - len(self.prints)
                self.prints += part[: max(room, 0)]

    @property
    def printed(self) -> str:
        """The first of what the code printed."""
        return self.prints.decode(errors="replace")

    def close(self) -> None:
        """End the process and all that it started in its session, and remove its folder."""
        self.gone.set()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, 9) if hasattr(os, "killpg") else self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            with contextlib.suppress(BrokenPipeError, OSError, ValueError):
                if pipe is not None and pipe is not self.process.stderr:
                    pipe.close()
        self.folder.cleanup()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


SIGNALS = {6: "abort", 9: "killed: out of time or memory", 11: "segmentation fault", 24: "out of CPU time"}


def refuse(number: int, arguments: list[Any]) -> Any:
    raise wire.WireError("a function in an answer")


def is_outcome(message: Any) -> bool:
    """Has the message the form that ``worker.perform`` gives? Nothing of it is trusted before."""
    if not isinstance(message, dict):
        return False
    if "error" in message:
        lines = message.get("lines")
        return (
            isinstance(message["error"], str)
            and isinstance(message.get("message"), str)
            and isinstance(lines, list)
            and all(isinstance(x, list) and len(x) == 2 and isinstance(x[0], str) for x in lines)
        )
    return "value" in message and isinstance(message.get("args"), list) and isinstance(message.get("kwargs"), dict)


def environment() -> dict[str, str]:
    """A few variables; the kernels' NumPy reference, on one thread, the same hashes every time."""
    kept = {
        k: os.environ[k] for k in ("PATH", "SYSTEMROOT", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE") if k in os.environ
    }
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    return {**kept, **threads, "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "MINITORCH_KERNELS": "reference"}
