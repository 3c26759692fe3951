"""The two random matrices of VeRA: whose rows are whose, and ``peft``'s values of them, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from minitorch_peft.models import GPT
from minitorch_peft.peft.inject import base_module
from minitorch_peft.peft.interop import HFModule, hf_modules


class Projection(NamedTuple):
    """The matrices that an adapter's layers share, and the first row of B of each layer."""

    A: np.ndarray
    B: np.ndarray
    first: dict[str, int]


def draw(model: GPT, targets: Mapping[str, Any], r: int, key: int, dtype: np.dtype) -> Projection:
    """A (r, in) and B (out, r), uniform with variance 2 / in and 2 / r (He et al. 2015, eq. 10)."""
    first: dict[str, int] = {}
    ins, outs = [], []
    for module in modules_of(model, targets):
        widths = [base_module(model, path).out_features for path in module.ours]
        first |= dict(zip(module.ours, np.cumsum([0, *widths]).tolist(), strict=False))
        ins.append(base_module(model, module.ours[0]).in_features)
        outs.append(sum(widths))
    twister = np.random.RandomState(key & 0xFFFFFFFF)
    A, B = (torch_uniform(twister, shape) for shape in ((r, max(ins)), (max(outs), r)))
    return Projection(A.astype(dtype), B.astype(dtype), first)


def modules_of(model: GPT, targets: Mapping[str, Any]) -> list[HFModule]:
    """The modules of ``transformers`` that have a target; of a model that is of no family there, the targets."""
    try:
        modules = hf_modules(model.config)
    except ValueError:
        modules = [HFModule(path, (path,)) for path in targets]
    return [m for m in modules if any(path in targets for path in m.ours)]


def torch_uniform(twister: np.random.RandomState, shape: tuple[int, int]) -> np.ndarray:
    """U(-b, b), b = √(6 / columns), in float32 as ``torch.Tensor.uniform_`` draws it: 24 bits of 32 for each number."""
    bound = float(np.float32(math.sqrt(3.0) * (math.sqrt(2.0) / math.sqrt(shape[1]))))
    bits = twister.randint(0, 1 << 32, shape, np.uint32) & np.uint32(0xFFFFFF)
    return (bits * 2.0**-24 * (2 * bound) - bound).astype(np.float32)
