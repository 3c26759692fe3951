"""Bottleneck adapters against ``torch``: outputs and gradients of the modules that AdapterHub builds."""

from __future__ import annotations

import numpy as np
import pytest
from peft_cases import gpt, stirred

from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.nn import ForwardContext
from minitorch_peft.peft import DoubleSeqBnConfig, ParBnConfig, SeqBnConfig, get_peft_model

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore:.*torch.jit")]

X, Y, G = (np.random.default_rng(seed).standard_normal((3, 8, 32)) for seed in range(3))
CASES = [
    SeqBnConfig(),
    SeqBnConfig(non_linearity="gelu", scaling="learned"),
    DoubleSeqBnConfig(),
    DoubleSeqBnConfig(non_linearity="gelu_new", scaling="channel"),
    ParBnConfig(),
    ParBnConfig(scaling=1.0, non_linearity="tanh"),
]


def torch_bottleneck(config, layer):
    """What AdapterHub's ``Adapter`` computes: ``adapter_down``, ``adapter_up``, ``scaling``; and its leaves."""
    import torch
    from torch import nn

    functions = {
        "relu": nn.ReLU(),
        "swish": nn.SiLU(),
        "gelu": nn.GELU(),
        "gelu_new": nn.GELU("tanh"),
        "tanh": nn.Tanh(),
    }
    w, C = layer.adapter_down.weight.shape
    down = nn.Sequential(nn.Linear(C, w, dtype=torch.float64), functions[config.non_linearity])
    up = nn.Linear(w, C, dtype=torch.float64)
    with torch.no_grad():
        for ours, theirs in ((layer.adapter_down, down[0]), (layer.adapter_up, up)):
            theirs.weight.copy_(torch.tensor(ours.weight.data))
            theirs.bias.copy_(torch.tensor(ours.bias.data))
    scaling = config.scaling
    if isinstance(layer.scaling, Tensor):
        scaling = nn.Parameter(torch.tensor(layer.scaling.data))
    return (lambda z: up(down(z)) * scaling), [*down.parameters(), *up.parameters()], scaling


@pytest.mark.parametrize("config", CASES, ids=lambda c: f"{c.peft_type}-{c.non_linearity}-{c.scaling}")
def test_outputs_and_gradients_are_torch_s(config):
    import torch

    p = stirred(get_peft_model(gpt("gpt2", np.float64), config), scale=0.3)
    layer = p.adapters["default"].wrappers["blocks.1.mlp"]
    x, y = (Tensor(a.copy()).requires_grad_() for a in (X, Y))
    ours = layer.after(y, x, ForwardContext())
    ours.backward(gradient=G)

    tx, ty = (torch.tensor(a, requires_grad=True) for a in (X, Y))
    change, leaves, scaling = torch_bottleneck(config, layer)
    theirs = ty + change(tx if config.is_parallel else ty)
    theirs.backward(torch.tensor(G))
    np.testing.assert_allclose(ours.data, theirs.detach(), rtol=1e-10, atol=1e-12)
    own = [layer.adapter_down.weight, layer.adapter_down.bias, layer.adapter_up.weight, layer.adapter_up.bias]
    pairs = [(y, ty), *zip(own, leaves, strict=True)]
    pairs += [(x, tx)] if config.is_parallel else []
    pairs += [(layer.scaling, scaling)] if isinstance(layer.scaling, Tensor) else []
    for mine, their in pairs:
        np.testing.assert_allclose(mine.grad, their.grad, rtol=1e-9, atol=1e-11)
