"""MAM: it is prefix tuning and the scaled parallel adapter at once, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from peft_cases import IDS, MASK, TIGHT, gpt, logits, stirred

from minitorch_peft.models import GPT, GPTConfig
from minitorch_peft.nn import ForwardContext
from minitorch_peft.peft import MAMConfig, ParBnConfig, PeftModel, PrefixTuningConfig, get_peft_model

CONFIGS = {
    "network": MAMConfig(num_virtual_tokens=3, encoder_hidden_size=5),
    "table": MAMConfig(num_virtual_tokens=2, prefix_projection=False, leave_out=[1], scaling=2.0),
}


def both(config, family, dtype=np.float32):
    """MAM, and a model with its two halves as adapters of their own, of the same values."""
    one = stirred(get_peft_model(gpt(family, dtype), config), scale=0.2).eval()
    two = PeftModel(gpt(family, dtype)).eval()
    two.add_adapter("prefix", config.prefix_tuning)
    two.add_adapter("parallel", config.adapter)
    two.set_adapter(["prefix", "parallel"])
    own = one.adapters["default"].named_parameters()
    halves = {path: q for name in ("prefix", "parallel") for path, q in two.adapters[name].named_parameters().items()}
    assert own.keys() == halves.keys()
    for path, q in halves.items():
        q.data[...] = own[path].data
    return one, two, own, halves


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_its_two_halves(name, family):
    one, two, own, halves = both(CONFIGS[name], family, np.float64)
    out = [p(IDS, labels=IDS, attention_mask=MASK, context=ForwardContext()) for p in (one, two)]
    np.testing.assert_allclose(out[0].logits.data, out[1].logits.data, rtol=1e-10, atol=1e-12)
    for o in out:
        o.loss.backward()
    for path, q in own.items():
        np.testing.assert_allclose(q.grad, halves[path].grad, rtol=1e-8, atol=1e-12)
        assert np.abs(q.grad).max() > 0, path


@pytest.mark.parametrize("part", ["prompt_encoder", "mlp"])
def test_both_halves_matter(part):
    p = stirred(get_peft_model(gpt("gpt2"), CONFIGS["network"]), scale=0.2).eval()
    before = logits(p)
    for path, q in p.adapters["default"].named_parameters().items():
        if part in path:
            q.data[...] = 0
    assert np.abs(logits(p) - before).max() > 1e-2


def test_generation_carries_the_prefix_on():
    one, two, *_ = both(CONFIGS["network"], "gpt2")
    options = {"max_new_tokens": 5, "attention_mask": MASK}
    assert np.array_equal(one.generate(IDS, **options), two.generate(IDS, **options))


def test_rows_beside_its_halves():
    one, two, *_ = both(CONFIGS["network"], "gpt2")
    one.add_adapter("prefix", CONFIGS["network"].prefix_tuning)
    for path, q in one.adapters["prefix"].named_parameters().items():
        q.data[...] = two.adapters["prefix"].named_parameters()[path].data
    mixed = logits(one, adapter_names=["default", "__base__", "prefix"])
    np.testing.assert_allclose(mixed[0], logits(two)[0], **TIGHT)
    two.set_adapter("prefix")
    np.testing.assert_allclose(mixed[2], logits(two)[2], **TIGHT)
    np.testing.assert_allclose(mixed[1], logits(gpt("gpt2"))[1], **TIGHT)


def test_the_defaults_are_the_paper_s():
    config = MAMConfig()
    assert config.prefix_tuning == PrefixTuningConfig(30, prefix_projection=True, encoder_hidden_size=800)
    assert config.adapter == ParBnConfig()
    assert (config.adapter.scaling, config.adapter.reduction_factor, config.adapter.non_linearity) == (4.0, 2, "relu")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"num_virtual_tokens": 0}, "num_virtual_tokens must be a whole number of at least 1"),
        ({"encoder_hidden_size": 0}, "encoder_hidden_size must be a whole number"),
        ({"scaling": -1}, "scaling must be a positive number"),
        ({"non_linearity": "sine"}, "unknown non_linearity"),
    ],
)
def test_settings_are_checked_at_once(settings, message):
    with pytest.raises(ValueError, match=message):
        MAMConfig(**settings)


def test_a_prefix_that_the_model_has_no_room_for_leaves_it_as_it_was():
    base = GPT(GPTConfig(vocab_size=29, n_positions=8, n_embd=32, n_layer=2, n_head=4))
    tree = repr(base)
    with pytest.raises(ValueError, match="num_virtual_tokens=30 leaves no position for a token: at most 7"):
        get_peft_model(base, MAMConfig())
    assert repr(base) == tree
