"""MAM, mix and match: a prefix in every attention, a scaled parallel adapter at every feed-forward (He et al. 2022).

    head = softmax(q [P_K; K]ᵀ / √D) [P_V; V]            (section 4.6: l = 30 of them, made by a network)
    MLP(x) + s (W_up f(W_down x + b_down) + b_up)        (w = C / 2, s = 4, f = relu)

The paper's finding: attention is best changed by few parameters, which the gate of a prefix spends well, and the
feed-forward by many, beside it and scaled. It is prefix tuning and ParBnConfig at once, and nothing else: parameters
are the sum of theirs, and so is what they do. The prefix starts random, so the start is not the base.

AdapterHub's MAMConfig is a union of two configs; here it has the settings of both under the names that they have, and
``prefix_tuning`` and ``adapter`` give the two back. Its network is 800 wide, as there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from minitorch_peft.models import GPT
from minitorch_peft.nn import Module
from minitorch_peft.peft.config import PeftConfig
from minitorch_peft.peft.function.bottleneck import BottleneckLayer, ParBnConfig, bottleneck_count
from minitorch_peft.peft.inject import inject
from minitorch_peft.peft.input.prefix_tuning import PrefixTuning, PrefixTuningConfig, prefix_count, prefix_encoder
from minitorch_peft.peft.registry import Method, register


@dataclass
class MAMConfig(PeftConfig):
    """The first three settings are the prefix's, the others the adapter's.

    >>> from minitorch_peft.models import GPT, GPTConfig
    >>> base = GPT(GPTConfig(vocab_size=97, n_positions=64, n_embd=64, n_layer=3, n_head=4))
    >>> config = MAMConfig(encoder_hidden_size=16)
    >>> prefix = 30 * 64 + 16 * (64 + 1) + 2 * 3 * 64 * (16 + 1)
    >>> mam_count(base, config) == prefix + 3 * (2 * 64 * 32 + 32 + 64)
    True
    """

    peft_type: ClassVar[str] = "MAM"

    num_virtual_tokens: int = 30
    prefix_projection: bool = True
    encoder_hidden_size: int | None = 800
    reduction_factor: float = 2
    bottleneck_size: int | None = None
    non_linearity: str = "relu"
    scaling: float | str = 4.0
    init_weights: str = "mam_adapter"
    leave_out: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.prefix_tuning, self.adapter  # they check their settings

    @property
    def prefix_tuning(self) -> PrefixTuningConfig:
        return PrefixTuningConfig(
            num_virtual_tokens=self.num_virtual_tokens,
            prefix_projection=self.prefix_projection,
            encoder_hidden_size=self.encoder_hidden_size if self.prefix_projection else None,
        )

    @property
    def adapter(self) -> ParBnConfig:
        return ParBnConfig(
            reduction_factor=self.reduction_factor,
            bottleneck_size=self.bottleneck_size,
            non_linearity=self.non_linearity,
            scaling=self.scaling,
            init_weights=self.init_weights,
            leave_out=self.leave_out,
        )


class MAM(PrefixTuning):
    def attach(self, config: MAMConfig) -> None:  # type: ignore[override]
        self.prefix_length = config.num_virtual_tokens
        self.add_encoder(mam_encoder)
        parallel = config.adapter
        paths = parallel.paths(self.model)
        self.wrappers = inject(self.model, paths, lambda base, path: BottleneckLayer(base, path, self, parallel))


def mam_encoder(model: GPT, config: MAMConfig) -> Module:
    return prefix_encoder(model, config.prefix_tuning)


def mam_count(model: GPT, config: MAMConfig) -> int:
    """The prefix's and the adapter's."""
    return prefix_count(model, config.prefix_tuning) + bottleneck_count(model, config.adapter)


register(
    Method(
        name="mam",
        config=MAMConfig,
        adapter=MAM,
        shape="around",
        folder="function",
        start="none",
        count=mam_count,
        mergeable=False,
        rowwise=True,
        stackable_with=("reparam", "around", "tokens", "select"),
        summary="a prefix, and a scaled parallel bottleneck",
        examples=(
            MAMConfig(num_virtual_tokens=3, encoder_hidden_size=5),
            MAMConfig(num_virtual_tokens=2, prefix_projection=False, bottleneck_size=3, scaling="learned"),
        ),
    )
)
