"""What one forward pass knows beside its input: made once, handed down to every module."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minitorch_peft.autograd.tensor import Tensor


@dataclass
class ForwardContext:
    """One per forward pass; the same object is used again when a block is recomputed.

    The first group is set by the caller (``PeftModel``, the trainer), the second by the GPT.
    """

    adapter_names: tuple[str, ...] | None = None  # for each row of the batch, the adapter it runs under
    prompt_length: int = 0  # vectors that adapters put before the input in this pass (not in later ones)
    prompt_keep: np.ndarray | None = None  # bool (B, prompt_length): which of them are a row's own, None for all
    prompts_placed: bool = False  # the rows' own prompts stand before the input already
    hidden: np.ndarray | None = None  # bool (B, new, S): keys that an adapter keeps from the new positions
    seed: int = 0  # with ``step`` and the site's name, the key of dropout and noise
    step: int = 0

    keep: np.ndarray | None = None  # bool (B, 1, 1 or T, S): which keys may be attended to, None for all
    position_ids: np.ndarray | None = None  # int (B or 1, T)
    first: np.ndarray | None = None  # int (B,): where each row's text begins, None where no padding is known
    rotary: tuple[np.ndarray, np.ndarray] | None = None  # cos and sin (B or 1, 1, T, head_dim)
    cache: Any = None  # models.Cache
    past_length: int = 0  # keys in the cache before this pass
    hidden_states: list[Tensor] | None = None  # filled where asked for

    _names: tuple[str, ...] | None = None  # those that ``_rows`` are of
    _rows: dict[str, np.ndarray] = field(default_factory=dict)

    def rows(self, adapter: str) -> np.ndarray | None:
        """bool (B,): the rows that run under ``adapter``; None where the batch names no adapters."""
        if self.adapter_names is None:
            return None
        if self._names is not self.adapter_names:
            self._names, self._rows = self.adapter_names, {}
        if adapter not in self._rows:  # every wrapper of every layer asks
            self._rows[adapter] = np.array([name == adapter for name in self.adapter_names])
        return self._rows[adapter]
