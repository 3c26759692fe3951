"""DoRA, PiSSA, LoRA+ and VeRA against ``peft``: the same numbers, each other's files, and defects that are not here."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from peft_cases import BASES, logits

from minitorch_peft.autograd.tensor import no_grad
from minitorch_peft.formats.files import FileFormatError, read_arrays, read_json, write_arrays
from minitorch_peft.models import GPT
from minitorch_peft.optim import AdamW
from minitorch_peft.peft import LoraConfig, LoraPlusConfig, PeftModel, VeraConfig, get_peft_model
from minitorch_peft.peft.parameter.vera_projection import torch_uniform

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings(
        "ignore:.*torch.jit", "ignore:.*is_gradient_checkpointing", "ignore:fan_in_fan_out", "ignore:You have passed",
        "ignore:.*tie_word_embeddings", "ignore:Could not find a config file", "ignore:Setting `save_embedding_layers`",
        "ignore:Model with `tie_word", "ignore:Specified to not", "ignore:PiSSA changes the base weights",
        "ignore:merging changed a weight", "ignore:Using Rank-Stabilized LoRA with rank_pattern",
    ),
]  # fmt: skip
IDS = np.random.default_rng(4).integers(0, 64, (3, 9))
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
DORA = {"use_dora": True}
PISSA = {"init_lora_weights": "pissa"}
OURS = {  # configs here, whose adapters peft loads
    "dora": LoraConfig(r=2, lora_alpha=8, **DORA),
    "dora all-linear": LoraConfig(r=3, target_modules="all-linear", use_rslora=True, **DORA),
    "dora embedding": LoraConfig(r=2, target_modules=["embed.tokens", "down_proj"], **DORA),
    "dora ranks": LoraConfig(
        r=2, target_modules=["q_proj", "k_proj", "o_proj"], rank_pattern={"k_proj": 1}, alpha_pattern={"k_proj": 3},
        **DORA,
    ),
    "dora layer": LoraConfig(r=2, target_modules=["v_proj", "up_proj"], layers_to_transform=[1], **DORA),
    "pissa": LoraConfig(r=2, lora_alpha=8, **PISSA),
    "pissa all-linear": LoraConfig(r=3, target_modules="all-linear", use_rslora=True, **PISSA),
    "pissa embedding": LoraConfig(
        r=2, target_modules=["embed.tokens", "k_proj"], rank_pattern={"k_proj": 3}, alpha_pattern={"k_proj": 3},
        **PISSA,
    ),
    "lora plus": LoraPlusConfig(r=2, target_modules=["q_proj", "v_proj", "up_proj"]),
    "vera": VeraConfig(r=6),
    "vera all-linear": VeraConfig(r=70, target_modules="all-linear", d_initial=0.3),
    "vera k": VeraConfig(r=6, target_modules=["k_proj", "down_proj"], projection_prng_key=5, save_projection=False),
    "vera layer": VeraConfig(r=6, target_modules=["o_proj", "up_proj", "k_proj"], layers_to_transform=[1]),
}  # fmt: skip
THEIRS = {  # (base, method, settings there), whose adapters we load
    "dora c_attn": ("gpt2", "lora", {"target_modules": ["c_attn"], **DORA}),
    "dora all-linear gpt2": ("gpt2", "lora", {"target_modules": "all-linear", "use_rslora": True, **DORA}),
    "dora wte": ("gpt2", "lora", {"target_modules": ["wte", "mlp.c_proj"], **DORA}),
    "dora llama": ("llama", "lora", {"target_modules": "all-linear", "rank_pattern": {"k_proj": 5}, **DORA}),
    "pissa c_attn": ("gpt2", "lora", {"target_modules": ["c_attn"], **PISSA}),
    "pissa gpt2": (
        "gpt2", "lora", {"target_modules": "all-linear", "rank_pattern": {"c_attn": 5}, "use_rslora": True, **PISSA},
    ),
    "pissa unfused gpt2": ("gpt2", "lora", {"target_modules": ["c_fc", "c_proj"], **PISSA}),
    "pissa wte": ("gpt2", "lora", {"target_modules": ["wte", "c_fc"], "alpha_pattern": {"wte": 3}, **PISSA}),
    "pissa llama": ("llama", "lora", {"target_modules": "all-linear", "alpha_pattern": {"v_proj": 3}, **PISSA}),
    "vera c_attn": ("gpt2", "vera", {"target_modules": ["c_attn", "c_fc"]}),
    "vera gpt2, by its key": (
        "gpt2", "vera", {"target_modules": ["c_attn", "c_proj"], "save_projection": False, "projection_prng_key": 7},
    ),
    "vera llama": ("llama", "vera", {"target_modules": "all-linear"}),
    "vera llama, by its key": ("llama", "vera", {"target_modules": ["v_proj", "down_proj"], "save_projection": False}),
}  # fmt: skip


def base(bases, family):
    return GPT.from_pretrained(bases[family]).eval()


def stir_ours(p, scale=0.1):
    for name, q in p.adapters["default"].named_parameters().items():
        q.data += scale * np.random.default_rng([7, *name.encode()]).standard_normal(q.shape).astype(np.float32)
    return p


def stir_theirs(torch, model, scale=0.1):
    generator = torch.Generator().manual_seed(7)
    for name, q in model.named_parameters():
        if "lora_" in name or "vera_lambda" in name:
            q.data += scale * torch.randn(q.shape, generator=generator)
    return model.eval()


def their_logits(torch, model, ids=IDS):
    with torch.no_grad():
        return model(torch.tensor(ids)).logits.numpy()


def their_config(peft, method, settings):
    if method == "vera":
        return peft.VeraConfig(**{"task_type": "CAUSAL_LM", "r": 5} | settings)
    return peft.LoraConfig(**{"task_type": "CAUSAL_LM", "r": 3, "lora_alpha": 6} | settings)


# -- files -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", BASES)
@pytest.mark.parametrize("config", OURS.values(), ids=OURS)
def test_peft_loads_our_files_without_a_warning(config, family, torch, peft, load, bases, tmp_path):
    p = stir_ours(get_peft_model(base(bases, family), config))
    assert p.save_pretrained(tmp_path) == "peft"
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to True but the target module is")
        warnings.filterwarnings("ignore", message="Specified to not")  # VeRA's matrices by their key
        theirs = peft.PeftModel.from_pretrained(load(family), tmp_path)
    np.testing.assert_allclose(their_logits(torch, theirs), logits(p, IDS), **CLOSE)
    assert np.abs(logits(p, IDS) - their_logits(torch, load(family))).max() > 1e-2
    again = PeftModel.from_pretrained(base(bases, family), tmp_path)
    np.testing.assert_allclose(logits(again, IDS), logits(p, IDS), rtol=1e-6, atol=1e-6)
    own, read = (m.adapters["default"].named_parameters() for m in (p, again))
    assert own.keys() == read.keys()
    if not (family == "gpt2" and config in (OURS["dora ranks"], OURS["pissa embedding"])):  # one s for all of c_attn
        assert all(np.array_equal(own[n].data, read[n].data) for n in own)


@pytest.mark.parametrize("family, method, settings", THEIRS.values(), ids=THEIRS)
def test_we_load_their_files(family, method, settings, torch, peft, load, bases, tmp_path):
    theirs = stir_theirs(torch, peft.get_peft_model(load(family), their_config(peft, method, settings)))
    theirs.save_pretrained(tmp_path / "theirs")
    expected = their_logits(torch, theirs)
    assert np.abs(expected - their_logits(torch, load(family))).max() > 1e-2
    p = PeftModel.from_pretrained(base(bases, family), tmp_path / "theirs")
    if "init_lora_weights" in settings:  # theirs decomposes in float32, and is off by that: ours is the exact one
        np.testing.assert_allclose(logits(p, IDS), expected, rtol=1e-4, atol=2e-4)
        expected = logits(PeftModel.from_pretrained(base(bases, family).astype(float), tmp_path / "theirs"), IDS)
    np.testing.assert_allclose(logits(p, IDS), expected, **CLOSE)
    p.save_pretrained(tmp_path / "back")
    back = peft.PeftModel.from_pretrained(load(family), tmp_path / "back")
    np.testing.assert_allclose(their_logits(torch, back), expected, **CLOSE)
    merged = p.merge_and_unload()
    np.testing.assert_allclose(logits(merged, IDS), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "config", [OURS["dora all-linear"], OURS["pissa"], OURS["vera"]], ids=["dora", "pissa", "vera"]
)
@pytest.mark.parametrize("family", BASES)
def test_what_peft_saves_again_gives_the_same_outputs(config, family, torch, peft, load, bases, tmp_path):
    """It has lost our metadata: PiSSA is then a LoRA of twice the rank, VeRA on a fused module one of three times."""
    p = stir_ours(get_peft_model(base(bases, family), config))
    p.save_pretrained(tmp_path / "ours")
    peft.PeftModel.from_pretrained(load(family), tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    again = PeftModel.from_pretrained(base(bases, family), tmp_path / "theirs")
    np.testing.assert_allclose(logits(again, IDS), logits(p, IDS), **CLOSE)


# -- numbers ---------------------------------------------------------------------------------------------------------
def pair(family, config, peft, load, bases, directory, scale=0.1):
    """(theirs, ours) with one adapter, to train."""
    p = stir_ours(get_peft_model(base(bases, family), config), scale)
    p.save_pretrained(directory)
    return peft.PeftModel.from_pretrained(load(family), directory, is_trainable=True), p


def gradients(torch, theirs, p, directory):
    """({peft's name: gradient}, {peft's name: ours}); ours is renamed as a tensor is when it is saved."""
    their_loss = theirs(torch.tensor(IDS), labels=torch.tensor(IDS)).loss
    their_loss.backward()
    out = p(IDS, labels=IDS)
    out.loss.backward()
    assert out.loss.item() == pytest.approx(their_loss.item(), rel=1e-6)
    parameters = p.trainable_parameters().values()
    kept = [q.data for q in parameters]
    for q in parameters:
        q.data = q.grad
    p.save_pretrained(directory)
    for q, data in zip(parameters, kept, strict=True):
        q.data = data
    expected = {n.replace(".default", ""): q.grad.numpy() for n, q in theirs.named_parameters() if q.grad is not None}
    expected = {n.replace("lora_magnitude_vector.weight", "lora_magnitude_vector"): g for n, g in expected.items()}
    return expected, read_arrays(directory / "adapter_model.safetensors")


def same(ours, expected):
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


TARGETS = {"llama": "all-linear", "gpt2": ["o_proj", "up_proj", "down_proj"]}


@pytest.mark.parametrize("family", TARGETS)
def test_dora_with_the_norm_held_constant_has_peft_s_gradients(family, torch, peft, load, bases, tmp_path):
    config = LoraConfig(r=2, lora_alpha=8, target_modules=TARGETS[family], dora_detach_norm=True, **DORA)
    theirs, p = pair(family, config, peft, load, bases, tmp_path)
    expected, ours = gradients(torch, theirs, p, tmp_path / "gradients")
    assert ours.keys() == expected.keys() and any("magnitude" in n for n in ours)
    for name, g in expected.items():
        same(ours[name], g)


def test_dora_s_exact_gradients_differ_from_peft_s_in_a_and_b_alone(torch, peft, load, bases, tmp_path):
    config = LoraConfig(r=2, lora_alpha=8, target_modules="all-linear", **DORA)
    theirs, p = pair("llama", config, peft, load, bases, tmp_path)
    expected, ours = gradients(torch, theirs, p, tmp_path / "gradients")
    for name, g in expected.items():
        if "magnitude" in name:
            same(ours[name], g)
        else:
            assert np.abs(ours[name] - g).max() > 1e-3 * np.abs(g).max(), name


def test_dora_of_a_fused_projection_has_its_parts_gradients(torch, peft, load, bases, tmp_path):
    config = LoraConfig(r=2, target_modules=["q_proj", "k_proj", "v_proj"], dora_detach_norm=True, **DORA)
    theirs, p = pair("gpt2", config, peft, load, bases, tmp_path)
    expected, _ = gradients(torch, theirs, p, tmp_path / "gradients")
    own = {n: q.grad for n, q in p.adapters["default"].named_parameters().items()}
    for i, x in enumerate("qkv"):
        rows, part = slice(32 * i, 32 * i + 32), slice(2 * i, 2 * i + 2)
        prefix, path = "base_model.model.transformer.h.1.attn.c_attn", f"blocks.1.attn.{x}_proj"
        same(own[f"{path}.lora_A"], expected[f"{prefix}.lora_A.weight"][part])
        same(own[f"{path}.lora_B"], expected[f"{prefix}.lora_B.weight"][rows, part])
        same(own[f"{path}.lora_magnitude_vector"], expected[f"{prefix}.lora_magnitude_vector"][rows])


@pytest.mark.parametrize("family", TARGETS)
def test_vera_s_gradients(family, torch, peft, load, bases, tmp_path):
    theirs, p = pair(family, VeraConfig(r=40, target_modules=TARGETS[family]), peft, load, bases, tmp_path)
    expected, ours = gradients(torch, theirs, p, tmp_path / "gradients")
    assert expected.keys() == {n for n in ours if "lambda" in n}
    for name, g in expected.items():
        same(ours[name], g)


def test_vera_s_matrices_are_peft_s_bit_for_bit(torch, peft, load, bases):
    config = {"r": 300, "target_modules": "all-linear", "projection_prng_key": 11}
    theirs = peft.get_peft_model(load("llama"), peft.VeraConfig(task_type="CAUSAL_LM", **config)).base_model
    projection = get_peft_model(base(bases, "llama"), VeraConfig(**config)).adapters["default"].projection
    assert np.array_equal(theirs.vera_A["default"].numpy(), projection.A) and projection.A.shape == (300, 48)
    assert np.array_equal(theirs.vera_B["default"].numpy(), projection.B) and projection.B.shape == (48, 300)
    for key in (0, 2**31 + 7):
        bound = np.sqrt(3.0) * (np.sqrt(2.0) / np.sqrt(257))
        drawn = torch.empty(129, 257).uniform_(-bound, bound, generator=torch.Generator().manual_seed(key))
        assert np.array_equal(torch_uniform(np.random.RandomState(key), (129, 257)), drawn.numpy())


def test_pissa_trains_as_peft_s(torch, peft, load, bases, tmp_path):
    """Which trains A and B on a base that it has changed: the same losses, and the same end."""
    settings = {"r": 3, "lora_alpha": 6, "target_modules": "all-linear", **PISSA}
    theirs = peft.get_peft_model(load("llama"), peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    theirs.save_pretrained(tmp_path)  # ours starts at its factors, so that the signs of singular vectors agree
    p = PeftModel.from_pretrained(base(bases, "llama"), tmp_path, is_trainable=True)
    assert p.adapters["default"].config == LoraConfig(
        **{**settings, "target_modules": p.adapters["default"].config.target_modules}
    )
    theirs_optimizer = torch.optim.AdamW([q for q in theirs.parameters() if q.requires_grad], lr=1e-2)
    optimizer, losses = AdamW(p.trainable_parameters(), lr=1e-2), []
    for _ in range(10):
        their_loss = theirs(torch.tensor(IDS), labels=torch.tensor(IDS)).loss
        loss = p(IDS, labels=IDS).loss
        for value, o in ((their_loss, theirs_optimizer), (loss, optimizer)):
            value.backward()
            o.step()
            o.zero_grad()
        losses.append((loss.item(), their_loss.item()))
    np.testing.assert_allclose(*np.array(losses).T, rtol=1e-4)
    assert losses[-1][0] < losses[0][0]
    with no_grad():
        np.testing.assert_allclose(logits(p, IDS), their_logits(torch, theirs), rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("family", BASES)
def test_pissa_as_a_lora_is_what_peft_converts_it_to(family, torch, peft, load, bases, tmp_path):
    """``path_initial_model_for_weight_conversion``: [A; A₀], [B, -B₀], alpha twice."""
    target = "all-linear" if family == "llama" else ["c_attn", "c_fc"]
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=6, target_modules=target, **PISSA)
    theirs = peft.get_peft_model(load(family), config)
    theirs.peft_config["default"].init_lora_weights = True
    theirs.save_pretrained(tmp_path / "start")
    theirs.peft_config["default"].init_lora_weights = "pissa"
    stir_theirs(torch, theirs).save_pretrained(
        tmp_path / "lora", path_initial_model_for_weight_conversion=tmp_path / "start"
    )
    settings = read_json(tmp_path / "lora" / "adapter_config.json")
    assert (settings["r"], settings["lora_alpha"]) == (6, 12)
    expected = their_logits(torch, theirs)
    p = PeftModel.from_pretrained(base(bases, family), tmp_path / "lora")
    np.testing.assert_allclose(logits(p, IDS), expected, **CLOSE)
    layers = p.adapters["default"].wrappers.values()
    assert {len(layer.lora_A.data) for layer in layers} == {6} and all(layer.additive for layer in layers)


def test_lora_plus_has_the_groups_of_peft_s_optimizer(torch, peft, load, bases, tmp_path):
    from peft.optimizers import create_loraplus_optimizer

    config = LoraPlusConfig(r=2, target_modules="all-linear", loraplus_lr_ratio=8)
    theirs, p = pair("llama", config, peft, load, bases, tmp_path)
    optimizer = create_loraplus_optimizer(theirs, torch.optim.SGD, lr=1.0, loraplus_lr_ratio=8.0)
    rates = {id(q): group["lr"] for group in optimizer.param_groups for q in group["params"]}
    expected = {n.replace(".default.weight", ""): rates[id(q)] for n, q in theirs.named_parameters() if id(q) in rates}
    ours = {n: group["lr_scale"] for group in p.param_groups() for n in group["params"]}
    assert len(ours) == len(expected) == 28
    for name, rate in ours.items():
        _, i, _, leaf, x, _ = name.split(".")
        (their_rate,) = [r for n, r in expected.items() if f"layers.{i}." in n and n.endswith(f"{leaf}.{x}")]
        assert rate == their_rate == (8 if x == "lora_B" else 1)


# -- defects that are not here -----------------------------------------------------------------------------------
@pytest.mark.parametrize("target", ["o_proj", "q_proj", "up_proj"])
def test_theirs_starts_olora_on_a_transposed_weight(target, torch, peft, load, bases):
    """GPT-2's weights are stored (in, out). There a start that decomposes one is wrong, or fails; ours leaves the
    model as it was, whatever the shape."""
    theirs = {"o_proj": "attn.c_proj", "q_proj": "c_attn", "up_proj": "c_fc"}[target]
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=3, target_modules=[theirs], init_lora_weights="olora")
    model = load("gpt2")
    before = their_logits(torch, model)
    if target == "o_proj":  # square: silently another model
        assert np.abs(their_logits(torch, peft.get_peft_model(model, config)) - before).max() > 0.01
    else:
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            their_logits(torch, peft.get_peft_model(model, config))
    for settings in (PISSA, DORA):
        model = base(bases, "gpt2")
        plain = logits(model, IDS)
        p = get_peft_model(model, LoraConfig(r=3, target_modules=[target], **settings))
        np.testing.assert_array_equal(logits(p, IDS), plain)


def test_theirs_cannot_load_pissa_without_a_second_copy(torch, peft, load, bases, tmp_path):
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=3, target_modules=["q_proj"], **PISSA)
    stir_theirs(torch, peft.get_peft_model(load("llama"), config)).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="incompatible tensor type"):
        peft.PeftModel.from_pretrained(load("llama"), tmp_path, low_cpu_mem_usage=True)
    theirs = peft.PeftModel.from_pretrained(load("llama"), tmp_path)
    p = PeftModel.from_pretrained(base(bases, "llama"), tmp_path)
    np.testing.assert_allclose(logits(p, IDS), their_logits(torch, theirs), **CLOSE)


def test_theirs_changes_the_base_for_pissa(torch, peft, load, bases):
    model, ours = load("llama"), base(bases, "llama")
    weight = model.model.layers[0].self_attn.q_proj.weight.detach().clone()
    theirs = peft.get_peft_model(model, peft.LoraConfig(r=3, target_modules=["q_proj"], **PISSA)).unload()
    assert (theirs.model.layers[0].self_attn.q_proj.weight - weight).abs().max() > 0.01  # no base any more
    kept = ours.blocks[0].attn.q_proj.weight.data.copy()
    plain = get_peft_model(ours, LoraConfig(r=3, target_modules=["q_proj"], **PISSA)).unload()
    assert np.array_equal(plain.blocks[0].attn.q_proj.weight.data, kept)


def test_theirs_has_no_rows_of_their_own_for_dora(torch, peft, load, bases, tmp_path):
    theirs, p = pair("llama", LoraConfig(r=2, **DORA), peft, load, bases, tmp_path)
    p.add_adapter("second", LoraConfig(r=3), seed=1)
    theirs.add_adapter("second", peft.LoraConfig(task_type="CAUSAL_LM", r=3, target_modules=["q_proj"]))
    names = ["second", "__base__", "default"]
    with pytest.raises(ValueError, match="DoRA"):
        theirs.eval()(torch.tensor(IDS), adapter_names=names)
    mixed = logits(p, IDS, adapter_names=names)
    np.testing.assert_allclose(mixed[2], logits(p, IDS)[2], **CLOSE)
    p.train()(IDS, labels=IDS, adapter_names=names).loss.backward()
    assert all(q.grad.any() for q in p.trainable_parameters().values())


def test_theirs_adds_adapters_up_with_cross_terms(torch, peft, load, bases, tmp_path):
    """A "linear" combination there is (B + B')(A + A'); adapters that act together here are B A + B' A'."""
    theirs, p = pair("llama", LoraConfig(r=2, lora_alpha=2), peft, load, bases, tmp_path)
    p.add_adapter("second", LoraConfig(r=2, lora_alpha=2), seed=3)
    p.set_adapter("second")
    for q in p.adapters["second"].named_parameters().values():
        q.data += 0.2
    p.save_pretrained(tmp_path / "second", "second")
    theirs.load_adapter(tmp_path / "second", "second")
    p.set_adapter(["default", "second"])
    layer = p.base_model.blocks[0].attn.q_proj
    inner = p.adapters["default"].wrappers["blocks.0.attn.q_proj"]
    W = inner.base.dense_weight()
    exact = layer.effective(inner.effective(W)) - W
    module = theirs.base_model.model.model.layers[0].self_attn.q_proj
    for kind, agrees in (("cat", True), ("linear", False)):
        theirs.add_weighted_adapter(["default", "second"], [1.0, 1.0], kind, combination_type=kind)
        difference = np.abs(module.get_delta_weight(kind).detach().numpy() - exact).max()
        assert bool(difference < 1e-6) is agrees
    theirs.set_adapter("cat")
    np.testing.assert_allclose(logits(p, IDS), their_logits(torch, theirs.eval()), **CLOSE)


def test_a_missing_projection_or_magnitude_is_named(peft, load, bases, tmp_path):
    for config, name in ((OURS["vera"], "base_model.vera_B"), (OURS["dora"], "q_proj.lora_magnitude_vector")):
        get_peft_model(base(bases, "llama"), config).save_pretrained(tmp_path)
        arrays = read_arrays(tmp_path / "adapter_model.safetensors")
        write_arrays(tmp_path / "adapter_model.safetensors", {n: a for n, a in arrays.items() if not n.endswith(name)})
        with pytest.raises(FileFormatError, match=f"the model expects .*{name}"):
            PeftModel.from_pretrained(base(bases, "llama"), tmp_path)
