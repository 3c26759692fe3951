"""Where output goes: results to stdout, progress to stderr; with ``--json`` stdout holds one object only."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout, and nothing else there.")]
ResumeFlag = Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in the folder.")]


LOG_WIDTH = 140  # of tables in files and pipes


class Screen:
    """``say`` is for people and silent with ``--json``; ``result`` is for programs and needs it."""

    def __init__(self, json_only: bool = False) -> None:
        from rich.console import Console

        self.json_only = json_only
        self.out = Console(quiet=json_only, highlight=False)
        if not self.out.is_terminal:
            self.out.width = LOG_WIDTH
        self.err = Console(stderr=True, highlight=False)

    def say(self, renderable: Any = "", **options: Any) -> None:
        self.out.print(renderable, **options)

    def note(self, text: str) -> None:
        """A line about the run itself, on stderr."""
        self.err.print(text, soft_wrap=True, markup=False)

    def result(self, value: dict[str, Any]) -> None:
        if self.json_only:
            typer.echo(json.dumps(value, indent=2, allow_nan=False))
