"""Where methods attach: patterns over the base's own names, and putting wrappers in and taking them out.

Paths are always those of the *base*: a wrapper is transparent, so ``blocks.0.attn.q_proj`` names the same place
whatever has been wrapped around it, its block or the whole stack.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase

from minitorch_peft.nn import Module, Parameter

Pattern = str | Sequence[str]


class Wrapper(Module):
    """A module around another one, ``base_layer``: the form in which adapters stand in the model."""

    base_layer: Module

    @property
    def base(self) -> Module:
        """The base's own module, under all wrappers."""
        return unwrap(self)


def unwrap(module: Module) -> Module:
    while isinstance(module, Wrapper):
        module = module.base_layer
    return module


# -- the base's tree, seen through wrappers ------------------------------------------------------------------
def base_modules(model: Module, prefix: str = "") -> Iterator[tuple[str, Module]]:
    """(path, module) of every module of the base, parents first."""
    module = unwrap(model)
    if prefix:
        yield prefix, module
    for name, child in module.named_children():
        yield from base_modules(child, f"{prefix}.{name}" if prefix else name)


def base_parameters(model: Module) -> Iterator[tuple[str, Parameter]]:
    """(path, parameter) of every parameter that stands in the base's tree."""
    for path, module in [("", unwrap(model)), *base_modules(model)]:
        for name, value in vars(module).items():
            if isinstance(value, Parameter):
                yield (f"{path}.{name}" if path else name), value


def adaptable(model: Module) -> list[str]:
    """Paths of the leaves that hold a weight matrix: Linear, Embedding and whatever shares their interface."""
    return [path for path, module in base_modules(model) if hasattr(module, "dense_weight")]


def slot(model: Module, path: str) -> tuple[Module, str]:
    """The base module that holds ``path``, and the attribute's name there."""
    parent_path, _, name = path.rpartition(".")
    parent = unwrap(model)
    for part in parent_path.split(".") if parent_path else ():
        parent = unwrap(parent.get(part))
    return parent, name


# -- patterns ------------------------------------------------------------------------------------------------
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
        ValueError: the pattern, or one entry of the list, matches nothing; the nearest names are listed.
    """
    candidates = list(candidates)
    if isinstance(pattern, str):
        chosen = [c for c in candidates if re.fullmatch(pattern, c)]
        if not chosen:
            raise ValueError(f"the regex {pattern!r} matches no {what} in full; {nearest(pattern, candidates)}")
        return chosen
    if not list(pattern):
        raise ValueError(f"an empty list names no {what}")
    for entry in pattern:
        if not any(matches(entry, c) for c in candidates):
            raise ValueError(f"{entry!r} matches no {what}; {nearest(entry, candidates)}")
    return [c for c in candidates if any(matches(entry, c) for entry in pattern)]


def nearest(entry: str, candidates: list[str]) -> str:
    """The names that the writer of ``entry`` may have meant, shortest first."""
    names = sorted({".".join(c.split(".")[i:]) for c in candidates for i in range(c.count(".") + 1)}, key=len)
    close = difflib.get_close_matches(entry, names, n=3, cutoff=0.3)
    last = sorted({c.rpartition(".")[2] for c in candidates})
    return f"nearest: {', '.join(close)}" if close else f"there are: {', '.join(last)}"


def target_leaves(
    model: Module,
    pattern: Pattern,
    layers_to_transform: int | Sequence[int] | None = None,
    exclude_modules: Pattern | None = None,
) -> list[str]:
    """The weight-holding leaves that a config's targets name, as ``peft`` reads them.

    ``"all-linear"`` is every one that multiplies by its weight, without the head.
    """
    leaves = adaptable(model)
    if pattern == "all-linear":
        linear = [p for p, m in base_modules(model) if p in leaves and not m.takes_ids]  # type: ignore[attr-defined]
        chosen = [p for p in linear if p != "lm_head"]
    else:
        chosen = select(pattern, leaves, "layer with a weight matrix (a Linear or an Embedding)")
    if layers_to_transform is not None:
        layers = {layers_to_transform} if isinstance(layers_to_transform, int) else set(layers_to_transform)
        have = {layer_index(p) for p in leaves} - {None}
        if not layers <= have:
            raise ValueError(f"layers_to_transform names {sorted(layers - have)}; the model has 0..{len(have) - 1}")
        chosen = [p for p in chosen if layer_index(p) in layers]
    if exclude_modules is not None:
        excluded = set(select(exclude_modules, chosen, "targeted layer"))
        chosen = [p for p in chosen if p not in excluded]
    if not chosen:
        raise ValueError("after layers_to_transform and exclude_modules no target is left")
    return chosen


def layer_index(path: str) -> int | None:
    """The block that a path lies in: ``blocks.3.attn`` gives 3, a path outside the blocks None."""
    parts = path.split(".")
    return int(parts[1]) if parts[0] == "blocks" and len(parts) > 1 else None


# -- in and out ----------------------------------------------------------------------------------------------
def inject(model: Module, paths: Iterable[str], wrap: Callable[[Module, str], Wrapper]) -> dict[str, Wrapper]:
    """Put ``wrap(module, path)`` around the module at each path, outside of wrappers already there."""
    wrappers = {}
    for path in paths:
        parent, name = slot(model, path)
        wrappers[path] = wrap(parent.get(name), path)
        setattr(parent, name, wrappers[path])
    return wrappers


def eject(model: Module, wrappers: dict[str, Wrapper]) -> None:
    """Take wrappers out again, from wherever in the chain they stand: the inverse of :func:`inject`."""
    for path, wrapper in wrappers.items():
        parent, name = slot(model, path)
        here: Module = parent.get(name)
        if here is wrapper:
            setattr(parent, name, wrapper.base_layer)
            continue
        while isinstance(here, Wrapper) and here.base_layer is not wrapper:
            here = here.base_layer
        if not isinstance(here, Wrapper):
            raise ValueError(f"nothing to eject at {path!r}: this wrapper does not stand there")
        here.base_layer = wrapper.base_layer
