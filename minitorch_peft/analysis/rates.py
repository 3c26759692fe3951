"""Each contender's learning rate, found by the same small search: no method loses for want of tuning.

Rates of one grid are tried on one seed, for half the steps; a training book that is set aside judges. The search starts
in the middle and goes on, up and down, as long as the next rate is better. What was tried is kept in a file each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from minitorch_peft.analysis.contenders import Contender
from minitorch_peft.analysis.kept import kept
from minitorch_peft.analysis.plan import Plan
from minitorch_peft.analysis.sweep import SET_ASIDE, sweep_texts, validation_bits
from minitorch_peft.analysis.texts import Texts
from minitorch_peft.data.tokenizer import Tokenizer

GRID = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
FIRST = 1e-2
SEED = 0


class RateSearch:
    """The search for every contender of a comparison; files ``OUT/rates/<contender>/<rate>.json``."""

    def __init__(self, plan: Plan, settings: dict[str, Any], tokenizer: Tokenizer, out: Path) -> None:
        self.plan = replace(plan, steps=max(1, plan.steps // 2), warmup=plan.warmup // 2)
        self.settings = {**settings, "plan": self.plan.to_dict(), "judged_on": SET_ASIDE}
        self.tokenizer, self.out = tokenizer, out

    @cached_property
    def texts(self) -> Texts:
        return sweep_texts(self.plan, self.tokenizer)

    def tried(self, contender: Contender, note: Callable[[str], None]) -> dict[float, float]:
        """Rate to bits per byte, of the rates that the search came to; inf where it diverged."""
        bits: dict[float, float] = {}

        def of(place: int) -> float:
            lr = GRID[place]
            if lr not in bits:
                bits[lr] = self._bits(replace(contender, lr=lr), note)
            return bits[lr]

        for direction in (1, -1):
            here = GRID.index(FIRST)
            while 0 <= here + direction < len(GRID) and better(of(here + direction), of(here), direction):
                here += direction
        return dict(sorted(bits.items()))

    def _bits(self, contender: Contender, note: Callable[[str], None]) -> float:
        result = kept(
            self.out / "rates" / contender.name / f"{contender.lr:g}.json",
            {**self.settings, "contender": contender.resolved(), "seed": SEED},
            lambda: self._try(contender, note),
        )
        return math.inf if result["bits_per_byte"] is None else result["bits_per_byte"]

    def _try(self, contender: Contender, note: Callable[[str], None]) -> dict[str, Any]:
        bits = validation_bits(self.plan, contender, SEED, self.texts)
        note(f"{contender.title}, rate {contender.lr:g}: {bits:.3f} bits per byte")
        return {"bits_per_byte": bits if math.isfinite(bits) else None}

    def with_rates(
        self, contenders: Sequence[Contender], note: Callable[[str], None]
    ) -> tuple[tuple[Contender, ...], dict[str, dict[float, float]]]:
        """The contenders, with its best rate each that had none; and all that was tried, by contender.

        A contender that diverged at every rate keeps the lowest: its runs will say so.
        """
        tried = {c.name: self.tried(c, note) for c in contenders if not c.lr}
        return tuple(c if c.lr else replace(c, lr=best(tried[c.name])) for c in contenders), tried


def better(following: float, here: float, direction: int) -> bool:
    """Is the next rate to be gone to? Where training diverges, a lower rate always is."""
    return following < here or (math.isinf(here) and direction < 0)


def best(bits: dict[float, float]) -> float:
    """The rate of the fewest bits; of equals the lowest."""
    return min(bits, key=lambda lr: (bits[lr], lr))


def at_the_edge(bits: dict[float, float]) -> bool:
    """Is the best rate the grid's first or last, so that one beyond it may be better still?"""
    return best(bits) in (GRID[0], GRID[-1])
