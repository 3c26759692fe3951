"""Ctrl-C and SIGTERM as a request: finish the step, save, stop. The second one is an order."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from types import FrameType
from typing import Any, Self

_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class GracefulStop:
    """Inside the with-statement, ``requested`` is the signal that asked to stop, or None.

    A signal that the process ignores stays ignored. Outside the main thread, where Python delivers no
    signals, nothing changes.
    """

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    @property
    def name(self) -> str:
        assert self.requested is not None
        return _NAMES[self.requested]

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _NAMES:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None:
            raise KeyboardInterrupt
        self.requested = signal.Signals(number)
        message = f"\n{self.name}: finishing this step, then saving. Once more to stop at once.\n"
        with suppress(OSError):  # written directly: the signal may interrupt a write to sys.stderr
            os.write(2, message.encode())
