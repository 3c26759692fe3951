"""``minitorch-peft compare --sweep``: which rate suits each method."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from minitorch_peft.cli.errors import DIVERGED, CommandError

if TYPE_CHECKING:
    from minitorch_peft.analysis.contenders import Contender
    from minitorch_peft.analysis.plan import Plan
    from minitorch_peft.analysis.texts import Texts
    from minitorch_peft.cli.screen import Screen
    from minitorch_peft.data.tokenizer import Tokenizer


def show_sweep(
    screen: Screen, plan: Plan, contenders: tuple[Contender, ...], seeds: int, tokenizer: Tokenizer, out: Path
) -> None:
    """Try rates around each contender's own; a table of bits per byte, the best marked, and OUT/sweep.json."""
    from rich.table import Table

    from minitorch_peft.analysis.sweep import SET_ASIDE, sweep_texts
    from minitorch_peft.formats.files import write_json

    texts = sweep_texts(plan, tokenizer)
    table = Table(
        "method", "rate: bits per byte", title=f"on {SET_ASIDE}, set aside; {plan.steps} steps, {seeds} seeds"
    )
    best: dict[str, dict[str, float]] = {}
    for contender in contenders:
        bits = bits_by_rate(screen, plan, contender, seeds, texts)
        lr = min(bits, key=lambda rate: bits[rate])
        if math.isinf(bits[lr]):
            raise CommandError(f"{contender.title} diverged at every rate: {', '.join(map(str, bits))}", DIVERGED)
        best[contender.name] = {"lr": lr, "bits_per_byte": bits[lr]}
        cells = [f"{rate:g}: {b:.3f}" for rate, b in bits.items()]
        table.add_row(contender.title, "   ".join(cells).replace(f"{lr:g}: ", f"[bold]{lr:g}[/bold]: "))
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "sweep.json", {"plan": plan.to_dict(), "best": best})
    screen.say(table)
    screen.say("Compare at these: " + " ".join(f"--lr {name}={b['lr']:g}" for name, b in best.items()), soft_wrap=True)
    screen.result({"plan": plan.to_dict(), "best": best})


def bits_by_rate(screen: Screen, plan: Plan, contender: Contender, seeds: int, texts: Texts) -> dict[float, float]:
    """Rate to bits per byte, the mean over seeds."""
    from minitorch_peft.analysis.sweep import try_rates

    means: dict[float, float] = {}
    for seed in range(seeds):
        for lr, bits in try_rates(plan, contender, seed, texts):
            means[lr] = means.get(lr, 0.0) + bits / seeds
            screen.note(f"{contender.title}, seed {seed}, rate {lr:g}: {bits:.3f} bits per byte")
    return means
