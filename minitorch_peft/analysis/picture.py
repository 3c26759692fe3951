"""The trade-off in one picture: what each method learns, forgets and costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minitorch_peft.analysis.summary import Row, human_bytes

COLOURS = ("#1b4f8f", "#d1603d", "#e39c37", "#4c9f70", "#8458a5", "#5b6670")
INK = "#2b2f36"


def draw(rows: Sequence[Row], before: dict[str, float], path: Path) -> None:
    """Save the picture of ``rows`` to ``path``; ``before`` are the untouched base's bits per byte.

    Left: learned against trainable parameters. Middle: learned against forgotten. Right: memory and time.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.6), layout="constrained")
    FigureCanvasAgg(figure)  # no window, and no global state of pyplot
    size, forgetting, cost = figure.subplots(1, 3, width_ratios=(1.15, 1.15, 1))
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(rows))]
    learned_by_size(size, rows, before, colours)
    learned_and_forgotten(forgetting, rows, before, colours)
    memory_and_time(cost, rows, colours)
    for axes in (size, forgetting, cost):
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set_color(INK)
        axes.tick_params(colors=INK)
    figure.savefig(path, dpi=150)


def learned_by_size(axes: Any, rows: Sequence[Row], before: dict[str, float], colours: list[str]) -> None:
    axes.axhline(before["held_out"], color=INK, linestyle="--", linewidth=1)
    axes.annotate("untouched", (0.02, before["held_out"]), xycoords=("axes fraction", "data"), xytext=(0, -12),
                  textcoords="offset points", color=INK)  # fmt: skip
    for r, colour in zip(rows, colours, strict=True):
        point(axes, r, r.percent, 0.0, r.bits["held_out"], colour)
    axes.set_xscale("log")
    axes.set_xlabel("trainable parameters (% of the model)")
    axes.set_ylabel("bits per byte on held-out books, 1395")
    axes.set_title("learned (lower is better)", loc="left", fontweight="bold")
    axes.margins(x=0.25, y=0.12)


def learned_and_forgotten(axes: Any, rows: Sequence[Row], before: dict[str, float], colours: list[str]) -> None:
    for r, colour in zip(rows, colours, strict=True):
        modern = r.bits["modern"]
        point(axes, r, modern.mean - before["modern"], modern.std, r.bits["held_out"], colour)
    axes.set_xlabel("bits per byte lost on modern English")
    axes.set_ylabel("bits per byte on held-out books, 1395")
    axes.set_title("learned and forgotten (best: lower left)", loc="left", fontweight="bold")
    axes.margins(x=0.25, y=0.15)


def point(axes: Any, r: Row, x: float, x_std: float, y: Any, colour: str) -> None:
    """A method with its spread over seeds, and its name."""
    axes.errorbar(x, y.mean, yerr=y.std, xerr=x_std or None, fmt="o", color=colour, capsize=3, markersize=7)
    axes.annotate(r.contender.title, (x, y.mean), xytext=(8, 6), textcoords="offset points", color=colour)


def memory_and_time(axes: Any, rows: Sequence[Row], colours: list[str]) -> None:
    places = range(len(rows))
    axes.barh(places, [r.peak_bytes.mean / 1e6 for r in rows], color=colours, height=0.6)
    for i, r in enumerate(rows):
        text = f"{r.seconds_per_step.mean * 1e3:.0f} ms · stores {human_bytes(r.stored_bytes)}"
        axes.annotate(text, (0, i), xytext=(6, 0), textcoords="offset points", va="center", color="white")
    axes.set_yticks(places, [r.contender.title for r in rows])
    axes.invert_yaxis()
    axes.set_xlabel("peak memory of a training step (MB)")
    axes.set_title("cost: memory, time of a step, storage", loc="left", fontweight="bold")
