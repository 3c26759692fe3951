"""Ladder side-tuning: a small network along the frozen one, whose backward pass falls away (Sung et al. 2022).

    s_0 = D_0 h_0,    s_i = block_i(μ_i s_{i-1} + (1 - μ_i) D_i h_i),  μ_i = sigmoid(a_i / T),    h + U norm(s_n)

h_0 (B, T, C) are the embedded tokens, h_i what leaves the i-th block of the base, h the last of them. The side network
has the base's kind of blocks with a width of w = C / f; D_i (w, C) take the rungs of the ladder, U (C, w) goes back up.
Nothing that trains comes before the base's blocks or stands inside of them, so they run without a graph: of their
activations the n + 1 rungs are kept, and of the backward pass through the base nothing is left but the head's (section
3.1). Other methods save weight gradients and optimizer state; this one activations too.

Parameters: (n + 2) C w for D and U, n for a (``gate``), and the side network's own, about 1 / f² of the base's blocks.
It starts from the base's weights of largest norm (see ``ladder_start.py``), D from the choice of the same channels, a
from 0.

Two deviations from the paper: there U norm(s_n) goes to the head *in place of* h; here it is added, with U = 0, so that
the adapted model starts as the base. And h_i are not detached: where another adapter trains along with this one, inside
of the blocks or before them, the base has a graph for its sake, so that nothing is silently left untrained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

import minitorch_peft.functional as F
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.models import GPT
from minitorch_peft.models.gpt import Block, make_norm
from minitorch_peft.nn import ForwardContext, Linear, Module, ModuleList, init
from minitorch_peft.peft.adapter import Adapter
from minitorch_peft.peft.config import PeftConfig, check_count, check_positive
from minitorch_peft.peft.function.ladder_pass import side_context
from minitorch_peft.peft.function.ladder_start import kept_channels, pruned_block, side_config, start
from minitorch_peft.peft.inject import inject
from minitorch_peft.peft.registry import Method, register
from minitorch_peft.peft.shapes import Around, on_rows


@dataclass
class LadderConfig(PeftConfig):
    """``reduction_factor``: f, how many times narrower the side network is; ``gate_temperature``: T.

    >>> from minitorch_peft.models import GPT, GPTConfig
    >>> from minitorch_peft.peft import LadderConfig, get_peft_model
    >>> base = GPT(GPTConfig(vocab_size=97, n_positions=64, n_embd=64, n_layer=3, n_head=4))
    >>> p = get_peft_model(base, LadderConfig())
    >>> p.print_trainable_parameters()
    trainable params: 5,195 || all params: 165,579 || trainable%: 3.1375
    >>> p.adapters["default"].wrappers["blocks"].side[0].mlp.up_proj
    Linear(8, 32)
    """

    peft_type: ClassVar[str] = "LADDER"

    reduction_factor: int = 8
    gate_temperature: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("reduction_factor", self.reduction_factor)
        check_positive("gate_temperature", self.gate_temperature)


class LadderLayer(Around):
    """The stack of blocks, and the side network that climbs along it."""

    def __init__(self, base_layer: Module, path: str, adapter: Adapter, config: LadderConfig) -> None:
        super().__init__(base_layer, adapter)
        model = adapter.model
        self.shape = side = side_config(model.config, config.reduction_factor)
        n, C, w = side.n_layer, model.config.n_embd, side.n_embd
        channels = kept_channels(model, w)
        self.down = adapter.new_module(f"{path}.down", ModuleList([Linear(C, w, bias=False) for _ in range(n + 1)]))
        self.side = adapter.new_module(f"{path}.side", ModuleList([Block(side, i) for i in range(n)]))
        self.norm = adapter.new_module(f"{path}.norm", make_norm(side))
        self.up = adapter.new_module(f"{path}.up", Linear(w, C, bias=False, weight_init=init.zeros))
        self.gate = adapter.new_parameter(f"{path}.gate", (n,), init.zeros)
        self.temperature = config.gate_temperature
        for down in self.down:
            down.weight.data[...] = np.eye(C)[channels]
        for i, block in enumerate(self.side):
            start(block, pruned_block(model, i, side, channels))

    def adapted(self, x: Tensor, context: ForwardContext | None) -> Tensor:
        rungs = self.climb(x, context)
        return rungs[-1] + self.beside(rungs, context)

    def mixed(self, x: Tensor, context: ForwardContext | None, rows: np.ndarray) -> Tensor:
        rungs = self.climb(x, context)
        return on_rows(rows, rungs[-1] + self.beside(rungs, context), rungs[-1])

    def climb(self, x: Tensor, context: Any) -> list[Tensor]:
        """What goes into each block of the base, and what leaves the last."""
        asked, context.hidden_states = context.hidden_states, []
        h = self.base_layer(x, context)
        lower, context.hidden_states = context.hidden_states, asked
        if asked is not None:  # the caller wants the base's, as it would have them without the ladder
            asked += lower
        return [*lower, h]

    def beside(self, rungs: list[Tensor], context: Any) -> Tensor:
        """U norm(s_n), (B, T, C)."""
        context = side_context(context, rungs[0], self.shape, self.adapter)
        downs = iter(self.down)
        s = next(downs)(rungs[0])
        for i, (down, block, h) in enumerate(zip(downs, self.side, rungs[1:], strict=True)):
            mu = F.sigmoid(self.gate[i] / self.temperature)
            s = block(mu * s + (1 - mu) * down(h), context)
        return self.up(self.norm(s))


class Ladder(Adapter):
    def attach(self, config: LadderConfig) -> None:
        self.wrappers = inject(self.model, ["blocks"], lambda base, path: LadderLayer(base, path, self, config))


def ladder_count(model: GPT, config: LadderConfig) -> int:
    """(n + 2) C w + n + w (or 2 w) of the last norm + those of n blocks of width w."""
    side, C = side_config(model.config, config.reduction_factor), model.config.n_embd
    n, w, inner = side.n_layer, side.n_embd, side.inner
    norm = 2 * w if side.norm == "layer" else w
    into = 2 if side.gated_mlp else 1
    attention = 4 * w * w + 4 * w * side.attention_bias
    mlp = (into + 1) * w * inner + (into * inner + w) * side.mlp_bias
    return (n + 2) * C * w + n + norm + n * (attention + mlp + 2 * norm)


register(
    Method(
        name="ladder", config=LadderConfig, adapter=Ladder, shape="around", folder="function", start="bitwise",
        count=ladder_count, mergeable=False, rowwise=True, stackable_with=("reparam", "around", "tokens", "select"),
        summary="a small network along the base, whose backward pass falls away",
        examples=(LadderConfig(), LadderConfig(reduction_factor=4, gate_temperature=1.0)),
    )
)  # fmt: skip
