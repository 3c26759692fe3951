"""What a student's process measures of a solution while it runs."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

MARK = 200_000  # bytes


def traced(compute: Callable[[], Any]) -> dict[str, Any]:
    """What ``compute`` gives, the most bytes that were held at once while it ran, and what became of the trace.

    ``MARK`` bytes are held for a moment before it: less than that as the peak means that the peak was reset. ``whole``:
    whether what was traced before is still traced afterwards.
    """
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        witness = bytearray(1000)
        bytearray(MARK)
        value = compute()
        whole = tracemalloc.is_tracing() and tracemalloc.get_object_traceback(witness) is not None
        return {"value": value, "peak": tracemalloc.get_traced_memory()[1] - before, "whole": whole}
    finally:
        tracemalloc.stop()
