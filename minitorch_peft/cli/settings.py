"""``--set NAME=VALUE``: a method's settings from text, each in the type that its config declares."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from typing import Any, get_type_hints

from minitorch_peft.cli.errors import USAGE, CommandError
from minitorch_peft.peft import METHODS, PeftConfig
from minitorch_peft.peft.patterns import Pattern
from minitorch_peft.peft.registry import method_named

PLAIN_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")


def config_from(method: str, settings: list[str]) -> PeftConfig:
    """The config of ``method`` with these NAME=VALUE settings; CommandError for what it does not have."""
    if method not in METHODS and method not in {m.config.peft_type for m in METHODS.values()}:
        raise CommandError(f"unknown method {method!r}: expected one of {', '.join(METHODS)}", USAGE)
    kind = method_named(method).config
    hints, known = get_type_hints(kind), [f.name for f in fields(kind)]
    values: dict[str, Any] = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals or name not in known:
            has = f"it has {', '.join(known)}" if known else "it has no settings"
            raise CommandError(f"--set {text}: expected NAME=VALUE with a setting of {method!r}; {has}", USAGE)
        values[name] = parse(text, value, hints[name])
    return kind.from_dict(values)


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
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def pattern(value: str) -> str | list[str]:
    """
    >>> pattern("all-linear"), pattern("q_proj"), pattern("q_proj,v_proj"), pattern(".*attn.*")
    ('all-linear', ['q_proj'], ['q_proj', 'v_proj'], '.*attn.*')
    """
    if "," in value:
        return [part.strip() for part in value.split(",") if part.strip()]
    return [value] if PLAIN_NAME.fullmatch(value) else value
