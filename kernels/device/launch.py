"""Run a Triton kernel: on NumPy arrays (in the interpreter, or copied to the GPU and back) or on device arrays.

Which of the two is decided where Triton decides it: when the kernel is decorated, by ``TRITON_INTERPRET``.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from .arguments import on_device, refuse_strided
from .driver import NoGPUError, driver
from .interpreter import HostArray
from .triton import triton

COMPILED = {"enable_fp_fusion": False}
"""Options of every compiled kernel: no product and sum become one rounding, so the bits are those of the reference."""

Grid = tuple[int, ...] | Callable[[dict[str, Any]], tuple[int, ...]]


def run(kernel: Any, grid: Grid, *args: Any, **constants: Any) -> None:
    """Run ``kernel`` over ``grid``; it writes into its arguments.

    kernel: a function under ``@triton.jit``, or ``@triton.autotune`` above that. grid: up to three numbers of programs,
    or a function from the constants to them. args: NumPy arrays (C-contiguous; bfloat16 bits through
    ``arguments.argument``), device arrays (``DeviceArray``, torch, CuPy; C-contiguous too), numbers, None, tuples of
    these. constants: the kernel's constexprs, ``num_warps``, ``num_stages``.

    An autotuned kernel is measured over its configurations the first time it meets a new key; not where ``constants``
    name a configuration's entries, not under ``use_configuration``, and not in the interpreter, which takes the first.

    Raises RuntimeError without a GPU unless ``TRITON_INTERPRET=1`` was set before Triton was imported.
    """
    kernel, constants = fixed(kernel, constants)
    if is_interpreted(kernel):
        kernel[grid](*map(_host_argument, args), **constants)
    else:
        _use_cuda()
        with on_device(args) as arguments:
            kernel[grid](*arguments, **COMPILED, **constants)


def is_interpreted(kernel: Any) -> bool:
    """Whether ``kernel`` runs in the interpreter: ``TRITON_INTERPRET`` as it was when the kernel was decorated.

    Raises RuntimeError where the variable has changed since.
    """
    while isinstance(kernel, triton.runtime.Autotuner | triton.runtime.Heuristics):
        kernel = kernel.fn
    interpreted = not isinstance(kernel, triton.runtime.JITFunction)
    if interpreted != triton.knobs.runtime.interpret:
        now = os.environ.get("TRITON_INTERPRET")
        raise RuntimeError(
            f"TRITON_INTERPRET is {now!r} now, but it was {'on' if interpreted else 'off'} when the kernels were "
            "imported, which is when Triton looks at it; set it before the process starts"
        )
    return interpreted


@contextmanager
def use_configuration(number: int) -> Iterator[None]:
    """Run autotuned kernels with their configuration of this number (modulo theirs) inside a ``with`` block.

    Nothing is measured then. Not thread-safe: for tests, which so reach every configuration.
    """
    global _configuration
    before, _configuration = _configuration, number
    try:
        yield
    finally:
        _configuration = before


_configuration: int | None = None


def fixed(kernel: Any, constants: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """``kernel`` without its autotuner where nothing is left to tune, and the constants to run it with."""
    if not isinstance(kernel, triton.runtime.Autotuner):
        return kernel, constants
    if set(kernel.configs[0].kwargs) & set(constants):
        return kernel.fn, constants
    number = 0 if _configuration is None and is_interpreted(kernel) else _configuration
    if number is None:
        return kernel, constants
    return kernel.fn, {**kernel.configs[number % len(kernel.configs)].all_kwargs(), **constants}


@functools.cache
def _use_cuda() -> None:
    """Let Triton use the CUDA driver. Raises RuntimeError where it cannot: no GPU, or a torch that would hide it.

    Left to itself, Triton asks each of its backends; the one for AMD imports torch where that is installed, and
    Triton then relies on what torch says of the GPU.
    """
    driver()
    if "torch" not in sys.modules:
        triton.runtime.driver.set_active(triton.backends.backends["nvidia"].driver())
    elif not sys.modules["torch"].cuda.is_available():
        raise NoGPUError("torch is imported in this process, and it sees none (built without CUDA?)")


def _host_argument(argument: Any) -> Any:
    if isinstance(argument, tuple):
        return tuple(map(_host_argument, argument))
    if isinstance(argument, np.ndarray):
        return HostArray(argument)
    return argument.item() if isinstance(argument, np.generic) else refuse_strided(argument)
