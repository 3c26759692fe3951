"""Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3): the definition.

A block cipher of few rounds turns a counter into a random number under a key: number i needs none of those before it,
so a mask is drawn again wherever it is wanted, in any order and on any device, and takes no memory in between.
"""

from __future__ import annotations

import math

import numpy as np

from ..checks import probability

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
RAISE_KEY = (0x9E3779B9, 0xBB67AE85)  # what each round adds to the key: the golden ratio, and √3 - 1
ROUNDS = 10
SCALE = np.float32(4.6566127342e-10)  # just below 2**-31, so that the largest number stays below 1


def philox_uniform(seed: int, offset: int, shape: tuple[int, ...]) -> np.ndarray:
    """float32 in [0, 1) of ``shape``: number i of the flattened result depends on the seed and on ``offset + i`` only.

    Equal bit for bit to Triton's ``tl.rand(seed, offset + i)``, for 32-bit and for 64-bit offsets. ``seed`` and
    ``offset`` in [0, 2**64). Raises ValueError for others.

    >>> [round(float(u), 4) for u in philox_uniform(1, 0, (4,))]
    [0.2195, 0.656, 0.4948, 0.4847]
    >>> [round(float(u), 4) for u in philox_uniform(1, 2, (2,))]
    [0.4948, 0.4847]
    """
    seed, offset = counter_start("philox_uniform", seed, offset)
    at = np.uint64(offset) + np.arange(math.prod(shape), dtype=np.uint64)
    return to_uniform(philox_4x32(low(at), high(at), low(np.uint64(seed)), high(np.uint64(seed)))).reshape(shape)


def philox_4x32(c0: np.ndarray, c1: np.ndarray, k0: np.uint64, k1: np.uint64) -> np.ndarray:
    """The first of the four words (uint32) that ten rounds make of the counter (c0, c1, 0, 0) under the key (k0, k1).

    All arguments hold 32-bit values in uint64: a product is then exact, its halves are the cipher's hi and lo.
    """
    c2 = c3 = np.zeros_like(c0)
    for r in range(ROUNDS):
        key_0, key_1 = (low(k + np.uint64(r * add % 2**32)) for k, add in zip((k0, k1), RAISE_KEY, strict=True))
        a, b = c0 * np.uint64(MULTIPLIERS[0]), c2 * np.uint64(MULTIPLIERS[1])
        c0, c1, c2, c3 = high(b) ^ c1 ^ key_0, low(b), high(a) ^ c3 ^ key_1, low(a)
    return c0.astype(np.uint32)


def to_uniform(words: np.ndarray) -> np.ndarray:
    """uint32 to float32 in [0, 1), as Triton does it: the sign bit folds the range onto that of 31 bits."""
    signed = words.view(np.int32)
    return np.where(signed < 0, ~signed, signed).astype(np.float32) * SCALE


def dropped(x: np.ndarray, p: float, seed: int) -> np.ndarray:
    """x with each element zero with probability p, else times 1 / (1 - p): kept is where u >= p.

    u is that of the element's place in the flattened array, ``philox_uniform(seed, 0, x.shape)``.

    >>> dropped(np.ones(4), 0.5, 1).tolist()
    [0.0, 2.0, 0.0, 0.0]
    """
    probability("dropout", "p", p)
    kept = philox_uniform(seed, 0, x.shape) >= np.float32(p)
    return x * (kept * x.dtype.type(1 / (1 - p)))


def counter_start(kernel: str, seed: int, offset: int = 0) -> tuple[int, int]:
    """The two as they are; ValueError unless both fit 64 bits, TypeError unless they are whole numbers."""
    for name, value in (("seed", seed), ("offset", offset)):
        if not isinstance(value, int | np.integer):
            raise TypeError(f"{kernel}: {name} must be a whole number, got {value!r}")
        if not 0 <= value < 2**64:
            raise ValueError(f"{kernel}: {name} must be in [0, 2**64), got {value}")
    return int(seed), int(offset)


def low(x: np.ndarray) -> np.ndarray:
    return x & np.uint64(0xFFFFFFFF)


def high(x: np.ndarray) -> np.ndarray:
    return x >> np.uint64(32)
