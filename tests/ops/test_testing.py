"""The strategies that students use: what they draw, and that a failure prints as something to paste."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

import minitorch_peft as mp
import minitorch_peft.functional as F
from minitorch_peft import testing
from minitorch_peft.ops.table import OPERATIONS, At
from minitorch_peft.testing import LAYOUTS, MARGIN, Case, cases, indices, lay_out, numbers, shapes

from .drawing import QUICK, drawn, each

SEARCH = settings(QUICK, max_examples=2000, phases=[Phase.generate])


@pytest.mark.parametrize(
    "wanted",
    [
        lambda c: c.inputs[0].ndim == 0,
        lambda c: c.inputs[0].size == 0,
        lambda c: c.inputs[0].size == 1 and c.inputs[0].ndim > 1,
        lambda c: c.layouts[0] == "reversed" and min(lay_out(c.inputs[0], "reversed").strides, default=0) < 0,
        lambda c: not c.tensors()[0].data.flags.forc,
        lambda c: c.inputs[0].shape != c.inputs[1].shape and c.inputs[0].size > 1,
    ],
    ids=["0-d", "empty", "one element", "negative strides", "not contiguous", "broadcast"],
)
def test_cases_cover_the_corners(wanted) -> None:
    find(cases("add"), wanted, settings=SEARCH)


@pytest.mark.parametrize(
    "wanted",
    [
        lambda i: isinstance(i, np.ndarray) and i.dtype == bool,
        lambda i: isinstance(i, tuple) and any(x is None for x in i),
        lambda i: isinstance(i, tuple) and any(x is Ellipsis for x in i),
        lambda i: any(isinstance(x, slice) and (x.step or 1) < 0 for x in (i if isinstance(i, tuple) else (i,))),
        lambda i: any(
            isinstance(x, np.ndarray) and x.dtype != bool and x.size > len(np.unique(x))
            for x in (i if isinstance(i, tuple) else (i,))
        ),
        lambda i: isinstance(i, tuple) and {int, np.ndarray} <= {type(x) for x in i},
    ],
    ids=["mask", "None", "...", "negative step", "repeated", "number and array"],
)
def test_indices_cover_the_corners(wanted) -> None:
    find(indices((3, 3, 2)), wanted, settings=SEARCH)


@settings(QUICK, max_examples=100)
@given(shapes().flatmap(lambda s: st.tuples(st.just(s), indices(s))))
def test_indices_are_valid(drawn_pair) -> None:
    shape, index = drawn_pair
    x = mp.tensor(np.zeros(shape))
    assert x[index].dtype == x.dtype


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(QUICK, max_examples=20)
@given(x=testing.arrays(shapes()))
def test_a_layout_changes_no_value(layout: str, x: np.ndarray) -> None:
    assert np.array_equal(lay_out(x, layout), x) and lay_out(x, layout).shape == x.shape


@settings(QUICK, max_examples=200)
@given(numbers((-1.0, 1.0), kinks=(0.0, 0.5)))
def test_numbers_stay_off_kinks(v: float) -> None:
    assert -1 <= v <= 1 and abs(v) > MARGIN and abs(v - 0.5) > MARGIN


@each([row for row in OPERATIONS if row.kinks is not None])
def test_cases_stay_off_the_kinks_of_the_table(row) -> None:
    def check(case: Case) -> None:
        assert np.all(np.abs(row.kinks(*case.args, **case.kwargs)) > MARGIN)
        if isinstance(row.kinks, At):
            low, high = row.interval(0)
            assert np.all((low <= case.inputs[0]) & (case.inputs[0] <= high))

    drawn(row, check, examples=10)


@each(OPERATIONS)
def test_a_case_prints_as_a_call_that_gives_the_same(row) -> None:
    names = {"F": F, "mp": mp, "np": np, "lay_out": lay_out}

    def check(case: Case) -> None:
        pasted = eval(repr(case), names)
        wanted = case.call(row.function, case.tensors())
        pairs = zip(pasted, wanted, strict=True) if isinstance(wanted, tuple) else [(pasted, wanted)]
        for a, b in pairs:
            assert a.shape == b.shape and np.array_equal(a.data, b.data, equal_nan=b.dtype.kind == "f")

    drawn(row, check, examples=5)


def test_a_wrong_rule_is_caught_and_the_example_is_small(monkeypatch) -> None:
    from minitorch_peft.ops.activation import Softmax

    monkeypatch.setattr(Softmax, "backward", staticmethod(lambda ctx, g: g * ctx.saved[0].swapaxes(ctx.dim, -1)))
    with pytest.raises(mp.GradcheckError) as caught:
        drawn(testing.BY_NAME["softmax"], Case.check_gradients, examples=50)
    assert caught.value.operation == "Softmax" and caught.value.arrays[0].size <= 2
    assert any(note.strip().startswith("case=F.softmax(mp.Tensor(np.array(") for n in caught.value.__notes__
               for note in n.splitlines())  # fmt: skip
