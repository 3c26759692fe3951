"""``minitorch-peft compare --sweep``: which rate suits each method."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minitorch_peft.analysis.contenders import Contender
    from minitorch_peft.analysis.experiment import Plan
    from minitorch_peft.cli.screen import Screen
    from minitorch_peft.data.tokenizer import Tokenizer


def show_sweep(
    screen: Screen, plan: Plan, contenders: tuple[Contender, ...], seeds: int, tokenizer: Tokenizer, out: Path
) -> None:
    """Try rates around each contender's own; a table of bits per byte, the best marked, and OUT/sweep.json."""
    from rich.table import Table

    from minitorch_peft.analysis.sweep import SET_ASIDE, sweep_texts, try_rates
    from minitorch_peft.formats.files import write_json

    texts = sweep_texts(plan, tokenizer)
    table = Table(title=f"bits per byte on {SET_ASIDE}, set aside from training ({plan.steps} steps)")
    table.add_column("method")
    table.add_column("rate: bits per byte (mean over seeds)")
    found: dict[str, dict[str, float]] = {}
    for contender in contenders:
        totals: dict[float, float] = {}
        for seed in range(seeds):
            for lr, bits in try_rates(plan, contender, seed, texts):
                totals[lr] = totals.get(lr, 0.0) + bits / seeds
                screen.note(f"{contender.name} seed {seed} lr {lr:g}: {bits:.3f}")
        best = min(totals, key=lambda lr: totals[lr])
        found[contender.name] = {"lr": best, "bits_per_byte": totals[best]}
        cells = (f"{lr:g}: {b:.3f}" for lr, b in totals.items())
        table.add_row(
            contender.title,
            "   ".join(f"[bold]{c}[/bold]" if lr == best else c for lr, c in zip(totals, cells, strict=True)),
        )
    if all(math.isfinite(f["bits_per_byte"]) for f in found.values()):
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "sweep.json", {"plan": plan.to_dict(), "best": found})
    screen.say(table)
    screen.say("Best: " + " ".join(f"--lr {name}={f['lr']:g}" for name, f in found.items()))
    screen.result({"plan": plan.to_dict(), "best": found})
