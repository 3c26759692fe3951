"""Memory of a fixed size over a file that may be larger: pages come in when they are needed, the idlest goes out.

Why not map the file into memory (``mmap``)? Then the kernel decides what is resident: what has been touched counts
as this process's memory until it is told otherwise, and when the disk is full, a store into a mapped page kills the
process. Here the resident pages are one array of ``budget`` bytes, a page moves by a read or a write, and what goes
wrong with the disk is an OSError at a known place. What the kernel keeps of the file in its own cache is not
this process's memory, and it is the first thing to go when memory is short.

The file has no name, so nothing is left of it however the process ends; and its space is reserved before it is used,
for all pages, so that any of them can go out. A larger budget saves transfers, not space on the disk.
"""

from __future__ import annotations

import errno
import operator
import os
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

_ALIGNED = 64


class Place(NamedTuple):
    """Where a record lies: within one page."""

    page: int
    offset: int
    size: int


class Pages:
    """Records of bytes, each within one page, of which ``budget // page_bytes`` are in memory at a time.

    Raises ValueError for a budget below one page, OSError where ``directory`` (None: the system's for temporary
    files; where that is a file system in memory, nothing is gained) cannot take the file.

    >>> pages = Pages(budget=8192, page_bytes=4096, directory=None)
    >>> one, two, three = pages.reserve([4096, 4096, 4096])
    >>> pages.at(one)[:] = 1; pages.at(two)[:] = 2; pages.at(three)[:] = 3
    >>> pages.at(one)[0], pages.written, pages.read
    (np.uint8(1), 2, 1)
    """

    def __init__(self, budget: int, page_bytes: int, directory: str | os.PathLike[str] | None) -> None:
        budget, page_bytes = whole("budget", budget), whole("page_bytes", page_bytes)
        if page_bytes < _ALIGNED or page_bytes % _ALIGNED:
            raise ValueError(f"page_bytes must be a multiple of {_ALIGNED}, got {page_bytes}")
        if budget < page_bytes:
            raise ValueError(f"budget must hold at least one page of {page_bytes} bytes, got {budget}")
        self.page_bytes = page_bytes
        where = None if directory is None else os.fspath(directory)
        self.file: Any = tempfile.TemporaryFile(buffering=0, dir=where)  # noqa: SIM115  # open as long as self lives
        weakref.finalize(self, self.file.close)
        self.frames = np.zeros((budget // page_bytes, page_bytes), np.uint8)
        self.free = list(range(len(self.frames)))
        self.resident: OrderedDict[int, int] = OrderedDict()  # page -> frame, the idlest first
        self.fresh: set[int] = set()  # reserved, but never written: zeros
        self.pages, self.used = 0, page_bytes  # pages in the file; bytes taken of the last one
        self.read = self.written = 0
        """Pages that have come in from the file, and gone out to it."""

    def reserve(self, sizes: Sequence[int]) -> list[Place]:
        """Room for records of these sizes (at most a page each), which are zero; all of them or, with OSError, none."""
        pages, used, places = self.pages, self.used, []
        for size in sizes:
            if used + size > self.page_bytes:
                pages, used = pages + 1, 0
            places.append(Place(pages - 1, used, size))
            used += -(-size // _ALIGNED) * _ALIGNED
        self._grow(pages)
        self.fresh |= set(range(self.pages, pages))
        self.pages, self.used = pages, used
        return places

    def at(self, place: Place) -> np.ndarray:
        """The record's bytes, to read and to write into until the next call."""
        frame = self.resident.get(place.page)
        if frame is None:
            frame = self.free.pop() if self.free else self._evict()
            try:
                self._load(place.page, frame)
            except BaseException:
                self.free.append(frame)
                raise
            self.resident[place.page] = frame
        self.resident.move_to_end(place.page)
        return self.frames[frame, place.offset : place.offset + place.size]

    def _grow(self, pages: int) -> None:
        """Reserve the disk's space now: a later write into it cannot fail for want of space."""
        size, more = self.pages * self.page_bytes, (pages - self.pages) * self.page_bytes
        if not more:
            return
        try:
            _reserve_space(self.file.fileno(), size, more)
        except OSError as error:
            os.ftruncate(self.file.fileno(), size)
            raise OSError(
                error.errno,
                f"no room for {more} more bytes of pages ({error.strerror}): free space in the directory or "
                "name another one (all pages have their place in the file, whatever the budget); nothing has changed",
            ) from error

    def _evict(self) -> int:
        """Write the idlest page back; its frame is free. On an error it stays where it is, and nothing is lost."""
        page, frame = next(iter(self.resident.items()))
        try:
            self._transfer(self.file.write, page, frame)
        except OSError as error:
            text = f"a page of state could not be written back ({error.strerror}): it is still in memory, try again"
            raise OSError(error.errno, text) from error
        self.written += 1
        self.fresh.discard(page)
        del self.resident[page]
        return frame

    def _load(self, page: int, frame: int) -> None:
        if page in self.fresh:
            self.frames[frame] = 0
        else:
            self._transfer(self.file.readinto, page, frame)
            self.read += 1

    def _transfer(self, move: Callable[[memoryview], int | None], page: int, frame: int) -> None:
        """All of a page: a single read or write may stop short."""
        self.file.seek(page * self.page_bytes)
        rest = memoryview(self.frames[frame])
        while rest:
            moved = move(rest)
            if not moved:
                raise OSError(errno.EIO, "the file of pages ends too early")
            rest = rest[moved:]


def whole(name: str, size: Any) -> int:
    """A size in bytes; TypeError unless it is a whole number."""
    try:
        return operator.index(size)
    except TypeError:
        raise TypeError(f"{name} must be a whole number of bytes, got {size!r}") from None


def _reserve_space(descriptor: int, start: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, start, size)
    else:  # where a file system knows no reservation, what has been written has its place
        os.lseek(descriptor, start, os.SEEK_SET)
        zeros = bytes(1 << 20)
        while size:
            size -= os.write(descriptor, zeros[:size])
