"""Drawn arguments for every kernel, and what it means that a fast kernel agrees with its reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st
from minitorch_peft.kernels import get, use_backend
from minitorch_peft.kernels.examples import Draw, examples
from minitorch_peft.kernels.four_bit.layout import Quantized
from minitorch_peft.kernels.four_bit.reference import quantize_4bit
from minitorch_peft.kernels.verify import TOLERANCE, disagreement, leaves

FLOAT32, FLOAT64 = np.dtype("float32"), np.dtype("float64")
LAYOUTS = ("plain", "transposed", "every second", "reversed", "read-only")


def laid_out(x: np.ndarray, layout: str) -> np.ndarray:
    """The same values in another memory layout."""
    if layout == "read-only":
        x = x.copy()
        x.flags.writeable = False
    elif x.ndim and layout == "transposed":
        return np.ascontiguousarray(x.T).T
    elif x.ndim and layout == "every second":
        wide = np.full((*x.shape[:-1], 2 * x.shape[-1]), 7, x.dtype)
        wide[..., ::2] = x
        return wide[..., ::2]
    elif x.ndim and layout == "reversed":
        return np.ascontiguousarray(x[::-1])[::-1]
    return x


class Drawn(Draw):
    """What ``Draw`` gives, drawn by Hypothesis (the values of arrays come from a drawn seed), in drawn layouts."""

    def __init__(self, draw: Callable, layouts: tuple[str, ...] = LAYOUTS):
        super().__init__(draw(st.integers(0, 2**32 - 1)))
        self.draw, self.layouts = draw, layouts

    def size(self, most: int = 9, least: int = 0) -> int:
        return self.draw(st.integers(least, most))

    def laid_out(self, x: np.ndarray) -> np.ndarray:
        return laid_out(x, self.pick(*self.layouts))


def run(name: str, *args: Any, backend: str = "numba") -> tuple:
    with use_backend(backend):
        result = get(name, FLOAT32)(*args)
    return result if isinstance(result, tuple) else (result,)


def bits(results: tuple) -> list:
    """The bytes of every array in (nested) tuples, and anything else as it is."""
    return [a.tobytes() if isinstance(a, np.ndarray) else a for a in leaves(results)]


def assert_agrees(name: str, *args: Any, tolerance: float = TOLERANCE) -> None:
    """The float32 Numba kernel gives what the reference gives: values, shapes, dtypes, absent results."""
    with use_backend("numba"):
        wrong = disagreement(name, get(name, FLOAT32), args, tolerance)
    assert wrong is None, f"{name}: {wrong}"


CASES: dict[str, Callable[[Draw], tuple]] = {
    name: example.drawn for name, example in examples().items() if not example.in_place
}


def four_bits(x: np.ndarray) -> Quantized:
    return quantize_4bit(x, compress_statistics=True)


LARGE = {  # above the size at which the work is cut into parts, with remainders everywhere
    "linear_forward": lambda r: (r(301, 97), r(75, 97), r(75)),
    "linear_backward": lambda r: (r(301, 75), r(301, 97), r(75, 97)),
    "lora_linear_forward": lambda r: (r(301, 97), r(75, 97), r(75), r(5, 97), r(75, 5), 2.0),
    "lora_linear_backward": lambda r: (
        r(301, 75), r(301, 97), r(301, 5), r(75, 97), r(5, 97), r(75, 5), 2.0, (True,) * 5,
    ),
    "lora_linear_backward in several steps": lambda r: (
        r(901, 195), r(901, 197), r(901, 17), r(195, 197), r(17, 197), r(195, 17), 2.0, (True,) * 5,
    ),
    "lora_dropout_forward": lambda r: (r(301, 97), r(75, 97), r(75), r(5, 97), r(75, 5), 2.0, 0.3, 7),
    "lora_dropout_backward": lambda r: (
        r(301, 75), r(301, 97), r(301, 5), r(75, 97), r(5, 97), r(75, 5), 2.0, 0.3, 7, (True,) * 5,
    ),
    "lora_stacked_forward": lambda r: (
        r(301, 97), (r(75, 97), r(33, 97)), (r(75), None), (r(5, 97), r(3, 97)), (r(75, 5), r(33, 3)), (2.0, 0.5),
    ),
    "lora_stacked_backward": lambda r: (
        (r(301, 75), r(301, 33)), r(301, 97), (r(301, 5), r(301, 3)), (r(75, 97), r(33, 97)), (r(5, 97), r(3, 97)),
        (r(75, 5), r(33, 3)), (2.0, 0.5),
    ),
    "lora_gathered_forward": lambda r: (
        r(7, 43, 97), r(75, 97), r(75), r(3, 5, 97), r(3, 75, 5), r(3), np.array([2, 0, 0, -1, 1, 2, 2]),
    ),
    "lora_gathered_backward": lambda r: (
        r(7, 43, 75), r(7, 43, 97), r(7, 43, 5), r(75, 97), r(3, 5, 97), r(3, 75, 5), r(3),
        np.array([2, 0, 0, -1, 1, 2, 2]),
    ),
    "philox_uniform": lambda r: (2**40 + 1, 2**32 - 5, (301, 131)),
    "linear_4bit_forward": lambda r: (r(301, 270), four_bits(r(530, 270)), r(530)),
    "linear_4bit_forward of few rows": lambda r: (r(60, 1100), four_bits(r(75, 1100)), None),
    "linear_4bit_backward": lambda r: (r(301, 270), four_bits(r(270, 530))),
    "linear_4bit_backward of few rows": lambda r: (r(60, 75), four_bits(r(75, 1100))),
    "lora_linear_4bit_forward": lambda r: (
        r(301, 270), four_bits(r(530, 270)), r(530), r(5, 270), r(530, 5), 2.0,
    ),
    "lora_linear_4bit_backward": lambda r: (
        r(301, 270), r(301, 530), r(301, 5), four_bits(r(270, 530)), r(5, 530), r(270, 5), 2.0, (True,) * 4,
    ),
    "matmul": lambda r: (r(37, 31, 40), r(37, 40, 33)),
    "matmul of one pair": lambda r: (r(301, 97), r(97, 75)),
    "layer_norm_forward": lambda r: (r(301, 131), r(131), r(131), 1e-5),
    "layer_norm_backward": lambda r: (r(301, 131), r(301, 131), r(131), r(301), np.abs(r(301))),
    "rms_norm_backward": lambda r: (r(301, 131), r(301, 131), r(131), np.abs(r(301))),
    "gelu_forward": lambda r: (r(40001),),
    "softmax_forward": lambda r: (r(301, 131),),
    "softmax_backward": lambda r: (r(301, 131), r(301, 131)),
    "cross_entropy_forward": lambda r: (r(301, 131), np.arange(301) % 131, -100, 0.1),
    "cross_entropy_backward": lambda r: (r(301), r(301, 131), np.arange(301) % 131, r(301), -100, 0.1),
    "embedding_forward": lambda r: (r(50, 129), np.arange(300) ** 2 % 50),
    "embedding_backward": lambda r: (r(300, 129), np.arange(300) ** 2 % 50, 51),
    "rotary_forward": lambda r: (r(3, 5, 67, 34), r(67, 17), r(67, 17)),
    "attention_forward": lambda r: (r(3, 6, 170, 10), r(3, 2, 190, 10), r(3, 2, 190, 10), None, True, 0.3),
    "attention_backward": lambda r: (
        r(3, 6, 170, 10), r(3, 6, 170, 10), r(3, 2, 190, 10), r(3, 2, 190, 10), r(3, 6, 170, 10),
        np.abs(r(3, 6, 170)) + 5, None, True, 0.3,
    ),
    "square_norm": lambda r: (r(40001),),
}  # fmt: skip
