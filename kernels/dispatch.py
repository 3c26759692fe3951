"""Which function runs: one table of kernels, one rule that chooses the implementation.

float32 runs the Numba version where the family has one, every other dtype the NumPy reference. ``MINITORCH_KERNELS``
(``reference``, ``numba`` or ``triton``), or ``use_backend`` for a stretch of code, overrides the rule for float32.
``triton`` means Triton for the families that have it; the others are the CPU's alone and stay with Numba.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

BACKENDS = ("reference", "numba", "triton")

# kernel family -> its kernels, and the backends that it has; kernels/<family>/<backend>.py holds them.
FAMILIES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "linear": (("linear_forward", "linear_backward"), ("reference", "numba")),
    "lora": (("lora_linear_forward", "lora_linear_backward"), ("reference", "numba", "triton")),
    "lora_dropout": (("lora_dropout_forward", "lora_dropout_backward"), ("reference", "numba", "triton")),
    "lora_stacked": (("lora_stacked_forward", "lora_stacked_backward"), ("reference", "numba", "triton")),
    "lora_gathered": (("lora_gathered_forward", "lora_gathered_backward"), ("reference", "numba", "triton")),
    "linear_4bit": (
        ("linear_4bit_forward", "linear_4bit_backward", "lora_linear_4bit_forward", "lora_linear_4bit_backward"),
        ("reference", "numba", "triton"),
    ),
    "matmul": (("matmul",), ("reference", "numba")),
    "norm": (
        ("layer_norm_forward", "layer_norm_backward", "rms_norm_forward", "rms_norm_backward"),
        ("reference", "numba"),
    ),
    "activation": (
        ("gelu_forward", "gelu_backward", "gelu_tanh_forward", "gelu_tanh_backward",
         "silu_forward", "silu_backward", "swiglu_forward", "swiglu_backward"),
        ("reference", "numba"),
    ),
    "softmax": (("softmax_forward", "softmax_backward"), ("reference", "numba")),
    "attention": (("attention_forward", "attention_backward"), ("reference", "numba")),
    "cross_entropy": (("cross_entropy_forward", "cross_entropy_backward"), ("reference", "numba")),
    "embedding": (("embedding_forward", "embedding_backward"), ("reference", "numba")),
    "rotary": (("rotary_forward", "rotary_backward"), ("reference", "numba")),
    "four_bit": (("quantize_4bit", "dequantize_4bit"), ("reference", "numba", "triton")),
    "eight_bit": (("quantize_blockwise", "dequantize_blockwise"), ("reference", "numba")),
    "philox": (("philox_uniform",), ("reference", "numba")),
    "adamw_8bit": (("adamw_8bit_step",), ("reference", "numba")),
    "optimizer": (("adamw_step", "square_norm"), ("reference", "numba")),
}  # fmt: skip

TABLE: dict[str, str] = {name: family for family, (names, _) in FAMILIES.items() for name in names}
"""Kernel name -> family."""

_FLOAT32 = np.dtype(np.float32)
_resolved: dict[tuple[str, np.dtype], Callable] = {}
_override: str | None = None


class NotInstalledError(ImportError):
    """What a kernel runs on is not installed; the message says how to install it."""


def get(name: str, dtype: np.dtype) -> Callable:
    """The function that computes kernel ``name`` on arrays of ``dtype``.

    Raises KeyError for an unknown kernel, ValueError for an unknown backend, NotInstalledError (an ImportError) for a
    backend that was asked for and is not installed.

    >>> gelu = get("gelu_forward", np.dtype("float64"))
    >>> gelu(np.array([-1.0, 0.0, 1.0])).round(3).tolist()
    [-0.159, 0.0, 0.841]
    """
    try:
        return _resolved[name, dtype]
    except KeyError:
        function = _resolved[name, dtype] = _resolve(name, np.dtype(dtype))
        return function


@contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Run float32 kernels on ``backend`` inside a ``with`` block (not thread-safe: for tests and comparisons)."""
    global _override
    before, _override = _override, _checked(backend, "use_backend")
    _resolved.clear()
    try:
        yield
    finally:
        _override = before
        _resolved.clear()


def _resolve(name: str, dtype: np.dtype) -> Callable:
    if name not in TABLE:
        raise KeyError(f"no kernel is called {name!r}; the kernels are: {', '.join(TABLE)}")
    family = TABLE[name]
    backend = _backend(FAMILIES[family][1]) if dtype == _FLOAT32 else "reference"
    if backend == "numba":
        require_numba()
    return getattr(importlib.import_module(f".{family}.{backend}", __package__), name)


def _backend(has: tuple[str, ...]) -> str:
    """The backend for float32: what was asked for, else Numba; but only where the family ``has`` it."""
    asked = _override or os.environ.get("MINITORCH_KERNELS")
    if asked and (_checked(asked, "MINITORCH_KERNELS") == "reference" or asked in has):
        return asked
    if "numba" not in has:
        return "reference"
    if asked:
        return "numba"
    if not has_numba():
        _warn_once()
        return "reference"
    return "numba"


def _checked(backend: str, source: str) -> str:
    if backend not in BACKENDS:
        raise ValueError(f"{source}: unknown backend {backend!r}; expected one of {', '.join(BACKENDS)}")
    return backend


def has_numba() -> bool:
    return importlib.util.find_spec("numba") is not None


def require_numba() -> None:
    """Raise NotInstalledError where Numba is missing."""
    if not has_numba():
        raise NotInstalledError(
            "numba is not installed (pip install numba); MINITORCH_KERNELS=reference does without, several times slower"
        )


_warned = False


def _warn_once() -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            "numba is not installed: float32 runs on the NumPy reference, several times slower (pip install numba)",
            RuntimeWarning,
            stacklevel=4,
        )
