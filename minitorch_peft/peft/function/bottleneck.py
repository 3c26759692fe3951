"""Bottleneck adapters: a small network in every block (Houlsby et al. 2019, section 2.1; He et al. 2022, table 1).

    sequential   h + s (W_up f(W_down h + b_down) + b_up),   h = sub-layer(x)
    parallel     h + s (W_up f(W_down x + b_down) + b_up)    W_down (w, C), W_up (C, w), f element by element

The sub-layer is a block's attention or its feed-forward; x is its input, after the norm, and h its output before
dropout and the residual sum. Three configs, AdapterHub's but for their start and, of the first, the place (see below):

    SeqBnConfig         Pfeiffer et al. 2021    after the feed-forward                        relu    w = C / 16
    DoubleSeqBnConfig   Houlsby et al. 2019     after the attention, after the feed-forward   swish   w = C / 16
    ParBnConfig         He et al. 2022          beside the feed-forward, s = 4 (1: unscaled)  relu    w = C / 2

Parameters: 2 C w + w + C at each place; one more, or C more, for a learned s. All places: the chosen sub-layers of all
blocks but ``leave_out``. Start: W_up and all b at zero, so that the model starts as the base, bit for bit; W_down as in
``torch``'s linear layer (He et al.'s start). ``init_weights="bert"``, AdapterHub's default for the first two, draws
both W from N(0, 0.02²): near the base, not at it.

Where exactly: all three read and add *before* the residual sum, which in AdapterHub is ``original_ln_before=False``.
It is so there for Houlsby's and the parallel adapter. Its SeqBnConfig alone has True: on a model with the norm first
W_down then reads the residual stream after the feed-forward's sum. Here that is a setting too; by default SeqBnConfig
reads h, as He et al. define Pfeiffer's adapter.

Adapters stack: in ``set_adapter(["dialect", "task"], train="task")`` the task's stands around the dialect's, which is
frozen and may be another one tomorrow (MAD-X, Pfeiffer et al. 2020). The parallel ones all read the same x.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.models import GPT
from minitorch_peft.nn import ForwardContext, Linear, Module, init
from minitorch_peft.peft.adapter import Adapter
from minitorch_peft.peft.config import PeftConfig, check_count, check_positive
from minitorch_peft.peft.function.bottleneck_function import NON_LINEARITIES, bottleneck
from minitorch_peft.peft.inject import inject
from minitorch_peft.peft.registry import Method, register
from minitorch_peft.peft.shapes import Around

STARTS: dict[str, tuple[init.Init, init.Init]] = {  # of W_down and W_up
    "mam_adapter": (init.kaiming_uniform(), init.zeros),
    "lora": (init.kaiming_uniform(), init.zeros),  # the same by its name in He et al.'s code
    "bert": (init.normal(0.02), init.normal(0.02)),
}
SCALINGS = ("learned", "channel")


@dataclass
class BnConfig(PeftConfig):
    """What the three share.

    ``mh_adapter``, ``output_adapter``: at the attention, at the feed-forward. w is ``bottleneck_size`` or, where that
    is None, C / ``reduction_factor`` rounded down. ``scaling``: s, or "learned" (one s for each place, from 1), or
    "channel" (one for each channel). ``leave_out``: numbers of blocks that get none.

    >>> from minitorch_peft.models import GPT, GPTConfig
    >>> from minitorch_peft.peft import SeqBnConfig, get_peft_model
    >>> base = GPT(GPTConfig(vocab_size=97, n_positions=64, n_embd=64, n_layer=3, n_head=4))
    >>> p = get_peft_model(base, SeqBnConfig(mh_adapter=True, output_adapter=False, leave_out=[0]))
    >>> list(p.adapters["default"].wrappers)
    ['blocks.1.attn', 'blocks.2.attn']
    >>> p.get_nb_trainable_parameters()[0] == 2 * (2 * 64 * 4 + 4 + 64)
    True
    """

    is_parallel: ClassVar[bool] = False

    mh_adapter: bool = False
    output_adapter: bool = True
    reduction_factor: float = 16
    bottleneck_size: int | None = None
    non_linearity: str = "relu"
    scaling: float | str = 1.0
    init_weights: str = "mam_adapter"
    leave_out: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.mh_adapter or self.output_adapter):
            raise ValueError(
                "an adapter needs a place: set mh_adapter (attention), output_adapter (feed-forward) or both"
            )
        check_positive("reduction_factor", self.reduction_factor)
        if self.bottleneck_size is not None:
            check_count("bottleneck_size", self.bottleneck_size)
        if self.non_linearity not in NON_LINEARITIES:
            raise ValueError(f"unknown non_linearity {self.non_linearity!r}; known: {', '.join(NON_LINEARITIES)}")
        if self.scaling not in SCALINGS:
            check_positive("scaling", self.scaling, f"or one of {SCALINGS}, ")
        if self.init_weights not in STARTS:
            raise ValueError(f"unknown init_weights {self.init_weights!r}; known: {', '.join(STARTS)}")

    def width(self, model: GPT) -> int:
        """w; ValueError where nothing is left of it."""
        C = model.config.n_embd
        w = int(C / self.reduction_factor) if self.bottleneck_size is None else self.bottleneck_size
        if w < 1:
            raise ValueError(f"reduction_factor={self.reduction_factor} leaves no channel of {C}: at most {C}")
        return w

    def paths(self, model: GPT) -> list[str]:
        """Where adapters stand; ValueError for a block that the model has not, or where none is left."""
        blocks = range(model.config.n_layer)
        if not set(self.leave_out) < set(blocks):
            raise ValueError(f"leave_out={self.leave_out}: expected some, not all, of the blocks 0..{len(blocks) - 1}")
        wanted = [name for name, here in (("attn", self.mh_adapter), ("mlp", self.output_adapter)) if here]
        return [f"blocks.{i}.{name}" for i in blocks if i not in self.leave_out for name in wanted]


@dataclass
class SeqBnConfig(BnConfig):
    """Pfeiffer's adapter: after the feed-forward; with ``original_ln_before`` after its residual sum."""

    peft_type: ClassVar[str] = "SEQ_BN"

    original_ln_before: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.original_ln_before and self.mh_adapter:
            raise ValueError("original_ln_before is for the adapter after the feed-forward alone: leave out mh_adapter")

    def paths(self, model: GPT) -> list[str]:
        paths = super().paths(model)
        return [path.removesuffix(".mlp") for path in paths] if self.original_ln_before else paths


@dataclass
class DoubleSeqBnConfig(BnConfig):
    """Houlsby's adapter: after the attention and after the feed-forward."""

    peft_type: ClassVar[str] = "DOUBLE_SEQ_BN"

    mh_adapter: bool = True
    non_linearity: str = "swish"


@dataclass
class ParBnConfig(BnConfig):
    """The scaled parallel adapter: beside the feed-forward, on its input; ``scaling=1.0``: unscaled."""

    peft_type: ClassVar[str] = "PAR_BN"
    is_parallel: ClassVar[bool] = True

    reduction_factor: float = 2
    scaling: float | str = 4.0


class BottleneckLayer(Around):
    """A sub-layer and its adapter, its parts named as in AdapterHub."""

    def __init__(self, base_layer: Module, path: str, adapter: Adapter, config: BnConfig) -> None:
        super().__init__(base_layer, adapter)
        C, w, (down, up) = adapter.model.config.n_embd, config.width(adapter.model), STARTS[config.init_weights]
        self.adapter_down = adapter.new_module(f"{path}.adapter_down", Linear(C, w, weight_init=down))
        self.adapter_up = adapter.new_module(f"{path}.adapter_up", Linear(w, C, weight_init=up))
        self.is_parallel, self.non_linearity = config.is_parallel, config.non_linearity
        self.scaling: Any = config.scaling  # a number, or learned
        if config.scaling in SCALINGS:
            n = C if config.scaling == "channel" else 1
            self.scaling = adapter.new_parameter(f"{path}.scaling", (n,), init.ones)

    def after(self, y: Tensor, x: Tensor, context: ForwardContext | None) -> Tensor:
        return self.added(self.reads(y, x), y)

    def reads(self, y: Tensor, x: Tensor) -> Tensor:
        """What the adapter takes in, of the sub-layer's output ``y`` and its input ``x``."""
        # BEGIN SOLUTION(task="5.1b")
        return x if self.is_parallel else y
        # END SOLUTION

    def added(self, z: Tensor, to: Tensor | None = None, frozen: bool = False) -> Tensor:
        """The change that the adapter makes of ``z``, added to a hidden state or alone.

        ``frozen``: gradients go through to ``z``, none to the adapter's own parameters, even where these train.
        """
        terms: list[Any] = [*self.adapter_down.linear_terms(), *self.adapter_up.linear_terms(), self.scaling]
        if frozen:
            terms = [t.detach() if isinstance(t, Tensor) else t for t in terms]
        return bottleneck(to, z, (terms[0], terms[1]), (terms[2], terms[3]), self.non_linearity, terms[4])


class BottleneckAdapter(Adapter):
    def attach(self, config: BnConfig) -> None:
        paths = config.paths(self.model)
        self.wrappers = inject(self.model, paths, lambda base, path: BottleneckLayer(base, path, self, config))


def bottleneck_count(model: GPT, config: BnConfig) -> int:
    """2 C w + w + C at each place, and 1 or C for a learned s."""
    C, w = model.config.n_embd, config.width(model)
    learned = {"learned": 1, "channel": C}.get(str(config.scaling), 0)
    return len(config.paths(model)) * (2 * C * w + w + C + learned)


def bottleneck_method(name: str, summary: str, *examples: BnConfig) -> Method:
    return Method(
        name=name, config=type(examples[0]), adapter=BottleneckAdapter, shape="around", folder="function",
        start="bitwise", count=bottleneck_count, mergeable=False, rowwise=True,
        stackable_with=("reparam", "around", "tokens", "select"), summary=summary, examples=examples,
    )  # fmt: skip


register(
    bottleneck_method(
        "seq_bn",
        "a bottleneck after each feed-forward (Pfeiffer)",
        SeqBnConfig(),
        SeqBnConfig(True, False, bottleneck_size=3, non_linearity="gelu", scaling="channel", leave_out=[0]),
    )
)
register(
    bottleneck_method(
        "double_seq_bn",
        "bottlenecks after each attention and feed-forward (Houlsby)",
        DoubleSeqBnConfig(reduction_factor=8),
        DoubleSeqBnConfig(bottleneck_size=3, non_linearity="tanh", scaling="learned"),
    )
)
register(
    bottleneck_method(
        "par_bn",
        "a scaled bottleneck beside each feed-forward (He)",
        ParBnConfig(),
        ParBnConfig(bottleneck_size=3, non_linearity="identity", scaling=1.0),
    )
)
