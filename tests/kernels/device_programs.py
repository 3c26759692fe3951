"""Programs that the tests of the device run in processes of their own: ``python -P device_programs.py NAME``.

Triton decides when it is imported whether it interprets or compiles, and it must not see torch there; each prints one
line of JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
from minitorch_peft.kernels.device.arguments import argument
from minitorch_peft.kernels.device.array import DeviceArray
from minitorch_peft.kernels.device.compile import TARGETS, Build, build
from minitorch_peft.kernels.device.gate import broken
from minitorch_peft.kernels.device.launch import run, use_configuration
from minitorch_peft.kernels.device.machine_code import cost
from minitorch_peft.kernels.device.timing import do_bench
from minitorch_peft.kernels.device.triton import tl, triton

N, BLOCK = 150, 64  # three programs, the last one ragged; the mock driver knows BLOCK


@triton.jit
def scale_add(x, y, out, n, scale, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, scale * tl.load(x + i, mask=i < n) + tl.load(y + i, mask=i < n), mask=i < n)


@triton.jit
def scale_add_pair(pair, out, n, scale, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, scale * tl.load(pair[0] + i, mask=i < n) + tl.load(pair[1] + i, mask=i < n), mask=i < n)


@triton.jit
def product(a, b, c, K, BLOCK: tl.constexpr, STEP: tl.constexpr):
    i, k = tl.arange(0, BLOCK), tl.arange(0, STEP)
    acc = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, K, STEP):
        left = tl.load(a + i[:, None] * K + (start + k)[None, :])
        right = tl.load(b + i[:, None] * K + (start + k)[None, :])
        acc = tl.dot(left, tl.trans(right), acc)
    tl.store(c + i[:, None] * BLOCK + i[None, :], acc.to(c.dtype.element_ty))


@triton.jit
def decoded_product(codes, b, c, K, BLOCK: tl.constexpr, STEP: tl.constexpr):
    """The left operand is made in registers; on sm_90 it can stay there."""
    i, k = tl.arange(0, BLOCK), tl.arange(0, STEP)
    acc = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, K, STEP):
        left = tl.load(codes + i[:, None] * K + (start + k)[None, :]).to(tl.float32) * 0.125
        right = tl.load(b + i[:, None] * K + (start + k)[None, :])
        acc = tl.dot(left.to(tl.float16), tl.trans(right), acc)
    tl.store(c + i[:, None] * BLOCK + i[None, :], acc)


TILE = {"BLOCK": 128, "STEP": 64}
PRODUCT = Build("product", product, dict.fromkeys("abc", "*bf16") | {"K": "i32"}, TILE, num_warps=8, divisible=("K",),
                matmul=True)  # fmt: skip
DECODED = Build("decoded", decoded_product, {"codes": "*u8", "b": "*fp16", "c": "*fp32", "K": "i32"}, TILE, num_warps=8,
                divisible=("K",), register_operand=True, targets=("sm_90",))  # fmt: skip
SCALED = Build("scaled", scale_add, dict.fromkeys(("x", "y", "out"), "*fp32") | {"n": "i32", "scale": "fp32"},
               {"BLOCK": 1024}, decoded_elements=1024, divisible=("n",), targets=("sm_80",))  # fmt: skip
OF_A_TUPLE = {"pair": ("*fp32", "*fp32"), "out": "*fp32", "n": "i32", "scale": "fp32"}
BUILDS = {
    "product": PRODUCT,
    "too many registers": replace(
        PRODUCT, constants={"BLOCK": 256, "STEP": 32}, num_warps=4, num_stages=1, targets=("sm_90",)
    ),
    "too much shared memory": replace(PRODUCT, num_stages=8, targets=("sm_80",)),
    "narrow": replace(SCALED, divisible=()),
    "no product": replace(SCALED, matmul=True, most_per_element=0.5),
    "decoded": DECODED,
    "not from registers": replace(PRODUCT, register_operand=True, targets=("sm_90",)),
    "scaled": SCALED,
    "of a tuple": replace(SCALED, kernel=scale_add_pair, signature=OF_A_TUPLE),
}


def gated() -> dict:
    """The cost of each of BUILDS on each target, and what it breaks."""
    rows = {}
    for name, what in BUILDS.items():
        for target in what.targets:
            found = cost(what, build(what, target), TARGETS[target])
            rows[f"{name}, {target}"] = found._asdict() | {"broken": broken(what, target, found)}
    return rows


def rounded_twice() -> dict:
    """Kinds of arithmetic in scale * x + y: one rounding for each of its two operations."""
    return {"fused": "fma.rn" in build(SCALED, "sm_80").asm["ptx"]}


def sizes_of_the_kernels() -> dict:
    """What device/traffic.py says of the kernels, and what they say themselves."""
    from minitorch_peft.kernels.device import traffic
    from minitorch_peft.kernels.linear_4bit import triton_decode, triton_train
    from minitorch_peft.kernels.lora import triton_backward, triton_forward
    from minitorch_peft.kernels.tiles import host

    tiles = [
        kernel.configs[0].kwargs for kernel in (triton_train._forward, triton_train._grad_x, triton_forward._in_loop)
    ]
    return {
        "rows": [traffic.ROWS, tiles[0]["BM"]],
        "backward rows": [traffic.ROWS, tiles[1]["BM"]],
        "columns": [traffic.COLUMNS, tiles[2]["BN"]],
        "programs": [traffic.PROGRAMS, host.ENOUGH_PROGRAMS],
        "least rows": [traffic.LEAST_ROWS, triton_backward.LEAST],
        "least columns": [traffic.LEAST_COLUMNS, triton_forward.LEAST],
        "least columns of few rows": [traffic.LEAST_COLUMNS, triton_decode.LEAST],
        "strip": [traffic.STRIP, triton_backward.STRIP],
        "few rows": [traffic.FEW_ROWS, triton_decode.MOST_ROWS],
    }


def misnamed() -> dict:
    build(replace(PRODUCT, constants={"BLOCK": 128}), "sm_80")
    return {}


def arrays() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, N)).astype(np.float32)
    return x, y, np.full(N, 7, np.float32)


def grid(constants: dict) -> tuple[int]:
    return (triton.cdiv(N, constants["BLOCK"]),)


def expected(x: np.ndarray, y: np.ndarray) -> list[float]:
    return (np.float32(2.5) * x + y).tolist()


def numpy_arrays() -> dict:
    """Copied there and back; the input is read-only, and stays as it was."""
    x, y, out = arrays()
    x.flags.writeable = False
    before = x.copy()
    run(scale_add, grid, x, y, out, N, np.float32(2.5), BLOCK=BLOCK, num_warps=2)
    return {"out": out.tolist(), "expected": expected(x, y), "kept": bool((x == before).all())}


def device_arrays() -> dict:
    x, y, out = map(DeviceArray.from_numpy, arrays())
    run(scale_add, (3,), x, y, out, N, 2.5, BLOCK=BLOCK)
    pointers = [x.data_ptr(), y.data_ptr(), out.data_ptr()]
    return {"out": out.numpy().tolist(), "expected": expected(x.numpy(), y.numpy()), "pointers": pointers}


def arrays_in_a_tuple() -> dict:
    x, y, out = arrays()
    run(scale_add_pair, grid, (x, y), out, N, 2.5, BLOCK=BLOCK, num_warps=2)
    return {"out": out.tolist(), "expected": expected(x, y)}


def one_array_twice() -> dict:
    """In place: the same array as input and as output has one copy on the device."""
    x, y, _ = arrays()
    want = expected(x, y)
    run(scale_add, (3,), x, y, x, N, 2.5, BLOCK=BLOCK)
    return {"out": x.tolist(), "expected": want}


def with_torch_imported() -> dict:
    """A torch without CUDA tells Triton that there is no GPU."""
    importlib.import_module("torch")
    return numpy_arrays()


def overlapping() -> dict:
    x, y, _ = arrays()
    run(scale_add, (3,), x[:100], y, x[50:], 100, 2.5, BLOCK=BLOCK)
    return {}


class Lent:
    """What CuPy's arrays offer: the interface, and no data_ptr."""

    def __init__(self, array: DeviceArray, **changes: object):
        self.array = array
        self.__cuda_array_interface__ = array.__cuda_array_interface__ | changes


def lent_arrays() -> dict:
    x, y, out = arrays()
    device = DeviceArray.from_numpy(out)
    run(scale_add, (3,), Lent(DeviceArray.from_numpy(x)), Lent(DeviceArray.from_numpy(y)), device, N, 2.5, BLOCK=BLOCK)
    return {"out": device.numpy().tolist(), "expected": expected(x, y)}


def lent_with_strides() -> dict:
    x, y, out = arrays()
    run(scale_add, (3,), Lent(DeviceArray.from_numpy(x), strides=(8,)), y, out, N, 2.5, BLOCK=BLOCK)
    return {}


def shared_memory() -> dict:
    """More than 48 KiB of it, which a launch has to be allowed; bfloat16 held as uint16."""
    a, b = np.zeros((2, 128, 256), np.uint16)
    c = np.zeros((128, 128), np.uint16)
    bits = [argument(array, "bfloat16") for array in (a, b, c)]
    run(product, (1,), *bits, 256, BLOCK=128, STEP=64, num_warps=8, num_stages=3)
    ((compiled, *_),) = [cache.values() for cache, *_ in product.device_caches.values()]
    metadata = compiled.metadata
    return {
        "shared": metadata.shared,
        "fusion": metadata.enable_fp_fusion,
        "types": list(compiled.src.signature.values()),
    }


def autotuned() -> dict:
    """Measured over its configurations once for a key; not where the constants name one."""
    x, y, out = map(DeviceArray.from_numpy, arrays())
    configs = [triton.Config({"BLOCK": BLOCK}, num_warps=warps) for warps in (1, 2, 4)]
    tuned = triton.autotune(configs, key=["n"], do_bench=do_bench)(scale_add)
    for _ in range(2):
        run(tuned, grid, x, y, out, N, 2.5)
    run(tuned, grid, x, y, out, N, 2.5, BLOCK=BLOCK, num_warps=8)
    with use_configuration(4):
        run(tuned, grid, x, y, out, 50, 2.5)
    best = next(iter(tuned.cache.values())).num_warps
    return {
        "out": out.numpy().tolist(),
        "expected": expected(x.numpy(), y.numpy()),
        "keys": len(tuned.cache),
        "best": best,
    }


def interpreted() -> dict:
    """An autotuned kernel runs with its first configuration, unless the constants name another; bfloat16 is cut."""
    x, y, _ = arrays()
    bits = np.zeros(N, np.uint16)
    programs = []
    configs = [triton.Config({"BLOCK": size}, num_warps=2) for size in (32, 64)]
    tuned = triton.autotune(configs, key=["n"])(scale_add)

    def counted(constants: dict) -> tuple[int]:
        programs.append(grid(constants)[0])
        return grid(constants)

    run(tuned, counted, x, y, argument(bits, "bfloat16"), N, 2.5)
    run(tuned, counted, x, y, argument(bits, "bfloat16"), N, 2.5, BLOCK=128, num_warps=4)
    with use_configuration(3):
        run(tuned, counted, x, y, argument(bits, "bfloat16"), N, 2.5)
    assert programs == [5, 2, 3], programs
    want = np.array(expected(x, y), np.float32).view(np.uint32)
    return {"out": bits.tolist(), "expected": (want >> 16).tolist()}


def set_too_late() -> dict:
    os.environ["TRITON_INTERPRET"] = "1"
    return numpy_arrays()


def benchmarked() -> dict:
    """benchmarks.gpu's timing of a function that launches nothing, its way to bfloat16 and back, its rows."""
    sys.path.append(str(Path(__file__).parents[2]))
    gpu = importlib.import_module("benchmarks.gpu_kernels")
    gpu.typical = lambda kernel, rows: (np.zeros((2, 3), np.float32), None, (np.zeros(2, np.uint8), 0.5))
    row = gpu.timed("lora_linear_forward", lambda *args: None, 4096)
    pairs = np.array([[1, -2.5], [1.005, 3.001]], np.float32)
    (values,) = gpu.in_bfloat16(lambda *args: args)(pairs)
    gpu.DRAWS = 0
    gpu.typical = lambda kernel, rows: (np.linspace(-3, 3, 50, dtype=np.float32),)
    wrong = gpu.wrong("silu_forward", lambda x: DeviceArray.from_numpy(sigmoid_linear(x), "bfloat16"), 1)
    return {"row": row, "values": values.tolist(), "wrong": wrong, **rows_of(gpu)}


def rows_of(gpu: ModuleType) -> dict:
    """A kernel that is wrong from 512 rows on; one that finds no memory from there on."""

    def timed(kernel: str, function: object, rows: int) -> dict:
        if kernel == "too large" and rows > 16:
            raise MemoryError("2 GB asked for")
        return {"us": 1.0}

    gpu.timed = timed
    gpu.wrong = lambda kernel, function, rows: "is off" if kernel == "wrong" and rows > 16 else None
    gpu.wrong_on_draws = lambda kernel, function: None
    return {"rows": [list(gpu.measured(kernel, print, (16, 512, 4096))) for kernel in ("right", "wrong", "too large")]}


def sigmoid_linear(x: DeviceArray) -> np.ndarray:
    """SiLU of bfloat16 on the host, to bfloat16 bits."""
    wide = (x.numpy().astype(np.uint32) << 16).view(np.float32)
    return ((wide / (1 + np.exp(-wide))).view(np.uint32) >> 16).astype(np.uint16)


def too_large() -> dict:
    """Of its length's 33 bits, 32 would say 1000 bytes."""
    small = DeviceArray((1000,))
    try:
        DeviceArray((2**30 + 250,))
    finally:
        del small
    return {}


def collected() -> dict:
    for _ in range(10):
        DeviceArray((1000,), "float16")
    kept = DeviceArray((3, 5), "bfloat16")
    return {"strides": kept.strides, "nbytes": kept.nbytes, "text": repr(kept)}


if __name__ == "__main__":
    result = globals()[sys.argv[1]]()
    assert "torch" not in sys.modules
    print(json.dumps(result))
