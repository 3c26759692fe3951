"""One run of the comparison: one method adapts the base to another English, with one seed."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minitorch_peft.analysis.contenders import Contender
from minitorch_peft.analysis.energy import metered
from minitorch_peft.analysis.latency import latencies
from minitorch_peft.analysis.memory import peak_memory
from minitorch_peft.analysis.plan import Plan
from minitorch_peft.analysis.texts import Texts, pack_split
from minitorch_peft.data.tokenizer import Tokenizer
from minitorch_peft.models import GPT
from minitorch_peft.peft import PeftModel, get_peft_model
from minitorch_peft.peft.inject import base_buffers, base_parameters, parameter_sizes
from minitorch_peft.quant import bits_per_parameter
from minitorch_peft.training import Progress, StepReport, Trainer

MEASURED = ("held_out", "out_of_domain", "modern")
WARM_UP = 2  # steps left out of the time for a step: kernels may be compiled in them


def load_texts(plan: Plan, tokenizer: Tokenizer) -> Texts:
    """The other English to learn; its held-out books, books of another kind, and modern English to measure."""
    measured = {
        "held_out": pack_split(plan.translation, "held_out", tokenizer),
        "out_of_domain": pack_split(plan.translation, "out_of_domain", tokenizer),
        "modern": pack_split("web", "held_out", tokenizer),
    }
    return Texts(pack_split(plan.translation, "train", tokenizer), measured, plan.batch_size, plan.length)


def bits(model: GPT | PeftModel, texts: Texts, plan: Plan) -> dict[str, float]:
    """Bits per byte on every measured text."""
    return {name: texts.bits_per_byte(model, name, plan.eval_rows) for name in texts.measured}


def run(
    plan: Plan, contender: Contender, seed: int, texts: Texts, folder: Path, progress: Progress | None = None
) -> dict[str, Any]:
    """Adapt, measure, and save the adapter to ``folder``; the figures as JSON.

    The batches depend on the seed only, so the methods of one seed see the same text in the same order.
    """
    seconds: list[float] = []

    def watch(report: StepReport) -> None:
        seconds.append(report.seconds)
        if progress is not None:
            progress(report)

    model = adapted(plan, contender, seed)
    stored = storage(model, contender, texts, plan)
    trainer = Trainer(model, texts.batches(seed), plan.training(contender.lr, seed), progress=watch)
    with metered() as energy:
        result = trainer.run()
    model.save_pretrained(folder, format="native")  # peft's layout of a fused projection stores zeros too
    trainable, _ = model.get_nb_trainable_parameters()
    return {
        "contender": contender.name,
        "base": plan.base,
        "seed": seed,
        "trainable_parameters": trainable,
        "trainable_percent": 100 * trainable / sum(parameter_sizes(model.base_model).values()),
        "stored_bytes": sum(f.stat().st_size for f in folder.iterdir() if f.suffix == ".safetensors"),
        "deployed_bytes": sum(a.nbytes for adapter in model.adapters.values() for a in adapter.deployed().values()),
        "peak_bytes": peak_memory(lambda: one_step(plan, contender, seed, texts)),
        "seconds_per_step": statistics.median(seconds[WARM_UP:] or seconds),
        "last_loss": result.losses[-1],
        "bits_per_byte": bits(model, texts, plan),
        "energy": {"joules": energy.joules, "how": energy.how},
        "seconds_per_token": latencies(model),
        **stored,
    }


def storage(model: PeftModel, contender: Contender, texts: Texts, plan: Plan) -> dict[str, Any]:
    """The bytes of the base in memory; in four bits also what a weight takes, and what was lost before adapting."""
    base = model.base_model
    arrays = [*(p.data for _, p in base_parameters(base)), *(array for _, array in base_buffers(base))]
    stored: dict[str, Any] = {"base_bytes": sum(array.nbytes for array in arrays)}
    if contender.quantization.load_in_4bit:
        stored |= {
            "quantization": contender.quantization.to_dict(),
            "bits_per_weight": bits_per_parameter(base),
            "quantized_bits_per_byte": bits(model, texts, plan),  # LoRA starts as the base
        }
    return stored


def adapted(plan: Plan, contender: Contender, seed: int) -> PeftModel:
    return get_peft_model(contender.base(plan.base), contender.config(), seed=seed)


def one_step(plan: Plan, contender: Contender, seed: int, texts: Texts) -> Callable[[], object]:
    """A training step of a fresh model, to measure."""
    model = adapted(plan, contender, seed)
    return Trainer(model.train(), texts.batches(seed), plan.training(contender.lr, seed)).step
