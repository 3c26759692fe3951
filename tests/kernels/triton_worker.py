"""Calls functions of the kernels in a process of its own, where Triton interprets: it decides that when it is imported.

``Worker`` starts the process, and sends it calls (pickled) for as long as it lives; this file is also its program.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from importlib import import_module
from typing import Any


class Worker:
    """``worker("lora.triton", "lora_linear_forward", *args)`` is that function's result, or raises what it raised."""

    def __init__(self) -> None:
        environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONWARNINGS": "ignore"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen([sys.executable, "-P", __file__], env=environment, **pipes)

    def __call__(self, module: str, function: str, *args: Any, **options: Any) -> Any:
        assert self.process.stdin and self.process.stdout
        pickle.dump((module, function, args, options), self.process.stdin)
        self.process.stdin.flush()
        raised, result = pickle.load(self.process.stdout)
        if raised:
            raise result
        return result

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


def serve() -> None:
    """Answer calls until the pipe is closed."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing else may be written between two answers
    while True:
        try:
            module, function, args, options = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = False, getattr(import_module(f"minitorch_peft.kernels.{module}"), function)(*args, **options)
        except Exception as error:
            answer = True, error
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    serve()
