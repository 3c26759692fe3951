"""Two figures of QLoRA that are worked out on paper (in tasks 4.1 and 4.4)."""

from __future__ import annotations


def largest_quantile(bits: int) -> float:
    """The largest quantile that a NormalFloat of so many bits takes, before anybody cut its digits.

    A normal distribution cut into pieces that are equally likely: the largest of their middles lies at some quantile.
    The mean of this quantile for 2**bits pieces and for 2**bits - 1 pieces.
    """
    # BEGIN SOLUTION(task="4.1b")
    pieces = 2**bits
    return 1 - (1 / (2 * pieces) + 1 / (2 * (pieces - 1))) / 2
    # END SOLUTION


def stored_bits(size: int, blocksize: int, compress_statistics: bool) -> int:
    """How many bits ``quantize_4bit`` stores for ``size`` elements: a whole number.

    That is ``packed`` and ``absmax``; with double quantization also the second ``absmax`` and the offset, in 32 bits
    each number. The tables of values are the same for all tensors: they do not count.
    """
    # BEGIN SOLUTION(task="4.4e")
    bits, blocks = 8 * -(-size // 2), -(-size // blocksize)
    if not compress_statistics:
        return bits + 32 * blocks
    return bits + 8 * blocks + 32 * -(-blocks // 256) + 32
    # END SOLUTION
