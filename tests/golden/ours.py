"""The recipe's models here, for the tests that hold them against golden files."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np

from minitorch_peft.formats.families import expand, sizes, stored_shape
from minitorch_peft.formats.hf import from_hf
from minitorch_peft.formats.hf_config import read_config
from minitorch_peft.models import GPT, GPTConfig

GOLDEN = Path(__file__).parent
RECIPE = runpy.run_path(str(GOLDEN / "recipe.py"))


def recipe_weights(family, fields):
    """The recipe's weights under transformers' names."""
    drop = "transformer." if family.model_type == "gpt2" else ""
    rows = {row.theirs.removeprefix(drop): row for row in expand(family, fields)}
    return RECIPE["weights"]({name: stored_shape(row, sizes(fields)) for name, row in rows.items()})


def build(name, change=lambda arrays: None):
    family, fields = read_config(RECIPE["CONFIGS"][name])
    arrays = recipe_weights(family, fields)
    change(arrays)
    model = GPT(GPTConfig(**fields), seed=None).eval()
    model.load_state_dict(from_hf(family, fields, arrays))
    return model


def close(ours, theirs, rtol=1e-5):
    """Within ``rtol`` of the largest entry."""
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype == np.float32
    assert np.abs(ours - theirs).max() <= rtol * np.abs(theirs).max()
