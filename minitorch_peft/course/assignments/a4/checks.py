"""The checks of assignment A4. Expected values come from loops over single elements, from formed matrices and from
complex steps; what is fast is fast against a loop that runs in the same process."""

from __future__ import annotations

import math
import time
from itertools import pairwise
from statistics import NormalDist
from typing import Any

import numpy as np
from hypothesis import strategies as st

from minitorch_peft.course.checks import Code, Variant, check
from minitorch_peft.course.expect import close, equal, held, require, vjp
from minitorch_peft.testing import Draw, shapes

f32 = np.float32

NF4 = np.array([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
], f32)  # fmt: skip
INT4 = (np.arange(-8, 8) / 7).astype(f32)
TABLES = {"nf4": (NF4, 7), "int4": (INT4, 8)}  # values, and the code of 0


# -- 4.1 the table -----------------------------------------------------------------------------------------------------
@check("4.1", "the sixteen values, as every library has them")
def published_values(code: Code) -> None:
    got = code("kernels.four_bit.codes:code_table", "nf4")
    because = (
        "float32_linspace spaces the quantiles; float64 until the values are sorted, float32 when they are divided"
    )
    close(got, NF4, "code_table('nf4')", rtol=1e-3)
    equal(got, NF4, "code_table('nf4')", because)


def normal_values(offset: float) -> np.ndarray:
    """Eight quantiles from the right half, seven from the left, and 0; the largest is 1."""
    found = [0.0]
    for count, sign in ((8, 1), (7, -1)):
        found += [sign * NormalDist().inv_cdf(0.5 + (offset - 0.5) * i / count) for i in range(1, count + 1)]
    return (np.sort(found) / max(found)).astype(f32)


@check(
    "4.1", "the values are quantiles: with another largest quantile, other values", examples=15,
    given=lambda v: {"offset": st.floats(0.6, 0.999)},
)  # fmt: skip
def values_follow_the_offset(code: Code, offset: float) -> None:
    got = code("probes:table", offset)
    because = "the largest quantile is codes.NF4_OFFSET: the values must be computed from it"
    close(got, normal_values(offset), f"the values for NF4_OFFSET = {offset}", rtol=3e-6, because=because)


@check("4.1", "where 0.9677083 comes from", given=lambda v: {"bits": st.integers(1, 12)}, examples=12)
def quantile_of_bits(code: Code, bits: int) -> None:
    got = code("course.assignments.a4.figures:largest_quantile", bits)
    middles = []
    for pieces in (2**bits, 2**bits - 1):
        edges = [i / pieces for i in range(pieces + 1)]
        middles.append((edges[-2] + edges[-1]) / 2)
    close(got, sum(middles) / 2, f"largest_quantile({bits})", rtol=1e-12)


# -- 4.2 quantize ------------------------------------------------------------------------------------------------------
def quantized(x: np.ndarray, blocksize: int, quant_type: str) -> tuple[np.ndarray, np.ndarray]:
    """packed and absmax, element by element."""
    (values, zero), flat = TABLES[quant_type], x.reshape(-1)
    middles = np.array([(a + b) * f32(0.5) for a, b in pairwise(values)])
    numbers: list[int] = []
    statistics: list[np.float32] = []
    for start in range(0, flat.size, blocksize):
        block = flat[start : start + blocksize]
        statistics.append(max(abs(value) for value in block))
        numbers += [int(np.count_nonzero(middles < scaled(value, statistics[-1]))) for value in block]
    numbers += [zero] * (len(numbers) % 2)
    pairs = [16 * high + low for high, low in zip(numbers[::2], numbers[1::2], strict=True)]
    return np.array(pairs, np.uint8), np.array(statistics, f32)


def scaled(value: np.float32, largest: np.float32) -> np.float32:
    if largest == 0:
        return f32(0)
    with np.errstate(over="ignore"):
        reciprocal = f32(1) / largest
    return value * reciprocal if np.isfinite(reciprocal) else value / largest


SCALES = [1.0, 8.0, 0.3, 0.0, 2.0**-20, 2.0**-130]


@st.composite
def tensors(draw: Draw, v: Variant, blocksize: int = 32) -> np.ndarray:
    """float32 of a few blocks: a few numbers in turns, each block with a scale of its own."""
    size = draw(st.integers(0, blocksize * (v.max_side - 1) + 5))
    ties = st.sampled_from([float((a + b) * f32(0.5)) for a, b in pairwise(NF4)])
    number = st.sampled_from([1.0, 0.0, -0.0, -1.0, 0.5]) | ties | st.floats(-1, 1, width=32)
    values = np.resize(np.array(draw(st.lists(number, min_size=1, max_size=6)), f32), size)
    scales = draw(st.lists(st.sampled_from(SCALES), min_size=-(-size // blocksize), max_size=-(-size // blocksize)))
    x = values * np.repeat(np.array(scales, f32), blocksize)[:size]
    rows = draw(st.sampled_from([n for n in (1, 2, 3) if size % n == 0]))
    return x.reshape(draw(st.sampled_from([(size,), (rows, size // rows)])))


@check(
    "4.2", "codes, packing and absmax, to the bit",
    given=lambda v: {"x": tensors(v), "quant_type": st.sampled_from(["nf4", "int4"])},
)  # fmt: skip
def quantize_values(code: Code, x: np.ndarray, quant_type: str) -> None:
    as_quantized(code, x, 32, quant_type)


def as_quantized(
    code: Code, x: np.ndarray, blocksize: int, quant_type: str = "nf4", because: str | None = None
) -> None:
    got = code("probes:quantize", x, blocksize, quant_type)
    require(isinstance(got, list) and len(got) == 6, "a Quantized is due: packed, absmax, shape, blocksize, ...")
    packed, absmax = quantized(x, blocksize, quant_type)
    what = f"of x of shape {x.shape} in {quant_type}, blocks of {blocksize},"
    equal(got[1], absmax, f"absmax {what}", "the largest magnitude of each block of the flattened tensor")
    require(isinstance(got[0], np.ndarray), f"packed {what} is {type(got[0]).__name__}; an array is due")
    equal(got[0], packed, f"packed {what}", because or packing_cause(got[0], packed))
    equal(got[2:], [list(x.shape), blocksize, quant_type, None], f"the rest {what}")


def packing_cause(got: np.ndarray, want: np.ndarray) -> str | None:
    if got.dtype != np.uint8 or got.shape != want.shape:
        return "two codes in one byte, uint8: an odd number of elements is filled up with the code of 0"
    if (got == (want << 4 | want >> 4)).all():
        return "the two halves of each byte are exchanged: the even element is in the high four bits"
    wrong = np.flatnonzero(got != want)
    if wrong.tolist() == [want.size - 1]:
        return "only the last byte is wrong: what fills up an odd number of elements, or a partial block?"
    return None


@check("4.2", "an element in the middle of two values goes to the lower code")
def quantize_ties(code: Code) -> None:
    middles = np.array([(a + b) * f32(0.5) for a, b in pairwise(NF4)], f32)
    above, below = np.nextafter(middles, f32(2)), np.nextafter(middles, f32(-2))
    because = "> and >= differ here: the middles are float32 numbers, and one in the middle goes to the lower code"
    for name, values in (("in the middle", middles), ("above it", above), ("below it", below)):
        for largest in (f32(1), f32(-1)):
            got = code("probes:quantize", np.append(values, largest), 64, "nf4")
            expected = quantized(np.append(values, largest), 64, "nf4")[0]
            equal(got[0], expected, f"packed of the fifteen numbers {name}, and {largest:g},", because)


def critical(seed: int) -> list[np.ndarray]:
    """Numbers whose codes differ between x * (1 / absmax) and x / absmax in float32: three tensors of a block each."""
    middles = [(a + b) * f32(0.5) for a, b in pairwise(NF4)]
    rng = np.random.default_rng(seed)
    found: list[np.ndarray] = []
    while len(found) < 3:
        largest = f32(rng.uniform(0.01, 10))
        near = [f32(m * largest) for m in middles]
        values = np.array([n for m in near for n in (m, np.nextafter(m, f32(99)), np.nextafter(m, f32(-99)))], f32)
        one, other = (np.searchsorted(middles, way) for way in (values * (1 / largest), values / largest))
        if (one != other).any():
            found.append(np.append(values[one != other], largest))
    return found


RECIPROCAL = "in float32 x * (1 / absmax) and x / absmax may differ in the last bit, and here they have other codes"


@check("4.2", "x is multiplied by 1 / absmax in float32, not divided by absmax")
def quantize_reciprocal(code: Code, variant: Variant) -> None:
    for x in critical(variant.seed):
        as_quantized(code, x, 64, because=RECIPROCAL)


@check("4.2", "blocks of zeros, of tiny numbers, and a last half byte")
def quantize_edges(code: Code) -> None:
    tiny = np.zeros((2, 40), f32)
    tiny[1, 3:] = np.arange(37) * f32(2.0**-149)
    for x in (np.zeros((3, 33), f32), tiny, np.zeros(0, f32), np.zeros((2, 0), f32), np.full(1, -3, f32)):
        as_quantized(code, x, 32)


@check("4.2", "a large tensor, whose rows are no whole number of blocks")
def quantize_large(code: Code, variant: Variant) -> None:
    x = np.random.default_rng(variant.seed).standard_normal((37, 101), f32)
    for blocksize in (64, 4096):
        as_quantized(code, x, blocksize)


# -- 4.3 dequantize ----------------------------------------------------------------------------------------------------
FP4 = np.array([0, 1 / 192, 2 / 3, 1, 1 / 3, 1 / 2, 1 / 6, 1 / 4], f32)
VALUES = {"nf4": NF4, "int4": INT4, "fp4": np.concatenate([FP4, 0 - FP4])}


def dequantized(packed: np.ndarray, absmax: np.ndarray, shape: tuple[int, ...], values: np.ndarray) -> np.ndarray:
    """Blocks of 32, element by element."""
    out = np.empty(math.prod(shape), f32)
    for i in range(out.size):
        number = packed[i // 2] % 16 if i % 2 else packed[i // 2] // 16
        out[i] = values[number] * absmax[i // 32]
    return out.reshape(shape)


@st.composite
def packed_tensors(draw: Draw, v: Variant) -> dict[str, Any]:
    few = st.sampled_from([(), (1,), (3,), (0,), (33,), (2, 32), (5, 7), (3, 3, 11)])
    shape = draw(few if v.name == "public" else few | shapes(0, 3, 0, 7))
    size, seed = math.prod(shape), draw(st.integers(0, 99))
    rng = np.random.default_rng(seed)
    packed = rng.integers(0, 256, (size + 1) // 2).astype(np.uint8)
    absmax = rng.choice(np.array([0, 1, 3, 0.1], f32), -(-size // 32))
    return {"packed": packed, "absmax": absmax, "shape": list(shape), "quant_type": draw(st.sampled_from(list(VALUES)))}


@check("4.3", "each code's value times its block's absmax", given=lambda v: {"case": packed_tensors(v)})
def dequantize_values(code: Code, case: dict[str, Any]) -> None:
    packed, absmax, shape, quant_type = case.values()
    got = code("probes:dequantize", [packed, absmax, shape, 32, quant_type, None], "float32")
    expected = dequantized(packed, absmax, tuple(shape), VALUES[quant_type])
    what = f"the tensor of shape {tuple(shape)} in {quant_type}"
    swapped = dequantized(packed << 4 | packed >> 4, absmax, tuple(shape), VALUES[quant_type])
    halves = isinstance(got, np.ndarray) and got.shape == swapped.shape and (got == swapped).all()
    equal(got, expected, what, "the even element is in the high four bits" if halves else None)


@check("4.3", "all 256 bytes, in blocks of 64")
def dequantize_bytes(code: Code) -> None:
    absmax = np.arange(1, 9).astype(f32)
    for quant_type, values in VALUES.items():
        got = code(
            "probes:dequantize", [np.arange(256).astype(np.uint8), absmax, [512], 64, quant_type, None], "float32"
        )
        expected = [values[n] * absmax[i // 64] for i, n in enumerate(n for b in range(256) for n in divmod(b, 16))]
        equal(got, np.array(expected, f32), f"the bytes 0 to 255 in {quant_type}")


@check("4.3", "float32 on the way: float16 and bfloat16 are made of it")
def dequantize_halves(code: Code, variant: Variant) -> None:
    rng = np.random.default_rng(variant.seed)
    packed, absmax = rng.integers(0, 256, 33).astype(np.uint8), rng.uniform(0.1, 5, 3).astype(f32)
    expected = dequantized(packed, absmax, (65,), NF4)
    for dtype, bits in (("float16", expected.astype(np.float16)), ("bfloat16", bfloat16(expected))):
        got = code("probes:dequantize", [packed, absmax, [65], 32, "nf4", None], dtype)
        equal(got, bits, f"65 numbers as {dtype}", "are `values` float32?")


def bfloat16(values: np.ndarray) -> np.ndarray:
    """The nearest numbers of 8 bits of fraction; of two equally near, the even one."""
    fraction, exponent = np.frexp(values.astype(float))
    return (np.ldexp(np.round(fraction * 256), exponent - 8).astype(f32).view(np.uint32) >> 16).astype(np.uint16)


# -- 4.4 double quantization -------------------------------------------------------------------------------------------
def dynamic_map() -> np.ndarray:
    """The 256 values of the dynamic type: in each decade the middles of equal intervals."""
    found = [0.0, 1.0]
    for decade in range(7):
        edges = [0.1 + 0.9 * i / 2**decade for i in range(2**decade + 1)]
        middles = [(a + b) / 2 * 10.0 ** (decade - 6) for a, b in pairwise(edges)]
        found += middles + [-m for m in middles]
    return np.array(sorted(found), f32)


@st.composite
def statistics_of(draw: Draw, v: Variant) -> np.ndarray:
    """Largest magnitudes of a few or of some hundred blocks."""
    size = draw(st.integers(0, 6) | st.sampled_from([255, 256, 257, 100 * v.max_side]))
    values = draw(st.lists(st.floats(0, 8, width=16) | st.sampled_from([1.0, 2.5]), min_size=1, max_size=8))
    return np.resize(np.array(values, f32), size)


@check("4.4", "absmax minus its mean, in eight bits", given=lambda v: {"absmax": statistics_of(v)}, examples=25)
def compressed_statistics(code: Code, absmax: np.ndarray) -> None:
    got = code("probes:compressed", absmax)
    require(isinstance(got, list) and len(got) == 6, "a Quantized is due")
    numbers, nested = got[1], got[5]
    require(isinstance(nested, list) and len(nested) == 4, "nested is due: code, absmax, offset, blocksize")
    table, second, offset, blocksize = nested
    exact = float(np.mean(absmax.astype(float))) if absmax.size else 0.0
    require(type(offset) is float, f"the offset is {offset!r}; a float is due")
    close(offset, exact, f"the offset of {absmax.size} statistics", rtol=1e-6, because="the mean of all of them")
    equal(blocksize, 256, "nested.blocksize")
    close(table, dynamic_map(), "nested.code", rtol=1e-6, because="the signed dynamic map")
    rest = absmax - f32(offset)
    starts = range(0, rest.size, 256)
    largest = np.array([np.abs(rest[i : i + 256]).max() for i in starts], f32)
    equal(second, largest, "nested.absmax", "of each 256 differences from the mean, the largest magnitude")
    require(
        isinstance(numbers, np.ndarray) and numbers.dtype == np.uint8 and numbers.shape == absmax.shape,
        f"absmax of {absmax.size} blocks is no uint8 array with one number for each",
    )  # fmt: skip
    for i, value in enumerate(rest):
        near = np.abs(table.astype(float) - float(scaled(value, largest[i // 256])))
        require(
            near[numbers[i]] <= near.min() * (1 + 1e-5) + 1e-9,
            f"statistic {i}, {absmax[i]:g}, has number {numbers[i]}: the value {table[numbers[i]]:g} of the table, "
            f"while {table[near.argmin()]:g} is nearer to {scaled(value, largest[i // 256]):g}",
            "the nearest of the 256 values, after the mean is taken away and the rest is scaled",
        )  # fmt: skip


@check("4.4", "a difference in the middle of two values goes to the even number")
def compressed_ties(code: Code) -> None:
    table = np.arange(-128, 128).astype(f32) / 127
    middles = (table[:-1] + table[1:]) * f32(0.5)
    x = np.append(middles[100:104], f32(table[-1]))
    got = code("kernels.eight_bit.reference:quantize_blockwise", x, table, 256)
    require(isinstance(got, list) and len(got) == 2, "quantize_blockwise gives two arrays: codes, absmax")
    equal(got[0], np.array([100, 102, 102, 104, 255], np.uint8), "codes of four middles", "use eight_bit's boundaries")
    equal(got[1], table[-1:], "absmax")


@st.composite
def nested_statistics(draw: Draw, v: Variant) -> dict[str, Any]:
    size = draw(st.integers(0, 4) | st.sampled_from([256, 257, 200 * v.max_side]))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    return {
        "numbers": rng.integers(0, 256, size).astype(np.uint8),
        "second": rng.choice(np.array([0, 1, 0.5, 3], f32), -(-size // 256)),
        "offset": float(f32(draw(st.sampled_from([0.0, 1.0, 0.3])))),
    }


@check(
    "4.4", "and back: number, table, second absmax, mean", given=lambda v: {"case": nested_statistics(v)}, examples=20
)
def recovered_statistics(code: Code, case: dict[str, Any]) -> None:
    numbers, second, offset = case.values()
    table = (np.arange(256).astype(f32) - 128) / 128
    got = code("probes:statistics", numbers, table, second, offset)
    expected = [table[n] * second[i // 256] + f32(offset) for i, n in enumerate(numbers)]
    close(got, np.array(expected, f32), f"the absmax of {numbers.size} blocks", rtol=1e-6)


@check(
    "4.4", "the bits that are stored",
    given=lambda v: {
        "size": st.integers(0, 200) | st.integers(0, 10**9), "blocksize": st.sampled_from([32, 64, 4096]),
        "nested": st.booleans(),
    },
)  # fmt: skip
def bits(code: Code, size: int, blocksize: int, nested: bool) -> None:
    got = code("course.assignments.a4.figures:stored_bits", size, blocksize, nested)
    blocks = math.ceil(size / blocksize)
    stored = {"packed": (math.ceil(size / 2), 8), "absmax": (blocks, 8 if nested else 32)}
    if nested:
        stored |= {"nested.absmax": (math.ceil(blocks / 256), 32), "nested.offset": (1, 32)}
    expected = sum(count * width for count, width in stored.values())
    require(isinstance(got, int | np.integer) and not isinstance(got, bool), f"{got!r} bits: a whole number is due")
    listed = ", ".join(f"{name} has {count:,} numbers of {width} bits" for name, (count, width) in stored.items())
    require(int(got) == expected, f"stored_bits({size}, {blocksize}, {nested}) is {got}; expected {expected}", listed)


# -- 4.5 the compiled loops --------------------------------------------------------------------------------------------
LONG = 1 << 17
# Measured on one core, with vectors of 4, 8 and 16: the library's loop 8.7, 6.9 and 19; four steps of a binary search
# without branches, one element at a time, 3.7 to 4.5; all fifteen comparisons, one element at a time, 1.4 to 2.3.
FASTER = 3
RACES, LAPS = 6, 10


@check("4.5", "the same codes and statistics as one element at a time", given=lambda v: {"x": tensors(v)})
def compiled_values(code: Code, x: np.ndarray) -> None:
    as_compiled(code, x.reshape(-1), 32)


def as_compiled(code: Code, x: np.ndarray, blocksize: int, because: str | None = None) -> None:
    got = code("probes:compiled", x, blocksize)
    packed, absmax = quantized(x, blocksize, "nf4")
    what = f"of {x.size} elements, blocks of {blocksize},"
    require(not got["beyond"], f"for {x.size} elements, something was written outside of packed or absmax")
    equal(got["absmax"], absmax, f"absmax {what}")
    equal(got["packed"], packed, f"packed {what}", because or packing_cause(got["packed"], packed))


@check("4.5", "blocks of every size, whole and partial; the reciprocal first")
def compiled_blocks(code: Code, variant: Variant) -> None:
    x = np.random.default_rng(variant.seed).standard_normal(5000, f32)
    for size, blocksize in ((5000, 64), (4097, 4096), (999, 128), (64, 64), (65, 64)):
        as_compiled(code, x[:size], blocksize)
    for few in critical(variant.seed):
        as_compiled(code, few, 64, RECIPROCAL)


@check("4.5", "nothing is allocated")
def compiled_allocations(code: Code) -> None:
    found = code("probes:allocations", LONG)
    require(
        found["count"] == 0 and found["peak"] < 400_000,
        f"for {LONG:,} elements {found['count']} arrays were allocated, and {found['peak']:,} bytes by Python",
        "np.empty, or an expression of whole arrays: numbers can stay in registers, and slices allocate nothing",
    )  # fmt: skip


@check("4.5", f"at least {FASTER:g} times as fast as one element at a time")
def compiled_speed(code: Code, variant: Variant) -> None:
    seconds = {"quantize_slowly": math.inf, "quantize_blocks": math.inf}
    written: dict[str, Any] = {}
    for _ in range(RACES):
        for name in seconds:
            started = time.perf_counter()
            written[name] = code("probes:rounds", name, LONG, variant.seed, LAPS)
            seconds[name] = min(seconds[name], time.perf_counter() - started)
    for key in ("absmax", "packed"):
        equal(written["quantize_blocks"][key], written["quantize_slowly"][key], f"{key} of {LONG:,} elements")
    ratio = seconds["quantize_slowly"] / seconds["quantize_blocks"]
    vectors = code("probes:allocations", 1 << 12)["vectors"]
    require(
        ratio >= FASTER, f"it is {ratio:.2f} times as fast as quantize_slowly on {LONG:,} elements",
        "the comparisons are of vectors already: what else is done for each element?" if vectors else
        "the comparisons are of single numbers: one plain loop over a block (a slice), without branches, and with "
        "codes counted in int32, becomes a loop over vectors",
    )  # fmt: skip


# -- 4.6 the backward pass ---------------------------------------------------------------------------------------------
def weight_of(rng: np.random.Generator, N: int, K: int, blocksize: int) -> tuple[list[Any], np.ndarray]:
    """A weight in int4 (whose table is no task's), as parts and dequantized."""
    numbers, absmax = rng.integers(1, 16, N * K), rng.uniform(0.5, 2, math.ceil(N * K / blocksize)).astype(f32)
    packed = np.append(numbers, [8] * (numbers.size % 2)).reshape(-1, 2) @ [16, 1]
    values = INT4.take(numbers) * absmax[np.arange(numbers.size) // blocksize]
    return [packed.astype(np.uint8), absmax, [N, K], blocksize, "int4", None], values.reshape(N, K)


@st.composite
def some_rows(draw: Draw, v: Variant) -> dict[str, Any]:
    N, K = draw(st.integers(1, 3 * v.max_side)), draw(st.integers(1, 12 * v.max_side))
    first = draw(st.integers(0, N - 1))
    return {"N": N, "K": K, "first": first, "last": draw(st.integers(first + 1, N))}


@check("4.6", "some rows of the weight, wherever its blocks begin", given=lambda v: {"case": some_rows(v)})
def rows_values(code: Code, case: dict[str, Any]) -> None:
    N, K, first, last = case.values()
    parts, dense = weight_of(np.random.default_rng(N + K), N, K, 32)
    got = code("probes:weight_rows", parts, first, last)
    because = "in which block does the first element lie, and where in it? In which half of its byte?"
    equal(got, dense[first:last], f"rows {first} to {last} of a weight of {N} x {K} in blocks of 32", because)


@st.composite
def backward_cases(draw: Draw, v: Variant) -> dict[str, Any]:
    K, r = draw(st.integers(1, 3 * v.max_side)), draw(st.integers(1, v.max_side))
    N = draw(st.integers(1, v.max_side) | st.sampled_from([31, 32, 33, 65]))
    lead = draw(shapes(0, 2, 1, v.max_side))
    sizes = {"grad": (*lead, N), "x": (*lead, K), "a": (r, K), "b": (N, r)}
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    case: dict[str, Any] = {name: rng.standard_normal(shape) for name, shape in sizes.items()}
    return {**case, "weight": weight_of(rng, N, K, 32), "s": draw(st.sampled_from([1.0, 0.5, 2.0]))}


NAMES = {"dx": "x", "da": "a", "db": "b"}


def layer(x: Any, a: Any, b: Any, dense: np.ndarray, s: float) -> Any:
    return x @ dense.T + s * ((x @ a.T) @ b.T)


def backward(code: Code, case: dict[str, Any], needs: list[bool]) -> dict[str, Any]:
    """The gradients by name."""
    grad, x, a, b, (parts, _), s = case.values()
    got = code("probes:backward", grad, x, x @ a.T, parts, a, b, s, needs)
    require(isinstance(got, list) and len(got) == 3, "three results are due: dx, da, db")
    return dict(zip(NAMES, got, strict=True))


@check("4.6", "the gradients of x, A and B", given=lambda v: {"case": backward_cases(v)}, examples=25)
def backward_values(code: Code, case: dict[str, Any]) -> None:
    got, dense = backward(code, case, [True] * 3), case["weight"][1].astype(float)
    values = {name: case[name] for name in NAMES.values()}
    for label, name in NAMES.items():

        def f(value: np.ndarray, name: str = name) -> Any:
            return layer(**{**values, name: value}, dense=dense, s=case["s"])

        close(got[label], vjp(f, case[name], case["grad"]), label)


@check("4.6", "None where no gradient is needed; float32 in, float32 out")
def backward_needs(code: Code, variant: Variant) -> None:
    rng = np.random.default_rng(variant.seed)
    sizes = {"grad": (2, 3, 40), "x": (2, 3, 7), "a": (2, 7), "b": (40, 2)}
    case: dict[str, Any] = {name: rng.standard_normal(shape, f32) for name, shape in sizes.items()}
    case |= {"weight": weight_of(rng, 40, 7, 32), "s": 0.3}
    grad, x, a, b = (case[name].astype(float) for name in ("grad", "x", "a", "b"))
    rows, g = x.reshape(-1, 7), grad.reshape(-1, 40)
    for number in range(8):
        needs = [bool(number & 1), bool(number & 2), bool(number & 4)]
        got, dense = backward(code, case, needs), case["weight"][1].astype(float)
        below = 0.3 * (g @ b)
        exact = {"dx": (g @ dense + below @ a).reshape(x.shape), "da": below.T @ rows,
                 "db": 0.3 * (g.T @ (rows @ a.T))}  # fmt: skip
        for need, (label, value) in zip(needs, exact.items(), strict=True):
            if need:
                close(got[label], value.astype(f32), label, rtol=1e-5, atol=1e-5)
            else:
                require(got[label] is None, f"{label} is not needed, but it is not None")


WIDTH = 1024


@check("4.6", "the weight is never held in full")
def backward_memory(code: Code, variant: Variant) -> None:
    rng = np.random.default_rng(variant.seed)
    parts, dense = weight_of(rng, WIDTH, WIDTH, 64)
    grad, x = rng.standard_normal((1, WIDTH), f32), rng.standard_normal((1, WIDTH), f32)
    a, b = rng.standard_normal((2, WIDTH), f32), rng.standard_normal((WIDTH, 2), f32)
    for needs, limit, because in (
        ([True] * 3, WIDTH * WIDTH, "dequantize TILE rows, use them, and forget them before the next ones"),
        ([False, True, True], WIDTH * WIDTH // 2, "only dx needs the weight"),
    ):
        found = code("probes:backward_traced", [grad, x, x @ a.T, parts, a, b, 0.5, needs])
        message = f"a weight of {WIDTH} x {WIDTH}, in float32 {WIDTH * WIDTH * 4:,} bytes: backward took {{}} bytes"
        got = held(found, limit, message, because)
        require(isinstance(got, list) and len(got) == 3, "three results are due: dx, da, db")
        if needs[0]:
            expected = grad @ dense.astype(float) + 0.5 * (grad.astype(float) @ b) @ a
            close(got[0], expected.astype(f32), f"dx of a layer of {WIDTH} x {WIDTH}", rtol=1e-4, atol=1e-3)


# -- 4.7 the kernel for the GPU ----------------------------------------------------------------------------------------
@st.composite
def tilings(draw: Draw, v: Variant) -> dict[str, Any]:
    """Sizes that are no multiples of the blocks, and one block or several."""
    side = st.integers(1, 8 * v.max_side) | st.sampled_from([16, 17, 32, 33])
    R, N, K = draw(side), draw(side), draw(side)
    blocks = [draw(st.sampled_from([16, 32])) for _ in range(3)]
    return {"R": R, "N": N, "K": K, "r": draw(st.integers(1, 5) | st.just(16)), "blocks": [*blocks, 16],
            "seed": draw(st.integers(0, 9))}  # fmt: skip


@check("4.7", "y, for sizes that are no multiples of the blocks", given=lambda v: {"case": tilings(v)}, examples=12)
def tiles_values(code: Code, case: dict[str, Any]) -> None:
    R, N, K, r, blocks, seed = case.values()
    rng = np.random.default_rng(seed)
    x, w, xa, b = (rng.standard_normal(shape, f32) for shape in ((R, K), (N, K), (R, r), (N, r)))
    as_tiled(code, x, w, xa, b, 0.5, blocks, rtol=1e-4)


def as_tiled(
    code: Code, x: np.ndarray, w: np.ndarray, xa: np.ndarray, b: np.ndarray, s: float, blocks: list[int], rtol: float
) -> None:
    y = code("probes:tiled", x, w, xa, b, s, blocks)
    (R, K), (N, r) = x.shape, b.shape
    what = f"y for R, N, K, r = {R}, {N}, {K}, {r} in blocks of {', '.join(map(str, blocks))}"
    exact = x.astype(float) @ w.astype(float).T + s * (xa.astype(float) @ b.astype(float).T)
    if np.isnan(y).any():
        row, column = (int(i) for i in np.argwhere(np.isnan(y))[0])
        require(False, f"{what}: nobody wrote element ({row}, {column})", "which tile does program (i, j) have?")
    close(y, exact.astype(x.dtype), what, rtol=rtol, atol=rtol)


@check("4.7", "float16 in, float16 out, sums in float32")
def tiles_halves(code: Code, variant: Variant) -> None:
    x = np.full((3, 250), 1, np.float16)
    w = np.full((5, 250), 0.1, np.float16)
    x[:, 0], w[:, 0] = 100, 20  # after 2000, float16 adds 0.1 in vain
    low = np.random.default_rng(variant.seed).standard_normal((3, 2)).astype(np.float16)
    up = np.random.default_rng(variant.seed + 1).standard_normal((5, 2)).astype(np.float16)
    as_tiled(code, x, w, low, up, 2.0, [16, 16, 16, 16], rtol=1e-3)
