"""AdamW whose state is larger than the memory it may take."""

from __future__ import annotations

import os

from minitorch_peft.optim.adamw import AdamW
from minitorch_peft.optim.adamw_8bit import BLOCKSIZE, AdamW8bit
from minitorch_peft.optim.optimizer import Params
from minitorch_peft.optim.paging import Paged


class PagedAdamW(Paged, AdamW):
    """AdamW with exp_avg and exp_avg_sq in pages: at most ``budget`` bytes of memory for them, the same bits.

    ``directory`` is where the file lives (None: the system's place for temporary files): it needs room for the whole
    state, whatever the budget, which is reserved as states are made. A step reads and writes the state that does not
    fit, once each: 16 bytes a parameter.

    >>> import minitorch_peft as mp
    >>> p = mp.tensor([1.0, -2.0], requires_grad=True)
    >>> optimizer = PagedAdamW({"p": p}, lr=0.1, budget=8192, page_bytes=4096)
    >>> (p * p).sum().backward()
    >>> optimizer.step(); p
    tensor([ 0.899, -1.898], requires_grad=True)
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        budget: int = 256 << 20,
        page_bytes: int = 1 << 20,
        directory: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)
        self.start_paging(budget, page_bytes, directory)


class PagedAdamW8bit(Paged, AdamW8bit):
    """``AdamW8bit`` with its state in pages; see ``PagedAdamW`` for the last three arguments."""

    granularity = BLOCKSIZE

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        min_8bit_size: int = 4096,
        budget: int = 256 << 20,
        page_bytes: int = 1 << 20,
        directory: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, min_8bit_size)
        self.start_paging(budget, page_bytes, directory)
