"""The meter: operations and arrays, while they live."""

from __future__ import annotations

import numpy as np
import pytest

import minitorch_peft.functional as F
from minitorch_peft.autograd import profiler
from minitorch_peft.autograd.profiler import metered
from minitorch_peft.autograd.tensor import Tensor

from .functions import leaf


def living(meter, upto=None):
    """Shapes of the pieces that are alive after so many events."""
    now = set()
    for piece, born in meter.events[:upto]:
        (now.add if born else now.remove)(piece)
    return sorted(meter.pieces[i].shape for i in now)


def test_what_is_kept_until_its_gradient_has_passed():
    x, w = leaf(np.ones((4, 3))), leaf(np.ones((2, 3)))
    with metered([x.data, w.data]) as m:
        y = F.linear(F.tanh(x), w)
        loss = F.tanh(y).sum()
        del y
        assert [c.name for c in m.calls] == ["Tanh", "Linear", "Tanh", "Sum"]
        assert living(m) == [(), (4, 2), (4, 3)]  # the loss, and what the two Tanh saved; Linear's output is gone
        loss.backward()
        del loss
    assert m.turn is not None and living(m, m.turn) == [(), (4, 2), (4, 3)]
    assert living(m) == [(2, 3), (4, 3)]  # the gradients of w and x
    assert all(c.backward for c in m.calls)
    tanh = m.pieces[0]
    assert (tanh.shape, tanh.itemsize, tanh.phase) == ((4, 3), x.data.itemsize, "forward")
    assert [m.calls[k].name for k in tanh.keepers] == ["Tanh", "Linear"]


def test_views_count_as_the_memory_that_they_view():
    x = leaf(np.ones((4, 6)))
    with metered([x.data]) as m:
        y = F.tanh(x).reshape(2, 12)[0]
        assert living(m) == [(4, 6)]
        F.sum(y * y).backward()
    assert sum(born for _, born in m.events) == len(m.pieces)


def test_what_is_known_is_not_counted():
    w = leaf(np.ones((3, 3)))
    with metered([w.data]) as m:
        F.linear(leaf(np.ones((1, 3))), w).sum()
    assert (3, 3) not in [p.shape for p in m.pieces]


def test_an_output_made_again_is_noted():
    x, w = leaf(np.ones((4, 3))), leaf(np.ones((2, 3)))
    with metered([x.data, w.data]) as m:
        F.linear(F.silu(x), w).sum().backward()
    assert m.calls[0].again == 1 and "again" in {p.phase for p in m.pieces}


def test_shapes_of_inputs_constants_and_of_what_is_saved():
    x = leaf(np.ones((2, 3)))
    with metered() as m:
        F.linear(x, Tensor(np.ones((5, 3))))
        F.apply_rotary(Tensor(np.ones((1, 1, 2, 4))), np.ones((2, 2)), np.ones((2, 2)))
    linear, rotary = m.calls
    assert (linear.inputs, linear.output, linear.needs) == (((2, 3), (5, 3), None), (2, 5), (True, False, False))
    assert linear.saved == (None, (5, 3))
    assert rotary.constants["cos"] == (2, 2)


def test_meters_do_not_nest_and_nothing_is_noted_outside():
    with metered() as m, pytest.raises(RuntimeError, match="do not nest"), metered():
        pass
    F.tanh(leaf([1.0]))
    assert m.calls == [] and profiler.meter is None
