"""What task 3.7 measures: the tiny GPT, adapted with some LoRA settings, on text that it has not been trained on.

model = adapt({"r": 8, "target_modules": ["v_proj"], "lr": 1e-2})    # a second or two
gain(model)                                                          # bits per byte of held-out text: about 0.8
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from minitorch_peft.data import PackedText, Tokenizer, load_corpus
from minitorch_peft.data.corpora import Corpus
from minitorch_peft.kernels import use_backend
from minitorch_peft.models import GPT
from minitorch_peft.optim import AdamW
from minitorch_peft.peft import LoraConfig, PeftModel, get_peft_model
from minitorch_peft.training.evaluate import evaluate

BUDGET = 10_000
STEPS, ROWS, LENGTH = 40, 8, 64
WARMUP = 5
RATES = (1e-8, 10.0)  # what a choice may have for its rate
NAMES = (
    "r", "lora_alpha", "target_modules", "layers_to_transform", "exclude_modules", "use_rslora", "rank_pattern",
    "alpha_pattern",
)  # fmt: skip
PARTS = {"first": range(1, 11), "second": range(11, 22)}  # chapters of John
MODEL = "tiny-0.25m"
JOHN = 43
_one_at_a_time = threading.RLock()


@contextmanager
def on_the_reference() -> Iterator[None]:
    """The NumPy kernels on one thread (these matrices are small, and graders run side by side); overflow is no news."""
    with _one_at_a_time, use_backend("reference"), threadpool_limits(1), np.errstate(all="ignore"):
        yield  # each of these is for the whole process, so one at a time


def settings_of(choice: Any) -> tuple[LoraConfig, float]:
    """The config and the rate that a choice asks for. Raises ValueError, saying what is wrong with it.

    A choice is data from a stranger: names must be plain ones, so that no regex of theirs is run.
    """
    if not isinstance(choice, dict):
        raise ValueError(f"a dict of settings is due, not {type(choice).__name__}")
    settings = dict(choice)
    lr = settings.pop("lr", None)
    if unknown := sorted(settings.keys() - set(NAMES)):
        raise ValueError(f"unknown settings: {', '.join(unknown)}; there are: lr, {', '.join(NAMES)}")
    if isinstance(lr, bool) or not isinstance(lr, int | float) or not RATES[0] <= lr <= RATES[1]:
        raise ValueError(f"lr must be a number from {RATES[0]:g} to {RATES[1]:g}, got {_short(lr)}")
    targets = settings.get("target_modules", ["q_proj"])
    if not isinstance(targets, list) and targets != "all-linear":
        raise ValueError('target_modules must be a list of names, or "all-linear"')
    _plain_names("target_modules", targets if isinstance(targets, list) else [])
    _plain_names("exclude_modules", settings.get("exclude_modules") or [])
    for name in ("rank_pattern", "alpha_pattern"):
        if not isinstance(settings.get(name, {}), dict):
            raise ValueError(f"{name} must be a dict")
        _plain_names(name, list(settings.get(name, {})))
    layers = settings.get("layers_to_transform")
    if not (layers is None or type(layers) is int or (type(layers) is list and all(type(n) is int for n in layers))):
        raise ValueError("layers_to_transform must be a number of a block, or a list of them")
    if type(settings.get("use_rslora", False)) is not bool:
        raise ValueError("use_rslora must be True or False")
    return LoraConfig(**settings), float(lr)


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # a whole number with too many digits
        return "a number with thousands of digits"
    return text if len(text) <= 40 else f"{text[:40]}..."


def _plain_names(setting: str, names: Any) -> None:
    if not isinstance(names, list) or len(names) > 100:
        raise ValueError(f"{setting} must be a list of at most 100 names")
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[\w.]{1,60}", name):
            raise ValueError(f"{setting}: {name!r} is no plain name such as 'q_proj' or 'blocks.0.attn.q_proj'")


def attach(choice: Any, seed: int = 0) -> PeftModel:
    """The tiny GPT with the chosen adapter, before any training. Raises ValueError where they do not fit."""
    config, _ = settings_of(choice)
    return get_peft_model(GPT.from_pretrained(MODEL), config, seed=seed)


def adapt(choice: Any, seed: int = 0) -> PeftModel:
    """The tiny GPT with the chosen adapter, trained."""
    _, lr = settings_of(choice)
    return train(attach(choice, seed), lr, seed)


def train(model: PeftModel, lr: float, seed: int = 0) -> PeftModel:
    """``STEPS`` updates of ``ROWS`` x ``LENGTH`` tokens of 1395; the rate rises for ``WARMUP`` steps, then falls."""
    text = training_text()
    optimizer = AdamW(list(model.trainable_parameters().items()), lr=lr, weight_decay=0.0)
    with on_the_reference():
        for step in range(STEPS):
            model(**text.batch(step, batch_size=ROWS, length=LENGTH, seed=seed)).loss.backward()
            for group in optimizer.param_groups:
                group["lr"] = lr * min(1.0, (step + 1) / WARMUP) * (1 - step / STEPS)
            optimizer.step()
            optimizer.zero_grad()
    return model


def gain(model: PeftModel, part: str = "first") -> float:
    """By how many bits per byte the model is better than the base on a held-out part; nan where it diverged."""
    return of_the_base(part) - bits_per_byte(model, part)


@cache
def of_the_base(part: str, translation: str = "wyc") -> float:
    """Its bits per byte."""
    return bits_per_byte(GPT.from_pretrained(MODEL), part, translation)


def bits_per_byte(model: Any, part: str = "first", translation: str = "wyc", rows: int = 96) -> float:
    """On ``rows`` windows, spread over a part of the held-out text; "web" is modern English."""
    text = held_out_text(part, translation)
    with on_the_reference():
        return text.bits_per_byte(evaluate(model, text.windows(batch_size=32, length=LENGTH, limit=rows)).loss)


@cache
def training_text() -> PackedText:
    return PackedText.from_corpus(load_corpus("wyc").split("train"), Tokenizer.shipped())


@cache
def held_out_text(part: str, translation: str = "wyc") -> PackedText:
    """Some chapters of John."""
    verses = load_corpus(translation).split("held_out").verses
    keep = {JOHN * 1000 + chapter for chapter in PARTS[part]}
    chosen = {verse: text for verse, text in verses.items() if verse // 1000 in keep}
    return PackedText.from_corpus(Corpus(f"{translation}, John, {part} part", chosen), Tokenizer.shipped())
