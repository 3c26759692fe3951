"""How much of W is decoded at a time."""

from __future__ import annotations

from ..gemm import skinny_step

FEW, THIN, LONGEST = 64, 16, 4096
"""Up to so many rows of x, a tile is so many rows of W, and at most so many columns."""
KEPT, SUMMED = 512, 256
"""Above that, the sides of a tile along the axis that the product keeps, and along the one that it sums over."""


def tile_shape(rows: int, n: int, k: int, sums_over_rows: bool) -> tuple[int, int]:
    """Rows and columns of W (n, k) that a thread decodes at a time, for a product with so many rows.

    * Training shapes: 131,072 elements. BLAS copies x once for each tile, so a tile is long in the direction that the
      product keeps.
    * Decoding, up to 64 rows: reading W is all that counts, and copying a tile for BLAS costs more than multiplying
      it; so its tiles are those that BLAS reads where they lie.

    >>> tile_shape(2048, 1536, 384, sums_over_rows=False), tile_shape(4, 4096, 4096, sums_over_rows=False)
    ((512, 256), (16, 4096))
    """
    if rows <= FEW:
        high, wide = THIN, min(LONGEST, skinny_step.py_func(k, rows, THIN))
    else:
        high, wide = (SUMMED, KEPT) if sums_over_rows else (KEPT, SUMMED)
    return max(1, min(high, n)), max(1, min(wide, k))
