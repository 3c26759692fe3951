"""Where the time goes: seconds and calls by operation, forward and backward."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

_active: Profile | None = None
_OFF: AbstractContextManager[None] = nullcontext()


class Profile:
    """Seconds and calls for each (operation, "forward" | "backward")."""

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, str], float] = defaultdict(float)
        self.calls: dict[tuple[str, str], int] = defaultdict(int)

    @contextmanager
    def record(self, name: str, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name, phase] += time.perf_counter() - start
            self.calls[name, phase] += 1

    def rows(self) -> list[tuple[str, str, int, float]]:
        """(operation, phase, calls, seconds), the most expensive first."""
        by_time = sorted(self.seconds.items(), key=lambda item: -item[1])
        return [(name, phase, self.calls[name, phase], s) for (name, phase), s in by_time]


def record(name: str, phase: str) -> AbstractContextManager[None]:
    return _OFF if _active is None else _active.record(name, phase)


@contextmanager
def profile() -> Iterator[Profile]:
    """Record every operation that runs inside.

    >>> import minitorch_peft as mp
    >>> with profile() as p:
    ...     _ = mp.tensor([1.0, 2.0]).sum()
    >>> p.rows()[0][:3]
    ('Sum', 'forward', 1)
    """
    global _active
    if _active is not None:
        raise RuntimeError("a profile is already being recorded; profiles do not nest")
    _active = Profile()
    try:
        yield _active
    finally:
        _active = None
