"""Gist tokens: what their mask hides, what a compressed prompt is worth, and what is reported of it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from peft_cases import TIGHT, gpt, logits, stirred

from minitorch_peft.analysis.gist import attention_flops, gist_report, share_kept
from minitorch_peft.data import Pairs, Tokenizer, load_corpus
from minitorch_peft.models import GPT
from minitorch_peft.peft import GistConfig, LoraConfig, PromptTuningConfig, get_peft_model
from minitorch_peft.peft.inject import Wrapper
from minitorch_peft.peft.input import gist
from minitorch_peft.peft.input.gist import compress, with_gists
from minitorch_peft.training import TrainConfig, train

FAMILIES = pytest.mark.parametrize("family", ["gpt2", "llama"])
A, B = 27, 1
PROMPT = np.array([[3, 4, 5, 6, 7], [8, 9, 10, 11, 12]])
GISTS = np.tile([A, B], (2, 1))
ANSWER = np.array([[13, 14, 15, 16], [17, 18, 19, 20]])
WHOLE = np.concatenate([PROMPT, GISTS, ANSWER], axis=1)


def adapted(family="gpt2", condition="gist", **settings):
    config = GistConfig(num_gist_tokens=2, gist_token_ids=[A, B], r=2, gist_condition=condition, **settings)
    return stirred(get_peft_model(gpt(family), config))


def mask(ids, condition="gist", new=None):
    ids = np.array([ids])
    return ~adapted(condition=condition).adapters["default"].hidden(ids, new or ids.shape[1])[0]


# -- the mask --------------------------------------------------------------------------------------------------
def test_the_paper_s_mask():
    """Figure 2 of the paper, without causality, which holds besides: prompt, gist, answer."""
    seen = mask([3, 4, A, B, 5, 6])
    assert seen[:4].all()  # the prompt and the gist tokens lose nothing
    assert seen[4:].tolist() == [[False, False, True, True, True, True]] * 2


def test_a_run_of_gist_tokens_ends_with_the_next_word_and_runs_add_up():
    seen = mask([3, A, 4, B, 5])
    assert seen[2].tolist() == [False, True, True, True, True]
    assert seen[3].tolist() == [False, True, True, True, True]  # the second run reads the first and its own words
    assert seen[4].tolist() == [False, True, False, True, True]


def test_vectors_of_prompts_count_as_words():
    assert mask([-1, -1, 3, A, 4])[4].tolist() == [False, False, False, True, True]


def test_the_mask_of_a_token_depends_on_no_later_one():
    ids = np.random.default_rng(0).choice([A, B, 3, 4], 30)
    whole = mask(ids)
    for n in range(1, 30):
        np.testing.assert_array_equal(mask(ids[:n]), whole[:n, :n])
        np.testing.assert_array_equal(mask(ids[:n], new=1)[0], whole[n - 1, :n])


def test_the_controls():
    ids = [3, 4, A, B, 5, 6]
    assert mask(ids, "pos_control").all()
    assert mask(ids, "neg_control")[4:].tolist() == [[False] * 4 + [True] * 2] * 2


@FAMILIES
def test_the_answer_does_not_see_the_prompt_but_through_the_gist(family):
    """With the gist's keys and values held, other words of the prompt change nothing."""
    p = adapted(family)
    before = logits(p, WHOLE)
    other = WHOLE.copy()
    other[:, 1] = 22
    assert np.abs(logits(p, other) - before)[:, 7:].max() > 1e-3  # through the gist it does see them
    cache = compress(p, PROMPT)
    again = p(ANSWER, past_key_values=cache.copy()).logits.data
    np.testing.assert_allclose(again, before[:, 7:], **TIGHT)


@FAMILIES
def test_without_a_gist_there_is_no_prompt(family):
    """The negative control: k = 0 keys to see, and the answer is as if it stood alone at its positions."""
    p = adapted(family, "neg_control")
    alone = p(ANSWER, position_ids=np.arange(7, 11)[None]).logits.data
    np.testing.assert_allclose(logits(p, WHOLE)[:, 7:], alone, **TIGHT)
    assert np.abs(logits(adapted(family), WHOLE)[:, 7:] - alone).max() > 1e-2


@FAMILIES
def test_the_positive_control_is_the_model_without_a_mask(family):
    p = adapted(family, "pos_control")
    plain = stirred(get_peft_model(gpt(family), LoraConfig(r=2)))
    for name, q in plain.adapters["default"].named_parameters().items():
        q.data[...] = p.adapters["default"].named_parameters()[name].data
    vectors = plain.base_model.embed.tokens.weight
    vectors.data[[A, B]] = p.adapters["default"].wrappers["embed.tokens"].vectors.data
    others = [i for i in range(29) if i not in (A, B)]  # a head tied to the embedding says something else of these
    np.testing.assert_allclose(logits(p, WHOLE)[..., others], logits(plain, WHOLE)[..., others], **TIGHT)


def test_rows_of_other_adapters_are_not_hidden_from():
    p = adapted()
    p.add_adapter("lora", LoraConfig(r=2), seed=1)
    stirred(p, "lora")
    mixed = logits(p, WHOLE, adapter_names=["default", "lora"])
    np.testing.assert_allclose(mixed[0], logits(p, WHOLE)[0], **TIGHT)
    p.set_adapter("lora")
    np.testing.assert_allclose(mixed[1], logits(p, WHOLE)[1], **TIGHT)


@FAMILIES
@pytest.mark.parametrize("square", [False, True], ids=["keys", "square"])
def test_a_masked_gist_token_closes_nothing(family, square):
    """A word that is masked is not there, be it a gist token; in later passes neither."""
    p = adapted(family)
    ids, keep = np.insert(WHOLE, 3, A, axis=1), np.arange(12)[None] != 3
    keep = np.repeat(keep, 2, axis=0)
    first = np.repeat(keep[:, None, None, :5], 5, axis=2) & np.tri(5, dtype=bool) if square else keep[:, :5]
    at = (
        [{"position_ids": np.array([[0, 1, 2, 2, 3]])}, {"position_ids": np.arange(4, 11)[None]}]
        if square
        else [{}, {}]
    )
    expected = logits(p, WHOLE)
    begun = p(ids[:, :5], attention_mask=first, use_cache=True, **at[0])
    np.testing.assert_allclose(begun.logits.data[:, [0, 1, 2, 4]], expected[:, :4], **TIGHT)
    later = p(ids[:, 5:], attention_mask=keep, past_key_values=begun.past_key_values, **at[1])
    np.testing.assert_allclose(later.logits.data, expected[:, 4:], **TIGHT)


@FAMILIES
def test_a_prompt_before_padding_is_not_closed_off(family):
    p = adapted(family)
    p.add_adapter("prompt", PromptTuningConfig(num_virtual_tokens=3))
    p.set_adapter(["default", "prompt"])
    padded, keep = np.concatenate([[[A, B]] * 2, WHOLE], axis=1), np.repeat([[False] * 2 + [True] * 11], 2, axis=0)
    np.testing.assert_allclose(logits(p, padded, attention_mask=keep)[:, 2:], logits(p, WHOLE), **TIGHT)


def test_an_attach_that_fails_leaves_no_wrapper_behind(monkeypatch):
    def broken(*arguments):
        raise RuntimeError("no room")

    base = gpt("gpt2")
    monkeypatch.setattr(gist.GistEmbedding, "__init__", broken)
    with pytest.raises(RuntimeError, match="no room"):
        get_peft_model(base, GistConfig(num_gist_tokens=2, gist_token_ids=[A, B]))
    assert not any(isinstance(m, Wrapper) for _, m in base.named_modules())


# -- the start -------------------------------------------------------------------------------------------------
def test_the_new_words_start_at_the_mean_of_the_vocabulary():
    base = gpt("gpt2")
    mean = base.embed.tokens.weight.data.mean(axis=0)
    p = get_peft_model(base, GistConfig(num_gist_tokens=2, gist_token_ids=[A, B]))
    own = p.adapters["default"].wrappers["embed.tokens"].vectors.data
    np.testing.assert_allclose(own, [mean, mean], rtol=1e-6, atol=1e-7)
    assert not np.allclose(base.embed.tokens.weight.data[A], mean, atol=1e-3)


# -- compression -----------------------------------------------------------------------------------------------
@FAMILIES
def test_generating_from_the_gist_is_generating_under_the_mask(family):
    p = adapted(family)
    cache = compress(p, PROMPT)
    assert cache.length == 2 and cache.next_position == 7
    assert {t.shape[2] for pair in cache.entries.values() for t in pair} == {2}
    whole = p.generate(WHOLE, max_new_tokens=6)[:, 7:]
    for _ in range(2):  # the cache is left as it is, so it can be used again
        assert np.array_equal(p.generate(ANSWER, max_new_tokens=6, past_key_values=cache), whole)
    other = p.generate(ANSWER, max_new_tokens=6, past_key_values=compress(p, PROMPT[::-1]))
    assert not np.array_equal(other, whole)


def test_compressing_leaves_training_mode_and_gradients_alone():
    p = adapted(lora_dropout=0.5).train()
    cache = compress(p, PROMPT)
    assert p.training and not any(t.requires_grad for pair in cache.entries.values() for t in pair)
    again = compress(p, PROMPT)
    np.testing.assert_array_equal(cache.entries[1][0].data, again.entries[1][0].data)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: compress(adapted(), WHOLE), r"the prompt holds gist tokens \(\[27, 1\]\) already"),
        (lambda: compress(adapted(condition="neg_control"), PROMPT), "the adapter is a control"),
        (lambda: compress(get_peft_model(gpt("gpt2"), LoraConfig()), PROMPT), "one gist adapter must act, there are 0"),
        (lambda: GistConfig(num_gist_tokens=0), "num_gist_tokens must be a whole number of at least 1, got 0"),
        (lambda: GistConfig(num_gist_tokens=17), "needs as many different ids, there are 16 spare ids"),
        (lambda: GistConfig(num_gist_tokens=2, gist_token_ids=[5, 5]), r"different ids, there are gist_token_ids=\[5"),
        (lambda: GistConfig(use_dora=True), "gisting is of plain LoRA here: leave out use_dora and init_lora_weights"),
        (lambda: GistConfig(init_lora_weights="pissa"), "gisting is of plain LoRA here"),
        (lambda: GistConfig(gist_condition="none"), "gist_condition='none': expected one of gist, pos_control"),
        (lambda: adapted(target_modules=["embed.tokens", "q_proj"]), "embed.tokens, which holds the gist tokens"),
        (
            lambda: get_peft_model(gpt("gpt2"), GistConfig()),
            r"gist_token_ids must name ids .* vocabulary of 29, and only of the shipped tokenizer's 1024 .* \[3\] are",
        ),
        (lambda: with_gists(PAIRS, [A, 12]), r"pair 1 holds \[12\]: gist_token_ids must be ids that no text holds"),
        (lambda: with_gists(PAIRS, [A, 2]), r"pair 0 holds \[2\]"),
        (lambda: get_peft_model(gpt("gpt2"), GistConfig(gist_token_ids=[29])), "contains 29, .* vocabulary is 0..28"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# -- the report ------------------------------------------------------------------------------------------------
PAIRS = Pairs(
    (1, 2), ([0, 5, 6, 7, 2], [0, 8, 2]), ([9, 10, 0], [11, 12, 13, 0]), ("", ""), ("ab", "þe!"), 0, pad=1
)  # fmt: skip


def test_pairs_with_gists_keep_the_loss_on_the_answer():
    batch = with_gists(PAIRS, [A, B]).batch(0, 2)
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        ends = np.flatnonzero(ids == B)[0]
        assert (labels[: ends + 1] == -100).all() and labels[ends + 1] == ids[ends + 1]
        assert ids[ends - 1] == A and ids[ends - 2] == 2


def test_the_report_counts_what_the_caches_hold():
    p = stirred(get_peft_model(gpt("llama"), GistConfig(num_gist_tokens=2, gist_token_ids=[A, 28], r=2)))
    report = gist_report(p, PAIRS)
    caches = [p([prompt], use_cache=True).past_key_values for prompt in PAIRS.prompts]
    gists = [compress(p, [prompt]) for prompt in PAIRS.prompts]
    for i, kind in enumerate((caches, gists)):
        assert report.keys[i] == sum(c.length for c in kind)
        assert report.bytes[i] == sum(t.data.nbytes for c in kind for pair in c.entries.values() for t in pair)
    assert report.ratio == 2.0
    assert report.flops == (attention_flops(p.config, [5, 3], [3, 4]), attention_flops(p.config, [2, 2], [3, 4]))


def test_the_report_s_bits_are_those_of_each_answer_alone():
    p = adapted()
    report = gist_report(p, PAIRS, batch_size=1)
    starts = {"prompt": PAIRS.prompts, "gist": with_gists(PAIRS, [A, B]).prompts, "none": ([0], [0])}
    for name, prompts in starts.items():
        nats = 0.0
        for prompt, answer in zip(prompts, PAIRS.answers, strict=True):
            z = logits(p, np.array([[*prompt, *answer]]))[0, len(prompt) - 1 : -1].astype(np.float64)
            nats += (np.log(np.exp(z).sum(-1)) - z[np.arange(len(answer)), answer]).sum()
        assert report.bits_per_byte[name] == pytest.approx(nats / np.log(2) / (2 + 4), rel=1e-5)
    neg = gist_report(adapted(condition="neg_control"), PAIRS).bits_per_byte
    pos = gist_report(adapted(condition="pos_control"), PAIRS).bits_per_byte
    assert len({round(bits["gist"], 6) for bits in (report.bits_per_byte, neg, pos)}) == 3
    reports = [replace(report, bits_per_byte={"gist": bits}) for bits in (1.25, 1.0, 2.0)]
    assert share_kept(*reports) == 0.75


# -- learning --------------------------------------------------------------------------------------------------
def some(pairs, n):
    """``n`` of them, spread evenly."""
    chosen = np.linspace(0, len(pairs) - 1, n).astype(int)
    columns = ("verses", "prompts", "answers", "source_texts", "target_texts")
    return replace(pairs, **{name: tuple(getattr(pairs, name)[i] for i in chosen) for name in columns})


@pytest.mark.slow
def test_a_gist_learns_to_be_worth_more_than_no_prompt():
    """A verse in today's English compressed into 8 keys helps to say it in that of 1395.

    Both adapters see the same batches; the answers of the control see neither prompt nor gist.
    """
    tokenizer = Tokenizer.shipped()
    verses = {
        split: Pairs.from_corpora(load_corpus("web").split(split), load_corpus("wyc").split(split), tokenizer, 64)
        for split in ("train", "held_out")
    }
    reports = {}
    for condition in ("gist", "neg_control"):
        config = GistConfig(
            num_gist_tokens=8, gist_condition=condition, r=16, lora_alpha=32, target_modules="all-linear"
        )
        p = get_peft_model(GPT.from_pretrained("tiny"), config)
        data = with_gists(verses["train"], config.ids)
        train(p, partial(data.batch, batch_size=16), TrainConfig(steps=300, lr=5e-3, warmup=20))
        reports[condition] = gist_report(p, some(verses["held_out"], 128))
    own, control = reports["gist"], reports["neg_control"]
    assert own.bits_per_byte["gist"] < control.bits_per_byte["gist"] - 0.02, reports
    assert own.bits_per_byte["gist"] < own.bits_per_byte["none"] - 0.1, reports
    assert own.ratio > 3 and own.flops[1] < 0.6 * own.flops[0]
