"""The side of benchmarks.ledger that is measured: one method, in a process of its own; prints one JSON object."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from contextlib import ExitStack

import numpy as np

from benchmarks.contest import peak_bytes, resident_bytes
from benchmarks.ledger import BATCH, SHAPE
from minitorch_peft.analysis.ledger import default_config, ledger, measure
from minitorch_peft.analysis.ledger.trace import prepared
from minitorch_peft.analysis.memory import peak_memory
from minitorch_peft.models import GPTConfig
from minitorch_peft.peft import METHODS
from minitorch_peft.training import TrainConfig, Trainer

SMALL = GPTConfig(vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=2)


def make_step(method: str, shape: GPTConfig, batch: tuple[int, int]) -> Callable[[], object]:
    """The trainer's step of a fresh model under the method's defaults."""
    ids = np.random.default_rng(0).integers(0, shape.vocab_size, batch)
    held = ExitStack()
    model = held.enter_context(prepared(shape, default_config(METHODS[method]), 0)).train()
    trainer = Trainer(model, lambda i: {"input_ids": ids, "labels": ids}, TrainConfig(steps=9, max_grad_norm=None))
    return lambda: (trainer.step(), held)[0]


def resident_peak(method: str) -> int:
    """The most that this process holds in its second step, beyond what it held before there was a model."""
    make_step(method, SMALL, (2, 16))()  # code that is compiled is not to be counted
    gc.collect()
    before = resident_bytes()
    step = make_step(method, SHAPE, BATCH)
    step()
    return peak_bytes(lambda: float(bool(step()))) - before


def main(method: str) -> None:
    resident = resident_peak(method)
    config = default_config(METHODS[method])
    row = {
        "method": method,
        "trainable": (predicted := ledger(SHAPE, config, BATCH)).trainable,
        "predicted": predicted.totals(),
        "measured": measure(SHAPE, config, BATCH).totals(),
        "allocated": peak_memory(lambda: make_step(method, SHAPE, BATCH)),
        "resident": resident,
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main(sys.argv[1])
