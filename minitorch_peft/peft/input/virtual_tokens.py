"""What methods of virtual tokens share: a table (k, n) that an encoder makes, put before the input of the model.

The encoder stands beside the base as the part ``prompt_encoder``, named inside as ``peft`` names it, and runs in every
pass. For prompts the table is (k, C), a vector for each virtual token; for prefixes (k, 2 n_layer kv_heads head_dim).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from minitorch_peft.autograd.tensor import Tensor, no_grad
from minitorch_peft.models import GPT
from minitorch_peft.nn import Embedding, ForwardContext, Module, init
from minitorch_peft.peft.adapter import Adapter
from minitorch_peft.peft.config import PeftConfig, are_whole, check_count
from minitorch_peft.peft.inject import inject
from minitorch_peft.peft.shapes import Tokens


@dataclass
class VirtualTokensConfig(PeftConfig):
    num_virtual_tokens: int = 20  # k

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("num_virtual_tokens", self.num_virtual_tokens)
        defaults = {f.name: f.default for f in fields(self)}
        for name, needs in self.without_effect(vars(self)).items():
            if (value := getattr(self, name)) != defaults[name]:
                raise ValueError(f"{name}={value!r} has no effect without {needs}: leave it out")

    @classmethod
    def without_effect(cls, settings: Mapping[str, Any]) -> dict[str, str]:
        """Settings that do nothing beside the others, and what they are for. Files of ``peft``'s may hold them."""
        return {}


def check_ids(name: str, value: Any) -> None:
    if value is not None and not are_whole(value):
        raise ValueError(f"{name} must be a list of token ids, got {value!r}")


class Table(Module):
    """The encoder that is nothing but the table itself."""

    def __init__(self, k: int, width: int, start: init.Init | None = None) -> None:
        self.embedding = Embedding(k, width, start)  # N(0, 1) by default, as in torch and peft

    def forward(self, context: ForwardContext | None = None) -> Tensor:
        return self.embedding.weight


class VirtualTokens(Adapter):
    """An adapter with an encoder. ``noise`` is the context of this pass, as far as dropout in the encoder needs it."""

    noise = ForwardContext()

    @property
    def encoder(self) -> Any:
        return self.parts["prompt_encoder"]

    def add_encoder(self, make: Callable[[GPT, Any], Module]) -> None:
        """Give the adapter the encoder ``make(model, config)``; ValueError where the model has no room for k tokens."""
        k, most = self.config.num_virtual_tokens, self.model.config.n_positions - 1
        if k > most:
            raise ValueError(f"num_virtual_tokens={k} leaves no position for a token: at most {most} for this model")
        self.parts = {"prompt_encoder": self.new_module("prompt_encoder", make(self.model, self.config))}

    def rows(self, context: ForwardContext | None) -> bool | np.ndarray:
        if context is not None:  # asked before every pass
            self.noise = ForwardContext(seed=context.seed, step=context.step)
        return super().rows(context)

    def table(self) -> Tensor:
        """What the encoder makes (k, n)."""
        return self.encoder(self.noise)

    def deployed(self) -> dict[str, np.ndarray]:
        """The table instead of the encoder."""
        kept = {name: a for name, a in self.stored().items() if not name.startswith("prompt_encoder.")}
        with no_grad():
            return kept | {"prompt_embeddings": self.table().data}


class PromptLayer(Tokens):
    """Stands around ``embed`` and puts the encoder's table before the vectors of the input."""

    adapter: VirtualTokens

    def prompt(self) -> Tensor:
        return self.adapter.table()


class PromptAdapter(VirtualTokens):
    """Virtual tokens before the positions are added: attention sees them as it sees words."""

    def add_prompt(self, make: Callable[[GPT, Any], Module]) -> None:
        self.add_encoder(make)
        self.prompt_length = self.config.num_virtual_tokens
        self.wrappers = inject(self.model, ["embed"], lambda base, path: PromptLayer(base, self))
