"""The contender of benchmarks.kernels that is peft's LoRA layer, on PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.lora import Linear, LoraConfig

from benchmarks.contest import Prepared, serve_cases
from benchmarks.kernels_cases import arguments, named
from benchmarks.kernels_torch import gradients, leaf, tensors, timed


def layer(w: torch.Tensor, b: torch.Tensor | None, a: torch.Tensor, up: torch.Tensor, s: float, p: float = 0) -> Linear:
    base = torch.nn.Linear(w.shape[1], w.shape[0], bias=b is not None).requires_grad_(False)
    base.weight.data = w
    if b is not None:
        base.bias.data = b
    config = LoraConfig(r=len(a), lora_alpha=s * len(a), lora_dropout=p)
    wrapped = Linear(base, "default", config, r=len(a), lora_alpha=s * len(a), lora_dropout=p)
    wrapped.lora_A["default"].weight.data, wrapped.lora_B["default"].weight.data = a, up
    return wrapped


def factors(module: Linear) -> tuple[torch.Tensor, torch.Tensor]:
    return module.lora_A["default"].weight, module.lora_B["default"].weight


def forward(x: Any, w: Any, b: Any, a: Any, up: Any, s: float, p: float = 0, seed: int = 0) -> Prepared:
    module = layer(w, b, a, up, s, p)
    return timed(torch.no_grad()(lambda: module(x)))


def backward(grad: Any, x: Any, xa: Any, w: Any, a: Any, up: Any, s: float, *rest: Any) -> Prepared:
    p = rest[0] if len(rest) == 3 else 0
    module, x = layer(w, None, a, up, s, p), leaf(x)
    return gradients((x, *factors(module)), module(x), grad)


def stacked_forward(x: Any, *projections: tuple) -> Prepared:
    modules = [layer(*projection) for projection in zip(*projections, strict=True)]
    return timed(torch.no_grad()(lambda: tuple(module(x) for module in modules)))


def stacked_backward(grads: Any, x: Any, xas: Any, weights: Any, lora_as: Any, lora_bs: Any, scalings: Any) -> Prepared:
    none, x = [None] * len(grads), leaf(x)
    modules = [layer(*p) for p in zip(weights, none, lora_as, lora_bs, scalings, strict=True)]
    a, b = zip(*map(factors, modules), strict=True)
    return gradients((x, *a, *b), tuple(module(x) for module in modules), grads)


CASES: dict[str, Callable[..., Prepared]] = {
    "lora_linear_forward": forward,
    "lora_linear_backward": backward,
    "lora_dropout_forward": forward,
    "lora_dropout_backward": backward,
    "lora_stacked_forward": stacked_forward,
    "lora_stacked_backward": stacked_backward,
}


def prepare(name: str) -> Prepared:
    case = named(name)
    return CASES[case.kernel](*tensors(arguments(case)))


if __name__ == "__main__":
    serve_cases(prepare)
