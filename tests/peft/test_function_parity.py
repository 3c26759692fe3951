"""LoReFT and mixtures of experts against ``torch``: outputs and gradients of what the libraries compute."""

from __future__ import annotations

import numpy as np
import pytest
from peft_cases import MASK, gpt, stirred

from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.nn import ForwardContext
from minitorch_peft.peft import LoReftConfig, MoEConfig, MoELoraConfig, get_peft_model

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore:.*torch.jit")]

X = np.random.default_rng(0).standard_normal((3, 8, 32))
G = np.random.default_rng(1).standard_normal((3, 8, 32))
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def through(layer, context, x=X):
    """Output and input gradient of a wrapper, for the cotangent ``G``."""
    x = Tensor(x.copy()).requires_grad_()
    y = layer(x, context)
    y.backward(gradient=G)
    return y.data, x.grad


def torch_leaves(*arrays):
    import torch

    return [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in arrays]


def layer_of(p, path):
    p.base_model.get(path).base.forward = lambda x, context=None: x  # the method alone, without what it stands around
    return p.adapters["default"].wrappers[path]


def test_loreft_is_the_edit_that_pyreft_and_adapterhub_make():
    import torch

    p = stirred(get_peft_model(gpt("gpt2", np.float64), LoReftConfig(prefix_positions=None, dropout=0.0)))
    layer = layer_of(p, "blocks.0")
    (edit,) = layer.edits
    y, dx = through(layer, ForwardContext())
    x, R, W, b = torch_leaves(X, edit.R.data, edit.W.data, edit.b.data)
    learned, projected = torch.nn.functional.linear(x, W, b), torch.nn.functional.linear(x, R)
    expected = x + torch.matmul(learned - projected, R)
    expected.backward(torch.tensor(G))
    np.testing.assert_allclose(y, expected.detach(), **CLOSE)
    for ours, theirs in ((dx, x), (edit.R.grad, R), (edit.W.grad, W), (edit.b.grad, b)):
        np.testing.assert_allclose(ours, theirs.grad, **CLOSE)


def test_r_spans_what_torch_s_orthogonal_parametrization_spans():
    import torch
    from torch.nn.utils.parametrizations import orthogonal

    p = get_peft_model(gpt("gpt2", np.float64), LoReftConfig())
    R = p.adapters["default"].wrappers["blocks.0"].edits[0].R.data
    theirs = orthogonal(torch.nn.Linear(32, 4, bias=False, dtype=torch.float64))
    theirs.weight = torch.tensor(R)  # refused unless its rows are orthonormal
    np.testing.assert_allclose(theirs.weight.detach(), R, rtol=1e-9, atol=1e-9)


def test_experts_in_place_of_an_mlp_are_mixtral_s():
    import torch
    from transformers.models.mixtral.configuration_mixtral import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    p = stirred(get_peft_model(gpt("llama", np.float64), MoEConfig(mode="replace")))
    layer = p.adapters["default"].wrappers["blocks.0.mlp"]
    y, dx = through(layer, ForwardContext())
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_local_experts": 4, "num_experts_per_tok": 2}
    theirs = MixtralSparseMoeBlock(MixtralConfig(**sizes, num_attention_heads=4, num_key_value_heads=4)).double()
    gate_up = [np.concatenate([e.gate_proj.weight.data, e.up_proj.weight.data]) for e in layer.experts]
    down = [e.down_proj.weight.data for e in layer.experts]
    with torch.no_grad():
        theirs.gate.weight.copy_(torch.tensor(layer.router.weight.data))
        theirs.experts.gate_up_proj.copy_(torch.tensor(np.stack(gate_up)))
        theirs.experts.down_proj.copy_(torch.tensor(np.stack(down)))
    (x,) = torch_leaves(X)
    expected = theirs(x)
    expected.backward(torch.tensor(G))
    loose = {"rtol": 2e-5, "atol": 2e-6}  # theirs computes the router's softmax in float32
    np.testing.assert_allclose(y, expected.detach(), **loose)
    np.testing.assert_allclose(dx, x.grad, **loose)
    np.testing.assert_allclose(layer.router.weight.grad, theirs.gate.weight.grad, rtol=2e-4, atol=2e-5)
    for i, expert in enumerate(layer.experts):
        np.testing.assert_allclose(expert.up_proj.weight.grad, theirs.experts.gate_up_proj.grad[i, 40:], **loose)
        np.testing.assert_allclose(expert.down_proj.weight.grad, theirs.experts.down_proj.grad[i], **loose)


@pytest.mark.parametrize("mask", [None, MASK])
def test_the_balance_is_mixtral_s_which_counts_every_choice(mask):
    import torch
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    config = MoEConfig(layers_to_transform=0, aux_loss_coef=0.5)
    p = stirred(get_peft_model(gpt("gpt2", np.float64), config)).train()
    layer = p.adapters["default"].wrappers["blocks.0.mlp"]
    layer(Tensor(X), ForwardContext(keep=None if mask is None else mask[:, None, None, :]))
    z = torch.tensor(X.reshape(24, 32) @ layer.router.weight.data.T)
    theirs = load_balancing_loss_func((z,), 4, 2, None if mask is None else torch.tensor(mask))
    assert 2 * p.penalty().item() == pytest.approx(0.5 * theirs.item(), rel=1e-6)  # ours is 1 at its least, for any k


def test_lora_experts_are_what_torch_makes_of_their_sum():
    import torch

    config = MoELoraConfig(target_modules=["mlp"], num_experts=3)
    p = stirred(get_peft_model(gpt("gpt2", np.float64), config))
    layer = layer_of(p, "blocks.0.mlp")
    y, dx = through(layer, ForwardContext())
    factors = [(e.lora_A.data, e.lora_B.data) for e in layer.experts]
    x, W, *AB = torch_leaves(X, layer.router.weight.data, *(f for pair in factors for f in pair))
    z = x @ W.T
    kept = torch.zeros_like(z).scatter(-1, z.topk(2).indices, 1.0) > 0
    gates = torch.softmax(z.masked_fill(~kept, -torch.inf), dim=-1)
    expected = x + sum(gates[..., i, None] * 2.0 * (x @ AB[2 * i].T @ AB[2 * i + 1].T) for i in range(3))
    expected.backward(torch.tensor(G))
    np.testing.assert_allclose(y, expected.detach(), **CLOSE)
    grads = [g for e in layer.experts for g in (e.lora_A.grad, e.lora_B.grad)]
    for ours, theirs in zip([dx, layer.router.weight.grad, *grads], [x, W, *AB], strict=True):
        np.testing.assert_allclose(ours, theirs.grad, **CLOSE)
