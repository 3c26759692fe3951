"""``minitorch-peft compare``: one base, six methods, three seeds, one table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minitorch_peft.analysis.plan import Plan
from minitorch_peft.cli.errors import DATA, DIVERGED, INTERRUPTED, USAGE, CommandError
from minitorch_peft.cli.progress import runs_progress
from minitorch_peft.cli.screen import JsonFlag, Screen

if TYPE_CHECKING:
    from minitorch_peft.analysis.comparison import Comparison
    from minitorch_peft.analysis.contenders import Contender
    from minitorch_peft.training import Progress

USUAL = Plan()


def compare(
    base: Annotated[str, typer.Option(help="Embedded checkpoint, or folder of a model.")] = USUAL.base,
    methods: Annotated[str, typer.Option(help="usual: the six of the README's table. all: the whole field.")] = "usual",
    method: Annotated[
        list[str] | None, typer.Option(help="One of these methods, again for each. Default: all of them.")
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(help="With --methods all: paper, 4k or 40k trainable parameters, again for each. Default: all."),
    ] = None,
    lr: Annotated[list[str] | None, typer.Option(help="Another rate: METHOD=RATE.")] = None,
    corpus: Annotated[str, typer.Option(help="Translation to adapt to.")] = USUAL.translation,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each method: seeds 0, 1, ...")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Updates in a run.")] = USUAL.steps,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows in a step.")] = USUAL.batch_size,
    length: Annotated[int, typer.Option(min=2, help="Tokens in a row.")] = USUAL.length,
    eval_rows: Annotated[int, typer.Option(min=1, help="Rows that each text is measured on.")] = USUAL.eval_rows,
    out: Annotated[Path, typer.Option(help="Folder of results, adapters, table and picture.")] = Path("runs/compare"),
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Look for better rates instead (on a training book set aside).")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Adapt modern English to the English of 1395 by several methods, and show what each costs and forgets.

    Every method sees the same batches in the same order; only the seed changes them. Each run is kept in OUT
    when it ends: a comparison that was stopped goes on where it was when called again. The table ends up in
    OUT/results.json and the picture in OUT/compare.png; OUT/METHOD/seed-N holds the adapters.

    `--methods all` compares every method that changes parameters, input or function: with its paper's defaults, and
    with about 4,000 and about 40,000 trainable parameters. The rate of each is searched for first, on one grid.

    Examples:

        minitorch-peft compare
        minitorch-peft compare --seeds 1 --method lora-r4 --method bitfit --steps 200
        minitorch-peft compare --sweep
        minitorch-peft compare --methods all --budget 4k --seeds 1
        minitorch-peft generate --adapter runs/compare/lora-r16/seed-0 --prompt "And Jhesus seide"
    """
    from minitorch_peft.analysis.comparison import Comparison
    from minitorch_peft.analysis.contenders import CONTENDERS, contenders_named
    from minitorch_peft.cli.loading import check_length, load_base, load_tokenizer

    require_matplotlib()
    screen = Screen(json)
    model = load_base(base)
    tokenizer = load_tokenizer(base, model)
    check_length(length, model)
    plan = Plan(base, corpus, steps, batch_size, length, min(USUAL.warmup, steps // 4), eval_rows)
    if methods == "all":
        from minitorch_peft.cli.compare_all import compare_all

        if sweep:
            raise CommandError("--methods all searches for rates itself: leave --sweep out", USAGE)
        compare_all(screen, plan, budget, method, lr or [], range(seeds), tokenizer, out)
        return
    if methods != "usual" or budget:
        raise CommandError(f"--methods {methods}: expected usual or all; --budget goes with --methods all", USAGE)
    contenders = with_rates(contenders_named(method) if method else CONTENDERS, lr or [])
    if sweep:
        from minitorch_peft.cli.sweep import show_sweep

        show_sweep(screen, plan, contenders, seeds, tokenizer, out)
        return
    comparison = Comparison(plan, contenders, range(seeds), tokenizer, out)
    run_all(screen, comparison)
    show(screen, comparison)


def require_matplotlib() -> None:
    """Better now than after all the runs."""
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise CommandError("the picture needs matplotlib: pip install 'minitorch-peft[data]'", DATA)


def with_rates(contenders: tuple[Contender, ...], rates: list[str]) -> tuple[Contender, ...]:
    """The contenders, with the rates that METHOD=RATE options give."""
    for text in rates:
        name, _, value = text.partition("=")
        try:
            rate = float(value)
        except ValueError:
            raise CommandError(f"--lr {text}: expected METHOD=RATE, such as bitfit=0.01", USAGE) from None
        if name not in [c.name for c in contenders]:
            known = ", ".join(c.name for c in contenders)
            raise CommandError(f"--lr {text}: {name!r} is not compared here; there are: {known}", USAGE)
        contenders = tuple(replace(c, lr=rate) if c.name == name else c for c in contenders)
    return contenders


def run_all(screen: Screen, comparison: Comparison) -> None:
    """The runs that are not stored yet, under one progress bar."""
    pending = comparison.pending()
    total = len(comparison.contenders) * len(comparison.seeds)
    if len(pending) < total:
        screen.note(f"{total - len(pending)} runs are stored in {comparison.out} already")
    try:
        comparison.base_bits()
        with runs_progress(screen, len(pending), comparison.plan.steps) as start:
            for contender, seed in pending:
                run_one(comparison, contender, seed, start(f"{contender.title}, seed {seed}"))
    except KeyboardInterrupt as error:
        done = total - len(comparison.pending())
        raise CommandError(
            f"interrupted: {done} of {total} runs are kept in {comparison.out}; the same command goes on from there",
            INTERRUPTED,
        ) from error


def run_one(comparison: Comparison, contender: Contender, seed: int, progress: Progress) -> None:
    from minitorch_peft.training import TrainingError

    try:
        comparison.run(contender, seed, progress)
    except TrainingError as error:
        advice = f"try a lower rate: --lr {contender.name}={contender.lr / 2:g}"
        raise CommandError(f"{contender.title}, seed {seed}: {error} ({advice})", DIVERGED) from error


def show(screen: Screen, comparison: Comparison) -> None:
    """Table, picture and JSON."""
    from minitorch_peft.analysis.picture import draw
    from minitorch_peft.analysis.summary import rows
    from minitorch_peft.cli.tables import comparison_tables, comparison_title
    from minitorch_peft.formats.files import write_json

    before = comparison.base_bits()
    table = rows(comparison.contenders, comparison.results())
    value = {
        "plan": comparison.plan.to_dict(),
        "seeds": list(comparison.seeds),
        "before": before,
        "methods": [r.to_dict() for r in table],
    }
    picture, figures = comparison.out / "compare.png", comparison.out / "results.json"
    write_json(figures, value)
    draw(table, before, picture)
    title = comparison_title(comparison.plan, len(comparison.seeds))
    for part in comparison_tables(title, table, before, screen.out.width):
        screen.say(part)
    screen.say(f"picture: {picture} · figures: {figures}")
    screen.result({**value, "picture": str(picture)})
