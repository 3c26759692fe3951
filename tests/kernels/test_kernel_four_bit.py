"""NF4, FP4 and double quantization: golden values, ties, ragged ends, and what is refused."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from minitorch_peft.kernels import FAMILIES, get, use_backend
from minitorch_peft.kernels.four_bit import codes
from minitorch_peft.kernels.four_bit.layout import BLOCKSIZES, Nested, Quantized
from minitorch_peft.kernels.four_bit.reference import code_table, create_dynamic_map, dequantized_absmax

f32 = np.float32
TYPES = ("nf4", "fp4", "int4")

# the values and the tree of comparisons in bitsandbytes' csrc/kernels.cu
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip
NF4_TREE = [
    -0.8480964004993439, -0.6106329262256622, -0.4599952697753906, -0.33967943489551544, -0.23460740596055984,
    -0.13791173323988914, -0.045525018125772476, 0.03979014977812767, 0.1202552504837513, 0.2035212516784668,
    0.2920137718319893, 0.3893125355243683, 0.5016634166240692, 0.6427869200706482, 0.8614784181118011,
]  # fmt: skip

# what bitsandbytes 0.50 (CPU, blocks of 64) makes of RAMPS, STEPS and LINE
RAMPS = np.stack([(-1.0) ** np.arange(64) * np.arange(1, 65) / 8, 0.01 * np.arange(64) - 0.3]).astype(f32)
RAMPS_NF4 = (
    "77868686959595a4a4b4b3b3c3c3c2c2d2d2d2d1d1e1e1e1e1e1e1e0f0f0f0f0"
    "0001111111222223333444455566677788999aaabbbccccdddddeeeeeeefffff"
)
RAMPS_FP4 = (
    "19191e6e6e6e6f7f7f4c4c4c4c5d5d5d5d5d5a2a2a2a2a2a2a2a2b3b3b3b3b3b"
    "bbbaaaaaaaaddddddccccfffeeee990116666777444455555522222222333333"
)
STEPS = ((np.arange(128) * 37 % 128 - 64) / 64 * np.repeat([1, 0.3125], 64)).astype(f32)
STEPS_NF4 = (
    "039e16c039e16d04ae27d04bf27d15bf28e15cf39e15c039e16c03ae16d04ae2"
    "7d04bf28d15bf28e15cf39e16c039e16d03ae17d04af27d14bf28e15bf28e15c"
)
STEPS_FP4 = (
    "bd62ae5bc62a95bc72a95bf43d12af43d12ae43d62ae5bc62ae5bc72a95bc73d"
    "02bf43d12af43d62ae43d62ae5bc62a95bc72a95bc73d12bf43d12ae43d62ae5"
)
LINE = (np.arange(320, dtype=f32) / f32(100) - f32(1.3)).reshape(5, 64)


@pytest.fixture(params=["reference", "numba"])
def backend(request):
    with use_backend(request.param):
        yield request.param


def quantize(x: np.ndarray, *args, **kwargs) -> Quantized:
    return get("quantize_4bit", f32)(x, *args, **kwargs)


def dequantize(q: Quantized, *args, **kwargs) -> np.ndarray:
    return get("dequantize_4bit", f32)(q, *args, **kwargs)


def nibbles(q: Quantized) -> np.ndarray:
    return np.stack([q.packed >> 4, q.packed & 15], 1).reshape(-1)


def test_nf4_table_is_derived_to_the_bit():
    assert code_table("nf4").tolist() == NF4 == [float(f32(v)) for v in NF4]
    assert codes.boundaries("nf4").tolist() == np.array(NF4_TREE, f32).tolist()


def test_dynamic_map_is_that_of_bitsandbytes_to_the_bit():
    digests = [
        hashlib.sha256(create_dynamic_map(signed).astype("<f4").tobytes()).hexdigest() for signed in (True, False)
    ]
    assert digests[0] == "e732639a65f497b4ad684bb166a4467708255edd5207757de8b8f0c7e1fda89c"
    assert digests[1] == "305f002cc11278fb769d13b25b9fd0c7c83c8402c40a878fe086f4039fde6398"


def test_fp4_table_is_that_of_bitsandbytes():
    magnitudes = np.array([0, 0.005208333333, 0.66666667, 1, 0.33333333, 0.5, 0.16666667, 0.25], f32)
    assert code_table("fp4").tolist() == [*magnitudes, *(0 - magnitudes)]


def test_tables_cannot_be_changed():
    for table in (code_table("nf4"), codes.boundaries("fp4"), create_dynamic_map()):
        with pytest.raises(ValueError, match="read-only"):
            table[0] = 0


@pytest.mark.parametrize(
    ("x", "quant_type", "packed"),
    [(RAMPS, "nf4", RAMPS_NF4), (RAMPS, "fp4", RAMPS_FP4), (STEPS, "nf4", STEPS_NF4), (STEPS, "fp4", STEPS_FP4)],
)
def test_golden_bytes(backend, x, quant_type, packed):
    assert quantize(x, 64, quant_type).packed.tobytes().hex() == packed


def test_golden_values(backend):
    q = quantize(RAMPS)
    assert q.absmax.tolist() == [8.0, 0.33000001311302185]
    values = dequantize(q)
    assert values[0, :4].tolist() == [0, 0, 0.6366423964500427, -0.7284002900123596]
    assert values[1, :4].tolist() == [-0.33000001311302185] * 3 + [-0.22974362969398499]
    assert values.sum(dtype=np.float64) == -3.744263334199786
    assert dequantize(quantize(STEPS)).sum(dtype=np.float64) == -2.231057431548834


def test_golden_double_quantization(backend):
    q = quantize(LINE, compress_statistics=True)
    assert q.absmax.tolist() == [198, 25, 20, 194, 255]
    assert q.nested.offset == float.fromhex("0x1.245a1cp+0")
    assert q.nested.absmax.tolist() == [0.7480001449584961]
    assert dequantized_absmax(q).tolist() == [
        1.295690655708313, 0.662227988243103, 0.6096342206001282, 1.2536156177520752, 1.8900001049041748,
    ]  # fmt: skip


@pytest.mark.parametrize("blocksize", [64, 4096])
@pytest.mark.parametrize("quant_type", ["nf4", "int4"])
def test_in_the_middle_of_two_values_the_lower_code(backend, quant_type, blocksize):
    middles, first = codes.boundaries(quant_type), 0
    if quant_type == "int4":  # its code 0, -8/7, is out of reach
        middles, first = middles[1:], 1
    x = np.concatenate([[1], middles, np.nextafter(middles, f32(2)), np.nextafter(middles, f32(-2))]).astype(f32)
    lower, upper = list(range(first, 15)), list(range(first + 1, 16))
    assert nibbles(quantize(x, blocksize, quant_type))[1 : x.size].tolist() == lower + upper + lower


def test_x_is_multiplied_by_the_reciprocal(backend):
    """As on CUDA; x / absmax rounds otherwise now and then, and next to a boundary that is another code."""
    edges = codes.boundaries("nf4")
    scales = np.random.default_rng(0).uniform(1, 2, 4000).astype(f32)
    x = np.zeros((4000, 32), f32)
    x[:, 0], x[:, 1:16] = scales, edges * scales[:, None]
    multiplied, divided = x * (1 / scales)[:, None], x / scales[:, None]
    expected = np.searchsorted(edges, multiplied)
    assert (expected != np.searchsorted(edges, divided)).any()
    assert (nibbles(quantize(x, 32)).reshape(x.shape) == expected).all()


def test_fp4_in_the_middle_takes_the_smaller_magnitude_on_both_sides(backend):
    thresholds = np.array([0.00260417, 0.0859375, 0.20833333, 0.29166667, 0.4166667, 0.583333, 0.8333333], f32)
    above = np.nextafter(thresholds, f32(2))
    got = nibbles(quantize(np.concatenate([[1], thresholds, above, -thresholds, -above]).astype(f32), 64, "fp4"))[1:29]
    rising = [0, 1, 6, 7, 4, 5, 2, 3]
    assert got.tolist() == rising[:-1] + rising[1:] + [8 + c for c in rising[:-1]] + [8 + c for c in rising[1:]]


def test_fp4_has_the_sign_bit_only_below_zero(backend):
    q = quantize(np.array([1, 1e-6, -1e-6, 0.0, -0.0, -1e-44], f32), 64, "fp4")
    assert nibbles(q).tolist() == [3, 0, 8, 0, 0, 8]


@pytest.mark.parametrize("quant_type", TYPES)
def test_every_byte_is_decoded(backend, quant_type):
    q = Quantized(np.arange(256, dtype=np.uint8), np.array([1, 2, 3, 4, 5, 6, 7, 8], f32), (512,), 64, quant_type, None)
    values = dequantize(q).reshape(8, 64) / q.absmax[:, None]
    expected = code_table(quant_type)[nibbles(q)].reshape(8, 64) * q.absmax[:, None] / q.absmax[:, None]
    assert values.tobytes() == expected.tobytes()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_numba_gives_the_bits_of_the_definition(data):
    """Sizes around the blocks and the 4096 elements that are packed at a time, any dtype, zero and tiny blocks."""
    near = st.builds(lambda k, d: max(0, k + d), st.sampled_from([0, 64, 4096, 8192]), st.integers(-3, 3))
    n, seed = data.draw(near | st.integers(0, 300)), data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    size = np.repeat(rng.choice([0, 1e-45, 1e-41, 1e-38, 1, 1e4], n // 16 + 1), 16)[:n]
    x = (rng.standard_normal(n) * size).astype(data.draw(st.sampled_from(["float16", "float32", "float64"])))
    args = data.draw(st.sampled_from(BLOCKSIZES)), data.draw(st.sampled_from(TYPES)), data.draw(st.booleans())
    with use_backend("reference"):
        q = quantize(x, *args)
        values = {dtype: dequantize(q, dtype).tobytes() for dtype in ("float32", "float16", "bfloat16")}
    with use_backend("numba"):
        ours = quantize(x, *args)
        assert [a.tobytes() for a in ours[:2]] == [a.tobytes() for a in q[:2]] and ours[2:5] == q[2:5]
        assert {dtype: dequantize(ours, dtype).tobytes() for dtype in values} == values


def test_threads_put_their_parts_together():
    x = np.random.default_rng(0).standard_normal(70001).astype(f32)  # more than 2 * GRAIN, ragged
    for blocksize in (32, 4096):
        with use_backend("reference"):
            q = quantize(x, blocksize, "fp4", True)
            values = {dtype: dequantize(q, dtype) for dtype in ("float32", "float16", "bfloat16")}
        with use_backend("numba"):
            ours = quantize(x, blocksize, "fp4", True)
            assert ours.packed.tobytes() == q.packed.tobytes() and ours.absmax.tobytes() == q.absmax.tobytes()
            for dtype, expected in values.items():
                assert dequantize(ours, dtype).tobytes() == expected.tobytes(), dtype


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["nf4", "int4", "fp4"]), st.sampled_from([32, 64, 256]))
def test_the_error_is_at_most_half_the_widest_gap(seed, quant_type, blocksize):
    x = np.random.default_rng(seed).standard_normal((7, 96)).astype(f32)
    q = quantize(x, blocksize, quant_type)
    half_gap = np.diff(np.sort(code_table(quant_type))).max() / 2
    scale = np.repeat(q.absmax, blocksize)[: x.size].reshape(x.shape)
    assert (np.abs(dequantize(q) - x) <= (half_gap + 1e-6) * scale).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(TYPES))
def test_quantizing_again_changes_nothing(seed, quant_type):
    x = np.random.default_rng(seed).standard_normal(200).astype(f32)
    q = quantize(x, 64, quant_type)
    again = quantize(dequantize(q), 64, quant_type)
    zero = nibbles(q) == 8  # FP4 has a zero with a sign, which a float keeps no trace of
    kept = ~zero if quant_type == "fp4" else np.ones_like(zero)
    assert (nibbles(again)[kept] == nibbles(q)[kept]).all() and again.absmax.tolist() == q.absmax.tolist()


@pytest.mark.parametrize(("quant_type", "zero"), [("nf4", 7), ("fp4", 0), ("int4", 8)])
def test_zeros_have_the_code_of_zero_and_fill_the_last_byte(backend, quant_type, zero):
    x = np.zeros(129, f32)
    x[64:] = -1
    q = quantize(x, 64, quant_type)
    assert set(nibbles(q)[:64]) == {zero} and nibbles(q)[-1] == zero and q.absmax.tolist() == [0, 1, 1]
    assert dequantize(q).tolist() == x.tolist()
    assert np.signbit(dequantize(q)[:64]).sum() == 0


def test_a_block_too_small_for_a_reciprocal_is_divided(backend):
    x = np.array([1e-45, -1e-45, 0, 2**-130], f32)
    q = quantize(np.concatenate([x, np.zeros(60, f32), x[:2]]))
    assert nibbles(q)[[0, 1, 2, 3]].tolist() == [7, 7, 7, 15] and nibbles(q)[[64, 65]].tolist() == [15, 0]


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 0), ()])
def test_empty_and_scalar(backend, shape):
    x = np.full(shape, -2.5, f32)
    for compress in (False, True):
        q = quantize(x, compress_statistics=compress)
        assert q.packed.size == x.size and q.absmax.size == x.size and q.shape == shape
        assert dequantize(q).tolist() == x.tolist()


def test_bits_per_parameter():
    x = np.random.default_rng(0).standard_normal((256, 1024)).astype(f32)
    plain, nested = quantize(x), quantize(x, compress_statistics=True)
    assert 8 * (plain.packed.nbytes + plain.absmax.nbytes) / x.size == 4.5
    nbytes = nested.packed.nbytes + nested.absmax.nbytes + nested.nested.absmax.nbytes
    assert round(8 * nbytes / x.size, 3) == 4.127


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_given_buffer_is_filled(backend, dtype):
    q = quantize(RAMPS)
    out = np.empty(RAMPS.shape, {"bfloat16": np.uint16}.get(dtype, dtype))
    assert dequantize(q, dtype, out=out) is out
    assert out.tobytes() == dequantize(q, dtype).tobytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bits_are_rounded_to_nearest_even(backend, dtype):
    """Every exponent, and the fractions around ties, as the absmax of a block whose first element has code 15."""
    fractions = np.array([0, 1, 0xFFF, 0x1000, 0x1001, 0x2FFF, 0x3000, 0x3001, 0x7FFF, 0x8000, 0x18000, 0x7FFFFF])
    absmax = (np.arange(255)[:, None] << 23 | fractions).astype(np.uint32).reshape(-1).view(f32)
    q = Quantized(np.full(16 * absmax.size, 0xF0, np.uint8), absmax, (absmax.size, 32), 32, "nf4", None)
    got = dequantize(q, dtype)[:, :2]
    values = np.stack([absmax, -absmax], 1)
    if dtype == "float16":
        with np.errstate(over="ignore"):
            expected = values.astype(np.float16)
    else:
        exact = values.astype(np.float64)
        low = (values.view(np.uint32) & 0xFFFF0000).view(f32).astype(np.float64)
        with np.errstate(invalid="ignore"):
            step = np.abs(((values.view(np.uint32) & 0xFFFF0000) + 0x10000).view(f32).astype(np.float64) - low)
        up = np.abs(exact - low) * 2 > step
        tie = np.abs(exact - low) * 2 == step
        upper = values.view(np.uint32) >> 16
        expected = (upper + (up | tie & (upper & 1 == 1))).astype(np.uint16)
        huge = ~np.isfinite(step)  # the next one would be infinity: decided by the bits alone
        expected[huge] = ((values.view(np.uint32)[huge] + 0x8000) >> 16).astype(np.uint16)
    assert got.tobytes() == expected.tobytes()


@pytest.mark.parametrize("layout", [lambda x: x.T, lambda x: x[:, ::2], lambda x: x[::-1]])
def test_any_layout_is_read_in_row_major_order(backend, layout):
    x = layout(np.random.default_rng(0).standard_normal((66, 96)).astype(f32))
    assert quantize(x).packed.tobytes() == quantize(np.ascontiguousarray(x)).packed.tobytes()


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 70, 4165])
def test_what_is_not_finite_is_refused_by_name(backend, bad, at):
    x = np.ones((2, 2083), f32)
    x.reshape(-1)[at] = bad
    with pytest.raises(ValueError, match=rf"x holds {bad} at position {at} of 4166 \(block {at // 64}\)"):
        quantize(x)


def test_a_float64_beyond_float32_is_refused(backend):
    with pytest.raises(ValueError, match="x holds inf at position 1"):
        quantize(np.array([1.0, 1e300]))


@pytest.mark.parametrize(
    ("args", "error", "text"),
    [
        ((np.ones(3, int),), TypeError, "x must be float16, float32 or float64, got int64"),
        ((np.ones(3, np.longdouble),), TypeError, "x must be float16, float32 or float64"),
        ((np.ones(3, f32), 48), ValueError, "blocksize must be one of 32, 64, .*, 4096; got 48"),
        ((np.ones(3, f32), 0), ValueError, "blocksize must be one of .*; got 0"),
        ((np.ones(3, f32), 64.0), TypeError, "blocksize must be a whole number, got 64.0"),
        ((np.ones(3, f32), 8192), ValueError, "blocksize must be one of .*; got 8192"),
        ((np.ones(3, f32), 64, "nf5"), ValueError, "quant_type must be one of nf4, fp4, int4; got 'nf5'"),
    ],
)
def test_quantize_names_the_bad_argument(backend, args, error, text):
    with pytest.raises(error, match=f"quantize_4bit: {text}"):
        quantize(*args)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"shape": (4, 64)}, r"a tensor of shape \(4, 64\) calls for packed \(128,\), got \(64,\)"),
        ({"absmax": np.ones(3, f32)}, r"calls for absmax \(2,\), got \(3,\)"),
        ({"packed": np.zeros((64, 1), np.uint8)}, r"packed \(64,\), got \(64, 1\)"),
        ({"blocksize": 63}, "blocksize must be one of"),
        ({"blocksize": 0}, "blocksize must be one of .*; got 0"),
        ({"blocksize": 64.0}, "blocksize must be a whole number, got 64.0"),
        ({"quant_type": "af4"}, "quant_type must be one of"),
        ({"packed": np.zeros(64, np.int8)}, "packed must be uint8, got int8"),
        ({"absmax": np.ones(2)}, "absmax must be float32, got float64"),
        ({"nested": Nested(create_dynamic_map(), np.ones(1, f32), 0.0, 256)}, "absmax must be uint8, got float32"),
    ],
)
def test_dequantize_names_the_part_that_does_not_fit(backend, change, text):
    with pytest.raises((TypeError, ValueError), match=text):
        dequantize(quantize(RAMPS)._replace(**change))


def test_a_size_beyond_64_bits_does_not_wrap_around(backend):
    """2**66 elements are none, counted in 64 bits: an index would run out of an empty array."""
    q = Quantized(np.zeros(0, np.uint8), np.zeros(0, f32), (2**33, 2**33), 64, "nf4", None)
    with pytest.raises(ValueError, match=r"calls for packed \(36893488147419103232,\), got \(0,\)"):
        dequantize(q)


def test_dequantize_names_a_nested_part_that_does_not_fit(backend):
    q = quantize(RAMPS, compress_statistics=True)
    for change, text in (
        ({"code": np.ones(16, f32)}, r"nested.code \(256,\)"),
        ({"absmax": np.ones(2, f32)}, "nested.abs"),
        ({"blocksize": 0}, "nested.blocksize must be 256, got 0"),
        ({"blocksize": 128}, "nested.blocksize must be 256, got 128"),
    ):
        with pytest.raises(ValueError, match=text):
            dequantize(q._replace(nested=q.nested._replace(**change)))


def test_dequantize_names_what_is_wrong_with_the_buffer(backend):
    q, read_only = quantize(RAMPS), np.empty((2, 64), f32)
    read_only.flags.writeable = False
    for out, dtype, error, text in (
        (np.empty((2, 64)), "float32", TypeError, "out must be float32 for a result in float32, got float64"),
        (np.empty((2, 64), np.float16), "bfloat16", TypeError, "out must be uint16 for a result in bfloat16"),
        (np.empty(128, f32), "float32", ValueError, r"out must have the tensor's shape \(2, 64\), got \(128,\)"),
        (np.empty((64, 2), f32).T, "float32", ValueError, "out must be C-contiguous and writable"),
        (read_only, "float32", ValueError, "out must be C-contiguous and writable"),
        (None, "float64", ValueError, "dtype must be one of float32, float16, bfloat16; got 'float64'"),
    ):
        with pytest.raises(error, match=text):
            dequantize(q, dtype, out=out)


def test_both_kernels_have_both_versions():
    assert FAMILIES["four_bit"][1][:2] == ("reference", "numba")


DIGEST = """
import hashlib, numpy as np
from minitorch_peft.kernels import get, nibbles
quantize, dequantize = get("quantize_4bit", np.float32), get("dequantize_4bit", np.float32)
x = np.random.default_rng(0).standard_normal(70001, np.float32)
digest = hashlib.sha256()
for quant_type in ("nf4", "fp4"):
    for blocksize in (32, 64, 4096):
        q = quantize(x, blocksize, quant_type, True)
        digest.update(q.packed.tobytes() + q.absmax.tobytes())
        for dtype in ("float32", "float16", "bfloat16"):
            digest.update(dequantize(q, dtype).tobytes())
print(nibbles.AVX512, digest.hexdigest())
"""


@pytest.mark.slow
def test_a_processor_without_avx512_gives_the_same_bits(tmp_path):
    """Compiled for the plainest processor of this kind, and for this one."""
    runs = [
        subprocess.run(
            [sys.executable, "-c", DIGEST], capture_output=True, text=True, check=True, env=env
        ).stdout.split()
        for env in (os.environ, {**os.environ, "NUMBA_CPU_NAME": "generic", "NUMBA_CACHE_DIR": str(tmp_path)})
    ]
    assert runs[1][0] == "False" and runs[0][1] == runs[1][1]
