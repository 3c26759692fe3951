"""Where x A.T belongs on a GPU: into the loop of the layer's product, or into a pass of its own over x."""

from __future__ import annotations

from math import ceil

MOST = 16
"""The largest rank whose second accumulator fits the registers beside that of the product."""


def in_loop_pays(rank: int, columns: int, widest: int, ridge: float) -> bool:
    """Whether x A.T is cheaper in the loop of a product of so many ``columns``, in tiles of ``widest``, than apart.

    Apart, M K elements of x are read once more. In the loop each column of tiles makes x A.T again, 2 M K rank
    operations. So M and K cancel: it pays up to rank x tiles = ``ridge``, the operations that the device computes while
    it reads a byte (for elements of two bytes). Of few rows memory is the bound of the product, and the loop costs less
    than that; the rule leaves it out. Without columns there is no loop to make it in.

    >>> [in_loop_pays(16, n, 256, 295) for n in (1024, 4096, 4608, 4609, 14336)]  # an H100
    [True, True, True, False, False]
    >>> in_loop_pays(4, 4096, 128, 153), in_loop_pays(8, 4096, 128, 153)  # an A100
    (True, False)
    >>> in_loop_pays(4, 0, 128, 153)
    False
    """
    return columns > 0 and rank <= MOST and rank * ceil(columns / widest) <= ridge
