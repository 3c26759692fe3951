"""The unified view: every method has its dials, and the equivalences hold for outputs and gradients."""

from __future__ import annotations

import numpy as np
import pytest

import minitorch_peft as mp
from minitorch_peft.analysis.unified_view import (
    VIEW,
    BottleneckForm,
    Modified,
    bitfit_as_constant_adapter,
    bottleneck_as_adapter,
    ia3_as_diagonal_adapter,
    identity_adapter_as_lora,
    lora_as_parallel_adapter,
    loreft_as_sequential_adapter,
    prefix_as_gated_adapter,
    print_view,
    rewritten,
)
from minitorch_peft.models import GPT, GPTConfig
from minitorch_peft.peft import METHODS, get_peft_model

SIZES = {"vocab_size": 29, "n_positions": 24, "n_embd": 32, "n_layer": 2, "n_head": 4}
IDS = np.random.default_rng(1).integers(0, 29, (3, 8))
PADDED = np.arange(8) >= np.array([0, 2, 3])[:, None]
G = np.random.default_rng(2).standard_normal((3, 8, 29)) * PADDED[..., None]  # padding has no gradient
families = pytest.mark.parametrize("family", ["gpt2", "llama"])


def adapted(method, family, **settings):
    """A float64 model that is far from its start, under an adapter that is far from its own."""
    config = GPTConfig(**SIZES) if family == "gpt2" else GPTConfig.llama(**SIZES, num_key_value_heads=2)
    model = GPT(config).astype(np.float64).eval()
    p = get_peft_model(model, METHODS[method].make(settings)).eval()
    for name, q in [*model.named_parameters(), *p.adapters["default"].named_parameters().items()]:
        q.data[...] += 0.2 * np.random.default_rng([3, *name.encode()]).standard_normal(q.shape)
    return p


def logits_and_gradients(p, run):
    p.zero_grad()
    out = run().logits
    out.backward(gradient=G)
    return out.data, {name: q.grad for name, q in p.adapters["default"].named_parameters().items()}


def assert_same(p, rewriting, **options):
    """The adapter and its rewriting, of the same parameters: equal logits and equal gradients."""
    expected, gradients = logits_and_gradients(p, lambda: p(IDS, attention_mask=PADDED))
    with p.disable_adapter():
        assert np.abs(p(IDS, attention_mask=PADDED).logits.data - expected).max() > 1e-2
    with rewritten(p, rewriting) as base:
        got, others = logits_and_gradients(p, lambda: base(IDS, attention_mask=PADDED, **options))
    seen = PADDED[..., None]
    np.testing.assert_allclose(got * seen, expected * seen, rtol=1e-9, atol=1e-9)
    for name, gradient in gradients.items():
        if gradient is None:
            continue  # a parameter that the test froze
        np.testing.assert_allclose(others[name], gradient, rtol=1e-7, atol=1e-9, err_msg=name)
    assert np.array_equal(p(IDS, attention_mask=PADDED).logits.data, expected)  # the adapter acts again


@families
def test_lora_is_the_linear_parallel_adapter(family):
    p = adapted("lora", family, r=3, target_modules="all-linear")
    assert_same(p, lora_as_parallel_adapter(p.adapters["default"]))


@families
@pytest.mark.parametrize("method", ["seq_bn", "double_seq_bn", "par_bn"])
@pytest.mark.parametrize("non_linearity", ["gelu", "relu"])
def test_bottleneck_adapters_are_the_view_s_first_case(method, family, non_linearity):
    p = adapted(method, family, bottleneck_size=5, non_linearity=non_linearity, scaling=2.5)
    assert_same(p, bottleneck_as_adapter(p.adapters["default"]))


@families
def test_a_scaled_parallel_adapter_without_activation_is_lora_on_the_mlp(family):
    p = adapted("par_bn", family, bottleneck_size=3, non_linearity="identity", scaling=4.0)
    for name, q in p.adapters["default"].named_parameters().items():
        q.data[...] *= not name.endswith("bias")
        q.requires_grad_(not name.endswith("bias"))
    assert_same(p, identity_adapter_as_lora(p.adapters["default"]))


def test_around_one_linear_layer_it_is_lora_itself():
    """The same A, B and s: once as LoRA of ``o_proj``, once as an identity bottleneck beside it."""
    p = adapted("lora", "gpt2", r=3, lora_alpha=6, target_modules=["o_proj"])
    beside = {
        path: (
            Modified,
            (BottleneckForm((layer.lora_A, zeros(3)), (layer.lora_B, zeros(32)), lambda u: u, 2.0), "parallel"),
        )
        for path, layer in p.adapters["default"].wrappers.items()
    }
    assert_same(p, beside)


def zeros(n):
    return mp.tensor(np.zeros(n))


@families
def test_ia3_is_the_diagonal_sequential_adapter(family):
    p = adapted("ia3", family)  # scaling a factor of the inner activation scales the gated product too
    assert_same(p, ia3_as_diagonal_adapter(p.adapters["default"]))


@pytest.mark.parametrize(
    ("method", "settings", "rewrite"),
    [
        ("dora", {"r": 2}, lora_as_parallel_adapter),
        ("lora", {"r": 2, "lora_dropout": 0.1}, lora_as_parallel_adapter),
        ("ia3", {"target_modules": ["o_proj"], "feedforward_modules": ["o_proj"]}, ia3_as_diagonal_adapter),
        ("loreft", {}, loreft_as_sequential_adapter),
        ("par_bn", {"non_linearity": "relu"}, identity_adapter_as_lora),
        ("par_bn", {"non_linearity": "identity"}, identity_adapter_as_lora),
        ("seq_bn", {"non_linearity": "identity"}, identity_adapter_as_lora),
    ],
)
def test_a_rewriting_says_what_it_is_true_of(method, settings, rewrite):
    p = adapted(method, "gpt2", **settings)
    with pytest.raises(ValueError, match="this rewriting is true of"):
        rewrite(p.adapters["default"])


def test_bitfit_is_the_constant_adapter():
    p = adapted("bitfit", "gpt2", target_parameters=["q_proj.bias", "v_proj.bias", "o_proj.bias", "up_proj.bias"])
    assert_same(p, bitfit_as_constant_adapter(p.adapters["default"]))


@families
def test_loreft_is_a_sequential_adapter_of_the_residual_stream(family):
    p = adapted("loreft", family, prefix_positions=None, dropout=0.0)
    assert_same(p, loreft_as_sequential_adapter(p.adapters["default"]))


@families
def test_prefix_tuning_is_a_gated_parallel_adapter_of_the_heads(family):
    p = adapted("prefix_tuning", family, num_virtual_tokens=4)
    own = np.maximum(np.cumsum(PADDED, axis=1) - 1, 0) + 4  # under a prefix, the text's positions are counted from it
    assert_same(p, prefix_as_gated_adapter(p.adapters["default"]), position_ids=own)


def test_every_method_has_its_dials(capsys):
    assert VIEW.keys() == METHODS.keys()
    print_view()
    printed = capsys.readouterr().out
    assert all(name in printed for name in METHODS)


def test_the_base_is_given_back_after_an_error():
    p = adapted("lora", "gpt2", r=2)
    before = repr(p)
    with (
        pytest.raises(ValueError, match="vocabulary"),
        rewritten(p, lora_as_parallel_adapter(p.adapters["default"])) as base,
    ):
        base([[99]])
    assert repr(p) == before and p.active_adapters == ("default",)
