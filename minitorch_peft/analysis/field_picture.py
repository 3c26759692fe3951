"""The whole field in one picture: what was learned against parameters, memory, time, and what was forgotten."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from minitorch_peft.analysis.picture import INK
from minitorch_peft.analysis.summary import Row

COLOURS = {"parameter": "#1b4f8f", "input": "#c2611f", "function": "#3c8a5d"}
MARKERS = {"paper": "o", "4k": "^", "40k": "s"}
BUDGET_TITLES = {"paper": "the paper's defaults", "4k": "about 4,000 parameters", "40k": "about 40,000 parameters"}


def draw_field(by_budget: Mapping[str, Sequence[Row]], before: dict[str, float], path: Path) -> None:
    """Save the picture of all rows to ``path``. A method has one number in all panels, and its folder's colour."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [r for of_budget in by_budget.values() for r in of_budget]
    numbers = {title: i + 1 for i, title in enumerate(dict.fromkeys(r.contender.title for r in rows))}
    panels: tuple[tuple[str, str, bool, Callable[[Row], float]], ...] = (
        ("by trainable parameters", "trainable parameters", True, lambda r: float(r.trainable)),
        ("by memory", "peak memory of a training step (MB)", False, lambda r: r.peak_bytes.mean / 1e6),
        ("by time", "milliseconds a training step", False, lambda r: 1e3 * r.seconds_per_step.mean),
        ("by what was forgotten", "bits per byte lost on modern English", False,
         lambda r: r.bits["modern"].mean - before["modern"]),
    )  # fmt: skip
    with rc_context({"text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK}):
        figure = Figure(figsize=(14, 9.5), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(2, 3, width_ratios=(1, 1, 0.55))
        for place, (title, label, log, x) in enumerate(panels):
            axes = figure.add_subplot(grid[place // 2, place % 2])
            panel(axes, rows, numbers, x)
            axes.set_title(f"learned, {title}", loc="left", fontweight="bold")
            axes.set_xlabel(label)
            axes.set_xscale("log" if log else "linear")
            if place % 2 == 0:
                axes.set_ylabel("bits per byte on held-out books (lower is better)")
        legend(figure.add_subplot(grid[:, 2]), rows, numbers, list(by_budget))
        figure.savefig(path, dpi=130)


def panel(axes: Any, rows: Sequence[Row], numbers: Mapping[str, int], x: Callable[[Row], float]) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(0.08)
    for r in rows:
        colour, y = COLOURS[r.contender.folder], r.bits["held_out"]
        axes.errorbar(
            x(r), y.mean, yerr=y.std, fmt=MARKERS[r.contender.budget], color=colour, markersize=13,
            markerfacecolor="white", elinewidth=1,
        )  # fmt: skip
        axes.annotate(
            str(numbers[r.contender.title]), (x(r), y.mean), color=colour, ha="center", va="center", fontsize=7.5
        )


def legend(axes: Any, rows: Sequence[Row], numbers: Mapping[str, int], budgets: Sequence[str]) -> None:
    """Which number is which method, which colour what it changes, which shape which budget."""
    from matplotlib.lines import Line2D

    axes.set_axis_off()
    folders = {r.contender.title: r.contender.folder for r in rows}
    lines = [(f"{n:>2}  {title}", COLOURS[folders[title]]) for title, n in numbers.items()]
    for i, (text, colour) in enumerate(lines):
        axes.text(0.0, 1 - 0.03 * i, text, color=colour, transform=axes.transAxes, va="top", fontsize=10)
    marks = [
        *(Line2D([], [], color=c, marker="o", ls="", label=f"changes the {f}" + "s" * (f == "parameter"))
          for f, c in COLOURS.items()),
        *(Line2D([], [], color=INK, marker=MARKERS[b], mfc="white", ls="", label=BUDGET_TITLES[b]) for b in budgets),
    ]  # fmt: skip
    axes.legend(handles=marks, loc="lower left", frameon=False)
