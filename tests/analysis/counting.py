"""An array that counts the products of matrices that NumPy does with it."""

from __future__ import annotations

from math import prod

import numpy as np


class Counting(np.ndarray):
    """A view of an array; ``Counting.flops`` grows by 2mnk with every product, of it or of what was made of it."""

    flops = 0

    def __array_ufunc__(self, ufunc, method, *inputs, out=(), **options):
        plain = [bare(x) for x in inputs]
        if out:
            options["out"] = tuple(bare(x) for x in out)
        result = getattr(ufunc, method)(*plain, **options)
        if ufunc is np.matmul:
            Counting.flops += 2 * prod(np.shape(result)) * plain[0].shape[-1]
        if out:
            return out[0]  # as it was given: a += b keeps being what a was
        return counting(result)

    def __array_function__(self, function, types, args, options):
        plain = bare(args)
        result = function(*plain, **{name: bare(value) for name, value in options.items()})
        if function is np.einsum:
            Counting.flops += einsum_flops(*plain)
        elif function is np.dot:
            Counting.flops += 2 * prod(np.shape(result)) * plain[0].shape[-1]
        return counting(result)


def einsum_flops(equation, *arrays):
    """2 Π sizes where no operand has all the letters (else it is a sum of elementwise products)."""
    terms = equation.split("->")[0].split(",")
    if "..." in equation:
        return 0  # of the same axes on both sides
    sizes = {letter: n for term, a in zip(terms, arrays, strict=True) for letter, n in zip(term, a.shape, strict=True)}
    product = len(terms) > 1 and all(len(set(term)) < len(sizes) for term in terms)
    return 2 * prod(sizes.values()) * (len(terms) - 1) if product else 0


def counting(x):
    return x.view(Counting) if type(x) is np.ndarray and x.dtype.kind == "f" else x


def bare(x):
    if isinstance(x, Counting):
        return x.view(np.ndarray)
    return type(x)(bare(y) for y in x) if isinstance(x, tuple | list) else x
