"""How a config names places in the model: lists of names, regexes, ``"all-linear"``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from minitorch_peft.nn import Module
from minitorch_peft.peft.inject import base_modules

Pattern = str | Sequence[str]
V = TypeVar("V")


def matches(entry: str, path: str) -> bool:
    """Does ``entry`` name ``path`` or a dotted suffix of it? ``*`` is one segment, ``**`` any number.

    >>> matches("q_proj", "blocks.0.attn.q_proj"), matches("blocks.*", "blocks.0.attn.q_proj")
    (True, False)
    >>> matches("blocks.**.q_proj", "blocks.0.attn.q_proj")
    True
    """
    segments = path.split(".")
    return any(_match(entry.split("."), segments[i:]) for i in range(len(segments)))


def _match(entry: list[str], path: list[str]) -> bool:
    if not entry:
        return not path
    if entry[0] == "**":
        return any(_match(entry[1:], path[i:]) for i in range(len(path) + 1))
    return bool(path) and fnmatchcase(path[0], entry[0]) and _match(entry[1:], path[1:])


def select(pattern: Pattern, candidates: Iterable[str], what: str = "module") -> list[str]:
    """The candidates that ``pattern`` names: a list of names, or one regex that must match a whole path.

    Raises:
        ValueError: the pattern, or one entry of the list, matches nothing (the nearest names are listed); or it
            is no regex.
    """
    candidates = list(candidates)
    if isinstance(pattern, str):
        chosen = [c for c in candidates if regex(pattern).fullmatch(c)]
        if not chosen:
            raise ValueError(
                f"the regex {pattern!r} matches no {what} in full (a name goes into a list: [{pattern!r}]); "
                f"{nearest(pattern, candidates)}"
            )
        return chosen
    if not list(pattern):
        raise ValueError(f"an empty list names no {what}")
    for entry in pattern:
        if not any(matches(entry, c) for c in candidates):
            raise ValueError(f"{entry!r} matches no {what}; {nearest(entry, candidates)}")
    return [c for c in candidates if any(matches(entry, c) for entry in pattern)]


def nearest(entry: str, candidates: Iterable[str]) -> str:
    """The names that the writer of ``entry`` may have meant, the likeliest first; or what there is."""
    paths = [c.split(".") for c in candidates]
    last = entry.split(".")[-1]
    close = [".".join(path[-2:]) for path in paths if path[-1] == last]  # the right name, in another place
    if not close:
        suffixes = {".".join(path[i:]) for path in paths for i in range(len(path)) if not path[i].isdigit()}
        close = difflib.get_close_matches(entry, sorted(suffixes, key=len), n=3, cutoff=0.5)
    if close:
        return f"nearest: {', '.join(list(dict.fromkeys(close))[:3])}"
    return f"there are: {', '.join(dict.fromkeys(path[-1] for path in paths)) or 'none'}"


def by_path(patterns: Mapping[str, V], path: str, default: V) -> V:
    """The value of the first pattern that the end of ``path`` matches, as ``peft`` reads ``rank_pattern``.

    A key is a name, a dotted suffix, or a regex for one.

    >>> by_path({"v_proj": 2, r"blocks\\.[01]\\..*": 4}, "blocks.0.attn.q_proj", 8)
    4
    """
    found = (value for key, value in patterns.items() if regex(rf"(.*\.)?({key})").fullmatch(path))
    return next(found, default)


def check_keys(name: str, patterns: Mapping[str, V], paths: Sequence[str]) -> None:
    """Raise ValueError where a key of ``rank_pattern`` or its like matches none of the targets."""
    for key in patterns:
        if not any(by_path({key: True}, path, False) for path in paths):
            raise ValueError(f"{name}: {key!r} matches no target; {nearest(key, paths)}")


def regex(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regex: {error}") from None


def target_leaves(
    model: Module,
    pattern: Pattern,
    layers_to_transform: int | Sequence[int] | None = None,
    exclude_modules: Pattern | None = None,
) -> dict[str, Any]:
    """Path to module of the weight-holding leaves that a config's targets name, as ``peft`` reads them.

    ``"all-linear"`` is every one that multiplies by its weight, without the head.
    """
    leaves: dict[str, Any] = {path: module for path, module in base_modules(model) if hasattr(module, "dense_weight")}
    if pattern == "all-linear":
        chosen = [path for path, m in leaves.items() if not m.takes_ids and path != "lm_head"]
    else:
        chosen = select(pattern, leaves, "layer with a weight matrix (a Linear or an Embedding)")
    if layers_to_transform is not None:
        wanted = {layers_to_transform} if isinstance(layers_to_transform, int) else set(layers_to_transform)
        have = {layer_index(path) for path in leaves} - {None}
        if not wanted <= have:
            raise ValueError(f"layers_to_transform names {sorted(wanted - have)}, the blocks are 0..{len(have) - 1}")
        chosen = [path for path in chosen if layer_index(path) in wanted]
    if exclude_modules is not None:
        excluded = set(select(exclude_modules, chosen, "targeted layer"))
        chosen = [path for path in chosen if path not in excluded]
    if not chosen:
        raise ValueError("after layers_to_transform and exclude_modules no target is left")
    return {path: leaves[path] for path in chosen}


def layer_index(path: str) -> int | None:
    """The block that a path lies in: ``blocks.3.attn`` gives 3, a path outside the blocks None."""
    parts = path.split(".")
    return int(parts[1]) if parts[0] == "blocks" and len(parts) > 1 else None
