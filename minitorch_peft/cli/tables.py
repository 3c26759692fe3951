"""The table of a comparison: one where the terminal is wide enough, else costs and effects in two."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minitorch_peft.analysis.plan import Plan
    from minitorch_peft.analysis.summary import Row

FIELD_WIDE = 110
WIDE = 134  # characters that the whole table needs

NOTE = (
    "[dim]Bits per byte, lower is better, as mean ± standard deviation over seeds; before adapting: the first "
    "row. Forgotten: what was lost on modern English. Base: the bytes of the model before adapting, in memory. Peak "
    "memory: all arrays alive at the worst moment of a training step (weights, gradients, optimizer state, "
    "activations).[/dim]"
)

FIELD_NOTE = (
    "[dim]Stored a task: what running the adapter needs, without networks that only train. Joules of training: from "
    "the machine's meter where it may be read (RAPL), else 10 W of processor time; the JSON says which. "
    "Ms a token: generating 32 tokens after 32 with the cache, the base alone in the first row; merged: with the "
    "adapter written into the weights, where that can be.[/dim]"
)


def comparison_title(plan: Plan, seeds: int) -> str:
    return (
        f"{plan.base} adapted to {plan.translation}: {plan.steps} steps of {plan.batch_size} x {plan.length} "
        f"tokens, {seeds} seed{'s' if seeds > 1 else ''}"
    )


def comparison_tables(title: str, rows: Sequence[Row], before: dict[str, float], width: int) -> Iterator[Any]:
    """What is to be printed on a terminal of ``width`` characters, in order."""
    costs, effects = cost_columns(rows), effect_columns(rows, before)
    if width >= WIDE:
        yield table(title, rows, {**costs, **effects})
    else:
        yield table(f"{title}. Costs", rows, costs)
        yield table("Learned and forgotten", rows, effects)
    yield NOTE
    yield from (packed_note(row) for row in rows if row.packed is not None)


def field_tables(title: str, rows: Sequence[Row], before: dict[str, float], width: int) -> Iterator[Any]:
    """The whole field at one budget, the best learner first: what each learned, and what it cost."""
    from minitorch_peft.analysis.summary import human_bytes

    ordered = sorted(rows, key=lambda r: r.bits["held_out"].mean)
    changes = {"changes": ["", *(r.contender.folder for r in ordered)]}
    rates = {"rate": ["", *(f"{r.contender.lr:g}" for r in ordered)]}
    deployed = {"stored\na task": ["", *(human_bytes(r.deployed_bytes) for r in ordered)]}
    costs = {h: c for h, c in cost_columns(ordered).items() if h not in ("%", "base", "stored\na task")}
    training, use = {**changes, **rates, **costs}, {**deployed, **use_columns(ordered)}
    yield table(title, ordered, effect_columns(ordered, before))
    if width >= FIELD_WIDE:
        yield table("What it cost", ordered, {**training, **use})
    else:
        yield table("What training cost", ordered, training)
        yield table("What storing and using it costs", ordered, use)


def use_columns(rows: Sequence[Row]) -> dict[str, list[str]]:
    """What training takes of energy, and a generated token of time."""

    def milliseconds(seconds: float | None) -> str:
        return "" if seconds is None else f"{seconds * 1e3:.2f}"

    alone = [r.seconds_per_token.get("base") for r in rows]
    base = min((s for s in alone if s is not None), default=None)
    return {
        "joules": ["", *(f"{r.joules:.0f}" for r in rows)],
        "ms\na token": [milliseconds(base), *(milliseconds(r.seconds_per_token.get("adapter")) for r in rows)],
        "ms\nmerged": ["", *(milliseconds(r.seconds_per_token.get("merged")) for r in rows)],
    }


def packed_note(row: Row) -> str:
    """What storing the base in four bits took and cost, before anything was learned."""
    assert row.packed is not None
    bits, before = row.packed
    return (
        f"[dim]{row.contender.title}: the weights of the base's linear layers take {bits:.3f} bits each instead of "
        f"32; before adapting it has {before['held_out']:.3f} bits per byte on held-out books, "
        f"{before['modern']:.3f} on modern English.[/dim]"
    )


def cost_columns(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Heading to cells, the untouched base first."""
    from minitorch_peft.analysis.summary import human_bytes

    cells: dict[str, Callable[[Row], str]] = {
        "trainable": lambda r: f"{r.trainable:,}",
        "%": lambda r: f"{r.percent:.3g}",
        "stored\na task": lambda r: human_bytes(r.stored_bytes),
        "base": lambda r: human_bytes(r.base_bytes),
        "peak\nmemory": lambda r: human_bytes(r.peak_bytes.mean),
        "ms\na step": lambda r: r.seconds_per_step.text(0, 1e3),
    }
    return {heading: ["", *map(cell, rows)] for heading, cell in cells.items()}


def effect_columns(rows: Sequence[Row], before: dict[str, float]) -> dict[str, list[str]]:
    columns = {
        heading: [f"{before[name]:.2f}", *(r.bits[name].text(2) for r in rows)]
        for heading, name in (
            ("held-out\nbooks", "held_out"),
            ("books of\nanother kind", "out_of_domain"),
            ("modern\nEnglish", "modern"),
        )
    }
    columns["for-\ngotten"] = ["", *(f"{r.bits['modern'].mean - before['modern']:+.2f}" for r in rows)]
    return columns


def table(title: str, rows: Sequence[Row], columns: dict[str, list[str]]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    made.add_column("method", no_wrap=True)
    for heading in columns:
        made.add_column(heading, justify="right", no_wrap=True)
    names = ["untouched", *(r.contender.title for r in rows)]
    for name, *cells in zip(names, *columns.values(), strict=True):
        made.add_row(name, *cells, end_section=name == "untouched")
    return made
