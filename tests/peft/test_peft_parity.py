"""LoRA against ``peft`` on random ``transformers`` models: the same numbers, and each other's files.

At the end, defects of ``peft`` that touch LoRA and merging: each test shows one there and its absence here.
"""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from peft_cases import BASES, logits

from minitorch_peft.formats.files import FileFormatError, read_arrays, read_json, write_arrays
from minitorch_peft.formats.hf import to_hf
from minitorch_peft.formats.hf_config import choose_family
from minitorch_peft.models import GPT
from minitorch_peft.optim import AdamW
from minitorch_peft.peft import LoraConfig, PeftModel, get_peft_model

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore:.*is_gradient_checkpointing"),
]

IDS = np.random.default_rng(4).integers(0, 64, (3, 9))
CLOSE = {"rtol": 1e-5, "atol": 1e-5}

OURS = {  # settings here, whose adapters peft loads
    "qv": {"target_modules": ["q_proj", "v_proj"]},
    "all-linear": {"target_modules": "all-linear"},
    "rslora": {"target_modules": ["q_proj", "k_proj", "up_proj", "o_proj"], "use_rslora": True, "lora_alpha": 5},
    "embedding": {"target_modules": ["embed.tokens", "down_proj"]},
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "ranks": {
        "target_modules": "all-linear", "rank_pattern": {"v_proj": 4, "blocks.1.mlp.up_proj": 1},
        "alpha_pattern": {"down_proj": 1, "v_proj": 16},
    },
    "alphas": {"target_modules": ["q_proj", "v_proj"], "alpha_pattern": {"v_proj": 3}},
    "layers": {"target_modules": ["v_proj", "up_proj"], "layers_to_transform": [1]},
    "one layer": {"target_modules": "all-linear", "exclude_modules": ["blocks.0.**"], "use_rslora": True},
}  # fmt: skip
THEIRS = {  # (base, settings there), whose adapters we load
    "c_attn": ("gpt2", {"target_modules": ["c_attn"]}),
    "rslora": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "use_rslora": True, "lora_alpha": 5}),
    "all-linear gpt2": ("gpt2", {"target_modules": "all-linear"}),
    "wte": ("gpt2", {"target_modules": ["wte", "c_fc"]}),
    "wpe": ("gpt2", {"target_modules": ["wpe"]}),
    "tied head": ("gpt2", {"target_modules": ["lm_head", "attn.c_proj"]}),
    "patterns gpt2": (
        "gpt2",
        {
            "target_modules": "all-linear", "rank_pattern": {"c_attn": 6, "h.1.mlp.c_fc": 1},
            "alpha_pattern": {"c_proj": 2},
        },
    ),
    "layers gpt2": ("gpt2", {"target_modules": ["c_attn", "c_fc"], "layers_to_transform": [0], "layers_pattern": "h"}),
    "regex": ("gpt2", {"target_modules": r".*\.1\.(attn|mlp)\.c_(attn|fc)", "exclude_modules": [".*never"]}),
    "default llama": ("llama", {"target_modules": None}),
    "gaussian": ("llama", {"target_modules": ["q_proj", "gate_proj"], "init_lora_weights": "gaussian"}),
    "all-linear llama": ("llama", {"target_modules": "all-linear", "use_rslora": True}),
    "embeddings": ("llama", {"target_modules": ["embed_tokens", "lm_head", "k_proj"]}),
    "patterns llama": (
        "llama",
        {
            "target_modules": "all-linear", "rank_pattern": {r"(up|down)_proj": 6},
            "alpha_pattern": {r"layers\.0\..*": 2},
        },
    ),
    "layer llama": ("llama", {"target_modules": ["v_proj", "up_proj"], "layers_to_transform": 1}),
    "excluded": ("llama", {"target_modules": "all-linear", "exclude_modules": ["q_proj", "layers.0.mlp.up_proj"]}),
}  # fmt: skip


def stir_theirs(torch, model):
    """Move every adapter weight of peft's model, so that it matters."""
    torch.manual_seed(7)
    with torch.no_grad():
        for n, p in model.named_parameters():
            if "lora_" in n:
                p.add_(0.1 * torch.randn_like(p))
    return model


def stir_ours(p):
    rng = np.random.default_rng(7)
    for q in p.trainable_parameters().values():
        q.data += 0.1 * rng.standard_normal(q.shape).astype(np.float32)
    return p


def their_logits(torch, model, ids=IDS):
    with torch.no_grad():
        return model(torch.tensor(ids)).logits.numpy()


def their_config(peft, settings):
    return peft.LoraConfig(**{"task_type": "CAUSAL_LM", "r": 3, "lora_alpha": 6} | settings)


# -- files -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", BASES)
@pytest.mark.parametrize("settings", OURS.values(), ids=OURS)
def test_peft_loads_our_files_without_a_warning(settings, family, torch, peft, load, bases, tmp_path):
    p = stir_ours(
        get_peft_model(GPT.from_pretrained(bases[family]), LoraConfig(**{"r": 2, "lora_alpha": 8} | settings))
    )
    assert p.save_pretrained(tmp_path) == "peft"
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        # GPT-2: one flag stands for Conv1D layers and for the head beside them, and that head is tied
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to True but the target module is")
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True` and a tied layer is part")
        theirs = peft.PeftModel.from_pretrained(load(family), tmp_path)
    loaded = {n for n, _ in theirs.named_parameters() if "lora_" in n}
    assert len(loaded) == len(read_arrays(tmp_path / "adapter_model.safetensors"))
    np.testing.assert_allclose(their_logits(torch, theirs), logits(p, IDS), **CLOSE)
    assert np.abs(logits(p, IDS) - their_logits(torch, load(family))).max() > 1e-2


@pytest.mark.parametrize("family, settings", THEIRS.values(), ids=THEIRS)
@pytest.mark.filterwarnings(
    "ignore:fan_in_fan_out", "ignore:Setting `save_embedding_layers`", "ignore:Model with `tie_word"
)
@pytest.mark.filterwarnings(
    "ignore:Could not find a config file", "ignore:.*tie_word_embeddings", "ignore:You have passed"
)
def test_we_load_their_files(family, settings, torch, peft, load, bases, tmp_path):
    theirs = stir_theirs(torch, peft.get_peft_model(load(family), their_config(peft, settings))).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    p = PeftModel.from_pretrained(GPT.from_pretrained(bases[family]), tmp_path / "theirs")
    expected = their_logits(torch, theirs)
    np.testing.assert_allclose(logits(p, IDS), expected, **CLOSE)
    p.save_pretrained(tmp_path / "back")
    back = peft.PeftModel.from_pretrained(load(family), tmp_path / "back")
    np.testing.assert_allclose(their_logits(torch, back), expected, **CLOSE)


def test_a_round_trip_through_both_libraries_keeps_every_bit(torch, peft, load, bases, tmp_path):
    """Also for GPT-2: what peft saves again has lost our metadata, but the blocks of B are still to be seen."""
    for family in BASES:
        config = LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"])
        p = stir_ours(get_peft_model(GPT.from_pretrained(bases[family]), config))
        p.save_pretrained(tmp_path / family)
        peft.PeftModel.from_pretrained(load(family), tmp_path / family).save_pretrained(tmp_path / f"{family}-again")
        again = PeftModel.from_pretrained(GPT.from_pretrained(bases[family]), tmp_path / f"{family}-again")
        a, b = p.adapters["default"].named_parameters(), again.adapters["default"].named_parameters()
        assert a.keys() == b.keys() and all(np.array_equal(a[n].data, b[n].data) for n in a)
        assert again.adapters["default"].config.target_modules == config.target_modules


@pytest.mark.parametrize("settings", [{"bias": "all"}, {"modules_to_save": ["lm_head"]}, {"lora_bias": True}])
@pytest.mark.parametrize("family", BASES)
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_translated_is_refused_by_name(settings, family, peft, load, bases, tmp_path):
    target = ["c_attn"] if family == "gpt2" else ["q_proj"]
    config = their_config(peft, {"target_modules": target, **settings})
    peft.get_peft_model(load(family), config).save_pretrained(tmp_path)
    base = GPT.from_pretrained(bases[family])
    with pytest.raises(
        FileFormatError, match=f"no counterpart here: {next(iter(settings))}=.*merge the adapter with peft"
    ):
        PeftModel.from_pretrained(base, tmp_path)
    assert all(q.requires_grad for q in base.parameters())


# -- numbers -----------------------------------------------------------------------------------------------------
def pair(family, settings, torch, peft, load, bases, tmp_path, train=False):
    """(theirs, ours) with one adapter."""
    p = stir_ours(get_peft_model(GPT.from_pretrained(bases[family]), LoraConfig(**settings)))
    p.save_pretrained(tmp_path)
    return peft.PeftModel.from_pretrained(load(family), tmp_path, is_trainable=train), p


LLAMA_CASES = [
    {"r": 2, "lora_alpha": 8, "target_modules": "all-linear"},
    {"r": 4, "lora_alpha": 4, "target_modules": ["q_proj", "embed.tokens", "lm_head"], "use_rslora": True},
]


def their_gradients(theirs):
    return {n.replace(".default", ""): p.grad.numpy() for n, p in theirs.named_parameters() if p.grad is not None}


def our_gradients(p, tmp_path):
    """Under peft's names: a gradient is translated as the tensor itself is, where that is a renaming."""
    for q in p.trainable_parameters().values():
        q.data, q.grad = q.grad, q.data
    p.save_pretrained(tmp_path)
    for q in p.trainable_parameters().values():
        q.data, q.grad = q.grad, q.data
    return read_arrays(tmp_path / "adapter_model.safetensors")


@pytest.mark.parametrize("settings", LLAMA_CASES)
def test_loss_and_every_gradient(settings, torch, peft, load, bases, tmp_path):
    theirs, p = pair("llama", settings, torch, peft, load, bases, tmp_path, train=True)
    their_loss = theirs(torch.tensor(IDS), labels=torch.tensor(IDS)).loss
    their_loss.backward()
    out = p(IDS, labels=IDS)
    out.loss.backward()
    assert out.loss.item() == pytest.approx(their_loss.item(), rel=1e-6)
    ours, expected = our_gradients(p, tmp_path / "gradients"), their_gradients(theirs)
    assert ours.keys() == expected.keys()
    for name, g in expected.items():
        np.testing.assert_allclose(ours[name], g, rtol=1e-4, atol=1e-5 * np.abs(g).max(), err_msg=name)


def test_gradients_of_a_fused_projection(torch, peft, load, bases, tmp_path):
    """dA of the fused adapter is that of each projection, stacked; of dB the blocks on the diagonal are ours."""
    settings = {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "k_proj", "v_proj", "up_proj"]}
    theirs, p = pair("gpt2", settings, torch, peft, load, bases, tmp_path, train=True)
    theirs(torch.tensor(IDS), labels=torch.tensor(IDS)).loss.backward()
    p(IDS, labels=IDS).loss.backward()
    expected = their_gradients(theirs)
    own = {n: q.grad for n, q in p.adapters["default"].named_parameters().items()}

    def same(name, g):
        np.testing.assert_allclose(own[name], g, rtol=1e-4, atol=1e-5 * np.abs(g).max(), err_msg=name)

    for layer in range(2):
        prefix = f"base_model.model.transformer.h.{layer}"
        for i, x in enumerate("qkv"):
            part = slice(2 * i, 2 * i + 2)
            g = expected[f"{prefix}.attn.c_attn.lora_A.weight"][part]
            np.testing.assert_allclose(
                own[f"blocks.{layer}.attn.{x}_proj.lora_A"], g, rtol=1e-4, atol=1e-5 * np.abs(g).max()
            )
            g = expected[f"{prefix}.attn.c_attn.lora_B.weight"][32 * i : 32 * i + 32, part]
            np.testing.assert_allclose(
                own[f"blocks.{layer}.attn.{x}_proj.lora_B"], g, rtol=1e-4, atol=1e-5 * np.abs(g).max()
            )
        for x in "AB":
            g = expected[f"{prefix}.mlp.c_fc.lora_{x}.weight"]
            np.testing.assert_allclose(
                own[f"blocks.{layer}.mlp.up_proj.lora_{x}"], g, rtol=1e-4, atol=1e-5 * np.abs(g).max()
            )


@pytest.mark.parametrize(
    "family, settings",
    [
        ("llama", LLAMA_CASES[0]),
        ("llama", LLAMA_CASES[1]),
        ("gpt2", {"r": 3, "lora_alpha": 6, "target_modules": ["o_proj", "up_proj", "down_proj", "embed.tokens"]}),
    ],
)
def test_ten_steps_of_training(family, settings, torch, peft, load, bases, tmp_path):
    theirs, p = pair(family, settings, torch, peft, load, bases, tmp_path, train=True)
    their_optimizer = torch.optim.AdamW([q for q in theirs.parameters() if q.requires_grad], lr=1e-2)
    optimizer = AdamW(p.trainable_parameters(), lr=1e-2)
    losses = []
    for step in range(10):
        ids = np.random.default_rng(step).integers(0, 64, (3, 9))
        their_loss = theirs(torch.tensor(ids), labels=torch.tensor(ids)).loss
        their_loss.backward()
        their_optimizer.step()
        their_optimizer.zero_grad()
        loss = p(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append((loss.item(), their_loss.item()))
    ours, expected = np.array(losses).T
    np.testing.assert_allclose(ours, expected, rtol=2e-5)
    np.testing.assert_allclose(logits(p, IDS), their_logits(torch, theirs), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", BASES)
def test_merged_models_are_the_same(family, torch, peft, load, bases, tmp_path):
    settings = {"r": 2, "lora_alpha": 8, "target_modules": "all-linear"}
    theirs, p = pair(family, settings, torch, peft, load, bases, tmp_path)
    merged, plain = theirs.merge_and_unload(), p.merge_and_unload()
    fields = plain.config.to_dict()
    weights = {n: q.detach().numpy() for n, q in merged.named_parameters()}
    for name, array in to_hf(choose_family(fields), fields, plain.state_dict()).items():
        np.testing.assert_allclose(array, weights[name], rtol=1e-6, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(logits(plain, IDS), their_logits(torch, merged), **CLOSE)
    plain.save_pretrained(tmp_path / "plain")
    import transformers

    read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval()
    np.testing.assert_allclose(their_logits(torch, read), logits(plain, IDS), **CLOSE)


def test_rows_under_different_adapters(torch, peft, load, bases, tmp_path):
    first = {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"]}
    theirs, p = pair("llama", first, torch, peft, load, bases, tmp_path)
    p.add_adapter("second", LoraConfig(r=3, lora_alpha=3, target_modules=["v_proj"]), seed=2)
    p.set_adapter("second")
    stir_ours(p).save_pretrained(tmp_path / "second", "second")
    theirs.load_adapter(tmp_path / "second", "second")
    names = ["second", "__base__", "default"]
    with torch.no_grad():
        expected = theirs(torch.tensor(IDS), adapter_names=names).logits.numpy()
    np.testing.assert_allclose(logits(p, IDS, adapter_names=names), expected, **CLOSE)


def test_trainable_parameters_are_counted_alike(torch, peft, load, bases, capsys):
    for family in BASES:
        ours = get_peft_model(GPT.from_pretrained(bases[family]), LoraConfig(r=2, target_modules="all-linear"))
        ours.print_trainable_parameters()
        if family == "llama":  # GPT-2's fused projection has one A there, three here
            theirs = peft.get_peft_model(load(family), peft.LoraConfig(r=2, target_modules="all-linear"))
            theirs.print_trainable_parameters()
            ours_printed, theirs_printed = capsys.readouterr().out.splitlines()[-2:]
            assert ours_printed == theirs_printed


# -- defects that are not here -----------------------------------------------------------------------------------
def test_theirs_drifts_when_merged_and_unmerged(torch, peft, load, bases, tmp_path):
    settings = {"r": 2, "lora_alpha": 8, "target_modules": ["up_proj"]}
    theirs, p = pair("llama", settings, torch, peft, load, bases, tmp_path)
    weight = theirs.base_model.model.model.layers[0].mlp.up_proj.base_layer.weight
    before = weight.detach().clone(), p.base_model.blocks[0].mlp.up_proj.base.weight.data.copy()
    for _ in range(100):
        theirs.merge_adapter()
        theirs.unmerge_adapter()
        p.merge_adapter(IDS[:1, :2])
        p.unmerge_adapter()
    assert 0 < (weight - before[0]).abs().max().item() < 1e-6
    assert np.array_equal(p.base_model.blocks[0].mlp.up_proj.base.weight.data, before[1])


def test_theirs_takes_a_partly_wrong_list_of_targets_in_silence(peft, load, bases):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        peft.get_peft_model(load("llama"), peft.LoraConfig(target_modules=["q_proj", "FAKE"]))
    with pytest.raises(ValueError, match="'FAKE' matches no layer"):
        get_peft_model(GPT.from_pretrained(bases["llama"]), LoraConfig(target_modules=["q_proj", "FAKE"]))


@pytest.mark.parametrize("change", ["missing", "unexpected", "renamed"])
@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_theirs_loads_a_file_whose_tensors_do_not_land(change, torch, peft, load, bases, tmp_path):
    settings = {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj"]}
    _, p = pair("llama", settings, torch, peft, load, bases, tmp_path)
    arrays = read_arrays(tmp_path / "adapter_model.safetensors")
    name = next(n for n in arrays if n.endswith("lora_B.weight"))
    if change != "unexpected":
        array = arrays.pop(name)
    if change != "missing":
        arrays["base_model.model.model.layers.7.self_attn.q_proj.lora_B.weight"] = (
            array if change == "renamed" else np.ones(3, "f")
        )
    write_arrays(tmp_path / "adapter_model.safetensors", arrays)
    theirs = peft.PeftModel.from_pretrained(load("llama"), tmp_path)
    if change != "unexpected":
        assert np.abs(their_logits(torch, theirs) - logits(p, IDS)).max() > 1e-3  # part of the adapter is lost
    with pytest.raises(FileFormatError, match=r"the model expects .* the file has instead"):
        PeftModel.from_pretrained(GPT.from_pretrained(bases["llama"]), tmp_path)


def test_theirs_ignores_what_it_does_not_know_in_the_json(torch, peft, load, bases, tmp_path):
    settings = {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj"]}
    pair("llama", settings, torch, peft, load, bases, tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(read_json(path) | {"use_something_new": True}))
    with pytest.warns(UserWarning, match="use_something_new"):
        peft.PeftModel.from_pretrained(load("llama"), tmp_path)
    with pytest.raises(FileFormatError, match="use_something_new=True"):
        PeftModel.from_pretrained(GPT.from_pretrained(bases["llama"]), tmp_path)


def test_theirs_starts_depend_on_what_was_drawn_before(torch, peft, load, bases):
    def start(draws):
        torch.manual_seed(0)
        torch.rand(draws)
        np.random.default_rng(0).random(draws)
        theirs = peft.get_peft_model(load("llama"), peft.LoraConfig(r=2, target_modules=["q_proj"]))
        ours = get_peft_model(GPT.from_pretrained(bases["llama"]), LoraConfig(r=2, target_modules=["q_proj"]), seed=0)
        A = next(q for n, q in theirs.named_parameters() if "lora_A" in n).detach().numpy()
        return A, next(iter(ours.trainable_parameters().values())).data

    (theirs, ours), (theirs_again, ours_again) = start(0), start(1)
    assert not np.array_equal(theirs, theirs_again) and np.array_equal(ours, ours_again)
    for A in (theirs, ours):  # the same distribution
        assert np.abs(A).max() <= 32**-0.5 and np.abs(A).max() > 0.9 * 32**-0.5


def test_theirs_has_no_mixed_batches_in_training(torch, peft, load, bases, tmp_path):
    settings = {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj"]}
    theirs, p = pair("llama", settings, torch, peft, load, bases, tmp_path, train=True)
    names = ["default", "__base__", "default"]
    with pytest.raises(ValueError, match="training mode"):
        theirs.train()(torch.tensor(IDS), adapter_names=names)
    p.train()(IDS, labels=IDS, adapter_names=names).loss.backward()
    assert all(q.grad is not None and q.grad.any() for q in p.trainable_parameters().values())


@pytest.mark.filterwarnings("ignore")
def test_theirs_merges_into_the_shared_embedding(torch, peft, load, bases, tmp_path):
    """Adapting wte of GPT-2 and merging changes the tied head there; here it is untied first."""
    settings = {"r": 2, "lora_alpha": 8, "target_modules": ["embed.tokens"]}
    theirs, p = pair("gpt2", settings, torch, peft, load, bases, tmp_path)
    before = their_logits(torch, theirs)
    np.testing.assert_allclose(logits(p, IDS), before, **CLOSE)
    merged = theirs.merge_and_unload()
    assert np.abs(their_logits(torch, merged) - before).max() > 0.1
    np.testing.assert_allclose(logits(p.merge_and_unload(), IDS), before, **CLOSE)
