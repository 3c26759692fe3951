"""The grader's side of a student's process: start it, ask it, and end it, whatever it does."""

from __future__ import annotations

import contextlib
import json
import math
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
from typing import IO, Any

from minitorch_peft.course import sandbox, wire
from minitorch_peft.course.expect import readable
from minitorch_peft.course.worker import LONGEST, READY

BOOT = Path(__file__).with_name("boot.py")
START_SECONDS = 60.0  # until the process is ready; nothing of the student's runs before
GRACE = 1.0  # seconds after which a write to a process that does not read is broken off
LARGEST_CALLBACK = 1 << 16  # bytes of its arguments; what a check lends a solution may be slow


class Stopped(BaseException):
    """The process cannot answer any more. Not an Exception: Hypothesis must not try again with smaller examples."""


class StartError(RuntimeError):
    """The process did not start: for want of something here, not by the student's doing."""


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
        self.limits, self.layers = limits, layers
        self.folder = tempfile.TemporaryDirectory(prefix="course-empty-", ignore_cleanup_errors=True)
        settings = {
            "layers": list(layers),
            "parent": os.getpid(),
            "cpu_seconds": limits.cpu_seconds,
            "memory": limits.memory,
            "readable": [*sandbox.readable_paths(str(library), hidden or []), self.folder.name],
        }
        command = [sys.executable, "-I", "-B", "-u", "-X", "utf8", str(BOOT)]
        command += [json.dumps(settings), str(library), probes]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            cwd=self.folder.name, env=environment(), start_new_session=True,
        )  # fmt: skip
        self.prints = b""
        self.frames: queue.Queue[Any] = queue.Queue(maxsize=1)
        self.gone = threading.Event()
        self.until = self.deadline = time.monotonic() + START_SECONDS
        self.readers = [threading.Thread(target=job, daemon=True) for job in (self._read_frames, self._read_prints)]
        for thread in (*self.readers, threading.Thread(target=self._watch, daemon=True)):
            thread.start()
        self._await_start()
        self.until, self.left = math.inf, limits.total_seconds  # while nothing is asked of it, no time runs

    def _await_start(self) -> None:
        try:
            ready = self._next() == READY
        except Stopped as stopped:
            raise StartError(f"a process for the student's code did not start: {stopped}") from None
        if not ready:
            self.close()
            raise StartError("a process for the student's code did not start as it should")

    def call(self, target: str, args: list[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The outcome of one call, as ``worker.perform`` gives it. Callbacks are answered on the way.

        Raises Stopped where the process ends, stays silent for too long, or says what nobody can read.
        """
        functions: list[Callable] = []
        started = time.monotonic()
        self.deadline = started + self.left
        self.until = min(started + self.limits.call_seconds, self.deadline)
        self._send({"target": target, "args": args, "kwargs": kwargs}, functions)
        while True:
            message = self._next()
            if isinstance(message, dict) and "callback" in message:
                self._answer(message, functions)
            elif is_outcome(message):
                self.until, self.left = math.inf, self.deadline - time.monotonic()
                return message
            else:
                self.close()
                raise Stopped("the process sent something that is no answer: does the code write to open files?")

    def _answer(self, message: dict[str, Any], functions: list[Callable]) -> None:
        number, arguments = message["callback"], message.get("arguments")
        if type(number) is not int or not 0 <= number < len(functions) or not isinstance(arguments, list):
            self.close()
            raise Stopped("the process called a function that it was not given")
        if size_of(arguments) > LARGEST_CALLBACK:
            self.close()
            raise Stopped("the process called a function that it was given with far too large an array")
        started, until, self.until = time.monotonic(), self.until, math.inf
        try:
            reply = {"value": functions[number](*arguments)}
        except Exception as error:  # of its arguments: the solution hears of it
            reply = {"raised": f"{type(error).__name__}: {error}"[:LONGEST]}
        taken = time.monotonic() - started  # by the grader, not by the solution
        self.until, self.deadline = until + taken, self.deadline + taken
        self._send(reply)

    def _send(self, value: Any, functions: list[Callable] | None = None) -> None:
        assert self.process.stdin is not None
        try:
            wire.send(self.process.stdin, value, functions)
        except (OSError, ValueError):  # a broken pipe, or one that was closed
            raise Stopped(self._how_it_ended()) from None

    def _next(self) -> Any:
        """The next message, however many are waiting not after ``until``."""
        try:
            remaining = self.until - time.monotonic()
            if remaining <= 0:
                raise queue.Empty
            message = self.frames.get(timeout=remaining)
        except queue.Empty:
            raise Stopped(self._how_it_ended()) from None
        if isinstance(message, wire.WireError):
            self.close()
            raise Stopped(f"the process sent something that is no answer ({message})")
        if message is None:
            raise Stopped(self._how_it_ended())
        return message

    def _how_it_ended(self) -> str:
        """Why there is no answer, in words. Ends what is left of the process."""
        if time.monotonic() >= self.until:
            self.close()
            if time.monotonic() >= self.deadline:
                return f"the task took more than {self.limits.total_seconds:g} s in all"
            return f"no answer within {self.limits.call_seconds:g} s: an endless loop?"
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
        tail = self.printed.strip().splitlines() or ["does the code close files that it did not open?"]
        return f"the process ended with exit code {code}: {tail[-1][:200]}"

    def _read_frames(self) -> None:
        """Frames into the queue; None at the end. The queue is short, so a flood of answers waits in the pipe."""
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            message: Any = READY
            while message is not None and not self.gone.is_set():
                message = received(stream)
                while not self.gone.is_set():
                    with contextlib.suppress(queue.Full):
                        self.frames.put(message, timeout=0.2)
                        break

    def _read_prints(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stream, contextlib.suppress(ValueError, OSError):
            while part := stream.read1(1 << 16):  # type: ignore[attr-defined]
                room = self.limits.printed - len(self.prints)
                self.prints += part[: max(room, 0)]

    def _watch(self) -> None:
        """End the process when its time is over, for a write to it may wait for ever."""
        while not self.gone.wait(0.2):
            if time.monotonic() > self.until + GRACE:
                self._kill()
                return

    def _kill(self) -> None:
        """All that is in the process's session. Under the sandbox that is the process alone."""
        if self.process.poll() is None or "seccomp" not in self.layers:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, 9) if hasattr(os, "killpg") else self.process.kill()

    @property
    def printed(self) -> str:
        """The first of what the code printed."""
        return readable(self.prints.decode(errors="replace"))

    def close(self) -> None:
        """End the process and all that it started in its session, and remove its folder."""
        self.gone.set()
        self._kill()
        self.process.wait()
        with contextlib.suppress(OSError, ValueError):
            if self.process.stdin is not None:
                self.process.stdin.close()
        for thread in self.readers:  # they close their pipes; one that a runaway child holds open is left to itself
            thread.join(timeout=1)
        self.folder.cleanup()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


SIGNALS = {6: "abort", 9: "killed: out of time or memory", 11: "segmentation fault", 24: "out of CPU time"}


def received(stream: IO[bytes]) -> Any:
    """The next frame's value; None where there will be no more; the WireError where it is none."""
    try:
        return wire.receive(stream, refuse)
    except (EOFError, ValueError, OSError, MemoryError):
        return None
    except wire.WireError as error:
        return error


def size_of(value: Any) -> int:
    """The bytes of the arrays in a value; other things count as one number each."""
    if isinstance(value, list | dict):
        return sum(map(size_of, value.values() if isinstance(value, dict) else value))
    return int(getattr(value, "nbytes", 8))


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
            and max(len(message["error"]), len(message["message"])) <= LONGEST
            and isinstance(lines, list)
            and all(isinstance(x, list) and len(x) == 2 and type(x[0]) is str and type(x[1]) is int for x in lines)
        )
    return "value" in message and isinstance(message.get("args"), list) and isinstance(message.get("kwargs"), dict)


def environment() -> dict[str, str]:
    """A few variables; the kernels' NumPy reference, on one thread, the same hashes every time."""
    kept = {
        k: os.environ[k] for k in ("PATH", "SYSTEMROOT", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE") if k in os.environ
    }
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    return {**kept, **threads, "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "MINITORCH_KERNELS": "reference"}
