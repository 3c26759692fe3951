"""The peers' side of ``benchmarks.gpu``: what torch, bitsandbytes and peft's formula take, as JSON on the last line.

    python -P -c ... benchmarks.gpu_peers DEVICE N K RANK ROWS [ROWS ...]

Kernel -> rows -> peer -> microseconds, in bfloat16, with the second-level cache overwritten before each run.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

SCALING = 2.0
RUNS = 50


def cases(device: str, m: int, n: int, k: int, r: int) -> dict[str, dict[str, Callable]]:
    """Kernel -> peer -> a call of what takes its place there."""
    import bitsandbytes as bnb
    import torch
    from torch.nn.functional import linear

    def drawn(*shape: int, grad: bool = False) -> Any:
        return torch.randn(*shape, dtype=torch.bfloat16, device=device).mul_(0.1).requires_grad_(grad)

    x, w, g, a, b = drawn(m, k, grad=True), drawn(n, k), drawn(m, n), drawn(r, k, grad=True), drawn(n, r, grad=True)
    packed, state = bnb.functional.quantize_4bit(w, quant_type="nf4", compress_statistics=True)

    def dense() -> Any:
        return linear(x, w)

    def four_bit() -> Any:
        return bnb.matmul_4bit(x, packed.t(), quant_state=state)

    def with_lora(base: Callable) -> Callable:
        return lambda: base() + linear(linear(x, a), b) * SCALING

    def backward(forward: Callable, *inputs: Any) -> Callable:
        y = forward()
        return lambda: torch.autograd.grad(y, inputs, g, retain_graph=True)

    return {
        "dequantize_4bit": {"bitsandbytes": lambda: bnb.functional.dequantize_4bit(packed, state)},
        "linear_4bit_forward": {"bitsandbytes": four_bit, "dense torch": dense},
        "linear_4bit_backward": {"bitsandbytes": backward(four_bit, x), "dense torch": backward(dense, x)},
        "lora_linear_forward": {"peft": with_lora(dense)},
        "lora_linear_backward": {"peft": backward(with_lora(dense), x, a, b)},
        "lora_linear_4bit_forward": {"peft": with_lora(four_bit)},
        "lora_linear_4bit_backward": {"peft": backward(with_lora(four_bit), x, a, b)},
    }


def microseconds(function: Callable, device: str) -> float:
    """The median over RUNS; on the CPU, where this is only tried out, of three."""
    import torch

    function()
    if device == "cpu":
        return 1e6 * statistics.median(_seconds(function) for _ in range(3))
    cache = torch.empty(2 * torch.cuda.get_device_properties(0).L2_cache_size, dtype=torch.int8, device=device)
    times = []
    for _ in range(RUNS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        cache.zero_()
        start.record()
        function()
        end.record()
        end.synchronize()
        times.append(1e3 * start.elapsed_time(end))
    return statistics.median(times)


def _seconds(function: Callable) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main(device: str, n: int, k: int, r: int, *rows: int) -> dict[str, Any]:
    if absent := [name for name in ("torch", "bitsandbytes") if find_spec(name) is None]:
        return {"missing": f"{' and '.join(absent)} not installed (pip install 'minitorch-peft[peers]')"}
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        return {"missing": f"torch {torch.__version__} sees no GPU"}
    found: dict[str, Any] = {}
    for m in rows:
        for kernel, ways in cases(device, m, n, k, r).items():
            found.setdefault(kernel, {})[m] = {name: microseconds(call, device) for name, call in ways.items()}
    return found


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], *map(int, sys.argv[2:]))))
