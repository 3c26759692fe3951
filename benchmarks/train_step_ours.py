"""The contender of benchmarks.train_step that is this package."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np

from benchmarks.contest import resident_bytes, serve
from benchmarks.train_step import ALPHA, RANK, RATE, SHAPES, VOCABULARY, WARM_UP
from minitorch_peft.models import GPT, GPTConfig
from minitorch_peft.optim import AdamW
from minitorch_peft.peft import LoraConfig, get_peft_model

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]


def make_model(size: str) -> GPT:
    shape = dict(SHAPES[size])
    shape.pop("batch")
    return GPT(GPTConfig(vocab_size=VOCABULARY, **shape), seed=0)


def make_batch(size: str) -> tuple[np.ndarray, np.ndarray]:
    """Random ids and labels (B, T); both models shift the labels by one."""
    rng = np.random.default_rng(0)
    shape = (SHAPES[size]["batch"], SHAPES[size]["n_positions"])
    return rng.integers(0, VOCABULARY, shape), rng.integers(0, VOCABULARY, shape)


def make_step(size: str, method: str) -> Callable[[], float]:
    ids, labels = make_batch(size)
    model = make_model(size)
    if method == "lora":
        model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS), seed=0)
    trainable = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    optimizer = AdamW(trainable, lr=RATE, weight_decay=0.01)

    def step() -> float:
        loss = model(ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


if __name__ == "__main__":
    size, method = sys.argv[1:]
    make_step(WARM_UP, method)()
    before = resident_bytes()
    serve(make_step(size, method), before)
