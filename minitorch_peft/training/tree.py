"""Nested dicts and lists with arrays in them, taken apart into JSON and a flat dict of arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

_MARK = "__array__"


def pack(tree: Any, arrays: dict[str, np.ndarray], path: str) -> Any:
    """``tree`` as JSON; its arrays are put into ``arrays`` under ``path`` and leave a mark where they were.

    >>> arrays = {}
    >>> pack({"budget": 3, "scores": np.zeros(2)}, arrays, "method"), list(arrays)
    ({'budget': 3, 'scores': {'__array__': 'method/scores'}}, ['method/scores'])
    """
    if isinstance(tree, np.ndarray | np.generic):
        arrays[path] = np.asarray(tree)
        return {_MARK: path}
    if isinstance(tree, dict):
        if bad := [key for key in tree if not isinstance(key, str) or key == _MARK]:
            raise TypeError(f"{path}: keys must be strings, got {bad[0]!r}")
        return {key: pack(value, arrays, f"{path}/{key}") for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [pack(value, arrays, f"{path}/{i}") for i, value in enumerate(tree)]
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    raise TypeError(f"{path}: a checkpoint holds arrays, numbers, text, lists and dicts, not {type(tree).__name__}")


def unpack(packed: Any, arrays: dict[str, np.ndarray]) -> Any:
    """The inverse of :func:`pack` (tuples come back as lists)."""
    if isinstance(packed, dict):
        if _MARK in packed:
            return arrays[packed[_MARK]]
        return {key: unpack(value, arrays) for key, value in packed.items()}
    return [unpack(value, arrays) for value in packed] if isinstance(packed, list) else packed
