"""LoRA+: the rates of A and B, from the config to the step."""

from __future__ import annotations

import numpy as np
import pytest
from peft_cases import IDS, gpt, logits, stirred

from minitorch_peft.formats.files import read_json
from minitorch_peft.peft import LoraConfig, LoraPlusConfig, PeftModel, get_peft_model
from minitorch_peft.training.config import TrainConfig
from minitorch_peft.training.groups import make_optimizer


@pytest.mark.parametrize("ratio", [16.0, 4])
def test_b_moves_so_many_times_as_far(ratio):
    """SGD: a step is the rate times the gradient."""
    config = LoraPlusConfig(r=2, target_modules=["q_proj", "up_proj", "embed.tokens"], loraplus_lr_ratio=ratio)
    p = stirred(get_peft_model(gpt("llama", np.float64), config))
    before = {n: q.data.copy() for n, q in p.trainable_parameters().items()}
    optimizer = make_optimizer(p, TrainConfig(steps=1, optimizer="sgd", lr=0.01, momentum=0.0, weight_decay=0.0))
    p(IDS, labels=IDS).loss.backward()
    gradients = {n: q.grad.copy() for n, q in p.trainable_parameters().items()}
    optimizer.step()
    for name, q in p.trainable_parameters().items():
        rate = 0.01 * (ratio if "lora_B" in name and "embed" not in name else 1)
        np.testing.assert_allclose(before[name] - q.data, rate * gradients[name], rtol=1e-9, atol=1e-15)
        assert gradients[name].any()


def test_beside_another_adapter_each_has_its_rates():
    p = get_peft_model(gpt("gpt2"), LoraPlusConfig(r=2), "plus")
    p.add_adapter("plain", LoraConfig(r=2, target_modules=["up_proj"]))
    p.set_adapter(["plus", "plain"])
    rates = {name: group.get("lr_scale", 1.0) for group in p.param_groups() for name in group["params"]}
    assert rates.keys() == p.trainable_parameters().keys()
    assert {name for name, rate in rates.items() if rate == 16} == {n for n in rates if n.endswith("lora_B.plus")}


def test_its_file_is_a_lora(tmp_path):
    p = stirred(get_peft_model(gpt("gpt2"), LoraPlusConfig(r=2, lora_alpha=8)))
    p.save_pretrained(tmp_path)
    written = read_json(tmp_path / "adapter_config.json")
    assert written["peft_type"] == "LORA" and not any("plus" in key for key in written)
    again = PeftModel.from_pretrained(gpt("gpt2"), tmp_path)
    assert again.adapters["default"].config == LoraPlusConfig(r=2, lora_alpha=8)
    np.testing.assert_array_equal(logits(again), logits(p))


@pytest.mark.parametrize("ratio", [0, -1, float("inf"), float("nan"), "16"])
def test_a_ratio_that_is_no_rate(ratio):
    with pytest.raises(ValueError, match=r"loraplus_lr_ratio must be a (positive )?number"):
        LoraPlusConfig(loraplus_lr_ratio=ratio)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"init_lora_weights": "pissa"}])
def test_it_is_of_plain_lora(options):
    with pytest.raises(ValueError, match="LoRA\\+ is of plain LoRA here"):
        LoraPlusConfig(**options)


def test_a_parameter_that_does_not_train_is_in_no_group():
    p = get_peft_model(gpt("gpt2"), LoraPlusConfig(r=2, target_modules=["q_proj"]))
    own = p.adapters["default"].named_parameters()
    own["blocks.0.attn.q_proj.lora_A"].requires_grad_(False)
    make_optimizer(p, TrainConfig(steps=1))
    for name in own:
        own[name].requires_grad_(name.endswith("B"))
    (group,) = p.param_groups()
    assert group["lr_scale"] == 16 and len(group["params"]) == 2
