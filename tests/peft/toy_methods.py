"""Toy methods of the shapes that no registered method has yet, so that the core and the laws are proven for them.

A bottleneck around sub-modules (Around), a prompt of k vectors around ``embed`` (Tokens), and a prefix of k keys and
values for each layer (a part beside the base).
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import minitorch_peft.functional as F
from minitorch_peft.nn import Linear, Module, Parameter, init
from minitorch_peft.peft.adapter import Adapter
from minitorch_peft.peft.config import PeftConfig
from minitorch_peft.peft.inject import base_modules, base_parameters, inject
from minitorch_peft.peft.patterns import Pattern, select
from minitorch_peft.peft.registry import METHODS, Method, register
from minitorch_peft.peft.shapes import Around, ParameterReparam, Tokens


@dataclass
class BottleneckConfig(PeftConfig):
    peft_type: ClassVar[str] = "TOY_BOTTLENECK"

    target_modules: Pattern = ("attn", "mlp")
    width: int = 3
    on_input: bool = False


class BottleneckLayer(Around):
    """y + up(gelu(down(y))) for the output y of what it stands around, or for its input."""

    def __init__(self, base_layer, path, adapter, config):
        super().__init__(base_layer, adapter)
        C = adapter.model.config.n_embd
        self.down = adapter.new_module(f"{path}.down", Linear(C, config.width))
        self.up = adapter.new_module(f"{path}.up", Linear(config.width, C, weight_init=init.zeros))
        self.on_input = config.on_input

    def before(self, x, context):
        return x + self.up(F.gelu(self.down(x))) if self.on_input else x

    def after(self, y, x, context):
        return y if self.on_input else y + self.up(F.gelu(self.down(y)))


class Bottleneck(Adapter):
    def attach(self, config):
        paths = bottleneck_targets(self.model, config)
        self.wrappers = inject(self.model, paths, lambda base, path: BottleneckLayer(base, path, self, config))


def bottleneck_targets(model, config):
    return select(config.target_modules, [path for path, _ in base_modules(model)])


def bottleneck_count(model, config):
    C, w = model.config.n_embd, config.width
    return len(bottleneck_targets(model, config)) * (2 * C * w + w + C)


@dataclass
class PromptConfig(PeftConfig):
    peft_type: ClassVar[str] = "TOY_PROMPT"

    num_virtual_tokens: int = 3


class PromptLayer(Tokens):
    def __init__(self, base_layer, path, adapter, config):
        super().__init__(base_layer, adapter)
        shape = (config.num_virtual_tokens, adapter.model.config.n_embd)
        self.vectors = adapter.new_parameter(f"{path}.vectors", shape, init.normal(1.0))

    def prompt(self):
        return self.vectors


class Prompt(Adapter):
    def attach(self, config):
        self.prompt_length = config.num_virtual_tokens
        self.wrappers = inject(self.model, ["embed"], lambda base, path: PromptLayer(base, path, self, config))


@dataclass
class PrefixConfig(PeftConfig):
    peft_type: ClassVar[str] = "TOY_PREFIX"

    num_virtual_tokens: int = 2


class PrefixTable(Module):
    """Keys and values (layers, kv_heads, k, head_dim)."""

    def __init__(self, model, k):
        c = model.config
        shape = (c.n_layer, c.kv_heads, k, c.head_dim)
        self.keys = Parameter.empty(shape, init.normal(1.0))
        self.values = Parameter.empty(shape, init.normal(1.0))


class Prefix(Adapter):
    def attach(self, config):
        table = PrefixTable(self.model, config.num_virtual_tokens)
        self.parts = {"prefix_encoder": self.new_module("prefix_encoder", table)}

    def prefix(self):
        table = self.parts["prefix_encoder"]
        return [(table.keys[i], table.values[i]) for i in range(self.model.config.n_layer)]


def prefix_count(model, config):
    c = model.config
    return 2 * c.n_layer * c.kv_heads * c.head_dim * config.num_virtual_tokens


@dataclass
class ScaleConfig(PeftConfig):
    peft_type: ClassVar[str] = "TOY_SCALE"

    target_parameters: Pattern = ("ln_2.weight", "tokens.weight")


class Scale(ParameterReparam):
    """theta (1 + d), one d for each row (for each element of a vector)."""

    def __init__(self, path, theta, adapter):
        self.d = adapter.new_parameter(f"{path}.d", (len(theta.data), *[1] * (theta.data.ndim - 1)), init.zeros)

    def tensor(self, theta, context):
        return theta * (self.d + 1)

    def effective(self, theta):
        return theta * (self.d.data.astype(theta.dtype) + 1)


class ScaleAdapter(Adapter):
    def attach(self, config):
        paths = scale_targets(self.model, config)
        self.reparametrize(list(paths), lambda path, theta: Scale(path, theta, self))


def scale_targets(model, config):
    rows = {path: len(p.data) for path, p in base_parameters(model)}
    return {path: rows[path] for path in select(config.target_parameters, rows, "parameter")}


TOYS = (
    Method(
        name="toy_scale", config=ScaleConfig, adapter=ScaleAdapter, shape="reparam", folder="parameter",
        start="bitwise", count=lambda model, config: sum(scale_targets(model, config).values()), mergeable=True,
        rowwise=False, stackable_with=("reparam", "around", "tokens", "select"), summary="a toy",
        examples=(ScaleConfig(),),
    ),
    Method(
        name="toy_bottleneck", config=BottleneckConfig, adapter=Bottleneck, shape="around", folder="function",
        start="bitwise", count=bottleneck_count, mergeable=False, rowwise=True,
        stackable_with=("reparam", "around", "tokens", "select"), summary="a toy",
        examples=(
            BottleneckConfig(), BottleneckConfig(["blocks"]),
            BottleneckConfig(["blocks.1", "embed"], width=2, on_input=True),
        ),
    ),
    Method(
        name="toy_prompt", config=PromptConfig, adapter=Prompt, shape="tokens", folder="input", start="none",
        count=lambda model, config: config.num_virtual_tokens * model.config.n_embd, mergeable=False, rowwise=True,
        stackable_with=("reparam", "around", "tokens", "select"), summary="a toy", examples=(PromptConfig(),),
    ),
    Method(
        name="toy_prefix", config=PrefixConfig, adapter=Prefix, shape="tokens", folder="input", start="none",
        count=prefix_count, mergeable=False, rowwise=True,
        stackable_with=("reparam", "around", "tokens", "select"), summary="a toy", examples=(PrefixConfig(),),
    ),
)  # fmt: skip


@contextmanager
def registered():
    """Inside, the toys are in the table of methods."""
    for toy in TOYS:
        register(toy)
    try:
        yield
    finally:
        for toy in TOYS:
            del METHODS[toy.name]
