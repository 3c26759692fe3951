"""How a run is shown: a live bar in a terminal, a line now and then in a log file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minitorch_peft.cli.screen import Screen
    from minitorch_peft.training import Progress, StepReport

LINE_EVERY = 20.0  # seconds between lines in a log file


class Summary:
    """The figures beside the bar: loss, smoothed tokens per second, the last look at held-out text.

    ``bits`` turns nats per token into bits per byte of that text.
    """

    def __init__(self, bits: float) -> None:
        self.bits = bits
        self.speed = 0.0
        self.held_out = ""
        self.text = ""

    def __call__(self, report: StepReport) -> str:
        now = report.tokens_per_second
        if report.held_out is not None:
            self.held_out = f" · held-out {report.held_out * self.bits:.3f} bits/byte"
        elif report.step > 1:  # the first one may compile, one with a look takes longer
            self.speed = now if not self.speed else 0.9 * self.speed + 0.1 * now
        self.text = f"loss {report.loss:.3f} · {self.speed or now:,.0f} tokens/s{self.held_out}"
        return self.text


@contextmanager
def training_progress(screen: Screen, title: str, total: int, bits: float) -> Iterator[Progress]:
    """Gives the callback for a trainer of ``total`` steps."""
    show = bar if screen.err.is_terminal else lines
    with show(screen, title, total, Summary(bits)) as callback:
        yield callback


@contextmanager
def bar(screen: Screen, title: str, total: int, summary: Summary) -> Iterator[Progress]:
    from rich import progress as rp

    columns = (
        rp.TextColumn("{task.description}"), rp.BarColumn(bar_width=30), rp.MofNCompleteColumn(),
        rp.TextColumn("{task.fields[summary]}"), rp.TimeRemainingColumn(),
    )  # fmt: skip
    with rp.Progress(*columns, console=screen.err) as bars:
        task = bars.add_task(title, total=total, summary="")

        def callback(report: StepReport) -> None:
            bars.update(task, completed=report.step, summary=summary(report))

        yield callback


@contextmanager
def lines(screen: Screen, title: str, total: int, summary: Summary) -> Iterator[Progress]:
    last = time.monotonic()

    def callback(report: StepReport) -> None:
        nonlocal last
        text = summary(report)
        if time.monotonic() - last >= LINE_EVERY or report.held_out is not None or report.step == total:
            last = time.monotonic()
            screen.note(f"{title}: step {report.step}/{total} · {text}")

    yield callback


@contextmanager
def runs_progress(screen: Screen, runs: int, steps: int) -> Iterator[Callable[[str], Progress]]:
    """One bar over ``runs`` runs of ``steps`` steps. Gives ``start(title)``, which gives a run's callback."""
    from rich import progress as rp

    columns = (
        rp.TextColumn("{task.description}"), rp.BarColumn(bar_width=30), rp.TextColumn("run {task.fields[run]}"),
        rp.TextColumn("{task.fields[summary]}"), rp.TimeRemainingColumn(),
    )  # fmt: skip
    with rp.Progress(*columns, console=screen.err, disable=not screen.err.is_terminal) as bars:
        task = bars.add_task("", total=runs * steps, run="", summary="")
        run = 0

        def start(title: str) -> Progress:
            nonlocal run
            run, summary, before = run + 1, Summary(bits=1.0), run * steps
            bars.update(task, description=title, run=f"{run}/{runs}")

            def callback(report: StepReport) -> None:
                bars.update(task, completed=before + report.step, summary=summary(report))
                if report.step == steps and not screen.err.is_terminal:
                    screen.note(f"run {run}/{runs} {title}: {summary.text}")

            return callback

        yield start
