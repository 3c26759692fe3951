"""Ledgers on the terminal: bytes by purpose, FLOPs, the largest activations, the dearest operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minitorch_peft.analysis.ledger.account import Ledger

NOTE = (
    "[dim]Activations: what is kept between forward and backward. Passing: what else is alive at the worst moment, "
    "outputs and gradients on their way. Peak: weights, optimizer state, activations and passing. Operations are those "
    "of products of matrices, 2mnk each; backward makes them again for the gradient of each input (through the base, "
    "too, unless a method stands beside it) and of each weight that trains.[/dim]"
)

LEFT = {"method", "made in", "by", "shape", "kept by", "in", "operation", ""}


def tables(ledger: Ledger, rows: int) -> Any:
    """One ledger: its totals, and ``rows`` of its activations and of its operations."""
    from rich.console import Group

    return Group(totals({"": ledger}), activations(ledger, rows), operations(ledger, rows))


def totals(ledgers: Mapping[str, Ledger]) -> Any:
    """Bytes and FLOPs of several ledgers, one a row, in two tables that fit into 100 characters each."""
    from rich.console import Group

    held: dict[str, Callable[[Ledger], str]] = {
        "trainable": lambda x: f"{x.trainable:,}",
        "weights": lambda x: size(sum(x.weights.values())),
        "gradients": lambda x: size(x.gradients),
        "optimizer": lambda x: size(x.optimizer),
        "activations": lambda x: size(x.activation_bytes),
        "passing": lambda x: size(x.passing),
        "peak": lambda x: size(x.peak),
    }
    done: dict[str, Callable[[Ledger], str]] = {
        "forward": lambda x: count(x.forward.products),
        "backward": lambda x: count(x.backward.products),
        "both": lambda x: count(x.forward.products + x.backward.products),
        "not of products": lambda x: count(x.forward.elementwise + x.backward.elementwise),
    }
    tables = []
    for title, cells in (("bytes of a step", held), ("floating-point operations of a step", done)):
        table = new_table(title, "method" if [*ledgers] != [""] else "", *cells)
        for name, ledger in ledgers.items():
            table.add_row(name, *(cell(ledger) for cell in cells.values()))
        tables.append(table)
    return Group(*tables)


def held_against(predicted: Ledger, measured: Ledger) -> Any:
    """What was predicted, what a real step had, and their ratio."""
    table = new_table("predicted and measured", "", "predicted", "measured", "ratio")
    for (name, said), was in zip(predicted.totals().items(), measured.totals().values(), strict=True):
        show = count if "ward" in name else size
        table.add_row(name.replace("_", ", "), show(said), show(was), f"{said / was:.3f}" if was else "")
    return table


def activations(ledger: Ledger, rows: int) -> Any:
    """The largest of what is alive when backward begins."""
    table = new_table("activations: what is kept between forward and backward",
                      "made in", "by", "shape", "kept by", "arrays", "bytes")  # fmt: skip
    for a in ledger.activations[:rows]:
        shape = " x ".join(map(str, a.shape))
        table.add_row(a.path or "-", a.operation, shape, a.kept_by or "the caller", str(a.count), size(a.bytes))
    if rest := ledger.activations[rows:]:
        table.add_row(
            f"{len(rest)} more", "", "", "", str(sum(a.count for a in rest)), size(sum(a.bytes for a in rest))
        )
    return table


def operations(ledger: Ledger, rows: int) -> Any:
    """The dearest operations: FLOPs of products and, behind a plus, of the rest."""
    table = new_table("operations: products + the rest", "in", "operation", "calls", "forward", "backward")
    for o in ledger.operations[:rows]:
        costs = (f"{count(f.products)} + {count(f.elementwise)}" for f in (o.forward, o.backward))
        table.add_row(o.path or "-", o.operation, str(o.count), *costs)
    return table


def new_table(title: str, *headings: str) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in LEFT else "right", no_wrap=True)
    return table


def size(nbytes: int) -> str:
    """
    >>> size(950), size(57_200_000)
    ('950 B', '57.2 MB')
    """
    return count(nbytes, "B")


def count(number: int, unit: str = "") -> str:
    """Three digits, in units of a thousand.

    >>> count(0), count(47_407_104), count(999)
    ('0', '47.4 M', '999')
    """
    value, prefixes = float(number), ["", "k", "M", "G", "T"]
    while value >= 999.5 and len(prefixes) > 1:
        value, prefixes = value / 1000, prefixes[1:]
    shown = f"{value:.0f}" if not prefixes[0] else f"{value:#.3g}".rstrip(".")
    return f"{shown} {prefixes[0]}{unit}".strip()
