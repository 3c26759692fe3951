"""The profile by operation."""

from __future__ import annotations

import time

import numpy as np
import pytest

from minitorch_peft.autograd import profiler
from minitorch_peft.autograd.profiler import profile

from .functions import Power, Twice, leaf


def test_calls_and_seconds_by_operation_and_phase():
    class Slow(Twice):
        @staticmethod
        def forward(ctx, x):
            time.sleep(0.02)
            return 2 * x

    x = leaf(np.ones(3))
    with profile() as p:
        Slow.apply(Twice.apply(Twice.apply(x))).backward(gradient=np.ones(3))
    assert p.calls == {
        ("Slow", "forward"): 1, ("Slow", "backward"): 1, ("Twice", "forward"): 2, ("Twice", "backward"): 2,
    }  # fmt: skip
    assert p.seconds["Slow", "forward"] >= 0.02
    rows = p.rows()
    assert rows[0][:3] == ("Slow", "forward", 1)
    assert [row[3] for row in rows] == sorted((row[3] for row in rows), reverse=True)


def test_nothing_is_recorded_outside():
    with profile() as p:
        pass
    Twice.apply(leaf([1.0])).backward()
    assert p.rows() == []


def test_profiles_do_not_nest():
    with profile(), pytest.raises(RuntimeError, match="do not nest"), profile():
        pass


def test_an_error_inside_ends_the_profile_and_is_counted():
    class Broken(Power):
        @staticmethod
        def backward(ctx, g):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), profile() as p:
        Broken.apply(leaf([1.0])).backward()
    assert p.calls["Broken", "backward"] == 1
    assert profiler._active is None
    with profile():
        pass
