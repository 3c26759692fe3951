"""The order of the examples: a new shuffle for each epoch, seed and kind of data, and a function of the step alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitorch_peft.data.order import epoch_slices


def order(total, steps, batch_size=1, seed=0, site="here"):
    """What ``steps`` steps see: (epoch, index) in order."""
    return [
        (epoch, int(i))
        for step in steps
        for epoch, indices in epoch_slices(total, step, batch_size, seed, site)
        for i in indices
    ]


@given(st.integers(1, 30), st.integers(1, 70), st.integers(0, 2**40))
def test_every_epoch_visits_each_example_once_whatever_the_batch_size(total, batch_size, seed):
    steps = range(-(-3 * total // batch_size))
    seen = order(total, steps, batch_size, seed)
    assert len(seen) == len(steps) * batch_size
    for epoch in range(3):
        assert [e for e, _ in seen[epoch * total : (epoch + 1) * total]] == [epoch] * total
        assert sorted(i for _, i in seen[epoch * total : (epoch + 1) * total]) == list(range(total))
    assert seen[: 3 * total] == order(total, range(3 * total), 1, seed), "the batch size cuts one and the same order"


def test_epochs_seeds_and_kinds_of_data_are_shuffled_each_in_its_own_way():
    first, second = (np.array([i for _, i in order(100, range(e * 100, e * 100 + 100))]) for e in (0, 1))
    other_seed = np.array([i for _, i in order(100, range(100), seed=1)])
    other_site = np.array([i for _, i in order(100, range(100), site="there")])
    different = [first, second, other_seed, other_site, np.arange(100)]
    for i, a in enumerate(different):
        for b in different[:i]:
            assert (a == b).mean() < 0.1


def test_a_shuffle_that_is_shared_cannot_be_changed():
    ((_, indices),) = epoch_slices(10, 0, 4, 0, "here")
    with pytest.raises(ValueError, match="read-only"):
        indices[0] = 3
