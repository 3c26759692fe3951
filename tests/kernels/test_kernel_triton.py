"""Every Triton kernel in the interpreter, on NumPy arrays, against the reference: drawn shapes, ragged and empty."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import Drawn
from minitorch_peft.kernels import FAMILIES, TABLE, get
from minitorch_peft.kernels.device.interpreter import HostArray
from minitorch_peft.kernels.examples import Draw, examples
from minitorch_peft.kernels.four_bit.codes import boundaries
from minitorch_peft.kernels.four_bit.layout import Quantized
from minitorch_peft.kernels.four_bit.reference import dequantize_4bit, quantize_4bit
from minitorch_peft.kernels.verify import described, disagreement, leaves
from triton_worker import Worker

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton has wheels for Linux alone")
FLOAT32, FLOAT64 = np.dtype("float32"), np.dtype("float64")
KERNELS = [name for names, backends in FAMILIES.values() if "triton" in backends for name in names]
QUANTIZERS = ("quantize_4bit", "dequantize_4bit")


@pytest.fixture(scope="module")
def interpret():
    worker = Worker()
    yield worker
    worker.close()


def in_triton(interpret: Worker, kernel: str) -> Any:
    return lambda *args: interpret(f"{TABLE[kernel]}.triton", kernel, *args)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_triton_kernel_agrees(interpret, kernel):
    args = examples()[kernel].drawn(Draw(3))
    assert disagreement(kernel, in_triton(interpret, kernel), args) is None, described(args)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_triton_kernel_agrees_on_drawn_arguments(interpret, kernel):
    """The examples' arguments: empty axes, one element, rank 0, other memory layouts."""

    @settings(max_examples=12, deadline=None)
    @given(st.data())
    def agrees(data):
        args = examples()[kernel].drawn(Drawn(data.draw))
        assert disagreement(kernel, in_triton(interpret, kernel), args) is None

    agrees()


class Wide(Drawn):
    """Arguments that take several tiles in each direction, in float32 or float16."""

    def __init__(self, draw: Any):
        super().__init__(draw, layouts=("plain", "transposed"))
        self.dtype = self.pick(np.float32, np.float16)

    def rows(self) -> tuple[int, ...]:
        return self.pick((0,), (1,), (2, 3), (16,), (17,), (2, 20), (70,), (96,))

    def side(self) -> int:
        return self.pick(1, 8, 31, 32, 33, 64, 70, 96)

    def rank(self) -> int:
        return self.pick(1, 2, 8, 16, 17, 33, 70)

    def array(self, *shape: int, spread: float = 1.0) -> np.ndarray:
        return super().array(*shape, spread=spread).astype(self.dtype)

    def weight(self, n: int, k: int) -> Any:
        """A quantized weight: also rows that are no whole number of blocks, and several blocks a row."""
        x = super().array(n, k).astype(np.float32)
        return quantize_4bit(x, self.pick(32, 64, 128), self.pick("nf4", "fp4"), self.pick(True, False))


def lora(d: Wide) -> tuple:
    k, n, r = d.side(), d.side(), d.rank()
    return d.array(*d.rows(), k), d.array(n, k), d.pick(None, d.array(n)), d.array(r, k), d.array(n, r), 0.5


def lora_backward(d: Wide) -> tuple:
    x, weight, _, a, b, s = lora(d)
    return d.array(*x.shape[:-1], len(weight)), x, d.array(*x.shape[:-1], len(a)), weight, a, b, s, d.flags(5)


def generator(d: Wide) -> tuple:
    return d.pick(0.0, 0.3), d.pick(0, 2**64 - 1)


def stacked(d: Wide) -> tuple:
    x, k, count = d.array(*d.rows(), 40), 40, d.size(3, 1)
    ns, rs = [d.side() for _ in range(count)], [d.rank() for _ in range(count)]
    biases = [d.pick(None, d.array(n)) for n in ns]
    ups = [d.array(n, r) for n, r in zip(ns, rs, strict=True)]
    return x, [d.array(n, k) for n in ns], biases, [d.array(r, k) for r in rs], ups, [0.5 + i for i in range(count)]


def stacked_backward(d: Wide) -> tuple:
    x, weights, _, lora_as, lora_bs, scalings = stacked(d)
    grads, xas = ([d.array(*x.shape[:-1], len(m)) for m in ms] for ms in (weights, lora_as))
    return grads, x, xas, weights, lora_as, lora_bs, scalings, d.flags(3)


def gathered(d: Wide) -> tuple:
    k, n, r, adapters = d.side(), d.side(), d.rank(), d.size(3, 1)
    owners = d.rng.integers(-1, adapters, d.pick(0, 1, 5, 40))
    x = d.array(len(owners), d.pick(1, 2, 19), k)
    return (x, d.array(n, k), d.pick(None, d.array(n)), d.array(adapters, r, k), d.array(adapters, n, r),
            d.array(adapters), owners)  # fmt: skip


def gathered_backward(d: Wide) -> tuple:
    x, weight, _, a, b, scaling, owners = gathered(d)
    xa = d.array(*x.shape[:2], a.shape[1])
    return d.array(*x.shape[:2], len(weight)), x, xa, weight, a, b, scaling, owners, d.flags(3)


def linear_4bit(d: Wide) -> tuple:
    k, n = d.pick(d.side(), 64, 128), d.side()
    return d.array(*d.rows(), k), d.weight(n, k), d.pick(None, d.array(n))


def linear_4bit_backward(d: Wide) -> tuple:
    x, q, _ = linear_4bit(d)
    return d.array(*x.shape[:-1], q.shape[0]), q


def lora_linear_4bit(d: Wide) -> tuple:
    (x, q, bias), r = linear_4bit(d), d.rank()
    return x, q, bias, d.array(r, q.shape[1]), d.array(q.shape[0], r), 0.5


def lora_linear_4bit_backward(d: Wide) -> tuple:
    x, q, _, a, b, s = lora_linear_4bit(d)
    return d.array(*x.shape[:-1], q.shape[0]), x, d.array(*x.shape[:-1], len(a)), q, a, b, s, d.flags(4)


WIDE = {
    "lora_linear_forward": lora,
    "lora_linear_backward": lora_backward,
    "lora_dropout_forward": lambda d: lora(d) + generator(d),
    "lora_dropout_backward": lambda d: (*(args := lora_backward(d))[:-1], *generator(d), args[-1]),
    "lora_stacked_forward": stacked,
    "lora_stacked_backward": stacked_backward,
    "lora_gathered_forward": gathered,
    "lora_gathered_backward": gathered_backward,
    "linear_4bit_forward": linear_4bit,
    "linear_4bit_backward": linear_4bit_backward,
    "lora_linear_4bit_forward": lora_linear_4bit,
    "lora_linear_4bit_backward": lora_linear_4bit_backward,
}


def test_every_product_is_tried_on_several_tiles():
    assert sorted(WIDE) == sorted(set(KERNELS) - set(QUANTIZERS))


def exactly(kernel: str, args: tuple) -> Any:
    def double(x: Any) -> Any:
        if isinstance(x, list):
            return [double(part) for part in x]
        return x.astype(FLOAT64) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x

    return get(kernel, FLOAT64)(*map(double, args))


def assert_close(ours: Any, exact: Any, dtype: type) -> None:
    """Same shapes, same absent results, the arguments' dtype; errors relative to the largest value of a result."""
    pairs = list(zip(leaves(ours), leaves(exact), strict=True))
    for i, (our, their) in enumerate(pairs):
        if their is None:
            assert our is None, f"result {i} was not asked for"
            continue
        assert (our.shape, our.dtype) == (their.shape, dtype), f"result {i}"
        allowed = (2e-5 if dtype == np.float32 else 4e-3) * max(1.0, np.abs(their).max(initial=0))
        np.testing.assert_allclose(our.astype(FLOAT64), their, rtol=0, atol=allowed, err_msg=f"result {i}")


@pytest.mark.slow
@pytest.mark.parametrize("kernel", WIDE)
def test_a_product_agrees_on_several_tiles(interpret, kernel):
    @settings(max_examples=10, deadline=None)
    @given(st.data())
    def agrees(data):
        d = Wide(data.draw)
        args = WIDE[kernel](d)
        assert_close(in_triton(interpret, kernel)(*args), exactly(kernel, args), d.dtype)

    agrees()


class HighRank(Wide):
    """A rank that takes two programs, or two steps of a loop, and at least one row and column."""

    def rows(self) -> tuple[int, ...]:
        return self.pick((1,), (17,), (2, 20))

    def rank(self) -> int:
        return 70


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [kernel for kernel in WIDE if "lora" in kernel])
def test_a_product_agrees_where_the_rank_is_cut(interpret, kernel):
    @settings(max_examples=3, deadline=None)
    @given(st.data())
    def agrees(data):
        d = HighRank(data.draw)
        args = WIDE[kernel](d)
        if kernel.endswith("backward"):  # all gradients
            args = (*args[:-1], (True,) * len(args[-1]))
        assert_close(in_triton(interpret, kernel)(*args), exactly(kernel, args), d.dtype)

    agrees()


@pytest.mark.slow
def test_both_forms_of_the_forward_pass_agree(interpret):
    """The public function chooses one of them by rank and tile."""

    @settings(max_examples=8, deadline=None)
    @given(st.data())
    def agrees(data):
        d = Wide(data.draw)
        x, weight, bias, a, b, s = (np.ascontiguousarray(v) if isinstance(v, np.ndarray) else v for v in lora(d))
        exact = exactly("lora_linear_forward", (x, weight, bias, a, b, s))
        (xa,) = interpret("lora.triton_forward", "down", x, (a,))
        assert_close(interpret("lora.triton", "forward_after", xa, x, weight, bias, b, s), exact, d.dtype)
        if len(a) <= 64:
            assert_close(interpret("lora.triton_forward", "in_loop", x, weight, bias, a, b, s), exact, d.dtype)

    agrees()


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int4"])
def test_rare_numbers_are_quantized_to_the_bit(interpret, kind):
    """In the middle of two values and just beside it; zeros; numbers so small that their reciprocal is infinite."""
    middles, largest = boundaries(kind), np.float32(np.inf)
    blocks = np.zeros((4, 64), np.float32)
    blocks[0, :46] = np.concatenate([middles, np.nextafter(middles, largest), np.nextafter(middles, -largest), [1]])
    blocks[2] = np.linspace(-1, 1, 64) * 1e-39
    blocks[3] = np.linspace(-1, 1, 64)
    ours, theirs = interpret("four_bit.triton", "quantize_4bit", blocks, 64, kind), quantize_4bit(blocks, 64, kind)
    assert [bytes_of(part) for part in leaves(ours)] == [bytes_of(part) for part in leaves(theirs)]


def test_bfloat16_is_rounded_to_nearest_ties_to_even(interpret):
    absmax = np.array([1 + k / 256 for k in (1, 3)] + [1 + k / 512 for k in (1, 3)], np.float32)
    q = Quantized(np.full(4 * 16, 0xF0, np.uint8), absmax, (4, 32), 32, "nf4", None)
    ours = interpret("four_bit.triton", "dequantize_4bit", q, "bfloat16")
    assert [hex(bits) for bits in ours[:, 0]] == ["0x3f80", "0x3f82", "0x3f80", "0x3f81"]
    assert same_bits(ours, dequantize_4bit(q, "bfloat16"))


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_quantizing_gives_the_bits_of_the_reference(interpret, data):
    """Whole and partial blocks, odd lengths, more than one nested block, every way to decode."""
    d = Drawn(data.draw)
    size, blocksize = d.pick(0, 1, 63, 64, 65, 700, 4097), d.pick(32, 64, 128, 4096)
    x = d.array(size)
    kind, nested = d.pick("nf4", "fp4", "int4"), d.pick(True, False)
    ours = interpret("four_bit.triton", "quantize_4bit", x, blocksize, kind, nested)
    theirs = quantize_4bit(x, blocksize, kind, nested)
    assert [bytes_of(part) for part in leaves(ours)] == [bytes_of(part) for part in leaves(theirs)]
    for dtype in ("float32", "float16", "bfloat16"):
        assert same_bits(interpret("four_bit.triton", "dequantize_4bit", theirs, dtype), dequantize_4bit(theirs, dtype))
    for way in ("element", "tree", "sixteen"):
        assert same_bits(interpret("four_bit.triton_ladder", "dequantize_by", way, theirs), dequantize_4bit(theirs))


def bytes_of(part: Any) -> Any:
    return (part.dtype, part.shape, part.tobytes()) if isinstance(part, np.ndarray) else part


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return bytes_of(a) == bytes_of(b)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_cannot_be_scaled_are_refused_by_their_place(interpret, value):
    x = np.ones(200, np.float32)
    x[77] = value
    with pytest.raises(ValueError, match=r"quantize_4bit: x holds -?(nan|inf) at position 77 of 200 \(block 1\)"):
        interpret("four_bit.triton", "quantize_4bit", x)


def test_bad_arguments_are_refused(interpret):
    one, q = np.ones((1, 1), np.float32), quantize_4bit(np.ones((2, 3)))
    for function, args, error, message in (
        ("lora.triton.lora_linear_forward", (one, one, None, one, np.ones((2, 1)), 1.0), ValueError, "lora_b"),
        ("linear_4bit.triton.linear_4bit_forward", (one, q), ValueError, "x has shape"),
        ("linear_4bit.triton.linear_4bit_backward", (one, q._replace(blocksize=63)), ValueError, "blocksize"),
        ("lora_dropout.triton.lora_dropout_forward", (one, one, None, one, one, 1.0, 1.0, 0), ValueError, "p must be"),
        ("lora_stacked.triton.lora_stacked_forward", (one, [], [], [], [], []), ValueError, "at least one"),
        ("four_bit.triton.dequantize_4bit", (q, "float64"), ValueError, "dtype must be one of"),
        ("tiles.host.arithmetic", (HostArray(np.zeros(1, np.uint16), "bfloat16"),), TypeError, "wrong numbers"),
        ("tiles.host.arithmetic", (np.zeros(1),), TypeError, "float32, float16, bfloat16; got float64"),
    ):
        module, _, name = function.rpartition(".")
        with pytest.raises(error, match=message):
            interpret(module, name, *args)


def test_the_precision_of_float32_products_is_stated_and_switched():
    from minitorch_peft.kernels.tiles.host import arithmetic, use_precision

    x = np.zeros(1, np.float32)
    assert arithmetic(x)["PRECISION"] == "tf32x3"
    with use_precision("tf32"):
        assert arithmetic(x)["PRECISION"] == "tf32"
    assert arithmetic(x)["PRECISION"] == "tf32x3"
    with (
        pytest.raises(ValueError, match="unknown precision 'tf64'; expected one of ieee, tf32x3, tf32"),
        use_precision("tf64"),
    ):
        pass
