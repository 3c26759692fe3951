"""``--set NAME=VALUE``: a method's settings from text, each in the type that its config declares."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from typing import Any, get_args, get_origin, get_type_hints

from minitorch_peft.analysis.contenders import CONTENDERS, Contender
from minitorch_peft.cli.errors import USAGE, CommandError
from minitorch_peft.peft import METHODS, PeftConfig
from minitorch_peft.peft.patterns import Pattern
from minitorch_peft.peft.registry import method_named
from minitorch_peft.quant import BitsAndBytesConfig

PLAIN_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")


def config_from(method: str, settings: list[str]) -> tuple[PeftConfig, BitsAndBytesConfig]:
    """The config of ``method`` with these NAME=VALUE settings, and how the base is to be stored.

    ``method`` is a method's name, or that of a contender of ``compare``, whose settings are then the start. Names of
    BitsAndBytesConfig are settings too. CommandError for what there is not.
    """
    start = contender(method)
    of_method = method_named(start.method)
    kind = of_method.config
    values: dict[type, dict[str, Any]] = {
        kind: dict(start.settings),
        BitsAndBytesConfig: start.quantization.to_dict(),
    }
    hints = {of: get_type_hints(of) for of in values}
    for text in settings:
        name, equals, value = text.partition("=")
        of = next((of for of in values if name in [f.name for f in fields(of)]), None)
        if not equals or of is None:
            own, stored = (", ".join(f.name for f in fields(of)) for of in values)
            has = f"it has {own}" if own else "it has no settings"
            raise CommandError(
                f"--set {text}: expected NAME=VALUE with a setting of {method!r}; {has}; for the base: {stored}", USAGE
            )
        values[of][name] = parse(text, value, hints[of][name])
    quantization = BitsAndBytesConfig.from_dict(values[BitsAndBytesConfig])
    if start.quantization.load_in_4bit and not quantization.load_in_4bit:
        raise CommandError(
            f"load_in_4bit=false: {method} is {start.method} on a base in four bits; for a dense base use "
            f"--method {start.method}",
            USAGE,
        )
    return of_method.make(values[kind]), quantization


def stored_settings(settings: list[str]) -> set[str]:
    """The names among these NAME=VALUE settings that say how the base is to be stored."""
    return {text.partition("=")[0] for text in settings} & {f.name for f in fields(BitsAndBytesConfig)}


def contender(method: str) -> Contender:
    """The contender that ``method`` names; for a method, itself without settings."""
    if method in METHODS or method in {m.config.peft_type for m in METHODS.values()}:
        return Contender(method, method, method, 0.0)
    named = {c.name: c for c in CONTENDERS if c.name not in METHODS}
    if method not in named:
        raise CommandError(f"unknown method {method!r}: expected one of {', '.join([*METHODS, *named])}", USAGE)
    return named[method]


def registered(method: str) -> str:
    """The registry's name of what ``method`` names, a contender's too."""
    return method_named(contender(method).method).name


def parse(text: str, value: str, hint: Any) -> Any:
    """``value`` as ``hint`` wants it; commas make a list, and so does one plain name where patterns stand."""
    kinds = {int: "a whole number", float: "a number", bool: "true or false"}
    try:
        if hint is bool:
            return {"true": True, "false": False}[value.lower()]
        if hint in kinds:
            return hint(value)
    except (ValueError, KeyError):
        raise CommandError(f"--set {text}: expected {kinds[hint]}", USAGE) from None
    if hint in (Pattern, Pattern | None):
        return pattern(value)
    several = {tuple, list} & {get_origin(kind) for kind in (hint, *get_args(hint))}
    if several and not value.startswith("["):
        if "," in value:
            return [plain(part) for part in pattern(value)]
        one = plain(value)  # a number becomes a list, where only that will do, in the config
        return [one] if isinstance(one, str) and str not in get_args(hint) else one
    return plain(value)


def plain(value: str) -> Any:
    """JSON where it is some, else the text."""
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def pattern(value: str) -> str | list[str]:
    """
    >>> pattern("all-linear"), pattern("q_proj"), pattern("q_proj,v_proj"), pattern(".*attn.*"), pattern("[]")
    ('all-linear', ['q_proj'], ['q_proj', 'v_proj'], '.*attn.*', [])
    """
    listed = plain(value)
    if isinstance(listed, list) and all(isinstance(name, str) for name in listed):
        return listed
    if "," in value:
        return [part.strip() for part in value.split(",") if part.strip()]
    return [value] if PLAIN_NAME.fullmatch(value) else value
