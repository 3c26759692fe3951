"""The loop: what a step does and in which order, when it stops, and what it refuses."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from training_cases import batch, held_out, new_model, settings, weights

import minitorch_peft as mp
from minitorch_peft.nn import Module, Parameter
from minitorch_peft.optim import SGD, AdamW
from minitorch_peft.training import TrainConfig, Trainer, TrainingError, evaluate, train
from minitorch_peft.training.metrics import MetricsLog


class Output:
    def __init__(self, loss):
        self.loss = loss


class Quadratic(Module):
    """loss = mean over labels of (w - label)²: every number of a step can be checked by hand."""

    def __init__(self, w=0.0, dtype=np.float64):
        self.w = Parameter(np.full((1, 1), w, dtype))
        self.calls = []

    def forward(self, labels, context=None):
        self.calls.append(("forward", context.step if context else None, self.training))
        difference = self.w - mp.tensor(np.asarray(labels, self.w.dtype))
        return Output((difference * difference).mean())


class WithHooks(Quadratic):
    def penalty(self):
        self.calls.append(("penalty",))
        return (self.w * 0.0).sum()

    def after_backward(self, step, total):
        self.calls.append(("after_backward", step, total, self.w.grad.item(), self.w.data.item()))

    def after_step(self, step):
        self.calls.append(("after_step", step, self.w.data.item()))


def twos(i):
    return {"labels": np.array([[2.0]])}


# -- one step ------------------------------------------------------------------------------------------------
def test_a_step_by_hand():
    """sgd: w ← 0 - 0.1 · 0.5 (the warm-up's first factor) · clip(-4 to norm 1)."""
    model = Quadratic()
    config = TrainConfig(steps=3, lr=0.1, optimizer="sgd", warmup=1, schedule="constant", max_grad_norm=1.0)
    reports = []
    train(model, twos, config, progress=reports.append)
    first = reports[0]
    assert (first.step, first.total, first.tokens) == (1, 3, 1)
    assert (first.loss, first.grad_norm) == (4, 4)
    assert [r.lr for r in reports] == pytest.approx([0.05, 0.1, 0.1])
    assert model.w.data.item() == pytest.approx(0.05 + 0.1 + 0.1, rel=1e-5)
    assert model.w.grad is None


def test_no_clipping_where_none_is_asked_for():
    model = Quadratic()
    train(model, twos, TrainConfig(steps=1, lr=0.1, optimizer="sgd", schedule="constant", max_grad_norm=None))
    assert model.w.data.item() == pytest.approx(0.4)


def test_the_hooks_are_called_in_order_with_the_gradient_complete():
    model = WithHooks()
    config = TrainConfig(
        steps=2, lr=0.1, optimizer="sgd", schedule="constant", max_grad_norm=1.0, gradient_accumulation_steps=2
    )
    train(model, lambda i: {"labels": np.full((1, 1 + i), 2.0)}, config)
    first = model.calls[: len(model.calls) // 2]
    assert first == [
        ("forward", 0, True),
        ("penalty",),
        ("forward", 1, True),
        ("penalty",),
        ("after_backward", 0, 2, -4.0, 0.0),  # of all batches, before clipping and before the update
        ("after_step", 0, pytest.approx(0.1)),
    ]
    second = [c for c in model.calls[len(first) :] if c[0] != "penalty"]
    assert [c[:2] for c in second] == [("forward", 2), ("forward", 3), ("after_backward", 1), ("after_step", 1)]


def test_a_hook_may_change_the_gradient_and_clipping_sees_the_change():
    class Masked(Quadratic):
        def after_backward(self, step, total):
            self.w.grad *= 0.5

    model = Masked()
    reports = []
    config = TrainConfig(steps=1, lr=1.0, optimizer="sgd", schedule="constant", max_grad_norm=3.0)
    train(model, twos, config, progress=reports.append)
    assert reports[0].grad_norm == 2 and model.w.data.item() == 2


def test_a_method_may_set_its_own_rates():
    class Faster(Module):
        def __init__(self):
            self.a, self.b = Quadratic(), Quadratic()

        def forward(self, labels, context=None):
            return Output(self.a(labels).loss + self.b(labels).loss)

        def param_groups(self):
            return [{"params": ["a.w"], "lr_scale": 4.0}, {"params": ["b.w"]}]

    model = Faster()
    config = TrainConfig(steps=1, lr=0.1, optimizer="sgd", schedule="constant", max_grad_norm=None)
    train(model, twos, config)
    assert (model.a.w.data.item(), model.b.w.data.item()) == pytest.approx((1.6, 0.4))
    model.param_groups = lambda: [{"params": ["a.w"]}]
    with pytest.raises(ValueError, match=r"every trainable parameter once; missing: \['b.w'\]"):
        train(model, twos, config)


def test_optimizer_and_layer_decay_follow_the_config():
    trainer = Trainer(new_model(), batch, settings(layer_decay=0.5, betas=(0.5, 0.6), eps=1e-3))
    assert isinstance(trainer.optimizer, AdamW)
    group = trainer.optimizer.param_groups[0]
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.5, 0.6), 1e-3, 0.1)
    assert {g["lr_scale"] for g in trainer.optimizer.param_groups} == {0.125, 0.25, 0.5, 1.0}
    sgd = Trainer(new_model(), batch, settings(optimizer="sgd", momentum=0.5)).optimizer
    assert isinstance(sgd, SGD) and sgd.param_groups[0]["momentum"] == 0.5


def test_the_loss_falls_and_nothing_is_left_behind():
    model = new_model()
    arrays = {name: p.data for name, p in model.named_parameters()}
    model.blocks.eval()
    result = train(model, batch, settings(steps=60))
    assert np.mean(result.losses[:5]) > 2.2 and np.mean(result.losses[-5:]) < 0.8
    assert len(result.losses) == result.state.step == 60 and result.state.tokens > 0
    assert all(p.grad is None for p in model.parameters())
    assert all(p.data is arrays[name] for name, p in model.named_parameters()), "weights were copied"
    assert model.training and not model.blocks.training, "modes were not put back"


def test_same_seed_same_bits():
    def run(**fields):
        model = new_model()
        train(model, batch, settings(**fields))
        return weights(model)

    first = run()
    np.random.default_rng(5).random(100)
    assert run() == first
    assert run(seed=1) != first


# -- numbers that are no numbers -----------------------------------------------------------------------------
def poisoned(at: int, value: float):
    return lambda i: {"labels": np.array([[value if i == at else 2.0]])}


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("out", [False, True])
def test_a_loss_that_is_no_number_stops_the_run_before_the_weights_change(value, out, tmp_path):
    model, seen = Quadratic(), []
    config = TrainConfig(steps=9, lr=0.1, out=tmp_path if out else None, save_every=2 if out else 0)
    with pytest.raises(TrainingError) as caught:
        train(model, poisoned(5, value), config, progress=lambda r: seen.append(model.w.data.item()))
    message = str(caught.value)
    assert f"step 6: the loss is {value}" in message and "has not changed the weights" in message
    assert model.w.data.item() == seen[-1] and len(seen) == 5
    assert model.w.grad is None
    saved = tmp_path / "step-00000004.safetensors"
    assert (f"after step 4, is kept: {saved}" in message) == out
    assert saved.exists() == out


def test_a_gradient_that_is_no_number_stops_the_run():
    class Root(Quadratic):
        def forward(self, labels, context=None):
            return Output((self.w * 0.0).sum().sqrt())

    model = Root(1.0)
    with pytest.raises(TrainingError, match="step 1: the gradient's norm is nan"), np.errstate(all="ignore"):
        train(model, twos, TrainConfig(steps=1))
    assert model.w.data.item() == 1 and model.w.grad is None


def test_weights_that_overflow_are_not_saved(tmp_path):
    model = Quadratic(dtype=np.float32)
    config = TrainConfig(
        steps=1, lr=1e38, optimizer="sgd", schedule="constant", max_grad_norm=None, out=tmp_path, save_every=1
    )
    message = r"step 1 left weights that are not finite \(w\): .* no checkpoint"
    with pytest.raises(TrainingError, match=message), np.errstate(over="ignore"):
        train(model, lambda i: {"labels": np.array([[1e18]])}, config)
    assert not list(tmp_path.glob("step-*"))


def test_a_held_out_loss_that_is_no_number_stops_the_run():
    with pytest.raises(TrainingError, match="after step 3 the held-out loss is nan"):
        train(Quadratic(), twos, TrainConfig(steps=9, eval_every=3), held_out=lambda: [{"labels": [[math.nan]]}])


# -- evaluation and early stopping ---------------------------------------------------------------------------
def losses_of(values):
    """Held-out batches of a Quadratic at w = 0 (lr 0) whose losses are ``values``, one an evaluation."""
    remaining = iter(values)
    return lambda: [{"labels": np.array([[math.sqrt(next(remaining))]])}]


@pytest.mark.parametrize(
    ("values", "patience", "steps_taken", "best_step"),
    [
        ([5, 4, 3, 2, 1], 2, 10, 10),
        ([5, 4, 4, 4, 1], 2, 8, 4),  # no gain twice in a row: an equal loss is no gain
        ([5, 6, 4, 5, 3], 2, 10, 10),
        ([5, 6, 7, 8, 1], 0, 10, 10),
        ([1, 2, 3, 4, 5], 1, 4, 2),
    ],
)
def test_early_stopping(values, patience, steps_taken, best_step):
    config = TrainConfig(steps=10, lr=0.0, eval_every=2, patience=patience)
    reports = []
    state = train(Quadratic(), twos, config, losses_of(values), reports.append).state
    assert (state.step, state.best_step) == (steps_taken, best_step)
    assert state.stopped_early == (steps_taken < 10)
    assert [r.step for r in reports if r.held_out is not None] == list(range(2, steps_taken + 1, 2))
    assert reports[1].held_out == pytest.approx(values[0])


def test_the_last_step_is_always_evaluated():
    reports = []
    train(Quadratic(), twos, TrainConfig(steps=5, lr=0.0, eval_every=4), losses_of([1, 2]), reports.append)
    assert [r.step for r in reports if r.held_out is not None] == [4, 5]


def test_the_best_weights_can_be_put_back(tmp_path):
    """The labels move away from the held-out one, so the first evaluation is the best."""
    seen = {}
    config = TrainConfig(steps=12, lr=0.5, optimizer="sgd", eval_every=3, restore_best=True, keep=1, out=tmp_path)
    model = Quadratic()
    target = twos(0)
    state = train(
        model, lambda i: twos(i) if i < 3 else {"labels": np.array([[-9.0]])}, config, lambda: [target],
        lambda r: seen.update({r.step: model.w.data.item()}),
    ).state  # fmt: skip
    assert state.best_step == 3 and state.step == 12
    assert model.w.data.item() == seen[3] != seen[12]
    assert [p.name for p in sorted(tmp_path.glob("step-*"))] == [
        "step-00000003.safetensors",
        "step-00000012.safetensors",
    ]


def test_an_evaluation_weighs_tokens_and_changes_nothing():
    model = new_model(np.float64, dropout=0.5)
    parts = [batch(0, rows=1), batch(1, rows=4)]
    whole = {key: np.concatenate([p[key] for p in parts]) for key in parts[0]}
    model.blocks.eval()
    before = weights(model)
    apart, together = evaluate(model, parts), evaluate(model, [whole])
    nats, tokens = apart
    assert tokens == together.tokens == (whole["labels"][:, 1:] != -100).sum()
    assert nats == pytest.approx(together.nats, rel=1e-12)
    assert apart.loss == nats / tokens
    assert apart.bits_per_byte(100) == pytest.approx(nats / math.log(2) / 100)
    assert apart.perplexity == pytest.approx(math.exp(nats / tokens))
    assert weights(model) == before and all(p.grad is None for p in model.parameters())
    assert model.training and not model.blocks.training
    with pytest.raises(ValueError, match="no batch has a label"):
        evaluate(model, [dict(parts[0], labels=np.full_like(parts[0]["labels"], -100))])


def test_no_graph_is_built_in_an_evaluation():
    class Watched(Quadratic):
        def forward(self, labels, context=None):
            out = super().forward(labels, context)
            self.calls.append(out.loss.requires_grad)
            return out

    model = Watched()
    evaluate(model, [twos(0)])
    assert model.calls == [("forward", None, False), False]


# -- the log -------------------------------------------------------------------------------------------------
def test_the_log_has_a_line_for_each_step(tmp_path):
    train(new_model(), batch, settings(out=tmp_path, eval_every=5, log_every=2), held_out)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 5, 6, 8, 10, 12]
    assert [line["step"] for line in lines if "held_out" in line] == [5, 10, 12]
    assert {"loss", "lr", "grad_norm", "tokens", "seconds"} <= lines[0].keys()


@pytest.mark.parametrize(
    "torn", ['{"step": 4, "lo', '{"step": 4}', '{"step": 3}', '{"step": 4, "loss": 1}\n', "\0\0\n", "[]\n"]
)
def test_opening_the_log_drops_a_torn_line_and_later_steps(torn, tmp_path):
    path = tmp_path / "metrics.jsonl"
    kept = '{"step": 1, "loss": 3}\n{"step": 2, "loss": 2}\n{"step": 3, "loss": 1}\n'
    path.write_text(kept + torn)
    log = MetricsLog(path, 3)
    log.write({"step": 4, "loss": 0.5})
    log.close()
    assert path.read_text() == kept + '{"step": 4, "loss": 0.5}\n'
    MetricsLog(path, 1).close()
    assert path.read_text() == '{"step": 1, "loss": 3}\n'


# -- settings ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"lr": -1.0}, "lr must be at least 0"),
        ({"lr": math.nan}, "lr must be at least 0"),
        ({"schedule": "cosin"}, "expected one of constant, linear, cosine"),
        ({"optimizer": "adam"}, "expected one of adamw, sgd"),
        ({"optimizer": "paged_adamw"}, "paged_adamw_32bit, paged_adamw_8bit"),
        ({"optimizer_budget": 1 << 20}, r"of a paged optimizer \(paged_adamw_32bit or paged_adamw_8bit\); adamw keeps"),
        ({"optimizer": "paged_adamw_32bit", "optimizer_budget": 1000}, "whole bytes, at least 65536, got 1000"),
        ({"optimizer": "paged_adamw_32bit", "optimizer_budget": 1e6}, "whole bytes, at least 65536, got 1000000.0"),
        ({"optimizer": "paged_adamw_32bit", "optimizer_budget": "1MB"}, "whole bytes, at least 65536, got '1MB'"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be above 0"),
        ({"patience": 3}, "need eval_every"),
        ({"eval_every": 3, "restore_best": True}, "restore_best needs out"),
        ({"save_every": 3}, "save_every needs out"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps must be at least 1"),
    ],
)
def test_bad_settings_are_refused_at_once(fields, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{"steps": 5, **fields})


def test_a_run_that_cannot_work_is_refused_at_once():
    model = new_model()
    with pytest.raises(ValueError, match="eval_every needs held_out"):
        Trainer(model, batch, settings(eval_every=2))
    with pytest.raises(ValueError, match=r"resume needs config\.out"):
        train(model, batch, settings(), resume=True)
    with pytest.raises(ValueError, match="nothing to train"):
        Trainer(model.requires_grad_(False), batch, settings())
