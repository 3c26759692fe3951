"""Each method's learning rate, found by the same small search: no method loses for want of tuning.

Rates of one grid are tried with the method's first contender, on one seed, for half the steps; a training book that is
set aside judges. The search starts in the middle and climbs as long as the next rate is better, up or else down. What
was tried is kept in a file each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
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
    """The search for every method of a comparison; files ``OUT/rates/<method>/<rate>.json``."""

    def __init__(self, plan: Plan, settings: dict[str, Any], tokenizer: Tokenizer, out: Path) -> None:
        self.plan = replace(plan, steps=max(1, plan.steps // 2), warmup=plan.warmup // 2)
        self.settings = {**settings, "plan": self.plan.to_dict(), "judged_on": SET_ASIDE}
        self.tokenizer, self.out = tokenizer, out
        self._texts: Texts | None = None

    @property
    def texts(self) -> Texts:
        self._texts = self._texts or sweep_texts(self.plan, self.tokenizer)
        return self._texts

    def tried(self, contender: Contender, note: Callable[[str], None]) -> dict[float, float]:
        """Rate to bits per byte, of the rates that the search came to; inf where it diverged."""
        bits: dict[float, float] = {}

        def of(place: int) -> float:
            lr = GRID[place]
            if lr not in bits:
                bits[lr] = self._bits(replace(contender, lr=lr), note)
            return bits[lr]

        best = GRID.index(FIRST)
        for direction in (1, -1):
            while 0 <= best + direction < len(GRID) and of(best + direction) < of(best):
                best += direction
        return dict(sorted(bits.items()))

    def _bits(self, contender: Contender, note: Callable[[str], None]) -> float:
        result = kept(
            self.out / "rates" / entry_name(contender) / f"{contender.lr:g}.json",
            {**self.settings, "contender": contender.to_dict(), "seed": SEED},
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
        """The contenders with the best rate of their method each, and all that was tried, by method.

        A method's contenders of other budgets take the rate that was found on its first one. Raises ValueError where
        every rate diverged.
        """
        tried: dict[str, dict[float, float]] = {}
        for contender in contenders:
            name = entry_name(contender)
            if not contender.lr and name not in tried:
                tried[name] = self.tried(contender, note)
                if all(map(math.isinf, tried[name].values())):
                    raise ValueError(f"{contender.title} diverged at {', '.join(map(str, tried[name]))}")
        found = {name: min(bits, key=lambda lr, bits=bits: bits[lr]) for name, bits in tried.items()}  # type: ignore[misc]
        return tuple(c if c.lr else replace(c, lr=found[entry_name(c)]) for c in contenders), tried


def entry_name(contender: Contender) -> str:
    """Its method's name in the field, which its contenders of other budgets share."""
    return contender.name.removesuffix(f"-{contender.budget}")
