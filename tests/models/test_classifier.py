"""The sequence classifier: what it pools, what it refuses, its gradients."""

from __future__ import annotations

import numpy as np
import pytest

import minitorch_peft as mp
from minitorch_peft.models import GPT, SequenceClassifier


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_padding_changes_nothing(model, ids, pooling, side):
    classifier = SequenceClassifier(model, 5, pooling)
    lengths = np.array([7, 4, 1])[:, None]
    mask = np.arange(7) >= 7 - lengths if side == "left" else np.arange(7) < lengths
    out = classifier(np.where(mask, ids, 2), attention_mask=mask).logits.data
    assert out.shape == (3, 5)
    for row in range(3):
        alone = classifier(ids[row : row + 1, mask[row]]).logits.data
        np.testing.assert_allclose(out[row], alone[0], rtol=1e-5, atol=1e-5)


def test_the_vector_that_is_scored(model, ids):
    h = model(ids, output_hidden_states=True).hidden_states[-1].data
    last, mean = SequenceClassifier(model, 3), SequenceClassifier(model, 3, "mean")
    np.testing.assert_allclose(last(ids).logits.data, h[:, -1] @ last.score.weight.data.T, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mean(ids).logits.data, h.mean(1) @ mean.score.weight.data.T, rtol=1e-5, atol=1e-6)


def test_the_loss_is_the_mean_cross_entropy(model, ids):
    classifier = SequenceClassifier(model, 4)
    out = classifier(ids, labels=[0, 3, 3])
    z = out.logits.data.astype(np.float64)
    expected = (np.log(np.exp(z).sum(1)) - z[np.arange(3), [0, 3, 3]]).mean()
    np.testing.assert_allclose(out.loss.item(), expected, rtol=1e-5)
    assert out.num_targets == 3 and classifier(ids).loss is None


def test_the_head_has_huggingfaces_name_and_its_own_seed(model):
    a, b = SequenceClassifier(model, 2, seed=1), SequenceClassifier(model, 2, seed=2)
    assert {n for n, _ in a.named_parameters()} == {f"model.{n}" for n in model.state_dict()} | {"score.weight"}
    assert not np.array_equal(a.score.weight.data, b.score.weight.data)
    assert np.array_equal(a.score.weight.data, SequenceClassifier(GPT(model.config), 2, seed=1).score.weight.data)


def test_the_head_is_of_the_model_s_dtype(model):
    plain = SequenceClassifier(model, 3).score.weight.data
    head = SequenceClassifier(GPT(model.config).astype(np.float64), 3).score.weight.data
    assert (plain.dtype, head.dtype) == (np.float32, np.float64)
    np.testing.assert_array_equal(head, plain)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_gradients(model, ids, pooling):
    classifier = SequenceClassifier(model, 3, pooling).astype(np.float64)
    mask = np.arange(7) >= np.array([0, 3, 6])[:, None]
    some = {n: p for n, p in classifier.named_parameters() if "score" in n or "ln_f" in n or "0.attn.v" in n}
    assert mp.gradcheck(lambda: classifier(ids, labels=[0, 2, 1], attention_mask=mask).loss, (), parameters=some)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": [0, 1]}, r"labels must be 3 integers in \[0, 4\), got \[0, 1\]"),
        ({"labels": [0, 1, 4]}, r"got \[0, 1, 4\]"),
        ({"labels": [0, 1, -1]}, r"got \[0, 1, -1\]"),
        ({"labels": [0.0, 1.0, 2.0]}, "labels must be 3 integers"),
        ({"attention_mask": np.ones((3, 6), int)}, r"shape \(3, 6\), expected that of input_ids, \(3, 7\)"),
        ({"attention_mask": np.arange(3)[:, None] < np.ones(7)}, "hides every token"),
        ({"input_ids": [[31]]}, "vocabulary is 0..30"),
    ],
)
def test_bad_inputs_are_refused(model, ids, arguments, message):
    with pytest.raises(ValueError, match=message):
        SequenceClassifier(model, 4)(**({"input_ids": ids} | arguments))


def test_bad_heads_are_refused(model):
    with pytest.raises(ValueError, match="pooling='max': expected one of"):
        SequenceClassifier(model, 4, pooling="max")
    with pytest.raises(ValueError, match="num_labels must be at least 1, got 0"):
        SequenceClassifier(model, 0)
