"""Shared by the tests of the operation table: running a property over drawn cases, comparing results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from minitorch_peft.ops.table import OPERATIONS, Operation
from minitorch_peft.testing import Case, cases

DIFFERENTIABLE = [row for row in OPERATIONS if row.differentiable]
QUICK = settings(
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],  # the first float32 call may compile a kernel
)


def each(rows: list[Operation] | tuple[Operation, ...]) -> Any:
    return pytest.mark.parametrize("row", rows, ids=lambda row: row.name)


def drawn(row: Operation, check: Callable[[Case], None], examples: int) -> None:
    """Run ``check`` on drawn cases of one operation."""

    def check_case(case: Case) -> None:
        check(case)

    settings(QUICK, max_examples=examples)(given(case=cases(row))(check_case))()


def as_list(result: Any) -> list[Any]:
    return list(result) if isinstance(result, tuple | list) else [result]


def assert_close(got: Any, wanted: Any, tolerance: float, case: Case) -> None:
    """Equal shapes, and elements to ``tolerance`` of the largest (and of 1); nan and inf in the same places."""
    for x, y in zip(as_list(got), as_list(wanted), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert x.shape == y.shape, f"{case}: shape {x.shape}, expected {y.shape}"
        scale = 1 + np.max(np.abs(y[np.isfinite(y)]), initial=0) if y.dtype.kind == "f" else 0
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * scale, err_msg=repr(case))


def cotangent(shape: tuple[int, ...]) -> np.ndarray:
    """A fixed random array, exact in float32."""
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32).astype(np.float64)
