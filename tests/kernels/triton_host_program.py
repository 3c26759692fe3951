"""Calls the public function of every Triton kernel as on a GPU: on NumPy arrays, then on device arrays in bfloat16.

For the mock driver, which computes none of these kernels: what counts is which are launched, and what comes back.
"""

from __future__ import annotations

import json
from importlib import import_module
from typing import Any

import numpy as np
from minitorch_peft.kernels import TABLE
from minitorch_peft.kernels.device import launch
from minitorch_peft.kernels.device.array import DeviceArray
from minitorch_peft.kernels.four_bit.layout import Quantized
from minitorch_peft.kernels.four_bit.reference import bfloat16_bits, quantize_4bit
from minitorch_peft.kernels.tiles.arrays import each

M, N, K, R = 48, 64, 128, 20  # the rank is above what pays inside the loop


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


q = quantize_4bit(ones(N, K), compress_statistics=True)
x, weight, a, b, grad, xa = ones(M, K), ones(N, K), ones(R, K), ones(N, R), ones(M, N), ones(M, R)
rows, owners, adapters = (2, M // 2), np.array([1, -1]), (ones(2, R, K), ones(2, N, R), ones(2))
CALLS: dict[str, tuple[str, tuple]] = {
    "forward": ("lora_linear_forward", (x, weight, None, a, b, 0.5)),
    "forward of a small rank": ("lora_linear_forward", (x, weight, ones(N), a[:4], b[:, :4], 0.5)),
    "backward": ("lora_linear_backward", (grad, x, xa, weight, a, b, 0.5, (True,) * 5)),
    "dropout": ("lora_dropout_forward", (x, weight, None, a, b, 0.5, 0.1, 2**64 - 1)),
    "dropout backward": ("lora_dropout_backward", (grad, x, xa, weight, a, b, 0.5, 0.1, 3)),
    "stacked": ("lora_stacked_forward", (x, [weight] * 2, [None] * 2, [a] * 2, [b] * 2, [1.0] * 2)),
    "stacked backward": ("lora_stacked_backward", ([grad] * 2, x, [xa] * 2, [weight] * 2, [a] * 2, [b] * 2, [1.0] * 2)),
    "gathered": ("lora_gathered_forward", (x.reshape(*rows, K), weight, None, *adapters, owners)),
    "gathered backward": (
        "lora_gathered_backward",
        (grad.reshape(*rows, N), x.reshape(*rows, K), xa.reshape(*rows, R), weight, *adapters, owners),
    ),
    "4-bit": ("linear_4bit_forward", (x, q)),
    "4-bit, 2 rows": ("lora_linear_4bit_forward", (x[:2], q, None, a, b, 0.5)),
    "4-bit, 1 row": ("linear_4bit_forward", (x[:1], q, ones(N))),
    "4-bit backward": ("lora_linear_4bit_backward", (grad, x, xa, q, a, b, 0.5)),
    "quantize": ("quantize_4bit", (x,)),
    "dequantize": ("dequantize_4bit", (q,)),
}


def described(value: Any) -> Any:
    """Shapes and dtypes of what came back."""
    if isinstance(value, tuple):
        return [described(part) for part in value]
    if hasattr(value, "dtype"):
        return f"{type(value).__name__} {value.dtype} {tuple(value.shape)}"
    return value


def in_bfloat16(value: Any) -> Any:
    """The float32 arrays as bfloat16 on the device; those of a quantized weight as they are there; ids stay here."""
    if isinstance(value, Quantized):
        return each(lambda part: DeviceArray.from_numpy(part) if isinstance(part, np.ndarray) else part, value)
    if isinstance(value, tuple | list):
        return tuple(map(in_bfloat16, value))
    if isinstance(value, np.ndarray) and value.dtype == np.float32:
        return DeviceArray.from_numpy(bfloat16_bits(np.ascontiguousarray(value)), "bfloat16")
    return value


def main() -> None:
    found: dict[str, Any] = {}
    with launch.use_configuration(5):
        for name, (kernel, args) in CALLS.items():
            function = getattr(import_module(f"minitorch_peft.kernels.{TABLE[kernel]}.triton"), kernel)
            found[name] = described(function(*args))
            if kernel != "quantize_4bit":
                found[f"{name}, bfloat16"] = described(function(*in_bfloat16(args)))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
