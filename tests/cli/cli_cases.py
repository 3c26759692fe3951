"""A base so small that every command takes a moment, and what a command left."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from minitorch_peft.models import GPT, GPTConfig

POSITIONS = 48


@dataclass
class Called:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """stdout must hold one object, and nothing else."""
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line that a failed command leaves on stderr, after what it said while it ran."""
        (line,) = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert "Traceback" not in self.err
        return line


def make_base(vocab_size: int) -> GPT:
    return GPT(GPTConfig(vocab_size, n_positions=POSITIONS, n_embd=16, n_layer=2, n_head=2), seed=0)


def adapt_options(base: object, letters: object) -> list[object]:
    return ["adapt", "--base", base, "--text", letters, "--steps", 4, "--batch-size", 2, "--length", 16,
            "--eval-every", 2, "--lr", 0.01]  # fmt: skip
