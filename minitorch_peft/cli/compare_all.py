"""``minitorch-peft compare --methods all``: the whole field, at each budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitorch_peft.cli.errors import INTERRUPTED, USAGE, CommandError

if TYPE_CHECKING:
    from minitorch_peft.analysis.comparison import Comparison
    from minitorch_peft.analysis.contenders import Contender
    from minitorch_peft.analysis.plan import Plan
    from minitorch_peft.analysis.summary import Row
    from minitorch_peft.cli.screen import Screen
    from minitorch_peft.data.tokenizer import Tokenizer


def compare_all(
    screen: Screen, plan: Plan, budgets: list[str] | None, names: list[str] | None, rates: list[str],
    seeds: Sequence[int], tokenizer: Tokenizer, out: Path,
) -> None:  # fmt: skip
    """Search for rates, run what is not stored yet, and show tables, pictures and who could not take part."""
    from minitorch_peft.analysis.comparison import Comparison
    from minitorch_peft.analysis.field import BUDGETS, NOT_COMPARED, field, fitting, outside
    from minitorch_peft.cli.compare import run_all

    wanted = budgets or list(BUDGETS)
    if left_out := [name for name in names or () if name in NOT_COMPARED]:
        raise CommandError(f"{left_out[0]} is not compared here: {NOT_COMPARED[left_out[0]]}", USAGE)
    try:
        contenders = field(wanted, names)
    except ValueError as error:
        raise CommandError(str(error), USAGE) from None
    comparison = Comparison(plan, contenders, seeds, tokenizer, out, keep_failures=True)
    fit, why = fitting(contenders, comparison.base)
    absent = {budget: {**of, **why.get(budget, {})} for budget, of in outside(wanted).items()}
    if not fit:
        reasons = "; ".join(f"{title} {reason}" for of in absent.values() for title, reason in of.items())
        raise CommandError(f"none of these methods takes part at these budgets: {reasons}", USAGE)
    comparison.contenders, tried = searched(screen, comparison, with_given_rates(fit, rates), tokenizer)
    run_all(screen, comparison)
    show_field(screen, comparison, tried, absent)


def with_given_rates(contenders: Sequence[Contender], rates: list[str]) -> tuple[Contender, ...]:
    """The contenders, with the rates that METHOD=RATE options give; METHOD is one contender, or all of a method's."""
    from minitorch_peft.cli.compare import with_rates

    spread = []
    for text in rates:
        name, equals, rate = text.partition("=")
        own = [c.name for c in contenders if name in (c.name, c.name.removesuffix(f"-{c.budget}"))] or [name]
        spread += [f"{each}{equals}{rate}" for each in own]
    return with_rates(tuple(contenders), spread)


def searched(
    screen: Screen, comparison: Comparison, contenders: Sequence[Contender], tokenizer: Tokenizer
) -> tuple[tuple[Contender, ...], dict[str, dict[float, float]]]:
    """The contenders with their rates, and what was tried for them."""
    from minitorch_peft.analysis.rates import RateSearch

    search = RateSearch(comparison.plan, comparison.settings, tokenizer, comparison.out)
    try:
        return search.with_rates(contenders, screen.note)
    except KeyboardInterrupt as error:
        kept = f"interrupted: the rates tried so far are kept in {comparison.out}; the same command goes on from there"
        raise CommandError(kept, INTERRUPTED) from error


def show_field(
    screen: Screen, comparison: Comparison, tried: dict[str, dict[float, float]], absent: dict[str, dict[str, str]]
) -> None:
    """Tables and a picture for the budgets, and everything as JSON."""
    from minitorch_peft.analysis.field import NOT_COMPARED
    from minitorch_peft.analysis.field_picture import draw_field
    from minitorch_peft.analysis.rates import at_the_edge
    from minitorch_peft.analysis.summary import failures, rows
    from minitorch_peft.cli.tables import FIELD_NOTE, NOTE, comparison_title, field_tables
    from minitorch_peft.formats.files import write_json

    results = comparison.results()
    before, table, failed = comparison.base_bits(), rows(comparison.contenders, results), failures(results)
    by_budget = group(table)
    edges = [name for name, bits in tried.items() if at_the_edge(bits)]
    value = {
        "plan": comparison.plan.to_dict(), "seeds": list(comparison.seeds), "before": before,
        "methods": [{**r.to_dict(), "budget": r.contender.budget, "changes": r.contender.folder} for r in table],
        "outside": absent, "failed": failed, "not_compared": NOT_COMPARED,
        "rates_tried": {name: {f"{lr:g}": finite(bits) for lr, bits in of.items()} for name, of in tried.items()},
        "best_rate_at_the_edge": edges,
    }  # fmt: skip
    picture, figures = comparison.out / "compare-all.png", comparison.out / "results.json"
    write_json(figures, value)
    draw_field(by_budget, before, picture)
    for budget, of_budget in by_budget.items():
        what = "the papers' defaults" if budget == "paper" else f"about {budget} trainable parameters"
        title = f"{what.capitalize()}. {comparison_title(comparison.plan, len(comparison.seeds))}"
        for part in field_tables(title, of_budget, before, screen.out.width):
            screen.say(part)
        for name, why in absent.get(budget, {}).items():
            screen.say(f"[dim]Not at this budget: {name}, which {why}.[/dim]")
    for name, why in failed.items():
        screen.say(f"[dim]{name} failed: {why}.[/dim]")
    for name, why in NOT_COMPARED.items():
        screen.say(f"[dim]Not compared: {name}; {why}.[/dim]")
    if edges:
        screen.say(f"[dim]The best rate of the grid's ends, perhaps not the best there is: {', '.join(edges)}.[/dim]")
    screen.say(NOTE)
    screen.say(FIELD_NOTE)
    screen.say(f"picture: {picture} · figures: {figures}")
    screen.result({**value, "picture": str(picture)})


def group(table: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows by budget, in the order of the contenders."""
    groups: dict[str, list[Row]] = {}
    for r in table:
        groups.setdefault(r.contender.budget, []).append(r)
    return groups


def finite(x: float) -> Any:
    """JSON has no infinity."""
    return x if x < float("inf") else None
