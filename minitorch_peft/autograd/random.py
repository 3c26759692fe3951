"""Random numbers that depend on names, not on the order of calls.

Every draw comes from a counter-based generator (Philox) keyed by a hash of the seed and of where the numbers are
used, such as ``generator(seed, "init", "blocks.0.attn.q_proj.weight")`` or ``counter_seed(seed, "dropout", site,
step)``. Adding a parameter, resuming a run, or recomputing a block therefore changes no other number.
"""

from __future__ import annotations

import hashlib
from operator import index

import numpy as np


def generator(seed: int, *site: str | int) -> np.random.Generator:
    """The generator for one place; the same arguments give the same numbers, always. TypeError for a float.

    >>> float(generator(0, "init", "w").random()) == float(generator(0, "init", "w").random())
    True
    """
    return np.random.Generator(np.random.Philox(key=_hash(16, seed, site)))


def counter_seed(seed: int, *site: str | int) -> int:
    """A seed of 64 bits for one place: for kernels that draw number i from the seed and i alone (``philox_uniform``).

    >>> counter_seed(0, "dropout", 3) == counter_seed(0, "dropout", 3) != counter_seed(0, "dropout", 4)
    True
    """
    return _hash(8, seed, site)


def _hash(size: int, seed: int, site: tuple[str | int, ...]) -> int:
    text = repr((int(index(seed)), *(s if isinstance(s, str) else int(index(s)) for s in site)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=size).digest(), "little")
