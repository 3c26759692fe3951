"""The GPT against numbers that torch and transformers gave (tests/golden/make.py); neither is needed here."""

from __future__ import annotations

import numpy as np
import pytest

from minitorch_peft.formats.families import FAMILIES
from minitorch_peft.formats.files import read_arrays
from minitorch_peft.formats.hf import to_hf
from minitorch_peft.optim import AdamW

from ..golden.ours import GOLDEN, RECIPE, build, close


@pytest.fixture(params=["gpt2", "llama"])
def case(request):
    return request.param, build(request.param), read_arrays(GOLDEN / f"{request.param}.safetensors")


def test_logits_and_loss(case):
    _, model, golden = case
    out = model(RECIPE["IDS"], labels=RECIPE["IDS"])
    close(out.logits.data, golden["logits"])
    close(out.loss.data, golden["loss"])


def test_hidden_states(case):
    _, model, golden = case
    states = model(RECIPE["IDS"], output_hidden_states=True).hidden_states
    assert len(states) == model.config.n_layer + 1 == sum(n.startswith("hidden") for n in golden)
    for i, state in enumerate(states):
        close(state.data, golden[f"hidden.{i}"])


def test_every_gradient(case):
    name, model, golden = case
    model(RECIPE["IDS"], labels=RECIPE["IDS"]).loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters()}
    theirs = {n.removeprefix("grad."): g for n, g in golden.items() if n.startswith("grad.")}
    ours = to_hf(FAMILIES[name], model.config.to_dict(), gradients)
    assert ours.keys() == theirs.keys()
    for n in theirs:
        close(ours[n], theirs[n])


def test_greedy_tokens(case):
    _, model, golden = case
    assert model.generate(RECIPE["PROMPT"], max_new_tokens=12).tolist() == golden["greedy"].tolist()


def test_ten_training_losses(case):
    _, model, golden = case
    optimizer = AdamW(
        dict(model.named_parameters()),
        lr=RECIPE["LEARNING_RATE"], betas=(0.9, 0.95), weight_decay=RECIPE["WEIGHT_DECAY"],
    )  # fmt: skip
    losses = []
    for step in range(RECIPE["STEPS"]):
        loss = model(RECIPE["batch"](step), labels=RECIPE["batch"](step)).loss
        model.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.data)
    np.testing.assert_allclose(losses, golden["losses"], rtol=1e-5)


# Numbers taken down on another machine, with another program: the recipe's GPT-2, and the same with LoRA.
BASE = [-0.05609795, 1.792837, -0.5437145, -1.610932, 1.082669, 1.248714]
WITH_LORA = [-0.5177652, 1.778263, -0.07717132, -1.752445, 0.66347, 1.530474]


def test_the_recorded_logits():
    logits = build("gpt2")(RECIPE["IDS"]).logits.data
    np.testing.assert_allclose(logits[0, -1, :6], BASE, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(logits.sum(dtype=np.float64), -3.680778, rtol=1e-5)


def test_the_recorded_logits_with_lora_merged():
    """r = 4, alpha = 8 on c_attn, a Conv1D: the weight (in, out) gains (B A)ᵀ alpha / r."""

    def merge(arrays):
        for layer in range(2):
            k = 100 + 2 * layer
            a, b = (wave_of_adapter(k, (4, 32)), wave_of_adapter(k + 1, (96, 4)))
            arrays[f"h.{layer}.attn.c_attn.weight"] += (b @ a).T * 2

    out = build("gpt2", merge)(RECIPE["IDS"], labels=RECIPE["IDS"])
    np.testing.assert_allclose(out.logits.data[0, -1, :6], WITH_LORA, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out.loss.item(), 5.133293, rtol=1e-6)


def wave_of_adapter(k, shape):
    return (0.1 * np.sin(0.7310585786 * np.arange(np.prod(shape)) + 1.37 * k)).reshape(shape).astype(np.float32)
