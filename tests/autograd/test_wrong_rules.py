"""The tester tested: gradcheck rejects every wrong rule of the table, and passes every right one."""

from __future__ import annotations

import numpy as np
import pytest

import minitorch_peft as mp

from .wrong_rules import WRONG_RULES, WrongRule

EACH = pytest.mark.parametrize("rule", WRONG_RULES, ids=lambda rule: rule.name)


def problem(rule: WrongRule, function: type[mp.Function], seed: int):
    """fn and the tensors that it is checked at."""
    arrays, constants = rule.make(np.random.default_rng(seed))
    return lambda *xs: function.apply(*xs, **constants), [mp.tensor(a, requires_grad=True) for a in arrays]


@EACH
@pytest.mark.parametrize("seed", range(3))
def test_the_wrong_rule_is_rejected(rule, seed):
    with pytest.raises(mp.GradcheckError) as caught:
        mp.gradcheck(*problem(rule, rule.wrong, seed), seed=seed)
    assert caught.value.operation == rule.name
    if rule.cause is not None:
        assert caught.value.cause == rule.cause, str(caught.value)


@EACH
def test_the_right_rule_passes(rule):
    for seed in range(3):
        assert mp.gradcheck(*problem(rule, rule.right, seed), seed=seed)


def test_the_table_is_large_enough():
    assert len(WRONG_RULES) >= 40
    assert len({rule.name for rule in WRONG_RULES}) == len(WRONG_RULES)
