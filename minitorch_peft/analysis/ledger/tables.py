"""A ledger on the terminal: bytes by purpose, the largest activations, the dearest operations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minitorch_peft.analysis.ledger.account import Ledger


def tables(ledger: Ledger, rows: int) -> Any:
    """The three tables of one ledger, under each other."""
    from rich.console import Group

    return Group(
        summary({"this": ledger}), activations(ledger, rows), operations(ledger, rows)
    )  # fmt: skip


def summary(ledgers: Mapping[str, Ledger]) -> Any:
    """One row for each ledger: bytes by purpose, and FLOPs of products."""
    headings = {
        "trainable": lambda x: f"{x.trainable:,}",
        "weights": lambda x: size(sum(x.weights.values())),
        "gradients": lambda x: size(x.gradients),
        "optimizer": lambda x: size(x.optimizer),
        "activations": lambda x: size(x.activation_bytes),
        "passing": lambda x: size(x.passing),
        "peak": lambda x: size(x.peak),
        "forward": lambda x: count(x.forward.products),
        "backward": lambda x: count(x.backward.products),
        "the rest": lambda x: count(x.forward.elementwise + x.backward.elementwise),
    }
    table = new_table("bytes at the worst moment of a step, and FLOPs", "method", *headings)
    for name, ledger in ledgers.items():
        table.add_row(name, *(cell(ledger) for cell in headings.values()))
    return table


def activations(ledger: Ledger, rows: int) -> Any:
    """The largest of what is alive when backward begins."""
    table = new_table("activations", "made in", "by", "shape", "kept by", "arrays", "bytes")
    for a in ledger.activations[:rows]:
        shape = " x ".join(map(str, a.shape))
        table.add_row(a.path or "-", a.operation, shape, a.kept_by or "the caller", str(a.count), size(a.bytes))
    if rest := ledger.activations[rows:]:
        table.add_row(
            f"{len(rest)} more", "", "", "", str(sum(a.count for a in rest)), size(sum(a.bytes for a in rest))
        )
    return table


def operations(ledger: Ledger, rows: int) -> Any:
    """The dearest operations: FLOPs of products and, behind +, of the rest."""
    table = new_table("operations", "in", "operation", "calls", "forward", "backward")
    for o in ledger.operations[:rows]:
        cells = (
            count(f.products) + (f" + {count(f.elementwise)}" if f.elementwise else "") for f in (o.forward, o.backward)
        )
        table.add_row(o.path or "-", o.operation, str(o.count), *cells)
    return table


def new_table(title: str, *headings: str) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    words = {"method", "made in", "by", "shape", "kept by", "in", "operation"}
    for heading in headings:
        table.add_column(heading, justify="left" if heading in words else "right", no_wrap=heading not in words)
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
    while value >= 1000 and len(prefixes) > 1:
        value, prefixes = value / 1000, prefixes[1:]
    shown = f"{value:.0f}" if not prefixes[0] else f"{value:.3g}"
    return f"{shown} {prefixes[0]}{unit}".strip()
