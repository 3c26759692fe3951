"""A classifier over an adapted model: names, hooks, rows under their own adapters, files."""

from __future__ import annotations

import json

import numpy as np
import pytest

from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.formats.files import FileFormatError, read_arrays, write_arrays
from minitorch_peft.models import GPT, SequenceClassifier
from minitorch_peft.nn import ForwardContext, Module
from minitorch_peft.peft import (
    AdaLoraConfig,
    GistConfig,
    LoraConfig,
    LoraPlusConfig,
    PartialConfig,
    PeftModel,
    PTuningV2Config,
    get_peft_model,
    load_classifier,
    save_classifier,
)
from minitorch_peft.training import TrainConfig, train
from minitorch_peft.training.groups import make_optimizer

LABELS = np.array([0, 2, 1])
CONFIGS = {
    "lora": LoraConfig(r=2),
    "v2": PTuningV2Config(num_virtual_tokens=3, prefix_projection=True),
    "gist": GistConfig(num_gist_tokens=2, gist_token_ids=[3, 4], r=2),
    "partial": PartialConfig(top_layers=1),
}
KEYS = {"lora": "base_model.model.score.weight", "v2": "base_model.score.weight"}  # as peft 0.21 writes them
WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"


def stirred(p, name="default", seed=3):
    rng = np.random.default_rng(seed)
    for q in p.adapters[name].named_parameters().values():
        q.data[...] += 0.3 * rng.standard_normal(q.shape)
    return p


def classifier_of(model, config, pooling="last"):
    return SequenceClassifier(stirred(get_peft_model(model, config)), 4, pooling).eval()


def logits(classifier, ids, **options):
    return classifier(ids, **options).logits.data


# -- names -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", CONFIGS)
def test_parameters_are_named_as_the_adapted_model_names_them(model, plain, kind):
    classifier = classifier_of(model, CONFIGS[kind])
    below = dict(classifier.model.named_parameters())
    assert dict(classifier.named_parameters()) == {
        **{f"model.{name}": p for name, p in below.items()},
        "score.weight": classifier.score.weight,
    }
    assert {f"model.{name}" for name in plain.state_dict()} < classifier.state_dict().keys()
    own = sum(p.data.size for p in classifier.model.trainable_parameters().values())
    assert classifier.num_parameters(only_trainable=True) == own + classifier.score.weight.data.size


def test_any_parent_lets_an_adapted_model_name_its_parameters(model):
    holder = Module()
    holder.inner = Module()
    holder.inner.adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    names = [name for name, p in holder.named_parameters() if p.requires_grad]
    assert names[0] == "inner.adapted.blocks.0.attn.q_proj.lora_A.default"
    assert not any("base_layer" in name for name, _ in holder.named_parameters())


# -- hooks -----------------------------------------------------------------------------------------------------
class Hooked(GPT):
    """A model with all hooks, which writes down how they are called."""

    def penalty(self):
        return self.ln_f.weight.sum()

    def param_groups(self):
        return [{"params": [name], "lr_scale": 2.0} for name, _ in self.named_parameters()]

    def after_backward(self, step, total):
        self.calls = [("after_backward", step, total)]

    def after_step(self, step):
        self.calls.append(("after_step", step))

    def method_state(self):
        return {"a/b": np.ones(2)}

    def load_method_state(self, state):
        self.calls.append(state)


def test_the_five_hooks_reach_the_model(model, ids):
    hooked = Hooked(model.config)
    classifier = SequenceClassifier(hooked, 4)
    assert isinstance(classifier.penalty(), Tensor)
    assert classifier.penalty().item() == pytest.approx(model.config.n_embd)
    groups = classifier.param_groups()
    assert [name for g in groups for name in g["params"]] == [name for name, _ in classifier.named_parameters()]
    assert groups[-1] == {"params": ["score.weight"]} and groups[0]["lr_scale"] == 2.0
    classifier.score.requires_grad_(False)
    assert classifier.param_groups() == groups[:-1]
    classifier.after_backward(3, 9)
    classifier.after_step(3)
    state = classifier.method_state()
    classifier.load_method_state(state)
    assert hooked.calls == [("after_backward", 3, 9), ("after_step", 3), state] and state["a/b"].tolist() == [1, 1]


def test_a_plain_model_has_no_hooks_and_needs_none(model):
    classifier = SequenceClassifier(model, 4)
    assert classifier.penalty() is None and classifier.param_groups() is None and classifier.method_state() == {}
    classifier.after_backward(0, 1)
    classifier.after_step(0)
    classifier.load_method_state({})
    assert classifier.adapters == {} and classifier.config is model.config and classifier.num_labels == 4


def test_rates_of_a_method_s_own_hold_beside_the_head(model):
    classifier = classifier_of(model, LoraPlusConfig(r=2, loraplus_lr_ratio=16.0))
    optimizer = make_optimizer(classifier, TrainConfig(steps=1, lr=1e-3))
    rates = {name: g.get("lr_scale", 1.0) for g in classifier.param_groups() for name in g["params"]}
    assert rates["score.weight"] == 1.0 and {v for n, v in rates.items() if "lora_B" in n} == {16.0}
    assert len(optimizer.named_parameters()) == len(rates)


def test_a_method_that_acts_on_training_resumes_bit_for_bit(model, plain, lively, ids, tmp_path):
    """AdaLoRA's budget needs every hook; its scores are state that a checkpoint must hold."""
    config = AdaLoraConfig(init_r=3, target_r=1, tinit=1, tfinal=1, deltaT=3)
    batch = {"input_ids": ids, "labels": LABELS}
    whole = SequenceClassifier(get_peft_model(model, config), 4)
    train(whole, lambda i: batch, TrainConfig(steps=6, lr=1e-2))

    visits = []

    def once_broken(i):
        visits.append(i)
        if i == 4 and visits.count(4) == 1:
            raise KeyError("broken")
        return batch

    settings = TrainConfig(steps=6, lr=1e-2, out=str(tmp_path), save_every=2)
    with pytest.raises(KeyError, match="broken"):
        train(SequenceClassifier(get_peft_model(plain, config), 4), once_broken, settings)
    second = SequenceClassifier(get_peft_model(lively(GPT(model.config)), config, seed=9), 4, seed=9)
    train(second, once_broken, settings, resume=True)
    own, theirs = second.state_dict(), whole.state_dict()
    assert all(np.array_equal(own[name], array) for name, array in theirs.items())
    ours, before = second.method_state(), whole.method_state()
    assert ours.keys() == before.keys() and len(ours) > 0
    assert all(np.array_equal(ours[key], value) for key, value in before.items())


# -- rows ------------------------------------------------------------------------------------------------------
def test_each_row_under_its_own_adapter(model, ids):
    classifier = classifier_of(model, LoraConfig(r=2))
    for name, config in (("prompts", PTuningV2Config(num_virtual_tokens=3)), ("gist", CONFIGS["gist"])):
        classifier.model.add_adapter(name, config)
        stirred(classifier.model, name, seed=4)
    names = ["prompts", "__base__", "gist"]
    mask = np.arange(7) >= np.array([0, 2, 3])[:, None]
    mixed = logits(classifier, ids, attention_mask=mask, adapter_names=names)
    for row, name in enumerate(names):
        alone = logits(classifier, ids[row : row + 1, mask[row]], adapter_names=[name])
        np.testing.assert_allclose(mixed[row], alone[0], rtol=1e-4, atol=2e-5)
    by_default = logits(classifier, ids, attention_mask=mask)
    assert (np.abs(mixed - by_default).max(axis=1) > 1e-2).all()
    with pytest.raises(ValueError, match="adapter_names has 1 names for 3 rows"):
        classifier(ids, adapter_names=["gist"])


# -- files -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_adapter_and_head_are_saved_and_loaded_together(model, plain, ids, kind, pooling, tmp_path):
    classifier = classifier_of(model, CONFIGS[kind], pooling)
    chosen = save_classifier(classifier, tmp_path)
    assert chosen == ("peft" if kind in KEYS and pooling == "last" else "native")
    key = KEYS[kind] if chosen == "peft" else "score.weight"
    np.testing.assert_array_equal(read_arrays(tmp_path / WEIGHTS)[key], classifier.score.weight.data)
    again = load_classifier(plain, tmp_path).eval()
    assert again.pooling == pooling and again.num_labels == 4
    np.testing.assert_allclose(logits(again, ids), logits(classifier, ids), rtol=1e-6, atol=1e-6)
    assert not any(p.requires_grad for p in again.parameters())


def test_what_peft_reads_in_the_settings(model, tmp_path):
    save_classifier(classifier_of(model, CONFIGS["lora"]), tmp_path)
    settings = json.loads((tmp_path / SETTINGS).read_text())
    assert settings["task_type"] == "SEQ_CLS" and settings["modules_to_save"] == ["classifier", "score"]


def test_a_loaded_classifier_can_be_trained_on(model, plain, ids, tmp_path):
    save_classifier(classifier_of(model, CONFIGS["lora"]), tmp_path)
    again = load_classifier(plain, tmp_path, "mine", is_trainable=True)
    assert all(p.requires_grad == (n.endswith(".mine") or n == "score.weight") for n, p in again.named_parameters())
    again(ids, labels=LABELS, context=ForwardContext()).loss.backward()
    assert all(p.grad is not None for p in again.parameters() if p.requires_grad)


def test_what_cannot_be_saved_says_so(model, tmp_path):
    with pytest.raises(TypeError, match="a GPT without adapters: SequenceClassifier\\(get_peft_model"):
        save_classifier(SequenceClassifier(model, 2), tmp_path)
    classifier = classifier_of(model, CONFIGS["lora"], "mean")
    with pytest.raises(ValueError, match="peft's files cannot hold pooling='mean'"):
        save_classifier(classifier, tmp_path, format="peft")
    with pytest.raises(ValueError, match="no adapter named other"):
        save_classifier(classifier, tmp_path, "other")
    assert not list(tmp_path.iterdir())


def test_an_adapter_s_file_and_a_classifier_s_are_told_apart(model, plain, tmp_path):
    classifier = classifier_of(model, CONFIGS["lora"])
    save_classifier(classifier, tmp_path / "classifier")
    classifier.model.save_pretrained(tmp_path / "adapter")
    before = plain.state_dict()
    with pytest.raises(FileFormatError, match=r"a classifier's head beside the adapter .* load_classifier"):
        PeftModel.from_pretrained(plain, tmp_path / "classifier")
    with pytest.raises(FileFormatError, match=r"holds 0 heads of a classifier.*base_model.model.score.weight"):
        load_classifier(plain, tmp_path / "adapter")
    assert plain.state_dict().keys() == before.keys() and all(p.requires_grad for p in plain.parameters())


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (np.zeros((4, 15), np.float32), r"score.weight has shape \(4, 15\)"),
        (np.zeros((4, 16), np.float64), "score.weight is float64, the model float32"),
        (np.zeros((0, 16), np.float32), "expected one tensor score.weight or"),
    ],
)
def test_a_head_that_does_not_fit_leaves_the_model_as_it_was(model, plain, head, message, tmp_path):
    save_classifier(classifier_of(model, CONFIGS["lora"]), tmp_path)
    write_arrays(tmp_path / WEIGHTS, read_arrays(tmp_path / WEIGHTS) | {KEYS["lora"]: head})
    with pytest.raises(FileFormatError, match=message):
        load_classifier(plain, tmp_path)
    assert "lora" not in repr(plain).lower() and all(p.requires_grad for p in plain.parameters())


def test_other_modules_to_save_are_refused(model, plain, tmp_path):
    save_classifier(classifier_of(model, CONFIGS["lora"]), tmp_path)
    settings = json.loads((tmp_path / SETTINGS).read_text()) | {"modules_to_save": ["score", "wte"]}
    (tmp_path / SETTINGS).write_text(json.dumps(settings))
    with pytest.raises(FileFormatError, match="asks for what has no counterpart here: modules_to_save"):
        load_classifier(plain, tmp_path)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_several_adapters_come_back_with_their_head(model, plain, ids, pooling, tmp_path):
    classifier = classifier_of(model, CONFIGS["lora"], pooling=pooling)
    classifier.model.add_adapter("prompts", CONFIGS["v2"])
    stirred(classifier.model, "prompts")
    classifier.model.set_adapter(["prompts", "default"])
    expected = logits(classifier, ids)
    assert save_classifier(classifier, tmp_path, ["default", "prompts"]) == "peft"
    with pytest.raises(ValueError, match=r"adapter_name='mine'.* leave it out"):
        load_classifier(plain, tmp_path, "mine")
    again = load_classifier(plain, tmp_path, is_trainable=True).eval()
    assert again.model.active_adapters == ("prompts", "default") and again.pooling == pooling
    assert again.score.weight.requires_grad
    np.testing.assert_array_equal(logits(again, ids), expected)


def test_a_head_that_does_not_belong_to_the_adapters_beside_it_is_not_taken(model, plain, tmp_path):
    classifier = classifier_of(model, CONFIGS["lora"])
    save_classifier(classifier, tmp_path, ["default"])
    classifier.model.save_pretrained(tmp_path, ["default"])
    with pytest.raises(FileFormatError, match="holds several adapters, and no head that belongs to them"):
        load_classifier(plain, tmp_path)
    save_classifier(classifier, tmp_path, ["default"])
    write_arrays(tmp_path / "classifier.safetensors", {"score.weight": np.ones((4, 3), np.float32)})
    with pytest.raises(FileFormatError, match=r"score.weight has shape \(4, 3\)"):
        load_classifier(plain, tmp_path)
    PeftModel.from_pretrained(plain, tmp_path)  # it is as it was
