"""Settings that name what is not adapted: the part of a config that has no effect, though the rest has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from minitorch_peft.peft.findings import Finding, failure, remark
from minitorch_peft.peft.patterns import by_path, layer_index, matches

if TYPE_CHECKING:
    from minitorch_peft.peft.adapter import Adapter


def settings_findings(adapter: Adapter) -> Iterator[Finding]:
    paths = [*adapter.wrappers, *adapter.selected, *adapter.reparametrized]
    layers = getattr(adapter.config, "layers_to_transform", None)
    yield from unused_targets(adapter, paths, layers)
    unused = [] if layers is None else unused_layers(layers, paths)
    if unused:
        problem = f"of the blocks {layers}, nothing is adapted in {', '.join(map(str, unused))}"
        advice = "leave them out, or name targets that stand there"
        yield failure("unmatched-layer", f"{adapter.name}: layers_to_transform", problem, advice)
    for name in ("rank_pattern", "alpha_pattern"):
        for key in shadowed(getattr(adapter.config, name, None) or {}, paths):
            problem = f"{key!r} decides nothing: keys before it match all that it matches"
            yield remark("shadowed-pattern", f"{adapter.name}: {name}", problem, "put it before them, or leave it out")


def unused_targets(adapter: Adapter, paths: list[str], layers: Any) -> Iterator[Finding]:
    """Entries of a list of targets that match something of the model, but nothing of what is adapted in the end."""
    targets = getattr(adapter.config, "target_modules", None)
    for entry in targets if isinstance(targets, list) else ():
        if paths and not any(matches(entry, path) for path in paths):
            why = f"layers_to_transform={layers} keeps" if layers is not None else "the other settings keep"
            problem = f"{entry!r} names only what {why} out: nothing of it is adapted"
            advice = "leave it out, or attach a second adapter for it"
            yield failure("unmatched-target", f"{adapter.name}: target_modules", problem, advice)


def unused_layers(layers: Any, paths: list[str]) -> list[int]:
    wanted = [layers] if isinstance(layers, int) else list(layers)
    return sorted(set(wanted) - {layer_index(path) for path in paths})


def shadowed(patterns: Mapping[str, Any], paths: list[str]) -> list[str]:
    """Keys of a ``rank_pattern`` that no target takes its value from."""
    if not isinstance(patterns, dict):
        return []
    used = {by_path({key: key for key in patterns}, path, "") for path in paths}
    return [key for key in patterns if key not in used]
