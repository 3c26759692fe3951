"""``minitorch-peft compare --methods all``: the whole field, at each budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitorch_peft.cli.errors import DIVERGED, INTERRUPTED, USAGE, CommandError

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
    from minitorch_peft.analysis.field import BUDGETS, field
    from minitorch_peft.cli.compare import run_all, with_rates

    try:
        contenders = field(budgets or BUDGETS, names)
    except ValueError as error:
        raise CommandError(str(error), USAGE) from None
    if not contenders:
        raise CommandError("none of these methods takes part at these budgets", USAGE)
    comparison = Comparison(plan, with_rates(contenders, rates), seeds, tokenizer, out)
    comparison.contenders, tried = searched(screen, comparison, tokenizer)
    run_all(screen, comparison)
    show_field(screen, comparison, tried)


def searched(
    screen: Screen, comparison: Comparison, tokenizer: Tokenizer
) -> tuple[tuple[Contender, ...], dict[str, dict[float, float]]]:
    """The contenders with their rates, and what was tried for them."""
    from minitorch_peft.analysis.rates import RateSearch

    search = RateSearch(comparison.plan, comparison.settings, tokenizer, comparison.out)
    try:
        return search.with_rates(comparison.contenders, screen.note)
    except ValueError as error:
        raise CommandError(str(error), DIVERGED) from None
    except KeyboardInterrupt as error:
        kept = f"interrupted: the rates tried so far are kept in {comparison.out}; the same command goes on from there"
        raise CommandError(kept, INTERRUPTED) from error


def show_field(screen: Screen, comparison: Comparison, tried: dict[str, dict[float, float]]) -> None:
    """Tables and a picture for the budgets, and everything as JSON."""
    from minitorch_peft.analysis.field import NOT_COMPARED, outside
    from minitorch_peft.analysis.field_picture import draw_field
    from minitorch_peft.analysis.summary import rows
    from minitorch_peft.cli.tables import NOTE, comparison_title, field_tables
    from minitorch_peft.formats.files import write_json

    before, table = comparison.base_bits(), rows(comparison.contenders, comparison.results())
    by_budget = group(table)
    missing = {budget: why for budget, why in outside(by_budget).items() if why}
    value = {
        "plan": comparison.plan.to_dict(), "seeds": list(comparison.seeds), "before": before,
        "methods": [{**r.to_dict(), "budget": r.contender.budget, "changes": r.contender.folder} for r in table],
        "outside": missing, "not_compared": NOT_COMPARED,
        "rates_tried": {name: {f"{lr:g}": finite(bits) for lr, bits in of.items()} for name, of in tried.items()},
    }  # fmt: skip
    picture, figures = comparison.out / "compare-all.png", comparison.out / "results.json"
    write_json(figures, value)
    draw_field(by_budget, before, picture)
    for budget, of_budget in by_budget.items():
        what = "the papers' defaults" if budget == "paper" else f"about {budget} trainable parameters"
        title = f"{what.capitalize()}. {comparison_title(comparison.plan, len(comparison.seeds))}"
        for part in field_tables(title, of_budget, before):
            screen.say(part)
        for name, why in missing.get(budget, {}).items():
            screen.say(f"[dim]Not at this budget: {name}, which {why}.[/dim]")
    screen.say(NOTE)
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
