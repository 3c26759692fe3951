"""Task 4.7: the LoRA layer as a kernel for the GPU, in Triton; its interpreter runs it on any Linux machine.

Set ``TRITON_INTERPRET=1`` before this module is imported, unless there is a GPU.
"""

from __future__ import annotations

import numpy as np

from minitorch_peft.kernels.device.launch import run
from minitorch_peft.kernels.device.triton import tl, triton


@triton.jit
def lora_tile(
    x, w, xa, b, y, R, N, K, r, scaling,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_RANK: tl.constexpr,
):  # fmt: skip
    """One tile of y (R, N) = x W.T + scaling xa B.T: BLOCK_R rows, BLOCK_N columns.

    x (R, K), w (N, K), xa (R, r), b (N, r), y: pointers to arrays in row-major order, of one dtype. Program
    (i, j) of the grid has the i-th tile of rows and the j-th tile of columns. BLOCK_RANK is at least r. Sums are in
    float32.
    """
    # BEGIN SOLUTION(task="4.7")
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    i = tl.arange(0, BLOCK_RANK)
    low = tl.load(xa + rows * r + i[None, :], mask=(rows < R) & (i[None, :] < r), other=0.0)
    up = tl.load(b + columns * r + i[:, None], mask=(columns < N) & (i[:, None] < r), other=0.0)
    total = tl.dot(low, up, out_dtype=tl.float32) * scaling
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        left = tl.load(x + rows * K + k[None, :], mask=(rows < R) & (k[None, :] < K), other=0.0)
        right = tl.load(w + columns * K + k[:, None], mask=(columns < N) & (k[:, None] < K), other=0.0)
        total = tl.dot(left, right, total)
    tl.store(y + rows * N + columns, total.to(y.dtype.element_ty), mask=(rows < R) & (columns < N))
    # END SOLUTION


def lora_forward(
    x: np.ndarray, w: np.ndarray, xa: np.ndarray, b: np.ndarray, scaling: float, block: int = 16
) -> np.ndarray:
    """y (R, N), tile by tile: the grid has a program for each."""
    (R, K), (N, r) = x.shape, b.shape
    y = np.empty((R, N), x.dtype)
    grid = (triton.cdiv(R, block), triton.cdiv(N, block))
    rank = max(16, triton.next_power_of_2(r))
    run(lora_tile, grid, x, w, xa, b, y, R, N, K, r, scaling, block, block, block, rank)
    return y
