"""All runs of a comparison, kept on disk one by one, so that a stopped comparison goes on where it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from minitorch_peft import __version__
from minitorch_peft.analysis.contenders import Contender
from minitorch_peft.analysis.experiment import bits, load_texts, run
from minitorch_peft.analysis.kept import kept, stored
from minitorch_peft.analysis.plan import Plan
from minitorch_peft.analysis.texts import Texts
from minitorch_peft.data.tokenizer import Tokenizer
from minitorch_peft.models import GPT
from minitorch_peft.peft.merge import checksum
from minitorch_peft.training import Progress, TrainingError

FIGURES = 3  # raised when a run's result gets other figures: stored ones are then made anew


class Comparison:
    """``contenders`` x ``seeds`` runs of one plan.

    Files: ``OUT/<contender>/seed-<n>/result.json`` and the adapter beside it; ``OUT/base.json``. A stored result
    is used again where it was made with the same settings and the same base weights, otherwise run anew.
    """

    def __init__(
        self, plan: Plan, contenders: Sequence[Contender], seeds: Sequence[int], tokenizer: Tokenizer, out: Path,
        keep_failures: bool = False,
    ) -> None:  # fmt: skip
        self.plan, self.contenders, self.seeds, self.out = plan, tuple(contenders), tuple(seeds), out
        self.keep_failures = keep_failures
        self.base = GPT.from_pretrained(plan.base)
        self.tokenizer = tokenizer
        self.settings = {
            "plan": plan.to_dict(),
            "base": checksum(self.base),
            "version": __version__,
            "figures": FIGURES,
        }

    @cached_property
    def texts(self) -> Texts:
        return load_texts(self.plan, self.tokenizer)

    def base_bits(self) -> dict[str, float]:
        """Bits per byte of the untouched base."""
        return kept(
            self.out / "base.json",
            self.settings,
            lambda: {"bits_per_byte": bits(self.base, self.texts, self.plan)},
        )["bits_per_byte"]

    def pending(self) -> list[tuple[Contender, int]]:
        """The runs that have no stored result yet."""
        return [
            (contender, seed)
            for contender, seed in self._all()
            if stored(self._path(contender, seed), self._made_with(contender)) is None
        ]

    def run(self, contender: Contender, seed: int, progress: Progress | None = None) -> dict[str, Any]:
        """The figures of one run, stored or made now; with ``keep_failures``, also that it failed and why."""
        path = self._path(contender, seed)

        def make() -> dict[str, Any]:
            try:
                return run(self.plan, contender, seed, self.texts, path.parent, progress)
            except TrainingError as error:
                if not self.keep_failures:
                    raise
                return {"contender": contender.name, "seed": seed, "failed": str(error)}

        return kept(path, self._made_with(contender), make)

    def results(self) -> list[dict[str, Any]]:
        """The figures of all runs, by contender, then by seed; those that are missing are run."""
        return [self.run(contender, seed) for contender, seed in self._all()]

    def _all(self) -> Iterator[tuple[Contender, int]]:
        """By seed first: a comparison that is stopped early has runs of every method."""
        return ((contender, seed) for seed in self.seeds for contender in self.contenders)

    def _path(self, contender: Contender, seed: int) -> Path:
        return self.out / contender.name / f"seed-{seed}" / "result.json"

    def _made_with(self, contender: Contender) -> dict[str, Any]:
        return {**self.settings, "contender": contender.resolved()}
