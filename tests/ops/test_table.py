"""Every operation: values, gradients, dtypes and layouts, by properties over drawn arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

import minitorch_peft as mp
from minitorch_peft import functional as F
from minitorch_peft.ops.table import OPERATIONS, Operation
from minitorch_peft.testing import ARGUMENTS, Case, cases

DIFFERENTIABLE = [row for row in OPERATIONS if row.differentiable]
QUICK = settings(deadline=None, database=None, derandomize=True, max_examples=20,
                 suppress_health_check=[HealthCheck.too_slow, HealthCheck.differing_executors])  # fmt: skip


def by_name(rows: Any) -> Any:
    return pytest.mark.parametrize("row", rows, ids=lambda row: row.name)


def drawn(row: Operation, check: Any) -> None:
    """Run ``check`` on drawn cases of one operation."""
    QUICK(given(cases(row))(check))()


def as_list(result: Any) -> list[Any]:
    return list(result) if isinstance(result, tuple | list) else [result]


def assert_close(got: Any, wanted: Any, tolerance: float, case: Case) -> None:
    for x, y in zip(as_list(got), as_list(wanted), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert x.shape == y.shape, f"{case}: shape {x.shape}, expected {y.shape}"
        scale = 1 + np.max(np.abs(y[np.isfinite(y)]), initial=0) if y.dtype.kind == "f" else 0
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * scale, err_msg=repr(case))


@by_name(DIFFERENTIABLE)
def test_gradients_pass_the_check(row: Operation) -> None:
    drawn(row, lambda case: case.check_gradients())


@by_name(OPERATIONS)
def test_values_are_those_of_the_reference(row: Operation) -> None:
    def check(case: Case) -> None:
        result = as_list(case.call(row.function, case.tensors() if row.differentiable else case.inputs))
        assert all(isinstance(t, mp.Tensor) for t in result)
        assert_close([t.data for t in result], as_list(case.call(row.reference, case.inputs)), 1e-12, case)

    drawn(row, check)
