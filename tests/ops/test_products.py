"""Matrix products: what fits, what is kept, sums of products by name."""

from __future__ import annotations

import numpy as np
import pytest

import minitorch_peft as mp
import minitorch_peft.functional as F

A = mp.tensor(np.ones((2, 3)))


def test_a_frozen_weight_keeps_no_activation() -> None:
    x = mp.tensor(np.ones((4, 3)), requires_grad=True)
    w, b = mp.tensor(np.ones((2, 3))), mp.tensor(np.ones(2), requires_grad=True)
    y = F.linear(x, w, b)
    assert not any(a is x.data for a in y.grad_fn.saved)
    y.sum().backward()
    assert x.grad.tolist() == [[2.0] * 3] * 4 and b.grad.tolist() == [4.0, 4.0] and w.grad is None
    assert any(a is x.data for a in F.linear(x, w.detach().requires_grad_()).grad_fn.saved)
    assert x.data is not (x * mp.tensor(np.ones((4, 3)))).grad_fn.saved[0]
    assert not any(a is x.data for a in (x @ mp.tensor(np.ones((3, 2)))).grad_fn.saved)


def test_ellipsis_and_implicit_results() -> None:
    a, b = np.random.default_rng(0).standard_normal((2, 5, 3, 4)), np.ones((4, 6))
    for equation in ("...ij,jk->...ik", "...ij,jk", "...ij,jk->k..."):
        got = F.einsum(equation, mp.tensor(a), mp.tensor(b))
        np.testing.assert_allclose(got.data, np.einsum(equation, a, b))
    x, y = mp.tensor(a[:1], requires_grad=True), mp.tensor(np.ones((2, 1, 3, 1)), requires_grad=True)
    assert mp.gradcheck(lambda x, y: F.einsum("...ij,...ij->...i", x, y), (x, y))
    assert F.einsum("ba", mp.tensor(np.ones((2, 3)))).shape == (3, 2)
    assert F.einsum("bi,bi->b", mp.tensor(np.ones((1, 3))), mp.tensor(np.ones((4, 3)))).shape == (4,)


ERRORS = [
    (lambda: A @ A, ValueError, "the inner sizes of"),
    (lambda: A @ mp.tensor(1.0), ValueError, "use mul"),
    (lambda: mp.tensor(np.ones((2, 1, 3))) @ mp.tensor(np.ones((3, 3, 1))), ValueError, "do not broadcast"),
    (lambda: F.bmm(A, A), ValueError, r"expected \(B, M, K\) and \(B, K, N\)"),
    (lambda: F.linear(A, A.T), ValueError, r"weight \(O, I\) and bias \(O\), got \(2, 3\), \(3, 2\) and None"),
    (lambda: F.linear(A, A, A), ValueError, r"and \(2, 3\)"),
    (lambda: F.einsum("ij,jk->ik", A), ValueError, "names 2 operands, got 1"),
    (lambda: F.einsum("ijk->i", A), ValueError, "does not name the 2 axes"),
    (lambda: F.einsum("i->i", A), ValueError, "does not name the 2 axes"),
    (lambda: F.einsum("ij->ik", A), ValueError, "distinct letters of the operands"),
    (lambda: F.einsum("ij->ii", A), ValueError, "distinct letters"),
    (lambda: F.einsum("ij,jk->ik", A, A), ValueError, "do not broadcast"),
    (lambda: F.einsum("i1->i", A), ValueError, "letters"),
    (lambda: F.layer_norm(A, (2,)), ValueError, r"does not end in normalized_shape \(2,\)"),
    (lambda: F.layer_norm(A, (3,), A), ValueError, "must have normalized_shape"),
    (lambda: F.rms_norm(A, ()), ValueError, "does not end"),
]


@pytest.mark.parametrize(("call", "error", "message"), ERRORS)
def test_errors_say_what_does_not_fit(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()
