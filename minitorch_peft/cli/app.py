"""The commands, put together. Each stands in a file of its own and imports what it needs when it runs."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Annotated

import typer

from minitorch_peft.cli.adapt import adapt
from minitorch_peft.cli.compare import compare
from minitorch_peft.cli.course import course
from minitorch_peft.cli.errors import Guarded
from minitorch_peft.cli.generate import generate
from minitorch_peft.cli.inspect import inspect
from minitorch_peft.cli.ledger import ledger
from minitorch_peft.cli.merge import merge
from minitorch_peft.cli.pretrain import pretrain

app = typer.Typer(
    cls=Guarded,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=(
        "Exit codes: 0 done · 2 usage · 3 bad or missing file · 4 missing data · 5 training diverged · "
        "6 output not writable · 130 interrupted. MINITORCH_DEBUG=1 shows tracebacks."
    ),
)


def print_version(wanted: bool) -> None:
    if wanted:
        from minitorch_peft import __version__

        typer.echo(f"minitorch-peft {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Efficient adaptation of language models, from scratch: a tiny GPT, every method by hand.

    Start with `minitorch-peft compare`: it adapts a model that knows modern English to the English of
    1395, by six methods, and shows what each one costs and what it forgets.
    """


for command in (compare, adapt, generate, merge, inspect, ledger, pretrain):
    app.command()(command)

app.add_typer(course, name="course")
if find_spec("minitorch_peft.cli.teaching"):  # a handout has no teacher's part
    import_module("minitorch_peft.cli.teaching")
    import_module("minitorch_peft.cli.grading")
