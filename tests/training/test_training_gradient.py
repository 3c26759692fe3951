"""The gradient of a step: the objective, and what accumulation adds up."""

from __future__ import annotations

import numpy as np
import pytest
from training_cases import T, V, batch, new_model

import minitorch_peft as mp
import minitorch_peft.functional as F
from minitorch_peft.nn import ForwardContext
from minitorch_peft.peft import LoraConfig, get_peft_model
from minitorch_peft.training import TrainingError
from minitorch_peft.training.accumulate import accumulate


def gradient_of(model, source, micro_steps, seed=0):
    model.zero_grad()
    loss = accumulate(model, source, micro_steps, list(model.parameters()), seed)
    return loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def joined(*batches):
    return {key: np.concatenate([b[key] for b in batches]) for key in batches[0]}


# -- the objective: max Σ log P(y_t | x, y_<t) ---------------------------------------------------------------
def test_the_gradient_is_that_of_the_conditional_log_probability_of_the_answer():
    """Held against the sum written out: log P(y_t | x, y_<t) for t in the answer, nothing for the prompt x."""
    model, one = new_model(np.float64, dropout=0), batch(0)
    loss, gradients = gradient_of(model, lambda i: one, range(1))
    model.zero_grad()
    log_p = F.log_softmax(model(one["input_ids"]).logits, -1)
    rows, positions = np.nonzero(one["labels"][:, 1:] != -100)
    answer = log_p[rows, positions, one["input_ids"][:, 1:][rows, positions]]
    (-answer.sum() / len(rows)).backward()
    assert loss.tokens == len(rows) < one["labels"].size - len(one["labels"])
    assert loss.loss == pytest.approx(-answer.sum().item() / len(rows), rel=1e-12)
    for name, p in model.named_parameters():
        np.testing.assert_allclose(gradients[name], p.grad, rtol=1e-9, atol=1e-14, err_msg=name)


def test_no_gradient_comes_from_predicting_the_prompt():
    """Zero at the logits of every position whose next token belongs to the prompt."""
    model, one = new_model(np.float64, dropout=0), batch(0)
    logits = mp.tensor(model(one["input_ids"]).logits.data, requires_grad=True)
    targets = np.pad(one["labels"][:, 1:], ((0, 0), (0, 1)), constant_values=-100)
    F.cross_entropy(logits.reshape(-1, V), targets.reshape(-1)).backward()
    seen = np.abs(logits.grad).sum(-1) > 0
    assert (seen == (targets != -100)).all() and not seen.all()


def test_the_prompt_is_read_and_the_answer_after_it_counts():
    model, one = new_model(np.float64, dropout=0), batch(0)
    other = dict(one, input_ids=one["input_ids"].copy())
    other["input_ids"][:, 0] = (other["input_ids"][:, 0] + 1) % V
    _, first = gradient_of(model, lambda i: one, range(1))
    _, second = gradient_of(model, lambda i: other, range(1))
    assert not np.allclose(first["blocks.0.attn.v_proj.weight"], second["blocks.0.attn.v_proj.weight"])


# -- accumulation --------------------------------------------------------------------------------------------
def test_several_batches_are_one_large_batch_however_many_labels_each_has():
    model = new_model(np.float64, dropout=0)
    parts = [batch(0, rows=1), batch(1, rows=4), batch(2, rows=2)]
    assert len({(p["labels"][:, 1:] != -100).sum() for p in parts}) == 3
    loss, gradients = gradient_of(model, parts.__getitem__, range(3))
    whole, expected = gradient_of(model, lambda i: joined(*parts), range(1))
    assert loss.tokens == whole.tokens
    assert loss.loss == pytest.approx(whole.loss, rel=1e-12)
    for name, g in gradients.items():
        np.testing.assert_allclose(g, expected[name], rtol=1e-9, atol=1e-15, err_msg=name)


def test_a_batch_without_labels_weighs_nothing():
    model, one = new_model(np.float64, dropout=0), batch(0)
    empty = dict(one, labels=np.full_like(one["labels"], -100))
    loss, gradients = gradient_of(model, [one, empty].__getitem__, range(2))
    expected, alone = gradient_of(model, lambda i: one, range(1))
    assert loss.nats == pytest.approx(expected.nats)
    for name, g in gradients.items():
        np.testing.assert_allclose(g, alone[name], rtol=1e-9, atol=1e-15)
    with pytest.raises(TrainingError, match="no label in any batch"):
        gradient_of(model, lambda i: empty, range(2))


def test_labels_count_as_the_model_counts_them_with_a_prompt_before_the_input():
    """The last prompt vector predicts the first token, so one more label counts in each row."""
    model, ids = new_model(np.float64, dropout=0), batch(0)["input_ids"]
    out = model(ids, labels=ids)
    assert out.num_targets == ids.shape[0] * (T - 1)
    vectors = model.eval().embed.tokens(ids)
    h = model.encode(F.cat([vectors[:, :1], vectors], dim=1), ForwardContext())
    assert model.predict(h, T, ids, ForwardContext())[2] == ids.size


def test_dropout_differs_between_batches_and_repeats_with_the_step():
    model, one = new_model(dropout=0.5), batch(0)
    _, first = gradient_of(model, lambda i: one, range(1))
    _, again = gradient_of(model, lambda i: one, range(1))
    _, later = gradient_of(model, lambda i: one, range(1, 2))
    _, seeded = gradient_of(model, lambda i: one, range(1), seed=1)
    name = "blocks.1.mlp.up_proj.weight"
    assert (first[name] == again[name]).all()
    assert (first[name] != later[name]).any() and (first[name] != seeded[name]).any()


class WithPenalty:
    """A model with λ Σ b² of its final bias as penalty."""

    def __init__(self, model, weight=0.25):
        self.model, self.weight = model, weight

    def __call__(self, *args, **kwargs):
        return self.model(*args, **kwargs)

    def penalty(self):
        bias = self.model.ln_f.bias
        return (bias * bias).sum() * self.weight

    def parameters(self):
        return self.model.parameters()

    def named_parameters(self):
        return self.model.named_parameters()

    def zero_grad(self):
        self.model.zero_grad()


@pytest.mark.parametrize("batches", [1, 3])
def test_a_penalty_counts_once_whatever_the_accumulation(batches):
    model = new_model(np.float64, dropout=0)
    model.ln_f.bias.data[...] = np.arange(16)
    parts = [batch(i, rows=i + 1) for i in range(batches)]
    _, plain = gradient_of(model, parts.__getitem__, range(batches))
    loss, gradients = gradient_of(WithPenalty(model), parts.__getitem__, range(batches))
    np.testing.assert_allclose(gradients["ln_f.bias"] - plain["ln_f.bias"], 0.5 * np.arange(16), atol=1e-10)
    assert loss.penalty == pytest.approx(0.25 * (np.arange(16) ** 2).sum())
    assert loss.loss == pytest.approx(gradient_of(model, parts.__getitem__, range(batches))[0].loss)


def test_frozen_parameters_get_no_gradient():
    model = get_peft_model(new_model(), LoraConfig(r=2, target_modules=["q_proj"]))
    _, gradients = gradient_of(model, batch, range(2))
    assert gradients and all(".lora_" in name for name in gradients)
