"""Exit codes, and how an error becomes one line on stderr.

====  =====================================================================================================
   0  done
   1  an error that nobody foresaw: a bug, shown with its traceback
   2  usage: an unknown command, option, method, target or value; what was asked for does not fit the model
   3  a file or a checkpoint is missing, damaged, or does not belong to the others
   4  data is missing or unfit: a translation's package, a text that is too short
   5  training diverged (the loss is no number); the last good checkpoint is kept
   6  output could not be written: a full disk, a folder without permission
 130  interrupted by Ctrl-C (in general 128 + the signal's number); training was saved first
====  =====================================================================================================
"""

from __future__ import annotations

import os
import warnings
from typing import Any, Final

import typer
from typer.core import TyperGroup

USAGE: Final = 2
FILE: Final = 3
DATA: Final = 4
DIVERGED: Final = 5
OUTPUT: Final = 6
INTERRUPTED: Final = 130

OPTIONS: Final = {"resume=True": "--resume", "do_sample=True": "--sample"}  # the library's advice, in our words


class CommandError(Exception):
    """What a command itself finds wrong: a message for the user, and the exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Guarded(TyperGroup):
    """A group of commands in which foreseen errors end with one line and a code instead of a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = show_warning
                return super().invoke(ctx)
        except (Exception, KeyboardInterrupt) as error:
            code = exit_code(error)
            if code is None or os.environ.get("MINITORCH_DEBUG") == "1":
                raise
            typer.echo(f"error: {describe(error)}", err=True)
            raise typer.Exit(code) from error


def exit_code(error: BaseException) -> int | None:
    """The code of a foreseen error; None for any other, which is a bug (or typer's own way to leave)."""
    if isinstance(error, typer.Exit | typer.Abort):
        return None
    from minitorch_peft.analysis.texts import TextError
    from minitorch_peft.data.alignment import AlignmentError
    from minitorch_peft.formats.files import FileFormatError
    from minitorch_peft.training.errors import CheckpointError, TrainingError, TrainingInterrupted

    if isinstance(error, CommandError):
        return error.code
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, TrainingInterrupted):
        return 128 + error.signal
    if isinstance(error, CheckpointError) and isinstance(error.__cause__, OSError):
        return OUTPUT
    if isinstance(error, FileFormatError | FileNotFoundError | CheckpointError):
        return FILE
    if isinstance(error, ModuleNotFoundError):  # ours names no module; one of a broken installation does
        return DATA if error.name is None else None
    if isinstance(error, AlignmentError | TextError):
        return DATA
    if isinstance(error, TrainingError):
        return DIVERGED
    if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
        return OUTPUT
    return USAGE if isinstance(error, ValueError) else None


def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning as one line too."""
    typer.echo(f"warning: {' '.join(str(message).split())}", err=True)


def describe(error: BaseException) -> str:
    """The message in one line, in the command line's words."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    message = " ".join(str(error).split()) or type(error).__name__
    for argument, option in OPTIONS.items():
        message = message.replace(argument, option)
    return message
