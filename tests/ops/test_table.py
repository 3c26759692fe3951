"""Every operation: values, gradients, dtypes and layouts, by properties over drawn arguments."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

import minitorch_peft.functional as F
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.ops.table import BY_NAME, OPERATIONS, Operation
from minitorch_peft.testing import ARGUMENTS, Case

from .drawing import DIFFERENTIABLE, as_list, assert_close, cotangent, drawn, each

ALIASES = {"concat", "concatenate"}
NOT_OPERATIONS = {"broadcast_shapes", "to", "view"}  # tested in test_shape.py and test_promotion.py


def test_the_table_has_every_operation_and_a_strategy_for_each() -> None:
    assert set(F.__all__) - ALIASES - NOT_OPERATIONS == set(BY_NAME)
    assert len(BY_NAME) == len(OPERATIONS)
    assert {row.arguments for row in OPERATIONS} == set(ARGUMENTS)


@each(DIFFERENTIABLE)
def test_gradients_pass_the_check(row: Operation) -> None:
    drawn(row, Case.check_gradients, examples=20)


@each(OPERATIONS)
def test_values_are_those_of_the_reference(row: Operation) -> None:
    def check(case: Case) -> None:
        result = as_list(case.call(row.function, case.tensors() if row.differentiable else case.inputs))
        assert all(isinstance(t, Tensor) for t in result)
        assert_close([t.data for t in result], as_list(case.call(row.reference, case.inputs)), 1e-12, case)

    drawn(row, check, examples=10)


@each(DIFFERENTIABLE)
def test_float32_is_float64_within_rounding(row: Operation) -> None:
    """float32 may run a kernel, float64 runs the reference: values and gradients must agree."""

    def check(case: Case) -> None:
        case = exact_in_float32(case)
        small, large = case.tensors(np.float32), case.tensors(np.float64)
        y, wanted = case.output(*small), case.output(*large)
        assert y.dtype == np.float32
        assert_close(y.data, wanted.data, 2e-5, case)
        g = cotangent(y.shape)
        y.backward(gradient=g)
        wanted.backward(gradient=g)
        assert_close([t.grad for t in small], [t.grad for t in large], 5e-5, case)

    drawn(row, check, examples=12)


@each(DIFFERENTIABLE)
def test_a_frozen_input_changes_no_other_gradient(row: Operation) -> None:
    def check(case: Case) -> None:
        together = gradients(case, case.tensors())
        for i, wanted in enumerate(together):
            alone = case.tensors()
            for j, t in enumerate(alone):
                t.requires_grad_(i == j)
            got = gradients(case, alone)
            assert [g is None for g in got] == [i != j for j in range(len(got))]
            assert_close(got[i], wanted, 1e-15, case)

    drawn(row, check, examples=6)


def gradients(case: Case, tensors: list[Tensor]) -> list[Any]:
    y = case.output(*tensors)
    y.backward(gradient=cotangent(y.shape))
    return [t.grad for t in tensors]


def exact_in_float32(case: Case) -> Case:
    """The case with inputs that float32 holds exactly."""
    rounded = [x.astype(np.float32).astype(np.float64) for x in case.inputs]
    return replace(case, args=case.call(lambda *args, **kwargs: args, rounded))
