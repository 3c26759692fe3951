"""Verify a kernel's versions against the reference, then time them: the way from naive to fast, step by step.

    python -m minitorch_peft.kernels --list
    python -m minitorch_peft.kernels gelu_tanh_forward               # every version
    python -m minitorch_peft.kernels gelu_tanh_forward polynomial    # one of them
    python -m minitorch_peft.kernels gelu_tanh --size small          # forward and backward; or a family's name

Each version meets small ragged arguments and those of a model; one that disagrees with the reference in float64 is
reported and not timed, and the command ends with 1. It ends with 2 if the one version that was asked for cannot run
here (for want of Numba, Triton or a GPU).
"""

from __future__ import annotations

import argparse
import difflib
import sys
import textwrap
from collections.abc import Callable
from functools import partial

from .device.driver import NoGPUError
from .dispatch import FAMILIES, TABLE, NotInstalledError, has_numba
from .examples import SIZES, Draw, Example, examples
from .ladder import Rung, versions
from .timing import best_times, bytes_in_place, bytes_moved
from .verify import described, disagreement, first_disagreement, results

DRAWS = 12
WIDTH = 100


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m minitorch_peft.kernels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="a kernel, the stem of two, or a family")
    parser.add_argument("version", nargs="?", metavar="VERSION", help="one version of it (see --list)")
    parser.add_argument("--list", action="store_true", help="kernels and their versions, by family")
    parser.add_argument(
        "--size", choices=SIZES, help="the model whose arrays are timed (the kernel's own if not given)"
    )
    parser.add_argument("--seconds", type=float, default=0.5, help="how long to time each version (%(default)s)")
    options = parser.parse_args(argv)
    if options.list:
        return print_list()
    if options.name is None:
        parser.error("give the NAME of a kernel or family; --list shows them")
    kernels = named(options.name)
    if not kernels:
        parser.error(unknown(options.name, [*TABLE, *FAMILIES]))
    rungs = {kernel: versions(kernel) for kernel in kernels}
    if options.version:
        names = list(dict.fromkeys(rung.name for each in rungs.values() for rung in each))
        if options.version not in names:
            more = "" if has_numba() else " (the others need numba, which is not installed: pip install numba)"
            parser.error(f"{options.name} has no version {options.version!r}; there are: {', '.join(names)}{more}")
        rungs = {kernel: tuple(r for r in each if r.name == options.version) for kernel, each in rungs.items()}
    fates = [fate for kernel, each in rungs.items() for fate in climb(kernel, each, options.size, options.seconds)]
    return 1 if "WRONG" in fates else 2 if options.version and "not run" in fates else 0


def print_list() -> int:
    for family, (kernels, _) in FAMILIES.items():
        print(family)
        for kernel in kernels:
            print(f"    {kernel:26s}{', '.join(rung.name for rung in versions(kernel))}")
    return 0


def named(name: str) -> tuple[str, ...]:
    """The kernels that are meant; none if nothing is called so.

    >>> named("silu"), named("silu_forward"), named("softmax")
    (('silu_forward', 'silu_backward'), ('silu_forward',), ('softmax_forward', 'softmax_backward'))
    """
    if name in FAMILIES:
        return FAMILIES[name][0]
    return tuple(kernel for kernel in TABLE if kernel in (name, f"{name}_forward", f"{name}_backward"))


def unknown(name: str, names: list[str]) -> str:
    """
    >>> unknown("matmull", ["matmul", "linear"])
    "no kernel or family is called 'matmull'; nearest: matmul; --list shows all"
    """
    nearest = difflib.get_close_matches(name, names, n=3, cutoff=0.3)
    hint = f"nearest: {', '.join(nearest)}; " if nearest else ""
    return f"no kernel or family is called {name!r}; {hint}--list shows all"


def climb(kernel: str, rungs: tuple[Rung, ...], size: str | None, seconds: float) -> list[str]:
    """Verify the versions, time those that are right, print them; what ``verdict`` says of each."""
    example = examples()[kernel]
    size = size or example.size
    args = example.typical(Draw(0), SIZES[size])
    print(f"\n{kernel} ({size}: {textwrap.shorten(described(args), 150)})")
    verdicts = [verdict(kernel, rung, args) for rung in rungs]
    right = [rung for rung, (fate, _) in zip(rungs, verdicts, strict=True) if fate == "right"]
    times = dict(zip(right, best_times([partial(rung.function, *args) for rung in right], seconds), strict=True))
    moved, flops = counted(example, right[0].function, args) if right else (0, 0)
    before = None
    print(f"{'version':<16s}{'time':>11s}{'GB/s':>8s}{'GF/s' if flops else '':>8s}  faster than the one before")
    for rung, (fate, reason) in zip(rungs, verdicts, strict=True):
        if rung in times:
            t = times[rung]
            rate = f"{flops / t / 1e9:.1f}" if flops else ""
            ratio = f"{before / t:.2f} x" if before else ""
            print(f"{rung.name:<16s}{1e3 * t:>8.3f} ms{moved / t / 1e9:8.1f}{rate:>8s}  {ratio}".rstrip())
            before = t
        else:
            print(f"{rung.name:<16s}{fate}: {reason}")
        print(textwrap.indent(textwrap.fill(rung.why, WIDTH - 4), "    "))
    return [fate for fate, _ in verdicts]


def verdict(kernel: str, rung: Rung, args: tuple) -> tuple[str, str]:
    """("right", ""), or why a version is not timed, under "WRONG", "right, not timed" or "not run"."""
    try:
        wrong = first_disagreement(kernel, rung.function, DRAWS)
        if rung.name == "triton":
            return ("WRONG", wrong) if wrong else ("right, not timed", "python -m benchmarks.gpu times it on a GPU")
        wrong = wrong or disagreement(kernel, rung.function, args, tolerance=1e-4)
    except (NoGPUError, NotInstalledError) as error:
        return "not run", str(error)
    return ("WRONG", wrong) if wrong else ("right", "")


def counted(example: Example, function: Callable, args: tuple) -> tuple[int, int]:
    """Bytes that have to be moved, and operations where the example counts them."""
    result = results(function, args, example.in_place)
    moved = bytes_in_place(args, result) if example.in_place else bytes_moved(args, result)
    return moved, example.flops(*args) if example.flops else 0


if __name__ == "__main__":
    sys.exit(main())
