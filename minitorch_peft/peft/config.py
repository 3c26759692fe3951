"""Configs: a method's settings, under ``peft``'s names."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from typing import Any, ClassVar, Self, get_origin, get_type_hints

from minitorch_peft.models import GPT
from minitorch_peft.peft.patterns import Pattern, by_path, check_keys, target_leaves


@dataclass
class PeftConfig:
    """Base of every method's config. ``peft_type`` is ``peft``'s name of the method, or ours where it has none.

    Tuples and sets become lists, so that a config is the same before and after a JSON file; and so does one number
    where a list of them is wanted. ValueError for what is not of its kind.
    """

    peft_type: ClassVar[str]

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, tuple | set | frozenset):
                setattr(self, f.name, list(value) if isinstance(value, tuple) else sorted(value))
        kind: Any = type(self)
        for name, hint in hints_of(kind).items():
            setattr(self, name, of_kind(name, getattr(self, name), hint))

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold, with ``peft_type``; the inverse of :meth:`from_dict`."""
        return {"peft_type": self.peft_type, **asdict(self)}

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> Self:
        """The config of these settings; a name that it does not have is an error."""
        settings = {k: v for k, v in settings.items() if k != "peft_type"}
        known = [f.name for f in fields(cls)]
        if unknown := sorted(settings.keys() - set(known)):
            has = f"it has: {', '.join(known)}" if known else "it has no settings"
            raise ValueError(f"{cls.__name__} has no {', '.join(unknown)}; {has}")
        return cls(**settings)


@cache
def hints_of(config: type[Any]) -> dict[str, Any]:
    """Setting to type hint."""
    hints = get_type_hints(config)
    return {f.name: hints[f.name] for f in fields(config)}


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def are_whole(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_whole, value))


def is_pattern(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(name, str) for name in value))


KINDS: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    bool: ("True or False", lambda v: isinstance(v, bool)),
    float: ("a number", is_number),
    float | None: ("a number or None", lambda v: v is None or is_number(v)),
    list[int]: ("a list of whole numbers", are_whole),
    Pattern: ("a list of names or a regex", is_pattern),
    Pattern | None: ("a list of names, a regex or None", lambda v: v is None or is_pattern(v)),
    int | list[int] | None: ("whole numbers or None", lambda v: v is None or is_whole(v) or are_whole(v)),
}
"""What a hint says in words, and what it allows. Where a method knows better words for one, it has a check itself."""


def of_kind(name: str, value: Any, hint: Any) -> Any:
    """``value`` as ``hint`` has it; ValueError where it is of another kind.

    >>> of_kind("leave_out", 0, list[int]), of_kind("layers", 2, str | list[int])
    ([0], [2])
    """
    if is_whole(value) and hint in (list[int], str | list[int]):
        return [value]
    words, allows = KINDS.get(hint, ("", lambda v: True))
    if get_origin(hint) is dict:
        words, allows = "a dict from names to values", lambda v: isinstance(v, dict)
    if not allows(value):
        raise ValueError(f"{name} must be {words}, got {value!r}")
    return value


def check_count(name: str, value: Any) -> None:
    if not is_whole(value) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


def check_dropout(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1), got {value!r}")


def check_positive(name: str, value: Any, other: str = "") -> None:
    if not is_number(value) or not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive number, {other}got {value!r}")


@dataclass
class LowRankConfig(PeftConfig):
    """Low-rank changes of chosen layers: which layers, of which rank r, with which factor s = alpha / r.

    ``rank_pattern`` and ``alpha_pattern`` give the targets that they name a value of their own. ``use_rslora``:
    s = alpha / √r (Kalajdzievski 2023), so that a larger r does not mean smaller steps.

    >>> from minitorch_peft.peft import LoraConfig
    >>> LoraConfig(r=4, lora_alpha=8, rank_pattern={"v_proj": 2}).scaling("blocks.0.attn.v_proj")
    4.0
    """

    r: int = 8
    lora_alpha: float = 8
    target_modules: Pattern = ("q_proj", "v_proj")
    layers_to_transform: int | list[int] | None = None
    exclude_modules: Pattern | None = None
    use_rslora: bool = False
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        for r in (self.r, *self.rank_pattern.values()):
            check_count("r", r)
        for alpha in (self.lora_alpha, *self.alpha_pattern.values()):
            check_positive("lora_alpha", alpha)

    def targets(self, model: GPT) -> dict[str, Any]:
        """Path to module of every layer that the config names; ValueError where a name fits none."""
        found = target_leaves(model, self.target_modules, self.layers_to_transform, self.exclude_modules)
        check_keys("rank_pattern", self.rank_pattern, list(found))
        check_keys("alpha_pattern", self.alpha_pattern, list(found))
        for path, leaf in found.items():
            if (r := self.rank(path)) > (most := min(leaf.in_features, leaf.out_features)):
                raise ValueError(f"r={r} is above the rank of {path} ({leaf!r}): at most {most}")
        return found

    def rank(self, path: str) -> int:
        return by_path(self.rank_pattern, path, self.r)

    def scaling(self, path: str) -> float:
        """The factor s of the change of the target at ``path``."""
        # BEGIN SOLUTION(task="3.6")
        r = self.rank(path)
        return by_path(self.alpha_pattern, path, self.lora_alpha) / (math.sqrt(r) if self.use_rslora else r)
        # END SOLUTION
