"""The trade-off in one picture: what each method learns, forgets and costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minitorch_peft.analysis.summary import Row, human_bytes

COLOURS = ("#1b4f8f", "#d1603d", "#c28317", "#3c8a5d", "#8458a5", "#5b6670")
INK = "#2b2f36"
OFFSETS = ((9, 6, "left"), (-9, 6, "right"), (9, -15, "left"), (-9, -15, "right"))  # points, alignment


def draw(rows: Sequence[Row], before: dict[str, float], path: Path) -> None:
    """Save the picture of ``rows`` to ``path``; ``before`` are the untouched base's bits per byte.

    Left: learned against trainable parameters. Middle: learned against forgotten. Right: memory, time, storage.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context({"text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK}):
        figure = Figure(figsize=(13, 4.8), layout="constrained")
        FigureCanvasAgg(figure)  # it measures labels, without a window
        by_size, by_forgetting, cost = figure.subplots(1, 3, width_ratios=(1.1, 1.1, 1))
        colours = [COLOURS[i % len(COLOURS)] for i in range(len(rows))]
        labels = {
            by_size: learned_by_size(by_size, rows, before, colours),
            by_forgetting: learned_and_forgotten(by_forgetting, rows, before, colours),
        }
        memory_and_time(cost, rows, colours)
        for axes in figure.axes:
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_title(axes.get_title("left"), loc="left", fontweight="bold")
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # labels are fitted into the layout, and do not change it
        for axes, texts in labels.items():
            place(axes, texts)
        figure.savefig(path, dpi=150)


def learned_by_size(axes: Any, rows: Sequence[Row], before: dict[str, float], colours: list[str]) -> list[Any]:
    axes.set_title("learned, by trainable parameters", loc="left")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g} %")
    axes.set_xlabel("trainable parameters, share of the model")
    axes.set_ylabel("bits per byte on held-out books (lower is better)")
    axes.margins(x=0.15, y=0.15)
    axes.axhline(before["held_out"], color=INK, linestyle="--", linewidth=1)
    axes.annotate(
        "untouched",
        (0.02, before["held_out"]),
        xycoords=("axes fraction", "data"),
        xytext=(0, 4),
        textcoords="offset points",
    )
    return [point(axes, r, r.percent, None, colour) for r, colour in zip(rows, colours, strict=True)]


def learned_and_forgotten(axes: Any, rows: Sequence[Row], before: dict[str, float], colours: list[str]) -> list[Any]:
    axes.set_title("learned and forgotten", loc="left")
    axes.set_xlabel("bits per byte lost on modern English (left is better)")
    axes.margins(x=0.15, y=0.15)
    return [
        point(axes, r, r.bits["modern"].mean - before["modern"], r.bits["modern"].std, colour)
        for r, colour in zip(rows, colours, strict=True)
    ]


def point(axes: Any, r: Row, x: float, x_std: float | None, colour: str) -> Any:
    """A method with its spread over seeds; its name, still to be placed."""
    y = r.bits["held_out"]
    axes.errorbar(x, y.mean, yerr=y.std, xerr=x_std, fmt="o", color=colour, capsize=3, markersize=7)
    return axes.annotate(r.contender.title, (x, y.mean), xytext=(0, 0), textcoords="offset points", color=colour)


def place(axes: Any, labels: list[Any]) -> None:
    """Put each label beside its point, where it overlaps no other label and no point."""
    renderer = axes.figure.canvas.get_renderer()
    taken = [square(axes.transData.transform(label.xy)) for label in labels]
    for label in labels:
        boxes: list[tuple[int, int, Any]] = []
        for dx, dy, side in OFFSETS:
            label.set_position((dx, dy))
            label.set_horizontalalignment(side)
            box = label.get_window_extent(renderer)
            outside = box.x0 < axes.bbox.x0 or box.x1 > axes.bbox.x1
            boxes.append((outside + sum(box.overlaps(other) for other in taken), len(boxes), box))
        _, best, box = min(boxes, key=lambda item: item[:2])
        label.set_position(OFFSETS[best][:2])
        label.set_horizontalalignment(OFFSETS[best][2])
        taken.append(box)


def square(centre: Any, radius: float = 6.0) -> Any:
    from matplotlib.transforms import Bbox

    x, y = centre
    return Bbox([[x - radius, y - radius], [x + radius, y + radius]])


def memory_and_time(axes: Any, rows: Sequence[Row], colours: list[str]) -> None:
    places, peaks = range(len(rows)), [r.peak_bytes.mean / 1e6 for r in rows]
    axes.set_title("cost", loc="left")
    axes.barh(places, peaks, color=colours, height=0.6)
    for i, (r, peak) in enumerate(zip(rows, peaks, strict=True)):
        text = f"{r.seconds_per_step.mean * 1e3:.0f} ms a step\nstores {human_bytes(r.stored_bytes)}"
        axes.annotate(text, (peak, i), xytext=(6, 0), textcoords="offset points", va="center", fontsize="small")
    axes.set_yticks(places, [r.contender.title for r in rows])
    axes.set_xlim(0, 1.4 * max(peaks))
    axes.invert_yaxis()
    axes.set_xlabel("peak memory of a training step (MB)")
