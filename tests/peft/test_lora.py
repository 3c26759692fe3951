"""LoRA: its formula, two small truths, and numbers that ``peft`` gave."""

from __future__ import annotations

import json
import math
import runpy
from pathlib import Path

import numpy as np
import pytest
from peft_cases import IDS, TIGHT, gpt, logits, loss, optimizer_of, stir, stirred, train
from scipy.optimize import minimize

import minitorch_peft as mp
from minitorch_peft.autograd.tensor import no_grad
from minitorch_peft.formats.families import GPT2, expand, sizes, stored_shape
from minitorch_peft.formats.files import write_arrays
from minitorch_peft.formats.hf import from_hf
from minitorch_peft.formats.hf_config import read_config
from minitorch_peft.models import GPT, GPTConfig
from minitorch_peft.nn import ForwardContext, init
from minitorch_peft.peft import LoraConfig, PartialConfig, PeftModel, get_peft_model
from minitorch_peft.peft.parameter.lora import LoraLinear

GOLDEN = runpy.run_path(str(Path(__file__).parents[1] / "golden" / "recipe.py"))


def layers(p, name="default"):
    return p.adapters[name].wrappers


# -- the formula ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("target", ["q_proj", "down_proj", "lm_head", "embed.tokens", "embed.positions"])
def test_the_layer_is_its_effective_weight(target):
    """forward(x) = x effective(W)ᵀ + b: the oracle of a Reparam."""
    p = stirred(get_peft_model(gpt("gpt2", np.float64), LoraConfig(r=3, lora_alpha=5, target_modules=[target])))
    layer = next(iter(layers(p).values()))
    W = layer.base.dense_weight()
    np.testing.assert_allclose(layer.effective(W), W + 5 / 3 * layer.lora_B.data @ layer.lora_A.data, rtol=1e-12)
    if layer.base.takes_ids:
        x = np.array([[0, 3, 3], [5, 1, 0]])
        expected = layer.effective(W).T[x]
    else:
        x = np.random.default_rng(0).standard_normal((2, 3, layer.base.in_features))
        bias = getattr(layer.base, "bias", None)
        expected = x @ layer.effective(W).T + (0 if bias is None else bias.data)
        x = mp.tensor(x)
    with no_grad():
        np.testing.assert_allclose(layer(x).data, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("trained", [(), ("W",), ("W", "b", "x")])
def test_the_fused_operation_s_gradients(bias, trained):
    rng = np.random.default_rng(0)
    shapes = {"x": (2, 3, 5), "W": (4, 5), "b": (4,), "A": (2, 5), "B": (4, 2)}
    t = {n: mp.tensor(rng.standard_normal(s), requires_grad=n in (*trained, "A", "B")) for n, s in shapes.items()}
    t["b"] = t["b"] if bias else None
    inputs = [v for v in t.values() if v is not None and v.requires_grad]
    assert mp.gradcheck(lambda *_: LoraLinear.apply(*t.values(), s=0.7), inputs)


def test_the_fused_path_equals_the_plain_one():
    """Alone on a layer LoRA runs as one operation; over another wrapper, or with dropout, as base plus difference."""
    p = stirred(get_peft_model(gpt("llama"), LoraConfig(r=2, target_modules="all-linear")))
    fused = logits(p)
    inner = PeftModel(gpt("llama"))
    inner.add_adapter("idle", LoraConfig(r=2, target_modules="all-linear"), seed=3)
    inner.add_adapter("default", LoraConfig(r=2, target_modules="all-linear"))
    inner.set_adapter("default")
    np.testing.assert_allclose(logits(stirred(inner)), fused, **TIGHT)


def test_scaling():
    def scaling(path="blocks.0.attn.q_proj", **settings):
        return LoraConfig(r=4, lora_alpha=6, **settings).scaling(path)

    assert scaling() == 1.5 and scaling(use_rslora=True) == 3.0
    patterns = {"rank_pattern": {"q_proj": 9}, "alpha_pattern": {"0.attn.q_proj": 12}}
    assert scaling(**patterns) == 12 / 9 and scaling(**patterns, use_rslora=True) == 4.0
    assert scaling("blocks.1.attn.q_proj", **patterns) == 6 / 9 and scaling("blocks.1.attn.v_proj", **patterns) == 1.5


def test_rank_patterns_give_ranks():
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], rank_pattern={r"blocks\.1\..*": 3, "v_proj": 1})
    ranks = {path: len(layer.lora_A.data) for path, layer in layers(get_peft_model(gpt("gpt2"), config)).items()}
    assert list(ranks.values()) == [2, 1, 3, 3]


def test_the_start():
    p = get_peft_model(gpt("gpt2"), LoraConfig(r=16, target_modules=["down_proj", "embed.tokens"]))
    linear, embedding = layers(p)["blocks.0.mlp.down_proj"], layers(p)["embed.tokens"]
    bound = 1 / math.sqrt(128)
    assert not linear.lora_B.data.any() and not embedding.lora_A.data.any()
    assert 0.95 * bound < np.abs(linear.lora_A.data).max() <= bound
    assert embedding.lora_B.data.std() == pytest.approx(1.0, rel=0.1)
    other = layers(get_peft_model(gpt("gpt2"), LoraConfig(r=16, target_modules=["down_proj"]), seed=1))
    assert np.abs(other["blocks.0.mlp.down_proj"].lora_A.data - linear.lora_A.data).max() > 0.01
    assert np.abs(layers(p)["blocks.1.mlp.down_proj"].lora_A.data - linear.lora_A.data).max() > 0.01


def test_dropout_acts_on_the_low_rank_path_only():
    p = stirred(
        get_peft_model(gpt("gpt2", np.float64), LoraConfig(r=2, lora_dropout=0.5, target_modules=["q_proj"]))
    ).train()
    layer = layers(p)["blocks.0.attn.q_proj"]
    x = mp.tensor(np.random.default_rng(0).standard_normal((400, 1, 32)))
    draws = [layer(x, ForwardContext(seed=0, step=s)).data - layer.base(x).data for s in range(30)]
    layer.eval()
    np.testing.assert_allclose(np.mean(draws), np.mean(layer(x).data - layer.base(x).data), atol=0.02)
    assert np.std([d[0, 0, 0] for d in draws]) > 0.01


def test_every_place_has_a_mask_of_its_own():
    p = get_peft_model(gpt("gpt2"), LoraConfig(r=2, lora_dropout=0.5, target_modules="all-linear"))
    p.add_adapter("second", LoraConfig(r=2, lora_dropout=0.5, target_modules="all-linear"))
    sites = [layer.dropout.site for name in p.adapters for layer in layers(p, name).values()]
    assert len(set(sites)) == len(sites) == 24


# -- two small truths ------------------------------------------------------------------------------------------------
def test_with_a_and_b_both_zero_nothing_is_ever_learned():
    """dA = s Bᵀ Gᵀ x carries a factor B, and dB = s Gᵀ (x Aᵀ) a factor A."""
    p = get_peft_model(gpt("gpt2"), LoraConfig(r=4, target_modules="all-linear"))
    for q in p.trainable_parameters().values():
        q.data[...] = 0
    before = loss(p)
    p(IDS, labels=IDS).loss.backward()
    assert not any(q.grad.any() for q in p.trainable_parameters().values())
    p.zero_grad()
    train(p, optimizer_of(p, lr=0.1), range(10))
    assert loss(p) == before and not any(q.data.any() for q in p.trainable_parameters().values())


def converge(p):
    """The lowest loss that L-BFGS finds, with the gradients of the engine. What comes before the head is frozen."""
    parameters = list(p.trainable_parameters().values())
    ids = np.random.default_rng(2).integers(0, 5, (12, 12))
    h = p.encode_ids(ids, context := ForwardContext()).detach()

    def evaluate(flat):
        for q, part in zip(parameters, np.split(flat, np.cumsum([q.data.size for q in parameters])[:-1]), strict=True):
            q.data = part.reshape(q.shape)
        p.zero_grad()
        _, out, _ = p.base_model.predict(h, 12, ids, context)
        out.backward()
        return out.item(), np.concatenate([q.grad.ravel() for q in parameters])

    start = np.concatenate([q.data.ravel() for q in parameters])
    return minimize(evaluate, start, jac=True, method="L-BFGS-B", options={"maxiter": 500, "ftol": 1e-13}).fun


def test_at_full_rank_lora_reaches_what_full_fine_tuning_of_the_weight_reaches():
    """The head alone is trained, a convex problem with one lowest loss; B A of full rank can be any matrix."""
    config = GPTConfig.llama(vocab_size=5, n_positions=12, n_embd=8, n_layer=1, n_head=2, n_inner=8)
    reached = {}
    for name, settings in {
        "full": PartialConfig(target_parameters=["lm_head.weight"]),
        "rank 5": LoraConfig(r=5, lora_alpha=5, target_modules=["lm_head"]),
        "rank 1": LoraConfig(r=1, lora_alpha=1, target_modules=["lm_head"]),
    }.items():
        model = GPT(config)
        stir(dict(model.named_parameters()), scale=0.5)
        reached[name] = converge(get_peft_model(model.astype(np.float64), settings))
    assert reached["rank 5"] == pytest.approx(reached["full"], abs=1e-6)
    assert reached["rank 1"] > reached["full"] + 0.01


# -- peft's numbers, without peft -----------------------------------------------------------------------------------
def golden_adapter(directory):
    """c_attn, r = 4, alpha = 8, each tensor a sine: what ``peft`` writes for GPT-2."""
    arrays, k = {}, 100
    for layer in range(2):
        for name, shape in (("A", (4, 32)), ("B", (96, 4))):
            wave = np.sin(0.7310585786 * np.arange(np.prod(shape)) + 1.37 * k) * 0.1
            arrays[f"base_model.model.transformer.h.{layer}.attn.c_attn.lora_{name}.weight"] = wave.reshape(
                shape
            ).astype(np.float32)
            k += 1
    write_arrays(directory / "adapter_model.safetensors", arrays)
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": ["c_attn"],
        "fan_in_fan_out": True,
    }  # fmt: skip
    (directory / "adapter_config.json").write_text(json.dumps(settings))


def golden_model():
    family, fields = read_config(GOLDEN["CONFIGS"]["gpt2"])
    rows = {row.theirs.removeprefix("transformer."): row for row in expand(GPT2, fields)}
    arrays = GOLDEN["weights"]({name: stored_shape(row, sizes(fields)) for name, row in rows.items()})
    model = GPT(GPTConfig(**fields), seed=None).eval()
    model.load_state_dict(from_hf(family, fields, arrays))
    return model


def test_the_golden_adapter_of_a_fused_c_attn(tmp_path):
    """The logits and the loss that torch and ``peft`` gave for these sines (see tests/golden/recipe.py)."""
    golden_adapter(tmp_path)
    p = PeftModel.from_pretrained(golden_model(), tmp_path)
    out = p(GOLDEN["IDS"], labels=GOLDEN["IDS"])
    last, total = out.logits.data[0, -1], out.logits.data.sum()
    expected = [-0.5177652, 1.778263, -0.07717132, -1.752445, 0.66347, 1.530474]
    np.testing.assert_allclose(last[:6], expected, atol=2e-6)
    assert total == pytest.approx(-4.372371, abs=2e-5)
    assert out.loss.item() == pytest.approx(5.133293, abs=2e-6)
    with p.disable_adapter():
        base = logits(p, GOLDEN["IDS"])[0, -1]
    np.testing.assert_allclose(base[:6], [-0.05609795, 1.792837, -0.5437145, -1.610932, 1.082669, 1.248714], atol=2e-6)
    assert p.adapters["default"].config == LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "v_proj"])
    before = logits(p, GOLDEN["IDS"])
    np.testing.assert_allclose(logits(p.merge_and_unload(), GOLDEN["IDS"]), before, atol=1e-5)


def test_kaiming_uniform_is_torch_s_bound():
    draw = init.kaiming_uniform()(np.random.default_rng(0), (50, 64))
    assert 0.99 / 8 < np.abs(draw).max() <= 1 / 8
