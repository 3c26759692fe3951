"""The translation to and from ``peft``'s names, without ``peft``: fused projections, targets, settings, base copies."""

from __future__ import annotations

import json

import numpy as np
import pytest
from peft_cases import gpt, logits, stirred

from minitorch_peft.formats.files import FileFormatError, read_arrays, read_json, read_metadata, write_arrays
from minitorch_peft.peft import LoraConfig, PeftModel, get_peft_model
from minitorch_peft.peft.interop import common, hf_modules, is_target, short_names
from minitorch_peft.peft.lowrank_files import LowRank, column_owners, fuse, split
from minitorch_peft.peft.patterns import target_leaves

JSON, TENSORS = "adapter_config.json", "adapter_model.safetensors"
C_ATTN = "base_model.model.transformer.h.0.attn.c_attn.lora_{}.weight"


def saved(tmp_path, family="gpt2", **settings):
    p = stirred(get_peft_model(gpt(family), LoraConfig(**settings)))
    p.save_pretrained(tmp_path, format="peft")
    return p, read_json(tmp_path / JSON), read_arrays(tmp_path / TENSORS)


def parameters(p):
    return p.adapters["default"].named_parameters()


def same_bits(p, q):
    a, b = parameters(p), parameters(q)
    return a.keys() == b.keys() and all(np.array_equal(a[n].data, b[n].data) for n in a)


def write(directory, settings, arrays):
    write_arrays(directory / TENSORS, arrays)
    (directory / JSON).write_text(json.dumps(settings))


# -- names -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_layer_has_a_counterpart(family):
    model = gpt(family)
    modules = hf_modules(model.config)
    ours = [path for module in modules for path in module.ours]
    assert sorted(ours) == sorted(target_leaves(model, ["**"]))
    assert len({module.name for module in modules}) == len(modules)


def test_llama_is_a_renaming(tmp_path):
    p, settings, arrays = saved(tmp_path, "llama", r=2, target_modules="all-linear", lora_alpha=3)
    names = {"attn": "self_attn", "mlp": "mlp"}
    for name, q in parameters(p).items():
        _, i, part, leaf, x = name.split(".")
        theirs = f"base_model.model.model.layers.{i}.{names[part]}.{leaf}.{x}.weight"
        np.testing.assert_array_equal(arrays.pop(theirs), q.data)
    assert not arrays
    assert settings["fan_in_fan_out"] is False and settings["lora_alpha"] == 3 and settings["rank_pattern"] == {}
    assert sorted(settings["target_modules"]) == sorted(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )


def test_embeddings_and_heads(tmp_path):
    p, settings, arrays = saved(tmp_path, r=2, target_modules=["embed.tokens", "embed.positions", "lm_head"])
    prefix = "base_model.model."
    assert {n: a.shape for n, a in arrays.items()} == {
        f"{prefix}transformer.wte.lora_embedding_A": (2, 29), f"{prefix}transformer.wte.lora_embedding_B": (32, 2),
        f"{prefix}transformer.wpe.lora_embedding_A": (2, 24), f"{prefix}transformer.wpe.lora_embedding_B": (32, 2),
        f"{prefix}lm_head.lora_A.weight": (2, 32), f"{prefix}lm_head.lora_B.weight": (29, 2),
    }  # fmt: skip
    assert settings["target_modules"] == ["transformer.wte", "transformer.wpe", "lm_head"]
    assert settings["fan_in_fan_out"] is False
    assert same_bits(PeftModel.from_pretrained(gpt("gpt2"), tmp_path), p)


def test_gpt2_s_own_names(tmp_path):
    _, settings, arrays = saved(tmp_path, r=2, target_modules=["o_proj", "up_proj", "down_proj"])
    assert settings["target_modules"] == ["c_proj", "c_fc"] and settings["fan_in_fan_out"] is True
    down = "base_model.model.transformer.h.1.mlp.c_proj"
    assert arrays[f"{down}.lora_A.weight"].shape == (2, 128) and arrays[f"{down}.lora_B.weight"].shape == (32, 2)


# -- the fused projection --------------------------------------------------------------------------------------------
def test_three_adapters_of_one_input_are_one(tmp_path):
    """A stacked, B block-diagonal, r three times as large and alpha too."""
    p, settings, arrays = saved(tmp_path, r=2, lora_alpha=8, target_modules=["q_proj", "k_proj", "v_proj"])
    A, B, own = arrays[C_ATTN.format("A")], arrays[C_ATTN.format("B")], parameters(p)
    assert (settings["r"], settings["lora_alpha"], settings["target_modules"]) == (6, 24, ["c_attn"])
    assert A.shape == (6, 32) and B.shape == (96, 6)
    for i, x in enumerate("qkv"):
        rows, columns = slice(32 * i, 32 * i + 32), slice(2 * i, 2 * i + 2)
        np.testing.assert_array_equal(A[columns], own[f"blocks.0.attn.{x}_proj.lora_A"].data)
        np.testing.assert_array_equal(B[rows, columns], own[f"blocks.0.attn.{x}_proj.lora_B"].data)
        B[rows, columns] = 0
    assert not B.any()


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"target_modules": ["q_proj", "v_proj"]}, (4, 16, {}, {})),
        ({"target_modules": ["k_proj"]}, (2, 8, {}, {})),
        ({"target_modules": ["k_proj"], "use_rslora": True}, (2, 8, {}, {})),
        ({"target_modules": ["q_proj", "v_proj"], "use_rslora": True}, (4, 8 * 2**0.5, {}, {})),
        ({"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]}, (2, 8, {}, {})),
        ({"target_modules": ["q_proj", "v_proj", "up_proj", "o_proj"]}, (2, 8, {"c_attn": 4}, {"c_attn": 16})),
        ({"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 3}, "alpha_pattern": {"v_proj": 12}},
         (5, 20, {}, {})),
        ({"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"0.attn.v_proj": 6},
          "alpha_pattern": {"0.attn.v_proj": 24}},
         (8, 32, {"transformer.h.1.attn.c_attn": 4}, {"transformer.h.1.attn.c_attn": 16})),
        ({"target_modules": "all-linear", "exclude_modules": ["k_proj", "mlp.*"]},
         (4, 16, {"c_proj": 2}, {"c_proj": 8})),
    ],
)  # fmt: skip
def test_ranks_and_alphas_survive(settings, expected, tmp_path):
    """Equal factors s: the tensors come back bit for bit, and so does the config up to how it is written."""
    p, written, _ = saved(tmp_path, **{"r": 2, "lora_alpha": 8} | settings)
    assert (written["r"], written["rank_pattern"], written["alpha_pattern"]) == (expected[0], *expected[2:])
    assert written["lora_alpha"] == pytest.approx(expected[1], rel=1e-15)
    again = PeftModel.from_pretrained(gpt("gpt2"), tmp_path)
    assert same_bits(again, p)
    for path, layer in p.adapters["default"].wrappers.items():
        assert again.adapters["default"].wrappers[path].scaling == pytest.approx(layer.scaling, rel=1e-15)
    np.testing.assert_allclose(logits(again), logits(p), rtol=1e-6, atol=1e-6)
    again.save_pretrained(tmp_path / "twice")
    assert read_json(tmp_path / "twice" / JSON) == written
    assert (tmp_path / "twice" / TENSORS).read_bytes() == (tmp_path / TENSORS).read_bytes()


def test_different_factors_in_one_module_go_into_b(tmp_path):
    p, settings, arrays = saved(
        tmp_path, r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"], alpha_pattern={"v_proj": 2}
    )
    assert settings["lora_alpha"] / settings["r"] == 4
    v = parameters(p)["blocks.0.attn.v_proj.lora_B"].data
    np.testing.assert_array_equal(arrays[C_ATTN.format("B")][64:, 2:], v / 4)
    again = PeftModel.from_pretrained(gpt("gpt2"), tmp_path)
    np.testing.assert_allclose(logits(again), logits(p), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["k_proj"], ["q_proj", "k_proj", "v_proj"]])
def test_an_untrained_adapter_comes_back_as_it_was(targets, tmp_path):
    """With B zero its blocks cannot be seen: the file's metadata, which ``peft`` does not read, holds the ranks."""
    p = get_peft_model(gpt("gpt2"), LoraConfig(r=2, target_modules=targets))
    p.save_pretrained(tmp_path)
    assert read_metadata(tmp_path / TENSORS)["format"] == "pt"
    assert same_bits(PeftModel.from_pretrained(gpt("gpt2"), tmp_path), p)


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["k_proj"], ["q_proj", "k_proj", "v_proj"]])
def test_blocks_are_recognised_without_our_metadata(targets, tmp_path):
    p, settings, arrays = saved(tmp_path, r=2, target_modules=targets)
    write(tmp_path, settings, arrays)
    assert not read_metadata(tmp_path / TENSORS)
    again = PeftModel.from_pretrained(gpt("gpt2"), tmp_path)
    assert same_bits(again, p) and again.adapters["default"].config == p.adapters["default"].config


def test_metadata_that_the_tensors_contradict_are_not_believed(tmp_path):
    _, settings, arrays = saved(tmp_path, r=2, target_modules=["q_proj", "k_proj", "v_proj"])
    for name, array in arrays.items():
        if "lora_B" in name:
            array[:] = np.random.default_rng(0).standard_normal(array.shape)
    write_arrays(tmp_path / TENSORS, arrays, read_metadata(tmp_path / TENSORS))
    again = PeftModel.from_pretrained(gpt("gpt2"), tmp_path)
    assert all(len(q.data) == 6 for n, q in parameters(again).items() if n.endswith("lora_A"))
    assert again.adapters["default"].config.r == 6 and settings["r"] == 6


def test_an_adapter_that_peft_trained_gives_each_projection_all_of_a(tmp_path):
    """What is exact: x (B A)ᵀ cut into thirds is x (B_i A)ᵀ."""
    rng = np.random.default_rng(0)
    arrays = {
        f"base_model.model.transformer.h.{i}.attn.c_attn.lora_{x}.weight": rng.standard_normal(s).astype(np.float32)
        * 0.2
        for i in range(2)
        for x, s in (("A", (3, 32)), ("B", (96, 3)))
    }
    write(tmp_path, {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": ["c_attn"]}, arrays)
    p = PeftModel.from_pretrained(gpt("gpt2"), tmp_path)
    assert p.adapters["default"].config == LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "k_proj", "v_proj"])
    for i, x in enumerate("qkv"):
        layer = p.adapters["default"].wrappers[f"blocks.1.attn.{x}_proj"]
        W = layer.base.weight.data
        A, B = (arrays[C_ATTN.format(y).replace("h.0", "h.1")].astype(np.float64) for y in "AB")
        np.testing.assert_allclose(
            layer.effective(W.astype(np.float64)) - W, 2 * (B @ A)[32 * i : 32 * i + 32], atol=1e-6
        )
    p.save_pretrained(tmp_path / "back")
    back = PeftModel.from_pretrained(gpt("gpt2"), tmp_path / "back")
    np.testing.assert_allclose(logits(back), logits(p), rtol=1e-6, atol=1e-6)


def test_a_rank_that_no_projection_can_hold(tmp_path):
    arrays, rng = {}, np.random.default_rng(0)
    for i in range(2):
        for x, s in (("A", (40, 32)), ("B", (96, 40))):
            arrays[f"base_model.model.transformer.h.{i}.attn.c_attn.lora_{x}.weight"] = rng.standard_normal(s).astype(
                "f"
            )
    write(tmp_path, {"peft_type": "LORA", "r": 40, "target_modules": ["c_attn"]}, arrays)
    with pytest.raises(FileFormatError, match=r"does not fit this model: r=40 is above the rank of blocks"):
        PeftModel.from_pretrained(gpt("gpt2"), tmp_path)


def test_fuse_and_split_are_inverses():
    rng = np.random.default_rng(0)
    widths, paths = [4, 2, 3], ["q", "k", "v"]
    for ranks in ([1, 2, 1], [2, 0, 1], [0, 0, 3], [1, 0, 0]):
        parts = [
            LowRank(rng.standard_normal((r, 5)), rng.standard_normal((w, r)), 2.0) if r else None
            for r, w in zip(ranks, widths, strict=True)
        ]
        fused = fuse(parts, widths)
        assert fused.A.shape == (sum(ranks), 5) and fused.B.shape == (9, sum(ranks)) and fused.scaling == 2.0
        found = {path: (a, b) for path, a, b in split(paths, *fused[:2], widths, None)}
        assert found.keys() == {path for path, r in zip(paths, ranks, strict=True) if r}
        for path, part in zip(paths, parts, strict=True):
            if part is not None:
                np.testing.assert_array_equal(found[path][0], part.A)
                np.testing.assert_array_equal(found[path][1], part.B)


@pytest.mark.parametrize(
    "used, recorded, expected",
    [
        (["110", "001"], None, [0, 0, 1]),
        (["010", "001"], None, [0, 0, 1]),  # a column of zeros goes with the one before it,
        (["100", "001"], None, [0, 0, 1]),
        (["011", "000"], None, [0, 0, 0]),  # or after it where it is the first
        (["111", "001"], None, None),  # not block-diagonal
        (["000", "000"], None, None),  # unknown
        (["000", "000"], [1, 2], [0, 1, 1]),
        (["100", "001"], [1, 2], [0, 1, 1]),
        (["110", "001"], [1, 2], [0, 0, 1]),  # contradicted
        (["110", "001"], [1, 1], [0, 0, 1]),  # of another rank
    ],
)
def test_column_owners(used, recorded, expected):
    blocks = [np.array([[float(c) for c in row]]) for row in used]
    owners = column_owners(blocks, recorded)
    assert (owners is None and expected is None) or owners.tolist() == expected


# -- targets ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"target_modules": ["c_attn"]}, ["h.0.attn.c_attn", "h.1.attn.c_attn"]),
        ({"target_modules": ["c_proj"], "layers_to_transform": 1}, ["h.1.attn.c_proj", "h.1.mlp.c_proj"]),
        ({"target_modules": ["mlp.c_proj"], "layers_to_transform": [0], "layers_pattern": "h"}, ["h.0.mlp.c_proj"]),
        ({"target_modules": ["mlp.c_proj"], "layers_to_transform": [0], "layers_pattern": ["layers"]}, []),
        ({"target_modules": ["mlp.c_proj"], "layers_to_transform": []}, ["h.0.mlp.c_proj", "h.1.mlp.c_proj"]),
        ({"target_modules": ["c_attn", "lm_head"], "layers_to_transform": [0]}, ["h.0.attn.c_attn", "lm_head"]),
        ({"target_modules": r".*\.1\.(attn|mlp)\.c_.*", "exclude_modules": ["c_attn"]},
         ["h.1.attn.c_proj", "h.1.mlp.c_fc", "h.1.mlp.c_proj"]),
        ({"target_modules": "all-linear", "exclude_modules": r".*c_proj"},
         ["h.0.attn.c_attn", "h.0.mlp.c_fc", "h.1.attn.c_attn", "h.1.mlp.c_fc"]),
        ({"target_modules": ["wte", "h.0.attn.c_attn", "no_such"]}, ["wte", "h.0.attn.c_attn"]),
    ],
)  # fmt: skip
def test_targets_are_read_as_peft_reads_them(settings, expected):
    modules = [m.name for m in hf_modules(gpt("gpt2").config)]
    found = [name for name in modules if is_target(settings, name, name.endswith(("wte", "wpe")))]
    assert sorted(name.removeprefix("transformer.") for name in found) == sorted(expected)


def test_short_names():
    everything = ["a.0.x.p", "a.1.x.p", "a.0.y.p", "a.1.y.p", "a.0.x.q", "head"]
    assert short_names(["a.0.x.p", "a.1.x.p"], everything) == ["x.p"]
    assert short_names(["a.0.x.q", "head"], everything) == ["q", "head"]
    assert short_names(["a.0.x.p"], everything) == ["a.0.x.p"]
    assert short_names(["a.0.x.p", "a.1.x.p", "a.0.y.p", "a.1.y.p"], everything) == ["p"]
    assert common({"a.0.p": 1, "a.1.p": 1, "a.0.q": 2, "a.1.q": 3}) == (1, {"a.0.q": 2, "a.1.q": 3})


# -- what cannot be translated -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "settings, message",
    [
        ({"bias": "all"}, "no counterpart here: bias='all'"),
        ({"bias": "lora_only"}, "bias='lora_only'"),
        ({"use_dora": True}, "the model expects .*q_proj.lora_magnitude_vector"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\]"),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"target_parameters": ["x"]}, "target_parameters"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"ensure_weight_tying": True}, "ensure_weight_tying"),
        ({"a_setting_of_next_year": 3}, "a_setting_of_next_year=3"),
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4' trained on a base that it changed"),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora'"),
        ({"target_modules": None}, "has no target_modules; write the list"),
        ({"lora_alpha": "16"}, "lora_alpha='16' is not understood; correct it"),
        ({"rank_pattern": [4]}, r"rank_pattern=\[4\] is not understood"),
        ({"alpha_pattern": {"q_proj": None, "v_proj": "x"}}, "alpha_pattern=.* is not understood"),
        ({"target_modules": "*_proj"}, r"cannot be read: '\*_proj' is not a regex"),
        ({"rank_pattern": {"(": 4}}, "cannot be read: .* is not a regex"),
    ],
)
def test_settings_without_a_counterpart_are_refused(settings, message, tmp_path):
    _, written, arrays = saved(tmp_path, "llama", r=2)
    write(tmp_path, written | settings, arrays)
    with pytest.raises(FileFormatError, match=message):
        PeftModel.from_pretrained(gpt("llama"), tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {"bias": "none", "use_dora": False, "modules_to_save": None, "loftq_config": {}, "layers_pattern": None},
        {"peft_version": "0.21.2", "revision": "main", "base_model_name_or_path": "x/y", "task_type": "SEQ_CLS"},
        {"megatron_core": "megatron.core", "qalora_group_size": 16, "init_lora_weights": "gaussian"},
        {"inference_mode": False, "auto_mapping": {"base_model_class": "X"}, "runtime_config": {"a": 1}},
    ],
)
def test_settings_that_change_nothing_are_not(settings, tmp_path):
    p, written, arrays = saved(tmp_path, "llama", r=2)
    write(tmp_path, written | settings, arrays)
    assert same_bits(PeftModel.from_pretrained(gpt("llama"), tmp_path), p)


def test_the_smallest_config(tmp_path):
    """Without its settings a LoRA is ``peft``'s default: r = alpha = 8."""
    p, _, arrays = saved(tmp_path, "llama", r=8, lora_alpha=8)
    write(tmp_path, {"peft_type": "LORA", "target_modules": ["q_proj", "v_proj"]}, arrays)
    np.testing.assert_array_equal(logits(PeftModel.from_pretrained(gpt("llama"), tmp_path)), logits(p))


@pytest.mark.parametrize("family, name", [("gpt2", "lm_head"), ("llama", "model.embed_tokens"), ("llama", "lm_head")])
def test_copies_of_the_base_must_be_the_base_s(family, name, tmp_path):
    """``peft`` saves an embedding's own weight beside its adapter; another one would be another base."""
    targets = ["lm_head"] if name == "lm_head" else ["embed.tokens"]
    p, written, arrays = saved(tmp_path, family, r=2, target_modules=targets)
    base = gpt(family)
    weight = base.lm_head.dense_weight() if name == "lm_head" else base.embed.tokens.weight.data
    for copy in (f"base_model.model.{name}.base_layer.weight", f"base_model.model.{name}.weight"):
        write(tmp_path, written, arrays | {copy: weight})
        assert same_bits(PeftModel.from_pretrained(gpt(family), tmp_path), p)
        write(tmp_path, written, arrays | {copy: weight + 1})
        with pytest.raises(FileFormatError, match="is a weight of the base, and not that of this model"):
            PeftModel.from_pretrained(gpt(family), tmp_path)
