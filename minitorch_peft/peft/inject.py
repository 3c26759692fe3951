"""Where methods attach: the base's tree, seen through wrappers, and putting wrappers in and taking them out.

Paths are always those of the *base*: a wrapper is transparent, so ``blocks.0.attn.q_proj`` names the same place
whatever has been wrapped around it, its block or the whole stack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from minitorch_peft.nn import Module, Parameter


class Wrapper(Module):
    """A module around another one, ``base_layer``: the form in which adapters stand in the model.

    What it lacks itself is looked up in what it wraps, so that ``model.embed.tokens`` works with ``embed`` wrapped.
    """

    base_layer: Module

    @property
    def base(self) -> Any:
        """The base's own module, under all wrappers."""
        return unwrap(self)

    def __getattr__(self, name: str) -> Any:
        base = vars(self).get("base_layer")  # not there yet while it is being built or copied
        if base is None or not hasattr(base, name):
            raise AttributeError(f"{type(self).__name__} has no {name!r}, nor has what it wraps")
        return getattr(base, name)


W = TypeVar("W", bound=Wrapper)


def unwrap(module: Module) -> Module:
    while isinstance(module, Wrapper):
        module = module.base_layer
    return module


# -- the base's tree -----------------------------------------------------------------------------------------
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


def base_buffers(model: Module) -> Iterator[tuple[str, np.ndarray]]:
    """(path, array) of every buffer in the base's tree: what it stores beside parameters."""
    for path, module in [("", unwrap(model)), *base_modules(model)]:
        for name, value in vars(module).items():
            if isinstance(value, np.ndarray):
                yield (f"{path}.{name}" if path else name), value


def base_constants(model: Module) -> dict[str, np.ndarray]:
    """Path to array of what gives those buffers their meaning."""
    return {f"{path}.{name}": array for path, m in base_modules(model) for name, array in m.constants().items()}


def packed_sizes(model: Module) -> dict[str, int]:
    """The weights that are stored in fewer bits and cannot be trained, as path to number of values."""
    return {f"{path}.weight": m.packed_parameters for path, m in base_modules(model) if m.packed_parameters}


def parameter_sizes(model: Module) -> dict[str, int]:
    """Path to number of values of everything that the base knows: parameters, and weights stored in fewer bits."""
    return {**{path: p.data.size for path, p in base_parameters(model)}, **packed_sizes(model)}


def slot(model: Module, path: str) -> tuple[Module, str]:
    """The base module that holds ``path``, and the attribute's name there."""
    parent_path, _, name = path.rpartition(".")
    parent = unwrap(model)
    for part in parent_path.split(".") if parent_path else ():
        parent = unwrap(parent.get(part))
    return parent, name


def base_module(model: Module, path: str) -> Any:
    """The base's own module at ``path``."""
    parent, name = slot(model, path)
    return unwrap(parent.get(name))


def replace_base_module(model: Module, path: str, module: Module) -> None:
    """Put ``module`` in place of the base's own at ``path``, under whatever wraps it."""
    parent, name = slot(model, path)
    here = parent.get(name)
    if not isinstance(here, Wrapper):
        setattr(parent, name, module)
        return
    while isinstance(here.base_layer, Wrapper):
        here = here.base_layer
    here.base_layer = module


# -- in and out ----------------------------------------------------------------------------------------------
def inject(model: Module, paths: Iterable[str], wrap: Callable[[Module, str], W]) -> dict[str, W]:
    """Put ``wrap(module, path)`` around the module at each path, outside of wrappers already there.

    All are made before the first is put in: where one cannot be made, the model is as it was.
    """
    slots = {path: slot(model, path) for path in paths}
    wrappers = {path: wrap(parent.get(name), path) for path, (parent, name) in slots.items()}
    for path, (parent, name) in slots.items():
        setattr(parent, name, wrappers[path])
    return wrappers


def eject(model: Module, wrappers: Mapping[str, Wrapper]) -> None:
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
