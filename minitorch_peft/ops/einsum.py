"""Sums of products over named axes."""

from __future__ import annotations

import string
from typing import Any

import numpy as np

from minitorch_peft.autograd.function import Function
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.ops.promotion import as_tensor, result_dtype, to
from minitorch_peft.ops.shape import broadcast_shapes, expand


class Einsum(Function):
    """y = Σ Π x_i over the letters that y lacks; x_i gets the same sum with y's gradient in x_i's place."""

    @staticmethod
    def forward(ctx: Any, *arrays: np.ndarray, terms: list[str], output: str) -> np.ndarray:
        ctx.terms, ctx.output, ctx.shapes = terms, output, [a.shape for a in arrays]
        ctx.save_for_backward(*arrays)
        return np.einsum(f"{','.join(terms)}->{output}", *arrays, optimize=len(arrays) > 1)

    @staticmethod
    def backward(ctx: Any, g: np.ndarray) -> tuple[np.ndarray | None, ...]:
        gradients: list[np.ndarray | None] = []
        for i, term in enumerate(ctx.terms):
            if not ctx.needs_input_grad[i]:
                gradients.append(None)
                continue
            terms = [*ctx.terms[:i], *ctx.terms[i + 1 :], ctx.output]
            arrays = [*ctx.saved[:i], *ctx.saved[i + 1 :], g]
            letters = "".join(dict.fromkeys(term))
            known = "".join(c for c in letters if any(c in t for t in terms))
            partial = np.einsum(f"{','.join(terms)}->{known}", *arrays, optimize=len(arrays) > 1)
            gradients.append(_fill(partial, term, letters, known, ctx.shapes[i]))
        return tuple(gradients)


def _fill(partial: np.ndarray, term: str, letters: str, known: str, shape: tuple[int, ...]) -> np.ndarray:
    """The gradient over ``letters`` from that over the ``known`` ones.

    It is equal along a letter that only this term has (it was summed), and lies on the diagonal of a letter
    that the term repeats.
    """
    size = dict(zip(term, shape, strict=True))
    wide = partial.reshape([size[c] if c in known else 1 for c in letters])
    wide = np.broadcast_to(wide, [size[c] for c in letters])
    if letters == term:
        return wide
    gradient = np.zeros(shape, partial.dtype)
    np.einsum(f"{term}->{letters}", gradient)[...] = wide  # a writable view of the diagonal
    return gradient


def einsum(equation: str, *operands: Tensor) -> Tensor:
    """The sum of products that ``equation`` names (Einstein's convention): "ij,jk->ik" is a matrix product.

    One letter for each axis; a repeated letter takes the diagonal, one missing on the right is summed, "..."
    is the broadcast rest. Without "->" the result has the letters that occur once, in alphabetical order.

    >>> import minitorch_peft as mp
    >>> einsum("i,i->", mp.tensor([1.0, 2.0]), mp.tensor([3.0, 4.0])).item()
    11.0
    """
    tensors = [as_tensor(t, "einsum") for t in operands]
    terms, output = _parse(equation, [t.ndim for t in tensors])
    dtype = result_dtype(*tensors)
    shapes: dict[str, tuple[int, ...]] = {}
    for term, t in zip(terms, tensors, strict=True):
        for letter, n in zip(term, t.shape, strict=True):
            shapes[letter] = broadcast_shapes(shapes.get(letter, (1,)), (n,))
    wide = (expand(to(t, dtype), [shapes[c][0] for c in term]) for term, t in zip(terms, tensors, strict=True))
    return Einsum.apply(*wide, terms=terms, output=output)


def _parse(equation: str, ndims: list[int]) -> tuple[list[str], str]:
    """The letters of each operand and of the result, "..." spelled out in letters that are not used."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(ndims):
        raise ValueError(f"einsum: {equation!r} names {len(terms)} operands, got {len(ndims)}")
    spare = [c for c in string.ascii_letters if c not in equation]
    rest = [n - len(term.replace("...", "")) for term, n in zip(terms, ndims, strict=True)]
    for term, n, more in zip(terms, ndims, rest, strict=True):
        if more < 0 or (more > 0 and "..." not in term):
            raise ValueError(f"einsum: {term!r} does not name the {n} axes of its operand")
    dots = "".join(spare[: max([more for term, more in zip(terms, rest, strict=True) if "..." in term], default=0)])
    spelled = [term.replace("...", dots[len(dots) - more :]) for term, more in zip(terms, rest, strict=True)]
    if not arrow:
        once = "".join(sorted(c for c in set(left) if c.isalpha() and left.count(c) == 1))
        right = "..." + once
    output = right.replace("...", dots)
    unknown = set("".join(spelled) + output) - set(string.ascii_letters)
    if unknown or len(set(output)) != len(output) or not set(output) <= set("".join(spelled)):
        raise ValueError(f"einsum: in {equation!r}, the result's letters must be distinct letters of the operands")
    return spelled, output
