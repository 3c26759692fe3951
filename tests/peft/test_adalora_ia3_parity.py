"""AdaLoRA and IA3 against ``peft``: training step for step, files both ways, and defects that are not here."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from peft_cases import BASES, logits, stirred

from minitorch_peft.formats.files import FileFormatError, read_arrays, read_json
from minitorch_peft.models import GPT
from minitorch_peft.optim import AdamW
from minitorch_peft.peft import AdaLoraConfig, IA3Config, PeftModel, get_peft_model

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings(
        "ignore:.*torch.jit", "ignore:.*is_gradient_checkpointing", "ignore:fan_in_fan_out", "ignore:You have passed",
        "ignore:Adapter .* LoRA tensor.* have invalid shape", "ignore:The following rank_pattern keys did not match",
        "ignore:.*tie_word_embeddings", "ignore:Could not find a config file", "ignore:Setting `save_embedding_layers`",
    ),
]  # fmt: skip
IDS = np.random.default_rng(4).integers(0, 64, (3, 9))
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def their_logits(torch, model):
    with torch.no_grad():
        return model(torch.tensor(IDS)).logits.numpy()


def stir_theirs(torch, model, word):
    generator = torch.Generator().manual_seed(3)
    for name, q in model.named_parameters():
        if word in name and "ranknum" not in name:
            q.data += 0.3 * torch.randn(q.shape, generator=generator)
    return model.eval()


def base(bases, family):
    return GPT.from_pretrained(bases[family]).eval()


def load_theirs_strictly(peft, model, directory, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to True but the target module is")
        return peft.PeftModel.from_pretrained(model, directory, **options)


# -- AdaLoRA: training -----------------------------------------------------------------------------------------------
SCHEDULES = {  # on GPT-2, which runs in float64 throughout there; Llama's norms do not
    "plain": {"target_modules": ["o_proj", "up_proj", "down_proj"]},
    "phases": {"target_modules": ["o_proj", "down_proj"], "tinit": 3, "tfinal": 5, "deltaT": 3},
    "other averages": {"target_modules": ["o_proj", "up_proj"], "tfinal": 4, "beta1": 0.7, "beta2": 0.5},
}


def ours_and_theirs(settings, torch, peft, load, bases, directory):
    """(ours, theirs) with one new adapter, in float64, so that no rank hangs on a rounding."""
    config = AdaLoraConfig(init_r=6, target_r=2, lora_alpha=12, total_step=20, **settings)
    p = get_peft_model(base(bases, "gpt2").astype(np.float64), config)
    p.save_pretrained(directory)
    arrays = read_arrays(directory / "adapter_model.safetensors")
    theirs = peft.PeftModel.from_pretrained(load("gpt2").double(), directory, is_trainable=True).double()
    own = {n.replace(".default", ""): q for n, q in theirs.named_parameters() if "lora_" in n}
    for name, array in arrays.items():
        own[name].data = own[name].data.new_tensor(array)

    def cross_entropy(logits, labels, **options):  # the library's goes back to float32
        return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    theirs.base_model.model.loss_function = cross_entropy
    return p, theirs


def their_name(path, name):
    """Of one of our parameters."""
    _, layer, kind, leaf = path.split(".")
    return f"h.{layer}.{kind}.{'c_fc' if leaf == 'up_proj' else 'c_proj'}.{name}"


def theirs_of(table, path, name):
    """The entry of ``table`` for our parameter ``name`` at ``path``."""
    end = their_name(path, name)
    return next(v for n, v in table.items() if n.removesuffix(".default").endswith(end))


@pytest.mark.parametrize("settings", SCHEDULES.values(), ids=SCHEDULES)
def test_twenty_steps_of_training_step_for_step(settings, torch, peft, load, bases, tmp_path):
    p, theirs = ours_and_theirs(settings, torch, peft, load, bases, tmp_path)
    adapter, allocator = p.adapters["default"], theirs.base_model.rankallocator
    optimizer = AdamW(p.trainable_parameters(), lr=3e-2)
    parameters = dict(theirs.named_parameters())  # in float64 ranknum would be trained too, which no one means
    their_optimizer = torch.optim.AdamW([q for n, q in parameters.items() if "lora_" in n], lr=3e-2)
    seen = []
    for step in range(20):
        ids = np.random.default_rng(step).integers(0, 64, (3, 9))
        their_loss = theirs(torch.tensor(ids), labels=torch.tensor(ids)).loss
        their_loss.backward()
        their_optimizer.step()
        theirs.base_model.update_and_allocate(step)
        their_optimizer.zero_grad()
        loss = p(ids, labels=ids).loss + p.penalty()
        loss.backward()
        p.after_backward(step, 999)
        optimizer.step()
        p.after_step(step)
        optimizer.zero_grad()
        assert loss.item() == pytest.approx(their_loss.item(), rel=1e-10), step  # with the penalty
        same_averages(adapter.allocator, allocator)
        assert bool(adapter.allocator.averages) == (step < 20 - max(1, settings.get("tfinal", 0)))
        same_ranks(adapter, theirs)
        seen.append(sum(adapter.ranks().values()))
    first, last = 6 * len(adapter.wrappers), 2 * len(adapter.wrappers)
    assert seen[settings.get("tinit", 0)] == first and seen[-1] == last
    assert sorted(seen, reverse=True) == seen and len(set(seen)) > 3
    np.testing.assert_allclose(logits(p, IDS), their_logits(torch, theirs), rtol=1e-7, atol=1e-7)


def same_averages(ours, theirs):
    for full_name, (average, uncertainty) in ours.averages.items():
        path, _, name = full_name.rpartition(".")
        for own, table in ((average, theirs.exp_avg_ipt), (uncertainty, theirs.exp_avg_unc)):
            expected = theirs_of(table, path, name).numpy()
            np.testing.assert_allclose(own, expected, rtol=1e-6, atol=1e-9 * np.abs(expected).max())


def same_ranks(adapter, theirs):
    table = dict(theirs.named_parameters())
    pattern = theirs.peft_config["default"].rank_pattern or {}
    for path, layer in adapter.wrappers.items():
        E = theirs_of(table, path, "lora_E").detach().numpy()
        np.testing.assert_array_equal(layer.lora_E.data == 0, E == 0)
        np.testing.assert_allclose(layer.lora_E.data, E, rtol=1e-7, atol=1e-10)
        if pattern:
            assert adapter.allocator.kept[path].tolist() == theirs_of(pattern, path, "lora_E")


def test_forward_and_the_penalty_alone(torch, peft, load, bases, tmp_path):
    p, theirs = ours_and_theirs(SCHEDULES["plain"], torch, peft, load, bases, tmp_path)
    rng = np.random.default_rng(0)
    for path, layer in p.adapters["default"].wrappers.items():
        for name in ("lora_A", "lora_E", "lora_B"):
            array = rng.standard_normal(getattr(layer, name).shape)
            getattr(layer, name).data[...] = array
            theirs_of(dict(theirs.named_parameters()), path, name).data = torch.tensor(array)
    np.testing.assert_allclose(logits(p, IDS), their_logits(torch, theirs), **CLOSE)
    with_penalty = theirs(torch.tensor(IDS), labels=torch.tensor(IDS)).loss
    without = theirs.base_model.model(torch.tensor(IDS), labels=torch.tensor(IDS)).loss
    assert p.penalty().item() == pytest.approx((with_penalty - without).item(), rel=1e-6)


def test_theirs_crashes_where_no_rank_is_to_go(torch, peft, load, bases):
    config = peft.AdaLoraConfig(init_r=4, target_r=4, total_step=9, target_modules=["q_proj"], task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(load("llama"), config)
    p = get_peft_model(base(bases, "llama"), AdaLoraConfig(init_r=4, target_r=4, target_modules=["q_proj"]))
    theirs(torch.tensor(IDS), labels=torch.tensor(IDS)).loss.backward()
    p(IDS, labels=IDS).loss.backward()
    with pytest.raises(RuntimeError, match="out of range"):
        theirs.base_model.update_and_allocate(1)
    p.after_backward(1, 9)
    p.after_step(1)
    assert set(p.adapters["default"].ranks().values()) == {4}


# -- AdaLoRA: files --------------------------------------------------------------------------------------------------
def trained(p, steps=12):
    """An adapter that has lost ranks; the last one of a target too, where all are of little use."""
    optimizer = AdamW(p.trainable_parameters(), lr=3e-2)
    for step in range(steps):
        (p(IDS, labels=IDS).loss + p.penalty()).backward()
        p.after_backward(step, steps)
        optimizer.step()
        p.after_step(step)
        optimizer.zero_grad()
    return p


OURS = {
    "new": ({"target_modules": ["q_proj", "v_proj", "down_proj"]}, False),
    "trained": ({"target_modules": ["q_proj", "k_proj", "up_proj"], "init_r": 4, "target_r": 1, "tfinal": 2}, True),
    "one": ({"target_modules": ["v_proj"], "init_r": 4, "target_r": 2}, True),
    "unfused": ({"target_modules": ["o_proj", "up_proj", "down_proj"], "init_r": 5, "target_r": 1}, True),
    "all-linear": ({"target_modules": "all-linear", "init_r": 3, "target_r": 1, "lora_alpha": 5}, True),
}


@pytest.mark.parametrize("family", BASES)
@pytest.mark.parametrize("settings, train", OURS.values(), ids=OURS)
def test_adalora_ours_is_loaded_by_peft(settings, train, family, torch, peft, load, bases, tmp_path):
    p = get_peft_model(base(bases, family), AdaLoraConfig(**settings))
    p = trained(p) if train else stirred(p)
    assert p.save_pretrained(tmp_path / "one") == "peft"
    theirs = load_theirs_strictly(peft, load(family), tmp_path / "one")
    arrays = read_arrays(tmp_path / "one" / "adapter_model.safetensors")
    assert len([n for n, _ in theirs.named_parameters() if "lora_" in n]) == len(arrays)
    np.testing.assert_allclose(their_logits(torch, theirs), logits(p, IDS), **CLOSE)
    assert np.abs(logits(p, IDS) - their_logits(torch, load(family))).max() > 1e-2
    if train:  # what is lost is not in the file
        left = sum(p.adapters["default"].ranks().values())
        assert left < sum(len(w.lora_E) for w in p.adapters["default"].wrappers.values())
        assert left == sum(a.shape[0] for n, a in arrays.items() if n.endswith("lora_E"))
    theirs.save_pretrained(tmp_path / "again")  # without our metadata
    for directory in ("one", "again"):
        again = PeftModel.from_pretrained(base(bases, family), tmp_path / directory)
        np.testing.assert_allclose(logits(again, IDS), logits(p, IDS), **CLOSE)


THEIRS = {
    "c_attn": ("gpt2", {"target_modules": ["c_attn"]}),
    "all-linear gpt2": ("gpt2", {"target_modules": "all-linear"}),
    "c_proj": ("gpt2", {"target_modules": ["c_proj", "c_fc"], "layers_to_transform": [1], "layers_pattern": "h"}),
    "default llama": ("llama", {"target_modules": None}),
    "regex": ("llama", {"target_modules": r".*\.0\.(mlp|self_attn)\.(up|k|v)_proj"}),
}


@pytest.mark.parametrize("train", [False, True], ids=["new", "trained"])
@pytest.mark.parametrize("family, settings", THEIRS.values(), ids=THEIRS)
def test_adalora_theirs_is_loaded_here(family, settings, train, torch, peft, load, bases, tmp_path):
    config = peft.AdaLoraConfig(
        **{"task_type": "CAUSAL_LM", "init_r": 4, "target_r": 1, "lora_alpha": 6, "total_step": 8} | settings
    )
    theirs = peft.get_peft_model(load(family), config)
    if train:
        optimizer = torch.optim.AdamW([q for q in theirs.parameters() if q.requires_grad], lr=3e-2)
        for step in range(8):
            theirs(torch.tensor(IDS), labels=torch.tensor(IDS)).loss.backward()
            optimizer.step()
            theirs.base_model.update_and_allocate(step)
            optimizer.zero_grad()
        theirs.eval()
    else:
        stir_theirs(torch, theirs, "lora_")
    theirs.save_pretrained(tmp_path / "theirs")
    expected = their_logits(torch, theirs)
    p = PeftModel.from_pretrained(base(bases, family), tmp_path / "theirs")
    np.testing.assert_allclose(logits(p, IDS), expected, **CLOSE)
    assert p.adapters["default"].config.init_r == 4
    p.save_pretrained(tmp_path / "back")
    back = peft.PeftModel.from_pretrained(load(family), tmp_path / "back")
    np.testing.assert_allclose(their_logits(torch, back), expected, **CLOSE)
    if family == "llama":  # module for module, so tensor for tensor
        a, b = (read_arrays(tmp_path / d / "adapter_model.safetensors") for d in ("theirs", "back"))
        assert a.keys() == b.keys() and all(np.array_equal(a[n], b[n]) for n in a)
        a, b = (read_json(tmp_path / d / "adapter_config.json") for d in ("theirs", "back"))
        assert all(a[n] == b[n] for n in ("rank_pattern", "init_r", "target_r", "total_step", "lora_alpha", "deltaT"))


@pytest.mark.parametrize("change", [{"rank_pattern": {"model.layers.0.mlp.gate_proj.lora_E": [True] * 4}},
                                    {"rank_pattern": {"model.layers.0.self_attn.q_proj.lora_E": [True] * 3}},
                                    {"init_r": 5}, {"modules_to_save": ["lm_head"]}])  # fmt: skip
def test_adalora_what_cannot_be_translated_is_refused(change, peft, load, bases, tmp_path):
    config = peft.AdaLoraConfig(init_r=4, total_step=9, target_modules=["q_proj"], task_type="CAUSAL_LM")
    peft.get_peft_model(load("llama"), config).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(read_json(path) | change))
    with pytest.raises(FileFormatError, match=r"is no target|has 3 entries|has shape|no counterpart here: modules_to"):
        PeftModel.from_pretrained(base(bases, "llama"), tmp_path)


# -- IA3 -------------------------------------------------------------------------------------------------------------
IA3_OURS = {
    "default": {},
    "attention": {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"], "feedforward_modules": ["o_proj"]},
    "outputs": {"target_modules": ["o_proj", "down_proj"], "feedforward_modules": []},
    "mixed": {"target_modules": ["o_proj", "down_proj", "v_proj"], "feedforward_modules": ["down_proj"]},
    "all-linear": {"target_modules": "all-linear", "feedforward_modules": ["blocks.0.mlp.down_proj"]},
}


@pytest.mark.parametrize("family", BASES)
@pytest.mark.parametrize("settings", IA3_OURS.values(), ids=IA3_OURS)
def test_ia3_ours_is_loaded_by_peft(settings, family, torch, peft, load, bases, tmp_path):
    p = stirred(get_peft_model(base(bases, family), IA3Config(**settings)), scale=0.5)
    assert p.save_pretrained(tmp_path / "one") == "peft"
    theirs = load_theirs_strictly(peft, load(family), tmp_path / "one")
    arrays = read_arrays(tmp_path / "one" / "adapter_model.safetensors")
    assert len([n for n, _ in theirs.named_parameters() if "ia3_l" in n]) == len(arrays)
    np.testing.assert_allclose(their_logits(torch, theirs), logits(p, IDS), **CLOSE)
    assert np.abs(logits(p, IDS) - their_logits(torch, load(family))).max() > 1e-2
    theirs.save_pretrained(tmp_path / "again")
    again = PeftModel.from_pretrained(base(bases, family), tmp_path / "again")
    a, b = p.adapters["default"].named_parameters(), again.adapters["default"].named_parameters()
    assert a.keys() == b.keys() and all(np.array_equal(a[n].data, b[n].data) for n in a)
    assert all(w.feedforward == again.adapters["default"].wrappers[n].feedforward for n, w in
               p.adapters["default"].wrappers.items())  # fmt: skip
    merged = theirs.merge_and_unload()
    np.testing.assert_allclose(their_logits(torch, merged), logits(p.merge_and_unload(), IDS), **CLOSE)


IA3_THEIRS = {
    "default gpt2": ("gpt2", {}),
    "default llama": ("llama", {}),
    "fused feedforward": ("gpt2", {"target_modules": ["c_attn", "c_fc"], "feedforward_modules": ["c_attn"]}),
    "regex": (
        "llama",
        {"target_modules": r".*\.1\..*(up|v)_proj", "feedforward_modules": r".*mlp.*", "exclude_modules": ["k_proj"]},
    ),
    "all-linear": ("gpt2", {"target_modules": "all-linear", "feedforward_modules": ["mlp.c_proj"]}),
}


@pytest.mark.parametrize("family, settings", IA3_THEIRS.values(), ids=IA3_THEIRS)
def test_ia3_theirs_is_loaded_here(family, settings, torch, peft, load, bases, tmp_path):
    theirs = peft.get_peft_model(load(family), peft.IA3Config(task_type="CAUSAL_LM", **settings))
    stir_theirs(torch, theirs, "ia3_l").save_pretrained(tmp_path / "theirs")
    expected = their_logits(torch, theirs)
    p = PeftModel.from_pretrained(base(bases, family), tmp_path / "theirs")
    np.testing.assert_allclose(logits(p, IDS), expected, **CLOSE)
    p.save_pretrained(tmp_path / "back")
    a, b = (read_arrays(tmp_path / d / "adapter_model.safetensors") for d in ("theirs", "back"))
    assert a.keys() == b.keys() and all(np.array_equal(a[n], b[n]) for n in a)
    back = peft.PeftModel.from_pretrained(load(family), tmp_path / "back")
    np.testing.assert_allclose(their_logits(torch, back), expected, **CLOSE)


@pytest.mark.parametrize("family", BASES)
def test_ia3_ten_steps_of_training(family, torch, peft, load, bases, tmp_path):
    p = get_peft_model(base(bases, family), IA3Config(["o_proj", "up_proj", "down_proj"]))
    p.save_pretrained(tmp_path)
    theirs = peft.PeftModel.from_pretrained(load(family), tmp_path, is_trainable=True)
    optimizer = AdamW(p.trainable_parameters(), lr=3e-2)
    their_optimizer = torch.optim.AdamW([q for q in theirs.parameters() if q.requires_grad], lr=3e-2)
    for _ in range(10):
        their_loss = theirs(torch.tensor(IDS), labels=torch.tensor(IDS)).loss
        their_loss.backward()
        their_optimizer.step()
        their_optimizer.zero_grad()
        loss = p(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert loss.item() == pytest.approx(their_loss.item(), rel=2e-5)


def test_ia3_theirs_is_not_restored_by_unmerging(torch, peft, load, bases, tmp_path):
    p = stirred(get_peft_model(base(bases, "gpt2"), IA3Config()))
    layer = p.base_model.blocks[0].attn.v_proj.base
    layer.bias.data[...] = 0.1 * np.arange(32)
    p.adapters["default"].wrappers["blocks.0.attn.v_proj"].ia3_l.data[0] = 0  # one value is switched off
    p.save_pretrained(tmp_path)
    theirs = peft.PeftModel.from_pretrained(load("gpt2"), tmp_path)
    weight = theirs.base_model.model.transformer.h[0].attn.c_attn.base_layer.weight
    before, ours_before = weight.detach().clone(), (layer.weight.data.copy(), layer.bias.data.copy())
    theirs.merge_adapter()
    with pytest.warns(UserWarning, match="Unmerge result can be inaccurate"):
        theirs.unmerge_adapter()
    assert (weight - before).abs().max() > 1e-2  # the row is lost: 0 / 1e-8
    p.merge_adapter()
    p.unmerge_adapter()
    assert np.array_equal(layer.weight.data, ours_before[0]) and np.array_equal(layer.bias.data, ours_before[1])
