"""A pass as a ladder's side network sees it: rotations of its own width, and keys of its own in the pass's cache."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

import minitorch_peft.functional as F
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.models import GPTConfig
from minitorch_peft.models.inputs import rotation
from minitorch_peft.nn import ForwardContext
from minitorch_peft.peft.adapter import Adapter
from minitorch_peft.peft.function.places import NOWHERE, mark, marked


def side_context(context: ForwardContext, x: Tensor, side: GPTConfig, adapter: Adapter) -> ForwardContext:
    """The context of a side network of shape ``side``; ``x`` (B, T, C) is what the base's blocks are given.

    A prefix of another method's is keys for the base's blocks only: the side network has none for it, and sees none.
    """
    own = replace(context, hidden_states=None)
    if context.rotary is not None and side.head_dim != adapter.model.config.head_dim:
        assert context.position_ids is not None
        own.rotary = rotation(context.position_ids, side.head_dim, side.rope_theta, x.dtype)
    if context.cache is not None:
        name, (B, T, _) = f"{adapter.name}.side", x.shape
        before = marked(context, name)
        seen = np.concatenate([before, np.zeros((len(before), T), before.dtype)], axis=1)
        mark(context, name, seen)
        own.cache = SideCache(context.cache, name)
        if (seen == NOWHERE).any():
            keys = np.broadcast_to(seen[:, None, None, :] != NOWHERE, (B, 1, 1, seen.shape[1]))
            own.keep = keys if context.keep is None else context.keep & keys
    return own


class SideCache:
    """A side network's keys and values, in the cache beside the base's and as many: zeros where it has not seen one."""

    def __init__(self, cache: Any, name: str) -> None:
        self.cache = cache
        self.name = name

    def update(self, layer: int, key: Tensor, value: Tensor, past_length: int) -> tuple[Tensor, Tensor]:
        """See :meth:`minitorch_peft.models.Cache.update`; ``layer`` is one of the side network's."""
        own = f"{self.name}.{layer}"
        B, H, _, D = key.shape
        held = self.cache.entries.get(own, ())
        if (missing := past_length - (held[0].shape[2] if held else 0)) > 0:
            zeros = Tensor(np.zeros((B, H, missing, D), key.dtype))
            self.cache.entries[own] = tuple(F.cat([t, zeros], dim=2) for t in held) or (zeros, zeros)
        return self.cache.update(own, key, value, past_length)
