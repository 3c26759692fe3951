"""What a kernel must at least cost on a GPU: bytes moved, products computed, instructions issued; and the time of that.

A launch takes at least as long as the slowest of the three (Williams et al. 2009, the roofline model): the memory's
bandwidth, the tensor cores' rate, the rate at which instructions are issued. Launches follow one another, so their
times add up. Bytes are those that must cross the memory's bus when each array is read or written once a launch; what
the second-level cache saves between launches, and what a launch itself costs, is not counted. These are bounds, not
measurements: no kernel of this package has run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class GPU(NamedTuple):
    """Bytes, operations of bfloat16 products and instructions (of a thread), each a second."""

    name: str
    bandwidth: float
    tensor: float
    issue: float


# Data sheets (dense rates); instructions: multiprocessors x 4 schedulers x 32 threads x boost clock.
H100 = GPU("H100", 3.35e12, 989.4e12, 132 * 4 * 32 * 1.755e9)
A100 = GPU("A100", 2.039e12, 312e12, 108 * 4 * 32 * 1.41e9)


class Launch(NamedTuple):
    """One launch of a kernel: bytes of memory traffic, floating-point operations of products, other instructions."""

    nbytes: float
    flops: float = 0.0
    instructions: float = 0.0

    def seconds(self, gpu: GPU) -> tuple[float, str]:
        """The least time that it takes, and what bounds it.

        >>> Launch(nbytes=3.35e6, flops=1.0).seconds(H100)
        (1e-06, 'memory')
        """
        bounds = {
            "memory": self.nbytes / gpu.bandwidth,
            "compute": self.flops / gpu.tensor,
            "issue": self.instructions / gpu.issue,
        }
        bound = max(bounds, key=lambda name: bounds[name])
        return bounds[bound], bound


class Total(NamedTuple):
    """Launches one after the other; ``bound`` is what bounds the longest of them; intensity: operations a byte."""

    nbytes: float
    flops: float
    seconds: float
    bound: str
    intensity: float


def total(launches: Iterable[Launch], gpu: GPU) -> Total:
    """Traffic, work and the least time of ``launches``.

    >>> total([Launch(3.35e6), Launch(6.7e6)], H100).seconds
    3e-06
    """
    launches = list(launches)
    times = [launch.seconds(gpu) for launch in launches]
    nbytes, flops = sum(launch.nbytes for launch in launches), sum(launch.flops for launch in launches)
    return Total(nbytes, flops, sum(time for time, _ in times), max(times)[1], flops / nbytes)
