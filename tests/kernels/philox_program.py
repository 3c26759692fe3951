"""Triton's ``tl.rand`` in the interpreter, in a process of its own.

``python -P philox_program.py OUT.npz SEED OFFSET COUNT ...``: as many numbers from each start.
"""

from __future__ import annotations

import sys

import numpy as np
from minitorch_peft.kernels.device.launch import run
from minitorch_peft.kernels.device.triton import tl, triton


@triton.jit
def uniform(out, seed, offset, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.rand(seed, offset + i), mask=i < n)


path, *numbers = sys.argv[1:]
found = {}
for seed, offset, count in zip(*(map(int, numbers[i::3]) for i in range(3)), strict=True):
    found[f"{seed} {offset}"] = np.empty(count, np.float32)
    run(uniform, (-(-count // 64),), found[f"{seed} {offset}"], seed, offset, count, BLOCK=64)
assert "torch" not in sys.modules
np.savez(path, **found)
