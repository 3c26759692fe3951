"""Diff pruning: the gate against its closed forms, the mask that is fixed, resuming, the file of what differs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from peft_cases import IDS, gpt, logits, optimizer_of, snapshot, stirred, train

import minitorch_peft as mp
from minitorch_peft.formats.files import FileFormatError, read_arrays, write_arrays
from minitorch_peft.models import SequenceClassifier
from minitorch_peft.nn import ForwardContext
from minitorch_peft.peft import DiffPruningConfig, PeftModel, get_peft_model
from minitorch_peft.peft.interop import WEIGHTS
from minitorch_peft.peft.parameter.diff_pruning import DiffPruning, largest
from minitorch_peft.peft.parameter.difference import CERTAIN
from minitorch_peft.peft.parameter.hard_concrete import (
    LEFT,
    RIGHT,
    HardConcrete,
    gate,
    hard_concrete,
    logistic,
    open_probability,
)
from minitorch_peft.training import TrainConfig, Trainer, evaluate

SMALL = ["ln_1.**", "attn.q_proj.**"]
CONFIGS = {
    "additive": DiffPruningConfig(target_parameters=SMALL, sparsity=0.1),
    "structured": DiffPruningConfig(target_parameters=SMALL, sparsity=0.1, structured=True),
    "masked": DiffPruningConfig(target_parameters=SMALL, sparsity=0.8, variant="masked"),
    "magnitude": DiffPruningConfig(target_parameters=SMALL, sparsity=0.1, variant="magnitude"),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def adapted(config, dtype=np.float32):
    return get_peft_model(gpt("gpt2", dtype), config)


def differences(p):
    return p.adapters["default"].differences


# -- the gate --------------------------------------------------------------------------------------------------
def mean_of_gate(alpha):
    """E z = ∫ P(z > t) dt over 0 to 1; with t = l + x (r - l), k = e^alpha: P(s > x) = k (1 - x) / (k + (1 - k) x)."""
    a, b, k = -LEFT / (RIGHT - LEFT), (1 - LEFT) / (RIGHT - LEFT), np.exp(alpha)
    if k == 1:
        integral = (b - a) - (b * b - a * a) / 2
    else:
        c = 1 - k
        integral = k * (-(b - a) / c + np.log((k + c * b) / (k + c * a)) / c**2)
    return (RIGHT - LEFT) * integral


@pytest.mark.parametrize("alpha", [-2.0, 0.0, 0.7, 5.0])
def test_the_gate_has_the_distribution_that_its_closed_form_says(alpha):
    n = 200_000
    z = hard_concrete(np.full(n, alpha), logistic((0, "gate", 3), (n,)))
    expected = {
        "zero": (np.mean(z == 0), sigmoid(np.log(-LEFT / RIGHT) - alpha)),
        "one": (np.mean(z == 1), sigmoid(alpha - np.log((1 - LEFT) / (RIGHT - 1)))),
        "open": (np.mean(z > 0), open_probability(mp.tensor(np.array(alpha))).item()),
        "mean": (z.mean(), mean_of_gate(alpha)),
    }
    for name, (drawn, closed) in expected.items():
        assert abs(drawn - closed) < 4 * 0.5 / np.sqrt(n), name
    assert z.min() >= 0 and z.max() <= 1


def test_noise_is_a_function_of_seed_site_and_step_and_never_infinite():
    draw = logistic((0, "a", 1), (4, 5))
    np.testing.assert_array_equal(draw, logistic((0, "a", 1), (4, 5)))
    for other in ((1, "a", 1), (0, "b", 1), (0, "a", 2)):
        assert (draw != logistic(other, (4, 5))).all()
    assert np.isfinite(logistic((0, "a", 1), (100_000,))).all()


def test_the_gate_s_gradient_is_the_derivative_by_hand():
    alpha = mp.tensor(np.random.default_rng(0).normal(0, 1, (6, 7)), requires_grad=True)
    key = (0, "gate", 1)
    assert mp.gradcheck(lambda a: gate(a, key), (alpha,))
    assert mp.gradcheck(gate, (alpha,))
    noise = logistic(key, alpha.shape)
    z = HardConcrete.apply(alpha, noise=noise)
    z.backward(gradient=np.ones(alpha.shape))
    s = sigmoid(alpha.data + noise)
    np.testing.assert_allclose(alpha.grad, np.where((z.data > 0) & (z.data < 1), 3 * s * (1 - s), 0), atol=1e-12)
    assert (alpha.grad == 0).any() and (alpha.grad > 0.1).any()


@pytest.mark.parametrize("alpha", [-CERTAIN, CERTAIN])
def test_a_certain_gate_stays_as_it_is_with_any_noise(alpha):
    n = 100_000
    z = hard_concrete(np.full(n, alpha, np.float32), logistic((0, "x", 0), (n,)).astype(np.float32))
    assert (z == (alpha > 0)).all()


# -- the penalty -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["additive", "structured", "masked"])
def test_the_penalty_is_the_expected_number_of_open_gates(name):
    p = stirred(adapted(dataclasses.replace(CONFIGS[name], alpha_init=0.3, l0_penalty=0.5), np.float64), scale=1.0)
    p.train()
    counts = []
    for step in range(400):
        context = ForwardContext(seed=0, step=step)
        counts.append(sum((d.gates(context).data > 0).sum() for d in differences(p).values()))
    error = np.std(counts) / np.sqrt(len(counts))
    assert abs(np.mean(counts) - p.penalty().item() / 0.5) < 4 * error
    assert mp.gradcheck(p.penalty, (), parameters={n: q for n, q in p.trainable_parameters().items() if "alpha" in n})


def test_gates_have_a_rate_of_their_own():
    values, gates = adapted(CONFIGS["structured"]).param_groups()
    assert gates["lr"] == 0.1 and "lr" not in values
    assert all(n.endswith(("alpha.default", "group_alpha.default")) for n in gates["params"])
    assert all(n.endswith(".w.default") for n in values["params"])
    magnitude = adapted(CONFIGS["magnitude"])
    assert magnitude.param_groups() is None and magnitude.penalty() is None


# -- the noise and the pass --------------------------------------------------------------------------------------
def test_evaluation_has_no_noise_and_training_repeats_it():
    config = dataclasses.replace(CONFIGS["structured"], alpha_init=0.5)
    p = stirred(adapted(config))
    np.testing.assert_array_equal(logits(p), logits(p, context=ForwardContext(seed=4, step=9)))
    p.train()
    one = logits(p, context=ForwardContext(seed=4, step=9))
    np.testing.assert_array_equal(one, logits(p, context=ForwardContext(seed=4, step=9)))
    assert np.abs(one - logits(p, context=ForwardContext(seed=4, step=8))).max() > 1e-4


def test_a_group_s_closed_gate_gives_the_base_s_parameter_back():
    p = stirred(adapted(CONFIGS["structured"]), scale=0.3)
    before = logits(gpt("gpt2"))
    assert np.abs(logits(p) - before).max() > 1e-2
    for d in differences(p).values():
        d.group_alpha.data[...] = -CERTAIN
    np.testing.assert_array_equal(logits(p), before)


# -- the mask ----------------------------------------------------------------------------------------------------
@every_config
def test_the_mask_keeps_exactly_the_largest_and_then_stays_bit_for_bit(config):
    p = adapted(config)
    base = snapshot(p.base_model)
    optimizer = optimizer_of(p, lr=3e-2)
    train(p, optimizer, range(4))
    adapter, total = p.adapters["default"], sum(d.w.data.size for d in differences(p).values())
    sizes = np.concatenate([d.magnitude(p.base_model.get(path).data) for path, d in differences(p).items()])
    assert not adapter.fixed and p.method_state() == {}
    adapter.fix_mask()  # what step 5 of 10 does, here on the values that were just looked at
    masks = {path: d.mask.copy() for path, d in differences(p).items()}
    chosen = np.concatenate([m.ravel() for m in masks.values()])
    assert chosen.sum() == round(config.sparsity * total)
    assert sizes[chosen].min() >= sizes[~chosen].max()
    frozen = {n: q.data.copy() for n, q in p.trainable_parameters().items() if "alpha" in n}
    values = {path: d.w.data.copy() for path, d in differences(p).items()}
    train(p, optimizer, range(5, 9))
    for path, d in differences(p).items():
        np.testing.assert_array_equal(d.mask, masks[path])
        assert not d.w.data[~d.mask].any() and not np.signbit(d.w.data[~d.mask]).any()
        if d.mask.any():
            assert (d.w.data[d.mask] != values[path][d.mask]).any()
        expected = 0 if config.variant == "masked" else p.base_model.get(path).data
        effective = d.effective(p.base_model.get(path).data)
        np.testing.assert_array_equal(effective[~d.mask], np.broadcast_to(expected, d.mask.shape)[~d.mask])
    for name, array in frozen.items():
        np.testing.assert_array_equal(p.trainable_parameters()[name].data, array)
    assert snapshot(p.base_model) == base and p.penalty() is None


def test_fixing_the_mask_keeps_the_difference_of_what_is_kept():
    p = stirred(adapted(dataclasses.replace(CONFIGS["structured"], alpha_init=0.5), np.float64), scale=0.2)
    phi = {path: d.effective(0 * d.w.data) for path, d in differences(p).items()}
    p.adapters["default"].fix_mask()
    for path, d in differences(p).items():
        np.testing.assert_array_equal(d.effective(0 * d.w.data), np.where(d.mask, phi[path], 0))
        d.mask = None  # the alphas say the same as the mask, in any noise
        np.testing.assert_array_equal(
            d.effective(0 * d.w.data), np.where(phi[path] * d.openness(np.float64), phi[path], 0)
        )


@pytest.mark.parametrize("after, fixed", [(0.3, 3), (0.5, 5), (1.0, 10), (0.01, 1)])
def test_the_mask_is_fixed_after_a_fraction_of_the_steps(after, fixed):
    p = adapted(dataclasses.replace(CONFIGS["magnitude"], fixmask_after=after))
    optimizer = optimizer_of(p)
    for step in range(10):
        train(p, optimizer, range(step, step + 1))
        assert p.adapters["default"].fixed == (step + 1 >= fixed)


def test_of_equal_magnitudes_the_first_are_kept():
    rng = np.random.default_rng(0)
    for count in range(1, 12):
        values = rng.integers(0, 3, 12).astype(float)
        expected = sorted(range(12), key=lambda i: (-values[i], i))[:count]
        assert np.flatnonzero(largest(values, count)).tolist() == sorted(expected)


# -- resuming ----------------------------------------------------------------------------------------------------
class StopError(Exception):
    pass


def run(config, out, resume=False, stop=None):
    p = get_peft_model(gpt("gpt2"), config)

    def progress(report):
        if report.step == stop:
            raise StopError

    settings = TrainConfig(steps=8, lr=1e-2, warmup=1, out=out, save_every=2, weight_decay=0.1)
    Trainer(p, lambda i: {"input_ids": IDS, "labels": IDS}, settings, progress=progress).run(resume)
    return p


@pytest.mark.parametrize("name", ["structured", "magnitude"])
@pytest.mark.parametrize("stop", [4, 7])
def test_resumed_before_and_after_the_mask_is_fixed_equals_uninterrupted(name, stop, tmp_path):
    """Killed in step 4, before it is saved (mask open at 2, fixed at 4), and in step 7 (mask fixed at 6)."""
    whole = run(CONFIGS[name], tmp_path / "whole")
    with pytest.raises(StopError):
        run(CONFIGS[name], tmp_path / "cut", stop=stop)
    resumed = run(CONFIGS[name], tmp_path / "cut", resume=True)
    assert whole.adapters["default"].fixed and resumed.adapters["default"].fixed
    assert all(np.array_equal(whole.state_dict()[n], a) for n, a in resumed.state_dict().items())
    assert all(np.array_equal(whole.method_state()[n], a) for n, a in resumed.method_state().items())


@pytest.mark.parametrize("whenever", [False, True])
def test_the_best_look_is_one_at_a_sparse_difference(whenever, tmp_path, monkeypatch):
    """Before the mask is fixed the loss is lower and nothing is sparse. Were such a look the best, it would come back
    with its gates."""
    if whenever:
        monkeypatch.setattr(DiffPruning, "settled", True)
    p = get_peft_model(gpt("gpt2"), dataclasses.replace(CONFIGS["structured"], sparsity=0.001))
    batch = {"input_ids": IDS, "labels": IDS}
    settings = TrainConfig(steps=8, lr=3e-2, out=tmp_path, eval_every=2, restore_best=True)
    state = Trainer(p, lambda i: batch, settings, held_out=lambda: [batch]).run().state
    assert (state.best_step < 4) == whenever and p.adapters["default"].fixed == (not whenever)
    assert evaluate(p, [batch]).loss == state.best_loss


def test_a_classifier_says_whether_its_adapter_is_settled():
    p = adapted(CONFIGS["magnitude"])
    classifier = SequenceClassifier(p, num_labels=2)
    assert not classifier.settled and not p.settled
    p.adapters["default"].fix_mask()
    assert classifier.settled and p.settled and SequenceClassifier(gpt("gpt2"), num_labels=2).settled


# -- files -------------------------------------------------------------------------------------------------------
@every_config
def test_a_fixed_mask_is_stored_as_places_and_values(config, tmp_path):
    p = adapted(config)
    train(p, optimizer_of(p, lr=3e-2), range(7))
    adapter = p.adapters["default"]
    stored = adapter.stored()
    kept = round(config.sparsity * sum(d.w.data.size for d in differences(p).values()))
    assert sum(array.nbytes for array in stored.values()) == 8 * kept
    p.save_pretrained(tmp_path)
    file = read_arrays(tmp_path / WEIGHTS)
    assert file.keys() == stored.keys() and all(np.array_equal(file[n], stored[n]) for n in stored)
    again = PeftModel.from_pretrained(gpt("gpt2"), tmp_path, is_trainable=True)
    assert all(np.array_equal(p.state_dict()[n], a) for n, a in again.state_dict().items())
    np.testing.assert_array_equal(logits(again.eval()), logits(p))
    train(again, optimizer_of(again), range(7, 8))
    assert all((d.w.data != 0).sum() <= d.mask.sum() for d in differences(again).values())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda name, array: {}, "too much or too little"),
        (lambda name, array: {name: array[:-1]}, "do not fit its"),
        (lambda name, array: {name: array + 10**6}, "do not fit its"),
        (lambda name, array: {name: array.astype(np.float32)}, "do not fit its"),
    ],
)
def test_a_damaged_file_of_a_fixed_mask_changes_nothing(spoil, message, tmp_path):
    p = adapted(CONFIGS["additive"])
    train(p, optimizer_of(p, lr=3e-2), range(7))
    p.save_pretrained(tmp_path)
    arrays = read_arrays(tmp_path / WEIGHTS)
    name = max((n for n in arrays if n.endswith(".places")), key=lambda n: len(arrays[n]))
    write_arrays(tmp_path / WEIGHTS, spoiled(arrays, name, spoil))
    base = gpt("gpt2")
    before = snapshot(base)
    with pytest.raises(FileFormatError, match=message):
        PeftModel.from_pretrained(base, tmp_path)
    assert snapshot(base) == before


def spoiled(arrays, name, spoil):
    others = {n: a for n, a in arrays.items() if n != name}
    return others | spoil(name, arrays[name])


@every_config
def test_a_file_of_a_fixed_mask_gives_the_same_logits(config, tmp_path):
    p = adapted(config)
    train(p, optimizer_of(p, lr=3e-2), range(7))
    p.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(gpt("gpt2"), tmp_path)
    np.testing.assert_array_equal(logits(again.eval()), logits(p))


# -- settings ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "settings, message",
    [
        ({"variant": "sparse"}, "variant must be one of additive, masked, magnitude"),
        ({"variant": "magnitude", "structured": True}, "structured is of gates"),
        ({"sparsity": 0}, "sparsity is a fraction above 0"),
        ({"fixmask_after": 1.5}, "fixmask_after is a fraction above 0"),
        ({"l0_penalty": -1.0}, "l0_penalty must be at least 0"),
        ({"alpha_init": 200.0}, "alpha_init must lie within ±100"),
    ],
)
def test_bad_settings_say_what_would_be_valid(settings, message):
    with pytest.raises(ValueError, match=message):
        DiffPruningConfig(**settings)


def test_training_without_a_context_or_a_total_says_what_is_missing():
    d = next(iter(differences(adapted(CONFIGS["additive"]).train()).values()))
    with pytest.raises(ValueError, match="need the pass's context"):
        d.gates(None)
    with pytest.raises(RuntimeError, match="how many steps there are"):
        adapted(CONFIGS["additive"]).after_step(0)
