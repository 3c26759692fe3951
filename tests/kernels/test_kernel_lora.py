"""The forms of LoRA against one another and against counted memory; what they refuse."""

from __future__ import annotations

import tracemalloc

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import FLOAT32, assert_agrees, run
from minitorch_peft.kernels import get
from minitorch_peft.kernels.philox.reference import dropped

FLOAT64 = np.dtype("float64")
R, K, N, RANK = 4200, 64, 96, 4


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(FLOAT32)


def close(ours, theirs) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * max(1.0, np.abs(theirs).max(initial=0)))


X, W, BIAS, A, B, G = normal(R, K), normal(N, K), normal(N), normal(RANK, K), normal(N, RANK), normal(R, N)


# -- the forms are one layer -----------------------------------------------------------------------------------------
def test_dropout_of_nothing_is_plain_lora():
    y, xa = run("lora_dropout_forward", X, W, BIAS, A, B, 0.5, 0.0, 3)
    for ours, theirs in zip((y, xa), run("lora_linear_forward", X, W, BIAS, A, B, 0.5), strict=True):
        close(ours, theirs)
    ours = run("lora_dropout_backward", G, X, xa, W, A, B, 0.5, 0.0, 3, (True,) * 5)
    for one, other in zip(ours, run("lora_linear_backward", G, X, xa, W, A, B, 0.5, (True,) * 5), strict=True):
        close(one, other)


def test_dropout_is_on_the_low_rank_path_and_its_mask_is_that_of_the_counter():
    y, xa = run("lora_dropout_forward", X, W, BIAS, A, B, 0.5, 0.3, 2**40 + 1)
    close(xa, dropped(X, 0.3, 2**40 + 1) @ A.T)
    close(y, X @ W.T + BIAS + 0.5 * xa @ B.T)
    other = run("lora_dropout_forward", X, W, BIAS, A, B, 0.5, 0.3, 1)  # the high half of the seed matters
    assert np.abs(other[1] - xa).max() > 0.1


def test_a_mask_does_not_depend_on_how_the_work_is_cut():
    """Rows of a longer array have their own places; the first ones are those of the shorter array."""
    whole = run("lora_dropout_forward", X, W, None, A, B, 0.5, 0.3, 5)[1]
    close(run("lora_dropout_forward", X[:77], W, None, A, B, 0.5, 0.3, 5)[1], whole[:77])
    three_axes = run("lora_dropout_forward", X.reshape(3, -1, K), W, None, A, B, 0.5, 0.3, 5)[1]
    assert np.array_equal(three_axes.reshape(R, RANK), whole)


def test_stacked_projections_are_lora_layers_whose_dx_add_up():
    weights, biases, ranks, scalings = (W, normal(33, K)), (BIAS, None), (RANK, 2), (0.5, 2.0)
    lora_as, lora_bs = tuple(normal(r, K) for r in ranks), (normal(N, RANK), normal(33, 2))
    ys, xas = run("lora_stacked_forward", X, weights, biases, lora_as, lora_bs, scalings)
    grads = (G, normal(R, 33))
    dx, das, dbs = run("lora_stacked_backward", grads, X, xas, weights, lora_as, lora_bs, scalings)
    total = 0
    for i, layer in enumerate(zip(weights, biases, lora_as, lora_bs, scalings, strict=True)):
        y, xa = run("lora_linear_forward", X, *layer)
        close(ys[i], y)
        close(xas[i], xa)
        one, _, _, da, db = run("lora_linear_backward", grads[i], X, xa, layer[0], *layer[2:])
        close(das[i], da)
        close(dbs[i], db)
        total = total + one
    close(dx, total)


def gathered(adapter, tokens=40, adapters=3):
    batch = len(adapter)
    x, grad = normal(batch, tokens, K), normal(batch, tokens, N)
    return x, grad, normal(adapters, RANK, K), normal(adapters, N, RANK), normal(adapters), np.array(adapter)


@pytest.mark.parametrize("adapter", [[0, 0, 1, -1, 2, 0], [-1, -1], [2], [1, 0, 1, 0, 1, 0, 1, 0]])
@pytest.mark.parametrize("tokens", [1, 40])
def test_gathered_rows_are_separate_runs(adapter, tokens):
    x, grad, lora_a, lora_b, scaling, adapter = gathered(adapter, tokens)
    y, xa = run("lora_gathered_forward", x, W, BIAS, lora_a, lora_b, scaling, adapter)
    dx, da, db = run("lora_gathered_backward", grad, x, xa, W, lora_a, lora_b, scaling, adapter)
    for e in range(3):
        rows = adapter == e
        layer = (lora_a[e], lora_b[e], scaling[e])
        close(y[rows], run("lora_linear_forward", x[rows], W, BIAS, *layer)[0])
        alone = run("lora_linear_backward", grad[rows], x[rows], xa[rows], W, *layer)
        for ours, theirs in zip((dx[rows], da[e], db[e]), (alone[0], *alone[3:]), strict=True):
            close(ours, theirs)
        if not rows.any():
            assert not da[e].any() and not db[e].any()
    none = adapter < 0
    close(y[none], run("linear_forward", x[none], W, BIAS)[0])
    close(dx[none], run("linear_backward", grad[none], x[none], W)[0])
    assert not xa[none].any()


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(6)))
def test_the_order_of_rows_does_not_matter(order):
    x, _, lora_a, lora_b, scaling, adapter = gathered([0, 1, 1, 2, -1, 0], 3)
    y, _ = run("lora_gathered_forward", x, W, None, lora_a, lora_b, scaling, adapter)
    order = list(order)
    close(run("lora_gathered_forward", x[order], W, None, lora_a, lora_b, scaling, adapter[order])[0], y[order])


@pytest.mark.parametrize("rows", [1, 3, 15])
def test_few_rows_share_the_columns_under_every_form(rows):
    x, w, b, a, up = normal(rows, 300), normal(301, 300), normal(301), normal(4, 300), normal(301, 4)
    assert_agrees("lora_dropout_forward", x, w, b, a, up, 0.5, 0.2, 9, tolerance=5e-5)
    assert_agrees(
        "lora_stacked_forward", x, (w, w[:100]), (b, None), (a, a), (up, up[:100]), (0.5, 1.0), tolerance=5e-5
    )
    owner = np.arange(rows) % 3 - 1
    factors = np.stack([a, -a]), np.stack([up, up]), normal(2)
    assert_agrees("lora_gathered_forward", x[:, None], w, b, *factors, owner, tolerance=5e-5)


# -- counted memory --------------------------------------------------------------------------------------------------
def peak(function, *args) -> int:
    """Bytes of NumPy arrays at the highest, results included."""
    function(*args)
    tracemalloc.start()
    try:
        kept = function(*args)
        return tracemalloc.get_traced_memory()[1] if kept is not None else 0
    finally:
        tracemalloc.stop()


SLACK = 150_000 + 50_000 * numba.get_num_threads()  # bytes: xa (more than once), each thread's scratch


def test_no_array_of_the_rows_is_made_beside_the_results():
    """y and dx are (R, N) and (R, K); neither a mask, nor drop(x), nor a term of a sum is such an array."""
    xa, column = X @ A.T, 4 * R  # bytes of one column
    assert column * K > SLACK
    for extra in ((), (0.3, 5)):
        name = "lora_dropout" if extra else "lora_linear"
        forward, backward = get(f"{name}_forward", FLOAT32), get(f"{name}_backward", FLOAT32)
        assert peak(forward, X, W, BIAS, A, B, 0.5, *extra) < column * N + SLACK
        assert peak(backward, G, X, xa, W, A, B, 0.5, *extra) < column * K + SLACK
    weights, lora_as, lora_bs, scalings = (W,) * 3, (A,) * 3, (B,) * 3, (0.5,) * 3
    assert (
        peak(get("lora_stacked_forward", FLOAT32), X, weights, (None,) * 3, lora_as, lora_bs, scalings)
        < 3 * column * N + SLACK
    )
    backward = get("lora_stacked_backward", FLOAT32)
    assert peak(backward, (G,) * 3, X, (xa,) * 3, weights, lora_as, lora_bs, scalings) < column * K + 2 * SLACK
    x, grad, lora_a, lora_b, scaling, adapter = gathered([0, 1, 2] * 5, R // 15)
    xa = normal(15, R // 15, RANK)
    assert (
        peak(get("lora_gathered_forward", FLOAT32), x, W, BIAS, lora_a, lora_b, scaling, adapter) < column * N + SLACK
    )
    backward = get("lora_gathered_backward", FLOAT32)
    assert peak(backward, grad, x, xa, W, lora_a, lora_b, scaling, adapter) < column * K + SLACK


# -- refused ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
def test_a_stack_that_does_not_fit_is_refused(dtype):
    x, w, a, b = (np.ones(s, dtype) for s in ((2, 5), (4, 5), (2, 5), (4, 2)))
    forward, backward = get("lora_stacked_forward", dtype), get("lora_stacked_backward", dtype)
    with pytest.raises(ValueError, match="expected as many of each and at least one, got 2 weights, 1 biases"):
        forward(x, (w, w), (None,), (a, a), (b, b), (1.0, 1.0))
    with pytest.raises(ValueError, match="at least one, got 0 weights"):
        forward(x, (), (), (), (), ())
    with pytest.raises(ValueError, match=r"lora_b has shape \(4, 1\)"):
        forward(x, (w, w), (None, None), (a, a), (b, b[:, :1]), (1.0, 1.0))
    with pytest.raises(ValueError, match="2 weights, but 1 grads and 2 xas"):
        backward((np.ones((2, 4), dtype),), x, (x[:, :2],) * 2, (w, w), (a, a), (b, b), (1.0, 1.0))


GATHERED = {
    "x": (2, 3, 5), "weight": (4, 5), "bias": (4,), "lora_a": (1, 2, 5), "lora_b": (1, 4, 2), "scaling": (1,),
    "adapter": [0, -1],
}  # fmt: skip
WRONG = [
    ({"x": (2, 5)}, ValueError, r"x must be \(B, T, K\).* got \(2, 5\)"),
    ({"lora_a": (2, 5)}, ValueError, r"lora_a \(E, r, K\); got .* and \(2, 5\)"),
    ({"lora_b": (1, 4, 3)}, ValueError, r"lora_b has shape \(1, 4, 3\).* \(1, 4, 2\)"),
    ({"bias": (5,)}, ValueError, "bias has shape"),
    ({"scaling": (2,)}, ValueError, "scaling has shape"),
    ({"adapter": [0]}, ValueError, r"adapter has shape \(1,\)"),
    ({"adapter": [0.0, 0.0]}, TypeError, "adapter must be integers, got float64"),
    ({"adapter": [1, 0]}, IndexError, r"adapter must lie in \[0, 1\), or be -1 for none; got 0 to 1"),
    ({"adapter": [0, -2]}, IndexError, "got -2 to 0"),
    ({"grad": (2, 3, 5)}, ValueError, "grad has shape"),
    ({"xa": (2, 3, 1)}, ValueError, "xa has shape"),
]


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
@pytest.mark.parametrize("change, error, message", WRONG)
def test_wrong_arguments_of_a_mixed_batch_are_named(change, error, message, dtype):
    shapes = {"grad": (2, 3, 4), "xa": (2, 3, 2), **GATHERED, **change}
    made = {name: np.array(s) if name == "adapter" else np.ones(s, dtype) for name, s in shapes.items()}
    if not {"bias"} & change.keys():
        names = ["grad", "x", "xa", "weight", "lora_a", "lora_b", "scaling", "adapter"]
        with pytest.raises(error, match=message):
            get("lora_gathered_backward", dtype)(*(made[name] for name in names))
    if not {"grad", "xa"} & change.keys():
        with pytest.raises(error, match=message):
            get("lora_gathered_forward", dtype)(*(made[name] for name in GATHERED))


@pytest.mark.parametrize("backend_dtype", [FLOAT32, FLOAT64])
@pytest.mark.parametrize(
    "change, message",
    [
        ({"weight": np.float16}, "lora_linear: weight is float16, expected"),
        ({"bias": np.int64}, "bias is int64"),
        ({"lora_a": np.float16}, "lora_a is float16"),
        ({"lora_b": np.complex64}, "lora_b is complex64"),
        ({"x": np.int32, "weight": np.int32, "bias": np.int32, "lora_a": np.int32, "lora_b": np.int32},
         "expected floating-point arrays, got int32"),
    ],
)  # fmt: skip
def test_mixed_or_integer_dtypes_are_named(change, message, backend_dtype):
    shapes = {"x": (2, 5), "weight": (4, 5), "bias": (4,), "lora_a": (2, 5), "lora_b": (4, 2)}
    arrays = {name: np.ones(shape, change.get(name, backend_dtype)) for name, shape in shapes.items()}
    for kernel, constants in (("lora_linear_forward", (1.0,)), ("lora_dropout_forward", (1.0, 0.1, 0))):
        with pytest.raises(TypeError, match=message):
            get(kernel, backend_dtype)(*arrays.values(), *constants)
