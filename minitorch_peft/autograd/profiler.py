"""Where time and memory go: seconds and calls by operation, and every array that the engine holds while it holds it."""

from __future__ import annotations

import time
import weakref
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_active: Profile | None = None
meter: Meter | None = None
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


# -- memory and operations -----------------------------------------------------------------------------------
Shape = tuple[int, ...]


@dataclass
class Call:
    """One run of an operation, told by its shapes; ``path`` is the module that it ran in.

    ``saved`` are the shapes of what it keeps for backward, ``constants`` its keyword arguments, arrays as shapes.
    """

    name: str
    path: str
    inputs: tuple[Shape | None, ...]
    output: Shape
    saved: tuple[Shape | None, ...]
    needs: tuple[bool, ...]
    constants: Mapping[str, Any]
    backward: bool = False  # its backward rule ran
    again: int = 0  # times that its output was made once more


@dataclass
class Piece:
    """One piece of memory, from the call that made it (``call``, its number) until nobody holds it."""

    shape: Shape
    itemsize: int
    call: int
    phase: str  # "forward", "backward", "again"
    keepers: list[int] = field(default_factory=list)  # calls that keep it for backward


class Meter:
    """What the engine does and holds, in order. Views count as the memory that they view, and that once.

    ``calls`` are the operations; ``pieces`` the arrays that they made, or keep; ``events`` are (number of a piece,
    born or gone). ``turn`` is the number of events before the backward pass began. Arrays that are ``known`` (weights)
    are not counted, nor is what a kernel needs only while it runs.
    """

    def __init__(self, known: Iterable[np.ndarray] = ()) -> None:
        self.known = {id(root(a)): root(a) for a in known}  # held, so that no other array can get one of these ids
        self.path = ""  # of the module that is running: whoever measures keeps it
        self.calls: list[Call] = []
        self.pieces: list[Piece] = []
        self.events: list[tuple[int, bool]] = []
        self.turn: int | None = None
        self._alive: dict[int, tuple[int, weakref.ref[np.ndarray]]] = {}
        self._call_of: dict[int, int] = {}

    def forward(
        self, node: Any, inputs: Sequence[Any], constants: Mapping[str, Any], output: np.ndarray
    ) -> None:  # fmt: skip
        number = len(self.calls)
        self._call_of[id(node)] = number
        shapes = tuple(None if t is None else t.shape for t in inputs)
        saved = tuple(getattr(a, "shape", None) for a in node.saved)
        plain = {name: getattr(value, "shape", value) for name, value in constants.items()}
        self.calls.append(Call(node.name, self.path, shapes, output.shape, saved, node.needs_input_grad, plain))
        self._hold(output, number, "forward")
        if any(node.needs_input_grad):
            for array in arrays_in(vars(node).values()):
                if (piece := self._hold(array, number, "forward")) is not None:
                    self.pieces[piece].keepers.append(number)

    def backward(self, node: Any, gradients: Iterable[np.ndarray | None]) -> None:
        """A backward rule ran; ``gradients`` are what came in and what it returned."""
        number = self._call_of[id(node)]
        self.calls[number].backward = True
        for gradient in gradients:
            if gradient is not None:
                self._hold(gradient, number, "backward")

    def begin_backward(self) -> None:
        self.turn = len(self.events) if self.turn is None else self.turn

    def again(self, node: Any, output: np.ndarray) -> None:
        number = self._call_of[id(node)]
        self.calls[number].again += 1
        self._hold(output, number, "again")

    def _hold(self, array: np.ndarray, call: int, phase: str) -> int | None:
        """The number of the piece that ``array`` lies in, a new one if need be; None for a known one."""
        array = root(array)
        key = id(array)
        if key in self.known:
            return None
        if key not in self._alive:
            number = len(self.pieces)
            self.pieces.append(Piece(array.shape, array.itemsize, call, phase))
            self.events.append((number, True))
            self._alive[key] = number, weakref.ref(array, lambda _: self._gone(key))
        return self._alive[key][0]

    def _gone(self, key: int) -> None:
        self.events.append((self._alive.pop(key)[0], False))


def root(array: np.ndarray) -> np.ndarray:
    """The array whose memory ``array`` views."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def arrays_in(values: Iterable[Any]) -> Iterator[np.ndarray]:
    """The arrays among ``values``, and in the tuples and lists among them."""
    for value in values:
        if isinstance(value, np.ndarray):
            yield value
        elif isinstance(value, tuple | list):
            yield from arrays_in(value)


@contextmanager
def metered(known: Iterable[np.ndarray] = ()) -> Iterator[Meter]:
    """Note every operation that runs inside, and every array but the ``known`` ones.

    >>> import minitorch_peft as mp
    >>> x = mp.tensor([1.0, 2.0], requires_grad=True)
    >>> with metered([x.data]) as m:
    ...     y = mp.functional.tanh(x)
    >>> m.calls[0].name, m.pieces[0].shape, m.pieces[0].keepers
    ('Tanh', (2,), [0])
    """
    global meter
    if meter is not None:
        raise RuntimeError("something is being metered already; meters do not nest")
    meter = Meter(known)
    try:
        yield meter
    finally:
        meter = None
