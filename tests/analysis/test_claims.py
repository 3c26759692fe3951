"""The lecture's claims: each rule says yes to figures that bear it out, and no to others."""

from __future__ import annotations

from dataclasses import replace

import pytest

from minitorch_peft.analysis import claims
from minitorch_peft.analysis.contenders import CONTENDERS
from minitorch_peft.analysis.summary import Row, Spread
from minitorch_peft.models import GPT, GPTConfig
from minitorch_peft.peft import METHODS

BEFORE = {"held_out": 4.0, "out_of_domain": 4.2, "modern": 1.4}


def row(held_out, trainable=1000, out_of_domain=None):
    outside = held_out + 0.1 if out_of_domain is None else out_of_domain
    bits = {"held_out": Spread(held_out, None), "out_of_domain": Spread(outside, None), "modern": Spread(2.0, None)}
    return Row(CONTENDERS[0], trainable, 1.0, 4 * trainable, Spread(1e8, None), Spread(0.1, None), bits)


FULL = row(2.0, 10_000)


def test_a_share_is_zero_for_the_base_and_one_for_full_fine_tuning():
    assert [claims.share(row(bits), FULL, BEFORE) for bits in (4.0, 3.0, 2.0)] == [0.0, 0.5, 1.0]


def test_capacity():
    prompts, lora = [row(3.5, 500), row(3.25, 5000)], [row(3.0, 4000), row(2.1, 40_000)]
    verdict = claims.limited_by_capacity(prompts, lora, FULL, BEFORE)
    assert verdict.held and verdict.figures == {
        "prompt_tuning": {500: 0.25, 5000: 0.375},
        "lora": {4000: 0.5, 40_000: 0.95},
    }
    assert not claims.limited_by_capacity([row(2.9, 5000)], lora, FULL, BEFORE).held
    assert not claims.limited_by_capacity([row(3.2, 500), row(3.5, 5000)], lora, FULL, BEFORE).held  # it does not grow
    assert not claims.limited_by_capacity(prompts, lora[1:], FULL, BEFORE).held  # no LoRA as small to hold them against


def test_more_parameters_and_closeness():
    rising = [row(2.5, 4000), row(3.0, 100), row(2.1, 16_000)]
    assert claims.better_with_more(rising, FULL, BEFORE).held
    assert not claims.better_with_more([*rising, row(2.2, 60_000)], FULL, BEFORE).held
    assert claims.close_to_full(rising, FULL, BEFORE).held
    assert not claims.close_to_full(rising[:2], FULL, BEFORE).held


def test_size_and_domain():
    sizes = {name: (row(bits), FULL, BEFORE) for name, bits in (("s", 3.5), ("m", 3.2), ("l", 3.0))}
    assert claims.catches_up(sizes).held
    assert not claims.catches_up({**sizes, "l": (row(3.3), FULL, BEFORE)}).held
    prompts = {"prompt": row(3.0, out_of_domain=3.15)}  # 1.05 of 1.0
    others = {"full": row(2.0, out_of_domain=2.3)}  # 1.9 of 2.0
    assert claims.better_outside(prompts, others, FULL, BEFORE).held
    assert not claims.better_outside(prompts, {"full": row(2.0, out_of_domain=2.0)}, FULL, BEFORE).held
    assert not claims.better_outside({"nothing": row(3.99, out_of_domain=4.1)}, others, FULL, BEFORE).held


def test_differences_must_be_larger_than_the_spread():
    def noisy(bits, std):
        return replace(row(bits), bits={**row(bits).bits, "held_out": Spread(bits, std)})

    assert claims.apart(noisy(3.0, 0.01), noisy(2.9, 0.01))
    assert not claims.apart(noisy(3.0, 0.06), noisy(2.9, 0.01))


@pytest.mark.parametrize("family", [GPTConfig, GPTConfig.llama])
def test_without_weights_prompts_do_nothing(family):
    def base():
        return GPT(family(vocab_size=29, n_positions=32, n_embd=16, n_layer=2, n_head=2))

    prompts = {name: METHODS[name].make({"num_virtual_tokens": 3}) for name in ("prompt_tuning", "prefix_tuning")}
    others = {"lora": METHODS["lora"].make({"target_modules": "all-linear"})}
    verdict = claims.nothing_without_weights(base(), prompts, others)
    assert verdict.held and verdict.figures["prompt_tuning"] == 0 < verdict.figures["lora"]
    assert claims.largest_change(base(), prompts["prompt_tuning"]) > 0  # it is the zeros that silence it
