"""A run that is small and uses everything: dropout, accumulation, warm-up, clipping, evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from minitorch_peft.autograd.random import generator
from minitorch_peft.models import GPT, GPTConfig
from minitorch_peft.training import TrainConfig

V, T = 13, 10


def new_model(dtype: Any = np.float32, dropout: float = 0.1, **fields: Any) -> GPT:
    config = GPTConfig(
        vocab_size=V, n_positions=16, n_embd=16, n_layer=2, n_head=2, embd_pdrop=dropout, resid_pdrop=dropout, **fields
    )
    return GPT(config, seed=1).astype(dtype)


def batch(i: int, rows: int = 3) -> dict[str, np.ndarray]:
    """Counting sequences with a prompt of random length, which the labels leave out."""
    rng = generator(7, "data", i)
    ids = (rng.integers(0, V, (rows, 1)) + np.arange(T)) % V
    prompt = rng.integers(1, T - 2, (rows, 1))
    return {"input_ids": ids, "labels": np.where(np.arange(T) < prompt, -100, ids)}


def held_out() -> Iterator[dict[str, np.ndarray]]:
    return (batch(10_000 + i) for i in range(2))


def settings(**fields: Any) -> TrainConfig:
    usual = {"steps": 12, "lr": 0.02, "warmup": 2, "weight_decay": 0.1, "gradient_accumulation_steps": 2}
    return TrainConfig(**{**usual, **fields})


def weights(model: Any) -> dict[str, bytes]:
    return {name: p.data.tobytes() for name, p in model.named_parameters()}
