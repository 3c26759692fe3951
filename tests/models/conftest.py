"""Small models for the tests of this folder."""

from __future__ import annotations

import numpy as np
import pytest

from minitorch_peft.models import GPT, GPTConfig

SIZES = {"vocab_size": 31, "n_positions": 24, "n_embd": 16, "n_layer": 2, "n_head": 4}
CONFIGS = {
    "gpt2": GPTConfig(**SIZES),
    "llama": GPTConfig.llama(**SIZES, num_key_value_heads=2, n_inner=20),
}


def lively(model: GPT) -> GPT:
    """Weights far from zero, so that every path through the model matters to its output."""
    rng = np.random.default_rng(5)
    for name, p in model.named_parameters():
        centre = 1.0 if name.endswith("weight") and p.ndim == 1 else 0.0
        p.data[...] = centre + 0.3 * rng.standard_normal(p.shape)
    return model


@pytest.fixture(name="lively")
def _lively():
    return lively


@pytest.fixture(params=CONFIGS)
def model(request):
    """A model of each family."""
    return lively(GPT(CONFIGS[request.param]))


@pytest.fixture
def plain(model):
    """A second model with the same weights."""
    return lively(GPT(model.config))


@pytest.fixture
def ids():
    """int (3, 7)."""
    return np.random.default_rng(1).integers(0, SIZES["vocab_size"], (3, 7))
