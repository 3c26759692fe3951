"""AdaLoRA: the penalty, the budget, which ranks are lost, its files, ``peft``'s numbers without ``peft``."""

from __future__ import annotations

import json

import numpy as np
import pytest
from golden_cases import RECIPE, golden_adapter, golden_model, golden_values
from hypothesis import given, settings
from hypothesis import strategies as st
from peft_cases import IDS, gpt, logits, optimizer_of, snapshot, stirred, train

import minitorch_peft as mp
from minitorch_peft.formats.files import FileFormatError, read_arrays, read_json, write_arrays
from minitorch_peft.optim import AdamW
from minitorch_peft.peft import AdaLoraConfig, PeftModel, get_peft_model
from minitorch_peft.peft.parameter.adalora import NonOrthonormality
from minitorch_peft.peft.parameter.adalora_budget import RankAllocator
from minitorch_peft.training import TrainConfig
from minitorch_peft.training import train as run

SMALL = {"init_r": 4, "target_r": 2, "target_modules": ["q_proj", "v_proj", "up_proj"], "lora_alpha": 16}


def adapted(family="gpt2", dtype=np.float32, seed=0, **options):
    return get_peft_model(gpt(family, dtype), AdaLoraConfig(**SMALL | options), seed=seed)


def ranks(p):
    return p.adapters["default"].ranks()


# -- the penalty ---------------------------------------------------------------------------------------------------
@settings(max_examples=30, deadline=None)
@given(r=st.integers(1, 5), n=st.integers(1, 6), seed=st.integers(0, 99))
def test_non_orthonormality_and_its_gradient(r, n, seed):
    P = mp.tensor(np.random.default_rng(seed).standard_normal((r, n)), requires_grad=True)
    f = NonOrthonormality.apply(P)
    assert f.item() == pytest.approx(np.linalg.norm(P.data @ P.data.T - np.eye(r)))
    assert mp.gradcheck(NonOrthonormality.apply, (P,))


def test_at_orthonormal_rows_the_penalty_and_its_gradient_are_zero():
    for P in (np.eye(3, 5), np.zeros((0, 5))):
        P = mp.tensor(P, requires_grad=True)
        f = NonOrthonormality.apply(P)
        f.backward()
        assert f.item() == 0 and not P.grad.any() and P.grad.shape == P.shape


def test_the_penalty_is_the_mean_over_all_matrices():
    p = stirred(adapted(dtype=np.float64, orth_reg_weight=0.3))
    layers = p.adapters["default"].wrappers.values()
    matrices = [P for w in layers for P in (w.lora_A.data, w.lora_B.data.T)]
    distances = [np.linalg.norm(P @ P.T - np.eye(len(P))) for P in matrices]
    assert p.penalty().item() == pytest.approx(0.3 * np.mean(distances))
    assert adapted(orth_reg_weight=0.0).penalty() is None


def test_the_penalty_keeps_rows_near_orthonormal():
    def distance(weight):
        p = adapted(orth_reg_weight=weight)
        for w in p.adapters["default"].wrappers.values():
            w.lora_A.data[...] = np.linalg.qr(w.lora_A.data.T)[0].T
        train(p, optimizer_of(p, lr=3e-2), range(10))
        return np.mean([NonOrthonormality.apply(w.lora_A).item() for w in p.adapters["default"].wrappers.values()])

    assert distance(5.0) < 0.7 * distance(0.0)


# -- the budget ----------------------------------------------------------------------------------------------------
SCHEDULES = st.tuples(
    st.integers(1, 40), st.integers(0, 20), st.integers(0, 20), st.integers(1, 6), st.integers(1, 6)
).filter(lambda s: s[1] < s[0] - s[2])


@given(SCHEDULES)
def test_the_budget_falls_from_the_first_to_the_last(schedule):
    total, tinit, tfinal, target_r, more = schedule
    config = AdaLoraConfig(target_r, target_r + more, tinit, tfinal, total_step=total)
    allocator = RankAllocator(config, {name: Layer(target_r + more) for name in "abc"})
    budgets = [allocator.budget(step) for step in range(total + 3)]
    assert budgets == sorted(budgets, reverse=True)
    assert set(budgets[: tinit + 1]) == {3 * (target_r + more)}
    assert set(budgets[total - tfinal :]) == {3 * target_r}
    for step in range(tinit, total - tfinal):
        left = (total - tfinal - step) / (total - tfinal - tinit)
        assert budgets[step] == pytest.approx(3 * target_r + 3 * more * left**3, abs=1)


class Layer:
    """What an allocator looks at: of r ranks, 3 inputs and 2 outputs."""

    def __init__(self, r, seed=0):
        rng = np.random.default_rng(seed)
        for name, shape in (("lora_A", (r, 3)), ("lora_E", (r, 1)), ("lora_B", (2, r))):
            setattr(self, name, mp.tensor(rng.standard_normal(shape)))
            getattr(self, name).grad = rng.standard_normal(shape)


@settings(deadline=None, max_examples=25)
@given(SCHEDULES.filter(lambda s: s[0] < 25), st.integers(1, 4), st.integers(0, 99))
def test_the_best_ranks_of_all_layers_stay(schedule, every, seed):
    total, tinit, tfinal, target_r, more = schedule
    config = AdaLoraConfig(target_r, target_r + more, tinit, tfinal, deltaT=every, total_step=total)
    layers = {name: Layer(target_r + more, seed + i) for i, name in enumerate("abc")}
    allocator = RankAllocator(config, layers)
    end = total - tfinal
    for step in range(total):
        before = allocator.kept
        scores = allocator.scores() if allocator.averages else None
        allocator.update(step)
        if allocator.averages:
            scores = allocator.scores()
        final = step == (end if tfinal else end - 1)
        if final or (tinit < step < end and step % every == 0):
            budget = 3 * target_r if final else allocator.budget(step)
            assert sum(kept.sum() for kept in allocator.kept.values()) == budget
            if not (final and not tfinal):  # there the averages have moved on and are gone
                lost = [s for name in layers for s in scores[name][~allocator.kept[name]]]
                assert max(lost, default=0) <= min(s for name in layers for s in scores[name][allocator.kept[name]])
            assert all(
                (layers[name].lora_E.data[:, 0] != 0).tolist() == allocator.kept[name].tolist() for name in layers
            )
        else:
            assert allocator.kept is before
        for layer in layers.values():
            layer.lora_E.data += 0.01  # the optimizer goes on
    allocator.update(total)
    assert sum((layer.lora_E.data != 0).sum() for layer in layers.values()) == 3 * target_r  # no rank comes back


def test_scores_by_hand():
    layer = Layer(2)
    allocator = RankAllocator(AdaLoraConfig(1, 2, total_step=9, beta1=0.5, beta2=0.25), {"x": layer})
    expected = {}
    for name in ("lora_A", "lora_E", "lora_B"):
        now = np.abs(getattr(layer, name).data * getattr(layer, name).grad)
        first = 0.5 * now, 0.75 * np.abs(now - 0.5 * now)
        second = 0.5 * first[0] + 0.5 * now
        expected[name] = second * (0.25 * first[1] + 0.75 * np.abs(now - second))
    allocator.update(0)
    kept = layer.lora_E.data.copy()
    allocator.config.deltaT = 5  # step 1 takes none away
    allocator.update(1)
    by_hand = expected["lora_E"][:, 0] + expected["lora_A"].mean(1) + expected["lora_B"].mean(0)
    np.testing.assert_allclose(allocator.scores()["x"], by_hand)
    np.testing.assert_array_equal(layer.lora_E.data, kept)


def test_no_rank_is_lost_where_the_target_is_the_start():
    p = adapted(init_r=3, target_r=3)
    train(p, optimizer_of(p), range(10))
    assert set(ranks(p).values()) == {3}
    assert all((w.lora_E.data != 0).all() for w in p.adapters["default"].wrappers.values())


# -- training ------------------------------------------------------------------------------------------------------
def batch(i):
    ids = np.random.default_rng(i).integers(0, 29, (3, 8))
    return {"input_ids": ids, "labels": ids}


def film(p, config, **options):
    """Train, and the number of ranks after each step."""
    seen = []
    run(p, batch, config, progress=lambda report: seen.append(sum(ranks(p).values())), **options)
    return seen


def test_the_trainer_calls_the_allocator_and_says_how_many_steps_there_are():
    p = adapted(tinit=2)
    seen = film(p, TrainConfig(steps=12, lr=1e-2))
    assert len(seen) == 12 and seen[2] == 24 and seen[-1] == 12 and seen == sorted(seen, reverse=True)
    assert len(set(ranks(p).values())) > 1  # the targets end with different ranks
    for path, w in p.adapters["default"].wrappers.items():
        assert (w.lora_E.data != 0).sum() == ranks(p)[path]


@pytest.mark.parametrize("stop", [3, 6, 9])
def test_a_run_that_is_stopped_goes_on_with_the_same_bits_and_ranks(stop, tmp_path):
    config = TrainConfig(steps=10, lr=1e-2, out=tmp_path, save_every=1)
    options = {"tinit": 1, "tfinal": 3, "lora_dropout": 0.1}
    whole = adapted(**options)
    film(whole, TrainConfig(steps=10, lr=1e-2))

    def crash(report):
        if report.step == stop:
            raise KeyError("stopped")

    with pytest.raises(KeyError):
        run(adapted(**options), batch, config, progress=crash)
    second = adapted(seed=5, **options)
    run(second, batch, config, resume=True)
    a, b = whole.adapters["default"], second.adapters["default"]
    assert ranks(second) == ranks(whole)
    assert all(q.data.tobytes() == b.named_parameters()[n].data.tobytes() for n, q in a.named_parameters().items())


@pytest.mark.parametrize("family", ["gpt2-4bit", "llama-4bit"])
def test_over_four_bits_it_trains_and_is_what_its_weight_is(family):
    p = stirred(adapted(family, np.float64, target_modules=["v_proj", "up_proj"]))
    assert mp.gradcheck(lambda: p(IDS[:1, :4]).logits, (), parameters=p.trainable_parameters())
    unmerged = logits(p)
    p.merge_adapter()
    np.testing.assert_allclose(logits(p), unmerged, rtol=1e-9, atol=1e-9)
    p.unmerge_adapter()
    train(p, optimizer_of(p), range(10))
    assert sum(ranks(p).values()) == 2 * len(ranks(p))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"target_r": 5}, "target_r must be from 1 to init_r=4, got 5"),
        ({"init_r": 4.0}, "init_r must be a whole number, got 4.0"),
        ({"lora_alpha": float("inf")}, "lora_alpha above it, and both finite"),
        ({"target_r": 0}, "target_r must be from 1 to init_r=4, got 0"),
        ({"beta1": 1.0}, "beta1 and beta2 must lie between 0 and 1"),
        ({"deltaT": 0}, "deltaT at least 1"),
        ({"orth_reg_weight": -1}, "orth_reg_weight must be at least 0"),
        ({"tinit": 5, "tfinal": 5, "total_step": 10}, "of 10 steps, tinit=5 and tfinal=5 leave none"),
        ({"init_r": 40}, "init_r=40 is above the rank of blocks.0.attn.q_proj"),
        ({"target_modules": ["embed.tokens"]}, "embed.tokens looks rows up: use LoRA"),
        ({"rank_pattern": {"blocks.0.attn.q_proj": [True]}}, "q_proj has 1 entries, init_r is 4"),
        ({"rank_pattern": {"blocks.7.attn.q_proj": [True] * 4}}, "'blocks.7.attn.q_proj' is no target"),
    ],
)
def test_bad_settings_say_what_would_be_valid(options, message):
    base = gpt("gpt2")
    before = snapshot(base)
    with pytest.raises(ValueError, match=message):
        get_peft_model(base, AdaLoraConfig(**SMALL | options))
    assert snapshot(base) == before


def test_a_schedule_that_the_run_has_no_room_for_is_refused_at_its_first_step():
    with pytest.raises(ValueError, match="of 6 steps, tinit=4 and tfinal=2 leave none in which AdaLoRA could"):
        run(adapted(tinit=4, tfinal=2), batch, TrainConfig(steps=6))
    with pytest.raises(RuntimeError, match="does not know how many steps there are"):
        adapted().after_step(0)


@pytest.mark.parametrize("tfinal", [0, 4])
def test_the_best_look_of_a_run_is_one_within_the_budget(tfinal, tmp_path):
    """At a rate that spoils more and more, the first look is the best one: but there all ranks are left."""
    p = adapted(tfinal=tfinal)
    assert not p.settled
    looks = []
    run(
        p, batch, TrainConfig(steps=12, lr=1.0, eval_every=1, restore_best=True, out=tmp_path),
        held_out=lambda: [batch(99)], progress=lambda report: looks.append(report.held_out),
    )  # fmt: skip
    assert np.argmin(looks) < 11 - tfinal
    assert p.settled and sum(ranks(p).values()) == 12
    assert sum((w.lora_E.data != 0).sum() for w in p.adapters["default"].wrappers.values()) <= 12
    assert adapted(init_r=3, target_r=3).settled  # there is nothing to choose


def test_a_training_that_ends_before_the_last_choice_is_refused():
    with pytest.raises(ValueError, match="total_step=1000: the last ranks are lost after step 999, and this training "):
        run(adapted(total_step=1000), batch, TrainConfig(steps=10))
    run(adapted(total_step=1000, init_r=3, target_r=3), batch, TrainConfig(steps=1))  # there is nothing to choose
    p = adapted(total_step=12, tfinal=3)
    run(p, batch, TrainConfig(steps=10))
    assert sum(ranks(p).values()) == 12


# -- files ---------------------------------------------------------------------------------------------------------
def lost_ranks(family, **options):
    """A trained adapter that has lost ranks, all of one target's among them."""
    p = adapted(family, **options)
    train(p, optimizer_of(p, lr=3e-2), range(10))
    adapter = p.adapters["default"]
    path = next(iter(adapter.wrappers))
    adapter.wrappers[path].lora_E.data[...] = 0
    adapter.allocator.kept[path][...] = False
    return p


@pytest.mark.parametrize("targets", [SMALL["target_modules"], ["o_proj", "down_proj"], "all-linear", ["v_proj"]])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_peft_s_file_has_the_ranks_that_are_left_and_gives_the_same_outputs(family, targets, tmp_path):
    p = lost_ranks(family, target_modules=targets)
    p.save_pretrained(tmp_path)
    arrays, again = (
        read_arrays(tmp_path / "adapter_model.safetensors"),
        PeftModel.from_pretrained(gpt(family), tmp_path),
    )
    left = sum(ranks(p).values())
    assert sum(len(a) for n, a in arrays.items() if n.endswith("lora_E")) == left
    assert ranks(again) == ranks(p) and 0 in ranks(again).values()
    np.testing.assert_allclose(logits(again), logits(p), rtol=1e-5, atol=1e-5)
    ours, theirs = p.adapters["default"].config, again.adapters["default"].config
    for name in ("init_r", "target_r", "lora_alpha", "tinit", "deltaT"):
        assert getattr(theirs, name) == getattr(ours, name), name
    kept = p.adapters["default"].allocator.kept
    assert theirs.rank_pattern == {path: mask.tolist() for path, mask in kept.items() if not mask.all()}
    again.merge_adapter()  # a target without a rank is no obstacle
    np.testing.assert_allclose(logits(again), logits(p), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_our_own_file_has_the_ranks_that_are_left_and_these_train_alone(family, tmp_path):
    p = lost_ranks(family)
    p.save_pretrained(tmp_path / "a", format="native")
    again = PeftModel.from_pretrained(gpt(family), tmp_path / "a", is_trainable=True)
    before = ranks(again)
    assert before == ranks(p) and 0 in before.values()
    np.testing.assert_allclose(logits(again), logits(p), rtol=1e-6, atol=1e-6)
    p.save_pretrained(tmp_path / "peft")
    theirs = PeftModel.from_pretrained(gpt(family), tmp_path / "peft").adapters["default"]
    assert theirs.config.rank_pattern == again.adapters["default"].config.rank_pattern
    train(again, optimizer_of(again), range(10))
    assert ranks(again) == before
    again.save_pretrained(tmp_path / "b", format="native")
    last = PeftModel.from_pretrained(gpt(family), tmp_path / "b")
    assert last.adapters["default"].config == again.adapters["default"].config and ranks(last) == before
    np.testing.assert_array_equal(logits(last), logits(again))


def test_our_own_file_that_says_otherwise_which_ranks_are_left_is_refused(tmp_path):
    lost_ranks("llama").save_pretrained(tmp_path, format="native")
    path = tmp_path / "adapter_model.safetensors"
    arrays = read_arrays(path)
    name = next(name for name in arrays if name.endswith("kept"))
    for bad in (arrays[name][:3], arrays[name].astype(np.float32)):
        write_arrays(path, arrays | {name: bad})
        with pytest.raises(FileFormatError, match=r"q_proj.kept is .*, expected uint8 \(4,\)"):
            PeftModel.from_pretrained(gpt("llama"), tmp_path)


def test_the_file_of_a_fused_module_in_numbers(tmp_path):
    """q and v have 4 ranks each, c_attn 8; s = 16 / (4 + 1e-5) is that of alpha 32 or so; up_proj has 4 of 8."""
    p = stirred(adapted())
    p.save_pretrained(tmp_path)
    settings_, arrays = read_json(tmp_path / "adapter_config.json"), read_arrays(tmp_path / "adapter_model.safetensors")
    assert settings_["init_r"] == 8 and settings_["lora_alpha"] / (8 + 1e-5) == pytest.approx(16 / (4 + 1e-5))
    assert settings_["rank_pattern"]["transformer.h.0.attn.c_attn.lora_E"] == [True] * 8
    assert settings_["rank_pattern"]["transformer.h.1.mlp.c_fc.lora_E"] == [True] * 4 + [False] * 4
    wrappers, prefix = p.adapters["default"].wrappers, "base_model.model.transformer.h.0.attn.c_attn"
    q, v = wrappers["blocks.0.attn.q_proj"], wrappers["blocks.0.attn.v_proj"]
    B = arrays[f"{prefix}.lora_B"]
    np.testing.assert_array_equal(arrays[f"{prefix}.lora_E"], np.vstack([q.lora_E.data, v.lora_E.data]))
    np.testing.assert_array_equal(B[:32, :4], q.lora_B.data)
    np.testing.assert_array_equal(B[64:, 4:], v.lora_B.data)
    assert not B[32:64].any() and not B[:32, 4:].any() and not B[64:, :4].any()


def test_between_two_choices_nothing_that_acts_is_left_out(tmp_path):
    """A rank that was lost at the last choice and has learned since is still in the file."""
    p = lost_ranks("llama", deltaT=4, tfinal=1)
    adapter = p.adapters["default"]
    path, kept = next((path, kept) for path, kept in adapter.allocator.kept.items() if 0 < kept.sum() < 4)
    adapter.wrappers[path].lora_E.data[~kept] = 0.5
    p.save_pretrained(tmp_path)
    np.testing.assert_allclose(
        logits(PeftModel.from_pretrained(gpt("llama"), tmp_path)), logits(p), rtol=1e-6, atol=1e-6
    )


def test_a_loaded_adapter_whose_budget_is_spent_trains_on_without_losing_more(tmp_path):
    p = lost_ranks("llama")
    p.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(gpt("llama"), tmp_path, is_trainable=True)
    before = ranks(again)
    train(again, optimizer_of(again), range(10))
    assert ranks(again) == before


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"rank_pattern": {"model.layers.9.mlp.up_proj.lora_E": [True] * 4}},
            r"layers.9.mlp.up_proj.lora_E, which is no",
        ),
        ({"rank_pattern": {"model.layers.0.mlp.up_proj.lora_E": [True]}}, "has 1 entries, init_r is 4"),
        ({"target_modules": None}, "has no target_modules"),
        ({"target_modules": ["nothing"]}, "names no module of this model"),
        ({"init_r": 3}, r"lora_A has shape \(4, 32\), the model and adapter_config.json make it \(3, 32\)"),
        ({"bias": "all"}, "no counterpart here: bias='all'"),
        ({"deltaT": "often"}, "deltaT='often' is not understood"),
    ],
)
def test_files_that_do_not_fit_are_refused(change, message, tmp_path):
    adapted("llama", target_modules=["up_proj"]).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(read_json(path) | change))
    with pytest.raises(FileFormatError, match=message):
        PeftModel.from_pretrained(gpt("llama"), tmp_path)


# -- peft's numbers, without peft ----------------------------------------------------------------------------------
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_golden_adapter(family, tmp_path):
    arrays, values = golden_adapter("adalora", family, tmp_path / "theirs"), golden_values("adalora", family)
    p = PeftModel.from_pretrained(golden_model(family), tmp_path / "theirs")
    np.testing.assert_allclose(logits(p, RECIPE["IDS"]), values["logits"], rtol=1e-5, atol=1e-5)
    assert list(dict(sorted(ranks(p).items())).values()) == values["kept"][-1].sum(axis=1).tolist()
    with p.disable_adapter():
        assert np.abs(logits(p, RECIPE["IDS"]) - values["logits"]).max() > 1e-2
    p.save_pretrained(tmp_path / "ours")
    ours = read_arrays(tmp_path / "ours" / "adapter_model.safetensors")
    assert ours.keys() == arrays.keys() and all(np.array_equal(ours[n], arrays[n]) for n in arrays)
    theirs, again = (read_json(tmp_path / name / "adapter_config.json") for name in ("theirs", "ours"))
    assert all(again[n] == theirs[n] for n in ("rank_pattern", "init_r", "target_r", "tfinal", "total_step"))


def test_the_golden_adapter_of_a_fused_module(tmp_path):
    """q, k and v each have all ranks of c_attn; joined again they are three times as many, and the same function."""
    arrays, values = golden_adapter("adalora", "gpt2-fused", tmp_path), golden_values("adalora", "gpt2-fused")
    p = PeftModel.from_pretrained(golden_model("gpt2"), tmp_path)
    np.testing.assert_allclose(logits(p, RECIPE["IDS"]), values["logits"], rtol=1e-5, atol=1e-5)
    rows = {name.split(".")[4]: len(a) for name, a in arrays.items() if name.endswith("c_attn.lora_E")}
    assert all(ranks(p)[f"blocks.{i}.attn.{x}_proj"] == rows[str(i)] for i in range(2) for x in "qkv")
    assert p.adapters["default"].config.init_r == 4 and p.adapters["default"].config.target_r == 2
    p.save_pretrained(tmp_path / "again")
    again = PeftModel.from_pretrained(golden_model("gpt2"), tmp_path / "again")
    np.testing.assert_allclose(logits(again, RECIPE["IDS"]), values["logits"], rtol=1e-5, atol=1e-5)
    assert again.adapters["default"].config == p.adapters["default"].config and ranks(again) == ranks(p)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_golden_training(family, tmp_path):
    """Ten steps: the loss with the penalty, and the ranks that are left after each."""
    values = golden_values("adalora", family)
    targets = {"gpt2": ["o_proj", "up_proj"], "llama": ["q_proj", "v_proj"]}[family]
    schedule = {"init_r": 4, "target_r": 2, "tinit": 1, "tfinal": 3, "deltaT": 2, "total_step": 10}
    p = get_peft_model(golden_model(family), AdaLoraConfig(**schedule, lora_alpha=16, target_modules=targets))
    for (path, w), names in zip(p.adapters["default"].wrappers.items(), starts(values), strict=True):
        assert path.split(".")[1] in names[0]  # the same layer
        w.lora_A.data[...], w.lora_B.data[...] = (values[name] for name in names)
    optimizer = AdamW(p.trainable_parameters(), lr=0.01)
    for step in range(10):
        ids = RECIPE["batch"](step)
        loss = p(ids, labels=ids).loss + p.penalty()
        loss.backward()
        p.after_backward(step, 10)
        optimizer.step()
        p.after_step(step)
        optimizer.zero_grad()
        assert loss.item() == pytest.approx(values["losses"][step], rel=1e-4)
        kept = [mask for _, mask in sorted(p.adapters["default"].allocator.kept.items())]
        np.testing.assert_array_equal(np.array(kept), values["kept"][step])


def starts(values):
    """The names of A and B of each target, in the order of the model."""
    names = sorted(name for name in values if name.startswith("start/"))
    return zip(names[::2], names[1::2], strict=True)
