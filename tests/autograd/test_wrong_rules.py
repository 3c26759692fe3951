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


# -- why the cotangent has to be random ------------------------------------------------------------------------------
def ones_cotangent_sees(rule: WrongRule, seed: int) -> bool:
    """Does ``out.sum().backward()`` give anything but the right gradient? Even compared element by element with the
    exact one, as no finite difference could: whatever this misses, every check of that kind misses."""
    gradients = []
    for function in (rule.wrong, rule.right):
        fn, inputs = problem(rule, function, seed)
        out = fn(*inputs)
        try:
            out.backward(gradient=np.ones(out.shape))
        except RuntimeError:  # the engine refused a shape or a count, dtype aside
            return True
        gradients.append([np.zeros(x.shape) if x.grad is None else x.grad for x in inputs])
    return not all(np.allclose(a, b, rtol=1e-6, atol=1e-9) for a, b in zip(*gradients, strict=True))


@EACH
def test_a_cotangent_of_ones_misses_exactly_the_blind_rules(rule):
    """A sum over the output weighs every element alike. So it cannot see elements that swap places (the halves of a
    concatenation, a permutation, a shift, a transpose), nor a rule that ignores the incoming gradient or squares it;
    and where the outputs' sum is constant (softmax, a layer norm before its weights), the right gradient is zero, and
    zeros pass. Rules that write where they must not are harmless in a graph of one operation.
    """
    if rule.cause == "dtype":
        return  # the engine refuses it, whatever the cotangent
    if rule.cause == "random-backward":
        assert any(ones_cotangent_sees(rule, seed) for seed in range(3))
        return
    assert any(ones_cotangent_sees(rule, seed) for seed in range(3)) is not rule.blind


def test_many_of_the_wrong_rules_are_blind_spots_of_the_sum():
    assert sum(rule.blind for rule in WRONG_RULES) >= 15
