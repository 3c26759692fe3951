"""Generation: greedy and sampled, cached and not, in padded batches, with stop tokens, streamed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import minitorch_peft as mp
from minitorch_peft.models.generation import probabilities, sample


def test_greedy_takes_the_largest_logit_of_the_whole_text(model, ids):
    expected = ids
    for _ in range(6):
        chosen = model(expected).logits.data[:, -1].argmax(-1)
        expected = np.concatenate([expected, chosen[:, None]], axis=1)
    got = model.generate(ids, max_new_tokens=6)
    assert got.tolist() == expected.tolist() and got.dtype == ids.dtype
    assert len({tuple(row) for row in got[:, 7:]}) > 1


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "top_k": 9, "seed": 3}])
def test_cached_equals_uncached(model, ids, options):
    mask = np.arange(7) >= np.array([0, 3, 6])[:, None]
    cached = model.generate(ids, 10, attention_mask=mask, **options)
    assert cached.tolist() == model.generate(ids, 10, attention_mask=mask, use_cache=False, **options).tolist()


def test_every_module_s_mode_is_put_back(model, ids):
    """A base that is frozen in evaluation mode below a head that trains stays so; within, nothing is dropped."""
    model.train()
    model.blocks[0].eval()
    before = {name: module.training for name, module in model.named_modules()}
    within = []
    original = model.forward
    model.forward = lambda x, **options: (
        within.append({m.training for _, m in model.named_modules()}) or original(x, **options)
    )
    model.generate(ids, 2)
    assert within == [{False}] * 2
    assert {name: module.training for name, module in model.named_modules()} == before
    assert len(set(before.values())) == 2


def test_the_cache_saves_the_work(model, ids):
    lengths = []
    original = model.forward
    model.forward = lambda x, **options: lengths.append(x.shape[1]) or original(x, **options)
    model.generate(ids, 4)
    model.generate(ids, 4, use_cache=False)
    assert lengths == [7, 1, 1, 1, 7, 8, 9, 10]


def test_a_left_padded_row_equals_the_row_alone(model, ids):
    lengths = [7, 4, 1]
    mask = np.arange(7) >= 7 - np.array(lengths)[:, None]
    batch = model.generate(np.where(mask, ids, 0), 8, attention_mask=mask)
    for row, n in enumerate(lengths):
        alone = model.generate(ids[row : row + 1, 7 - n :], 8)
        assert batch[row, 7:].tolist() == alone[0, n:].tolist()


def test_sampling_depends_on_the_seed_the_row_and_the_step_only(model, ids):
    first = model.generate(ids, 8, do_sample=True, seed=1)
    model.generate(ids, 3, do_sample=True, seed=9)
    assert model.generate(ids, 8, do_sample=True, seed=1).tolist() == first.tolist()
    assert model.generate(ids, 5, do_sample=True, seed=1).tolist() == first[:, :12].tolist()
    assert model.generate(ids[:1], 8, do_sample=True, seed=1).tolist() == first[:1].tolist()
    assert model.generate(ids, 8, do_sample=True, seed=2).tolist() != first.tolist()
    same = np.repeat(ids[:1], 3, axis=0)
    assert len({tuple(row) for row in model.generate(same, 8, do_sample=True)}) == 3


def test_sampling_from_one_candidate_is_greedy(model, ids):
    greedy = model.generate(ids, 6).tolist()
    assert model.generate(ids, 6, do_sample=True, top_k=1).tolist() == greedy
    assert model.generate(ids, 6, do_sample=True, top_p=1e-9).tolist() == greedy
    assert model.generate(ids, 6, do_sample=True, temperature=1e-6).tolist() == greedy


@pytest.mark.parametrize("as_given", [lambda s: s, lambda s: [s], np.int64, lambda s: {s, 30}], ids=range(4))
def test_stop_tokens_end_a_row(model, ids, as_given):
    free = model.generate(ids, 10)
    stop = int(free[0, 9])  # the first row's third token
    got = model.generate(ids, 10, eos_token_id=as_given(stop), pad_token_id=29)
    ends = 0
    stops = {stop, 30} if isinstance(as_given(stop), set) else {stop}
    for row, unstopped in zip(got[:, 7:], free[:, 7:], strict=True):
        at = next((i for i, token in enumerate(unstopped) if token in stops), None)
        kept = len(row) if at is None else at + 1
        assert row[:kept].tolist() == unstopped[:kept].tolist()
        assert (row[kept:] == 29).all()
        ends += at is not None
    assert ends >= 1


def test_generation_ends_when_every_row_has(model, ids):
    free = model.generate(ids[:1], 10)
    stop = int(free[0, 9])
    first = free[0, 7:].tolist().index(stop)
    assert model.generate(ids[:1], 10, eos_token_id=stop).shape == (1, 7 + first + 1)


def test_zero_is_a_stop_token_too(model, ids):
    model.requires_grad_(False)
    model.lm_head.forward = lambda h, c=None: mp.tensor(np.eye(31, dtype=np.float32)[np.zeros((len(ids), 1), int)])
    assert model.generate(ids, 10, eos_token_id=0).shape == (3, 8)


def test_streaming_hands_out_each_step(model, ids):
    steps = []
    out = model.generate(ids, 5, stream=steps.append)
    assert len(steps) == 5 and np.stack(steps, axis=1).tolist() == out[:, 7:].tolist()


def test_no_new_tokens(model, ids):
    assert model.generate(ids, 0).tolist() == ids.tolist()


def test_ids_may_be_lists_and_tensors(model, ids):
    expected = model.generate(ids, 3).tolist()
    assert model.generate(ids.tolist(), 3).tolist() == expected
    assert model.generate(mp.tensor(ids), 3).tolist() == expected
    assert model.generate(ids, 3, attention_mask=mp.tensor(np.ones((3, 7), bool))).tolist() == expected


def test_nothing_is_recorded(model, ids):
    model.generate(ids, 2)
    assert all(p.grad is None for p in model.parameters())
    assert mp.is_grad_enabled()


def test_the_positions_are_the_limit(model, ids):
    assert model.generate(ids, 18).shape == (3, 25)  # the last token needs no position of its own
    with pytest.raises(ValueError, match=r"25 positions, the model has 24.*max_new_tokens"):
        model.generate(ids, 19)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": [1, 2]}, r"input_ids must .*\(B, T\).*\(2,\)"),
        ({"input_ids": np.zeros((2, 0), int)}, "input_ids must"),
        ({"max_new_tokens": -1}, "max_new_tokens must be at least 0"),
        ({"temperature": 0.5}, "act on sampling only: pass do_sample=True"),
        ({"top_k": 3}, "act on sampling only"),
        ({"do_sample": True, "temperature": 0.0}, "temperature must be positive"),
        ({"do_sample": True, "top_k": 0}, "top_k must be at least 1"),
        ({"do_sample": True, "top_p": 0.0}, r"top_p must be in \(0, 1\]"),
        ({"do_sample": True, "top_p": 1.5}, r"top_p must be in \(0, 1\]"),
    ],
)
def test_bad_arguments_are_refused(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        model.generate(**({"input_ids": [[1, 2]]} | arguments))


# -- the distribution ----------------------------------------------------------------------------------------
# far enough apart that different logits have different probabilities
LOGITS = hnp.arrays(np.int64, (2, 12), elements=st.integers(-500, 500), unique=True).map(lambda z: z / np.float32(64))


@settings(max_examples=60, deadline=None)
@given(LOGITS, st.sampled_from([0.3, 1.0, 2.5]), st.none() | st.integers(1, 14), st.none() | st.floats(0.05, 1.0))
def test_a_distribution_over_the_most_likely(z, temperature, top_k, top_p):
    p = probabilities(z, temperature, top_k, top_p)
    np.testing.assert_allclose(p.sum(-1), 1)
    full = probabilities(z, temperature, None, None)
    for row, whole, logits in zip(p, full, z, strict=True):
        kept = row > 0
        assert kept[logits.argmax()] and kept.sum() <= (top_k or 12)
        assert logits[kept].min() >= max(logits[~kept], default=-np.inf)
        np.testing.assert_allclose(row[kept], whole[kept] / whole[kept].sum(), rtol=1e-9)
        if top_p is not None and top_k is None and kept.sum() > 1:  # the smallest set that reaches top_p
            assert whole[kept].sum() >= top_p - 1e-9
            assert whole[kept].sum() - whole[kept].min() < top_p + 1e-9


def test_draws_follow_the_distribution():
    p = np.array([0.5, 0.0, 0.2, 0.3, 0.0])
    drawn = np.bincount([sample(p, 0, 0, step) for step in range(4000)], minlength=5)
    assert drawn[1] == drawn[4] == 0
    np.testing.assert_allclose(drawn / 4000, p, atol=0.03)


def test_a_draw_at_the_edge_stays_inside():
    """The cumulative sum may end below 1 by rounding; the last possible token is drawn, never one past it."""
    assert sample(np.array([1e-300, 0.0]), 0, 0, 0) == 0
