"""State that is larger than the memory it may take: it comes and goes page by page."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.optim.optimizer import Optimizer
from minitorch_peft.optim.pages import Pages, Place, whole


class Piece(NamedTuple):
    """The elements of a parameter, from start to stop, whose state is one record."""

    start: int
    stop: int
    place: Place


class Slot(NamedTuple):
    """One of the arrays in a record."""

    name: str
    stands_for: int
    """elements for which it has one value"""
    dtype: np.dtype
    bytes: slice


class Paged(Optimizer):
    """Mix into an optimizer that treats elements alike: its state in pages, under a budget of bytes.

    The paged optimizer of QLoRA (Dettmers et al. 2023, arXiv 2305.14314, sec. 3), on the CPU: there a GPU's driver
    moves pages of unified memory; here they move between memory and a file. A parameter is updated piece by piece:
    a piece's state is one record, which lies in one page. As no element's update depends on another's (blocks of 256
    of them, where the state is 8-bit, are never cut), the result has the same bits as without pages.

    A sweep that always ran the same way would find every page gone: the idlest page is just the one that comes next.
    So each step runs the other way than the last one, and meets first what is still in memory.
    """

    granularity = 1  # a piece is so many elements, or a multiple

    def start_paging(self, budget: int, page_bytes: int, directory: str | os.PathLike[str] | None) -> None:
        budget, page_bytes = whole("budget", budget), whole("page_bytes", page_bytes)
        # a 64th is left to the lists of pages and pieces, unless there would be no page at all
        self._page_options = max(min(budget, page_bytes), budget - max(budget, 0) // 64), page_bytes, directory
        self.pages = Pages(*self._page_options)
        self._pieces: dict[str, list[Piece]] = {}
        self._backwards = False

    def step(self, factor: float = 1.0) -> None:
        """One update of every parameter that has a gradient, at lr · lr_scale · ``factor``.

        Room for new states is reserved first: on a full disk OSError is raised before anything has changed. Should
        the disk fail later, at a page, the error names it; parameters before it are updated, those after it are not.
        """
        due = [(n, p, group) for group in self.param_groups for n, p in group["params"].items() if p.grad is not None]
        self._pieces |= self._reserved(self.pages, {name: p for name, p, _ in due if name not in self._pieces})
        for name, p, group in reversed(due) if self._backwards else due:
            self.state.setdefault(name, {"step": 0})["step"] += 1
            p.version.count += 1
            self._update_by_pieces(name, p, group["lr"] * group["lr_scale"] * factor, group)
        self._backwards = not self._backwards

    def _update_by_pieces(self, name: str, p: Tensor, lr: float, group: Mapping[str, Any]) -> None:
        flat, grad = np.ascontiguousarray(p.data).reshape(-1), np.ascontiguousarray(p.grad).reshape(-1)
        pieces = self._pieces[name]
        for start, stop, place in reversed(pieces) if self._backwards else pieces:
            record = self.pages.at(place)
            slots = {slot.name: record[slot.bytes].view(slot.dtype) for slot in self._record(p, stop - start)}
            self.update(flat[start:stop], grad[start:stop], {**self.state[name], **slots}, lr, group)
        if not np.may_share_memory(flat, p.data):  # it was not contiguous: the update went into a copy
            p.data[...] = flat.reshape(p.shape)

    def _reserved(self, pages: Pages, params: Mapping[str, Tensor]) -> dict[str, list[Piece]]:
        """The pieces of these parameters, with room for their state: for all of them, or OSError."""
        cuts = {name: list(self._cuts(p)) for name, p in params.items()}
        sizes = [self._bytes(params[name], stop - start) for name, spans in cuts.items() for start, stop in spans]
        places = iter(pages.reserve(sizes))
        return {name: [Piece(*span, next(places)) for span in spans] for name, spans in cuts.items()}

    def _cuts(self, p: Tensor) -> Iterator[tuple[int, int]]:
        """Where to cut a parameter: as many whole granules as a page takes."""
        page_bytes, granule = self._page_options[1], self.granularity
        most = page_bytes // sum(slot.bytes.stop - slot.bytes.start for slot in self._record(p, granule)) * granule
        while most and self._bytes(p, most) > page_bytes:  # between two slots, bytes may be left free
            most -= granule
        if not most:
            raise ValueError(f"page_bytes must hold the state of {granule} elements, got {page_bytes}")
        for start in range(0, p.data.size, most):
            yield start, min(start + most, p.data.size)

    def _record(self, p: Tensor, count: int) -> Iterator[Slot]:
        """Where the values of each slot lie in the record of ``count`` elements."""
        offset = 0
        for name, (shape, dtype) in self.layout(p).items():
            stands_for = 1 if shape == p.shape else self.granularity
            size = -(-count // stands_for) * dtype.itemsize
            yield Slot(name, stands_for, dtype, slice(offset, offset + size))
            offset += -(-size // 8) * 8

    def _bytes(self, p: Tensor, count: int) -> int:
        return max(slot.bytes.stop for slot in self._record(p, count))

    # -- saving ----------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, np.ndarray]:
        """As without pages, the whole state at once: in memory for as long as it is held."""
        params, flat = self.named_parameters(), super().state_dict()
        for name in self.state:
            whole = {slot: np.empty(*form) for slot, form in self.layout(params[name]).items()}
            for slot, values, view in self._parts(self.pages, self._pieces[name], params[name]):
                whole[slot].reshape(-1)[values] = view
            flat |= {f"{slot}.{name}": array for slot, array in whole.items()}
        return flat

    def load_state_dict(self, flat: Mapping[str, np.ndarray]) -> None:
        """Take over a saved state, also of the optimizer without pages. All of it must fit, or nothing changes."""
        found, params = self.fitting_state(flat), self.named_parameters()
        pages = Pages(*self._page_options)
        pieces = self._reserved(pages, {name: params[name] for name in found})
        self.pages, self._pieces = pages, pieces  # now the old ones can go: the budget holds here too
        self.state = {name: {"step": state["step"]} for name, state in found.items()}
        for name, state in found.items():
            for slot, values, view in self._parts(pages, pieces[name], params[name]):
                view[:] = state[slot].reshape(-1)[values]

    def _parts(self, pages: Pages, pieces: list[Piece], p: Tensor) -> Iterator[tuple[str, slice, np.ndarray]]:
        """The name of a slot, some of its values, and where they are now; one piece after the other."""
        for start, stop, place in pieces:
            record = pages.at(place)
            for slot in self._record(p, stop - start):
                view = record[slot.bytes].view(slot.dtype)
                first = start // slot.stands_for
                yield slot.name, slice(first, first + view.size), view
