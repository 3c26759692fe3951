"""Interrupted and resumed equals uninterrupted, bit for bit; what is another run is not resumed."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from training_cases import batch, held_out, new_model, settings, weights

from minitorch_peft.models import GPT, GPTConfig
from minitorch_peft.nn import Module
from minitorch_peft.peft import LoraConfig, get_peft_model
from minitorch_peft.training import CheckpointError, Trainer, train
from minitorch_peft.training.checkpoint import CheckpointFolder, read_checkpoint
from minitorch_peft.training.config import OPTIMIZERS


class CrashError(Exception):
    pass


def crash_after(step):
    def progress(report):
        if report.step == step:
            raise CrashError

    return progress


def new_lora():
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.2)
    return get_peft_model(new_model(), config, seed=3)


class Remembering(Module):
    """A method with state: it makes every gradient an average over the steps so far."""

    def __init__(self, model):
        self.model = model
        self.average = {}
        self.seen = 0

    def forward(self, *args, **kwargs):
        return self.model(*args, **kwargs)

    def after_backward(self, step, total):
        self.seen += 1
        for name, p in self.named_parameters():
            self.average[name] = 0.5 * self.average.get(name, 0.0) + 0.5 * p.grad
            p.grad = self.average[name].copy()

    def method_state(self):
        return {"average": self.average, "seen": self.seen}

    def load_method_state(self, state):
        self.average, self.seen = state["average"], state["seen"]


MODELS = {"gpt": new_model, "lora": new_lora, "with state": lambda: Remembering(new_model())}


def run(make, config, resume=False, progress=None, batch=batch):
    model = make()
    result = train(model, batch, config, held_out if config.eval_every else None, progress, resume)
    return model, result


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("stops", [(1,), (5,), (6,), (3, 7, 11)], ids=str)
def test_resumed_equals_uninterrupted(make, stops, tmp_path):
    """Killed in the callback of a step, which comes before the step is saved, with checkpoints at 3, 6, 9."""
    config = settings(eval_every=5, patience=9, save_every=3, out=tmp_path / "whole")
    whole, expected = run(make, config)
    config = dataclasses.replace(config, out=tmp_path / "cut")
    for i, step in enumerate(stops):
        with pytest.raises(CrashError):
            run(make, config, resume=i > 0, progress=crash_after(step))
    resumed, result = run(make, config, resume=True)
    assert weights(resumed) == weights(whole)
    assert dataclasses.replace(result.state, seconds=0) == dataclasses.replace(expected.state, seconds=0)
    if len(result.losses):
        assert result.losses == expected.losses[-len(result.losses) :]
    a, b = (lines(tmp_path / name / "metrics.jsonl") for name in ("cut", "whole"))
    assert a == b and [line["step"] for line in a] == list(range(1, 13))


def lines(path):
    return [{k: v for k, v in json.loads(x).items() if k != "seconds"} for x in path.read_text().splitlines()]


@pytest.mark.parametrize("optimizer", ["paged_adamw_32bit", "paged_adamw_8bit", "adamw_bnb_8bit"])
def test_the_other_optimizers_train_and_resume(optimizer, tmp_path):
    """With a budget that holds some of the state; a paged one has the bits of the one in memory, and resumes it."""
    budget = (64 << 10) if optimizer.startswith("paged") else None
    plain = {"paged_adamw_32bit": "adamw"}.get(optimizer, "adamw_bnb_8bit")
    config = settings(optimizer=optimizer, optimizer_budget=budget, save_every=4, out=tmp_path)

    def wide():
        return GPT(GPTConfig(vocab_size=13, n_positions=16, n_embd=64, n_layer=2, n_head=2), seed=1)

    with pytest.raises(CrashError):
        run(wide, config, progress=crash_after(6))
    resumed, result = run(wide, config, resume=True)
    whole, _ = run(wide, settings(optimizer=plain))
    assert len(result.losses) == 8 and weights(resumed) == weights(whole)
    trainer = Trainer(wide(), batch, config)
    trainer.step()
    assert type(trainer.optimizer) is OPTIMIZERS[optimizer]
    if optimizer == "paged_adamw_32bit":
        assert trainer.optimizer.pages.frames.nbytes <= budget and trainer.optimizer.pages.written


def test_nothing_but_the_checkpoint_carries_over(tmp_path):
    """The resumed model starts from other weights, and all of them are replaced."""
    config = settings(out=tmp_path / "a", save_every=4)
    whole, _ = run(new_model, config)
    config = dataclasses.replace(config, out=tmp_path / "b")
    with pytest.raises(CrashError):
        run(new_model, config, progress=crash_after(6))

    def scrambled():
        model = new_model()
        for p in model.parameters():
            p.data[...] = 9
        return model

    resumed, result = run(scrambled, config, resume=True)
    assert len(result.losses) == 8 and weights(resumed) == weights(whole)


def test_a_checkpoint_holds_only_what_trains(tmp_path):
    model, _ = run(new_lora, settings(out=tmp_path))
    saved = read_checkpoint(CheckpointFolder(tmp_path, 1).at(12))
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert saved.part("model").keys() == trained
    assert {key.partition(".")[2] for key in saved.part("optimizer")} == trained
    assert saved.info["next_batch"] == 24 and saved.info["seed"] == 0


def test_weights_and_moments_are_loaded_in_place(tmp_path):
    config = settings(out=tmp_path)
    run(new_model, config)
    model = new_model()
    arrays = {name: p.data for name, p in model.named_parameters()}
    train(model, batch, config, resume=True)
    assert all(p.data is arrays[name] for name, p in model.named_parameters())


def test_resuming_a_finished_run_does_nothing(tmp_path):
    config = settings(out=tmp_path)
    whole, _ = run(new_model, config)
    files = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    again, result = run(new_model, config, resume=True)
    assert result.losses == [] and weights(again) == weights(whole)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == files


def test_early_stopping_survives(tmp_path):
    """Nothing is learned at lr 0, so the second look without a gain ends the run, resumed or not."""
    config = settings(lr=0.0, eval_every=2, patience=3, save_every=1, out=tmp_path)
    with pytest.raises(CrashError):
        run(new_model, config, progress=crash_after(6))
    _, result = run(new_model, config, resume=True)
    assert result.state.stopped_early and result.state.step == 8 and len(result.losses) == 3
    _, again = run(new_model, config, resume=True)
    assert again.state.step == 8 and again.losses == []


def test_a_damaged_checkpoint_costs_steps_and_no_bits(tmp_path):
    config = settings(save_every=2, keep=3, out=tmp_path / "a", eval_every=6)
    whole, _ = run(new_model, config)
    config = dataclasses.replace(config, out=tmp_path / "b")
    with pytest.raises(CrashError):
        run(new_model, config, progress=crash_after(9))
    newest = CheckpointFolder(config.out, 3).at(8)
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="step-00000008.safetensors.*going on from .*step-00000006"):
        resumed, result = run(new_model, config, resume=True)
    assert len(result.losses) == 6 and weights(resumed) == weights(whole)


def test_a_run_is_not_overwritten(tmp_path):
    config = settings(out=tmp_path)
    run(new_model, config)
    with pytest.raises(CheckpointError, match=r"already holds a run.*after step 12.*resume=True"):
        run(new_model, config)


# -- what is another run -------------------------------------------------------------------------------------
def frozen_base_changed():
    model = new_lora()
    model.base_model.ln_f.bias.data[0] += 1e-6
    return model


def other_alpha():
    config = LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"], lora_dropout=0.2)
    return get_peft_model(new_model(), config, seed=3)


def other_rank():
    config = LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.2)
    return get_peft_model(new_model(), config, seed=3)


@pytest.mark.parametrize(
    ("make", "fields", "source", "message"),
    [
        (new_lora, {"lr": 0.03}, batch, r"config\.lr: was 0\.02, is 0\.03"),
        (new_lora, {"steps": 14}, batch, r"config\.steps: was 12, is 14"),
        (new_lora, {"seed": 1}, batch, r"config\.seed: was 0, is 1"),
        (new_lora, {"betas": (0.9, 0.99)}, batch, r"config\.betas"),
        (new_lora, {}, lambda i: batch(i + 1), r"data\.first batch"),
        (new_lora, {}, lambda i: batch(min(i, 20)), r"data\.last batch"),
        (frozen_base_changed, {}, batch, r"model\.frozen weights"),
        (other_alpha, {}, batch, r"model\.settings\.adapter default\.lora_alpha: was 4, is 8"),
        (other_rank, {}, batch, r"model\.trainable\..*\(2, 16\), is float32 \(4, 16\)"),
        (new_model, {}, batch, r"model\.settings\.class: was PeftModel, is GPT"),
    ],
)
def test_another_run_is_refused_and_the_difference_named(make, fields, source, message, tmp_path):
    run(new_lora, settings(out=tmp_path, save_every=6))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match="which is of another run: .*" + message):
        run(make, settings(out=tmp_path, save_every=6, **fields), resume=True, batch=source)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_settings_that_change_no_weight_may_change(tmp_path):
    whole, _ = run(new_model, settings(out=tmp_path / "a"))
    with pytest.raises(CrashError):
        run(new_model, settings(out=tmp_path / "b", save_every=3), progress=crash_after(8))
    (tmp_path / "b").rename(tmp_path / "c")
    config = settings(out=tmp_path / "c", save_every=5, keep=1, log_every=3)
    resumed, result = run(new_model, config, resume=True)
    assert len(result.losses) == 6 and weights(resumed) == weights(whole)


def test_another_number_of_threads_is_said(tmp_path, monkeypatch):
    run(new_model, settings(out=tmp_path))
    from minitorch_peft.training import record

    elsewhere = {**record.environment(), "threads": 64}
    monkeypatch.setattr(record, "environment", lambda: elsewhere)
    with pytest.warns(UserWarning, match=r"threads: was \d+, is 64.*last bits"):
        run(new_model, settings(out=tmp_path), resume=True)


def test_a_batch_that_is_new_every_time_is_noticed(tmp_path):
    """A source that is no pure function of its number cannot be resumed."""
    rng = np.random.default_rng(0)
    drawn = lambda i: batch(int(rng.integers(1 << 30)))  # noqa: E731
    run(new_model, settings(out=tmp_path), batch=drawn)
    with pytest.raises(CheckpointError, match=r"data\.first batch"):
        run(new_model, settings(out=tmp_path), resume=True, batch=drawn)
