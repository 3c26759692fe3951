"""Views share memory, sizes are inferred, and errors name what does not fit."""

from __future__ import annotations

import numpy as np
import pytest

import minitorch_peft as mp
import minitorch_peft.functional as F

X = mp.tensor(np.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.reshape(3, 2), lambda x: x.view(-1), lambda x: x.T, lambda x: x.permute(1, 0),
        lambda x: x.unsqueeze(0), lambda x: x.flatten(), lambda x: x.expand(4, 2, 3), lambda x: x[1:, ::2],
        lambda x: x.flip(0), lambda x: x.split(1)[0], lambda x: x.chunk(2, dim=1)[1], lambda x: x.unbind()[1],
    ],
)  # fmt: skip
def test_views_share_memory_and_version(view) -> None:
    x = mp.tensor(np.arange(6.0).reshape(2, 3))
    y = view(x)
    assert np.shares_memory(x.data, y.data)
    x.add_(1.0)
    assert y.version.count == 1


def test_what_changes_nothing_is_the_tensor_itself() -> None:
    x = mp.tensor([[1.0]])
    assert x.reshape(1, 1) is x and x.expand(1, 1) is x and x.contiguous() is x and x.transpose(0, 0) is x


def test_view_refuses_to_copy() -> None:
    assert X.view(6).shape == (6,)
    with pytest.raises(ValueError, match="use reshape"):
        X.T.view(6)


def test_minus_one_keeps_or_infers_a_size() -> None:
    assert X.expand(-1, 3) is X and X.expand(4, -1, -1).shape == (4, 2, 3)
    assert X.reshape(-1).shape == (6,) and X.unflatten(1, (3, -1)).shape == (2, 3, 1)
    assert mp.tensor(np.zeros((0, 3))).reshape(-1, 3).shape == (0, 3)


def test_a_0d_tensor_has_axes_0_and_minus_1() -> None:
    x = mp.tensor(2.0, requires_grad=True)
    assert x.sum(0).item() == x.amax(-1).item() == x.softmax(0).item() * 2 == 2.0
    assert x.cumsum(0).item() == x.sort()[0].item() == x.topk(1)[0].item() == x.max(0).values.item() == 2.0
    assert x.flatten().shape == (1,) and x.unsqueeze(0).shape == (1,) and x.squeeze(0).shape == ()
    assert x.log_softmax(-1).item() == 0 and x.repeat_interleave(2).tolist() == [2.0, 2.0]
    with pytest.raises(IndexError, match="expected -1 to 0"):
        x.sum(1)


def test_squeeze_of_no_axes_and_of_several() -> None:
    x = mp.tensor(np.zeros((1, 2, 1)))
    assert x.squeeze(()).shape == (1, 2, 1) and x.squeeze((0, 1)).shape == (2, 1) and x.squeeze().shape == (2,)


def test_movedim_of_several_axes() -> None:
    x = np.zeros((2, 3, 4, 5))
    for source, destination in (((0, 1), (2, 0)), ((-1, 0), (0, -1)), ((), ())):
        wanted = np.moveaxis(x, source, destination).shape
        assert F.movedim(mp.tensor(x), source, destination).shape == wanted


def test_negative_margins_cut_off() -> None:
    x = mp.tensor(np.arange(5.0), requires_grad=True)
    y = F.pad(x, (-1, 2), value=9.0)
    assert y.tolist() == [1.0, 2.0, 3.0, 4.0, 9.0, 9.0]
    y.sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 1.0]


def test_split_into_sections_and_chunks() -> None:
    x = mp.tensor(np.arange(7.0))
    assert [len(t) for t in x.split([2, 0, 5])] == [2, 0, 5]
    assert [len(t) for t in x.chunk(3)] == [3, 3, 1] and [len(t) for t in x.chunk(5)] == [2, 2, 2, 1]
    empty = mp.tensor(np.zeros((0, 2)))
    assert [t.shape for t in empty.chunk(3)] == [(0, 2)] * 3 and [t.shape for t in empty.split(2)] == [(0, 2)]


def test_roll_without_dims_and_tile_with_fewer() -> None:
    assert X.roll(1).tolist() == np.roll(X.data, 1).tolist()
    assert X.repeat(2).shape == (2, 6) and X.repeat(2, 1, 1).shape == (2, 2, 3) and X.tile((0, 1)).shape == (0, 3)


def test_broadcast_gradients_are_sums() -> None:
    row, column = mp.tensor([1.0, 2.0, 3.0], requires_grad=True), mp.tensor([[1.0], [2.0]], requires_grad=True)
    (row * column).sum().backward()
    assert row.grad.tolist() == [3.0, 3.0, 3.0] and column.grad.tolist() == [[6.0], [6.0]]


ERRORS = [
    (lambda: X + mp.tensor([1.0, 2.0]), ValueError, r"\(2, 3\) and \(2,\) do not broadcast"),
    (lambda: X.expand(2, 4), ValueError, "only axes of size 1 can grow"),
    (lambda: X.expand(3), ValueError, "only axes of size 1 can grow"),
    (lambda: X.expand(-1, 2, 3), ValueError, "only axes of size 1 can grow"),
    (lambda: X.reshape(4, -1), ValueError, "6 elements of shape .* do not divide"),
    (lambda: X.reshape(-1, -1), ValueError, "-1 once"),
    (lambda: X.reshape(5), ValueError, "has 6 elements"),
    (lambda: X.permute(0, 0), ValueError, "each of the 2 axes"),
    (lambda: X.transpose(0, 2), IndexError, "transpose: dim 2 is out of range for 2 axes"),
    (lambda: X.sum((0, -2)), ValueError, "names the same axis twice"),
    (lambda: X.flatten(1, 0), ValueError, "comes after"),
    (lambda: X.unsqueeze(0).T, ValueError, "at most 2 axes"),
    (lambda: F.movedim(X, (0, 1), 0), ValueError, "2 source axes for 1"),
    (lambda: F.cat([]), ValueError, "at least one tensor"),
    (lambda: F.cat([mp.tensor(1.0)]), ValueError, "use stack"),
    (lambda: F.cat([X, X.T]), ValueError, "differ outside axis 0"),
    (lambda: F.stack([X, X.T]), ValueError, "all shapes must be equal"),
    (lambda: F.stack([]), ValueError, "at least one tensor"),
    (lambda: X.split([1, 3], 1), ValueError, "add up to 3"),
    (lambda: X.split(0), ValueError, "must be positive"),
    (lambda: X.chunk(0), ValueError, "at least 1"),
    (lambda: mp.tensor(1.0).split(1), ValueError, "0-d"),
    (lambda: mp.tensor(1.0).chunk(1), ValueError, "0-d"),
    (lambda: mp.tensor(1.0).unbind(), ValueError, "0-d"),
    (lambda: F.pad(X, (1,)), ValueError, r"\(before, after\)"),
    (lambda: F.pad(X, (1, 1), mode="reflect"), ValueError, "only mode='constant'"),
    (lambda: F.pad(X, (-2, -2)), ValueError, "cut off more"),
    (lambda: X.roll((1, 2)), ValueError, "as many dims"),
    (lambda: X.roll((1, 2), 0), ValueError, "2 shifts for 1 dims"),
    (lambda: X.tile(-1), ValueError, "negative"),
    (lambda: X.repeat_interleave(-1), ValueError, "at least 0"),
    (lambda: F.tril(mp.tensor([1.0])), ValueError, "at least 2 axes"),
]


@pytest.mark.parametrize(("call", "error", "message"), ERRORS)
def test_errors_say_what_does_not_fit(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()
