"""From the figures of many runs to one row for each method: mean and spread over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from minitorch_peft.analysis.contenders import Contender
from minitorch_peft.analysis.experiment import MEASURED

PACKED = ("bits_per_weight", "quantized_bits_per_byte")  # figures of a base in four bits


class Spread(NamedTuple):
    """Mean and sample standard deviation; a single run has none."""

    mean: float
    std: float | None

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """
        >>> Spread.of([1.0, 2.0, 3.0])
        Spread(mean=2.0, std=1.0)
        """
        values = list(values)
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    def text(self, digits: int, scale: float = 1.0) -> str:
        """
        >>> Spread(2.345, 0.012).text(2), Spread(2.345, None).text(1)
        ('2.35 ± 0.01', '2.3')
        """
        mean = f"{self.mean * scale:.{digits}f}"
        return mean if self.std is None else f"{mean} ± {self.std * scale:.{digits}f}"


@dataclass(frozen=True)
class Row:
    """What a method costs, learns and forgets. ``bits``: bits per byte after adapting, by text.

    ``base_bytes``: the base in memory. ``packed``: of a base in four bits, the bits that a weight takes there and the
    bits per byte before adapting, by text. ``joules``: of training, the mean; ``energy``: "measured" or "modelled".
    ``stored_bytes``: the file that training can go on from; ``deployed_bytes``: what running the adapter needs.
    ``seconds_per_token``: the best run's, of the base alone, under the adapter, and merged.
    """

    contender: Contender
    trainable: int
    percent: float
    stored_bytes: int
    peak_bytes: Spread
    seconds_per_step: Spread
    bits: dict[str, Spread]
    base_bytes: int = 0
    packed: tuple[float, dict[str, float]] | None = None
    joules: float = 0.0
    energy: str = "modelled"
    deployed_bytes: int = 0
    seconds_per_token: dict[str, float | None] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.contender.name,
            "title": self.contender.title,
            **self.contender.to_dict(),
            "trainable_parameters": self.trainable,
            "trainable_percent": self.percent,
            "stored_bytes": self.stored_bytes,
            "peak_bytes": self.peak_bytes._asdict(),
            "seconds_per_step": self.seconds_per_step._asdict(),
            "bits_per_byte": {name: spread._asdict() for name, spread in self.bits.items()},
            "base_bytes": self.base_bytes,
            "joules": self.joules,
            "energy": self.energy,
            "deployed_bytes": self.deployed_bytes,
            "seconds_per_token": self.seconds_per_token,
            **({} if self.packed is None else dict(zip(PACKED, self.packed, strict=True))),
        }


def rows(contenders: Sequence[Contender], results: Sequence[dict[str, Any]]) -> list[Row]:
    """One row for each contender, over its seeds; none for one that failed (see :func:`failures`)."""
    failed = failures(results)
    return [row(c, [r for r in results if r["contender"] == c.name]) for c in contenders if c.name not in failed]


def failures(results: Sequence[dict[str, Any]]) -> dict[str, str]:
    """By contender, why a run of it failed."""
    return {r["contender"]: r["failed"] for r in results if "failed" in r}


def row(contender: Contender, runs: list[dict[str, Any]]) -> Row:
    first = runs[0]  # what does not depend on the seed
    return Row(
        contender,
        first["trainable_parameters"],
        first["trainable_percent"],
        first["stored_bytes"],
        Spread.of(r["peak_bytes"] for r in runs),
        Spread.of(r["seconds_per_step"] for r in runs),
        {name: Spread.of(r["bits_per_byte"][name] for r in runs) for name in MEASURED},
        first["base_bytes"],
        (first[PACKED[0]], first[PACKED[1]]) if PACKED[0] in first else None,
        statistics.fmean(r["energy"]["joules"] for r in runs),
        " and ".join(sorted({r["energy"]["how"] for r in runs})),
        first["deployed_bytes"],
        {name: fastest(r["seconds_per_token"][name] for r in runs) for name in first["seconds_per_token"]},
    )


def fastest(seconds: Iterable[float | None]) -> float | None:
    return min((s for s in seconds if s is not None), default=None)


def human_bytes(count: float) -> str:
    """
    >>> human_bytes(912), human_bytes(3_830_000), human_bytes(54_321)
    ('912 B', '3.8 MB', '54 kB')
    """
    if count < 1000:
        return f"{count:.0f} B"
    if count < 1e6:
        return f"{count / 1e3:.0f} kB"
    return f"{count / 1e6:.1f} MB"
