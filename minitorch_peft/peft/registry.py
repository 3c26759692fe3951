"""The table of methods. Tests, documentation, benchmarks and grading iterate it; adding a file adds a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from minitorch_peft.models import GPT
from minitorch_peft.peft.adapter import Adapter
from minitorch_peft.peft.config import PeftConfig
from minitorch_peft.peft.interop import PeftFiles

Shape = Literal["reparam", "around", "tokens", "select"]
Folder = Literal["parameter", "input", "function"]
Start = Literal["bitwise", "rounding", "none"]


@dataclass(frozen=True)
class Method:
    """What the laws need to know of a method.

    ``count(model, config)`` is the number of its trainable parameters, by formula. ``start`` says how close the
    freshly adapted model is to the base. ``examples`` are configs that the laws run. ``peft_files`` translates to
    and from ``peft``'s files, where ``peft`` has the method.
    """

    name: str
    config: type[PeftConfig]
    adapter: type[Adapter]
    shape: Shape
    folder: Folder
    start: Start
    count: Callable[[GPT, Any], int]
    mergeable: bool
    rowwise: bool
    stackable_with: tuple[Shape, ...]
    summary: str
    examples: tuple[PeftConfig, ...]
    peft_files: PeftFiles | None = None


METHODS: dict[str, Method] = {}


def register(method: Method) -> None:
    if method.name in METHODS or any(m.config is method.config for m in METHODS.values()):
        raise ValueError(f"method {method.name!r} or its config is registered already")
    METHODS[method.name] = method


def method_of(config: PeftConfig) -> Method:
    """The method that a config belongs to."""
    for method in METHODS.values():
        if type(config) is method.config:
            return method
    known = ", ".join(m.config.__name__ for m in METHODS.values())
    raise TypeError(f"{type(config).__name__} is no method's config; known: {known}")


def method_named(name: str) -> Method:
    """The method of a registry name or a ``peft_type``."""
    for method in METHODS.values():
        if name in (method.name, method.config.peft_type):
            return method
    raise ValueError(f"unknown method {name!r}; known: {', '.join(METHODS)}")
