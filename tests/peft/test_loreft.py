"""LoReFT: what an edit does, where it is made, and that R stays orthonormal."""

from __future__ import annotations

import numpy as np
import pytest
import toy_methods
from peft_cases import IDS, MASK, TIGHT, gpt, logits, optimizer_of, stirred, train

import minitorch_peft as mp
from minitorch_peft.autograd.tensor import Tensor, no_grad
from minitorch_peft.models import Cache
from minitorch_peft.nn import ForwardContext
from minitorch_peft.peft import LoReftConfig, get_peft_model
from minitorch_peft.peft.function.loreft import LoReftEdit
from minitorch_peft.peft.function.orthonormal import nearest_orthonormal


@pytest.fixture(autouse=True)
def toys():
    with toy_methods.registered():
        yield


def watched(p, seen):
    """The model; ``seen`` gets bool (B, T) of every pass and block: what is edited at the start, and at the end."""
    adapter = p.adapters["default"]
    edited = adapter.edited

    def watch(context, length):
        found = edited(context, length)
        seen.append([np.broadcast_to(at, (3, length)) for at in found])
        return found

    adapter.edited = watch
    return p


def model(dtype=np.float32, **settings):
    return get_peft_model(gpt("gpt2", dtype), LoReftConfig(dropout=0.0, **settings))


# -- the edit --------------------------------------------------------------------------------------------------
def drawn(seed, *shape):
    return mp.tensor(np.random.default_rng(seed).standard_normal(shape), requires_grad=True)


@pytest.mark.parametrize("at", [np.ones((1, 4), bool), np.eye(3, 4, dtype=bool), np.zeros((1, 4), bool)])
def test_the_gradients_of_an_edit(at):
    h, R, W, b = drawn(0, 3, 4, 6), drawn(1, 2, 6), drawn(2, 2, 6), drawn(3, 2)
    assert mp.gradcheck(lambda *inputs: LoReftEdit.apply(*inputs, at=at), (h, R, W, b))


def test_an_edit_sets_what_lies_in_the_subspace_and_leaves_the_rest():
    p = stirred(model(layers=[0], prefix_positions=None), scale=0.3)
    (layer,) = p.adapters["default"].wrappers.values()
    (edit,) = layer.edits
    edit.retract()
    R, W, b = edit.R.data, edit.W.data, edit.b.data
    h = np.random.default_rng(0).standard_normal((3, 8, 32)).astype(np.float32)
    with no_grad():
        y = layer.after(Tensor(h), Tensor(h), ForwardContext()).data
    np.testing.assert_allclose(y @ R.T, h @ W.T + b, rtol=1e-4, atol=1e-4)
    outside = np.eye(32) - R.T @ R
    np.testing.assert_allclose(y @ outside, h @ outside, rtol=1e-4, atol=1e-4)


# -- R ---------------------------------------------------------------------------------------------------------
def distance_from_orthonormal(p):
    edits = [edit for layer in p.adapters["default"].wrappers.values() for edit in layer.edits]
    return max(np.abs(edit.R.data @ edit.R.data.T - np.eye(len(edit.R.data))).max() for edit in edits)


def test_the_rows_of_r_start_orthonormal_and_stays_so():
    p = model(suffix_positions=2)
    assert distance_from_orthonormal(p) < 1e-6
    before = p.adapters["default"].wrappers["blocks.0"].edits[0].R.data.copy()
    train(p, optimizer_of(p, lr=3e-2), range(5))
    assert distance_from_orthonormal(p) < 1e-6
    assert np.abs(p.adapters["default"].wrappers["blocks.0"].edits[0].R.data - before).max() > 1e-2
    p.adapters["default"].after_step = lambda step: None
    train(p, optimizer_of(p, lr=3e-2), range(5))
    assert distance_from_orthonormal(p) > 1e-3  # it is the hook that keeps it


def test_a_frozen_r_is_left_as_it_is():
    p = stirred(model())
    p.add_adapter("second", LoReftConfig(), seed=1)
    p.set_adapter(["default", "second"], train="second")
    before = distance_from_orthonormal(p)
    train(p, optimizer_of(p), range(2))
    assert distance_from_orthonormal(p) == before > 1e-3


def test_the_nearest_orthonormal_matrix():
    A = np.random.default_rng(3).standard_normal((3, 7))
    R = nearest_orthonormal(A)
    np.testing.assert_allclose(R @ R.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(nearest_orthonormal(R), R, atol=1e-12)
    for other in (np.linalg.qr(A.T)[0].T, -R, np.eye(3, 7)):
        assert np.linalg.norm(A - R) < np.linalg.norm(A - other)
    step = 1e-6 * np.random.default_rng(4).standard_normal(A.shape)
    assert np.abs(nearest_orthonormal(A + step) - R).max() < 1e-5  # no sign flips from one step to the next


# -- places ----------------------------------------------------------------------------------------------------
def test_the_first_tokens_are_counted_without_padding():
    seen = []
    logits(watched(model(prefix_positions=3), seen), attention_mask=MASK)
    expected = [[1, 1, 1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0, 1, 1]]
    for start, end in seen:
        assert np.array_equal(start, np.array(expected, bool)) and not end.any()


def test_the_last_tokens_too_and_none_twice():
    seen = []
    right = np.arange(8) < np.array([8, 5, 2])[:, None]
    logits(watched(model(prefix_positions=1, suffix_positions=2), seen), attention_mask=right)
    start, end = seen[0]
    assert np.array_equal(start, np.arange(8) < np.array([[1]] * 3))
    assert np.array_equal(end, np.array([[0, 0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0]]))


@pytest.mark.parametrize("other", [toy_methods.PromptConfig(4), toy_methods.PrefixConfig(4)])
def test_prompts_and_prefixes_are_no_text(other):
    seen = []
    p = watched(model(prefix_positions=3), seen)
    p.add_adapter("other", other)
    p.set_adapter(["default", "other"])
    cache = None
    for part in (slice(0, 2), slice(2, 8)):
        out = p(IDS[:, part], attention_mask=MASK[:, : part.stop], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
    first, later = seen[0][0], seen[-1][0]
    text = np.concatenate([first[:, -2:], later], axis=1)
    assert np.array_equal(text, MASK & (np.cumsum(MASK, axis=1) <= 3)) and not first[:, :-2].any()


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_places_go_on_where_a_row_is_cut(cut):
    p = stirred(model(prefix_positions=3))
    whole, cache = logits(p, attention_mask=MASK), Cache()
    for part in (slice(0, cut), slice(cut, 8)):
        with no_grad():
            out = p(IDS[:, part], attention_mask=MASK[:, : part.stop], past_key_values=cache)
        at = MASK[:, part]
        np.testing.assert_allclose(out.logits.data[at], whole[:, part][at], **TIGHT)
        cache = cache.copy()  # places go with the keys


def test_places_go_on_where_keys_were_dropped():
    p, seen = stirred(model(prefix_positions=6)), []
    with no_grad():
        cache = p(IDS[:, :5], use_cache=True).past_key_values
        cache.select([3, 4])
        watched(p, seen)(IDS[:, 5:], past_key_values=cache)
    assert all(np.array_equal(start, [[True, False, False]] * 3) for start, _ in seen)


def test_every_place_where_none_is_named():
    seen = []
    p = watched(model(prefix_positions=None), seen)
    p.generate(IDS, max_new_tokens=3)
    assert [start.shape[1] for start, _ in seen[::2]] == [8, 1, 1] and all(start.all() for start, _ in seen)


def test_generated_tokens_are_no_end_of_the_prompt():
    seen = []
    p = watched(stirred(model(prefix_positions=0, suffix_positions=2)), seen)
    p.generate(IDS, max_new_tokens=3, attention_mask=MASK)
    assert [int(end.sum()) for _, end in seen[::2]] == [6, 0, 0]


def test_the_end_of_a_row_whose_first_pass_is_all_padding():
    seen = []
    p = watched(stirred(model(prefix_positions=0, suffix_positions=2)), seen)
    with no_grad():
        cache = p(IDS[:, :4], attention_mask=MASK[:, :4], use_cache=True).past_key_values
        p(IDS[:, 4:], attention_mask=MASK, past_key_values=cache)
    ends = np.concatenate([seen[0][1], seen[-1][1]], axis=1)
    expected = [[0, 0, 1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1, 1]]
    assert np.array_equal(ends, np.array(expected, bool))


def test_the_ends_have_edits_of_their_own_unless_tied():
    names = {name.split(".")[2] for name in model(suffix_positions=1).adapters["default"].named_parameters()}
    assert names == {"prefix", "suffix"}
    tied = model(suffix_positions=1, tied_weights=True)
    assert {name.split(".")[2] for name in tied.adapters["default"].named_parameters()} == {"edit"}
    seen = []
    logits(watched(tied, seen))
    assert all(start.sum() == 9 and end.sum() == 3 for start, end in seen)


def test_dropout_falls_on_edited_places_only():
    p = get_peft_model(gpt("gpt2"), LoReftConfig(layers=[1], prefix_positions=2, dropout=0.5)).train()
    (layer,) = p.adapters["default"].wrappers.values()
    h = Tensor(np.ones((3, 8, 32), np.float32))
    y = layer.after(h, h, ForwardContext(seed=1)).data
    assert 0.3 < (y[:, :2] == 0).mean() < 0.7 and (y[:, 2:] == 1).all()


# -- configs ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "settings, message",
    [
        ({"r": 0}, "r must be a whole number of at least 1, got 0"),
        ({"prefix_positions": -1}, "count tokens, got -1 and 0"),
        ({"prefix_positions": 0}, "edit some tokens"),
        ({"prefix_positions": None, "suffix_positions": 2}, "edit some tokens"),
        ({"layers": [2]}, r"layers=\[2\]: expected \"all\" or numbers of blocks, 0 to 1"),
        ({"layers": []}, r"layers=\[\]: expected"),
        ({"layers": "none"}, "layers='none': expected"),
        ({"layers": 2}, r"layers=\[2\]: expected"),
        ({"layers": [[0]]}, r"layers=\[\[0\]\]: expected"),
        ({"layers": 0.5}, "layers=0.5: expected"),
        ({"prefix_positions": False}, "count tokens, got False and 0"),
        ({"r": 33}, "r=33 is above the width of the hidden states, 32"),
    ],
)
def test_bad_settings_say_what_would_be_valid(settings, message):
    with pytest.raises(ValueError, match=message):
        get_peft_model(gpt("gpt2"), LoReftConfig(**settings))
