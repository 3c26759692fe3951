"""P-tuning: prompt vectors made by a small network, so that they depend on one another (Liu et al. 2021, eq. 5-6).

    P_i = W₂ relu(W₁ [→h_i; ←h_i]),   →h, ←h = LSTM(E)      ``LSTM``, the paper's
    P_i = W₃ relu(W₂ relu(W₁ E_i))                          ``MLP``, the default in ``peft``

E (k, C) is trained with the network (its biases are left out above), and P (k, C) stands before the input, as in prompt
tuning. After training the network may be thrown away: P is all that the model reads, and all that ``peft`` keeps. Here
the network is kept beside P, so that training can go on. E starts at N(0, 1), the network as in ``torch``, but linear
biases at zero.

Parameters, with h ``encoder_hidden_size``: k C, and for ``MLP`` h (C + 1) + h (h + 1) + C (h + 1); for ``LSTM``
8 h (I + h + 2) for each layer, I = C in the first one and 2 h in those after it, + 2 h (2 h + 1) + C (2 h + 1).
``NONE`` is E itself, what is left of an adapter whose network was thrown away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.models import GPT
from minitorch_peft.nn import LSTM, Activation, Embedding, ForwardContext, Linear, Module, Sequential
from minitorch_peft.peft.config import check_count, check_dropout
from minitorch_peft.peft.input.prompt_files import PromptFiles
from minitorch_peft.peft.input.virtual_tokens import PromptAdapter, Table, VirtualTokensConfig
from minitorch_peft.peft.registry import Method, register


@dataclass
class PromptEncoderConfig(VirtualTokensConfig):
    """``encoder_hidden_size`` is h, by default C. ``encoder_num_layers`` and ``encoder_dropout`` (between layers, in
    training) are the LSTM's; the MLP has its three layers.

    >>> from minitorch_peft.models import GPT
    >>> from minitorch_peft.peft import get_peft_model
    >>> config = PromptEncoderConfig(8, "LSTM", encoder_hidden_size=16)
    >>> get_peft_model(GPT.from_pretrained("tiny-0.25m"), config).print_trainable_parameters()
    trainable params: 20,576 || all params: 302,560 || trainable%: 6.8006
    """

    peft_type: ClassVar[str] = "P_TUNING"

    encoder_reparameterization_type: str = "MLP"
    encoder_hidden_size: int | None = None
    encoder_num_layers: int = 2
    encoder_dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoder_reparameterization_type not in ENCODERS:
            kind = self.encoder_reparameterization_type
            raise ValueError(f"encoder_reparameterization_type={kind!r}: expected one of {', '.join(ENCODERS)}")
        if self.encoder_hidden_size is not None:
            check_count("encoder_hidden_size", self.encoder_hidden_size)
        check_count("encoder_num_layers", self.encoder_num_layers)
        check_dropout("encoder_dropout", self.encoder_dropout)

    @classmethod
    def without_effect(cls, settings: Mapping[str, Any]) -> dict[str, str]:
        kind = settings.get("encoder_reparameterization_type", "MLP")
        found = {} if kind in ("MLP", "LSTM") else {"encoder_hidden_size": "a network"}
        lstm = dict.fromkeys(("encoder_num_layers", "encoder_dropout"), 'encoder_reparameterization_type="LSTM"')
        return found if kind == "LSTM" else found | lstm

    def sizes(self, model: GPT) -> tuple[int, int, int]:
        """k, C and h."""
        C = model.config.n_embd
        return self.num_virtual_tokens, C, self.encoder_hidden_size or C


class MLPEncoder(Module):
    def __init__(self, k: int, C: int, h: int) -> None:
        self.embedding = Embedding(k, C)
        self.mlp_head = Sequential(
            Linear(C, h), Activation("relu"), Linear(h, h), Activation("relu"), Linear(h, C)
        )  # fmt: skip

    def forward(self, context: ForwardContext | None = None) -> Tensor:
        return self.mlp_head(self.embedding.weight, context)


class LSTMEncoder(Module):
    def __init__(self, k: int, C: int, h: int, num_layers: int, dropout: float, site: str) -> None:
        self.embedding = Embedding(k, C)
        self.lstm_head = LSTM(C, h, num_layers, dropout=dropout, bidirectional=True, site=site)
        self.mlp_head = Sequential(Linear(2 * h, 2 * h), Activation("relu"), Linear(2 * h, C))

    def forward(self, context: ForwardContext | None = None) -> Tensor:
        sequence = self.embedding.weight.unsqueeze(0)
        return self.mlp_head(self.lstm_head(sequence, context), context).squeeze(0)


ENCODERS = ("MLP", "LSTM", "NONE")


def prompt_encoder(model: GPT, config: PromptEncoderConfig, site: str = "prompt_encoder") -> Module:
    """``site`` names its dropout."""
    k, C, h = config.sizes(model)
    make = {
        "MLP": lambda: MLPEncoder(k, C, h),
        "LSTM": lambda: LSTMEncoder(k, C, h, config.encoder_num_layers, config.encoder_dropout, site),
        "NONE": lambda: Table(k, C),
    }
    return make[config.encoder_reparameterization_type]()


class PTuning(PromptAdapter):
    def attach(self, config: PromptEncoderConfig) -> None:
        self.add_prompt(partial(prompt_encoder, site=f"{self.name}.prompt_encoder"))


def p_tuning_count(model: GPT, config: PromptEncoderConfig) -> int:
    """k C, and the network's own: see above."""
    k, C, h = config.sizes(model)
    inputs = [C, *[2 * h] * (config.encoder_num_layers - 1)]
    network = {
        "MLP": h * (C + 1) + h * (h + 1) + C * (h + 1),
        "LSTM": sum(8 * h * (width + h + 2) for width in inputs) + 2 * h * (2 * h + 1) + C * (2 * h + 1),
        "NONE": 0,
    }
    return k * C + network[config.encoder_reparameterization_type]


register(
    Method(
        name="p_tuning", config=PromptEncoderConfig, adapter=PTuning, shape="tokens", folder="input", start="none",
        count=p_tuning_count, mergeable=False, rowwise=True,
        stackable_with=("reparam", "around", "tokens", "select"),
        summary="vectors before the input, made by a small network",
        examples=(
            PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=5),
            PromptEncoderConfig(4, "LSTM", encoder_hidden_size=3, encoder_dropout=0.2),
        ),
        peft_files=PromptFiles(
            PromptEncoderConfig, prompt_encoder,
            ("encoder_reparameterization_type", "encoder_hidden_size", "encoder_num_layers", "encoder_dropout"),
            spelled={"encoder_reparameterization_type": {"NONE": "MLP"}},
            alone={"encoder_reparameterization_type": "NONE"},
        ),
    )
)  # fmt: skip
