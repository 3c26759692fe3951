"""Indexing as in torch: numbers before arrays, repetitions add up, errors name the range."""

from __future__ import annotations

import numpy as np
import pytest

import minitorch_peft as mp
import minitorch_peft.functional as F

X = np.arange(24.0).reshape(2, 3, 4)


@pytest.mark.parity
@pytest.mark.parametrize(
    "index",
    [
        (0, slice(None), [1, 2]), (slice(None), 0, [1, 2]), ([0, 1], 0), (0, [0, 1], slice(None), None),
        (..., [0, 0]), ([[0], [1]], [[0, 1]]), ([True, False],), (None, [0, 1, 1]), (slice(None), [0, 1], 2),
        ([1, 0], slice(None), [1, 2]), (..., 1), (np.array(1), [0]), (0, 0, 0), ([],),
    ],
)  # fmt: skip
def test_mixed_indices_are_those_of_torch(index) -> None:
    import torch

    ours, theirs = mp.tensor(X, requires_grad=True), torch.tensor(X, requires_grad=True)
    got, wanted = ours[index], theirs[tuple(torch.tensor(i) if isinstance(i, np.ndarray) else i for i in index)]
    assert got.tolist() == wanted.tolist()
    g = np.random.default_rng(0).standard_normal(got.shape)
    got.backward(gradient=g)
    wanted.backward(torch.tensor(g))
    np.testing.assert_allclose(ours.grad, theirs.grad.numpy())


def test_tensors_are_indices_and_repetitions_add_up() -> None:
    x = mp.tensor([1.0, 2.0, 3.0], requires_grad=True)
    y = x[mp.tensor([0, 0, -1])]
    (y * mp.tensor([1.0, 10.0, 100.0])).sum().backward()
    assert y.tolist() == [1.0, 1.0, 3.0] and x.grad.tolist() == [11.0, 0.0, 100.0]


def test_a_comparison_is_a_mask() -> None:
    x = mp.tensor([1.0, -2.0, 3.0], requires_grad=True)
    x[x > 0].sum().backward()
    assert x.grad.tolist() == [1.0, 0.0, 1.0]


def test_negative_steps_go_backwards() -> None:
    x = mp.tensor([1.0, 2.0, 3.0], requires_grad=True)
    (x[::-2] * mp.tensor([1.0, 2.0])).sum().backward()
    assert x[::-2].tolist() == [3.0, 1.0] and x.grad.tolist() == [2.0, 0.0, 1.0]


def test_iteration_and_unpacking() -> None:
    a, b = mp.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert a.tolist() == [1.0, 2.0] and b.tolist() == [3.0, 4.0]


def test_one_hot_counts_its_own_classes() -> None:
    assert F.one_hot(np.array([0, 2])).shape == (2, 3) and F.one_hot(np.array([0]), 5).shape == (1, 5)


def test_the_padding_row_gets_no_gradient() -> None:
    w = mp.tensor(np.ones((3, 2)), requires_grad=True)
    F.embedding(np.array([0, 1, 1]), w, padding_idx=-2).sum().backward()
    assert w.grad.tolist() == [[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]


V = mp.tensor(X[0])
ERRORS = [
    (lambda: V[3], IndexError, "out of bounds"),
    (lambda: V[[0, 3]], IndexError, "out of bounds"),
    (lambda: V[0, 0, 0], IndexError, "too many indices"),
    (lambda: V[[0], 0, 0], IndexError, "too many indices"),
    (lambda: V[1.5], IndexError, "integers or bools, got float64"),
    (lambda: V.gather(1, np.zeros((3,), int)), ValueError, r"index \(3,\) must fit into input \(3, 4\)"),
    (lambda: V.gather(1, np.zeros((4, 1), int)), ValueError, "must fit"),
    (lambda: V.gather(1, np.full((3, 1), 4)), IndexError, r"indices must be in \[0, 4\), got 4 to 4"),
    (lambda: V.gather(1, np.zeros((3, 1))), TypeError, "index must be integers, got float64"),
    (lambda: V.index_select(0, np.array([-1])), IndexError, r"in \[0, 3\)"),
    (lambda: V.index_select(0, np.zeros((1, 1), int)), ValueError, r"expected index \(K\)"),
    (lambda: V.index_add(0, [0], V), ValueError, r"source must be \(1, 4\)"),
    (lambda: V.scatter_add(0, np.zeros((2, 1), int), mp.tensor([[1.0]])), ValueError, "must fit into src"),
    (lambda: F.embedding(np.array([3]), V), IndexError, r"\[0, 3\)"),
    (lambda: F.embedding(np.array([-1]), V), IndexError, r"\[0, 3\)"),
    (lambda: F.embedding(np.array([0.5]), V), TypeError, "ids must be integers"),
    (lambda: F.embedding(np.array([0]), V[0]), ValueError, r"expected weight \(V, C\)"),
    (lambda: F.embedding(np.array([0]), V, padding_idx=3), ValueError, "not one of the 3 rows"),
    (lambda: F.one_hot(np.array([3]), 3), IndexError, r"\[0, 3\)"),
    (lambda: F.one_hot([]), ValueError, "give num_classes"),
]


@pytest.mark.parametrize(("call", "error", "message"), ERRORS)
def test_errors_say_what_is_out_of_range(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()
