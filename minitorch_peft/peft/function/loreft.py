"""LoReFT: an edit of the hidden states, in r directions, at some places of each row (Wu et al. 2024, eq. 2).

    h + Rᵀ (W h + b - R h),   R (r, C) with orthonormal rows, W (r, C), b (r)

In the r directions that R spans, h is replaced by W h + b; outside of them it stays as it is. The blocks' weights are
untouched: what changes is the residual stream after them. Parameters: r (2 C + 1) for each chosen block, twice that
where the first and the last places have edits of their own. Blocks by default: all.

Names and defaults are AdapterHub's, but r (theirs is 1). Start as there and in ``pyreft``: R orthonormal, W and b those
of a linear layer, so the start is *not* the base; dropout falls on the whole edited vector, in both. They keep R
orthonormal by a parametrization that is differentiated through. Here R is a plain parameter, and after each step of
the optimizer the nearest orthonormal matrix takes its place (projected gradient descent): a loop written by hand must
call ``p.after_step(step)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

import minitorch_peft.functional as F
from minitorch_peft.autograd.function import Function
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.models import GPT
from minitorch_peft.nn import Dropout, ForwardContext, Module, init
from minitorch_peft.peft.adapter import Adapter
from minitorch_peft.peft.config import PeftConfig, are_whole, check_count, is_whole
from minitorch_peft.peft.function.orthonormal import nearest_orthonormal, orthonormal
from minitorch_peft.peft.function.places import NOWHERE, marked, places
from minitorch_peft.peft.inject import inject
from minitorch_peft.peft.registry import Method, register
from minitorch_peft.peft.shapes import Around


@dataclass
class LoReftConfig(PeftConfig):
    """``layers``: "all", or the numbers of the blocks after which the states are edited.

    ``prefix_positions``: how many tokens at the start of each row are edited, padding and other methods' prompts not
    counted; None for every token, generated ones too. A row may be cut into passes anywhere: its places go on.

    ``suffix_positions``: how many at its end, in the first pass that brings the row any text, since later ones bring
    what was generated. So a cached generation edits the prompt's end, as ``pyreft`` does; one without a cache takes the
    row's end to be the prompt's at every step. A token at both ends counts as one of the start. ``tied_weights``: one
    edit for both ends.

    >>> from minitorch_peft.models import GPT, GPTConfig
    >>> from minitorch_peft.peft import LoReftConfig, get_peft_model
    >>> base = GPT(GPTConfig(vocab_size=97, n_positions=64, n_embd=64, n_layer=3, n_head=4))
    >>> get_peft_model(base, LoReftConfig(layers=[1])).print_trainable_parameters()
    trainable params: 516 || all params: 160,900 || trainable%: 0.3207
    """

    peft_type: ClassVar[str] = "LOREFT"

    layers: str | list[int] = "all"
    prefix_positions: int | None = 3
    suffix_positions: int = 0
    r: int = 4
    tied_weights: bool = False
    dropout: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        prefix, suffix = self.prefix_positions, self.suffix_positions
        check_count("r", self.r)
        if any(not is_whole(n) or n < 0 for n in (0 if prefix is None else prefix, suffix)):
            raise ValueError(f"prefix_positions and suffix_positions count tokens, got {prefix!r} and {suffix!r}")
        if (prefix == 0 and suffix == 0) or (prefix is None and suffix):
            raise ValueError("edit some tokens: the first, the last or both; or all (prefix_positions=None) alone")

    def blocks(self, model: GPT) -> list[int]:
        """The numbers of the chosen blocks; ValueError for one that the model has not."""
        have, wanted = range(model.config.n_layer), self.layers
        if wanted != "all" and not (are_whole(wanted) and wanted and set(wanted) <= set(have)):
            raise ValueError(f'layers={wanted!r}: expected "all" or numbers of blocks, 0 to {len(have) - 1}')
        if self.r > model.config.n_embd:
            raise ValueError(f"r={self.r} is above the width of the hidden states, {model.config.n_embd}")
        return list(have) if wanted == "all" else sorted(set(wanted))  # type: ignore[arg-type]

    @property
    def ends(self) -> tuple[str, ...]:
        """The edits of one block, by name."""
        if self.suffix_positions and self.prefix_positions and not self.tied_weights:
            return ("prefix", "suffix")
        return ("edit",)


class LoReftEdit(Function):
    """y = h + (W h + b - R h) R where ``at`` (B or 1, T) is true, y = h elsewhere; h (B, T, C).

    With D = W - R and u = D h + b (N, r) at the N edited places, and G = dL/dy there:

        du = G Rᵀ    dW = duᵀ h    db = Σ du    dR = uᵀ G - duᵀ h    dh = G + du D
    """

    @staticmethod
    def forward(ctx: Any, h, R, W, b, *, at: np.ndarray) -> np.ndarray:  # type: ignore[no-untyped-def]
        at = np.broadcast_to(at, h.shape[:2])
        rows = h[at]
        D = W - R
        u = rows @ D.T + b
        y = h.copy()
        y[at] += u @ R
        ctx.at = at
        ctx.save_for_backward(rows, u, R, D)
        return y

    @staticmethod
    def backward(ctx: Any, G: np.ndarray) -> tuple[np.ndarray | None, ...]:
        rows, u, R, D = ctx.saved
        g = G[ctx.at]
        du = g @ R.T
        dW = du.T @ rows
        dh = None
        if ctx.needs_input_grad[0]:
            dh = G.copy()
            dh[ctx.at] += du @ D
        return dh, u.T @ g - dW, dW, du.sum(axis=0)


class Edit(Module):
    """R, W and b, with a linear layer's start for the last two: U(-1/√C, 1/√C)."""

    def __init__(self, path: str, adapter: Adapter, r: int, C: int) -> None:
        self.R = adapter.new_parameter(f"{path}.R", (r, C), orthonormal)
        self.W = adapter.new_parameter(f"{path}.W", (r, C), init.kaiming_uniform())
        self.b = adapter.new_parameter(f"{path}.b", (r,), partial(_uniform, 1 / math.sqrt(C)))

    def retract(self) -> None:
        self.R.data[...] = nearest_orthonormal(self.R.data)
        self.R.version.count += 1


def _uniform(bound: float, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.uniform(-bound, bound, shape)


class LoReftLayer(Around):
    """A block, and the edit of what leaves it."""

    adapter: LoReft

    def __init__(self, base_layer: Module, path: str, adapter: LoReft, config: LoReftConfig) -> None:
        super().__init__(base_layer, adapter)
        C = adapter.model.config.n_embd
        self.ends = config.ends
        for end in self.ends:
            setattr(self, end, Edit(f"{path}.{end}", adapter, config.r, C))
        self.dropout = Dropout(config.dropout, f"{adapter.name}.{path}")

    @property
    def edits(self) -> list[Edit]:
        return [vars(self)[end] for end in self.ends]

    def after(self, y: Tensor, x: Tensor, context: ForwardContext | None) -> Tensor:
        assert context is not None
        start, end = self.adapter.edited(context, y.shape[1])
        for edit, at in zip(self.edits, (start, end) if len(self.ends) == 2 else (start | end,), strict=True):
            if at.any():
                edited = LoReftEdit.apply(y, edit.R, edit.W, edit.b, at=at)
                dropped = self.dropout(edited, context)
                y = edited if dropped is edited else F.where(Tensor(at[:, :, None]), dropped, edited)
        return y


class LoReft(Adapter):
    def attach(self, config: LoReftConfig) -> None:
        paths = [f"blocks.{i}" for i in config.blocks(self.model)]
        self.wrappers = inject(self.model, paths, lambda base, path: LoReftLayer(base, path, self, config))

    def edited(self, context: ForwardContext, length: int) -> tuple[np.ndarray, np.ndarray]:
        """bool (B or 1, length) twice: the places at the start, and those at the end, that this pass edits."""
        name, prefix = f"{self.name}.places", self.config.prefix_positions
        is_first = (marked(context, name) == NOWHERE).all(axis=1, keepdims=True)  # of its row: only padding was before
        at = places(context, length, name)
        text = at != NOWHERE
        start = text & ((at < prefix) if prefix is not None else True)
        from_end = np.cumsum(text[:, ::-1], axis=1)[:, ::-1]  # 1 for the last
        return start, is_first & text & ~start & (from_end <= self.config.suffix_positions)

    def after_step(self, step: int) -> None:
        for layer in self.wrappers.values():
            for edit in layer.edits:
                edit.retract()


def loreft_count(model: GPT, config: LoReftConfig) -> int:
    """r (2 C + 1) for each block and edit."""
    return len(config.blocks(model)) * len(config.ends) * config.r * (2 * model.config.n_embd + 1)


register(
    Method(
        name="loreft", config=LoReftConfig, adapter=LoReft, shape="around", folder="function", start="none",
        count=loreft_count, mergeable=False, rowwise=True, stackable_with=("reparam", "around", "tokens", "select"),
        summary="an edit of the hidden states in a subspace, at some places",
        examples=(LoReftConfig(prefix_positions=5), LoReftConfig(layers=[1], prefix_positions=None, r=2)),
    )
)  # fmt: skip
