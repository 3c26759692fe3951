"""The account of a step: bytes by what they are for, operations by what they are of."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import numpy as np

from minitorch_peft.analysis.ledger.flops import Flops, flops
from minitorch_peft.analysis.ledger.scaling import Batch
from minitorch_peft.analysis.ledger.trace import Trace
from minitorch_peft.autograd.profiler import Call, Piece, root


@dataclass(frozen=True)
class Activation:
    """Arrays of one kind that are alive when the backward pass begins.

    ``path`` is the module (``*`` for every block), ``operation`` what made them, ``kept_by`` the operations that need
    them in backward; "" where only the caller holds them. ``bytes`` are those of all ``count`` of them.
    """

    path: str
    operation: str
    shape: tuple[int, ...]
    kept_by: str
    count: int
    bytes: int


@dataclass(frozen=True)
class Operation:
    """All calls of one operation in one module (``*`` for every block): FLOPs of forward and backward."""

    path: str
    operation: str
    count: int
    forward: Flops
    backward: Flops


@dataclass(frozen=True)
class Ledger:
    """What one step costs. Bytes, and floating-point operations (2mnk for a product of matrices).

    ``weights`` are the bytes of "base" and "method"; ``gradients`` of all trainable parameters; ``optimizer`` of its
    state. ``activations`` are what is alive between forward and backward, by tensor. ``passing`` is what is alive
    beside weights, optimizer state and activations at the worst moment: outputs that nobody keeps, gradients on their
    way; ``peak`` is the sum of all at that moment. What a kernel needs while it runs is not in it.
    """

    batch: Batch
    trainable: int  # number of parameters
    weights: Mapping[str, int]
    gradients: int
    optimizer: int
    activations: tuple[Activation, ...]
    passing: int
    operations: tuple[Operation, ...]

    @property
    def activation_bytes(self) -> int:
        return sum(a.bytes for a in self.activations)

    @property
    def peak(self) -> int:
        return sum(self.weights.values()) + self.optimizer + self.activation_bytes + self.passing

    @property
    def forward(self) -> Flops:
        return sum((o.forward for o in self.operations), Flops())

    @property
    def backward(self) -> Flops:
        return sum((o.backward for o in self.operations), Flops())

    def totals(self) -> dict[str, int]:
        """The figures that prediction and measurement are held against each other by."""
        return {
            "weights": sum(self.weights.values()), "gradients": self.gradients, "optimizer": self.optimizer,
            "activations": self.activation_bytes, "peak": self.peak,
            "forward": self.forward.products, "backward": self.backward.products,
            "forward_elementwise": self.forward.elementwise, "backward_elementwise": self.backward.elementwise,
        }  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """JSON: bytes and FLOPs."""
        return {
            "batch": list(self.batch), "trainable": self.trainable, "weights": dict(self.weights),
            "totals": self.totals(), "activations": [asdict(a) for a in self.activations],
            "operations": [asdict(o) for o in self.operations],
        }  # fmt: skip

    def table(self, rows: int = 12) -> Any:
        """The tables, for ``rich``: bytes, the largest activations, the dearest operations."""
        from minitorch_peft.analysis.ledger.tables import tables

        return tables(self, rows)


def account(
    trace: Trace, batch: Batch, trainable: int, weights: Mapping[str, int], gradients: int, optimizer: int
) -> Ledger:
    """The ledger of a trace; the rest is known without one."""
    living, worst = alive(trace)
    kept = activations(trace, living)
    used = sum(nbytes(trace.pieces[i]) for i in living)
    return Ledger(
        batch, trainable, weights, gradients, optimizer, kept, max(worst, gradients) - used, operations(trace.calls)
    )


def alive(trace: Trace) -> tuple[list[int], int]:
    """The pieces that are alive when backward begins, and the bytes at the worst moment of the whole step."""
    now, total, worst = set[int](), 0, 0
    turn: list[int] = []
    for at, (piece, born) in enumerate(trace.events):
        if at == trace.turn:
            turn = sorted(now)
        total += nbytes(trace.pieces[piece]) * (1 if born else -1)
        worst = max(worst, total)
        (now.add if born else now.remove)(piece)
    return turn if trace.turn < len(trace.events) else sorted(now), worst


def nbytes(piece: Piece) -> int:
    return prod(piece.shape) * piece.itemsize


def stored(arrays: Iterable[np.ndarray]) -> int:
    """Bytes of arrays, memory that they share counted once."""
    return sum({id(root(a)): root(a).nbytes for a in arrays}.values())


def activations(trace: Trace, living: Iterable[int]) -> tuple[Activation, ...]:
    """The living pieces, the same of all blocks together, the largest first."""
    groups: dict[tuple[str, str, tuple[int, ...], str], list[int]] = defaultdict(list)
    for number in living:
        piece = trace.pieces[number]
        made = trace.calls[piece.call]
        keepers = sorted({trace.calls[k].name for k in piece.keepers})
        groups[every(made.path), made.name, piece.shape, ", ".join(keepers)].append(nbytes(piece))
    found = [Activation(p, o, s, k, len(b), sum(b)) for (p, o, s, k), b in groups.items()]
    return tuple(sorted(found, key=lambda a: -a.bytes))


def operations(calls: Iterable[Call]) -> tuple[Operation, ...]:
    """FLOPs by operation and module, the same of all blocks together, the dearest first."""
    groups: dict[tuple[str, str], list[tuple[Flops, Flops]]] = defaultdict(list)
    for call in calls:
        groups[every(call.path), call.name].append(flops(call))
    found = [
        Operation(path, name, len(costs), sum((f for f, _ in costs), Flops()), sum((b for _, b in costs), Flops()))
        for (path, name), costs in groups.items()
    ]
    return tuple(sorted(found, key=lambda o: -(o.forward.total + o.backward.total)))


def every(path: str) -> str:
    """
    >>> every("blocks.3.attn.q_proj")
    'blocks.*.attn.q_proj'
    """
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", path)
