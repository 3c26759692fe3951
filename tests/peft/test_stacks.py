"""Stacks: a task adapter on a dialect adapter, the lower one frozen and exchangeable (MAD-X, Pfeiffer et al. 2020)."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from peft_cases import IDS, gpt, logits, loss, optimizer_of, stirred, train

from minitorch_peft.autograd.tensor import Tensor, no_grad
from minitorch_peft.data import Corpus, PackedText, Pairs, Tokenizer, load_corpus
from minitorch_peft.models import GPT
from minitorch_peft.nn import ForwardContext
from minitorch_peft.peft import DoubleSeqBnConfig, ParBnConfig, PeftModel, SeqBnConfig, get_peft_model
from minitorch_peft.training import TrainConfig
from minitorch_peft.training import train as train_for

DIALECTS = ("dialect_1395", "dialect_1525")
SEQUENTIAL, PARALLEL = SeqBnConfig(bottleneck_size=4), ParBnConfig(bottleneck_size=4)


def model(dialect=SEQUENTIAL, task=SEQUENTIAL):
    """Two dialect adapters that matter, and one for a task that does too."""
    p = PeftModel(gpt("gpt2"))
    for seed, (name, config) in enumerate([*((d, dialect) for d in DIALECTS), ("task", task)]):
        p.add_adapter(name, config, seed=seed)
        stirred(p, name, scale=0.2 + 0.1 * seed)
    return p.eval()


def layer(p, name, path="blocks.1.mlp"):
    return p.adapters[name].wrappers[path]


def bits(p, name):
    return {path: q.data.tobytes() for path, q in p.adapters[name].named_parameters().items()}


# -- what a stack computes -----------------------------------------------------------------------------------------
def test_the_upper_one_reads_what_the_lower_one_makes():
    p = model()
    p.set_adapter(["dialect_1395", "task"], train="task")
    x = Tensor(np.random.default_rng(0).standard_normal((2, 3, 32)).astype(np.float32))
    with no_grad():
        h = p.base_model.blocks[1].mlp.base(x, ForwardContext())
        h = layer(p, "dialect_1395").added(h, h)
        expected = layer(p, "task").added(h, h)
        got = p.base_model.blocks[1].mlp(x, ForwardContext())
    np.testing.assert_array_equal(got.data, expected.data)


@pytest.mark.parametrize("config", [SEQUENTIAL, DoubleSeqBnConfig(bottleneck_size=4)])
def test_the_order_is_the_one_that_was_said_not_the_one_of_adding(config):
    p = model(config, config)
    p.set_adapter(["task", "dialect_1395"])
    task_inside = logits(p)
    p.set_adapter(["dialect_1395", "task"])
    assert np.abs(logits(p) - task_inside).max() > 1e-3
    assert layer(p, "task").base_layer is not layer(p, "task").base  # the dialect's stands inside of it
    other = PeftModel(gpt("gpt2")).eval()
    for name in ("task", "dialect_1395"):
        other.add_adapter(name, config)
        for path, q in other.adapters[name].named_parameters().items():
            q.data[...] = p.adapters[name].named_parameters()[path].data
    other.set_adapter(["dialect_1395", "task"])
    np.testing.assert_array_equal(logits(other), logits(p))


def test_parallel_ones_all_read_the_same():
    p = model(PARALLEL, PARALLEL)
    p.set_adapter(["dialect_1395", "task"])
    inside = logits(p)
    p.set_adapter(["task", "dialect_1395"])
    np.testing.assert_allclose(logits(p), inside, rtol=1e-4, atol=1e-5)


# -- the lower one is frozen and exchangeable ---------------------------------------------------------------------
@pytest.mark.parametrize("dialect, task", [(SEQUENTIAL, SEQUENTIAL), (PARALLEL, SEQUENTIAL), (SEQUENTIAL, PARALLEL)])
def test_training_the_task_leaves_the_dialects_alone(dialect, task):
    p = model(dialect, task)
    p.set_adapter(["dialect_1395", "task"], train="task")
    assert {q.owner for q in p.trainable_parameters().values()} == {"task"}
    kept, before, task_bits = [bits(p, d) for d in DIALECTS], loss(p), bits(p, "task")
    p(IDS, labels=IDS).loss.backward()
    assert all((q.grad is None) == (q.owner != "task") for _, q in p.named_parameters())
    p.zero_grad()
    train(p, optimizer_of(p), range(5))
    assert loss(p) < before and bits(p, "task") != task_bits
    assert [bits(p, d) for d in DIALECTS] == kept


def test_exchanging_the_lower_one():
    p = model()
    p.set_adapter(["dialect_1395", "task"], train="task")
    first, task = logits(p), bits(p, "task")
    p.set_adapter(["dialect_1525", "task"], train=())
    second = logits(p)
    assert not p.trainable_parameters() and bits(p, "task") == task
    assert np.abs(second - first).max() > 1e-3
    p.delete_adapter("dialect_1395")
    np.testing.assert_array_equal(logits(p), second)
    p.set_adapter("task")
    assert np.abs(logits(p) - second).max() > 1e-3


def test_a_stack_is_saved_and_loaded_together(tmp_path):
    p = model()
    p.set_adapter(["dialect_1525", "dialect_1395"])
    p.set_adapter(["dialect_1395", "task"], train="task")
    p.save_pretrained(tmp_path, [*DIALECTS, "task"])
    again = PeftModel.from_pretrained(gpt("gpt2"), tmp_path)
    assert again.active_adapters == ("dialect_1395", "task")
    np.testing.assert_array_equal(logits(again), logits(p))
    for q in (p, again):
        q.set_adapter(["dialect_1525", "task"])
    np.testing.assert_array_equal(logits(again), logits(p))


def test_a_dialect_of_another_model_under_the_task(tmp_path):
    """The lower one may come from a file of its own."""
    p = model()
    p.set_adapter(["dialect_1525", "task"])
    p.save_pretrained(tmp_path, "dialect_1525")
    q = get_peft_model(gpt("gpt2"), SEQUENTIAL, "task")
    for path, parameter in q.adapters["task"].named_parameters().items():
        parameter.data[...] = p.adapters["task"].named_parameters()[path].data
    q.load_adapter(tmp_path, "dialect_1525")
    q.set_adapter(["dialect_1525", "task"], train="task")
    np.testing.assert_array_equal(logits(q.eval()), logits(p))


# -- on real text --------------------------------------------------------------------------------------------------
def scrambled(corpus):
    """Each verse with its words in an order that its number draws."""
    order = {verse: np.random.default_rng(verse).permutation(text.split()) for verse, text in corpus.verses.items()}
    return Corpus(f"{corpus.name}-scrambled", {verse: " ".join(words) for verse, words in order.items()})


def verses(translation, split, limit):
    corpus = load_corpus(translation).split(split)
    return Corpus(corpus.name, dict(list(corpus.comparable().verses.items())[:limit]))


def mean_loss(p, batches):
    with no_grad():
        losses = [p(b["input_ids"], labels=b["labels"], attention_mask=b.get("attention_mask")).loss for b in batches]
    return float(np.mean([loss.item() for loss in losses]))


@pytest.mark.slow
def test_a_task_learned_in_one_dialect_is_carried_to_another():
    """Unscrambling, learned on the English of 1395, then on that of 1525 with nothing but the lower adapter changed."""
    tokenizer, translations = Tokenizer.shipped(), dict(zip(DIALECTS, ("wyc", "tyn"), strict=True))
    corpora = {(d, s): verses(t, s, 3000) for d, t in translations.items() for s in ("train", "held_out")}
    text = {key: PackedText.from_corpus(corpus, tokenizer) for key, corpus in corpora.items()}
    tasks = {key: Pairs.from_corpora(scrambled(corpus), corpus, tokenizer, 64) for key, corpus in corpora.items()}
    config = TrainConfig(steps=30, lr=1e-2, warmup=5)

    p = PeftModel(GPT.from_pretrained("tiny-0.25m"))
    for seed, dialect in enumerate(DIALECTS):
        p.add_adapter(dialect, DoubleSeqBnConfig(bottleneck_size=16), seed=seed)
        p.set_adapter(dialect)
        train_for(p, partial(text[dialect, "train"].batch, batch_size=16, length=64), config)
    p.add_adapter("task", SeqBnConfig(bottleneck_size=16), seed=2)
    p.set_adapter(["dialect_1395", "task"], train="task")
    kept = [bits(p, d) for d in DIALECTS]
    train_for(p, partial(tasks["dialect_1395", "train"].batch, batch_size=16), config)
    assert [bits(p, d) for d in DIALECTS] == kept

    p.eval()
    reading, unscrambling = {}, {}
    for here in DIALECTS:
        windows = list(text[here, "held_out"].windows(16, 64, limit=4096))
        held_out = [tasks[here, "held_out"].batch(i, 16) for i in range(6)]
        for lower in DIALECTS:
            p.set_adapter(lower, train=())
            reading[here, lower] = mean_loss(p, windows)
            p.set_adapter([lower, "task"], train=())
            unscrambling[here, lower] = mean_loss(p, held_out)
        p.set_adapter("task", train=())
        unscrambling[here, None] = mean_loss(p, held_out)
    for here, other in (DIALECTS, DIALECTS[::-1]):
        assert reading[here, here] < reading[here, other] - 0.2, reading
        assert unscrambling[here, here] < unscrambling[here, other] - 0.15, unscrambling
        assert unscrambling[here, here] < unscrambling[here, None] - 0.15, unscrambling
