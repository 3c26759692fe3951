"""Wrong backward rules, by family: what students write and reviews miss. gradcheck has to reject each.

``wrong(right, make, cause=..., blind=...)`` makes a Function with the forward of ``right`` and the backward
below it; ``make`` draws inputs and constants. ``cause`` is the diagnosis that gradcheck should come to (None: no
particular one). ``blind`` marks rules that a check with a cotangent of ones (``out.sum().backward()``) cannot
tell from right ones, even if it compares each element exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import minitorch_peft as mp
from minitorch_peft.ops import (
    activation,
    arithmetic,
    einsum,
    elementwise,
    indexing,
    joining,
    loss,
    matmul,
    reduction,
    shape,
)

from . import rules

Make = Callable[[np.random.Generator], tuple[list[np.ndarray], dict[str, Any]]]


@dataclass(frozen=True)
class WrongRule:
    name: str
    wrong: type[mp.Function]
    right: type[mp.Function]
    make: Make
    cause: str | None
    blind: bool


WRONG_RULES: list[WrongRule] = []


def wrong(right: type[mp.Function], make: Make, cause: str | None = None, blind: bool = False) -> Any:
    def register(backward: Callable[..., Any]) -> Callable[..., Any]:
        name = backward.__name__
        cls = type(name, (right,), {"backward": staticmethod(backward), "__module__": __name__})
        WRONG_RULES.append(WrongRule(name, cls, right, make, cause, blind))
        return backward

    return register


def drawn(*axes: str, of: Callable[..., np.ndarray] | None = None, **constants: Any) -> Make:
    """Inputs with named axes: a letter has one size, 3 to 5. Constants may be made from the sizes."""

    def make(rng: np.random.Generator) -> tuple[list[np.ndarray], dict[str, Any]]:
        size = {letter: int(rng.integers(3, 6)) for letter in sorted(set("".join(axes) + "TVS"))}
        shapes = [tuple(size[letter] for letter in names) for names in axes]
        draw = of or (lambda rng, shape: rng.standard_normal(shape))
        values = {k: v(rng, size) if callable(v) else v for k, v in constants.items()}
        return [draw(rng, s) for s in shapes], values

    return make


def positive(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.uniform(0.5, 2.0, shape)


def off_kinks(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Away from 0 and 1, on both sides of each."""
    return rng.choice([-1.5, -0.5, 0.5, 1.5], shape) + rng.uniform(-0.3, 0.3, shape)


def repeated(rng: np.random.Generator, size: dict[str, int]) -> np.ndarray:
    """Ids below V: T of them, the first three times."""
    return np.array([1, 1, 1, *rng.integers(0, size["V"], size["T"])])


# -- elementwise -------------------------------------------------------------------------------------------
@wrong(elementwise.Exp, drawn("TC"), "factor")
def exp_doubled(ctx, g):
    return 2 * g * ctx.saved[0]


@wrong(elementwise.Exp, drawn("TC"), "elementwise-factor")
def exp_passes_g(ctx, g):
    return g.copy()


@wrong(elementwise.Log, drawn("TC", of=positive), "elementwise-factor")
def log_multiplies(ctx, g):
    return g * ctx.saved[0]


@wrong(elementwise.Log, drawn("TC", of=positive), "zero")
def log_zero(ctx, g):
    return np.zeros_like(g)


@wrong(elementwise.Exp, drawn("TC"), "zero")
def exp_none(ctx, g):
    return None


@wrong(elementwise.Neg, drawn("TC"), "sign")
def neg_forgets_sign(ctx, g):
    return g.copy()


@wrong(elementwise.Square, drawn("TC"), "factor")
def square_forgets_two(ctx, g):
    return g * ctx.saved[0]


@wrong(elementwise.Sqrt, drawn("TC", of=positive), "elementwise-factor")
def sqrt_upside_down(ctx, g):
    return g * 2 * ctx.saved[0]


@wrong(elementwise.Abs, drawn("TC", of=off_kinks), "sign")
def abs_always_positive(ctx, g):
    return g.copy()


@wrong(elementwise.Sin, drawn("TC"))
def sin_gives_sin(ctx, g):
    return g * np.sin(ctx.saved[0])


@wrong(elementwise.Exp, drawn("TC"), "ignores-cotangent", blind=True)
def exp_ignores_g(ctx, g):
    return ctx.saved[0].copy()


@wrong(elementwise.Exp, drawn("TC"), "nonlinear", blind=True)
def exp_squares_g(ctx, g):
    return g * g * ctx.saved[0]


@wrong(elementwise.Exp, drawn("TC"), "nonlinear", blind=True)
def exp_clips_g(ctx, g):
    """Right for a g up to 1."""
    return np.clip(g, -1, 1) * ctx.saved[0]


@wrong(arithmetic.Sub, drawn("TC", "TC"), "sign")
def sub_second_sign(ctx, g):
    return g, g.copy()


@wrong(arithmetic.Mul, drawn("TC", "TC"), "swapped-inputs")
def mul_swapped(ctx, g):
    a, b = ctx.saved
    return g * a, g * b


@wrong(arithmetic.Mul, drawn("TC", "TC"), "elementwise-factor")
def mul_forgets_other(ctx, g):
    return g, g.copy()


@wrong(arithmetic.Div, drawn("TC", "TC", of=positive), "sign")
def div_second_sign(ctx, g):
    da, db = arithmetic.Div.backward(ctx, g)
    return da, -db


@wrong(arithmetic.Div, drawn("TC", "TC", of=positive), "elementwise-factor")
def div_second_not_squared(ctx, g):
    da, db = arithmetic.Div.backward(ctx, g)
    return da, db * ctx.saved[0]


@wrong(arithmetic.PowScalar, drawn("TC", of=positive, exponent=3.0), "elementwise-factor")
def pow_keeps_exponent(ctx, g):
    (x,) = ctx.saved
    return g * 3 * x**3


@wrong(arithmetic.Where, drawn("TC", "TC", condition=lambda rng, n: np.eye(n["T"], n["C"], dtype=bool)), "leaks")
def where_gives_both(ctx, g):
    return g, g.copy()


@wrong(
    arithmetic.Where,
    drawn("TC", "TC", condition=lambda rng, n: np.eye(n["T"], n["C"], dtype=bool)),
    "swapped-inputs",
)
def where_branches_swapped(ctx, g):
    a, b = arithmetic.Where.backward(ctx, g)
    return b, a


@wrong(
    rules.MaskedFill,
    drawn("TS", mask=lambda rng, n: ~np.tri(n["T"], n["S"], dtype=bool), value=-9.0),
    "leaks",
)
def masked_fill_leaks(ctx, g):
    return g.copy()


@wrong(elementwise.Clamp, drawn("TC", of=off_kinks, low=-1.0, high=1.0), "leaks")
def clamp_leaks(ctx, g):
    return g.copy()


# -- activations -------------------------------------------------------------------------------------------
@wrong(activation.Tanh, drawn("TC"))
def tanh_not_squared(ctx, g):
    return g * (1 - ctx.saved[0])


@wrong(activation.Sigmoid, drawn("TC"))
def sigmoid_of_output(ctx, g):
    s = 1 / (1 + np.exp(-ctx.saved[0]))
    return g * s * (1 - s)


@wrong(activation.Relu, drawn("TC", of=off_kinks), "leaks")
def relu_leaks(ctx, g):
    return g.copy()


@wrong(activation.Gelu, drawn("TC"))
def gelu_without_density(ctx, g):
    from scipy.special import ndtr

    return g * ndtr(ctx.saved[0])


@wrong(activation.GeluTanh, drawn("TC"))
def gelu_tanh_with_the_exact_rule(ctx, g):
    """The two differ by 1e-3 at most."""
    return activation.Gelu.backward(ctx, g)


@wrong(activation.Silu, drawn("TC"))
def silu_without_product_rule(ctx, g):
    return g / (1 + np.exp(-ctx.saved[0]))


# -- reductions --------------------------------------------------------------------------------------------
@wrong(reduction.Sum, drawn("TC", dims=(0,), keepdim=False), "ignores-cotangent", blind=True)
def sum_of_ones(ctx, g):
    return np.ones(ctx.shape)


@wrong(reduction.Sum, drawn("TT", dims=(0,), keepdim=False), "transposed", blind=True)
def sum_spread_along_the_wrong_axis(ctx, g):
    return np.broadcast_to(g[:, None], ctx.shape)


@wrong(reduction.Mean, drawn("TC", dims=(1,), keepdim=False), "factor")
def mean_not_divided(ctx, g):
    return np.broadcast_to(g.reshape(ctx.kept), ctx.shape)


@wrong(reduction.Mean, drawn("TC", dims=(1,), keepdim=True), "factor")
def mean_divided_by_all(ctx, g):
    return np.broadcast_to(g / np.prod(ctx.shape), ctx.shape)


@wrong(reduction.Var, drawn("TC", dims=(1,), correction=1, keepdim=True), "factor")
def var_uncorrected(ctx, g):
    n = ctx.saved[0].shape[1]
    return reduction.Var.backward(ctx, g) * (n - 1) / n


@wrong(reduction.CumSum, drawn("TC", dim=0), "transposed")
def cumsum_not_reversed(ctx, g):
    return np.cumsum(g, 0)


@wrong(rules.PlainMax, drawn("TC", dim=1))
def max_shares(ctx, g):
    return np.repeat(g[:, None], ctx.saved[0].shape[1], 1) / ctx.saved[0].shape[1]


@wrong(reduction.LogSumExp, drawn("TC", dims=(1,), keepdim=True))
def logsumexp_shares(ctx, g):
    return np.repeat(g, ctx.saved[0].shape[1], 1) / ctx.saved[0].shape[1]


# -- softmax and norms -------------------------------------------------------------------------------------
@wrong(rules.PlainSoftmax, drawn("TC", dim=1), "zero", blind=True)
def softmax_zero(ctx, g):
    return np.zeros_like(g)


@wrong(rules.PlainSoftmax, drawn("TC", dim=1), "elementwise-factor", blind=True)
def softmax_passes_centred_g(ctx, g):
    (y,) = ctx.saved
    return g - (g * y).sum(1, keepdims=True)


@wrong(rules.PlainSoftmax, drawn("SC", dim=1))
def softmax_diagonal_only(ctx, g):
    (y,) = ctx.saved
    return g * y * (1 - y)


@wrong(rules.PlainSoftmax, lambda rng: ([rng.standard_normal((3, 6))], {"dim": 1}), "missing-sum")
def softmax_without_sum(ctx, g):
    return g * ctx.saved[0]


@wrong(rules.PlainSoftmax, drawn("TC", dim=1), "wrong-axis")
def softmax_sums_over_axis_0(ctx, g):
    (y,) = ctx.saved
    return y * (g - (g * y).sum(0, keepdims=True))


@wrong(rules.PlainSoftmax, drawn("TC", dim=1), "sign", blind=True)
def softmax_sign_inside(ctx, g):
    """y (Σ g y - g): minus the right one, hidden since the right one is 0 for a cotangent of ones."""
    (y,) = ctx.saved
    return y * ((g * y).sum(1, keepdims=True) - g)


@wrong(activation.LogSoftmax, drawn("TC", dim=1), "nonlinear")
def log_softmax_forgets_sum_of_g(ctx, g):
    return g - np.exp(ctx.saved[0])


@wrong(rules.PlainLayerNorm, lambda rng: ([rng.standard_normal(s) for s in ((3, 7), 7, 7)], {}), "missing-sum")
def layer_norm_statistics_constant(ctx, g):
    _, h, rstd, w = ctx.saved
    return g * w * rstd, (g * h).sum(0), g.sum(0)


@wrong(rules.PlainLayerNorm, drawn("BTC", "C", "C"), "zero")
def layer_norm_zero(ctx, g):
    _, h, _, _ = ctx.saved
    return np.zeros_like(g), (g * h).sum((0, 1)), g.sum((0, 1))


@wrong(rules.PlainLayerNorm, drawn("BTC", "C", "C"))
def layer_norm_forgets_weight(ctx, g):
    _, h, rstd, _ = ctx.saved
    dx = rstd * (g - g.mean(-1, keepdims=True) - h * (g * h).mean(-1, keepdims=True))
    return dx, (g * h).sum((0, 1)), g.sum((0, 1))


@wrong(rules.PlainLayerNorm, drawn("BTC", "C", "C"))
def layer_norm_weight_of_raw_input(ctx, g):
    x, *_ = ctx.saved
    dx, _, db = rules.PlainLayerNorm.backward(ctx, g)
    return dx, (g * x).sum((0, 1)), db


@wrong(rules.PlainLayerNorm, drawn("BTC", "C", "C"), "factor")
def layer_norm_bias_mean(ctx, g):
    dx, dw, _ = rules.PlainLayerNorm.backward(ctx, g)
    return dx, dw, g.mean((0, 1))


@wrong(rules.PlainRmsNorm, lambda rng: ([rng.standard_normal(s) for s in ((3, 7), 7)], {}), "missing-sum")
def rms_norm_scale_constant(ctx, g):
    x, w, rms = ctx.saved
    return g * w / rms, (g * x / rms).sum(0)


@wrong(rules.PlainRmsNorm, drawn("BTC", "C"))
def rms_norm_forgets_eps(ctx, g):
    """Off by some 1e-5."""
    x, w, _ = ctx.saved
    rms, d = np.sqrt((x**2).mean(-1, keepdims=True)), g * w
    return d / rms - x * (d * x).mean(-1, keepdims=True) / rms**3, (g * x / rms).sum((0, 1))


# -- matrix products and broadcasting ----------------------------------------------------------------------
@wrong(matmul.MatMul, drawn("CC", "CC"), "transposed")
def matmul_forgets_transposes(ctx, g):
    a, b = ctx.saved
    return g @ b, a @ g


@wrong(matmul.MatMul, drawn("CC", "CC"), "swapped-inputs")
def matmul_gradients_swapped(ctx, g):
    da, db = matmul.MatMul.backward(ctx, g)
    return db, da


@wrong(matmul.MatMul, drawn("CC", "CC"), "transposed")
def matmul_result_transposed(ctx, g):
    da, db = matmul.MatMul.backward(ctx, g)
    return da.T, db


@wrong(rules.PlainLinear, drawn("TC", "DC", "D"), "not-summed")
def linear_bias_not_summed(ctx, g):
    dx, dw, _ = rules.PlainLinear.backward(ctx, g)
    return dx, dw, g.copy()


@wrong(rules.PlainLinear, drawn("TC", "DC", "D"), "factor")
def linear_bias_mean(ctx, g):
    dx, dw, _ = rules.PlainLinear.backward(ctx, g)
    return dx, dw, g.mean(0)


@wrong(rules.PlainLinear, lambda rng: ([rng.standard_normal(s) for s in ((5, 3), (4, 3), 4)], {}), "transposed")
def linear_weight_transposed(ctx, g):
    dx, dw, db = rules.PlainLinear.backward(ctx, g)
    return dx, dw.T.copy(), db


@wrong(rules.PlainLinear, drawn("TC", "DC", "D"), "not-summed")
def linear_weight_of_first_row(ctx, g):
    dx, _, db = rules.PlainLinear.backward(ctx, g)
    return dx, np.outer(g[0], ctx.saved[0][0]), db


@wrong(einsum.Einsum, drawn("CC", "CC", terms=["ij", "jk"], output="ik"), "transposed")
def einsum_indices_crossed(ctx, g):
    da, db = einsum.Einsum.backward(ctx, g)
    return da.T.copy(), db


@wrong(shape.Expand, lambda rng: ([rng.standard_normal((1, 4))], {"shape": (3, 4)}), "not-summed")
def expand_takes_first(ctx, g):
    return g[:1]


@wrong(shape.Expand, lambda rng: ([rng.standard_normal((1, 4))], {"shape": (3, 4)}), "factor")
def expand_means(ctx, g):
    return g.mean(0, keepdims=True)


@wrong(shape.Expand, lambda rng: ([rng.standard_normal((3, 1))], {"shape": (3, 3)}), blind=True)
def expand_sums_the_other_axis(ctx, g):
    return g.sum(0)[:, None]


@wrong(rules.PlainAdd, drawn("BTC", "C"), "not-summed")
def add_not_summed(ctx, g):
    return g, g.copy()


@wrong(rules.PlainAdd, drawn("BTC", "TC"), "not-summed")
def add_takes_last(ctx, g):
    return g, g[-1].copy()


# -- moving elements ---------------------------------------------------------------------------------------
@wrong(joining.Cat, drawn("TC", "TC", dim=0), "swapped-inputs", blind=True)
def cat_halves_swapped(ctx, g):
    first, second = np.split(g, 2)
    return second, first


@wrong(shape.Permute, drawn("CCC", dims=(1, 2, 0)), "transposed", blind=True)
def permute_again(ctx, g):
    return g.transpose(1, 2, 0)


@wrong(shape.Permute, drawn("CC", dims=(1, 0)), "transposed", blind=True)
def transpose_forgotten(ctx, g):
    return g.copy()


@wrong(shape.Reshape, lambda rng: ([rng.standard_normal((3, 4))], {"shape": (4, 3)}), "permuted", blind=True)
def reshape_in_column_order(ctx, g):
    return g.reshape(ctx.shape, order="F")


@wrong(joining.Flip, drawn("TC", dims=(0,)), "permuted", blind=True)
def flip_not_undone(ctx, g):
    return g.copy()


@wrong(joining.Roll, drawn("TC", shifts=(1,), dims=(0,)), "transposed", blind=True)
def roll_the_same_way(ctx, g):
    return np.roll(g, 1, 0)


@wrong(joining.Pad, drawn("TC", margins=[(1, 2), (0, 0)], value=0.0), "shifted", blind=True)
def pad_cut_at_the_wrong_end(ctx, g):
    return g[2:-1].copy()


@wrong(indexing.Tril, drawn("CC", diagonal=0))
def tril_as_triu(ctx, g):
    return np.triu(g)


# -- indexing ----------------------------------------------------------------------------------------------
@wrong(indexing.Slice, lambda rng: ([rng.standard_normal((6, 3))], {"index": (slice(1, 4),)}), "shifted")
def slice_off_by_one(ctx, g):
    dx = np.zeros(ctx.shape)
    dx[2:5] = g
    return dx


@wrong(indexing.Slice, lambda rng: ([rng.standard_normal((6, 3))], {"index": (slice(1, 4),)}), "misses-elements")
def slice_one_row_short(ctx, g):
    dx = np.zeros(ctx.shape)
    dx[1:3] = g[:2]
    return dx


@wrong(indexing.Index, drawn("VC", index=lambda rng, n: (repeated(rng, n),)), "repeated-index")
def index_overwrites(ctx, g):
    dx = np.zeros(ctx.shape)
    dx[ctx.index] = g
    return dx


@wrong(rules.PlainEmbedding, drawn("VC", ids=repeated), "repeated-index")
def embedding_overwrites(ctx, g):
    dw = np.zeros(ctx.shape)
    dw[ctx.ids] = g
    return dw


@wrong(rules.PlainEmbedding, drawn("VC", ids=repeated), "repeated-index")
def embedding_means(ctx, g):
    """The gradient divided by how often an id occurs (torch's scale_grad_by_freq)."""
    dw = rules.PlainEmbedding.backward(ctx, g)
    return dw / np.maximum(np.bincount(ctx.ids, minlength=len(dw)), 1)[:, None]


@wrong(indexing.Index, lambda rng: (
    [rng.standard_normal((3, 4))], {"index": (np.arange(3)[:, None], np.array([[0, 0], [1, 2], [3, 3]]))}
), "repeated-index")  # fmt: skip
def gather_overwrites(ctx, g):
    dx = np.zeros(ctx.shape)
    dx[ctx.index] = g
    return dx


@wrong(
    indexing.ScatterAdd,
    drawn("VC", "TC", index=lambda rng, n: (rng.permutation(n["T"]) % n["V"],)),
    blind=True,
)
def scatter_source_in_order(ctx, g):
    dx, ds = indexing.ScatterAdd.backward(ctx, g)
    return dx, np.roll(ds, 1, 0)


# -- losses ------------------------------------------------------------------------------------------------
def _targets(rng: np.random.Generator, size: dict[str, int]) -> np.ndarray:
    """One row is ignored, two are not."""
    return np.array([-100, 0, *rng.integers(0, size["V"], size["T"] - 2)])


@wrong(rules.PlainCrossEntropy, drawn("TV", target=_targets), "factor")
def cross_entropy_forgets_mean(ctx, g):
    return rules.PlainCrossEntropy.backward(ctx, g) * len(ctx.saved[2])


@wrong(rules.PlainCrossEntropy, drawn("TV", target=_targets), "ignores-cotangent", blind=True)
def cross_entropy_ignores_g(ctx, g):
    return rules.PlainCrossEntropy.backward(ctx, np.ones(()))


@wrong(rules.PlainCrossEntropy, drawn("TV", target=_targets), "leaks")
def cross_entropy_counts_ignored(ctx, g):
    p, target, kept = ctx.saved
    dx = p.copy()
    dx[np.arange(len(p)), np.maximum(target, 0)] -= 1
    return dx * g / len(kept)


@wrong(rules.PlainCrossEntropy, drawn("TV", target=_targets), "factor")
def cross_entropy_mean_over_ignored_too(ctx, g):
    p, _, kept = ctx.saved
    return rules.PlainCrossEntropy.backward(ctx, g) * len(kept) / len(p)


@wrong(rules.PlainCrossEntropy, drawn("TV", target=_targets))
def cross_entropy_forgets_target(ctx, g):
    p, _, kept = ctx.saved
    return np.where(np.isin(np.arange(len(p)), kept)[:, None], p, 0) * g / len(kept)


@wrong(loss.KlDiv, drawn("TV", "TV", of=positive), "sign")
def kl_div_sign(ctx, g):
    dx, dt = loss.KlDiv.backward(ctx, g)
    return -dx, dt


@wrong(loss.KlDiv, drawn("TV", "TV", of=positive), "missing-term")
def kl_div_target_forgets_one(ctx, g):
    dx, dt = loss.KlDiv.backward(ctx, g)
    return dx, dt - g


# -- attention ---------------------------------------------------------------------------------------------
@wrong(rules.PlainAttention, drawn("TD", "TD", "TD", scale=0.5), "factor")
def attention_forgets_scale(ctx, g):
    dq, dk, dv = rules.PlainAttention.backward(ctx, g)
    return dq / ctx.scale, dk / ctx.scale, dv


@wrong(rules.PlainAttention, drawn("TD", "TD", "TD", scale=0.5))
def attention_without_row_sum(ctx, g):
    q, k, v, p = ctx.saved
    ds = p * (g @ v.T)
    return ds @ k * ctx.scale, ds.T @ q * ctx.scale, p.T @ g


@wrong(rules.PlainAttention, drawn("TD", "TD", "TD", scale=0.5))
def attention_mask_forgotten_in_dk(ctx, g):
    q, k, v, _ = ctx.saved
    dq, _, dv = rules.PlainAttention.backward(ctx, g)
    full = np.exp(q @ k.T * ctx.scale)
    full /= full.sum(-1, keepdims=True)
    dp = g @ v.T
    ds = full * (dp - (dp * full).sum(-1, keepdims=True))
    return dq, ds.T @ q * ctx.scale, dv


@wrong(rules.PlainAttention, drawn("TD", "TD", "TD", scale=0.5), "transposed")
def attention_values_not_transposed(ctx, g):
    dq, dk, _ = rules.PlainAttention.backward(ctx, g)
    return dq, dk, ctx.saved[3] @ g


@wrong(rules.PlainAttention, drawn("TD", "TD", "TD", scale=0.5), "swapped-inputs")
def attention_query_key_swapped(ctx, g):
    dq, dk, dv = rules.PlainAttention.backward(ctx, g)
    return dk, dq, dv


@wrong(rules.GroupedValues, lambda rng: ([rng.standard_normal((2, 3, 4))], {"p": rng.random((4, 2, 3))}))
def grouped_values_take_first_head(ctx, g):
    dv = ctx.saved[0].swapaxes(-1, -2) @ g
    return dv[:: ctx.group].copy()


# -- dropout -----------------------------------------------------------------------------------------------
@wrong(rules.PlainDropout, drawn("TC", key=7, p=0.5), "random-backward")
def dropout_mask_redrawn(ctx, g):
    return g * (np.random.default_rng().random(g.shape) >= ctx.p) / (1 - ctx.p)


@wrong(rules.PlainDropout, drawn("TC", key=7, p=0.25), "factor")
def dropout_not_scaled(ctx, g):
    return g * (ctx.saved[0] > 0)


@wrong(rules.PlainDropout, drawn("TC", key=7, p=0.5))
def dropout_mask_forgotten(ctx, g):
    return g.copy()


# -- methods -----------------------------------------------------------------------------------------------
def _lora(*axes: str) -> Make:
    def make(rng: np.random.Generator) -> tuple[list[np.ndarray], dict[str, Any]]:
        (x, A, B), _ = drawn(*axes)(rng)
        W, mask = rng.standard_normal((len(B), x.shape[1])), (rng.random(x.shape) < 0.7) / 0.7
        mask[0, 0], mask[1, 1] = 0, 1 / 0.7  # some are dropped, some are not
        return [x, A, B], {"W": W, "s": 0.5, "mask": mask}

    return make


@wrong(rules.PlainLora, _lora("TI", "RI", "OR"), "factor")
def lora_scales_b_twice(ctx, g):
    dx, dA, dB = rules.PlainLora.backward(ctx, g)
    return dx, dA, dB * ctx.s


@wrong(rules.PlainLora, _lora("TI", "RI", "OR"), "factor")
def lora_a_without_scale(ctx, g):
    dx, dA, dB = rules.PlainLora.backward(ctx, g)
    return dx, dA / ctx.s, dB


@wrong(rules.PlainLora, _lora("TC", "CC", "CC"), "swapped-inputs")
def lora_a_and_b_swapped(ctx, g):
    dx, dA, dB = rules.PlainLora.backward(ctx, g)
    return dx, dB, dA


@wrong(rules.PlainLora, _lora("TI", "RI", "OR"))
def lora_without_base_path(ctx, g):
    _, A, B, _, mask = ctx.saved
    _, dA, dB = rules.PlainLora.backward(ctx, g)
    return ctx.s * (g @ B @ A) * mask, dA, dB


@wrong(rules.PlainLora, _lora("TI", "RI", "OR"))
def lora_without_own_path(ctx, g):
    _, dA, dB = rules.PlainLora.backward(ctx, g)
    return g @ ctx.saved[3], dA, dB


@wrong(rules.PlainLora, _lora("TI", "RI", "OR"))
def lora_a_without_dropout(ctx, g):
    x, _, B, _, _ = ctx.saved
    dx, _, dB = rules.PlainLora.backward(ctx, g)
    return dx, ctx.s * (g @ B).T @ x, dB


@wrong(rules.Ia3, drawn("BTC", "C"), "not-summed")
def ia3_not_summed(ctx, g):
    x, l = ctx.saved  # noqa: E741
    return g * l, (g * x).sum(0)


@wrong(rules.Ia3, drawn("BTC", "C"), "factor")
def ia3_means(ctx, g):
    x, l = ctx.saved  # noqa: E741
    return g * l, (g * x).mean((0, 1))


@wrong(rules.Bottleneck, drawn("TC", "CR", "RC"), "missing-term")
def adapter_forgets_residual(ctx, g):
    dx, dD, dU = rules.Bottleneck.backward(ctx, g)
    return dx - g, dD, dU


@wrong(rules.Bottleneck, drawn("TC", "CR", "RC"))
def adapter_down_forgets_activation(ctx, g):
    x, _, U, _ = ctx.saved
    dx, _, dU = rules.Bottleneck.backward(ctx, g)
    return dx, x.T @ (g @ U.T), dU


@wrong(rules.SoftPrompt, drawn("PC", "BTC"), "not-summed")
def prompt_of_first_row_only(ctx, g):
    _, dx = rules.SoftPrompt.backward(ctx, g)
    return g[0, : ctx.length].copy(), dx


@wrong(rules.SoftPrompt, drawn("PC", "BTC"), "factor")
def prompt_means_over_rows(ctx, g):
    dp, dx = rules.SoftPrompt.backward(ctx, g)
    return dp / len(g), dx


@wrong(rules.Dora, drawn("OI", "O"), "missing-sum")
def dora_norm_constant(ctx, g):
    unit, size, m = ctx.saved
    return m[:, None] / size * g, (g * unit).sum(1)


# -- broken contracts --------------------------------------------------------------------------------------
@wrong(elementwise.Exp, drawn("TC"), "mutates-gradient", blind=True)
def exp_scales_g_in_place(ctx, g):
    g *= ctx.saved[0]
    return g


@wrong(elementwise.Exp, drawn("TC"), "mutates-saved", blind=True)
def exp_scales_saved_in_place(ctx, g):
    (y,) = ctx.saved
    y *= g
    return y


@wrong(elementwise.Exp, drawn("TC"), "dtype")
def exp_in_single_precision(ctx, g):
    return (g * ctx.saved[0]).astype(np.float32)


@wrong(arithmetic.Mul, drawn("TC", "TC"), "count")
def mul_returns_one(ctx, g):
    return g * ctx.saved[1]


@wrong(rules.PlainLinear, drawn("TC", "DC", "D"), "shape")
def linear_bias_keeps_axis(ctx, g):
    dx, dw, db = rules.PlainLinear.backward(ctx, g)
    return dx, dw, db[None]
