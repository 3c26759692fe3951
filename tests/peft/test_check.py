"""The linter for silent failures: each fault is planted and found by code and place; nothing of the model changes."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from peft_cases import IDS, MASK, gpt, loss, optimizer_of, stirred, train

from minitorch_peft.formats.files import read_arrays, write_arrays
from minitorch_peft.models import SequenceClassifier
from minitorch_peft.nn import Parameter
from minitorch_peft.peft import (
    METHODS,
    AdaLoraConfig,
    BitFitConfig,
    DiffPruningConfig,
    LoraConfig,
    PartialConfig,
    PeftModel,
    PromptTuningConfig,
    get_peft_model,
)
from minitorch_peft.peft.check import check_file
from minitorch_peft.peft.fingerprint import changed, word_sum, word_sums
from minitorch_peft.peft.parameter.lora import LoraLayer

BATCH = {"input_ids": IDS, "labels": IDS}


def lora(family="gpt2", **settings):
    return get_peft_model(gpt(family), LoraConfig(**{"r": 2, **settings}))


def found(p, code, batch=BATCH):
    """The one finding of ``code``."""
    findings = [f for f in p.check(batch).findings if f.code == code]
    assert len(findings) == 1, [f.code for f in findings]
    return findings[0]


def everything(p):
    """Bytes of all arrays, gradients and flags: what a check must leave alone."""
    arrays = {name: a.tobytes() for name, a in p.state_dict().items()}
    state = {name: (id(q.data), q.version.count, q.requires_grad, q.grad is None) for name, q in p.named_parameters()}
    modes = [m.training for _, m in p.named_modules()]
    method = {name: np.array(a).tobytes() for name, a in p.method_state().items()}
    return arrays, state, modes, method, p.active_adapters, p.base_model.passes, repr(p)


# -- what is sound is not reported -----------------------------------------------------------------------------
@pytest.mark.parametrize("name", METHODS)
def test_a_sound_method_has_no_failure_and_is_left_bit_for_bit_as_it_was(name):
    """At its start too, where many a gradient is zero for a step: B = 0 makes LoRA's dA zero."""
    method = METHODS[name]
    p = PeftModel(gpt("gpt2"))
    for companion, config in method.companions.items():
        p.add_adapter(companion, config, seed=8)
        stirred(p, companion)
    p.add_adapter("default", method.examples[0])
    p.set_adapter("default")
    before = everything(p)
    report = p.check(BATCH)
    assert report.ok, report
    assert everything(p) == before
    train(p, optimizer_of(p), range(3))
    report = p.check(BATCH)
    assert report.ok, report


def test_the_gradients_that_are_there_stay():
    p = lora()
    p(IDS, labels=IDS).loss.backward()
    grads = {name: q.grad for name, q in p.trainable_parameters().items()}
    assert p.check(BATCH).ok
    assert all(q.grad is grads[name] for name, q in p.trainable_parameters().items())


def test_a_run_is_the_same_with_checks_in_it():
    losses = []
    for checked in (False, True):
        p = lora(lora_dropout=0.3)
        optimizer = optimizer_of(p)
        for step in range(3):
            if checked:
                p.check(BATCH)
            train(p, optimizer, range(step, step + 1))
        losses.append(loss(p))
    assert losses[0] == losses[1]


def test_a_gate_whose_mask_is_fixed_has_done_its_work():
    p = get_peft_model(gpt("gpt2"), DiffPruningConfig(target_parameters=["attn.**"], sparsity=0.3))
    train(p, optimizer_of(p, lr=3e-2), range(6))
    assert p.adapters["default"].fixed and p.check(BATCH).ok


# -- gradients ---------------------------------------------------------------------------------------------------
def test_with_both_factors_zero_nothing_ever_learns():
    p = lora()
    layer = p.base_model.blocks[0].attn.q_proj
    layer.lora_A.data[...] = 0
    finding = found(p, "zero-gradient")
    assert "blocks.0.attn.q_proj.lora_A.default" in finding.place and "blocks.0.attn.q_proj.lora_B" in finding.place
    assert "blocks.1" not in finding.place and "away from zero" in finding.fix
    layer.lora_A.data[0, 0] = 0.1
    assert p.check(BATCH).ok


def test_a_parameter_that_the_loss_does_not_depend_on(monkeypatch):
    p = lora()
    p.base_model.blocks[1].attn.v_proj.unused = Parameter(np.ones(3, np.float32), owner="default")
    finding = found(p, "no-gradient")
    assert finding.place == "blocks.1.attn.v_proj.unused.default" and finding.failure


def test_a_path_that_is_cut(monkeypatch):
    """What checkpointing without gradients of the inputs does elsewhere: the loss is right, and nothing trains."""
    p = lora()
    monkeypatch.setattr(
        LoraLayer, "adapted", lambda self, x, context: self.base_layer(x, context) + self.delta(x, context)
    )
    monkeypatch.setattr(LoraLayer, "factors", lambda self: (self.lora_A.detach(), self.lora_B.detach()))
    finding = found(p, "no-gradient")
    assert finding.failure and finding.place.endswith("and 5 more")
    monkeypatch.setattr(LoraLayer, "factors", lambda self: (self.lora_A, self.lora_B.detach()))
    assert "lora_A" not in found(p, "no-gradient").place  # as B is detached and zero, A's is zero: another finding
    assert "lora_B" not in found(p, "zero-gradient").place


def test_rows_that_do_not_run_under_the_adapter_give_it_no_gradient():
    p = lora()
    p.add_adapter("other", LoraConfig(r=2), seed=1)
    p.set_adapter(["default", "other"])
    batch = {**BATCH, "adapter_names": ["default", "__base__", "default"]}
    finding = found(p, "no-gradient", batch)
    assert "lora_A.other" in finding.place and "default" not in finding.place and "adapter_names" in finding.fix


def test_values_that_are_not_finite():
    p = lora()
    p.base_model.blocks[0].attn.q_proj.lora_A.data[0, 0] = np.nan
    finding = found(p, "not-finite")
    assert finding.place == "blocks.0.attn.q_proj.lora_A.default" and not p.check(BATCH).ok


# -- adapters ----------------------------------------------------------------------------------------------------
def test_no_adapter_and_one_that_does_not_act():
    p = PeftModel(gpt("gpt2"))
    assert found(p, "no-adapter").failure
    p.add_adapter("a", LoraConfig(r=2))
    assert found(p, "inactive-adapter").place == "a" and not p.check(BATCH).ok
    p.add_adapter("b", LoraConfig(r=2), seed=1)
    p.set_adapter("a")
    finding = found(p, "inactive-adapter")
    assert finding.place == "b" and not finding.failure and "set_adapter('b')" in finding.fix
    assert "inactive-adapter" not in p.check({**BATCH, "adapter_names": ["a", "b", "a"]}).codes


def test_an_adapter_that_acts_but_does_not_train(tmp_path):
    p = stirred(lora())
    p.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(gpt("gpt2"), tmp_path)
    finding = found(loaded, "frozen-adapter")
    assert finding.failure and "is_trainable=True" in finding.fix
    assert PeftModel.from_pretrained(gpt("gpt2"), tmp_path, is_trainable=True).check(BATCH).ok
    loaded.add_adapter("b", LoraConfig(r=2), seed=1)
    loaded.set_adapter(["default", "b"], train="b")
    finding = found(loaded, "frozen-adapter")
    assert finding.place == "default" and not finding.failure  # stacking on a frozen adapter is a method


def test_a_part_that_does_not_train():
    p = lora(target_modules=["q_proj"], layers_to_transform=[0])
    p.base_model.blocks[0].attn.q_proj.lora_A.requires_grad_(False)
    assert found(p, "frozen-parameter").place == "default: blocks.0.attn.q_proj.lora_A"


def test_training_while_merged():
    p = stirred(lora())
    p.merge_adapter()
    finding = found(p, "merged-adapter")
    assert finding.failure and "unmerge_adapter()" in finding.fix
    assert "changed-base" not in p.check(BATCH).codes
    p.unmerge_adapter()
    assert p.check(BATCH).ok


# -- the base ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", ["gpt2", "llama-4bit"])
def test_a_base_that_changed(family):
    p = get_peft_model(gpt(family), LoraConfig(r=2))
    array = p.base_model.ln_f.weight.data
    array[3] = np.nextafter(array[3], 9)
    finding = found(p, "changed-base")
    assert finding.place == "ln_f.weight" and finding.failure
    array[3] = np.nextafter(array[3], -9)
    assert p.check(BATCH).ok
    if "4bit" in family:
        name, buffer = next(p.named_buffers())
        buffer.reshape(-1)[0] ^= 1
        assert found(p, "changed-base").place == name


@pytest.mark.parametrize("config", [PartialConfig(top_layers=1), BitFitConfig(), AdaLoraConfig()], ids=type)
def test_training_and_merging_do_not_count_as_a_change(config):
    p = get_peft_model(gpt("gpt2"), config)
    train(p, optimizer_of(p), range(2))
    p.merge_adapter()
    p.unmerge_adapter()
    assert p.changed_since_wrapped() == []


def test_sums_see_any_change_of_one_word():
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float64, np.float16, np.uint8):
        array = (rng.standard_normal((3, 5)) * 9).astype(dtype)
        before = word_sum(array)
        for i in range(array.size):
            other = array.copy()
            other.view(f"u{array.itemsize}").reshape(-1)[i] ^= 1
            assert word_sum(other) != before
        assert word_sum(array.T.copy().T) == before == word_sum(array[::1])
    sums = word_sums([("a", np.ones(2)), ("b", np.ones(2))])
    assert changed(sums, [("a", np.ones(2)), ("c", np.zeros(1))]) == ["b", "c"]
    assert changed(sums, [("a", np.ones(2, np.float32)), ("b", np.ones(2))]) == []


def test_a_base_that_trains_by_accident():
    p = lora()
    p.base_model.ln_f.weight.requires_grad_(True)
    before = everything(p)
    finding = found(p, "trainable-base")
    assert finding.place == "ln_f.weight" and everything(p) == before


@pytest.mark.parametrize(
    "targets, words",
    [(["embed.tokens"], "in embed.tokens only"), (["embed.tokens", "lm_head"], "a change of its own for each")],
)
def test_tied_weights(targets, words):
    p = lora(target_modules=targets)
    finding = found(p, "tied-weights")
    assert words in finding.problem and not finding.failure and "untied" in finding.fix
    assert "tied-weights" not in lora("llama", target_modules=targets).check(BATCH).codes


# -- settings that are partly without effect ---------------------------------------------------------------------
def test_a_target_that_other_settings_keep_out():
    p = lora(target_modules=["q_proj", "lm_head"], layers_to_transform=[0])
    finding = found(p, "unmatched-target")
    assert "'lm_head'" in finding.problem and "layers_to_transform=[0]" in finding.problem
    p = lora(target_modules=["q_proj", "v_proj"], exclude_modules=["v_proj"])
    assert "'v_proj'" in found(p, "unmatched-target").problem
    p = get_peft_model(
        gpt("gpt2"), AdaLoraConfig(target_modules=["q_proj", "blocks.1.attn.o_proj"], layers_to_transform=0)
    )
    assert "'blocks.1.attn.o_proj'" in found(p, "unmatched-target").problem


def test_a_layer_in_which_nothing_is_adapted():
    p = lora(target_modules=["blocks.0.attn.q_proj"], layers_to_transform=[0, 1])
    assert "nothing is adapted in 1" in found(p, "unmatched-layer").problem
    assert lora(layers_to_transform=[0, 1]).check(BATCH).ok


def test_a_pattern_that_decides_nothing():
    p = lora(rank_pattern={"attn.*_proj": 4, "v_proj": 1})
    assert "'v_proj'" in (finding := found(p, "shadowed-pattern")).problem and not finding.failure
    assert "shadowed-pattern" not in lora(rank_pattern={"v_proj": 1, r"attn\..*": 4}).check(BATCH).codes


# -- scaling -----------------------------------------------------------------------------------------------------
def test_a_factor_that_is_not_the_config_s():
    p = lora(lora_alpha=16)
    p.base_model.blocks[1].attn.v_proj.scaling *= 8
    finding = found(p, "double-scaling")
    assert finding.place == "default: blocks.1.attn.v_proj" and finding.problem == "the factor is 64, the config says 8"


@pytest.mark.parametrize("target", ["q_proj", "embed.tokens"])
def test_a_layer_that_applies_its_factor_twice(target, monkeypatch):
    p = lora(lora_alpha=16, target_modules=[target])
    plain = LoraLayer.adapted

    def twice(self, x, context):
        base = self.base_layer(x, context)
        return base + (plain(self, x, context) - base) * self.scaling

    monkeypatch.setattr(LoraLayer, "adapted", twice)
    findings = [f for f in p.check(BATCH).findings if f.code == "two-answers"]
    assert len(findings) == len(p.adapters["default"].wrappers) and all(target in f.place for f in findings)


def test_one_adapter_under_two_names(tmp_path):
    stirred(lora()).save_pretrained(tmp_path)
    p = PeftModel.from_pretrained(gpt("gpt2"), tmp_path, is_trainable=True)
    p.load_adapter(tmp_path, "again")
    p.set_adapter(["default", "again"])
    assert found(p, "same-adapter-twice").place == "default and again"
    stirred(p, "again")
    assert p.check(BATCH).ok


# -- the batch ---------------------------------------------------------------------------------------------------
def test_labels():
    p = lora()
    assert "shifts them itself" in found(p, "labels-missing", {"input_ids": IDS}).fix
    none = np.full_like(IDS, -100)
    assert found(p, "labels-ignored", {"input_ids": IDS, "labels": none}).failure
    first = none.copy()
    first[:, 0] = IDS[:, 0]  # is no target: nothing stands before it
    assert found(p, "labels-ignored", {"input_ids": IDS, "labels": first}).failure
    one = np.where(np.arange(3)[:, None] == 1, IDS, -100)
    report = p.check({"input_ids": IDS, "labels": one})
    assert report.ok and report.codes == ["rows-without-target"] and "2 of 3 rows" in report.findings[0].problem
    report = p.check({**BATCH, "attention_mask": MASK})
    assert report.ok and report.codes == ["labels-on-padding"] and report.findings[0].problem.startswith("9 targets")
    assert p.check({"input_ids": IDS, "labels": np.where(MASK, IDS, -100), "attention_mask": MASK}).codes == []


def test_after_a_prompt_the_first_token_is_a_target_too():
    p = get_peft_model(gpt("gpt2"), PromptTuningConfig(num_virtual_tokens=3), "prompt")
    p.add_adapter("lora", LoraConfig(r=2))
    one = {"input_ids": IDS[:, :1], "labels": IDS[:, :1]}
    assert p.check(one).ok and p(**one).num_targets == 3
    rows = one | {"adapter_names": ["prompt", "__base__", "__base__"]}
    assert found(p, "rows-without-target", rows).problem == "2 of 3 rows have no target"
    found(p, "labels-ignored", one | {"adapter_names": ["__base__"] * 3})


# -- classifiers -----------------------------------------------------------------------------------------------
CLASSES = {"input_ids": IDS, "labels": [0, 1, 0]}


def test_a_sound_classifier_is_left_bit_for_bit_as_it_was():
    classifier = SequenceClassifier(lora(), 2)
    before = everything(classifier.model), classifier.score.weight.data.copy()
    assert not classifier.check(CLASSES).findings
    assert everything(classifier.model) == before[0] and np.array_equal(classifier.score.weight.data, before[1])
    assert classifier.score.weight.grad is None and classifier.score.weight.requires_grad


def test_faults_of_a_classifier(monkeypatch):
    classifier = SequenceClassifier(lora(), 2)
    found(classifier, "labels-missing", {"input_ids": IDS})
    classifier.score.requires_grad_(False)
    assert found(classifier, "frozen-head", CLASSES).place == "score" and classifier.check(CLASSES).ok
    classifier.score.requires_grad_(True)
    monkeypatch.setattr(LoraLayer, "adapted", lambda layer, x, context: layer.base_layer(x, context))
    assert "model.blocks.0.attn.q_proj.lora_A.default" in found(classifier, "no-gradient", CLASSES).place
    classifier.model.set_adapter("default", train=())
    found(classifier, "frozen-adapter", CLASSES)
    with pytest.raises(TypeError, match="a GPT without adapters: there is nothing to check"):
        SequenceClassifier(gpt("gpt2"), 2).check(CLASSES)


def test_a_batch_without_ids_is_no_batch():
    with pytest.raises(ValueError, match="a batch has input_ids and labels, this one has labels"):
        lora().check({"labels": IDS})


# -- files -------------------------------------------------------------------------------------------------------
@pytest.fixture
def saved(tmp_path):
    stirred(lora()).save_pretrained(tmp_path)
    return tmp_path


def rewrite(directory, change):
    path = directory / "adapter_model.safetensors"
    write_arrays(path, change(read_arrays(path)))


def test_a_good_file(saved):
    p = PeftModel(gpt("gpt2"))
    before = everything(p)
    report = check_file(p, saved)
    assert report.ok and report.findings == () and str(report) == "no failure"
    assert everything(p) == before and not p.adapters


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda arrays: {}, "holds no tensors"),
        (lambda arrays: dict(list(arrays.items())[1:]), "the model expects"),
        (lambda arrays: {f"{k}.more": v for k, v in arrays.items()}, "the file has instead|is not understood"),
        (lambda arrays: {k.replace("h.1", "h.7"): v for k, v in arrays.items()}, "h.7"),
        (lambda arrays: {k: v[:, :-1] for k, v in arrays.items()}, "shape"),
    ],
    ids=["empty", "one missing", "other names", "another layer", "another shape"],
)
def test_files_whose_keys_do_not_all_land(saved, change, words):
    rewrite(saved, change)
    report = check_file(lora(), saved)
    assert report.codes == ["file-refused"] and not report.ok
    assert re.search(words, report.findings[0].problem), report


def test_a_file_that_does_nothing(tmp_path):
    lora().save_pretrained(tmp_path)
    finding = check_file(PeftModel(gpt("gpt2")), tmp_path).findings[0]
    assert finding.code == "file-without-effect" and "as it started" in finding.problem


def test_a_file_that_is_not_finite(saved):
    rewrite(saved, lambda arrays: {k: v * np.float32(np.nan) if "lora_B" in k else v for k, v in arrays.items()})
    assert check_file(PeftModel(gpt("gpt2")), saved).codes == ["not-finite"]


def test_adapters_that_were_saved_together(tmp_path):
    p = stirred(lora())
    p.add_adapter("fresh", LoraConfig(r=2), seed=1)
    p.set_adapter(["default", "fresh"])
    p.save_pretrained(tmp_path, ["default", "fresh"])
    report = check_file(PeftModel(gpt("gpt2")), tmp_path)
    assert report.codes == ["file-without-effect"] and report.findings[0].place.endswith("fresh")
    assert check_file(p, tmp_path).codes == ["file-without-effect"]  # on a model that has adapters of these names


def test_a_file_of_another_base(saved, tmp_path):
    config = json.loads((saved / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert check_file(PeftModel(gpt("llama")), saved).codes == ["file-refused"]


# -- the report --------------------------------------------------------------------------------------------------
def test_the_report_puts_failures_first_and_says_what_to_do():
    p = lora(target_modules=["embed.tokens"])
    p.set_adapter("default", train=())
    report = p.check({"input_ids": IDS})
    lines = str(report).splitlines()
    assert lines[0] == "2 failures, 1 remark" and not report.ok
    assert [line.split()[:2] for line in lines[1::2]] == [
        ["FAILURE", "frozen-adapter"], ["FAILURE", "labels-missing"], ["remark", "tied-weights"]
    ]  # fmt: skip
    assert all(line.startswith("    do: ") for line in lines[2::2])
