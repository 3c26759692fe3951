"""How parameters start: a value depends on the seed and on the parameter's own name, on nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from minitorch_peft.autograd.random import generator

if TYPE_CHECKING:
    from minitorch_peft.nn.module import Module, Parameter

Init = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def zeros(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.zeros(shape)


def ones(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.ones(shape)


def normal(std: float) -> Init:
    """N(0, std²)."""
    return partial(_normal, std)


def uniform(bound: float) -> Init:
    """U(-bound, bound)."""
    return partial(_uniform, bound)


def kaiming_uniform(a: float = math.sqrt(5)) -> Init:
    """U(-b, b) with b = sqrt(6 / ((1 + a²) fan_in)), fan_in the last axis of (out, in) (He et al. 2015, eq. 10).

    With a = √5 the bound is 1/√fan_in: the start of ``torch.nn.Linear`` and of LoRA's A in ``peft``.
    """

    return partial(_kaiming_uniform, a)


def _normal(std: float, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape) * std


def _uniform(bound: float, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.uniform(-bound, bound, shape)


def _kaiming_uniform(a: float, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    bound = math.sqrt(6 / ((1 + a * a) * max(1, shape[-1])))
    return rng.uniform(-bound, bound, shape)


def initialize(module: Module, seed: int, prefix: str = "") -> None:
    """Give every parameter of ``module`` its starting value, in place."""
    for name, parameter in module.named_parameters():
        fill(parameter, seed, prefix + name)


def fill(parameter: Parameter, seed: int, name: str) -> None:
    """Draw one parameter's starting value from the generator of (seed, name), in place."""
    if parameter.init is None:
        raise ValueError(f"parameter {name!r} has no init: it cannot be initialized, only loaded")
    parameter.data[...] = parameter.init(generator(seed, "init", name), parameter.shape)
    parameter.version.count += 1
