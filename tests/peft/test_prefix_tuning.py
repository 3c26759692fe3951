"""Prefix tuning: the start at real words, the layout of the table, the network that makes it, peft's file."""

from __future__ import annotations

import numpy as np
import pytest
from peft_cases import IDS, MASK, TIGHT, gpt, logits, loss, optimizer_of, snapshot, stirred, train

from minitorch_peft.data.tokenizer import Tokenizer
from minitorch_peft.formats.files import FileFormatError, read_arrays, read_json, write_arrays, write_json
from minitorch_peft.models import GPT, GPTConfig
from minitorch_peft.nn import ForwardContext
from minitorch_peft.peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from minitorch_peft.peft.input.starts import activations

WORDS = [5, 6, 7]
TEXT = PrefixTuningConfig(3, init_weights="text", init_ids=WORDS)
PROJECTED = PrefixTuningConfig(3, prefix_projection=True, encoder_hidden_size=5)


# -- where it starts -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", ["gpt2", "llama", "llama-4bit"])
def test_a_prefix_of_words_is_those_words_before_the_text(family) -> None:
    base = gpt(family)
    expected = logits(base, np.concatenate([np.tile(WORDS, (3, 1)), IDS], axis=1))[:, 3:]
    p = get_peft_model(base, TEXT)
    np.testing.assert_allclose(logits(p), expected, **TIGHT)
    mask = np.concatenate([np.ones((3, 3), bool), MASK], axis=1)
    assert np.array_equal(
        p.generate(IDS[:1], max_new_tokens=5),
        gpt(family).generate(np.concatenate([[WORDS], IDS[:1]], axis=1), max_new_tokens=5)[:, 3:],
    )
    np.testing.assert_array_equal(logits(p, attention_mask=MASK), logits(p, attention_mask=mask))


@pytest.mark.parametrize("words, k, expected", [([5, 6, 7], 5, [5, 6, 7, 5, 6]), ([5, 6, 7], 2, [5, 6])])
def test_words_are_repeated_and_cut(words, k, expected) -> None:
    p = get_peft_model(gpt("llama"), PrefixTuningConfig(k, init_weights="text", init_ids=words))
    assert p.adapters["default"].config.init_ids == expected
    together = np.concatenate([np.tile(expected, (3, 1)), IDS], axis=1)
    np.testing.assert_allclose(logits(p), logits(gpt("llama"), together)[:, k:], **TIGHT)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_network_can_start_at_words_too(family) -> None:
    config = PrefixTuningConfig(3, True, encoder_hidden_size=7, init_weights="text", init_ids=WORDS)
    p = get_peft_model(gpt(family), config)
    expected = logits(gpt(family), np.concatenate([np.tile(WORDS, (3, 1)), IDS], axis=1))[:, 3:]
    np.testing.assert_allclose(logits(p), expected, rtol=1e-4, atol=1e-4)
    before = loss(p)
    train(p, optimizer_of(p), range(5))
    assert loss(p) < before - 0.01


def test_a_network_too_small_for_the_words_is_refused() -> None:
    words = list(range(8))
    get_peft_model(gpt("llama"), PrefixTuningConfig(8, True, 7, "text", init_ids=words))
    with pytest.raises(ValueError, match="an encoder_hidden_size of 5 cannot make 8 given rows: at least 7 are needed"):
        get_peft_model(gpt("llama"), PrefixTuningConfig(8, True, 5, "text", init_ids=words))


def test_text_is_encoded_with_the_shipped_tokenizer() -> None:
    base = GPT(GPTConfig(vocab_size=1024, n_positions=32, n_embd=8, n_layer=1, n_head=2))
    ids = Tokenizer.shipped().encode("in the beginning")
    p = get_peft_model(base, PrefixTuningConfig(len(ids), init_weights="text", init_text="in the beginning"))
    np.testing.assert_array_equal(p.adapters["default"].encoder.embedding.weight.data, activations(base, ids))


def test_words_are_read_by_the_base_alone_without_dropout_and_leave_it_as_it_was() -> None:
    expected = activations(gpt("gpt2"), WORDS)
    config = GPTConfig(**{**gpt("gpt2").config.to_dict(), "embd_pdrop": 0.5, "resid_pdrop": 0.5, "attn_pdrop": 0.5})
    base = GPT(config)
    base.load_state_dict(gpt("gpt2").state_dict())
    base.train()
    base.blocks[0].eval()  # a part that is in another mode stays so
    np.testing.assert_array_equal(activations(base, WORDS), expected)
    assert base.blocks[1].attn.dropout.training and not base.blocks[0].training
    p = stirred(get_peft_model(base, LoraConfig(r=2)))
    before, passes = snapshot(base), base.passes
    p.add_adapter("prefix", TEXT)
    np.testing.assert_array_equal(p.adapters["prefix"].encoder.embedding.weight.data, expected)
    assert snapshot(base) == before and base.passes == passes and p.active_adapters == ("default",)


def test_the_zero_start_has_keys_and_values_of_zero() -> None:
    for config in (PrefixTuningConfig(2, init_weights="zero"), PrefixTuningConfig(2, True, init_weights="zero")):
        p = get_peft_model(gpt("llama"), config)
        assert not any(t.data.any() for pair in p.adapters["default"].prefix() for t in pair)
        before = loss(p)
        train(p, optimizer_of(p, lr=3e-2), range(5))
        assert loss(p) < before - 0.01


# -- the table -------------------------------------------------------------------------------------------------
def test_the_layout_of_the_table_is_peft_s() -> None:
    """Flat index ((2 l + kv) H + h) D + j of a row, H heads of keys and values (2 of 4 here), D channels."""
    p = stirred(get_peft_model(gpt("llama"), PrefixTuningConfig(3)))
    table, pairs = p.adapters["default"].encoder.embedding.weight.data, p.adapters["default"].prefix()
    H, D = 2, 8
    assert table.shape == (3, 2 * 2 * H * D)
    for layer, pair in enumerate(pairs):
        for kv, t in enumerate(pair):
            assert t.shape == (H, 3, D)
            for h in range(H):
                start = ((2 * layer + kv) * H + h) * D
                np.testing.assert_array_equal(t.data[h], table[:, start : start + D])


def test_the_projection_is_the_paper_s_network() -> None:
    p = stirred(get_peft_model(gpt("gpt2"), PROJECTED))
    own = {name: q.data for name, q in p.adapters["default"].encoder.named_parameters()}
    assert list(own) == ["embedding.weight", *(f"transform.{i}.{n}" for i in (0, 2) for n in ("weight", "bias"))]
    inner = np.tanh(own["embedding.weight"] @ own["transform.0.weight"].T + own["transform.0.bias"])
    expected = inner @ own["transform.2.weight"].T + own["transform.2.bias"]
    np.testing.assert_allclose(p.adapters["default"].table().data, expected, rtol=1e-5, atol=1e-6)


def test_every_position_sees_the_prefix_and_is_counted_from_k() -> None:
    p = stirred(get_peft_model(gpt("gpt2"), PrefixTuningConfig(4)))
    context = ForwardContext()
    changed = np.abs(logits(p, context=context) - logits(gpt("gpt2"))).max(axis=(0, 2))
    assert (changed > 1e-3).all() and context.position_ids.min() == 4
    with pytest.raises(ValueError, match="needs 25 positions"):
        logits(get_peft_model(gpt("gpt2"), PrefixTuningConfig(17)))


def test_each_row_has_its_own_prefix() -> None:
    p = get_peft_model(gpt("llama"), TEXT, "words")
    p.add_adapter("random", PrefixTuningConfig(5), seed=3)
    mixed = logits(p, attention_mask=MASK, adapter_names=["random", "words", "__base__"])
    for row, name in enumerate(["random", "words"]):
        p.set_adapter(name)
        np.testing.assert_allclose(mixed[row], logits(p, attention_mask=MASK)[row], **TIGHT)
    np.testing.assert_allclose(mixed[2], logits(gpt("llama"), attention_mask=MASK)[2], **TIGHT)


# -- what is refused -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_virtual_tokens": 0}, "num_virtual_tokens must be a whole number of at least 1"),
        (
            {"prefix_projection": True, "encoder_hidden_size": 0},
            "encoder_hidden_size must be a whole number of at least 1",
        ),
        ({"init_weights": "ones"}, 'init_weights=\'ones\': expected None, "zero" or "text"'),
        ({"init_weights": "text"}, "needs init_text or init_ids"),
        ({"init_ids": [1]}, "only it does; got init_weights=None"),
        ({"init_weights": "text", "init_ids": 5}, "init_ids must be a list of token ids, got 5"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        PrefixTuningConfig(**settings)


def test_a_prefix_that_leaves_no_position_is_refused() -> None:
    with pytest.raises(ValueError, match="num_virtual_tokens=30 leaves no position for a token: at most 23"):
        get_peft_model(gpt("gpt2"), PrefixTuningConfig(30))


# -- peft's file -----------------------------------------------------------------------------------------------
def test_peft_s_file_holds_the_table_and_beside_it_the_network(tmp_path) -> None:
    p = stirred(get_peft_model(gpt("llama"), PROJECTED))
    p.save_pretrained(tmp_path)
    arrays, settings = read_arrays(tmp_path / "adapter_model.safetensors"), read_json(tmp_path / "adapter_config.json")
    table = arrays.pop("prompt_embeddings")
    np.testing.assert_array_equal(table, p.adapters["default"].table().data)
    assert arrays.keys() == p.adapters["default"].named_parameters().keys()
    assert (settings["token_dim"], settings["num_attention_heads"], settings["num_layers"]) == (16, 2, 2)
    assert settings["prefix_projection"] is True and settings["encoder_hidden_size"] == 5


def test_a_file_without_the_network_becomes_the_table_itself_and_trains(tmp_path) -> None:
    p = stirred(get_peft_model(gpt("llama"), PROJECTED))
    p.save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    write_arrays(path, {"prompt_embeddings": read_arrays(path)["prompt_embeddings"]})  # as peft writes it
    again = PeftModel.from_pretrained(gpt("llama"), tmp_path, is_trainable=True)
    assert not again.adapters["default"].config.prefix_projection
    assert again.trainable_parameters().keys() == {"prompt_encoder.embedding.weight.default"}
    np.testing.assert_allclose(logits(again), logits(p), rtol=1e-6, atol=1e-6)
    before = loss(again)
    train(again, optimizer_of(again, lr=3e-2), range(5))
    assert loss(again) < before - 0.01


def test_training_goes_on_from_peft_s_file_as_if_it_had_not_been_saved(tmp_path) -> None:
    p = stirred(get_peft_model(gpt("llama"), PROJECTED))
    p.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(gpt("llama"), tmp_path, is_trainable=True)
    for model in (p, again):
        train(model, optimizer_of(model), range(3))
    assert {n: q.data.tobytes() for n, q in p.named_parameters()} == {
        n: q.data.tobytes() for n, q in again.named_parameters()
    }


def test_a_network_that_does_not_make_the_table_beside_it_is_refused(tmp_path) -> None:
    stirred(get_peft_model(gpt("llama"), PROJECTED)).save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    arrays = read_arrays(path)
    write_arrays(path, arrays | {"prompt_embeddings": arrays["prompt_embeddings"] + 0.1})
    with pytest.raises(
        FileFormatError, match=r"is not what the encoder in prompt_encoder.\* makes; remove the tensors"
    ):
        PeftModel.from_pretrained(gpt("llama"), tmp_path)


def test_heads_of_another_model_are_refused_where_the_table_has_the_same_width(tmp_path) -> None:
    get_peft_model(gpt("llama"), PrefixTuningConfig(2)).save_pretrained(tmp_path)
    settings = read_json(tmp_path / "adapter_config.json")
    write_json(tmp_path / "adapter_config.json", settings | {"num_attention_heads": 4})
    with pytest.raises(FileFormatError, match="num_attention_heads=4, for this model it is 2"):
        PeftModel.from_pretrained(gpt("llama"), tmp_path)
