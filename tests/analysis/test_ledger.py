"""The ledger: predicted bytes and operations against those of a real step, and what the lecture says of them."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest

from minitorch_peft.analysis.ledger import Ledger, ledger, measure
from minitorch_peft.analysis.ledger.formulas import (
    activation_bytes,
    attention_flops,
    ladder_flops,
    product_flops,
    training_flops,
)
from minitorch_peft.analysis.ledger.scaling import size_at, small_batches
from minitorch_peft.analysis.ledger.tables import held_against, totals
from minitorch_peft.analysis.ledger.trace import prepared, record, scaled
from minitorch_peft.analysis.memory import peak_memory
from minitorch_peft.models import GPT, GPTConfig
from minitorch_peft.peft import METHODS, LadderConfig, LoraConfig, PromptTuningConfig, get_peft_model
from minitorch_peft.peft.function.ladder_start import side_config
from minitorch_peft.quant import quantize_model
from minitorch_peft.training import TrainConfig, Trainer

SMALL = GPTConfig(vocab_size=61, n_positions=64, n_embd=32, n_layer=2, n_head=4)
MEDIUM = {
    "gpt2": GPTConfig(vocab_size=211, n_positions=128, n_embd=64, n_layer=3, n_head=4),
    "llama": GPTConfig.llama(vocab_size=211, n_positions=128, n_embd=64, n_layer=3, n_head=4, num_key_value_heads=2),
}
WIDE = GPTConfig(vocab_size=2048, n_positions=160, n_embd=384, n_layer=6, n_head=6)
BATCH = (4, 40)
LORA = LoraConfig(r=4)


def agree(predicted: Ledger, measured: Ledger) -> None:
    for (name, said), was in zip(predicted.totals().items(), measured.totals().values(), strict=True):
        assert said == pytest.approx(was, rel=0.1), name


# -- prediction and measurement --------------------------------------------------------------------------------
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_small_step_is_what_was_predicted(method):
    base, config = GPT(SMALL), method.examples[0]
    agree(ledger(base, config, BATCH), measure(base, config, BATCH))


@pytest.mark.parametrize("batch", [(1, 2), (2, 5), (1, 64)])
def test_other_batches(batch):
    agree(ledger(SMALL, LORA, batch), measure(SMALL, LORA, batch))


CASES = [
    pytest.param(config, family, id=f"{method.name}-{i}-{family}")
    for method in METHODS.values() for i, config in enumerate(method.examples) for family in MEDIUM
    if (method.name, family) != ("bitfit", "llama")
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("config, family", CASES)
def test_a_larger_step_is_what_was_predicted(config, family):
    base = GPT(MEDIUM[family])
    agree(ledger(base, config, (8, 96)), measure(base, config, (8, 96)))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw_bnb_8bit"])
def test_the_state_of_other_optimizers(optimizer):
    config = replace(SMALL, n_embd=128)
    predicted, measured = (of(config, METHODS["full"].config(), BATCH, optimizer) for of in (ledger, measure))
    assert predicted.optimizer == measured.optimizer != ledger(config, METHODS["full"].config(), BATCH).optimizer


def test_a_pass_without_a_graph():
    predicted, measured = (of(SMALL, LORA, BATCH, training=False) for of in (ledger, measure))
    agree(predicted, measured)
    assert predicted.backward.total == predicted.gradients == predicted.optimizer == 0
    assert not any(a.kept_by for a in predicted.activations)


def test_several_adapters_at_once():
    several = [LORA, PromptTuningConfig(num_virtual_tokens=3)]
    base = GPT(SMALL)
    predicted = ledger(base, several, BATCH)
    agree(predicted, measure(base, several, BATCH))
    assert predicted.trainable == sum(ledger(base, c, BATCH).trainable for c in several)


def test_a_base_in_four_bits():
    base = quantize_model(GPT(MEDIUM["gpt2"]))
    predicted = ledger(base, LORA, BATCH)
    agree(predicted, measure(base, LORA, BATCH))
    assert predicted.weights["base"] == base.get_memory_footprint() < GPT(MEDIUM["gpt2"]).get_memory_footprint() / 2


def test_a_model_that_trains_as_it_stands():
    base = GPT(SMALL)
    alone, full = ledger(base, None, BATCH), ledger(base, METHODS["full"].config(), BATCH)
    assert alone.gradients == full.gradients and alone.activation_bytes == full.activation_bytes
    assert full.weights["method"] == full.weights["base"] == sum(alone.weights.values())  # the copies


def test_the_model_is_as_it_was():
    base = GPT(SMALL)
    bits = {name: p.data.tobytes() for name, p in base.named_parameters()}
    for config in (LORA, METHODS["full"].config(), None):
        ledger(base, config, BATCH)
        measure(base, config, BATCH)
    assert {name: p.data.tobytes() for name, p in base.named_parameters()} == bits
    assert all(p.grad is None and p.requires_grad for p in base.parameters())
    assert not any("forward" in vars(module) for _, module in base.named_modules())


def peak_of_a_process(shape: GPTConfig, config, batch) -> int:
    """The bytes that Python and NumPy hold at the worst moment of the trainer's own step."""
    ids = np.random.default_rng(0).integers(0, shape.vocab_size, batch)

    def prepare():
        model = get_peft_model(GPT(shape), config).train()
        settings = TrainConfig(steps=3, max_grad_norm=None)
        return Trainer(model, lambda i: {"input_ids": ids, "labels": ids}, settings).step

    prepare()()  # compiled kernels are not to be counted
    return peak_memory(prepare)


def test_the_peak_is_that_of_the_trainers_step():
    shape, batch = replace(SMALL, n_embd=128), (8, 64)
    assert ledger(shape, LORA, batch).peak == pytest.approx(peak_of_a_process(shape, LORA, batch), rel=0.1)


WIDE_CASES = ("full", "lora", "bitfit", "prompt_tuning", "prefix_tuning", "ladder")


@pytest.mark.slow
def test_the_peak_of_a_wide_model_and_the_ladders_is_lowest():
    batch, peaks = (4, 128), {}
    for name in ("full", "lora", "prompt_tuning", "ladder"):
        config = METHODS[name].config()
        peaks[name] = peak_of_a_process(WIDE, config, batch)
        assert ledger(WIDE, config, batch).peak == pytest.approx(peaks[name], rel=0.1), name
    assert peaks["ladder"] < 0.8 * min(peak for name, peak in peaks.items() if name != "ladder")


# -- the page of formulas --------------------------------------------------------------------------------------
@pytest.mark.parametrize("batch", [BATCH, (1, 64)])
def test_the_formulas_are_what_the_engine_does(batch):
    whole, frozen = ledger(SMALL, METHODS["full"].config(), batch), ledger(SMALL, METHODS["bitfit"].config(), batch)
    once = product_flops(SMALL, batch) + attention_flops(SMALL, batch)
    assert whole.forward.products == frozen.forward.products == once
    assert whole.forward.products + whole.backward.products == training_flops(SMALL, batch, frozen=False)
    assert frozen.forward.products + frozen.backward.products == training_flops(SMALL, batch, frozen=True)
    for found in (whole, frozen):
        assert found.activation_bytes == pytest.approx(activation_bytes(SMALL, batch), rel=0.01)


@pytest.mark.parametrize("factor", [2, 8])
@pytest.mark.parametrize("batch", [BATCH, (1, 64)])
def test_the_formula_of_a_ladder_is_what_the_engine_does(batch, factor):
    found = ledger(SMALL, LadderConfig(reduction_factor=factor), batch)
    said = ladder_flops(SMALL, batch, side_config(SMALL, factor))
    assert found.forward.products + found.backward.products == said


# -- what the lecture says -------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def known():
    """Ledgers of 8 rows of 96 tokens, by method."""
    base = GPT(MEDIUM["gpt2"])
    return {name: ledger(base, METHODS[name].config(), (8, 96)) for name in WIDE_CASES}


@pytest.mark.parametrize("name", ["lora", "bitfit", "prompt_tuning", "prefix_tuning"])
def test_a_frozen_base_saves_gradients_and_optimizer_state_but_no_activations(known, name):
    method, full = known[name], known["full"]
    assert method.gradients < 0.1 * full.gradients and method.optimizer < 0.1 * full.optimizer
    assert method.activation_bytes > 0.95 * full.activation_bytes
    through = product_flops(MEDIUM["gpt2"], (8, 96))  # each product with a weight is done once more, for dX
    assert method.backward.products > 0.95 * through


def test_lora_does_two_thirds_of_the_operations_of_full_fine_tuning(known):
    lora, full = (known[n].forward.products + known[n].backward.products for n in ("lora", "full"))
    assert 0.6 < lora / full < 0.75


def test_the_ladder_does_not_back_propagate_through_the_base(known):
    ladder, lora = known["ladder"], known["lora"]
    assert ladder.backward.products < 0.3 * lora.backward.products
    assert ladder.activation_bytes < 0.6 * lora.activation_bytes and ladder.peak < 0.7 * lora.peak
    kept = {a.path for a in ladder.activations if a.kept_by}
    assert not any(path.startswith("blocks.*.mlp") for path in kept)


@pytest.mark.parametrize("k", [1, 8])
def test_prompts_lengthen_the_sequence_at_every_use(k):
    (B, T), shape, prompt = BATCH, SMALL, PromptTuningConfig(num_virtual_tokens=k)
    base, found = (ledger(shape, c, BATCH, training=False).forward.products for c in (None, prompt))
    head_on_prompt = 2 * B * k * shape.vocab_size * shape.n_embd  # there are no logits for them
    longer = (B, T + k)
    assert found == product_flops(shape, longer) + attention_flops(shape, longer) - head_on_prompt
    assert found / base > (T + k) / T * (1 - head_on_prompt / found)
    trained = ledger(shape, prompt, BATCH)
    assert (
        trained.activation_bytes > (T + k / 2) / T * ledger(shape, METHODS["bitfit"].config(), BATCH).activation_bytes
    )


def test_merged_lora_costs_nothing_at_inference():
    base, lora = GPT(SMALL), ledger(SMALL, LORA, BATCH, training=False)
    merged = ledger(get_peft_model(GPT(SMALL), LORA).merge_and_unload(), None, BATCH, training=False)
    assert merged.totals() == ledger(base, None, BATCH, training=False).totals()
    assert lora.forward.products > merged.forward.products


def test_optimizer_state_dominates_small_batches_and_activations_large_ones():
    few, many = (ledger(MEDIUM["gpt2"], METHODS["full"].config(), batch) for batch in ((1, 8), (32, 128)))
    assert few.optimizer > 2 * few.activation_bytes and many.activation_bytes > 10 * many.optimizer


# -- its parts -------------------------------------------------------------------------------------------------
def test_sizes_that_depend_on_the_data_grow_with_the_tokens():
    batches = small_batches((64, 512))
    shares = tuple(B * T // 4 + (-1) ** i for i, (B, T) in enumerate(batches))
    assert size_at(shares, batches, (64, 512)) == pytest.approx(64 * 512 / 4, rel=0.05)


def test_small_steps_that_do_different_things_are_refused():
    with prepared(SMALL, None, 0) as model:
        traces = [record(model, (2, 8), training) for training in (True, False)]
        with pytest.raises(ValueError, match="what small steps hold differs: it depends on the data"):
            scaled(traces, ((2, 8), (2, 8)), BATCH)
    with prepared(SMALL, LORA, 0) as model:
        traces.append(record(model, (2, 8), True))
    with pytest.raises(ValueError, match=r"Linear in blocks.0.attn.q_proj, LoraLinear in blocks.0.attn.q_proj"):
        scaled(traces[::2], ((2, 8), (2, 8)), BATCH)


def test_wrong_use_says_what_would_be_right():
    with pytest.raises(ValueError, match="optimizer='adam': expected one of adamw, sgd"):
        ledger(SMALL, LORA, BATCH, optimizer="adam")
    with pytest.raises(ValueError, match="takes what its budget gives it"):
        ledger(SMALL, LORA, BATCH, optimizer="paged_adamw_32bit")
    with pytest.raises(ValueError, match="rows of at least 2 tokens"):
        ledger(SMALL, LORA, (4, 1))
    with pytest.raises(ValueError, match="rows of 60 tokens behind 8 virtual ones: the model has 64 positions"):
        ledger(SMALL, PromptTuningConfig(num_virtual_tokens=8), (4, 60))
    with pytest.raises(ValueError, match="has its adapters already"):
        ledger(get_peft_model(GPT(SMALL), LORA), LORA, BATCH)


def test_activations_by_tensor_and_the_tables():
    from rich.console import Console

    found = ledger(SMALL, LORA, BATCH)
    largest = found.activations[0]
    assert (largest.path, largest.kept_by, largest.count) == ("blocks.*.mlp.up_proj", "GeluTanh", 2)
    assert largest.bytes == 2 * 4 * 4 * 40 * 128
    assert json.loads(json.dumps(found.to_dict()))["totals"] == found.totals()
    console = Console(width=110, file=StringIO())
    for shown in (found.table(), totals({"lora": found, "full": found}), held_against(found, found)):
        console.print(shown)
    text = console.file.getvalue()
    assert "blocks.*.mlp.up_proj" in text and "optimizer" in text and "1.000" in text
    assert "…" not in text
