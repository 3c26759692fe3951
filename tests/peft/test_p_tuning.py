"""P-tuning: the networks that make the prompt, their dropout, and the file that keeps them."""

from __future__ import annotations

import numpy as np
import pytest
from peft_cases import IDS, gpt, logits, loss, optimizer_of, stirred, train

from minitorch_peft.autograd.tensor import no_grad
from minitorch_peft.formats.files import read_arrays, read_json, write_arrays
from minitorch_peft.nn import ForwardContext
from minitorch_peft.peft import PeftModel, PromptEncoderConfig, PromptTuningConfig, get_peft_model

MLP = PromptEncoderConfig(3, encoder_hidden_size=5)
LSTM = PromptEncoderConfig(3, "LSTM", encoder_hidden_size=4)
DROPPED = PromptEncoderConfig(3, "LSTM", encoder_hidden_size=4, encoder_dropout=0.5)
KIND = {"encoder_reparameterization_type": "LSTM"}


def own(p, name="default"):
    return {n.removeprefix("prompt_encoder."): q.data for n, q in p.adapters[name].named_parameters().items()}


def test_the_mlp_has_three_layers_with_relu_between_them() -> None:
    p = stirred(get_peft_model(gpt("gpt2"), MLP))
    w = own(p)
    assert list(w) == ["embedding.weight", *(f"mlp_head.{i}.{n}" for i in (0, 2, 4) for n in ("weight", "bias"))]
    x = w["embedding.weight"]
    for i in (0, 2):
        x = np.maximum(x @ w[f"mlp_head.{i}.weight"].T + w[f"mlp_head.{i}.bias"], 0)
    expected = x @ w["mlp_head.4.weight"].T + w["mlp_head.4.bias"]
    np.testing.assert_allclose(p.adapters["default"].table().data, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("config", [MLP, LSTM], ids=["mlp", "lstm"])
def test_the_prompt_is_what_the_encoder_makes(config) -> None:
    p = stirred(get_peft_model(gpt("llama"), config))
    expected = logits(p)
    table = p.adapters["default"].table().data
    plain = get_peft_model(gpt("llama"), PromptTuningConfig(3))
    plain.adapters["default"].encoder.embedding.weight.data[...] = table
    np.testing.assert_array_equal(logits(plain), expected)


def test_a_changed_encoder_is_seen_by_the_next_pass() -> None:
    p = get_peft_model(gpt("gpt2"), MLP)
    before = logits(p)
    p.adapters["default"].encoder.mlp_head[4].bias.data[0] += 1
    assert np.abs(logits(p) - before).max() > 1e-3


def test_every_virtual_token_depends_on_all_in_an_lstm_and_on_its_own_in_an_mlp() -> None:
    for config, others in ((LSTM, True), (MLP, False)):
        p = stirred(get_peft_model(gpt("gpt2"), config))
        adapter = p.adapters["default"]
        before = adapter.table().data
        adapter.encoder.embedding.weight.data[1] += 1
        changed = np.abs(adapter.table().data - before).max(axis=1) > 1e-6
        assert changed.tolist() == [others, True, others]


# -- dropout ---------------------------------------------------------------------------------------------------
def run(p, step, **options):
    with no_grad():
        return p(IDS, context=ForwardContext(seed=1, step=step), **options).logits.data


def test_dropout_is_drawn_by_the_pass_and_only_in_training() -> None:
    p = stirred(get_peft_model(gpt("gpt2"), DROPPED), scale=0.5).train()
    assert np.array_equal(run(p, 1), run(p, 1)) and np.abs(run(p, 1) - run(p, 2)).max() > 1e-3
    with no_grad():
        assert np.abs(p(IDS).logits.data - p(IDS).logits.data).max() > 1e-3  # a hand-written loop without a context
    p.eval()
    assert np.array_equal(run(p, 1), run(p, 2))


def test_two_adapters_never_share_a_mask() -> None:
    p = stirred(get_peft_model(gpt("gpt2"), DROPPED, "a"), "a", scale=0.5)
    p.add_adapter("b", DROPPED)
    for name, q in p.adapters["b"].named_parameters().items():
        q.data[...] = p.adapters["a"].named_parameters()[name].data
    p.train()
    tables = []
    for name in ("a", "b"):
        p.set_adapter(name)
        run(p, 1)
        tables.append(p.adapters[name].table().data)
    assert np.abs(tables[0] - tables[1]).max() > 1e-3
    p.eval()
    assert np.array_equal(p.adapters["a"].table().data, p.adapters["b"].table().data)


def test_dropout_is_that_of_the_pass_where_rows_name_their_adapters() -> None:
    p = stirred(get_peft_model(gpt("gpt2"), DROPPED, "a"), "a", scale=0.5)
    p.add_adapter("b", PromptTuningConfig(2))  # its wrapper is the outer one
    p.train()
    names = ["a", "b", "a"]
    first = run(p, 1, adapter_names=names)
    later = run(p, 2, adapter_names=names)
    assert np.array_equal(first, run(p, 1, adapter_names=names))
    assert (np.abs(first - later).max(axis=(1, 2)) > 1e-4).tolist() == [True, False, True]


def test_a_file_is_written_without_noise_and_leaves_the_mode_alone(tmp_path) -> None:
    p = stirred(get_peft_model(gpt("gpt2"), DROPPED), scale=0.5).train()
    p.save_pretrained(tmp_path)
    assert p.adapters["default"].encoder.training and p.adapters["default"].encoder.lstm_head.training
    written = read_arrays(tmp_path / "adapter_model.safetensors")["prompt_embeddings"]
    np.testing.assert_array_equal(written, p.eval().adapters["default"].table().data)


# -- files -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("config", [MLP, LSTM], ids=["mlp", "lstm"])
def test_training_goes_on_from_peft_s_file(config, tmp_path) -> None:
    p = stirred(get_peft_model(gpt("gpt2"), config))
    assert p.save_pretrained(tmp_path) == "peft"
    again = PeftModel.from_pretrained(gpt("gpt2"), tmp_path, is_trainable=True)
    for model in (p, again):
        train(model, optimizer_of(model), range(3))
    ours, theirs = own(p), own(again)
    assert ours.keys() == theirs.keys() and all(np.array_equal(ours[n], theirs[n]) for n in ours)


@pytest.mark.parametrize("config", [MLP, LSTM], ids=["mlp", "lstm"])
def test_a_file_without_the_network_becomes_the_table_itself_says_so_and_trains(config, tmp_path) -> None:
    p = stirred(get_peft_model(gpt("gpt2"), config))
    p.save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    write_arrays(path, {"prompt_embeddings": read_arrays(path)["prompt_embeddings"]})  # as peft writes it
    again = PeftModel.from_pretrained(gpt("gpt2"), tmp_path, is_trainable=True)
    assert again.adapters["default"].config.encoder_reparameterization_type == "NONE"
    assert list(own(again)) == ["embedding.weight"]
    np.testing.assert_allclose(logits(again), logits(p), rtol=1e-6, atol=1e-6)
    before = loss(again)
    train(again, optimizer_of(again, lr=3e-2), range(5))
    assert loss(again) < before - 0.01
    again.save_pretrained(tmp_path / "again")
    assert read_json(tmp_path / "again" / "adapter_config.json")["encoder_reparameterization_type"] == "MLP"
    third = PeftModel.from_pretrained(gpt("gpt2"), tmp_path / "again")
    np.testing.assert_array_equal(logits(third), logits(again))


# -- what is refused -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder_reparameterization_type": "GRU"}, "'GRU': expected one of MLP, LSTM, NONE"),
        ({"encoder_hidden_size": 0}, "encoder_hidden_size must be a whole number of at least 1"),
        ({**KIND, "encoder_num_layers": 0}, "encoder_num_layers must be a whole number of at least 1"),
        ({**KIND, "encoder_dropout": 1.0}, r"encoder_dropout must be in \[0, 1\), got 1.0"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        PromptEncoderConfig(**settings)
