"""The contender of benchmarks.kernels that is this package's kernels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from minitorch_peft.kernels import get
from minitorch_peft.kernels.examples import examples
from minitorch_peft.kernels.timing import bytes_in_place, bytes_moved
from minitorch_peft.kernels.verify import leaves, results

from benchmarks.contest import Prepared, serve_cases
from benchmarks.kernels_cases import arguments, copy_arguments, named, product_arguments


def prepare(name: str) -> Prepared:
    if name in MACHINE:
        return MACHINE[name]()
    case = named(name)
    function, example, args = kernel(case.kernel), examples()[case.kernel], arguments(case)
    result = results(function, args, example.in_place)
    moved = bytes_in_place(args, result) if example.in_place else bytes_moved(args, result)
    return Prepared(
        partial(function, *args), lambda: arrays_of(result), moved, example.flops(*args) if example.flops else 0
    )


def kernel(name: str) -> Callable:
    return get(name, np.dtype(np.float32))


def arrays_of(result: object) -> list:
    """The arrays of a result (bfloat16 as numbers, not bits); a number is one too."""
    arrays = [part for part in leaves(result) if isinstance(part, np.ndarray)] or [result]
    return [(a.astype(np.uint32) << 16).view(np.float32) if getattr(a, "dtype", 0) == np.uint16 else a for a in arrays]


def copy() -> Prepared:
    source, target = copy_arguments()
    np.copyto(target, source)
    return Prepared(lambda: np.copyto(target, source), lambda: target, 2 * source.nbytes)


def product() -> Prepared:
    x, weight = product_arguments()
    step = partial(kernel("linear_forward"), x, weight, None)
    return Prepared(step, step, bytes_moved((x, weight), x), 2 * len(x) * weight.size)


MACHINE = {"copy/machine": copy, "product/machine": product}

if __name__ == "__main__":
    serve_cases(prepare)
