"""Reductions of nothing, of ties, of integers; extremes of the range."""

from __future__ import annotations

import numpy as np
import pytest

import minitorch_peft as mp
import minitorch_peft.functional as F

EMPTY = mp.tensor(np.zeros((0, 3)))


def test_reductions_of_nothing() -> None:
    assert EMPTY.sum().item() == 0 and EMPTY.prod().item() == 1 and EMPTY.norm().item() == 0
    assert np.isnan(EMPTY.mean().item()) and EMPTY.sum(1).shape == (0,) and EMPTY.mean(1).shape == (0,)
    assert np.isnan(EMPTY.var().item()) and EMPTY.logsumexp(0).tolist() == [-np.inf] * 3
    assert EMPTY.any().item() is False and EMPTY.all().item() is True
    assert EMPTY.amax(1).shape == EMPTY.argmax(1).shape == EMPTY.max(1).values.shape == (0,)


@pytest.mark.parametrize("name", ["amax", "amin", "argmax", "argmin", "max", "min"])
def test_no_element_is_the_largest_of_none(name: str) -> None:
    with pytest.raises(ValueError, match=r"shape \(0, 3\) has no elements along axes"):
        getattr(F, name)(EMPTY)
    with pytest.raises(ValueError, match="no elements"):
        getattr(F, name)(EMPTY, dim=0)


def test_gradients_of_nothing_are_empty() -> None:
    x = mp.tensor(np.zeros((0, 3)), requires_grad=True)
    (x.sum() + x.mean() + x.prod() + x.norm()).backward()
    assert x.grad.shape == (0, 3)


def test_integers_add_up_in_int64_and_have_no_mean() -> None:
    bits = mp.Tensor(np.ones(300, np.uint8))
    assert bits.sum().dtype == bits.prod().dtype == bits.cumsum(0).dtype == np.int64 and bits.sum().item() == 300
    assert mp.tensor([True, True]).sum().item() == 2
    for name in ("mean", "var", "std", "norm"):
        with pytest.raises(TypeError, match=f"{name}: expected floats, got int64; convert first"):
            getattr(F, name)(mp.tensor([1, 2]))


def test_equal_elements_share_the_gradient_of_an_extreme() -> None:
    x = mp.tensor([2.0, 1.0, 2.0], requires_grad=True)
    x.amax().backward()
    assert x.grad.tolist() == [0.5, 0.0, 0.5]
    x.grad = None
    x.max(0).values.backward()
    assert x.grad.tolist() == [1.0, 0.0, 0.0]
    a, b = mp.tensor([1.0], requires_grad=True), mp.tensor([1.0], requires_grad=True)
    F.maximum(a, b).backward()
    assert a.grad.tolist() == b.grad.tolist() == [0.5]


def test_max_of_two_tensors_is_elementwise() -> None:
    x, y = mp.tensor([1.0, 5.0]), mp.tensor([3.0, 2.0])
    assert F.max(x, y).tolist() == [3.0, 5.0] and F.min(x, y).tolist() == [1.0, 2.0] and F.max(x).item() == 5.0
    with pytest.raises(TypeError, match="over several axes use amax"):
        F.max(x, dim=(0,))


def test_a_product_has_gradients_through_zeros() -> None:
    x = mp.tensor([[0.0, 2.0, 3.0], [0.0, 0.0, 4.0]], requires_grad=True)
    x.prod(1).sum().backward()
    assert x.grad.tolist() == [[6.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


def test_a_product_over_several_axes() -> None:
    x = mp.tensor(np.random.default_rng(0).uniform(1, 2, (2, 3, 4)), requires_grad=True)
    assert mp.gradcheck(lambda x: x.prod((0, -1)), (x,))
    np.testing.assert_allclose(x.prod((0, -1), keepdim=True).data, x.data.prod((0, 2), keepdims=True))


def test_the_corner_of_a_root_has_gradient_zero() -> None:
    x = mp.tensor([1.0, 1.0], requires_grad=True)
    (x.std() + (x - 1.0).norm()).backward()
    assert x.grad.tolist() == [0.0, 0.0]


def test_one_element_has_no_variance_left() -> None:
    assert np.isnan(mp.tensor([1.0]).var().item()) and mp.tensor([1.0]).var(correction=0).item() == 0


@pytest.mark.parity
def test_logsumexp_at_infinity_is_that_of_torch() -> None:
    import torch

    rows = [[-np.inf, -np.inf], [-np.inf, 1.0], [1000.0, 1000.0], [np.inf, 1.0]]
    assert F.logsumexp(mp.tensor(rows), 1).tolist() == torch.logsumexp(torch.tensor(rows), 1).tolist()


@pytest.mark.parity
def test_order_with_ties_and_nan_is_that_of_torch() -> None:
    import torch

    x = np.array([2.0, np.nan, 1.0, 2.0, np.nan, 1.0])
    for descending in (False, True):
        ours = F.sort(mp.tensor(x), descending=descending)
        theirs = torch.sort(torch.tensor(x), descending=descending, stable=True)
        assert ours.indices.tolist() == theirs.indices.tolist()
    assert F.max(mp.tensor(x), 0).indices.item() == torch.max(torch.tensor(x), 0).indices.item()
    assert F.topk(mp.tensor([1.0, 2.0, 2.0]), 2).indices.tolist() == [1, 2]


def test_indices_need_no_gradient() -> None:
    x = mp.tensor([3.0, 1.0], requires_grad=True)
    values, indices = x.sort()
    assert values.requires_grad and not indices.requires_grad and indices.dtype == np.int64
    assert not x.argsort().requires_grad and not x.argmax().requires_grad


def test_topk_of_more_than_there_are() -> None:
    with pytest.raises(ValueError, match=r"k must be in \[0, 2\]"):
        mp.tensor([1.0, 2.0]).topk(3)


def test_only_the_euclidean_norm() -> None:
    with pytest.raises(ValueError, match="only p=2"):
        mp.tensor([1.0]).norm(1)
