"""What each operation costs, from its shapes: floating-point operations of its forward and of its backward rule.

A product of (m, k) and (k, n) is 2mnk: a multiplication and an addition for each of mnk pairs. It is counted in
``products``. Everything else is ``elementwise``, by a rough number of operations for each element: these are apart,
because processors do products many times faster, and because nobody agrees on what an exponential costs.

Attention is counted over all pairs of queries and keys, as in the literature, though half of them are masked. A
backward rule costs what its ``needs`` ask for: no gradient of a frozen weight, none of an input that nothing trains.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

from minitorch_peft.autograd.profiler import Call, Shape


@dataclass(frozen=True)
class Flops:
    """Numbers of floating-point operations: of ``products`` of matrices, and of the rest."""

    products: int = 0
    elementwise: int = 0

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.products + other.products, self.elementwise + other.elementwise)

    def __mul__(self, times: int) -> Flops:
        return Flops(self.products * times, self.elementwise * times)

    @property
    def total(self) -> int:
        return self.products + self.elementwise


def rows_of(shape: Shape) -> int:
    return prod(shape[:-1])


def matmul(c: Call) -> tuple[int, int]:
    """Y (..., M, N) = A (..., M, K) B (..., K, N); dA and dB cost as much as Y, each."""
    a, _ = c.inputs
    assert a is not None
    once = 2 * prod(c.output) * a[-1]
    return once, once * sum(c.needs)


def linear(c: Call) -> tuple[int, int]:
    """Y = X Wᵀ: dX, where something below trains, and dW, where W does."""
    x = c.inputs[0]
    assert x is not None
    once = 2 * prod(c.output) * x[-1]
    return once, once * sum(c.needs[:2])


def linear_4bit(c: Call) -> tuple[int, int]:
    x = c.inputs[0]
    assert x is not None
    once = 2 * prod(c.output) * x[-1]
    return once, once * c.needs[0]


def lora(c: Call, weight_needs: bool, factors: list[tuple[Shape, bool, Shape, bool]]) -> tuple[int, int]:
    """y = x Wᵀ + s u Bᵀ, u = x Aᵀ; with low = G B: dB = Gᵀ u, dA = lowᵀ x, dx = G W + low A.

    ``factors`` are (A, is dA needed, B, is dB needed) of the adapters, which share the rows among them.
    """
    x = c.inputs[0]
    assert x is not None
    rows, base = rows_of(c.output), 2 * prod(c.output) * x[-1]
    forward, backward = base, base * (c.needs[0] + weight_needs)
    for A, need_A, B, need_B in factors:
        down, up = 2 * rows * prod(A) // len(factors), 2 * rows * prod(B) // len(factors)
        forward += down + up
        backward += up * need_B + down * need_A + down * c.needs[0] + up * (need_A or c.needs[0])
    return forward, backward


def lora_linear(c: Call) -> tuple[int, int]:
    """Inputs x, W, b, A, B."""
    A, B = c.inputs[3:]
    assert A is not None and B is not None
    return lora(c, c.needs[1], [(A, c.needs[3], B, c.needs[4])])


def lora_linear_4bit(c: Call) -> tuple[int, int]:
    """Inputs x, b, A, B."""
    A, B = c.inputs[2:]
    assert A is not None and B is not None
    return lora(c, False, [(A, c.needs[2], B, c.needs[3])])


def lora_gathered(c: Call) -> tuple[int, int]:
    """Inputs x, W, b, A of each adapter, B of each; counted as if the rows were shared out evenly."""
    half = (len(c.inputs) - 3) // 2
    A, B = c.inputs[3 : 3 + half], c.inputs[3 + half :]
    needs_A, needs_B = c.needs[3 : 3 + half], c.needs[3 + half :]
    factors: Any = list(zip(A, needs_A, B, needs_B, strict=True))
    return lora(c, c.needs[1], factors)


def attention(c: Call) -> tuple[int, int]:
    """Q Kᵀ and P V; backward makes P again, then dV = Pᵀ G, dP = G Vᵀ, dQ = dS K and dK = dSᵀ Q."""
    q, k, _ = c.inputs
    assert q is not None and k is not None
    once = 2 * prod(q) * k[2]
    need_q, need_k, need_v = c.needs
    return 2 * once, once * (1 + (need_q or need_k) + need_v + need_q + need_k)


def lstm(c: Call) -> tuple[int, int]:
    """x Wᵀ at once, h Uᵀ step by step; backward δ U step by step, then δ W, δᵀ x and δᵀ h."""
    x, W, U, *_ = c.inputs
    assert x is not None and W is not None and U is not None
    of_W, of_U = 2 * rows_of(x) * prod(W), 2 * rows_of(x) * prod(U)
    return of_W + of_U, of_W * (c.needs[0] + c.needs[1]) + of_U * (1 + c.needs[2])


def einsum(c: Call) -> tuple[int, int]:
    """2 Π of all sizes for two operands, one product more for each further one, each gradient as much again."""
    sizes: dict[str, int] = {}
    for term, shape in zip(c.constants["terms"], c.inputs, strict=True):
        assert shape is not None
        sizes.update(zip(term, shape, strict=True))
    once = 2 * prod(sizes.values()) * (len(c.inputs) - 1)
    return once, once * sum(c.needs)


def loreft_edit(c: Call) -> tuple[int, int]:
    """u = D h + b and u R at N places; du = G Rᵀ, dW = duᵀ h, dR has uᵀ G, dh has du D: r C each."""
    h, R = c.inputs[:2]
    assert h is not None and R is not None
    rows = c.saved[0][0] if c.saved and c.saved[0] is not None else rows_of(h)
    once = 2 * rows * prod(R)
    return 2 * once, once * (3 + c.needs[0])


def dora_norm(c: Call) -> tuple[int, int]:
    """W Aᵀ, A Aᵀ and B times that; dA: Hᵀ W, Hᵀ B and that times A; dW: B A."""
    A, B = c.inputs[1:]
    assert A is not None and B is not None
    (r, into), out = A, B[0]
    through, small_A, small_B = 2 * r * into * out, 2 * r * r * into, 2 * r * r * out
    return through + small_A + small_B, through * sum(c.needs[:2]) + (small_A + small_B) * c.needs[1]


def non_orthonormality(c: Call) -> tuple[int, int]:
    """P Pᵀ, and D P of the same size."""
    P = c.inputs[0]
    assert P is not None
    once = 2 * P[0] * prod(P)
    return once, once


def vera_change(c: Call) -> tuple[int, int]:
    """(λ_d u) Bᵀ; backward (λ_b G) B, and for λ_b the first once more."""
    u = c.inputs[0]
    assert u is not None
    once = 2 * prod(c.output) * u[-1]
    return once, once * ((c.needs[0] or c.needs[1]) + c.needs[2])


def bottleneck(c: Call) -> tuple[int, int]:
    """Down and up; du has G W_up, then dW_down, dz, and P = Gᵀ a for what is above: each as much as one of them."""
    down = c.inputs[2]
    assert down is not None
    once = 2 * rows_of(c.output) * prod(down)
    _, need_z, need_down, need_bias, *need_up = c.needs
    return 2 * once, once * ((need_z or need_down or need_bias) + need_down + need_z + any(need_up))


PRODUCTS: dict[str, Callable[[Call], tuple[int, int]]] = {
    "MatMul": matmul,
    "Linear": linear,
    "Linear4bit": linear_4bit,
    "LoraLinear": lora_linear,
    "LoraDropout": lora_linear,
    "LoraLinear4bit": lora_linear_4bit,
    "LoraDropout4bit": lora_linear_4bit,
    "LoraGathered": lora_gathered,
    "Attention": attention,
    "LSTM": lstm,
    "Einsum": einsum,
    "LoReftEdit": loreft_edit,
    "DoraNorm": dora_norm,
    "NonOrthonormality": non_orthonormality,
    "VeraChange": vera_change,
    "Bottleneck": bottleneck,
}
"""Operations with products, and the FLOPs of these: (forward, backward)."""

MOVES = frozenset(
    {"Cast", "Reshape", "Permute", "Clone", "Cat", "Pad", "Flip", "Roll", "Slice", "Index", "Tril", "Triu", "Expand"}
    | {"Embedding", "Where", "AddAt", "Identity"}
)
"""They move numbers and compute none."""

ADDED_UP = frozenset({"Expand", "Index", "Embedding"})
"""Moves that use a number several times, so that backward adds up."""

PER_ELEMENT = {
    "Exp": 4, "Log": 4, "Tanh": 6, "Sigmoid": 6, "Softplus": 8, "Silu": 7, "Swiglu": 8, "Gelu": 10, "GeluTanh": 10,
    "Softmax": 6, "LogSoftmax": 6, "CrossEntropy": 6, "LayerNorm": 8, "RmsNorm": 5, "Rotary": 3, "Dropout": 2,
    "LSTM": 30, "Rescaled": 3, "Combine": 2, "HardConcrete": 16, "Attended": 8,
}  # fmt: skip
"""Operations for an element, of the larger of input and output; one where nothing is said."""


def flops(call: Call) -> tuple[Flops, Flops]:
    """FLOPs of one call: of its forward, and of what ran of its backward.

    >>> x_w_b = ((8, 4), (5, 4), (5,))
    >>> frozen = Call("Linear", "", x_w_b, (8, 5), (), (True, False, False), {}, backward=True)
    >>> [f.products for f in flops(frozen)]
    [320, 320]
    """
    products = PRODUCTS.get(call.name, lambda _: (0, 0))(call)
    size = max(prod(call.output), *(prod(s) for s in call.inputs if s is not None), 0)
    if call.name in PRODUCTS:
        size = prod(call.output)  # a bias is added, a softmax taken: little beside the products
    each = 0 if call.name in MOVES else size * PER_ELEMENT.get(call.name, 1)
    back = prod(call.output) if call.name in ADDED_UP else each * max(1, sum(call.needs))
    forward = Flops(products[0], each)
    return forward, Flops(0, each) * call.again + (Flops(products[1], back) if call.backward else Flops())
