"""Energy of a stretch of work: read from the machine's meter where it has one, else from a stated model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

WATTS_PER_CORE = 10.0
"""The model: a busy core of a server processor, its share of the package and of memory included."""
METERS = Path("/sys/class/powercap")


@dataclass
class Energy:
    """``joules``, and ``how`` they are known: "measured" (RAPL, the whole package) or "modelled"."""

    joules: float = 0.0
    how: str = "modelled"


@contextmanager
def metered() -> Iterator[Energy]:
    """Fills in what the work inside took.

    Without a meter that may be read it is the process's processor time, of all its threads, times ``WATTS_PER_CORE``.

    >>> with metered() as energy:
    ...     _ = sum(range(1000))
    >>> energy.joules > 0, energy.how in ("measured", "modelled")
    (True, True)
    """
    energy, before, cpu = Energy(), packages(), time.process_time()
    yield energy
    after = packages()
    spent = [after[name] - start for name, start in before.items() if name in after]
    if spent and min(spent) >= 0 and sum(spent) > 0:  # a counter that ran over says nothing
        energy.joules, energy.how = sum(spent) / 1e6, "measured"
    else:
        energy.joules = (time.process_time() - cpu) * WATTS_PER_CORE


def packages() -> dict[str, int]:
    """Microjoules since some start, of every processor package whose counter may be read."""
    found = {}
    for meter in sorted(METERS.glob("intel-rapl:*")):
        if meter.name.count(":") == 1:  # a package, not a part of one
            try:
                found[meter.name] = int((meter / "energy_uj").read_text())
            except (OSError, ValueError):
                continue
    return found
