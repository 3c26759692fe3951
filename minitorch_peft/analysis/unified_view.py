"""The unified view, executable (He et al. 2022, "Towards a Unified View of Parameter-Efficient Transfer Learning").

Whatever a method calls itself, what it does to a hidden state h can be said by four dials:

    form          the change Δh as a function of a vector z       s B A z, W_up f(W_down z), (l - 1) ⊙ z, b, attention
    insertion     where z comes from                              parallel: the module's input; sequential: its output
    position      which module's output h is                      a projection, an attention, a feed-forward, a block
    composition   how Δh joins h                                  h + Δh, or gated: (1 - λ) h + λ Δh

``VIEW`` sets the dials for every method. ``Modified`` is one wrapper with these dials, and the functions ``*_as_*``
rewrite an adapter as ``Modified`` ones, out of the same parameters: that outputs and gradients are equal is a test.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

import minitorch_peft.functional as F
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.models import GPT
from minitorch_peft.nn import ForwardContext, Module
from minitorch_peft.peft import PeftModel
from minitorch_peft.peft.adapter import Adapter
from minitorch_peft.peft.function.bottleneck_function import NON_LINEARITIES
from minitorch_peft.peft.inject import Wrapper, eject, inject
from minitorch_peft.peft.registry import method_of

Insertion = Literal["parallel", "sequential", "replaces", "before"]


@dataclass(frozen=True)
class View:
    """A method's dials. ``insertion``: "replaces" for a parameter that is another one, "before" for added tokens."""

    form: str
    insertion: Insertion
    position: str
    composition: str


WEIGHTS = "the weight matrices chosen"
ANY = "any parameters"
VIEW: dict[str, View] = {
    "full": View("Δθ", "replaces", "all parameters", "θ + Δθ"),
    "partial": View("Δθ", "replaces", "upper blocks, or a pattern", "θ + Δθ"),
    "random_mask": View("m ⊙ Δθ, m drawn", "replaces", ANY, "θ + Δθ"),
    "diff_pruning": View("z ⊙ w, z a hard-concrete gate", "replaces", ANY, "θ + Δθ, or b ⊙ θ + Δθ"),
    "bitfit": View("b", "parallel", "every module with a bias", "h + Δh"),
    "lora": View("s B A z", "parallel", WEIGHTS, "h + Δh"),
    "lora_plus": View("s B A z, B at a higher rate", "parallel", WEIGHTS, "h + Δh"),
    "pissa": View("s (B A - B₀ A₀) z", "parallel", WEIGHTS, "h + Δh"),
    "adalora": View("s B (e ⊙ A z), e pruned", "parallel", WEIGHTS, "h + Δh"),
    "vera": View("b ⊙ B (d ⊙ A z), A and B drawn", "parallel", WEIGHTS, "h + Δh"),
    "dora": View("s B A z", "parallel", WEIGHTS, "m / ‖W + s B A‖ ⊙ (h + Δh)"),
    "ia3": View("(l - 1) ⊙ z", "sequential", "keys, values, the inner activation", "h + Δh"),
    "prompt_tuning": View("P", "before", "the embedded input", "[P; x]"),
    "p_tuning": View("P = LSTM(E) or MLP(E)", "before", "the embedded input", "[P; x]"),
    "prefix_tuning": View("softmax(q P_kᵀ) P_v", "parallel", "every attention head", "(1 - λ) h + λ Δh"),
    "p_tuning_v2": View("softmax(q P_kᵀ) P_v", "parallel", "every attention head", "(1 - λ) h + λ Δh"),
    "gist": View("softmax(q K_gistᵀ) V_gist", "parallel", "every attention head", "(1 - λ) h + λ Δh"),
    "seq_bn": View("s W_up f(W_down z)", "sequential", "the feed-forward", "h + Δh"),
    "double_seq_bn": View("s W_up f(W_down z)", "sequential", "the attention and the feed-forward", "h + Δh"),
    "par_bn": View("s W_up f(W_down z)", "parallel", "the feed-forward", "h + Δh"),
    "mam": View(
        "W_up f(W_down z); softmax(q P_kᵀ) P_v", "parallel", "feed-forward; attention heads", "h + s Δh; gated"
    ),
    "fusion": View("W_V Σ_i a_i(z) Δh_i", "sequential", "where the fused adapters stand", "h + Δh"),
    "loreft": View("Rᵀ (W z + b - R z)", "sequential", "the residual stream after a block", "h + Δh"),
    "ladder": View("a small transformer on all h_i", "parallel", "the whole stack of blocks", "h + Δh"),
    "moe": View("Σ_i g_i(z) E_i(z), g sparse", "parallel", "the feed-forward", "h + Δh"),
    "moe_replace": View("Σ_i g_i(z) E_i(z), g sparse", "replaces", "the feed-forward", "Δh"),
    "moe_lora": View("Σ_i g_i(z) s B_i A_i z, g sparse", "parallel", "the feed-forward or a projection", "h + Δh"),
}


# -- the dials ---------------------------------------------------------------------------------------------------
class Form(Protocol):
    """The change of a hidden state as a function of z (..., in)."""

    def __call__(self, z: Tensor) -> Tensor: ...


@dataclass
class LowRank:
    """s B A z; A (r, in), B (out, r)."""

    A: Tensor
    B: Tensor
    s: float

    def __call__(self, z: Tensor) -> Tensor:
        return F.linear(F.linear(z, self.A), self.B) * self.s


@dataclass
class BottleneckForm:
    """s (W_up f(W_down z + b_down) + b_up)."""

    down: tuple[Tensor, Tensor]
    up: tuple[Tensor, Tensor]
    activation: Form
    s: float | Tensor = 1.0

    def __call__(self, z: Tensor) -> Tensor:
        return F.linear(self.activation(F.linear(z, *self.down)), *self.up) * self.s


@dataclass
class Diagonal:
    """(l - 1) ⊙ z."""

    scale: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        return z * (self.scale - 1)


@dataclass
class Constant:
    """b, whatever z is."""

    b: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        return self.b.expand(*z.shape[:-1], *self.b.shape)


@dataclass
class Edit:
    """Rᵀ (W z + b - R z)."""

    R: Tensor
    W: Tensor
    b: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        return F.linear(F.linear(z, self.W - self.R, self.b), self.R.transpose(0, 1))


class Modified(Wrapper):
    """A module whose output h becomes h + form(z): z is its input ("parallel") or h itself ("sequential")."""

    def __init__(self, base_layer: Module, form: Form, insertion: Literal["parallel", "sequential"]) -> None:
        self.base_layer = base_layer
        self.form = form
        self.parallel = insertion == "parallel"

    def forward(self, x: Tensor, context: ForwardContext | None = None) -> Tensor:
        h = self.base_layer(x, context)
        return h + self.form(x if self.parallel else h)


class GatedAttention(Wrapper):
    """Prefix tuning without a prefix (eq. 7): in every head, h becomes (1 - λ) h + λ softmax(q P_kᵀ / √D) P_v.

    λ = Σ_prefix e^score / (Σ_prefix e^score + Σ_keys e^score): the share of attention that the prefix would get.
    ``keys`` and ``values`` (kv_heads, k, D). Written out, without a cache, to be read; the kernel's attention is fused.
    """

    def __init__(self, base_layer: Module, keys: Tensor, values: Tensor) -> None:
        self.base_layer = base_layer
        self.keys, self.values = keys, values

    def forward(self, x: Tensor, context: ForwardContext | None = None) -> Tensor:
        assert context is not None and context.cache is None
        attn = self.base
        q, k, v = (attn.heads(p(x, context)) for p in (attn.q_proj, attn.k_proj, attn.v_proj))
        if context.rotary is not None:
            q, k = F.apply_rotary(q, *context.rotary), F.apply_rotary(k, *context.rotary)
        B, H, T, D = q.shape
        kv_head = np.repeat(np.arange(k.shape[1]), H // k.shape[1])  # the keys and values that each head shares
        visible = (
            np.tril(np.ones((T, T), bool)) if context.keep is None else np.tril(np.ones((T, T), bool)) & context.keep
        )
        scores = F.masked_fill(q @ k[:, kv_head].transpose(2, 3) / math.sqrt(D), Tensor(~visible), -1e30)
        on_prefix = q @ self.keys[kv_head].transpose(1, 2) / math.sqrt(D)
        # BEGIN SOLUTION(task="5.8")
        h = F.softmax(scores, dim=-1) @ v[:, kv_head]
        change = F.softmax(on_prefix, dim=-1) @ self.values[kv_head]
        gate = F.sigmoid(F.logsumexp(on_prefix, dim=-1, keepdim=True) - F.logsumexp(scores, dim=-1, keepdim=True))
        y = (1 - gate) * h + gate * change
        # END SOLUTION
        return attn.o_proj(y.transpose(1, 2).reshape(B, T, H * D), context)


# -- methods, rewritten ------------------------------------------------------------------------------------------
Rewriting = dict[str, tuple[type[Wrapper], tuple[Any, ...]]]
"""By path, the wrapper that stands for an adapter there, and what it is made with."""


def require(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(f"this rewriting is true of {what}")


def lora_as_parallel_adapter(adapter: Adapter) -> Rewriting:
    """LoRA is a parallel adapter whose activation is the identity, around one linear layer."""
    plain = method_of(adapter.config).name in ("lora", "lora_plus") and not adapter.config.lora_dropout
    require(
        plain and not any(layer.base.takes_ids for layer in adapter.wrappers.values()), "LoRA of linear layers alone"
    )
    return {
        path: (Modified, (LowRank(layer.lora_A, layer.lora_B, layer.scaling), "parallel"))
        for path, layer in adapter.wrappers.items()
    }


def ia3_as_diagonal_adapter(adapter: Adapter) -> Rewriting:
    """IA3 is a sequential adapter with a diagonal matrix; on a feed-forward's input, one around the activation."""
    inner = [path for path, layer in adapter.wrappers.items() if layer.feedforward]
    require(all(p.endswith("down_proj") for p in inner), "feed-forward layers whose input is the inner activation")
    return {
        path.replace("down_proj", "act") if layer.feedforward else path: (
            Modified, (Diagonal(layer.ia3_l.reshape(-1)), "sequential"),
        )
        for path, layer in adapter.wrappers.items()
    }  # fmt: skip


def bitfit_as_constant_adapter(adapter: Adapter) -> Rewriting:
    """BitFit of linear layers is an adapter whose change is a constant: what the bias became, less what it was."""
    return {
        path.removesuffix(".bias"): (Modified, (Constant(s.copy - Tensor(s.original.data)), "parallel"))
        for path, s in adapter.selected.items()
    }


def bottleneck_as_adapter(adapter: Adapter) -> Rewriting:
    """A bottleneck adapter, sequential or parallel: the view's first case."""
    return {
        path: (
            Modified,
            (
                BottleneckForm(
                    (layer.adapter_down.weight, layer.adapter_down.bias),
                    (layer.adapter_up.weight, layer.adapter_up.bias),
                    NON_LINEARITIES[layer.non_linearity].apply,
                    layer.scaling,
                ),
                "parallel" if layer.is_parallel else "sequential",
            ),
        )
        for path, layer in adapter.wrappers.items()
    }


def identity_adapter_as_lora(adapter: Adapter) -> Rewriting:
    """A scaled parallel adapter without activation and biases is LoRA on the MLP, A = W_down and B = W_up."""
    layers = adapter.wrappers.values()
    plain = all(layer.is_parallel and layer.non_linearity == "identity" for layer in layers)
    biases = [part.bias.data for layer in layers for part in (layer.adapter_down, layer.adapter_up)]
    require(
        plain and not any(b.any() for b in biases), 'parallel adapters with non_linearity="identity" and biases of zero'
    )
    return {
        path: (Modified, (LowRank(layer.adapter_down.weight, layer.adapter_up.weight, layer.scaling), "parallel"))
        for path, layer in adapter.wrappers.items()
    }


def loreft_as_sequential_adapter(adapter: Adapter) -> Rewriting:
    """LoReFT of every token is a sequential adapter of the residual stream, linear, with W_up = Rᵀ tied to W_down."""
    config = adapter.config
    require(config.prefix_positions is None and not config.dropout, "prefix_positions=None and dropout=0: every token")
    return {
        path: (Modified, (Edit(layer.edit.R, layer.edit.W, layer.edit.b), "sequential"))
        for path, layer in adapter.wrappers.items()
    }


def prefix_as_gated_adapter(adapter: Adapter) -> Rewriting:
    """Prefix tuning is a parallel adapter of every head: its "activation" a softmax, its gate the attention it gets."""
    pairs = adapter.prefix()
    assert pairs is not None
    return {f"blocks.{i}.attn": (GatedAttention, pair) for i, pair in enumerate(pairs)}


@contextmanager
def rewritten(model: PeftModel | GPT, rewriting: Rewriting) -> Iterator[GPT]:
    """Inside, the base carries the rewriting's wrappers and no adapter acts; gives the base."""
    base = model.base_model if isinstance(model, PeftModel) else model
    wrappers = inject(base, rewriting, lambda module, path: rewriting[path][0](module, *rewriting[path][1]))  # type: ignore[call-arg]
    try:
        if isinstance(model, PeftModel):
            with model.disable_adapter():
                yield base
        else:
            yield base
    finally:
        eject(base, wrappers)


def print_view(names: Mapping[str, View] = VIEW) -> None:
    """The table, as rich draws it."""
    from rich.console import Console
    from rich.table import Table

    table = Table("method", "form: Δh or Δθ", "insertion", "position", "composition", title="The unified view")
    for name, view in names.items():
        table.add_row(name, view.form, view.insertion, view.position, view.composition)
    Console().print(table)
