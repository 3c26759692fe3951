"""What four bits cost: storage, errors, bits per byte, the picture."""

from __future__ import annotations

import numpy as np
import pytest

from minitorch_peft.analysis import quantization, quantization_picture
from minitorch_peft.analysis.contenders import CONTENDERS
from minitorch_peft.analysis.summary import Row, Spread
from minitorch_peft.models import GPT, GPTConfig
from minitorch_peft.quant import bits_per_parameter, quantize_model, quantized_layers


def small() -> GPT:
    return GPT(GPTConfig(vocab_size=97, n_positions=64, n_embd=64, n_layer=2, n_head=4), seed=0)


def test_stored_bits_are_those_of_the_paper():
    assert quantization.stored_bits(64) == 4.5
    assert quantization.stored_bits(64, double=True) == pytest.approx(4.127, abs=5e-4)
    assert [quantization.stored_bits(size) for size in (32, 4096)] == [5, 4 + 1 / 128]


@pytest.mark.parametrize("double", [False, True])
def test_stored_bits_are_those_of_a_model(double):
    model = quantize_model(small(), compress_statistics=double)
    assert bits_per_parameter(model) == pytest.approx(quantization.stored_bits(64, double), abs=0.02)


def test_on_normal_weights_nf4_loses_least_and_small_blocks_lose_less():
    normal = quantization.normal_weights(256)
    nf4, int4, fp4 = (quantization.relative_error(normal, kind) for kind in ("nf4", "int4", "fp4"))
    assert 0.09 < nf4 < 0.094 < int4 < 0.11 < fp4 < 0.125
    assert quantization.relative_error(normal, "nf4", 32) < nf4 < quantization.relative_error(normal, "nf4", 4096)
    assert nf4 != quantization.relative_error(normal, "nf4", double=True) < 1.01 * nf4


def test_errors_are_relative_and_over_all_arrays():
    normal = quantization.normal_weights(64)
    assert quantization.relative_error([8 * w for w in normal], "nf4") == quantization.relative_error(normal, "nf4")
    ones = np.ones(4096, np.float32)  # these lose nothing
    assert quantization.relative_error([*normal, ones], "nf4") < 0.8 * quantization.relative_error(normal, "nf4")
    assert quantization.relative_error([np.zeros(3, np.float32)], "nf4") == 0


def test_the_weights_are_those_that_are_quantized():
    model = small()
    shapes = sorted(w.shape for w in quantization.linear_weights(model))
    layers = quantized_layers(quantize_model(model)).values()
    assert shapes == sorted((layer.out_features, layer.in_features) for layer in layers)


def test_models_are_quantized_one_by_one_from_the_same_weights():
    loaded = []

    def load():
        loaded.append(small())
        return loaded[-1]

    def measure(model):
        return {"modern": float(len(quantized_layers(model)))}

    rows = quantization.quantized_models(load, measure)
    types = [kind for kind in quantization.QUANT_TYPES for _ in range(2)]
    assert [row["quant_type"] for row in rows] == ["float32", *types]
    assert [row["double"] for row in rows] == [False, *[False, True] * 3]
    assert len({id(model) for model in loaded}) == len(rows)
    assert [row["bits_per_byte"]["modern"] for row in rows] == [0] + [12] * 6
    assert rows[0]["bits"] == 32 and rows[1]["bits"] > rows[2]["bits"] > 4


def test_the_picture_is_drawn(tmp_path):
    weights = {"normal": quantization.normal_weights(64), "model": quantization.linear_weights(small())}
    errors = quantization.rounding_errors(weights)
    assert len(errors) == 2 * len(quantization.QUANT_TYPES) * len(quantization.BLOCKSIZES) * 2
    models = quantization.quantized_models(small, lambda model: {"modern": 1.5})
    spread = Spread(2.0, 0.1)
    adapted = [Row(c, 1, 1.0, 1, spread, spread, {"held_out": spread}) for c in CONTENDERS[:3]]
    quantization_picture.draw(errors, models, adapted, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
