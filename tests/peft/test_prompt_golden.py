"""Virtual tokens against numbers that ``peft`` gave (tests/golden/prompts.py); it is not needed here."""

from __future__ import annotations

import runpy

import numpy as np
import pytest

from minitorch_peft.formats.files import read_arrays, write_arrays
from minitorch_peft.peft import METHODS, PeftModel, get_peft_model

from ..golden.ours import GOLDEN, RECIPE, build, close

MAKER = runpy.run_path(str(GOLDEN / "prompts.py"))


def method_of(case):
    (found,) = [m for m in METHODS.values() if m.config.__name__ == MAKER["CONFIGS"][case] and not m.variant]
    return found


@pytest.fixture(params=[f"{family}.{case}" for family in RECIPE["CONFIGS"] for case in MAKER["CASES"]])
def golden(request):
    """Family, case, our adapter with the recipe's encoder, and what peft gave."""
    family, case = request.param.split(".")
    p = get_peft_model(build(family), method_of(case).make(MAKER["CASES"][case])).eval()
    encoder = p.adapters["default"].encoder
    shapes = {name: q.shape for name, q in encoder.named_parameters()}
    encoder.load_state_dict(MAKER["encoder_weights"](RECIPE, shapes))
    start = f"{request.param}."
    arrays = read_arrays(GOLDEN / "prompts.safetensors")
    return family, case, p, {n.removeprefix(start): a for n, a in arrays.items() if n.startswith(start)}


def test_logits_loss_and_gradients(golden):
    _, _, p, expected = golden
    out = p(RECIPE["IDS"], labels=RECIPE["IDS"])
    close(out.logits.data, expected["logits"])
    close(out.loss.data, expected["loss"])
    out.loss.backward()
    ours = {f"grad.{name}": q.grad for name, q in p.adapters["default"].encoder.named_parameters()}
    assert ours.keys() == {name for name in expected if name.startswith("grad.")}
    for name, g in ours.items():
        close(g, expected[name], rtol=1e-4)


def test_what_is_saved(golden, tmp_path):
    family, _, p, expected = golden
    p.save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    close(read_arrays(path)["prompt_embeddings"], expected["prompt_embeddings"])
    write_arrays(path, {"prompt_embeddings": expected["prompt_embeddings"]})
    again = PeftModel.from_pretrained(build(family), tmp_path)
    close(again(RECIPE["IDS"]).logits.data, expected["logits"])
    assert np.array_equal(again.adapters["default"].table().data, expected["prompt_embeddings"])
