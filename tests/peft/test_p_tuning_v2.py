"""P-tuning v2: prefix tuning's prompts, their dropout, the file that peft knows, and a head that learns with them."""

from __future__ import annotations

import numpy as np
import pytest
from peft_cases import IDS, gpt, logits, stirred

from minitorch_peft.autograd.tensor import no_grad
from minitorch_peft.data import LabelledVerses, Tokenizer, load_corpus
from minitorch_peft.formats.files import read_arrays, read_json
from minitorch_peft.models import GPT, SequenceClassifier
from minitorch_peft.nn import ForwardContext
from minitorch_peft.peft import PeftModel, PrefixTuningConfig, PTuningV2Config, get_peft_model
from minitorch_peft.training import TrainConfig, train

FORMS = {"table": {}, "network": {"prefix_projection": True, "encoder_hidden_size": 5}}


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("form", FORMS)
def test_without_dropout_it_is_prefix_tuning(form, family):
    v2 = get_peft_model(gpt(family), PTuningV2Config(3, **FORMS[form]))
    prefix = get_peft_model(gpt(family), PrefixTuningConfig(3, **FORMS[form]))
    assert v2.trainable_parameters().keys() == prefix.trainable_parameters().keys()
    np.testing.assert_array_equal(logits(v2), logits(prefix))


def test_there_is_no_network_unless_asked_for():
    assert list(get_peft_model(gpt("gpt2"), PTuningV2Config(3)).adapters["default"].named_parameters()) == [
        "prompt_encoder.embedding.weight"
    ]


def test_dropout_falls_on_the_prompt_in_training_and_is_repeated():
    p = stirred(get_peft_model(gpt("gpt2"), PTuningV2Config(3, prefix_dropout=0.5)))
    quiet = logits(p)
    adapter = p.train().adapters["default"]

    def step(i):
        with no_grad():
            out = p(IDS, context=ForwardContext(seed=1, step=i)).logits.data
            return out, adapter.table().data

    (first, table), (again, same), (other, _) = step(1), step(1), step(2)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(table, same)
    assert np.abs(first - other).max() > 1e-3 and np.abs(first - quiet).max() > 1e-3
    whole = adapter.parts["prompt_encoder"]().data
    kept = table != 0
    assert 0.3 < kept.mean() < 0.7
    np.testing.assert_allclose(table[kept], 2 * whole[kept], rtol=1e-6)
    np.testing.assert_array_equal(logits(p.eval()), quiet)


def test_two_adapters_drop_different_values():
    p = get_peft_model(gpt("gpt2"), PTuningV2Config(3, prefix_dropout=0.5))
    p.add_adapter("second", PTuningV2Config(3, prefix_dropout=0.5))
    p.train()
    with no_grad():
        p(IDS, adapter_names=["default", "second", "default"], context=ForwardContext(seed=1, step=1))
        zeros = [p.adapters[name].table().data == 0 for name in ("default", "second")]
    assert (zeros[0] != zeros[1]).mean() > 0.3


@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_a_dropout_that_leaves_nothing_is_refused(value):
    with pytest.raises(ValueError, match=r"prefix_dropout must be in \[0, 1\)"):
        PTuningV2Config(3, prefix_dropout=value)


def test_peft_s_file_is_prefix_tuning_s_and_ours_keeps_the_method(tmp_path):
    p = stirred(get_peft_model(gpt("gpt2"), PTuningV2Config(3, prefix_dropout=0.1)))
    assert p.save_pretrained(tmp_path / "peft") == "peft"
    assert read_json(tmp_path / "peft" / "adapter_config.json")["peft_type"] == "PREFIX_TUNING"
    assert list(read_arrays(tmp_path / "peft" / "adapter_model.safetensors")) == ["prompt_embeddings"]
    p.save_pretrained(tmp_path / "native", format="native")
    for format in ("peft", "native"):
        again = PeftModel.from_pretrained(gpt("gpt2"), tmp_path / format)
        assert again.adapters["default"].config == PTuningV2Config(3, prefix_dropout=0.1)
        np.testing.assert_array_equal(logits(again), logits(p))


# -- learning --------------------------------------------------------------------------------------------------
TRANSLATIONS = ("web", "kjv", "tyn", "wyc", "ylt")


@pytest.mark.slow
def test_with_prompts_a_head_tells_translations_apart_that_it_does_not_alone():
    """Verses of held-out books, five classes; chance is 20 %."""
    tokenizer = Tokenizer.shipped()
    verses = {
        split: LabelledVerses.from_corpora([load_corpus(n).split(split) for n in TRANSLATIONS], tokenizer, 64)
        for split in ("train", "held_out")
    }

    def accuracy(model, lr):
        classifier = SequenceClassifier(model, len(TRANSLATIONS))
        train(classifier, lambda i: verses["train"].batch(i, 20), TrainConfig(steps=200, lr=lr, warmup=10))
        classifier.eval()
        right = []
        with no_grad():
            for batch in list(verses["held_out"].batches(50))[:8]:
                y = batch.pop("labels")
                right.append((classifier(**batch).logits.data.argmax(-1) == y).mean())
        return np.mean(right)

    alone = max(accuracy(PeftModel(GPT.from_pretrained("tiny")), lr) for lr in (1e-2, 3e-2, 1e-1))
    prompted = accuracy(get_peft_model(GPT.from_pretrained("tiny"), PTuningV2Config(8)), 5e-2)
    assert alone > 0.4
    assert prompted > alone + 0.05, (prompted, alone)
