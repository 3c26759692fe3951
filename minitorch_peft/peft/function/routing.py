"""Routing: every token is sent to k of N experts (Shazeer et al. 2017, eq. 1 to 5; Fedus et al. 2022).

    y = Σ_j g_j E_j(x) over the k experts of largest z,    z = W x,  W (N, C),    g = softmax of these k z

Each expert runs on its own tokens only: they are gathered, and its outputs are added to their places. Where k = 1 a
softmax over one would be 1 and teach the router nothing, so there g is its share of the softmax over all N (the Switch
transformer's, eq. 2). What an expert is, and what it stands beside, is the methods': ``moe.py``, ``lora_experts.py``.

So that no expert is left idle, the loss gets N Σ_i f_i P_i for each layer, times ``aux_loss_coef`` (Fedus et al., eq. 4
to 6): f_i is the share of the choices that fell on expert i, P_i the mean of its share of the softmax over all. Where
the experts share evenly it is 1, and N where one of them gets everything; its gradient goes through P. Neither padding
is counted nor the rows of other adapters. ``penalty()`` is that of the last pass in training mode.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import minitorch_peft.functional as F
from minitorch_peft.autograd.function import Function
from minitorch_peft.autograd.random import counter_seed
from minitorch_peft.autograd.tensor import Tensor, no_grad
from minitorch_peft.kernels import dispatch
from minitorch_peft.nn import ForwardContext, Module, init, mode_of
from minitorch_peft.ops.indexing import Index
from minitorch_peft.peft.adapter import Adapter
from minitorch_peft.peft.config import PeftConfig, check_count
from minitorch_peft.peft.function.places import visible
from minitorch_peft.peft.patterns import layer_index
from minitorch_peft.peft.shapes import Around

if TYPE_CHECKING:
    from minitorch_peft.peft.model import PeftModel


@dataclass
class RoutedConfig(PeftConfig):
    """``num_experts``: N; ``top_k``: k; ``router_jitter``: ε, in training the router sees x times U(1 - ε, 1 + ε)."""

    num_experts: int = 4
    top_k: int = 2
    aux_loss_coef: float = 0.01
    router_jitter: float = 0.0
    layers_to_transform: int | list[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_experts", "top_k"):
            check_count(name, getattr(self, name))
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k={self.top_k} of num_experts={self.num_experts}: there are not so many")
        if self.aux_loss_coef < 0 or not 0 <= self.router_jitter < 1:
            raise ValueError(
                "aux_loss_coef must not be negative and router_jitter lie in [0, 1), got "
                f"{self.aux_loss_coef!r} and {self.router_jitter!r}"
            )

    def in_layers(self, paths: list[str]) -> list[str]:
        """Those of the paths that lie in the chosen blocks."""
        if self.layers_to_transform is None:
            return paths
        layers = self.layers_to_transform
        wanted = [layers] if isinstance(layers, int) else layers
        have = sorted({i for i in map(layer_index, paths) if i is not None})
        if not wanted or not set(wanted) <= set(have):
            raise ValueError(f"layers_to_transform={layers!r}: the blocks are {', '.join(map(str, have))}")
        return [path for path in paths if layer_index(path) in wanted]


class Combine(Function):
    """y_t = Σ_j gates[t, j] · (the output of its j-th expert for token t): gates (T, k) and y (T, O).

    After ``gates`` come the outputs E_i (n_i, O) of each expert for its own tokens; ``where`` has, for each expert, the
    tokens t and the slots j (n_i) that are its own. With G = dL/dy, for these:

        dE_i = gates[t, j] G[t]        dgates[t, j] = Σ_o G[t] E_i
    """

    @staticmethod
    def forward(ctx: Any, gates: np.ndarray, *outputs: np.ndarray, where: list[Any]) -> np.ndarray:
        y = np.zeros((len(gates), outputs[0].shape[1]), gates.dtype)
        for (t, j), E in zip(where, outputs, strict=True):
            y[t] += gates[t, j, None] * E  # a token comes once at most to each expert
        ctx.where = where
        ctx.save_for_backward(gates, *outputs)
        return y

    @staticmethod
    def backward(ctx: Any, G: np.ndarray) -> tuple[np.ndarray | None, ...]:
        gates, *outputs = ctx.saved
        dgates = np.zeros_like(gates)
        for (t, j), E in zip(ctx.where, outputs, strict=True):
            dgates[t, j] = (G[t] * E).sum(axis=1)
        return dgates, *(gates[t, j, None] * G[t] for t, j in ctx.where)


class Router(Module):
    """W, and what it did in the last pass: ``load``, the share of choices of each expert, and the ``balance`` term."""

    def __init__(self, path: str, adapter: Adapter, config: RoutedConfig, width: int) -> None:
        shape = (config.num_experts, width)
        self.weight = adapter.new_parameter(f"{path}.router.weight", shape, init.kaiming_uniform())
        self.top_k, self.jitter, self.balanced = config.top_k, config.router_jitter, config.aux_loss_coef > 0
        self.site = f"{adapter.name}.{path}.router"
        self.load: list[float] | None = None
        self.balance: Tensor | None = None

    def forward(self, x: Tensor, context: Any, counted: np.ndarray) -> tuple[Tensor, np.ndarray]:  # type: ignore[override]
        """x (T, C) to gates (T, k) and the chosen experts (T, k); ``counted`` (T): which tokens are no padding."""
        z = F.linear(self.shaken(x, context), self.weight)
        values, indices = F.topk(z, self.top_k)
        chosen = indices.data
        gates = F.softmax(values, -1) if self.top_k > 1 else F.gather(F.softmax(z, -1), 1, chosen)
        choices = np.bincount(chosen[counted].ravel(), minlength=z.shape[1])
        load = choices / max(1, choices.sum())
        wanted = self.training and self.balanced and counted.any()
        self.load, self.balance = load.tolist(), balance(F.softmax(z, -1), load, counted) if wanted else None
        return gates, chosen

    def shaken(self, x: Tensor, context: ForwardContext) -> Tensor:
        if not (self.training and self.jitter):
            return x
        uniform = dispatch.get("philox_uniform", np.dtype(np.float32))
        u = uniform(counter_seed(context.seed, self.site, context.step), 0, x.shape)
        return x * Tensor((1 + self.jitter * (2 * u - 1)).astype(x.dtype))


def balance(shares: Tensor, load: np.ndarray, counted: np.ndarray) -> Tensor:
    """N Σ_i f_i P_i: f (N) is the ``load``, P the mean of ``shares`` (T, N) over the ``counted`` (T) tokens."""
    weights = len(load) * load * counted[:, None] / counted.sum()
    return (shares * Tensor(weights.astype(shares.dtype))).sum()


class RoutedLayer(Around):
    """A router and its experts. Subclasses have ``experts``, a list of modules that take (n, C) to (n, O)."""

    router: Router
    experts: Any

    def routed(self, x: Tensor, context: Any, rows: np.ndarray | None = None) -> Tensor:
        """y (B, T, O) for x (B, T, C); zero in the rows of other adapters, which no expert sees."""
        if rows is not None:
            y = self.sent(x[rows], context, visible(context, x.shape[1]), rows)
            nothing = Tensor(np.zeros((len(rows), *y.shape[1:]), y.dtype))
            return F.index_add(nothing, 0, np.flatnonzero(rows), y)
        return self.sent(x, context, visible(context, x.shape[1]), np.ones(len(x.data), bool))

    def sent(self, x: Tensor, context: Any, shown: np.ndarray, rows: np.ndarray) -> Tensor:
        B, T, C = x.shape
        tokens = x.reshape(B * T, C)
        counted = np.broadcast_to(shown, (len(rows), T))[rows].reshape(-1)
        gates, chosen = self.router(tokens, context, counted)
        where = [np.nonzero(chosen == i) for i in range(len(self.experts))]
        gathered = (Index.apply(tokens, index=(t,), unique=True) for t, _ in where)
        outputs = [expert(own, context) for expert, own in zip(self.experts, gathered, strict=True)]
        return Combine.apply(gates, *outputs, where=where).reshape(B, T, outputs[0].shape[1])


class Routed(Adapter):
    """An adapter whose wrappers are routed layers."""

    latest: weakref.ref[ForwardContext] | None = None

    def rows(self, context: ForwardContext | None) -> bool | np.ndarray:
        if context is not None and (self.latest is None or self.latest() is not context):  # asked before every pass
            self.latest = weakref.ref(context)
            self.forget()  # this one may go round the layers
        return super().rows(context)

    def penalty(self) -> Tensor | None:
        """``aux_loss_coef`` · N Σ f_i P_i, summed over the layers; None where the last pass had no part in them."""
        terms = [layer.router.balance for layer in self.wrappers.values() if layer.router.balance is not None]
        return sum(terms[1:], start=terms[0]) * self.config.aux_loss_coef if terms else None

    def after_step(self, step: int) -> None:
        self.forget()  # the graph is of no use any more

    def forget(self) -> None:
        for layer in self.wrappers.values():
            layer.router.balance = None


def expert_load(p: PeftModel, input_ids: Any, **options: Any) -> dict[str, np.ndarray]:
    """For each routed layer that this pass goes through, as ``<path>.<adapter>``: each expert's share of choices (N).

    >>> from minitorch_peft.models import GPT, GPTConfig
    >>> from minitorch_peft.peft import MoEConfig, get_peft_model
    >>> base = GPT(GPTConfig(vocab_size=97, n_positions=64, n_embd=64, n_layer=1, n_head=4))
    >>> load = expert_load(get_peft_model(base, MoEConfig()), np.arange(40).reshape(4, 10))
    >>> {path: round(float(share.sum()), 6) for path, share in load.items()}
    {'blocks.0.mlp.default': 1.0}
    """
    layers = {f"{path}.{a.name}": w for a in p.adapters.values() for path, w in a.wrappers.items()}
    routers = {path: layer.router for path, layer in layers.items() if isinstance(layer, RoutedLayer)}
    for router in routers.values():
        router.load = None
    with no_grad(), mode_of(p, training=False):
        p(input_ids, **options)
    return {path: np.array(router.load) for path, router in routers.items() if router.load is not None}
