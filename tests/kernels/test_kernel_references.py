"""The references' gradients against central differences in float64, and their errors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from minitorch_peft.kernels import FAMILIES, get
from minitorch_peft.kernels.examples import SIZES, Draw, examples

FLOAT64 = np.dtype("float64")
seeds = st.integers(0, 2**32 - 1)


def kernel(name: str) -> Callable:
    return get(name, FLOAT64)


def assert_gradients(f: Callable, inputs: list, backward: Callable, rng: np.random.Generator) -> None:
    """Along a random direction in each input, with a random cotangent, f changes as backward says."""
    h = 1e-6
    cotangent = rng.standard_normal(f(*inputs).shape)
    gradients = backward(cotangent)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    for i, (x, gradient) in enumerate(zip(inputs, gradients, strict=True)):
        assert gradient.shape == x.shape and gradient.dtype == FLOAT64
        v = rng.standard_normal(x.shape)
        ends = [f(*[y + s * h * v if j == i else y for j, y in enumerate(inputs)]) for s in (1, -1)]
        numeric = (cotangent * (ends[0] - ends[1])).sum() / (2 * h)
        np.testing.assert_allclose((gradient * v).sum(), numeric, rtol=1e-5, atol=1e-7, err_msg=f"input {i}")


@settings(max_examples=25, deadline=None)
@given(seeds, st.integers(0, 5), st.integers(1, 5), st.integers(1, 5))
def test_linear_and_lora(seed, rows, k, n):
    rng = np.random.default_rng(seed)
    x, w, b, a, up = (rng.standard_normal(s) for s in ((2, rows, k), (n, k), n, (3, k), (n, 3)))
    forward, backward = kernel("linear_forward"), kernel("linear_backward")
    assert_gradients(forward, [x, w, b], lambda g: backward(g, x, w), rng)
    forward, backward = kernel("lora_linear_forward"), kernel("lora_linear_backward")
    xa = forward(x, w, b, a, up, 0.7)[1]
    assert_gradients(
        lambda *inputs: forward(*inputs, 0.7)[0],
        [x, w, b, a, up],
        lambda g: backward(g, x, xa, w, a, up, 0.7, (True,) * 5),
        rng,
    )


@settings(max_examples=25, deadline=None)
@given(seeds, st.integers(0, 5), st.integers(1, 5), st.integers(1, 5), st.sampled_from([0.0, 0.4]))
def test_lora_with_dropout(seed, rows, k, n, p):
    """Both directions draw the same mask: a gradient with another one would be another number."""
    rng = np.random.default_rng(seed)
    inputs = [rng.standard_normal(s) for s in ((2, rows, k), (n, k), n, (3, k), (n, 3))]
    forward, backward = kernel("lora_dropout_forward"), kernel("lora_dropout_backward")
    xa = forward(*inputs, 0.7, p, seed)[1]
    x, w, _, a, up = inputs
    assert_gradients(
        lambda *i: forward(*i, 0.7, p, seed)[0],
        inputs,
        lambda g: backward(g, x, xa, w, a, up, 0.7, p, seed, (True,) * 5),
        rng,
    )


@settings(max_examples=25, deadline=None)
@given(seeds, st.integers(0, 5), st.integers(1, 5), st.integers(1, 3))
def test_stacked_lora(seed, rows, k, count):
    """Side by side, the results of all projections are one array, a function of x, every A and every B."""
    rng = np.random.default_rng(seed)
    sizes, ranks = rng.integers(1, 6, count), rng.integers(0, 4, count)
    x, weights, scalings = rng.standard_normal((rows, k)), [rng.standard_normal((n, k)) for n in sizes], [0.7] * count
    factors = [rng.standard_normal((r, k)) for r in ranks]
    factors += [rng.standard_normal((n, r)) for n, r in zip(sizes, ranks, strict=True)]
    forward, backward = kernel("lora_stacked_forward"), kernel("lora_stacked_backward")
    xas = forward(x, weights, [None] * count, factors[:count], factors[count:], scalings)[1]

    def side_by_side(x, *factors):
        ys, _ = forward(x, weights, [None] * count, factors[:count], factors[count:], scalings)
        return np.concatenate(ys, axis=-1)

    def gradients(g):
        grads = np.split(g, np.cumsum(sizes)[:-1], axis=-1)
        dx, das, dbs = backward(grads, x, xas, weights, factors[:count], factors[count:], scalings)
        return dx, *das, *dbs

    assert_gradients(side_by_side, [x, *factors], gradients, rng)


@settings(max_examples=25, deadline=None)
@given(seeds, st.lists(st.integers(-1, 2), max_size=5), st.integers(0, 3), st.integers(1, 5), st.integers(1, 5))
def test_gathered_lora(seed, owners, tokens, k, n):
    rng = np.random.default_rng(seed)
    x, w, b, a, up, s = (rng.standard_normal(s) for s in ((len(owners), tokens, k), (n, k), n, (3, 2, k), (3, n, 2), 3))
    adapter = np.array(owners, np.int64)
    forward, backward = kernel("lora_gathered_forward"), kernel("lora_gathered_backward")
    xa = forward(x, w, b, a, up, s, adapter)[1]
    assert_gradients(
        lambda x, a, up: forward(x, w, b, a, up, s, adapter)[0],
        [x, a, up],
        lambda g: backward(g, x, xa, w, a, up, s, adapter),
        rng,
    )


@settings(max_examples=25, deadline=None)
@given(seeds, st.integers(1, 4), st.integers(2, 6))
def test_norms(seed, rows, size):
    rng = np.random.default_rng(seed)
    x, w, b = rng.standard_normal((rows, size)), rng.standard_normal(size), rng.standard_normal(size)
    eps = 0.1
    layer, rms = kernel("layer_norm_forward"), kernel("rms_norm_forward")
    _, mean, rstd = layer(x, w, b, eps)
    layer_back, rms_back = kernel("layer_norm_backward"), kernel("rms_norm_backward")
    assert_gradients(lambda *i: layer(*i, eps)[0], [x, w, b], lambda g: layer_back(g, x, w, mean, rstd), rng)
    rstd_only = rms(x, w, eps)[1]
    assert_gradients(lambda *i: rms(*i, eps)[0], [x, w], lambda g: rms_back(g, x, w, rstd_only), rng)
    assert_gradients(lambda x: layer(x, None, None, eps)[0], [x],
                     lambda g: layer_back(g, x, None, mean, rstd, (True, False, False))[0], rng)  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_activations_and_softmax(seed):
    rng = np.random.default_rng(seed)
    x, up = 2 * rng.standard_normal((3, 5)), rng.standard_normal((3, 5))
    for name in ("gelu", "gelu_tanh", "silu"):
        backward = kernel(f"{name}_backward")
        assert_gradients(kernel(f"{name}_forward"), [x], lambda g, b=backward: b(g, x), rng)
    assert_gradients(kernel("swiglu_forward"), [x, up], lambda g: kernel("swiglu_backward")(g, x, up), rng)
    y = kernel("softmax_forward")(x)
    assert_gradients(kernel("softmax_forward"), [x], lambda g: kernel("softmax_backward")(g, y), rng)


@settings(max_examples=40, deadline=None)
@given(seeds, st.sampled_from([(3, 3), (2, 5), (5, 2), (1, 4)]), st.integers(1, 2), st.integers(1, 3), st.booleans(),
       st.sampled_from(["none", "bool", "float"]))  # fmt: skip
def test_attention(seed, lengths, shared, group, causal, mask_kind):
    rng = np.random.default_rng(seed)
    t, s = lengths
    q, k, v = (rng.standard_normal((2, h, n, 3)) for h, n in ((shared * group, t), (shared, s), (shared, s)))
    mask = {"none": None, "bool": rng.random((2, 1, t, s)) < 0.6, "float": rng.standard_normal((t, s))}[mask_kind]
    forward, backward = kernel("attention_forward"), kernel("attention_backward")
    out, lse = forward(q, k, v, mask, causal, 0.6)
    assert_gradients(
        lambda *i: forward(*i, mask, causal, 0.6)[0],
        [q, k, v],
        lambda g: backward(g, q, k, v, out, lse, mask, causal, 0.6),
        rng,
    )


@settings(max_examples=25, deadline=None)
@given(seeds, st.sampled_from([0.0, 0.2]))
def test_cross_entropy(seed, smoothing):
    rng = np.random.default_rng(seed)
    logits, target = rng.standard_normal((4, 6)), np.array([0, 5, -1, 3])
    forward, backward = kernel("cross_entropy_forward"), kernel("cross_entropy_backward")
    lse = forward(logits, target, -1, smoothing)[1]
    assert_gradients(
        lambda x: forward(x, target, -1, smoothing)[0],
        [logits],
        lambda g: backward(g, logits, target, lse, -1, smoothing),
        rng,
    )


@settings(max_examples=25, deadline=None)
@given(seeds, st.booleans())
def test_embedding_and_rotary(seed, per_row):
    rng = np.random.default_rng(seed)
    weight, ids = rng.standard_normal((4, 3)), rng.integers(0, 4, (2, 5))
    forward, backward = kernel("embedding_forward"), kernel("embedding_backward")
    assert_gradients(lambda w: forward(w, ids), [weight], lambda g: backward(g, ids, 4), rng)
    x, angle = rng.standard_normal((2, 3, 5, 4)), rng.standard_normal((2, 5, 2) if per_row else (5, 2))
    forward, backward = kernel("rotary_forward"), kernel("rotary_backward")
    cos, sin = np.cos(angle), np.sin(angle)
    assert_gradients(lambda x: forward(x, cos, sin), [x], lambda g: backward(g, cos, sin), rng)
    np.testing.assert_allclose(backward(forward(x, cos, sin), cos, sin), x)  # a rotation's transpose undoes it


WRONG = {
    "linear: x": ("linear_forward", ((2, 3), (4, 5), None), ValueError, r"linear: x has shape \(2, 3\).* \(2, 5\)"),
    "linear: bias": ("linear_forward", ((2, 5), (4, 5), (3,)), ValueError, "bias"),
    "linear: grad": ("linear_backward", ((3, 4), (2, 5), (4, 5)), ValueError, "grad"),
    "lora: rank": ("lora_linear_forward", ((2, 5), (4, 5), None, (2, 5), (4, 3), 1.0), ValueError, "lora_b"),
    "lora: bias": ("lora_linear_forward", ((2, 5), (4, 5), (1,), (2, 5), (4, 2), 1.0), ValueError, "bias"),
    "lora: xa": ("lora_linear_backward", ((2, 4), (2, 5), (2, 3), (4, 5), (2, 5), (4, 2), 1.0), ValueError, "xa"),
    "lora: x": ("lora_linear_forward", ((2, 3), (4, 5), None, (2, 5), (4, 2), 1.0), ValueError, "x has shape"),
    "lora dropout: p": ("lora_dropout_forward", ((2, 5), (4, 5), None, (2, 5), (4, 2), 1.0, 1.0, 0), ValueError,
                        r"lora_dropout: p must be in \[0, 1\), got 1.0"),
    "lora dropout: seed": ("lora_dropout_backward", ((2, 4), (2, 5), (2, 2), (4, 5), (2, 5), (4, 2), 1.0, 0.1, -1),
                           ValueError, "seed"),
    "lora dropout: grad": ("lora_dropout_backward", ((3, 4), (2, 5), (2, 2), (4, 5), (2, 5), (4, 2), 1.0, 0.1, 0),
                           ValueError, "grad"),
    "layer norm: weight": ("layer_norm_forward", ((2, 3), (4,), None, 0.1), ValueError, "weight"),
    "layer norm: grad": ("layer_norm_backward", ((2, 4), (2, 3), None, (2,), (2,)), ValueError, "grad"),
    "layer norm: mean": ("layer_norm_backward", ((2, 3), (2, 3), None, (1,), (2,)), ValueError, "mean"),
    "rms norm: weight": ("rms_norm_forward", ((2, 3), (4,), 0.1), ValueError, "weight"),
    "rms norm: rstd": ("rms_norm_backward", ((2, 3), (2, 3), None, (3,)), ValueError, "rstd"),
    "silu: grad": ("silu_backward", ((2, 3), (3, 2)), ValueError, "activation: x has shape"),
    "swiglu: up": ("swiglu_forward", ((2, 3), (1, 3)), ValueError, "up"),
    "softmax: grad": ("softmax_backward", ((2, 3), (2, 4)), ValueError, "grad"),
    "matmul: inner": ("matmul", ((2, 3), (4, 5)), ValueError, r"a is \(2, 3\) and b is \(4, 5\)"),
    "matmul: vector": ("matmul", ((3,), (3, 5)), ValueError, "two dimensions"),
    "attention: heads": ("attention_forward", ((1, 3, 2, 4), (1, 2, 2, 4), (1, 2, 2, 4), None, True, 1.0), ValueError,
                         "multiple"),
    "attention: out": ("attention_backward", ((1, 1, 2, 4),) * 4 + ((1, 1, 1, 4), (1, 1, 2), None, True, 1.0),
                       ValueError, "out"),
    "attention: lse": ("attention_backward", ((1, 1, 2, 4),) * 5 + ((1, 1, 3), None, True, 1.0), ValueError, "lse"),
    "cross_entropy: class": ("cross_entropy_forward", ((2, 3), np.array([0, 3]), -100, 0.0), IndexError,
                             r"target\[1\] is 3"),
    "cross_entropy: rows": ("cross_entropy_forward", ((2, 3), np.array([0]), -100, 0.0), ValueError, "target"),
    "cross_entropy: lse": ("cross_entropy_backward", ((2,), (2, 3), np.array([0, 1]), (3,), -100, 0.0), ValueError,
                           "lse"),
    "cross_entropy: float": ("cross_entropy_forward", ((2, 3), (2,), -100, 0.0), TypeError, "target must be integers"),
    "embedding: float": ("embedding_forward", ((2, 3), (2,)), TypeError, "ids must be integers"),
    "embedding: grad": ("embedding_backward", ((2, 3), np.array([0]), 4), ValueError, "grad"),
    "rotary: axes": ("rotary_forward", ((2, 4), (2, 2), (2, 2)), ValueError, r"\(B, H, T, D\)"),
    "embedding: id": ("embedding_forward", ((4, 3), np.array([0, 4])), IndexError, r"\[0, 4\)"),
    "embedding: negative id": ("embedding_forward", ((4, 3), np.array([-1])), IndexError, "-1"),
    "rotary: odd": ("rotary_forward", ((1, 1, 2, 3), (2, 1), (2, 1)), ValueError, "D even"),
    "adamw: shapes": ("adamw_step", ((2,), (3,), (2,), (2,), 0.1, 0.9, 0.99, 1e-8, 0.0, 1), ValueError, "one shape"),
    "adamw: step": ("adamw_step", ((2,), (2,), (2,), (2,), 0.1, 0.9, 0.99, 1e-8, 0.0, 0), ValueError, "counts from 1"),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_named(case, dtype):
    name, args, error, message = WRONG[case]
    args = [np.ones(a, dtype) if isinstance(a, tuple) else a for a in args]
    with pytest.raises(error, match=message):
        get(name, np.dtype(dtype))(*args)


def test_a_fast_matmul_of_two_dtypes_is_refused():
    """It hands addresses to compiled code: float64 read as float32 would be garbage."""
    with pytest.raises(TypeError, match="float64"):
        get("matmul", np.dtype("float32"))(np.ones((2, 2), np.float32), np.ones((2, 2)))


GPT_FAMILIES = (
    "linear", "norm", "activation", "softmax", "attention", "cross_entropy", "rotary", "optimizer",
)  # fmt: skip


@pytest.mark.parametrize("kernel", [name for family in GPT_FAMILIES for name in FAMILIES[family][0]])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arrays_of_two_dtypes_are_refused(kernel, dtype):
    """Whichever of them is the odd one: nothing is converted, and no array is read as what it is not."""
    args = [
        a.astype(dtype) if isinstance(a, np.ndarray) and a.dtype == np.float32 else a
        for a in examples()[kernel].typical(Draw(0), SIZES["tiny"])
    ]
    floating = [i for i, a in enumerate(args) if isinstance(a, np.ndarray) and a.dtype == np.dtype(dtype)]
    for i in floating[1:]:
        odd = list(args)
        odd[i] = args[i].astype("float64" if dtype == "float32" else "float32")
        with pytest.raises(TypeError, match=r"is float(32|64), expected float(32|64) as the others"):
            get(kernel, np.dtype(dtype))(*odd)


@pytest.mark.parametrize("kernel", ["softmax_forward", "gelu_backward", "layer_norm_forward", "linear_forward"])
def test_integers_are_no_numbers_to_compute_with(kernel):
    args = [
        a.astype(np.int64) if isinstance(a, np.ndarray) else a
        for a in examples()[kernel].typical(Draw(0), SIZES["tiny"])
    ]
    with pytest.raises(TypeError, match="floating-point arrays, got int64"):
        get(kernel, np.dtype("float32"))(*args)
