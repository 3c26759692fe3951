"""The contender of benchmarks.kernels that is the C function behind bitsandbytes' dequantization, into a given buffer.

Its interface has no ``out``: each call makes a fresh array, whose pages the kernel has to provide. This one does not.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from bitsandbytes.cextension import lib

from benchmarks.contest import Prepared, serve_cases
from benchmarks.kernels_cases import arguments, named
from benchmarks.kernels_torch import tensors, timed

FUNCTIONS = {"float32": "cdequantize_blockwise_cpu_nf4_fp32", "bfloat16": "cdequantize_blockwise_cpu_nf4_bf16"}


def dequantize(q: Any, dtype: str, out: Any) -> Prepared:
    assert q.nested is None, "the C function takes absmax as float32"
    function, buffers = getattr(lib, FUNCTIONS[dtype]), (q.packed, q.absmax, out)
    sizes = [ctypes.c_longlong(size) for size in (q.blocksize, *q.shape)]

    def step() -> torch.Tensor:
        function(*(ctypes.c_void_p(t.data_ptr()) for t in buffers), *sizes)
        return out.view(torch.bfloat16) if dtype == "bfloat16" else out

    return timed(step)


def prepare(name: str) -> Prepared:
    return dequantize(*tensors(arguments(named(name))))


if __name__ == "__main__":
    serve_cases(prepare)
