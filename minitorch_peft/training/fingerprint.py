"""What makes a run this run: it is not resumed with another configuration, model or data."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from minitorch_peft import kernels
from minitorch_peft.nn import Module
from minitorch_peft.training.accumulate import BatchSource
from minitorch_peft.training.config import HARMLESS, TrainConfig


def fingerprint(model: Module, config: TrainConfig, batch: BatchSource) -> dict[str, Any]:
    """JSON of everything that decides the weights of the run, large arrays as digests.

    The data are known by their first and last batch, the model by its settings, the shapes of what
    trains and a digest of what is frozen.
    """
    last = config.steps * config.gradient_accumulation_steps - 1
    parameters = dict(model.named_parameters())
    found = {
        "config": {k: v for k, v in config.to_dict().items() if k not in HARMLESS},
        "data": {"first batch": digest_batch(batch(0)), "last batch": digest_batch(batch(last))},
        "model": {
            "settings": settings_of(model),
            "trainable": {n: f"{p.dtype} {p.shape}" for n, p in parameters.items() if p.requires_grad},
            "frozen weights": digest(
                [*((n, p.data) for n, p in parameters.items() if not p.requires_grad), *model.named_buffers()]
            ),
        },
    }
    return json.loads(json.dumps(found, default=plain))  # as it will be read back


def plain(value: Any) -> Any:
    """What JSON has no form for."""
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


def settings_of(model: Module) -> dict[str, Any]:
    """The model's config and those of its adapters, where it has any; which act, innermost first, and which train."""
    settings: dict[str, Any] = {"class": type(model).__name__}
    if hasattr(model, "config"):
        settings["config"] = model.config.to_dict()
    for name, adapter in getattr(model, "adapters", {}).items():
        settings[f"adapter {name}"] = adapter.config.to_dict()
        acting = settings.setdefault("adapters", {"act": [], "train": []})
        if adapter.active:
            acting["act"].append(name)
        if any(p.requires_grad for p in adapter.named_parameters().values()):
            acting["train"].append(name)
    return settings


def digest(arrays: Iterable[tuple[str, np.ndarray]], text: str = "") -> str:
    """A checksum (BLAKE2b) of named arrays, whatever their order, and of a text."""
    total = hashlib.blake2b(text.encode(), digest_size=16)
    for name, array in sorted(arrays, key=lambda item: item[0]):
        total.update(f"\0{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        total.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def digest_batch(batch: Mapping[str, Any]) -> str:
    return digest((name, np.asarray(value)) for name, value in batch.items() if value is not None)


def differences(before: Any, now: Any, path: str = "") -> list[str]:
    """Where two nested dicts differ, one line each.

    >>> differences({"config": {"lr": 0.1, "steps": 5}}, {"config": {"lr": 0.2, "steps": 5}})
    ['config.lr: was 0.1, is 0.2']
    """
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(key for key in now if key not in before)]
        return [
            line
            for key in keys
            for line in differences(before.get(key, "absent"), now.get(key, "absent"), f"{path}.{key}" if path else key)
        ]
    return [] if before == now else [f"{path}: was {before}, is {now}"]


def environment() -> dict[str, Any]:
    """What must be equal besides, for equal bits: versions, and the number of threads that share a sum."""
    backend = kernels.get("square_norm", np.dtype(np.float32)).__module__.rpartition(".")[2]
    threads = sys.modules["numba"].get_num_threads() if backend == "numba" else os.cpu_count()
    return {"numpy": np.__version__, "kernels": backend, "threads": threads}
