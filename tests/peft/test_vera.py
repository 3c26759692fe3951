"""VeRA: the change between shared matrices, what is kept of it, and files on fused and unfused modules."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft_cases import IDS, MASK, TIGHT, gpt, logits, optimizer_of, stirred, train

import minitorch_peft as mp
from minitorch_peft.formats.files import FileFormatError, read_arrays, read_json, write_arrays
from minitorch_peft.models import GPT, GPTConfig
from minitorch_peft.nn import ForwardContext
from minitorch_peft.peft import PeftModel, VeraConfig, get_peft_model
from minitorch_peft.peft.interop import hf_modules
from minitorch_peft.peft.parameter.vera import VeraChange
from minitorch_peft.peft.parameter.vera_projection import torch_uniform

JSON, TENSORS = "adapter_config.json", "adapter_model.safetensors"
A, B = "base_model.vera_A", "base_model.vera_B"
C_ATTN = "base_model.model.transformer.h.0.attn.c_attn"
QKV = ["q_proj", "k_proj", "v_proj"]
sides = st.integers(1, 7)


def adapter_of(p):
    return p.adapters["default"]


# -- the change ------------------------------------------------------------------------------------------------------
@given(st.lists(st.integers(0, 3), max_size=2), sides, sides, sides, st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_the_change_is_that_of_its_weight(batch, n, r, out, seed):
    rng = np.random.default_rng(seed)
    shapes = ((*batch, n), (r, n), (out, r), (r,), (out,))
    x, A, B, lambda_d, lambda_b = (rng.standard_normal(shape) for shape in shapes)
    weight = np.diag(lambda_b) @ B @ np.diag(lambda_d) @ A
    got = VeraChange.apply(*(mp.tensor(a) for a in (x @ A.T, lambda_d, lambda_b)), B=B)
    np.testing.assert_allclose(got.data, x @ weight.T, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(2, 3, 4), (3, 4), (4,), (0, 4)])
@pytest.mark.parametrize("trained", ["udb", "db", "u", "d", "b"])
def test_its_gradient(shape, trained):
    rng = np.random.default_rng(0)
    t = {
        n: mp.tensor(rng.standard_normal(s), requires_grad=n in trained)
        for n, s in zip("udb", (shape, 4, 5), strict=True)
    }
    frozen = rng.standard_normal((5, 4))
    assert mp.gradcheck(lambda *_: VeraChange.apply(*t.values(), B=frozen), [t[n] for n in trained])


def test_of_what_has_a_row_for_each_token_it_keeps_r_numbers():
    rng = np.random.default_rng(0)
    u, d, b = (mp.tensor(rng.standard_normal(s), requires_grad=True) for s in ((2, 50, 4), 4, 60))
    out = VeraChange.apply(u, d, b, B=rng.standard_normal((60, 4)))
    kept = [a for a in out.grad_fn.saved if isinstance(a, np.ndarray) and a.size >= 100]
    assert len(kept) == 1 and kept[0] is u.data


# -- the matrices ----------------------------------------------------------------------------------------------------
def test_layers_share_one_pair_of_matrices():
    p = get_peft_model(gpt("llama"), VeraConfig(r=50, target_modules="all-linear"))
    projection = adapter_of(p).projection
    assert projection.A.shape == (50, 40) and projection.B.shape == (40, 50)  # the largest: down_proj, up_proj
    for layer in adapter_of(p).wrappers.values():
        n, out = layer.base.in_features, layer.base.out_features
        assert np.shares_memory(layer.A.data, projection.A) and np.shares_memory(layer.B.data, projection.B)
        assert np.array_equal(layer.A.data, projection.A[:, :n]) and np.array_equal(layer.B.data, projection.B[:out])
    assert not any("vera_A" in name for name, _ in p.named_parameters())


def test_projections_that_gpt2_fuses_have_rows_behind_each_other():
    p = get_peft_model(gpt("gpt2"), VeraConfig(r=5, target_modules=["k_proj", "v_proj", "o_proj"]))
    projection, wrappers = adapter_of(p).projection, adapter_of(p).wrappers
    assert projection.B.shape == (96, 5)
    for leaf, first in {"k_proj": 32, "v_proj": 64, "o_proj": 0}.items():
        layer = wrappers[f"blocks.1.attn.{leaf}"]
        assert np.array_equal(layer.B.data, projection.B[first : first + 32])


def test_a_model_of_no_family_of_transformers():
    config = GPTConfig(vocab_size=29, n_positions=24, n_embd=32, n_layer=1, n_head=4, norm="rms")
    with pytest.raises(ValueError):
        hf_modules(config)
    p = stirred(get_peft_model(GPT(config).eval(), VeraConfig(r=5)))
    assert adapter_of(p).projection.B.shape == (32, 5)
    assert logits(p).shape == (3, 8, 29)


def test_the_matrices_follow_from_their_key_alone():
    def matrices(key, seed):
        p = get_peft_model(gpt("llama"), VeraConfig(r=5, projection_prng_key=key), seed=seed)
        return adapter_of(p).projection.A.tobytes() + adapter_of(p).projection.B.tobytes()

    assert matrices(0, 0) == matrices(0, 1) == matrices(1 << 32, 0) != matrices(1, 0)
    # torch.empty(2, 3).uniform_(-b, b, generator=torch.Generator().manual_seed(0)), b = sqrt(2)
    expected = [[-0.010587962344288826, 0.75864577293396, -1.1639615297317505],
                [-1.040774941444397, -0.5446904897689819, 0.3792317807674408]]  # fmt: skip
    assert torch_uniform(np.random.RandomState(0), (2, 3)).tolist() == expected
    drawn = torch_uniform(np.random.RandomState(0), (100, 600))
    assert 0.98 * 0.1 < np.abs(drawn).max() <= 0.1 and abs(drawn.mean()) < 1e-3


# -- training --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", [pytest.param("gpt2", marks=pytest.mark.slow), "llama"])
def test_a_model_in_four_bits(family):
    config = VeraConfig(r=6, target_modules=["q_proj", "down_proj"], vera_dropout=0.2)
    p = stirred(get_peft_model(gpt(f"{family}-4bit", np.float64), config)).train()
    context = ForwardContext(seed=1, step=2)
    assert mp.gradcheck(
        lambda: p(IDS, attention_mask=MASK, context=context).logits, (), parameters=p.trainable_parameters()
    )
    p = stirred(get_peft_model(gpt(f"{family}-4bit"), config))
    unmerged = logits(p)
    p.merge_adapter()
    np.testing.assert_allclose(logits(p), unmerged, rtol=1e-4, atol=1e-4)
    p.unmerge_adapter()
    np.testing.assert_array_equal(logits(p), unmerged)


def test_a_checkpoint_holds_the_matrices():
    """They may be those of a file, and not of the key."""
    p = stirred(get_peft_model(gpt("llama"), VeraConfig(r=6)))
    adapter_of(p).projection.A[...] *= 2
    state, method_state = ({k: v.copy() for k, v in s.items()} for s in (p.state_dict(), p.method_state()))
    again = get_peft_model(gpt("llama"), VeraConfig(r=6))
    again.load_state_dict(state)
    assert not np.allclose(logits(again), logits(p))
    again.load_method_state(method_state)
    np.testing.assert_array_equal(logits(again), logits(p))


# -- files -----------------------------------------------------------------------------------------------------------
def saved(tmp_path, family, stir=True, **options):
    p = get_peft_model(gpt(family), VeraConfig(**options))
    if stir:
        stirred(p)
    assert p.save_pretrained(tmp_path) == "peft"
    return p, read_json(tmp_path / JSON), read_arrays(tmp_path / TENSORS)


def same_bits(p, again):
    own, read = (adapter_of(m).named_parameters() for m in (p, again))
    assert own.keys() == read.keys() and all(np.array_equal(own[n].data, read[n].data) for n in own)
    pairs = zip(adapter_of(p).projection[:2], adapter_of(again).projection[:2], strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)
    np.testing.assert_array_equal(logits(again), logits(p))


def test_llama_is_a_renaming(tmp_path):
    p, written, arrays = saved(tmp_path, "llama", r=6, target_modules=["k_proj", "up_proj"])
    assert (written["r"], written["peft_type"], sorted(written["target_modules"])) == (6, "VERA", ["k_proj", "up_proj"])
    assert np.array_equal(arrays[A], adapter_of(p).projection.A) and arrays[B].shape == (40, 6)
    name = "base_model.model.model.layers.1.self_attn.k_proj"
    layer = adapter_of(p).wrappers["blocks.1.attn.k_proj"]
    assert np.array_equal(arrays[f"{name}.vera_lambda_b"], layer.vera_lambda_b.data)
    assert np.array_equal(arrays[f"{name}.vera_lambda_d"], layer.vera_lambda_d.data)
    assert len(arrays) == 2 + 4 * 2
    same_bits(p, PeftModel.from_pretrained(gpt("llama"), tmp_path))


@pytest.mark.parametrize("targets", [QKV, ["q_proj", "v_proj", "up_proj"]])
def test_different_projections_of_one_module_take_three_times_the_rank(targets, tmp_path):
    p, written, arrays = saved(tmp_path, "gpt2", r=6, target_modules=targets)
    projection, wrappers = adapter_of(p).projection, adapter_of(p).wrappers
    assert written["r"] == 18 and arrays[A].shape == (18, 32)
    same_bits(p, PeftModel.from_pretrained(gpt("gpt2"), tmp_path))
    weight = (
        arrays[f"{C_ATTN}.vera_lambda_b"][:, None]
        * arrays[B][:96]
        @ (arrays[f"{C_ATTN}.vera_lambda_d"][:, None] * arrays[A])
    )
    for i, leaf in enumerate(QKV):
        path = f"blocks.0.attn.{leaf}"
        expected = wrappers[path].effective(np.zeros((32, 32), np.float32)) if path in wrappers else 0
        np.testing.assert_allclose(weight[32 * i : 32 * i + 32], expected, atol=1e-6)
    assert np.count_nonzero(arrays[B]) == projection.B.size
    write_arrays(tmp_path / TENSORS, arrays)  # without our metadata: as peft would save it again
    again = PeftModel.from_pretrained(gpt("gpt2"), tmp_path)
    assert adapter_of(again).config.r == 18 and set(QKV) <= set(adapter_of(again).config.target_modules)
    np.testing.assert_allclose(logits(again), logits(p), **TIGHT)


def test_equal_ones_take_none(tmp_path):
    p = stirred(get_peft_model(gpt("gpt2"), VeraConfig(r=6, target_modules=["q_proj", "v_proj"])))
    for i in range(2):
        q, v = (adapter_of(p).wrappers[f"blocks.{i}.attn.{x}_proj"] for x in "qv")
        v.vera_lambda_d.data[...] = q.vera_lambda_d.data
    p.save_pretrained(tmp_path)
    arrays = read_arrays(tmp_path / TENSORS)
    assert read_json(tmp_path / JSON)["r"] == 6 and arrays[B].shape == (96, 6)
    assert not arrays[f"{C_ATTN}.vera_lambda_b"][32:64].any()  # k's
    same_bits(p, PeftModel.from_pretrained(gpt("gpt2"), tmp_path))


def test_without_the_matrices_they_cannot_be_told_apart(tmp_path):
    options = {"r": 6, "target_modules": ["q_proj", "v_proj"], "save_projection": False, "projection_prng_key": 3}
    p = stirred(get_peft_model(gpt("gpt2"), VeraConfig(**options)))
    with pytest.raises(ValueError, match="different λ_d, which peft's file can hold only together with"):
        p.save_pretrained(tmp_path / "peft")
    p.save_pretrained(tmp_path, format="native")
    assert {n.rpartition(".")[2] for n in read_arrays(tmp_path / TENSORS)} == {"vera_lambda_b", "vera_lambda_d"}
    same_bits(p, PeftModel.from_pretrained(gpt("gpt2"), tmp_path))
    p, _, arrays = saved(tmp_path, "llama", **options)
    assert A not in arrays and B not in arrays
    same_bits(p, PeftModel.from_pretrained(gpt("llama"), tmp_path))


@pytest.mark.parametrize("format", ["native", "peft"])
def test_matrices_of_a_file_are_those_that_act(format, tmp_path):
    p = stirred(get_peft_model(gpt("llama"), VeraConfig(r=6)))
    adapter_of(p).projection.B[...] *= 3
    p.save_pretrained(tmp_path, format=format)
    again = PeftModel.from_pretrained(gpt("llama"), tmp_path, is_trainable=True)
    same_bits(p, again)
    before = adapter_of(again).projection.B.copy()
    train(again, optimizer_of(again), range(3))
    assert np.array_equal(adapter_of(again).projection.B, before)


def test_larger_matrices_of_another_adapter_are_cut(tmp_path):
    """``peft`` gives a second adapter those of the first, which may have had larger targets."""
    p, _, arrays = saved(tmp_path, "llama", r=6, target_modules=["v_proj"])
    arrays[A] = np.concatenate([arrays[A], np.ones((6, 9), "f")], axis=1)
    arrays[B] = np.concatenate([arrays[B], np.ones((5, 6), "f")])
    write_arrays(tmp_path / TENSORS, arrays)
    same_bits(p, PeftModel.from_pretrained(gpt("llama"), tmp_path))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"bias": "vera_only"}, "no counterpart here: bias='vera_only'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"r": "6"}, "r='6' is not understood"),
        ({"target_modules": None}, "has no target_modules"),
        ({"target_modules": ["c_attn"]}, "names no module of this model; its modules are: .*q_proj"),
        ({"target_modules": ["v_proj"]}, "the model expects nothing, the file has instead .*q_proj"),
        ({"r": 7}, "has shape"),
        ({"save_projection": False}, "the file has instead base_model.vera_A, base_model.vera_B"),
    ],
)
def test_files_that_cannot_be_read_say_why(settings, message, tmp_path):
    _, written, _ = saved(tmp_path, "llama", r=6)
    (tmp_path / JSON).write_text(json.dumps(written | settings))
    with pytest.raises(FileFormatError, match=message):
        PeftModel.from_pretrained(gpt("llama"), tmp_path)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"r": 0}, "r must be a whole number of at least 1, got 0"),
        ({"d_initial": 0.0}, "d_initial must be a number, and not 0"),
        ({"projection_prng_key": "a"}, "projection_prng_key must be a whole number"),
        ({"target_modules": None}, "target_modules must be a list of names or a regex, got None"),
    ],
)
def test_bad_configs(options, message):
    with pytest.raises(ValueError, match=message):
        VeraConfig(**options)


def test_embeddings_are_refused():
    with pytest.raises(ValueError, match=r"embed.tokens is an embedding: VeRA is of linear layers"):
        get_peft_model(gpt("llama"), VeraConfig(r=2, target_modules=["q_proj", "embed.tokens"]))
