"""Our side of ``benchmarks.gpu``: a Triton kernel on the device, verified against the NumPy reference and timed.

As a program (KERNEL ROWS ...) it prints a line of JSON for each row, and waits for a line before it goes on.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from minitorch_peft.kernels.device import cuda, launch
from minitorch_peft.kernels.device.array import DeviceArray
from minitorch_peft.kernels.device.roofline import A100, H100, total
from minitorch_peft.kernels.device.timing import do_bench
from minitorch_peft.kernels.device.traffic import OURS
from minitorch_peft.kernels.device.triton import triton
from minitorch_peft.kernels.dispatch import FAMILIES
from minitorch_peft.kernels.examples import SIZES, Draw, examples
from minitorch_peft.kernels.four_bit.reference import bfloat16_bits
from minitorch_peft.kernels.verify import described, disagreement

DRAWS = 12
OutOfResources = triton.runtime.errors.OutOfResources
LAYER = SIZES["wide"]._replace(width=4096, rank=16)
"""The shape of a 7B model, whose widest layers lead from 4096 to four times as many."""
OUTPUTS, INPUTS = 4 * LAYER.width, LAYER.width
OF_THE_WEIGHT_ALONE = {"quantize_4bit": (), "dequantize_4bit": ("bfloat16",)}
"""Kernels that have no rows, and what their typical arguments lack to be those of a bfloat16 model."""


def kernels() -> dict[str, Callable]:
    """The Triton function of every kernel that has one."""
    found = {}
    for family, (names, backends) in FAMILIES.items():
        if "triton" in backends:
            module = importlib.import_module(f"minitorch_peft.kernels.{family}.triton")
            found |= {name: getattr(module, name) for name in names if hasattr(module, name)}
    return found


def measured(kernel: str, function: Callable, rows: Sequence[int]) -> Iterator[dict[str, Any]]:
    """A row of timings for each number of rows, or up to one that says what is wrong, or what went wrong."""
    for m in rows[:1] if kernel in OF_THE_WEIGHT_ALONE else rows:
        try:
            text = (wrong_on_draws(kernel, function) if m == rows[0] else None) or wrong(kernel, function, m)
            row = {"kernel": kernel, "rows": m, "wrong": text} if text else timed(kernel, function, m)
        except Exception as error:  # whatever it is, the rows so far are not to be lost
            row = {"kernel": kernel, "rows": m, "wrong": f"{type(error).__name__}: {error}"}
        yield row
        if "wrong" in row:
            return


def wrong_on_draws(kernel: str, function: Callable) -> str | None:
    """How the kernel differs from its reference on drawn arguments in float32, each time in another configuration."""
    for seed in range(DRAWS):
        args = examples()[kernel].drawn(Draw(seed))
        with (
            suppress(OutOfResources),
            launch.use_configuration(seed),
        ):  # too large for the device: the tuner skips it too
            if text := disagreement(kernel, function, args):
                return f"{text} on {described(args)}, configuration {seed}"
    return None


def wrong(kernel: str, function: Callable, rows: int) -> str | None:
    """How the kernel differs from its reference on a model's arguments, in bfloat16."""
    args = typical(kernel, rows)
    if examples()[kernel].exact:
        return disagreement(kernel, function, args)
    rounded = mapped(lambda x: from_bits(bfloat16_bits(x)) if x.dtype == np.float32 else x, args)
    return disagreement(kernel, in_bfloat16(function), rounded, tolerance=2**-7)


def timed(kernel: str, function: Callable, rows: int) -> dict[str, Any]:
    """Microseconds (median, and of the fastest and slowest fifth), and the least that the traffic allows."""
    args = on_device(typical(kernel, rows))
    low, median, high = do_bench(lambda: function(*args), quantiles=(0.2, 0.5, 0.8), budget=300)
    row = {"kernel": kernel, "rows": rows, "us": 1e3 * median, "low us": 1e3 * low, "high us": 1e3 * high}
    gpu = next((gpu for gpu in (H100, A100) if gpu.name in cuda.device().name), None)
    if gpu and kernel in OURS:
        row["bound us"] = 1e6 * total(OURS[kernel](rows, OUTPUTS, INPUTS, LAYER.rank), gpu).seconds
    return row


def typical(kernel: str, rows: int) -> tuple:
    """The arguments in a layer of a 7B model, on so many rows."""
    args = examples()[kernel].typical(Draw(0), LAYER._replace(batch=1, tokens=rows))
    return args + OF_THE_WEIGHT_ALONE.get(kernel, ())


def mapped(change: Callable[[np.ndarray], Any], value: Any) -> Any:
    """``change`` on the arrays in tuples; a quantized weight (a named tuple) is left as it is."""
    if type(value) is tuple:
        return tuple(mapped(change, part) for part in value)
    return change(value) if isinstance(value, np.ndarray) else value


def on_device(value: Any, dtype: str = "bfloat16") -> Any:
    """float32 arrays on the device as ``dtype``, bytes as they are, and all of a quantized weight; ids stay here."""
    if isinstance(value, tuple):
        named = type(value) is not tuple
        parts = [on_device(part, "float32" if named else dtype) for part in value]
        return type(value)(*parts) if named else tuple(parts)
    if not isinstance(value, np.ndarray) or value.dtype not in (np.float32, np.uint8):
        return value
    if value.dtype == np.float32 and dtype == "bfloat16":
        return DeviceArray.from_numpy(bfloat16_bits(np.ascontiguousarray(value)), "bfloat16")
    return DeviceArray.from_numpy(value)


def from_bits(bits: np.ndarray) -> np.ndarray:
    """bfloat16 as float32, which has all of its values."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def in_bfloat16(function: Callable) -> Callable:
    """``function`` from and to float32 on the host, computed on the device in bfloat16."""

    def back(value: Any) -> Any:
        if type(value) is tuple:
            return tuple(map(back, value))
        return from_bits(value.numpy()) if isinstance(value, DeviceArray) else value

    return lambda *args: back(function(*on_device(args)))


def main(kernel: str, *rows: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what else is printed must not stand between the rows
    for row in measured(kernel, kernels()[kernel], [int(m) for m in rows]):
        print(json.dumps(row), file=answers, flush=True)
        sys.stdin.readline()


if __name__ == "__main__":
    main(*sys.argv[1:])
