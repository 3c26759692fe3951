"""Where in its row's text each vector of a pass stands, and what a method notes of keys: they are in the cache."""

from __future__ import annotations

import numpy as np

from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.nn import ForwardContext

NOWHERE = -1  # the mark of a key that a method has not seen (a prefix of another method's), or that is no text


def visible(context: ForwardContext, length: int) -> np.ndarray:
    """bool (B or 1, length): the vectors of this pass that may be attended to, padding not."""
    if context.keep is None:
        return np.ones((1, length), bool)
    own = context.keep[:, 0, :, context.past_length :]  # (B, 1 or length, length)
    return own[:, 0] if own.shape[1] == 1 else np.diagonal(own, axis1=1, axis2=2)


def marked(context: ForwardContext, name: str) -> np.ndarray:
    """int (B or 1, past keys): the marks under ``name`` of the keys before this pass."""
    past = context.past_length
    marks = np.full((1, 0), NOWHERE)
    if context.cache is not None and name in context.cache.entries:
        marks = context.cache.entries[name][0].data[:, 0, :past, 0]
    return np.pad(marks, ((0, 0), (0, past - marks.shape[1])), constant_values=NOWHERE)


def mark(context: ForwardContext, name: str, marks: np.ndarray) -> None:
    """Mark all keys, those of this pass included: int (B or 1, S). Without a cache there is nothing to mark.

    Marks stand beside the keys of the layers, so they are copied, cut and dropped with them.
    """
    if context.cache is not None:
        held = Tensor(marks[:, None, :, None])
        context.cache.entries[name] = (held, held)


def places(context: ForwardContext, length: int, name: str) -> np.ndarray:
    """int (B or 1, length): the place in its row's text of each vector of this pass, from 0; NOWHERE where it is none.

    Neither padding is counted nor what other methods put before the text. Places go on through later passes, so they
    do not depend on how a row is cut into passes. ``name`` is the caller's, for its marks in the cache.
    """
    text = visible(context, length) & (np.arange(length) >= context.prompt_length)
    before = marked(context, name)
    last = before.max(axis=1, keepdims=True, initial=NOWHERE)
    here = np.where(text, last + np.cumsum(text, axis=1), NOWHERE)
    rows = max(len(before), len(here))
    everything = np.concatenate([np.broadcast_to(m, (rows, m.shape[1])) for m in (before, here)], axis=1)
    mark(context, name, everything)
    return here
