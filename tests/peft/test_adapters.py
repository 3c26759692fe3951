"""PeftModel: several named adapters, which of them act and train, and that a failure changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import toy_methods
from peft_cases import IDS, gpt, logits, loss, optimizer_of, originals, snapshot, stir, stirred, train

from minitorch_peft.models import GPT, GPTConfig, SequenceClassifier
from minitorch_peft.nn import ForwardContext
from minitorch_peft.peft import (
    BitFitConfig,
    FullConfig,
    LoraConfig,
    PartialConfig,
    PeftConfig,
    get_peft_model,
)

QV = LoraConfig(r=2)
MLP = LoraConfig(r=2, target_modules=["up_proj"])


@pytest.fixture(autouse=True)
def toys():
    with toy_methods.registered():
        yield


@pytest.fixture
def two():
    """A model with the adapters a (active and trained) and b, both of which matter."""
    p = stirred(get_peft_model(gpt("gpt2"), QV, "a"), "a")
    p.add_adapter("b", MLP, seed=1)
    return stirred(p, "b")


# -- which adapters act and train ----------------------------------------------------------------------------------
def test_an_added_adapter_neither_acts_nor_trains(two):
    before = logits(two)
    two.add_adapter("c", QV, seed=2)
    stirred(two, "c")
    assert two.active_adapters == ("a",)
    assert {q.owner for q in two.trainable_parameters().values()} == {"a"}
    np.testing.assert_array_equal(logits(two), before)


def test_setting_adapters_chooses_what_acts_and_what_trains_apart(two):
    two.set_adapter(["a", "b"], train=["b"])
    assert two.active_adapters == ("a", "b") and [x.name for x in two.trained_adapters()] == ["b"]
    assert {q.owner for q in two.trainable_parameters().values()} == {"b"}
    kept = {n: q.data.copy() for n, q in two.adapters["a"].named_parameters().items()}
    train(two, optimizer_of(two), range(2))
    assert all(np.array_equal(q.data, kept[n]) for n, q in two.adapters["a"].named_parameters().items())
    two.set_adapter("b", train=())
    assert two.active_adapters == ("b",) and not two.trainable_parameters()
    two.set_adapter(["b", "a", "b"])
    assert {q.owner for q in two.trainable_parameters().values()} == {"a", "b"}


def test_two_that_act_add_up(two):
    """On different layers of a linear path their order does not matter; each can be taken out again."""
    alone = logits(two)
    two.set_adapter(["b", "a"])
    both = logits(two)
    two.set_adapter(["a", "b"])
    np.testing.assert_array_equal(logits(two), both)
    two.set_adapter("a")
    np.testing.assert_array_equal(logits(two), alone)


@pytest.mark.parametrize(
    "names, options, message",
    [
        ("c", {}, "no adapter named c; there are: a, b"),
        (["a", "c"], {}, "no adapter named c"),
        ("a", {"train": "b"}, r"train=\['b'\] names adapters that do not act: \['a'\]"),
        ("a", {"train": ["d"]}, "no adapter named d"),
    ],
)
def test_a_wrong_choice_changes_nothing(two, names, options, message):
    with pytest.raises(ValueError, match=message):
        two.set_adapter(names, **options)
    assert two.active_adapters == ("a",) and {q.owner for q in two.trainable_parameters().values()} == {"a"}


def test_deleting_an_adapter_leaves_the_others_as_they_are(two):
    before = logits(two)
    two.delete_adapter("b")
    np.testing.assert_array_equal(logits(two), before)
    assert [x.name for x in two.trained_adapters()] == ["a"]
    two.delete_adapter("a")
    assert not two.active_adapters and not two.trained_adapters() and not two.trainable_parameters()
    two.add_adapter("a", QV)
    assert not two.trained_adapters()
    with pytest.raises(ValueError, match="no adapter named b; there are: a"):
        two.delete_adapter("b")


def test_deleting_an_adapter_that_selects_does_not_take_another_one_s_copy_out():
    p = get_peft_model(gpt("gpt2"), FullConfig(), "a")
    stir(p.adapters["a"].named_parameters())
    before = logits(p)
    p.add_adapter("b", BitFitConfig())
    np.testing.assert_array_equal(logits(p), before)
    p.delete_adapter("b")
    np.testing.assert_array_equal(logits(p), before)


def test_copies_are_taken_of_the_base_not_of_another_adapter_s_copy():
    base = gpt("gpt2")
    before, bits = logits(base), snapshot(base)
    p = stirred(get_peft_model(base, FullConfig(), "a"), "a")
    p.add_adapter("b", PartialConfig(top_layers=1))
    p.set_adapter("b")
    np.testing.assert_array_equal(logits(p), before)
    assert originals(p) == bits


def test_disabling_inside_and_out(two):
    acting = logits(two)
    two.set_adapter(["a", "b"])
    both = logits(two)
    with two.disable_adapter():
        np.testing.assert_array_equal(logits(two), logits(gpt("gpt2")))
        with two.disable_adapter():
            assert not two.active_adapters
        two.delete_adapter("b")
    assert two.active_adapters == ("a",)
    np.testing.assert_array_equal(logits(two), acting)
    assert np.abs(both - acting).max() > 1e-3
    two.add_adapter("other", BitFitConfig())
    with two.disable_adapter():
        two.set_adapter("other")
    assert two.active_adapters == ("a",)
    with pytest.raises(RuntimeError, match="inside"), two.disable_adapter():
        raise RuntimeError("inside")
    np.testing.assert_array_equal(logits(two), acting)


def test_a_copy_of_the_config_is_kept():
    config = LoraConfig(r=2, target_modules=["q_proj"])
    p = get_peft_model(gpt("gpt2"), config)
    config.r, config.target_modules[0] = 5, "v_proj"
    assert p.adapters["default"].config == LoraConfig(r=2, target_modules=["q_proj"])


# -- a failure changes nothing -----------------------------------------------------------------------------------
BAD = [
    (LoraConfig(target_modules=["c_attn"]), ValueError, "'c_attn' matches no layer"),
    (LoraConfig(target_modules=["q_proj", "FAKE"]), ValueError, "'FAKE' matches no layer"),
    (LoraConfig(target_modules=["attn"]), ValueError, "'attn' matches no layer"),
    (LoraConfig(r=33), ValueError, r"r=33 is above the rank of blocks.0.attn.q_proj \(Linear\(32, 32\)\): at most 32"),
    (LoraConfig(r=2, rank_pattern={"q_proj": 40}), ValueError, "r=40 is above the rank"),
    (LoraConfig(r=2, rank_pattern={"o_proj": 3}), ValueError, "rank_pattern: 'o_proj' matches no target"),
    (LoraConfig(r=2, alpha_pattern={"o_proj": 3}), ValueError, "alpha_pattern: 'o_proj' matches no target"),
    (LoraConfig(r=2, layers_to_transform=[7]), ValueError, r"layers_to_transform names \[7\], the blocks are 0..1"),
    (PartialConfig(top_layers=3), ValueError, "top_layers=3, the model has 2 blocks"),
    (PartialConfig(target_parameters=["q_proj"]), ValueError, "'q_proj' matches no parameter; nearest: .*q_proj"),
    (BitFitConfig(target_parameters=["q_proj.weight"]), ValueError, "'q_proj.weight' matches no bias"),
    (toy_methods.BottleneckConfig(["ln_f", "no"]), ValueError, "'no' matches no module"),
    (PeftConfig(), TypeError, "PeftConfig is no method's config; known: .*LoraConfig"),
]


@pytest.mark.parametrize("config, error, message", BAD)
def test_a_bad_config_leaves_the_model_exactly_as_it_was(config, error, message):
    base = gpt("gpt2")
    base.ln_f.weight.requires_grad_(False)
    before, bits = (repr(base), [q.requires_grad for q in base.parameters()], base.training), snapshot(base)
    with pytest.raises(error, match=message):
        get_peft_model(base, config)
    assert (repr(base), [q.requires_grad for q in base.parameters()], base.training) == before
    assert snapshot(base) == bits

    p = stirred(get_peft_model(base, FullConfig(), "good"), "good")
    outputs, trained = logits(p), set(p.trainable_parameters())
    with pytest.raises(error, match=message):
        p.add_adapter("bad", config)
    assert list(p.adapters) == ["good"] and p.active_adapters == ("good",) and set(p.trainable_parameters()) == trained
    np.testing.assert_array_equal(logits(p), outputs)
    assert repr(p.unload()) == before[0]


def test_an_error_after_something_was_attached_takes_it_out_again(monkeypatch):
    def attach_and_fail(self, config):
        attach(self, config)
        self.select(["ln_f.bias"])
        self.set_active(True)
        raise KeyboardInterrupt

    attach = toy_methods.Bottleneck.attach
    monkeypatch.setattr(toy_methods.Bottleneck, "attach", attach_and_fail)
    base = gpt("gpt2")
    tree, bits, bias = repr(base), snapshot(base), base.ln_f.bias
    with pytest.raises(KeyboardInterrupt):
        get_peft_model(base, toy_methods.BottleneckConfig())
    assert repr(base) == tree and snapshot(base) == bits and base.ln_f.bias is bias and bias.requires_grad


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"r": 0}, "r must be a whole number of at least 1, got 0"),
        ({"r": 2.5}, "got 2.5"),
        ({"r": True}, "got True"),
        ({"rank_pattern": {"q_proj": 0}}, "got 0"),
        ({"lora_alpha": 0}, "lora_alpha must be a positive number, got 0"),
        ({"lora_alpha": float("nan")}, "got nan"),
        ({"alpha_pattern": {"q_proj": "8"}}, "lora_alpha must be a positive number, got '8'"),
        ({"target_modules": None}, "target_modules must be a list of names or a regex, got None"),
    ],
)
def test_lora_s_settings_are_checked_at_once(settings, message):
    with pytest.raises(ValueError, match=message):
        LoraConfig(**settings)


@pytest.mark.parametrize("settings", [{}, {"top_layers": 1, "target_parameters": ["bias"]}])
def test_partial_wants_one_of_its_two_settings(settings):
    with pytest.raises(ValueError, match="give either top_layers"):
        PartialConfig(**settings)


@pytest.mark.parametrize("layers", [-1, 1.5])
def test_partial_wants_a_number_of_layers(layers):
    with pytest.raises(ValueError, match=f"top_layers must be a whole number of at least 0, got {layers}"):
        PartialConfig(top_layers=layers)


@pytest.mark.parametrize("name", ["a", "__base__", "x.y", "", "x/y"])
def test_bad_adapter_names(two, name):
    with pytest.raises(ValueError, match=r"adapter"):
        two.add_adapter(name, QV)
    assert list(two.adapters) == ["a", "b"]


def test_a_model_is_wrapped_once(two):
    for model in (two, two.base_model):
        with pytest.raises(ValueError, match="carries adapters already: use add_adapter"):
            get_peft_model(model, QV)


def test_only_a_gpt_is_wrapped():
    with pytest.raises(TypeError, match="adapters attach to a GPT, not to a SequenceClassifier; for a classifier"):
        get_peft_model(SequenceClassifier(gpt("gpt2"), num_labels=2), QV)


def test_the_mode_and_what_was_frozen_before_are_kept():
    base = gpt("gpt2").eval()
    base.embed.tokens.weight.requires_grad_(False)
    p = get_peft_model(base, QV)
    assert not p.training and not any(m.training for _, m in p.named_modules())
    p.train()
    assert all(m.training for _, m in p.named_modules())
    plain = p.unload()
    assert [n for n, q in plain.named_parameters() if not q.requires_grad] == ["embed.tokens.weight"]


def test_tuples_and_sets_become_lists():
    assert LoraConfig(target_modules=("v_proj", "q_proj")) == LoraConfig(target_modules=["v_proj", "q_proj"])
    assert LoraConfig(target_modules={"v_proj", "q_proj"}).target_modules == ["q_proj", "v_proj"]


# -- rows --------------------------------------------------------------------------------------------------------
def test_rows_name_adapters_whether_these_act_or_not(two):
    two.set_adapter("a", train=())
    mixed = logits(two, adapter_names=["b", "a", "__base__"])
    for row, name in enumerate(["b", "a"]):
        two.set_adapter(name)
        np.testing.assert_allclose(mixed[row], logits(two)[row], rtol=1e-5, atol=1e-5)
    with two.disable_adapter():
        np.testing.assert_allclose(mixed[2], logits(two)[2], rtol=1e-5, atol=1e-5)
    two.set_adapter(())
    np.testing.assert_allclose(logits(two, adapter_names=["b", "a", "__base__"]), mixed, rtol=1e-5, atol=1e-5)


def test_rows_of_adapters_on_embedding_and_positions():
    """The positions of a batch without a mask are (1, T): they are told apart by row all the same."""
    config = LoraConfig(r=2, target_modules=["embed.positions", "embed.tokens", "lm_head"])
    p = stirred(get_peft_model(gpt("gpt2"), config, "a"), "a")
    mixed = logits(p, adapter_names=["a", "__base__", "a"])
    np.testing.assert_allclose(mixed[[0, 2]], logits(p)[[0, 2]], rtol=1e-5, atol=1e-5)
    with p.disable_adapter():
        np.testing.assert_allclose(mixed[1], logits(p)[1], rtol=1e-5, atol=1e-5)


def test_generation_takes_rows(two):
    names = ["b", "a", "__base__"]
    mixed = two.generate(IDS, max_new_tokens=5, adapter_names=names)
    for row, name in enumerate(names):
        alone = two.generate(IDS[row : row + 1], max_new_tokens=5, adapter_names=[name])
        assert np.array_equal(mixed[row], alone[0])


@pytest.mark.parametrize(
    "names, message",
    [(["a", "b"], "2 names for 3 rows"), (["a", "b", "c"], "no adapter named c"), (["a", "b", "base"], "named base")],
)
def test_wrong_rows(two, names, message):
    with pytest.raises(ValueError, match=message):
        two(IDS, adapter_names=names)


def test_rows_and_methods_that_change_the_whole_batch(two):
    two.add_adapter("full", FullConfig())
    two.add_adapter("prompt", toy_methods.PromptConfig())
    with pytest.raises(ValueError, match="adapter full changes the whole batch at once"):
        two(IDS, adapter_names=["a", "full", "a"])
    two.set_adapter(["a", "full"])
    with pytest.raises(ValueError, match="adapter full changes the whole batch"):  # its copies stand in the base
        two(IDS, adapter_names=["a", "a", "b"])
    two.set_adapter(["a", "prompt"])
    named = logits(two, adapter_names=["a", "a", "a"])  # a prompt that no row names does not act
    two.set_adapter("a")
    np.testing.assert_allclose(named, logits(two), rtol=1e-5, atol=1e-5)


def test_one_context_serves_a_pass_and_is_cleared_of_the_pass_before(two):
    context = ForwardContext(seed=3, step=4)
    two(IDS, adapter_names=["a", "b", "a"], context=context)
    assert context.adapter_names == ("a", "b", "a") and (context.seed, context.step) == (3, 4)
    np.testing.assert_array_equal(logits(two, context=context), logits(two))
    two.add_adapter("prompt", toy_methods.PromptConfig())
    two.set_adapter("prompt")
    two(IDS, context=context)
    assert context.prompt_length == 3
    two.set_adapter("a")
    two(IDS, context=context)
    assert context.prompt_length == 0


def test_dropout_follows_seed_and_step():
    p = stirred(get_peft_model(gpt("gpt2"), LoraConfig(r=2, lora_dropout=0.5))).train()
    first = logits(p, context=ForwardContext(seed=0, step=0))
    np.testing.assert_array_equal(logits(p, context=ForwardContext(seed=0, step=0)), first)
    for other in (ForwardContext(seed=0, step=1), ForwardContext(seed=1, step=0)):
        assert np.abs(logits(p, context=other) - first).max() > 1e-3
    p.eval()
    assert np.abs(logits(p, context=ForwardContext(seed=0, step=0)) - first).max() > 1e-3


# -- hooks -------------------------------------------------------------------------------------------------------
def test_the_five_hooks_reach_the_adapters_that_train(two, monkeypatch):
    calls = []
    for adapter in two.adapters.values():
        tensor = next(iter(adapter.named_parameters().values()))
        hooks = {
            "penalty": lambda t=tensor: (t * t).sum(),
            "after_backward": lambda step, total, n=adapter.name: calls.append((n, "backward", step, total)),
            "after_step": lambda step, n=adapter.name: calls.append((n, "step", step)),
            "method_state": lambda n=adapter.name: {"ema/x": np.array([len(n)])},
            "load_method_state": lambda state, n=adapter.name: calls.append((n, state)),
        }
        for name, hook in hooks.items():
            monkeypatch.setattr(adapter, name, hook)
    a, b = two.adapters.values()
    monkeypatch.setattr(a, "param_groups", lambda: [{"params": list(a.named_parameters()), "lr_scale": 16.0}])
    squares = [float((next(iter(x.named_parameters().values())).data ** 2).sum()) for x in (a, b)]

    two.set_adapter(["a", "b"], train=["b"])
    two.after_step(3)
    assert calls == [("b", "step", 3)] and two.method_state().keys() == {"b/ema/x"}
    assert two.penalty().item() == pytest.approx(squares[1], rel=1e-5)
    assert two.param_groups() is None

    two.set_adapter(["a", "b"])
    calls.clear()
    two.after_backward(1, 9)
    assert calls == [("a", "backward", 1, 9), ("b", "backward", 1, 9)]
    assert two.penalty().item() == pytest.approx(sum(squares), rel=1e-5)
    state = two.method_state()
    calls.clear()
    two.load_method_state(state)
    assert calls == [("a", {"ema/x": np.array([1])}), ("b", {"ema/x": np.array([1])})]
    groups = two.param_groups()
    assert [g.get("lr_scale") for g in groups] == [16.0, None]
    assert sorted(n for g in groups for n in g["params"]) == sorted(two.trainable_parameters())


def test_without_hooks_there_is_nothing_to_do(two):
    assert two.penalty() is None and two.param_groups() is None and two.method_state() == {}


# -- names, counts, heads ----------------------------------------------------------------------------------------
def test_names_and_counts():
    base = gpt("gpt2")
    names, total = [n for n, _ in base.named_parameters()], base.num_parameters()
    p = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]))
    assert [n for n, _ in p.named_parameters()][: len(names)] == names
    assert [n for n, _ in p.named_parameters()][len(names) :] == [
        f"blocks.{i}.attn.q_proj.lora_{x}.default" for i in range(2) for x in "AB"
    ]
    assert p.get_nb_trainable_parameters() == (2 * 2 * 64, total + 2 * 2 * 64)
    p.add_adapter("full", FullConfig())
    p.set_adapter("full")
    assert p.get_nb_trainable_parameters() == (total, total + 2 * 2 * 64)
    assert len({id(q) for q in p.parameters()}) == len(list(p.parameters()))


def test_printed_parameters(capsys):
    get_peft_model(
        GPT(GPTConfig(vocab_size=7, n_positions=8, n_embd=4, n_layer=1, n_head=2)), QV
    ).print_trainable_parameters()
    assert capsys.readouterr().out == "trainable params: 32 || all params: 344 || trainable%: 9.3023\n"


def test_a_classifier_over_an_adapted_model():
    p = stirred(get_peft_model(gpt("gpt2"), QV, "a"), "a")
    p.add_adapter("prompt", toy_methods.PromptConfig(), seed=3)
    classifier = SequenceClassifier(p, num_labels=3).eval()
    by_lora = classifier(IDS).logits.data
    p.set_adapter(["a", "prompt"])
    out = classifier(IDS, labels=np.array([0, 2, 1]))
    assert np.abs(out.logits.data - by_lora).max() > 1e-3
    out.loss.backward()
    assert all(np.abs(q.grad).max() > 0 for n, q in p.trainable_parameters().items())
    with p.disable_adapter():
        plain = SequenceClassifier(gpt("gpt2"), num_labels=3).eval()
        np.testing.assert_array_equal(classifier(IDS).logits.data, plain(IDS).logits.data)


def test_partial_chooses_the_top():
    chosen = get_peft_model(gpt("llama"), PartialConfig(top_layers=1)).adapters["default"].selected
    assert {path.split(".")[0] for path in chosen} == {"blocks", "ln_f", "lm_head"}
    assert {path.split(".")[1] for path in chosen if path.startswith("blocks")} == {"1"}
    tied = get_peft_model(gpt("gpt2"), PartialConfig(top_layers=0)).adapters["default"].selected
    assert set(tied) == {"ln_f.weight", "ln_f.bias"}  # a tied head belongs to the embedding as well


def test_training_one_adapter_does_not_move_the_loss_under_another(two):
    two.set_adapter("b", train=())
    under_b = loss(two)
    two.set_adapter("a")
    train(two, optimizer_of(two), range(2))
    two.set_adapter("b")
    assert loss(two) == under_b
