"""Memory, spreads, the paired comparison, the sweep's texts, the picture."""

from __future__ import annotations

import numpy as np
import pytest

from minitorch_peft.analysis import contenders, experiment, picture, summary, sweep
from minitorch_peft.analysis.contenders import CONTENDERS, contenders_named
from minitorch_peft.analysis.memory import peak_memory
from minitorch_peft.analysis.plan import Plan
from minitorch_peft.data.corpora import Corpus
from minitorch_peft.data.packed import PackedText
from minitorch_peft.data.tokenizer import Tokenizer
from minitorch_peft.models import GPT, GPTConfig
from minitorch_peft.peft import METHODS, LoraConfig, get_peft_model

MB = 1_000_000


def test_the_peak_counts_what_is_alive_together():
    def step_of(held):
        def prepare():
            weight = np.ones(2 * MB, np.uint8)

            def step():
                first = weight + weight
                if not held:
                    del first
                return (weight - weight).sum()

            return step

        return prepare

    assert 4 * MB <= peak_memory(step_of(held=False)) < 4.2 * MB
    assert 6 * MB <= peak_memory(step_of(held=True)) < 6.2 * MB


def test_the_peak_leaves_out_what_only_the_first_step_needs():
    def prepare():
        calls = []

        def step():
            calls.append(np.ones((10 if not calls else 1) * MB, np.uint8).sum())

        return step

    assert peak_memory(prepare) < 1.2 * MB


def test_every_contender_is_a_method_with_a_config_of_its_own():
    assert len({c.name for c in CONTENDERS}) == len(CONTENDERS) == 6
    for c in CONTENDERS:
        assert isinstance(c.config(), METHODS[c.method].config) and c.lr > 0
    lora = {c.config().r for c in CONTENDERS if c.method == "lora"}
    assert lora == {4, 16} and all(
        c.config().target_modules == "all-linear" for c in CONTENDERS if isinstance(c.config(), LoraConfig)
    )
    assert contenders_named(["bitfit", "full"]) == tuple(c for c in CONTENDERS if c.name in ("full", "bitfit"))
    with pytest.raises(ValueError, match=r"unknown method fly.*lora-r16"):
        contenders_named(["fly"])


def test_rows_are_means_and_spreads_over_seeds():
    def result(name, value):
        return {
            "contender": name, "trainable_parameters": 7, "trainable_percent": 1.0, "stored_bytes": 28,
            "peak_bytes": 100 * value, "seconds_per_step": value, "base_bytes": 50,
            "bits_per_byte": dict.fromkeys(experiment.MEASURED, value),
            "energy": {"joules": 10 * value, "how": "modelled"}, "deployed_bytes": 14,
            "seconds_per_token": {"base": value, "adapter": 2 * value, "merged": None},
        }  # fmt: skip

    first, second = CONTENDERS[:2]
    results = [result(first.name, 1.0), result(second.name, 5.0), result(first.name, 3.0)]
    one, two = summary.rows((first, second), results)
    assert one.bits["modern"] == (2.0, pytest.approx(2**0.5)) and one.peak_bytes.mean == 200
    assert two.bits["held_out"] == (5.0, None)
    assert (one.energy, one.deployed_bytes) == ("modelled", 14)
    assert one.joules == 20 and one.seconds_per_token == {"base": 1.0, "adapter": 2.0, "merged": None}
    assert one.base_bytes == 50 and one.packed is None and "bits_per_weight" not in one.to_dict()
    gone = {"contender": second.name, "seed": 1, "failed": "it diverged"}
    assert [r.contender for r in summary.rows((first, second), [*results, gone])] == [first]
    assert summary.failures([*results, gone]) == {second.name: "it diverged"}
    packed = result(first.name, 1.0) | {"bits_per_weight": 4.127, "quantized_bits_per_byte": {"modern": 2.0}}
    (row,) = summary.rows((first,), [packed])
    assert row.packed == (4.127, {"modern": 2.0})
    assert row.to_dict()["bits_per_weight"] == 4.127 and row.to_dict()["quantized_bits_per_byte"] == {"modern": 2.0}


def test_the_sweep_never_sees_the_book_it_judges_on(monkeypatch):
    verses = {44_001_001: "acts acts", 44_001_002: "acts again", 1_001_001: "genesis here", 43_001_001: "held out john"}
    monkeypatch.setattr(sweep, "load_corpus", lambda name: Corpus(name, verses))
    plan = Plan(length=4, batch_size=1)
    texts, tokenizer = sweep.sweep_texts(plan, Tokenizer.shipped()), Tokenizer.shipped()
    assert tokenizer.decode(texts.train.ids) == "genesis here"
    assert tokenizer.decode(texts.measured["validation"].ids) == "acts actsacts again"


def test_methods_of_one_seed_learn_from_the_same_rows(monkeypatch, tmp_path):
    seen = {}
    base = GPT(GPTConfig(vocab_size=50, n_positions=16, n_embd=16, n_layer=1, n_head=2), seed=0)
    rng = np.random.default_rng(0)
    packed = PackedText(rng.integers(0, 50, 200), nbytes=600, pad=1)
    texts = experiment.Texts(packed, dict.fromkeys(experiment.MEASURED, packed), 2, 8)
    plan = Plan(steps=3, batch_size=2, length=8, warmup=1, eval_rows=2)

    def adapted(plan, contender, seed):
        model = get_peft_model(type(base)(base.config, seed=0), contender.config(), seed=seed)
        forward = model.base_model.forward

        def watched(input_ids=None, *args, **kwargs):
            if model.training:
                seen.setdefault(contender.name, []).append(np.array(input_ids).tobytes())
            return forward(input_ids, *args, **kwargs)

        model.base_model.forward = watched
        return model

    monkeypatch.setattr(experiment, "adapted", adapted)
    for name in ("full", "bitfit"):
        (contender,) = contenders.contenders_named([name])
        result = experiment.run(plan, contender, 0, texts, tmp_path / name)
        assert set(result["bits_per_byte"]) == set(experiment.MEASURED)
    assert seen["full"] == seen["bitfit"] and len(set(seen["full"])) == 3


def test_the_picture_has_every_method(tmp_path):
    spread = summary.Spread(2.5, 0.1)
    rows = [
        summary.Row(c, 10**i, 10.0 ** (i - 2), 4 * 10**i, summary.Spread(1e8, 0.0), summary.Spread(0.1, 0.01),
                    dict.fromkeys(experiment.MEASURED, spread))
        for i, c in enumerate(CONTENDERS)
    ]  # fmt: skip
    before = dict.fromkeys(experiment.MEASURED, 3.0)
    picture.draw(rows, before, tmp_path / "a.svg")
    drawn = (tmp_path / "a.svg").read_text()
    assert all(f"<!-- {c.title} -->" in drawn for c in CONTENDERS) and "<!-- untouched -->" in drawn
