"""DoRA, PiSSA and VeRA against files and logits that ``peft`` made (tests/golden/lora_family.py), without ``peft``."""

from __future__ import annotations

import json

import numpy as np
import pytest
from peft_cases import logits

from minitorch_peft.formats.files import read_arrays, read_metadata, write_arrays
from minitorch_peft.peft import PeftModel
from minitorch_peft.peft.registry import method_of

from ..golden.ours import GOLDEN, RECIPE, build

FILE = GOLDEN / "lora_family.safetensors"
CASES = {  # to the tolerance of its logits: peft's PiSSA decomposes in float32
    "dora-gpt2": 1e-5, "dora-llama": 1e-5, "pissa-gpt2": 2e-5, "pissa-llama": 2e-5,
    "vera-gpt2": 1e-5, "vera-llama": 1e-5,
}  # fmt: skip


def restore(case, directory):
    """The adapter's files; the logits under it."""
    arrays = {n.removeprefix(f"{case}/"): a for n, a in read_arrays(FILE).items() if n.startswith(f"{case}/")}
    expected = arrays.pop("logits")
    write_arrays(directory / "adapter_model.safetensors", arrays)
    settings = json.loads(read_metadata(FILE)[case])
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    return settings, arrays, expected


@pytest.mark.parametrize("case", CASES)
def test_logits_under_peft_s_adapters(case, tmp_path):
    method, family = case.split("-")
    _, _, expected = restore(case, tmp_path)
    base = build(family)
    before = logits(base, RECIPE["IDS"])
    p = PeftModel.from_pretrained(base, tmp_path)
    fused = case == "pissa-gpt2"  # a LoRA of twice the rank: q, k and v have no principal part in common
    assert method_of(p.adapters["default"].config).name == ("lora" if fused else method)
    tolerance = {"rtol": CASES[case], "atol": CASES[case]}
    np.testing.assert_allclose(logits(p, RECIPE["IDS"]), expected, **tolerance)
    assert np.abs(expected - before).max() > 1e-2
    p.merge_adapter(RECIPE["IDS"])
    np.testing.assert_allclose(logits(p, RECIPE["IDS"]), expected, **tolerance)


@pytest.mark.parametrize("case", [case for case in CASES if case != "pissa-gpt2"])
def test_what_is_written_again(case, tmp_path):
    """On Llama, tensor for tensor; a fused module of GPT-2 is split and joined, to the same outputs."""
    family = case.split("-")[1]
    settings, arrays, expected = restore(case, tmp_path)
    p = PeftModel.from_pretrained(build(family), tmp_path)
    p.save_pretrained(tmp_path / "again")
    again = read_arrays(tmp_path / "again" / "adapter_model.safetensors")
    written = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    if case in ("dora-llama", "vera-llama", "vera-gpt2"):
        assert again.keys() == arrays.keys() and all(np.array_equal(again[n], arrays[n]) for n in arrays)
        assert all(written[k] == v for k, v in settings.items() if k in ("r", "lora_alpha", "peft_type", "use_dora"))
        assert sorted(written["target_modules"]) == sorted(settings["target_modules"])
    tolerance = {"rtol": CASES[case], "atol": CASES[case]}
    q = PeftModel.from_pretrained(build(family), tmp_path / "again")
    np.testing.assert_allclose(logits(q, RECIPE["IDS"]), expected, **tolerance)
