"""Layers in four bits while adapters are merged: a Linear stands in for each, or the merged weight packed anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from minitorch_peft.nn import Leaf, Module
from minitorch_peft.peft.inject import base_module, replace_base_module


class StandIns:
    """A weight in four bits cannot take a change without loss, so it is not written to: its layer is put aside whole.

    ``pairs``: path to the layer that was put aside, and the Linear made of it.
    """

    def __init__(self, model: Module) -> None:
        self.model = model
        self.pairs: dict[str, tuple[Leaf, Leaf]] = {}

    def settable(self, path: str, dtype: Any) -> Leaf:
        """The layer at ``path``; where it is in four bits, the Linear that stands in for it from now on."""
        leaf = base_module(self.model, path)
        dense = leaf.dense(dtype)
        if dense is not leaf:
            self.pairs[path] = leaf, dense
            replace_base_module(self.model, path, dense)
        return dense

    def pack(self, exact: Mapping[str, np.ndarray]) -> float:
        """Put the merged weights back into four bits; the largest difference to ``exact`` that this makes."""
        largest = 0.0
        for path, (leaf, dense) in self.pairs.items():
            packed = leaf.repacked(dense)
            replace_base_module(self.model, path, packed)
            largest = max(largest, float(np.abs(packed.dense_weight() - exact[path]).max(initial=0)))
        return largest

    def unpack(self) -> None:
        """The Linears back in their places, whatever :meth:`pack` did."""
        for path, (_, dense) in self.pairs.items():
            replace_base_module(self.model, path, dense)

    def leave(self) -> None:
        """The layers that were put aside back in their places: their bytes were never touched."""
        for path, (leaf, _) in self.pairs.items():
            replace_base_module(self.model, path, leaf)
        self.pairs = {}
