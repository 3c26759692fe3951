"""Learning-rate schedules: a factor of the peak rate as a pure function of (step, total), so nothing to save.

``step`` counts from 0; the last step is ``total`` - 1. During ``warmup`` steps the factor rises in
equal parts and reaches 1 at step ``warmup``. It is not 0 at the first step, as in ``transformers``:
that would be a step for nothing. After the warm-up it falls, and would be ``floor`` at step ``total``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[..., float]


def constant(step: int, total: int, warmup: int = 0, floor: float = 0.0) -> float:
    """1 after the warm-up (``floor`` is not used).

    >>> [constant(step, 5, warmup=1) for step in range(5)]
    [0.5, 1.0, 1.0, 1.0, 1.0]
    """
    return rise(step, warmup)


def linear(step: int, total: int, warmup: int = 0, floor: float = 0.0) -> float:
    """A straight line from 1 to ``floor``.

    >>> [linear(step, 5, warmup=1) for step in range(5)]
    [0.5, 1.0, 0.75, 0.5, 0.25]
    """
    return rise(step, warmup) * (floor + (1 - floor) * (1 - progress(step, total, warmup)))


def cosine(step: int, total: int, warmup: int = 0, floor: float = 0.0) -> float:
    """Half a cosine from 1 to ``floor`` (Loshchilov & Hutter 2017, eq. 5, one period).

    >>> [round(cosine(step, 5, warmup=1), 3) for step in range(5)]
    [0.5, 1.0, 0.854, 0.5, 0.146]
    """
    fall = 0.5 * (1 + math.cos(math.pi * progress(step, total, warmup)))
    return rise(step, warmup) * (floor + (1 - floor) * fall)


SCHEDULES: dict[str, Schedule] = {"constant": constant, "linear": linear, "cosine": cosine}


def rise(step: int, warmup: int) -> float:
    return min(1.0, (step + 1) / (warmup + 1))


def progress(step: int, total: int, warmup: int) -> float:
    """How much of the time after the warm-up is over, in [0, 1]."""
    return min(1.0, max(0.0, (step - warmup) / max(1, total - warmup)))
