"""``minitorch-peft ledger``."""

from __future__ import annotations

import pytest

from minitorch_peft.cli.errors import USAGE
from minitorch_peft.cli.ledger import USUAL
from minitorch_peft.models import GPT, GPTConfig
from minitorch_peft.peft import METHODS

SMALL = ["--batch-size", 2, "--length", 12]


def test_several_methods_are_compared(call, base):
    done = call("ledger", "--base", base, *SMALL)
    assert done.code == 0
    assert all(name in done.out for name in (*USUAL, "activations", "floating-point operations"))
    assert "made in" not in done.out and "Passing:" in done.out


def test_one_method_is_shown_in_detail_and_held_against_a_step(call, base):
    done = call("ledger", "--base", base, *SMALL, "--method", "lora", "--set", "r=2", "--measure", "--rows", 3)
    assert done.code == 0
    assert "blocks.*.mlp.up_proj" in done.out and "more" in done.out
    assert done.out.count("1.000") == 9


def test_json_has_what_was_predicted_and_what_was_measured(call, base):
    value = call("ledger", "--base", base, *SMALL, "--method", "lora", "--method", "bitfit", "--measure", "--json").json
    assert set(value["predicted"]) == set(value["measured"]) == {"lora", "bitfit"}
    assert value["batch"] == [2, 12] and value["optimizer"] == "adamw"
    assert value["predicted"]["lora"]["totals"] == value["measured"]["lora"]["totals"]


def test_inference_has_no_backward_pass(call, base):
    totals = call("ledger", "--base", base, *SMALL, "--method", "lora", "--inference", "--json").json["predicted"]
    assert totals["lora"]["totals"]["backward"] == totals["lora"]["totals"]["gradients"] == 0


def test_a_base_in_four_bits(call, base):
    weights = {
        method: call("ledger", "--base", base, *SMALL, "--method", method, "--json").json["predicted"][method][
            "weights"
        ]
        for method in ("lora-r16", "qlora")
    }
    assert weights["qlora"]["base"] < weights["lora-r16"]["base"]
    assert weights["qlora"]["method"] == weights["lora-r16"]["method"]


def test_a_method_that_does_not_apply_is_named_beside_the_others(call, tmp_path):
    GPT(GPTConfig.llama(vocab_size=61, n_positions=48, n_embd=16, n_layer=2, n_head=2)).save_pretrained(
        tmp_path / "llama"
    )
    options = ["--base", tmp_path / "llama", *SMALL, "--method", "lora", "--method", "bitfit"]
    done = call("ledger", *options)
    assert done.code == 0 and "lora" in done.out and "bitfit does not apply: " in done.out
    value = call("ledger", *options, "--json").json
    assert list(value["predicted"]) == ["lora"] and "no biases" in value["does_not_apply"]["bitfit"]
    alone = call("ledger", *options[:-4], "--method", "bitfit")
    assert alone.code == USAGE and "no biases" in alone.error


@pytest.mark.parametrize("method", ["random_mask", "fusion", "partial"])
def test_a_method_without_defaults(call, base, method):
    assert call("ledger", "--base", base, *SMALL, "--method", method).code == 0


@pytest.mark.slow
def test_all_methods(call, base):
    done = call("ledger", "--base", base, *SMALL, "--method", "all", "--json")
    assert list(done.json["predicted"]) == list(METHODS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "adapter"], "unknown method 'adapter': expected one of"),
        (["--set", "r=2"], "--set is for one method"),
        (["--optimizer", "adam", "--length", 8], "expected one of adamw, sgd"),
        (["--length", 4096], "--length 4096: the model has 48 positions"),
        (["--method", "prompt_tuning", "--length", 48], "behind 20 virtual ones: the model has 48 positions"),
    ],
)
def test_wrong_use_is_one_line(call, base, arguments, message):
    done = call("ledger", "--base", base, *arguments)
    assert done.code == USAGE and message in done.error
