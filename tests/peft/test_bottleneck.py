"""Bottleneck adapters: the operation against its composition, the places, the starts, the settings."""

from __future__ import annotations

import numpy as np
import pytest
from peft_cases import IDS, gpt, logits, stirred

import minitorch_peft as mp
import minitorch_peft.functional as F
from minitorch_peft.autograd.tensor import Tensor, no_grad
from minitorch_peft.nn import Activation, ForwardContext
from minitorch_peft.nn.activation import ACTIVATIONS
from minitorch_peft.peft import DoubleSeqBnConfig, ParBnConfig, SeqBnConfig, get_peft_model
from minitorch_peft.peft.function.bottleneck import STARTS
from minitorch_peft.peft.function.bottleneck_function import NON_LINEARITIES, bottleneck
from minitorch_peft.peft.inject import base_module

C, W = 5, 3
RNG = np.random.default_rng(0)
H, Z, G = (RNG.standard_normal((2, 4, C)) for _ in range(3))
DOWN = (RNG.standard_normal((W, C)), RNG.standard_normal(W))
UP = (RNG.standard_normal((C, W)), RNG.standard_normal(C))
SCALES = {"constant": 4.0, "learned": RNG.standard_normal(1), "channel": RNG.standard_normal(C)}


def leaves(*arrays, frozen=()):
    return [Tensor(a.copy()).requires_grad_(i not in frozen) for i, a in enumerate(arrays)]


def activation(name):
    aliases = {"swish": F.silu, "identity": lambda x: x}
    return aliases.get(name) or Activation(name)


def composed(h, z, down, up, name, s):
    """The same of single operations."""
    change = F.linear(activation(name)(F.linear(z, *down)), *up) * s
    return change if h is None else h + change


def outcome(run, scale, with_h=True, sequential=False, frozen=()):
    """Output, and the gradients of h, z, the four parameters and s."""
    h, z, *parameters = leaves(H, Z, *DOWN, *UP, frozen=frozen)
    h = z if sequential else h if with_h else None
    s = Tensor(scale.copy()).requires_grad_() if isinstance(scale, np.ndarray) else scale
    y = run(h, z, tuple(parameters[:2]), tuple(parameters[2:]), s)
    y.backward(gradient=G)
    return [y.data, *(None if t is None or isinstance(t, float) else t.grad for t in (h, z, *parameters, s))]


def check_same(**options):
    ours = outcome(lambda *a: bottleneck(*a[:4], options["name"], a[4]), **options["of"])
    expected = outcome(lambda *a: composed(*a[:4], options["name"], a[4]), **options["of"])
    for a, b in zip(ours, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


# -- the operation -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", NON_LINEARITIES)
def test_the_operation_is_its_composition(name, scale):
    check_same(name=name, of={"scale": SCALES[scale]})


@pytest.mark.parametrize(
    "options",
    [
        {"with_h": False},
        {"sequential": True},
        *({"frozen": f} for f in ((2, 3, 4, 5), (1,), (0, 1, 3, 4), (0, 1, 2, 3))),
    ],
)
def test_whatever_trains(options):
    for scale in SCALES.values():
        check_same(name="gelu", of={"scale": scale, **options})


@pytest.mark.parametrize("scale", SCALES)
def test_its_gradient_is_that_of_differences(scale):
    s = [SCALES[scale]] if isinstance(SCALES[scale], np.ndarray) else []

    def run(h, z, a, b, c, d, *s):
        return bottleneck(h, z, (a, b), (c, d), "silu", s[0] if s else 4.0)

    assert mp.gradcheck(run, tuple(leaves(H, Z, *DOWN, *UP, *s)))


@pytest.mark.parametrize("frozen", [(), (2, 3, 4, 5)])
@pytest.mark.parametrize("name", NON_LINEARITIES)
def test_in_float32_it_is_near_float64(name, frozen):
    """The float32 kernels, both ways, against the reference; and where one tensor is both h and z."""
    for sequential in (False, True):
        outcomes = []
        for dtype in (np.float64, np.float32):
            arrays = (a.astype(dtype) for a in (H, Z, *DOWN, *UP))
            h, z, *p = leaves(*arrays, frozen=frozen)
            y = bottleneck(z if sequential else h, z, tuple(p[:2]), tuple(p[2:]), name, 4.0)
            assert y.dtype == dtype
            y.backward(gradient=G.astype(dtype))
            outcomes.append([y.data, *(t.grad for t in (h, z, *p) if t.grad is not None)])
        for wide, narrow in zip(*outcomes, strict=True):
            np.testing.assert_allclose(narrow, wide, rtol=2e-5, atol=2e-5)


def test_only_what_backward_needs_is_kept():
    """A frozen adapter keeps the narrow activation, and nothing of the model's width."""
    for frozen, wide in (((), 1), ((2, 3, 4, 5), 0)):
        h, z, *p = leaves(H, Z, *DOWN, *UP, frozen=frozen)
        y = bottleneck(h, z, tuple(p[:2]), tuple(p[2:]), "relu", 1.0)
        kept = [a for a in y.grad_fn.saved if isinstance(a, np.ndarray) and a.size >= Z.size]
        assert len(kept) == wide


def test_every_activation_of_the_models_is_known():
    assert set(ACTIVATIONS) | {"swish", "identity"} == set(NON_LINEARITIES)


# -- where it stands ---------------------------------------------------------------------------------------------
def by_hand(config, p):
    """The logits of a GPT with the adapters written into its blocks."""
    model, layers = p.base_model, p.adapters["default"].wrappers
    x = model.embed.tokens(IDS)
    x = x + model.embed.positions.weight[np.arange(IDS.shape[1])]

    def sub_layer(path, z):
        y = base_module(model, path)(z, ForwardContext())
        if path not in layers:
            return y
        parts = (layers[path].adapter_down, layers[path].adapter_up)
        down, up = ((part.weight, part.bias) for part in parts)
        return composed(y, z if config.is_parallel else y, down, up, config.non_linearity, config.scaling)

    for i, block in enumerate(model.blocks):
        x = x + sub_layer(f"blocks.{i}.attn", block.ln_1(x))
        x = x + sub_layer(f"blocks.{i}.mlp", block.ln_2(x))
    return model.lm_head(model.ln_f(x)).data


@pytest.mark.parametrize(
    "config, places",
    [
        (SeqBnConfig(), ["blocks.0.mlp", "blocks.1.mlp"]),
        (DoubleSeqBnConfig(), ["blocks.0.attn", "blocks.0.mlp", "blocks.1.attn", "blocks.1.mlp"]),
        (ParBnConfig(), ["blocks.0.mlp", "blocks.1.mlp"]),
        (SeqBnConfig(mh_adapter=True, output_adapter=False, scaling=0.5), ["blocks.0.attn", "blocks.1.attn"]),
        (ParBnConfig(mh_adapter=True, leave_out=[0]), ["blocks.1.attn", "blocks.1.mlp"]),
    ],
    ids=["pfeiffer", "houlsby", "parallel", "attention", "parallel-both"],
)
def test_adapters_stand_where_the_papers_put_them(config, places):
    p = stirred(get_peft_model(gpt("gpt2"), config), scale=0.3)
    assert list(p.adapters["default"].wrappers) == places
    with no_grad():
        expected = by_hand(config, p)
    np.testing.assert_allclose(logits(p), expected, rtol=1e-5, atol=2e-5)
    assert np.abs(logits(gpt("gpt2")) - expected).max() > 0.01


def test_pfeiffer_s_adapter_where_adapterhub_puts_it():
    """W_down reads the residual stream after the sum, and adds to it."""
    config = SeqBnConfig(original_ln_before=True, leave_out=[0])
    p = stirred(get_peft_model(gpt("gpt2"), config), scale=0.3)
    (path,) = p.adapters["default"].wrappers
    layer = p.adapters["default"].wrappers[path]
    assert path == "blocks.1"
    with no_grad():
        x = Tensor(RNG.standard_normal((2, 3, 32)).astype(np.float32))
        block = base_module(p.base_model, path)
        after_attention = x + block.attn(block.ln_1(x), ForwardContext())
        summed = after_attention + block.mlp(block.ln_2(after_attention), ForwardContext())
        down, up = ((part.weight, part.bias) for part in (layer.adapter_down, layer.adapter_up))
        expected = composed(summed, summed, down, up, "relu", 1.0)
        np.testing.assert_allclose(layer(x, ForwardContext()).data, expected.data, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="original_ln_before is for the adapter after the feed-forward alone"):
        SeqBnConfig(mh_adapter=True, original_ln_before=True)


def test_widths_and_defaults():
    base = gpt("gpt2")  # C = 32
    assert [c().width(base) for c in (SeqBnConfig, DoubleSeqBnConfig, ParBnConfig)] == [2, 2, 16]
    assert SeqBnConfig(reduction_factor=5).width(base) == 6 and SeqBnConfig(bottleneck_size=40).width(base) == 40
    assert [c().non_linearity for c in (SeqBnConfig, DoubleSeqBnConfig, ParBnConfig)] == ["relu", "swish", "relu"]
    assert [c().scaling for c in (SeqBnConfig, DoubleSeqBnConfig, ParBnConfig)] == [1.0, 1.0, 4.0]


# -- starts ------------------------------------------------------------------------------------------------------
def test_the_starts():
    before = logits(gpt("gpt2"))
    for start in STARTS:
        p = get_peft_model(gpt("gpt2"), SeqBnConfig(init_weights=start, bottleneck_size=20))
        layer = p.adapters["default"].wrappers["blocks.1.mlp"]
        assert not layer.adapter_down.bias.data.any() and not layer.adapter_up.bias.data.any()
        if start == "bert":
            assert all(0.017 < part.weight.data.std() < 0.023 for part in (layer.adapter_down, layer.adapter_up))
            assert 0 < np.abs(logits(p) - before).max() < 0.1  # near the base, not at it
        else:
            np.testing.assert_array_equal(logits(p), before)
            assert 0.9 / np.sqrt(32) < np.abs(layer.adapter_down.weight.data).max() <= 1 / np.sqrt(32)


def test_a_learned_scaling_starts_at_one():
    for scaling, shape in (("learned", (1,)), ("channel", (32,))):
        p = get_peft_model(gpt("gpt2"), ParBnConfig(scaling=scaling))
        own = p.adapters["default"].named_parameters()
        np.testing.assert_array_equal(own["blocks.0.mlp.scaling"].data, np.ones(shape))


# -- settings ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "settings, message",
    [
        ({"output_adapter": False}, r"needs a place: set mh_adapter \(attention\), output_adapter"),
        ({"reduction_factor": 0}, "reduction_factor must be a positive number, got 0"),
        ({"bottleneck_size": 0}, "bottleneck_size must be a whole number of at least 1, got 0"),
        ({"bottleneck_size": 2.0}, "got 2.0"),
        ({"leave_out": [True]}, r"leave_out must be a list of whole numbers, got \[True\]"),
        ({"mh_adapter": "no"}, "mh_adapter must be True or False, got 'no'"),
        ({"non_linearity": "sine"}, "unknown non_linearity 'sine'; known: gelu, .*swish"),
        ({"scaling": "some"}, r"scaling must be a positive number, or one of \('learned', 'channel'\), got 'some'"),
        ({"scaling": float("nan")}, "got nan"),
        ({"init_weights": "zero"}, "unknown init_weights 'zero'; known: mam_adapter, lora, bert"),
    ],
)
def test_settings_are_checked_at_once(settings, message):
    with pytest.raises(ValueError, match=message):
        SeqBnConfig(**settings)


def test_one_number_is_a_list_of_one():
    assert SeqBnConfig(leave_out=0) == SeqBnConfig(leave_out=[0])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"reduction_factor": 33}, "reduction_factor=33 leaves no channel of 32: at most 32"),
        ({"leave_out": [2]}, r"leave_out=\[2\]: expected some, not all, of the blocks 0..1"),
        ({"leave_out": [0, 1]}, "not all"),
    ],
)
def test_settings_that_do_not_fit_the_model(settings, message):
    base = gpt("gpt2")
    tree = repr(base)
    with pytest.raises(ValueError, match=message):
        get_peft_model(base, SeqBnConfig(**settings))
    assert repr(base) == tree
