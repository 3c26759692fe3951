"""The table of methods. Tests, documentation, benchmarks and grading iterate it; adding a file adds a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
    and from ``peft``'s files, where ``peft`` has the method. ``variant`` are the settings by which a config that
    several methods share is this one's (``LoraConfig(use_dora=True)`` is DoRA). ``companions`` are adapters that must
    be attached first, by name, where a method builds on others.
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
    variant: Mapping[str, Any] = field(default_factory=dict)
    companions: Mapping[str, PeftConfig] = field(default_factory=dict)

    def is_of(self, config: PeftConfig) -> bool:
        """Is ``config`` one of this method's? A method with more in ``variant`` comes first: see :func:`method_of`."""
        return type(config) is self.config and all(getattr(config, k) == v for k, v in self.variant.items())

    def make(self, settings: Mapping[str, Any]) -> PeftConfig:
        """This method's config with ``settings``; ValueError for one that it has not, or that makes it another's."""
        config = self.config.from_dict({**self.variant, **settings})
        if (found := method_of(config)) is not self:
            decisive = self.variant.keys() | found.variant.keys()
            named = ", ".join(f"{k}={v!r}" for k, v in settings.items() if k in decisive)
            raise ValueError(f"{named}: this is the method {found.name!r} then, not {self.name!r}; ask for that one")
        return config


METHODS: dict[str, Method] = {}


def register(method: Method) -> None:
    twins = [m.name for m in METHODS.values() if m.config is method.config and m.variant == method.variant]
    if method.name in METHODS or twins:
        raise ValueError(f"method {method.name!r} or its config is registered already")
    METHODS[method.name] = method


def method_of(config: PeftConfig) -> Method:
    """The method that a config belongs to."""
    found = [method for method in METHODS.values() if method.is_of(config)]
    if found:
        return max(found, key=lambda method: len(method.variant))
    known = ", ".join(dict.fromkeys(m.config.__name__ for m in METHODS.values()))
    raise TypeError(f"{type(config).__name__} is no method's config; known: {known}")


def method_named(name: str) -> Method:
    """The method of a registry name or a ``peft_type``; of those that share a type, the one without a variant."""
    for method in METHODS.values():
        if name == method.name or (name == method.config.peft_type and not method.variant):
            return method
    raise ValueError(f"unknown method {name!r}; known: {', '.join(METHODS)}")


def method_of_settings(settings: Mapping[str, Any]) -> Method:
    """The method of a saved config: that of its ``peft_type``, and of the variant that its settings switch on."""
    name = str(settings.get("peft_type"))
    found = [
        m for m in METHODS.values()
        if name in (m.name, m.config.peft_type) and all(settings.get(k) == v for k, v in m.variant.items())
    ]  # fmt: skip
    return max(found, key=lambda method: len(method.variant)) if found else method_named(name)
