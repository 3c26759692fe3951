"""What benchmarks.kernels compares: kernels at sizes, each with the peers that do the same work."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from minitorch_peft.kernels import FAMILIES, TABLE, get
from minitorch_peft.kernels.examples import SIZES, Draw, examples

FLOAT32 = np.dtype(np.float32)


class Case(NamedTuple):
    """One row of the table. ``variant``: how the arguments differ from the kernel's example, see ``arguments``."""

    kernel: str
    size: str
    peers: tuple[str, ...] = ()
    variant: str = ""
    tolerance: float = 1e-3
    """How far a peer's result may be from ours, relative to its norm; infinite where both draw random numbers."""

    @property
    def name(self) -> str:
        """What the contenders are asked for."""
        return "/".join(filter(None, (self.kernel, self.size, self.variant)))

    def goal(self, peer: str) -> float | None:
        """What the project sets out to reach against this peer, if anything."""
        if peer == "unfused":
            return 1.2 if self.kernel.startswith("lora_") else None
        if self.kernel == "quantize_4bit":
            return {"bitsandbytes": 20}.get(peer)
        if self.kernel == "dequantize_4bit":
            return {"bitsandbytes": 7, "bitsandbytes' C": 1}.get(peer)
        return 1 if peer == "PyTorch" else None

    @property
    def share_goal(self) -> float | None:
        """The share of the machine's copy rate that it sets out to reach, if any."""
        return 0.8 if self.kernel == "dequantize_4bit" else None


def named(name: str) -> Case:
    """The case without its peers.

    >>> named("dequantize_4bit/wide/plain out").variant
    'plain out'
    """
    kernel, size, *variant = name.split("/")
    return Case(kernel, size, variant="".join(variant))


def arguments(case: Case) -> tuple:
    """The arguments of our kernel, the same in every process: its example, but for the words of the variant.

    ``plain``: without double quantization. ``bfloat16``: into that. ``out``: into a buffer that is there.
    """
    args = examples()[case.kernel].typical(Draw(0), SIZES[case.size])
    if case.kernel == "quantize_4bit" and case.variant == "plain":
        return args[0], 64, "nf4", False
    if case.kernel == "dequantize_4bit":
        return _dequantize(case)
    return args


def _dequantize(case: Case) -> tuple:
    words = case.variant.split()
    x, *_ = examples()["quantize_4bit"].typical(Draw(0), SIZES[case.size])
    q = get("quantize_4bit", FLOAT32)(x, 64, "nf4", "plain" not in words)
    bfloat16 = "bfloat16" in words
    out = np.empty(q.shape, np.uint16 if bfloat16 else np.float32) if "out" in words else None
    return q, "bfloat16" if bfloat16 else "float32", out


def copy_arguments() -> tuple[np.ndarray, np.ndarray]:
    """Two arrays of 64 MiB, more than the caches hold."""
    return np.ones(16 << 20, np.float32), np.zeros(16 << 20, np.float32)


def product_arguments() -> tuple[np.ndarray, np.ndarray]:
    draw = Draw(0)
    return draw.array(2048, 2048), draw.array(2048, 2048)


def select(names: list[str] | None, size: str | None) -> list[Case]:
    """The cases of these kernels (or stems, or families) and this size. Raises ValueError if there is none."""
    for name in names or []:
        if name not in FAMILIES and not any(name in (kernel, stem(kernel)) for kernel in TABLE):
            raise ValueError(f"no kernel or family is called {name!r}; python -m minitorch_peft.kernels --list")
    chosen = [
        case
        for case in CASES
        if (size is None or case.size == size)
        and (not names or {case.kernel, TABLE[case.kernel], stem(case.kernel)} & set(names))
    ]
    if not chosen:
        raise ValueError(f"no case matches; sizes: {', '.join(dict.fromkeys(case.size for case in CASES))}")
    return chosen


def stem(kernel: str) -> str:
    return kernel.removesuffix("_forward").removesuffix("_backward")


_TORCH = ("PyTorch", "PyTorch, tuned")
_FUSED = ("unfused", *_TORCH, "peft")


def _both(names: str, size: str, peers: tuple[str, ...], tolerance: float = 1e-3) -> list[Case]:
    return [
        Case(f"{name}_{way}", size, peers, tolerance=tolerance)
        for name in names.split()
        for way in ("forward", "backward")
    ]


MACHINE = (Case("copy", "machine", ("PyTorch",)), Case("product", "machine", ("PyTorch",)))
CASES = (
    *_both("linear", "small", _TORCH),
    *_both("linear", "large", _TORCH),
    *_both("lora_linear", "small", _FUSED),
    *_both("lora_linear lora_stacked", "large", _FUSED),
    *_both("lora_gathered", "large", ("unfused", *_TORCH)),
    *_both("lora_dropout", "large", ("unfused", *_TORCH, "peft"), float("inf")),
    *_both("layer_norm rms_norm gelu gelu_tanh silu swiglu softmax attention cross_entropy", "large", _TORCH),
    *_both("embedding rotary", "large", _TORCH),
    Case("matmul", "large", _TORCH),
    Case("adamw_step", "large", _TORCH),
    Case("square_norm", "large", _TORCH),
    Case("philox_uniform", "large", _TORCH, tolerance=float("inf")),
    Case("quantize_4bit", "wide", ("bitsandbytes",), "plain"),
    Case("quantize_4bit", "wide", ("bitsandbytes",)),
    Case("dequantize_4bit", "wide", ("bitsandbytes",), "plain"),
    Case("dequantize_4bit", "wide", ("bitsandbytes",)),
    Case("dequantize_4bit", "wide", ("bitsandbytes' C",), "plain out"),
    Case("dequantize_4bit", "wide", ("bitsandbytes",), "plain bfloat16", 1e-2),
    Case("dequantize_4bit", "wide", ("bitsandbytes' C",), "plain bfloat16 out", 1e-2),
    Case("quantize_blockwise", "large", ("bitsandbytes",), tolerance=1e-2),
    Case("dequantize_blockwise", "large", ("bitsandbytes",)),
    Case("adamw_8bit_step", "large", ("bitsandbytes",)),
    *_both("linear_4bit lora_linear_4bit", "wide", ("unfused", "bitsandbytes")),
    Case("linear_forward", "decode", _TORCH),
    Case("linear_4bit_forward", "decode", ("unfused", "bitsandbytes")),
    Case("lora_linear_4bit_forward", "decode", ("unfused", "bitsandbytes")),
)
