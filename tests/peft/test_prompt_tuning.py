"""Prompt tuning: where the vectors start, where they stand, what is refused; and encoders of prompts in general."""

from __future__ import annotations

import numpy as np
import pytest
from peft_cases import IDS, MASK, TIGHT, gpt, logits, loss, snapshot, stirred

from minitorch_peft.autograd.tensor import Tensor, no_grad
from minitorch_peft.data.tokenizer import Tokenizer
from minitorch_peft.formats.files import FileFormatError, read_arrays, read_json, write_arrays, write_json
from minitorch_peft.models import GPT, GPTConfig
from minitorch_peft.peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model

WORDS = [5, 6, 7, 5]


def vectors(p, name="default"):
    return p.adapters[name].named_parameters()["prompt_encoder.embedding.weight"].data


# -- where they start ------------------------------------------------------------------------------------------
def test_text_starts_at_the_words_repeated_and_cut() -> None:
    base = gpt("gpt2")
    table = base.embed.tokens.weight.data
    for k, expected in ((4, [5, 6, 7, 5]), (2, [5, 6]), (3, [5, 6, 7])):
        config = PromptTuningConfig(k, "TEXT", prompt_tuning_init_ids=[5, 6, 7])
        p = get_peft_model(gpt("gpt2"), config)
        np.testing.assert_array_equal(vectors(p), table[expected])
        assert p.adapters["default"].config.prompt_tuning_init_ids == expected
        assert config.prompt_tuning_init_ids == [5, 6, 7]  # the caller's own


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_at_the_start_a_prompt_of_words_is_those_words(family) -> None:
    base = gpt(family)
    together = np.concatenate([np.tile(WORDS, (3, 1)), IDS], axis=1)
    expected = logits(base, together)[:, 4:]
    p = get_peft_model(base, PromptTuningConfig(4, "TEXT", prompt_tuning_init_ids=WORDS))
    np.testing.assert_allclose(logits(p), expected, **TIGHT)
    labels = np.concatenate([np.full((3, 4), -100), IDS], axis=1)
    with no_grad():
        loss_of_words = gpt(family)(together, labels=labels).loss.item()  # the first token of IDS is predicted too
    assert loss(p) == pytest.approx(loss_of_words, rel=1e-6)


def test_text_is_encoded_with_the_shipped_tokenizer_or_the_one_named(tmp_path) -> None:
    base = GPT(GPTConfig(vocab_size=1024, n_positions=32, n_embd=8, n_layer=1, n_head=2))
    text = "modern or old"
    ids = Tokenizer.shipped().encode(text)
    config = PromptTuningConfig(len(ids), "TEXT", prompt_tuning_init_text=text)
    p = get_peft_model(base, config)
    np.testing.assert_array_equal(vectors(p), base.embed.tokens.weight.data[ids])
    p.unload()
    Tokenizer.shipped().save_pretrained(tmp_path / "tokenizer")
    named = PromptTuningConfig(len(ids), "TEXT", text, tokenizer_name_or_path=str(tmp_path / "tokenizer"))
    p = get_peft_model(base, named)
    np.testing.assert_array_equal(vectors(p), base.embed.tokens.weight.data[ids])
    p.save_pretrained(tmp_path / "adapter", format="native")
    p.unload()
    (tmp_path / "tokenizer" / "tokenizer.json").unlink()  # loading needs it no more
    again = PeftModel.from_pretrained(base, tmp_path / "adapter")
    np.testing.assert_array_equal(vectors(again), base.embed.tokens.weight.data[ids])


def test_sampled_rows_are_words_that_the_seed_draws() -> None:
    config = PromptTuningConfig(12, "SAMPLE_VOCAB")
    table = gpt("gpt2").embed.tokens.weight.data
    first, second, other = (vectors(get_peft_model(gpt("gpt2"), config, seed=s)) for s in (0, 0, 1))
    assert {row.tobytes() for row in first} <= {row.tobytes() for row in table}
    assert len({row.tobytes() for row in first}) > 6
    assert np.array_equal(first, second) and not np.array_equal(first, other)


def test_words_are_the_base_s_whatever_is_wrapped_around_its_embedding() -> None:
    p = stirred(get_peft_model(gpt("gpt2"), LoraConfig(r=2, target_modules=["embed.tokens"])))
    p.add_adapter("prompt", PromptTuningConfig(4, "TEXT", prompt_tuning_init_ids=WORDS))
    np.testing.assert_array_equal(vectors(p, "prompt"), gpt("gpt2").embed.tokens.weight.data[WORDS])


def test_random_vectors_are_peft_s_normal_ones() -> None:
    base = GPT(GPTConfig(vocab_size=7, n_positions=200, n_embd=64, n_layer=1, n_head=2))
    table = vectors(get_peft_model(base, PromptTuningConfig(100)))
    assert abs(table.mean()) < 0.05 and abs(table.std() - 1) < 0.05


# -- where they stand ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_prompt_is_inputs_embeds_before_the_input(family) -> None:
    p = stirred(get_peft_model(gpt(family), PromptTuningConfig(3)))
    base = gpt(family)
    with no_grad():
        words = base.embed.tokens(IDS).data
        together = np.concatenate([np.tile(vectors(p), (3, 1, 1)), words], axis=1)
        expected = base(inputs_embeds=Tensor(together)).logits.data[:, 3:]
    np.testing.assert_allclose(logits(p), expected, **TIGHT)


def test_every_row_has_the_prompt_of_its_own_adapter_and_length() -> None:
    p = get_peft_model(gpt("llama"), PromptTuningConfig(2), "short", seed=1)
    p.add_adapter("long", PromptTuningConfig(5), seed=2)
    mixed = logits(p, attention_mask=MASK, adapter_names=["long", "short", "__base__"])
    for row, name in enumerate(["long", "short"]):
        p.set_adapter(name)
        np.testing.assert_allclose(mixed[row], logits(p, attention_mask=MASK)[row], **TIGHT)
    np.testing.assert_allclose(mixed[2], logits(gpt("llama"), attention_mask=MASK)[2], **TIGHT)


# -- what is refused -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_virtual_tokens": 0}, "num_virtual_tokens must be a whole number of at least 1, got 0"),
        ({"num_virtual_tokens": 2.0}, "must be a whole number"),
        ({"prompt_tuning_init": "WORDS"}, "'WORDS': expected one of RANDOM, SAMPLE_VOCAB, TEXT"),
        ({"prompt_tuning_init": "TEXT", "prompt_tuning_init_ids": ["good"]}, "must be a list of token ids"),
        ({"prompt_tuning_init": "TEXT"}, "needs prompt_tuning_init_text or prompt_tuning_init_ids"),
        ({"prompt_tuning_init_text": "good or bad"}, "and only it does; got prompt_tuning_init='RANDOM'"),
        ({"prompt_tuning_init": "SAMPLE_VOCAB", "prompt_tuning_init_ids": [1]}, "only it does"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        PromptTuningConfig(**settings)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (PromptTuningConfig(24), "num_virtual_tokens=24 leaves no position for a token: at most 23"),
        (PromptTuningConfig(2, "TEXT", prompt_tuning_init_ids=[29]), "29, the model's vocabulary is 0..28"),
        (PromptTuningConfig(2, "TEXT", prompt_tuning_init_text="hello"), "was the text encoded with this model's"),
        (PromptTuningConfig(2, "TEXT", prompt_tuning_init_text=""), "the text '' has no tokens"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_and_changes_nothing(config, message) -> None:
    base = gpt("gpt2")
    before = snapshot(base)
    with pytest.raises(ValueError, match=message):
        get_peft_model(base, config)
    assert snapshot(base) == before


def test_a_prompt_takes_positions_from_the_text() -> None:
    p = get_peft_model(gpt("gpt2"), PromptTuningConfig(17))
    with pytest.raises(ValueError, match="needs 25 positions, the model has 24: shorten the input, the prompt"):
        logits(p)


# -- peft's file -----------------------------------------------------------------------------------------------
def saved(tmp_path, config=None):
    p = stirred(get_peft_model(gpt("gpt2"), config or PromptTuningConfig(3)))
    p.save_pretrained(tmp_path)
    return p


def test_peft_s_file_is_the_table_and_what_peft_asks_of_the_model(tmp_path) -> None:
    p = saved(tmp_path, PromptTuningConfig(4, "TEXT", prompt_tuning_init_ids=WORDS))
    arrays, settings = read_arrays(tmp_path / "adapter_model.safetensors"), read_json(tmp_path / "adapter_config.json")
    assert list(arrays) == ["prompt_embeddings"] and np.array_equal(arrays["prompt_embeddings"], vectors(p))
    assert settings == {
        "peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "base_model_name_or_path": None, "inference_mode": True,
        "num_virtual_tokens": 4, "num_layers": 2, "num_attention_heads": 4, "token_dim": 32,
        "num_transformer_submodules": 1, "prompt_tuning_init": "RANDOM",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_dim": 64}, "token_dim=64, for this model it is 32; load it into the model that it was trained on"),
        ({"num_layers": 3}, "num_layers=3, for this model it is 2"),
        ({"num_transformer_submodules": 2}, "num_transformer_submodules=2"),
        ({"num_virtual_tokens": None}, "has no num_virtual_tokens"),
        ({"num_virtual_tokens": "3"}, "num_virtual_tokens='3' is not understood"),
        ({"num_virtual_tokens": 4}, r"prompt_embeddings has shape \(3, 32\), .* make it \(4, 32\)"),
        ({"prompt_tuning_init": "WORDS"}, "'WORDS': expected one of"),
        ({"modules_to_save": ["lm_head"]}, r"no counterpart here: modules_to_save=\['lm_head'\]"),
    ],
)
def test_a_file_of_another_model_or_that_asks_for_more_is_refused(change, message, tmp_path) -> None:
    saved(tmp_path)
    settings = read_json(tmp_path / "adapter_config.json")
    write_json(tmp_path / "adapter_config.json", settings | change)
    with pytest.raises(FileFormatError, match=message):
        PeftModel.from_pretrained(gpt("gpt2"), tmp_path)


def test_a_file_without_the_table_or_with_more_is_refused(tmp_path) -> None:
    saved(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    arrays = read_arrays(path)
    for wrong in ({"prompt_embedding": arrays["prompt_embeddings"]}, arrays | {"extra": np.ones(2, "f")}):
        write_arrays(path, wrong)
        with pytest.raises(FileFormatError, match=r"the model expects .* the file has instead"):
            PeftModel.from_pretrained(gpt("gpt2"), tmp_path)
