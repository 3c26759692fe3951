"""Rows of unequal length, as the rectangular arrays that a model takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import numpy as np

Batch = dict[str, np.ndarray]
Side = Literal["left", "right"]
IGNORE: Final = -100  # the label that the loss leaves out, as in torch and transformers


def pad_rows(rows: Sequence[Sequence[int]], value: int, side: Side) -> np.ndarray:
    """(B, T) int64: the rows filled up with ``value`` to the length of the longest.

    >>> pad_rows([[5, 6, 7], [8]], 1, "left").tolist()
    [[5, 6, 7], [1, 1, 8]]

    Raises:
        ValueError: an unknown side.
    """
    if side not in ("left", "right"):
        raise ValueError(f"padding side is {side!r}: expected 'left' or 'right'")
    result = np.full((len(rows), max(map(len, rows), default=0)), value, dtype=np.int64)
    for target, row in zip(result, rows, strict=True):
        if side == "left":
            target[len(target) - len(row) :] = row
        else:
            target[: len(row)] = row
    return result


def targets(batch: Batch) -> int:
    """How many tokens a model predicts on this batch: labels that count, less the first column (the model
    shifts).

    Means over batches must be weighted by it.
    """
    return int((batch["labels"][:, 1:] != IGNORE).sum())


def check_any_left(rows: int, kept: int, max_length: int, what: str) -> None:
    """Raise ValueError when no row is left that is at most ``max_length`` long."""
    if kept == 0:
        raise ValueError(
            f"no {what} left: {rows} are there, and none fits into {max_length} tokens. "
            "Give a larger max_length (at most the model's positions), or other books."
        )
