"""The latency of a token: what is timed, and that measuring changes nothing."""

from __future__ import annotations

import numpy as np
import pytest

from minitorch_peft.analysis import latency
from minitorch_peft.models import GPT, GPTConfig
from minitorch_peft.peft import METHODS, get_peft_model


def small():
    return GPT(GPTConfig(vocab_size=29, n_positions=24, n_embd=16, n_layer=1, n_head=2))


def timed(monkeypatch, model):
    """(shape of the prompt, new tokens) of every call of ``generate``."""
    calls, real = [], type(model).generate

    def generate(self, ids, max_new_tokens):
        calls.append((np.shape(ids), max_new_tokens))
        return real(self, ids, max_new_tokens=max_new_tokens)

    monkeypatch.setattr(type(model), "generate", generate)
    return calls


def test_tokens_fit_into_the_model_under_a_prompt(monkeypatch):
    model = get_peft_model(small(), METHODS["prompt_tuning"].make({"num_virtual_tokens": 4}))
    calls = timed(monkeypatch, model)
    assert latency.token_seconds(model) > 0
    assert calls == [((1, 10), 10)] * (latency.ROUNDS + 1)


def test_base_adapter_and_merged_and_nothing_has_changed():
    model = get_peft_model(small(), METHODS["lora"].make({"r": 2}))
    before = {name: array.tobytes() for name, array in model.state_dict().items()}
    seconds = latency.latencies(model)
    assert all(seconds[name] > 0 for name in ("base", "adapter", "merged"))
    assert model.merger is None and model.active_adapters == ("default",)
    assert {name: array.tobytes() for name, array in model.state_dict().items()} == before
    unmergeable = get_peft_model(small(), METHODS["prefix_tuning"].make({"num_virtual_tokens": 2}))
    assert latency.latencies(unmergeable)["merged"] is None


def test_the_base_is_timed_on_as_many_tokens_as_the_adapted_model(monkeypatch):
    model = get_peft_model(small(), METHODS["prefix_tuning"].make({"num_virtual_tokens": 4}))
    calls = timed(monkeypatch, model)
    latency.latencies(model)
    assert calls == [((1, 10), 10)] * 2 * (latency.ROUNDS + 1)


def test_a_merge_that_is_wrong_is_not_passed_over(monkeypatch):
    model = get_peft_model(small(), METHODS["lora"].make({"r": 2}))
    (layer, *_) = model.adapters["default"].wrappers.values()
    monkeypatch.setattr(type(layer), "effective", lambda self, weight: 50 * weight)
    with pytest.warns(UserWarning, match="the merged model is not the unmerged one"):
        latency.latencies(model)
