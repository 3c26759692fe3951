"""backward: order, accumulation, what is kept and what is freed, and the contract it holds rules to."""

from __future__ import annotations

import gc
import tracemalloc
import weakref

import numpy as np
import pytest

import minitorch_peft as mp
from minitorch_peft.autograd.function import ContractError

from .functions import Plus, Power, Times, Turn, Twice, leaf, returning


@pytest.fixture
def debug():
    mp.set_debug(True)
    yield
    mp.set_debug(False)


# -- order and accumulation ------------------------------------------------------------------------------------
def test_a_graph_of_5000_operations_needs_no_recursion():
    x = leaf([1.0, 2.0])
    y = x
    for _ in range(5000):
        y = Plus.apply(y, x)
    y.backward(gradient=np.array([1.0, 10.0]))
    np.testing.assert_array_equal(x.grad, [5001, 50010])


def test_a_deep_graph_that_is_never_used_is_freed_without_recursion():
    y = leaf([0.0])
    for _ in range(20_000):
        y = Twice.apply(y)
    del y


def test_a_shared_subexpression_is_differentiated_once_with_the_sum_of_its_gradients():
    calls = []

    class Counted(Twice):
        @staticmethod
        def backward(ctx, g):
            calls.append(g)
            return 2 * g

    x = leaf([3.0])
    shared = Counted.apply(x)
    y = Plus.apply(Times.apply(shared, shared), shared)  # 4x² + 2x
    y.backward()
    assert len(calls) == 1
    np.testing.assert_array_equal(x.grad, [8 * 3 + 2])


def test_many_uses_of_one_tensor_add_up_and_leave_each_others_gradients_alone():
    """The third use is added in place to a sum made by the engine, never to an array that a rule returned."""
    seen = []

    class Witness(Plus):
        @staticmethod
        def backward(ctx, g):
            seen.append((g, g.copy()))
            return g, g

    x = leaf([1.0, 1.0])
    h = Twice.apply(x)
    y = h
    for _ in range(4):
        y = Witness.apply(y, h)
    y.backward(gradient=np.array([1.0, 3.0]))
    np.testing.assert_array_equal(x.grad, [10, 30])
    for array, before in seen:
        np.testing.assert_array_equal(array, before)


def test_two_graphs_accumulate_on_the_same_leaf():
    x = leaf([1.0, 2.0])
    Twice.apply(x).backward(gradient=np.ones(2))
    first = x.grad
    Times.apply(x, x).backward(gradient=np.ones(2))
    np.testing.assert_array_equal(x.grad, [2 + 2, 2 + 4])
    np.testing.assert_array_equal(first, [2, 2])  # the earlier array is not written to


def test_only_leaves_get_grad():
    x = leaf([1.0])
    h = Twice.apply(x)
    Twice.apply(h).backward()
    assert h.grad is None
    np.testing.assert_array_equal(x.grad, [4])


def test_a_leaf_is_its_own_graph():
    x, gradient = leaf([1.0, 2.0]), np.array([3.0, 4.0])
    x.backward(gradient=gradient)
    gradient[:] = 0
    np.testing.assert_array_equal(x.grad, [3, 4])


def test_gradients_of_0d_tensors_are_arrays():
    x = leaf(3.0)
    Times.apply(Times.apply(x, x), x).backward()
    assert isinstance(x.grad, np.ndarray)
    assert x.grad.shape == ()
    assert x.grad == 27
    Twice.apply(x).backward()
    assert isinstance(x.grad, np.ndarray)
    assert x.grad == 29


def test_an_incoming_gradient_is_an_array_for_0d_tensors_too():
    kinds = []

    class Look(Twice):
        @staticmethod
        def backward(ctx, g):
            kinds.append(type(g))
            return 2 * g  # NumPy makes this a scalar, not an array

    x = leaf(1.0)
    Look.apply(Look.apply(x)).backward()
    assert kinds == [np.ndarray, np.ndarray]


def test_empty_tensors_go_through():
    x = leaf(np.zeros((0, 3)))
    Times.apply(x, x).backward(gradient=np.zeros((0, 3)))
    assert x.grad.shape == (0, 3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gradients_have_the_dtype_of_their_tensor(dtype):
    x = leaf([1.0, 2.0], dtype)
    Twice.apply(x).backward(gradient=np.ones(2, dtype))
    assert x.grad.dtype == dtype


# -- what backward refuses -------------------------------------------------------------------------------------
def test_a_second_backward_says_so_and_does_not_count_twice():
    x = leaf([1.0])
    y = Power.apply(x)
    y.backward()
    before = x.grad.copy()
    with pytest.raises(RuntimeError, match=r"a second time through Power.*Compute the forward pass again"):
        y.backward()
    np.testing.assert_array_equal(x.grad, before)


def test_a_second_backward_through_a_shared_part_says_so():
    x = leaf([1.0])
    shared = Power.apply(x)
    a, b = Twice.apply(shared), Twice.apply(shared)
    a.backward()
    with pytest.raises(RuntimeError, match="a second time through Power"):
        b.backward()


def test_a_tensor_without_graph_is_refused():
    with pytest.raises(RuntimeError, match="does not require a gradient"):
        mp.tensor([1.0]).backward()


def test_a_gradient_is_needed_for_more_than_one_element():
    with pytest.raises(RuntimeError, match="needs gradient="):
        Twice.apply(leaf([1.0, 2.0])).backward()
    with pytest.raises(ValueError, match=r"shape \(3,\), the tensor has \(2,\)"):
        Twice.apply(leaf([1.0, 2.0])).backward(gradient=np.ones(3))


@pytest.mark.parametrize(
    ("result", "cause", "message"),
    [
        (lambda g: g[:1], "shape", r"Odd.backward: gradient 0 is float64 \(1,\), its input is float64 \(2,\)"),
        (lambda g: g.astype(np.float32), "shape", r"gradient 0 is float32 \(2,\), its input is float64 \(2,\)"),
        (lambda g: g.tolist(), "shape", "gradient 0 is list"),
        (lambda g: (g, g), "count", r"Odd.backward returned 2 gradient\(s\) for 1 input\(s\)"),
    ],
)
def test_a_gradient_of_another_form_is_refused_with_the_operations_name(result, cause, message):
    with pytest.raises(ContractError, match=message) as caught:
        returning(result).apply(leaf([1.0, 2.0])).backward(gradient=np.ones(2))
    assert (caught.value.operation, caught.value.cause) == ("Odd", cause)


def test_only_tensors_and_arrays_are_positional():
    with pytest.raises(TypeError, match="Twice takes tensors or arrays as positional inputs, not float"):
        Twice.apply(2.0)


# -- gradients own their memory ------------------------------------------------------------------------------------
def overlap(*arrays) -> bool:
    return any(np.may_share_memory(a, b) for i, a in enumerate(arrays) for b in arrays[:i])


def test_gradients_of_leaves_never_alias():
    a, b = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    gradient = np.ones(2)
    Plus.apply(a, b).backward(gradient=gradient)
    assert not overlap(a.grad, b.grad, gradient)


def test_a_gradient_that_is_a_view_or_a_saved_array_is_copied():
    x = leaf(np.ones((2, 3)))
    Turn.apply(x).backward(gradient=np.ones((3, 2)))
    assert x.grad.base is None

    class Saved(Twice):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.copy()

        @staticmethod
        def backward(ctx, g):
            return ctx.saved[0]

    x = leaf([1.0, 2.0])
    Saved.apply(x).backward(gradient=np.ones(2))
    assert not overlap(x.grad, x.data)


def test_one_new_array_for_two_inputs_is_copied_for_one_of_them():
    class Shared(Plus):
        @staticmethod
        def backward(ctx, g):
            both = g + 0.0
            return both, both

    a, b = leaf([1.0]), leaf([2.0])
    Shared.apply(a, b).backward()
    assert not overlap(a.grad, b.grad)


def test_a_gradient_that_goes_through_a_deeper_operation_does_not_alias_either():
    a, b, c = leaf([1.0]), leaf([2.0]), leaf([3.0])
    Plus.apply(Plus.apply(a, b), a).backward()
    assert not overlap(a.grad, b.grad)
    np.testing.assert_array_equal(a.grad, [2])
    a.grad = b.grad = None
    Plus.apply(a, Plus.apply(b, c)).backward()
    assert not overlap(a.grad, b.grad, c.grad)


# -- no_grad and frozen inputs -----------------------------------------------------------------------------------
def test_no_grad_builds_no_graph():
    x = leaf([1.0])
    with mp.no_grad():
        assert not mp.is_grad_enabled()
        y = Power.apply(x)
    assert mp.is_grad_enabled()
    assert not y.requires_grad
    assert y.grad_fn is None


def test_no_grad_ends_with_an_error_too():
    with pytest.raises(ZeroDivisionError), mp.no_grad():
        _ = 1 / 0
    assert mp.is_grad_enabled()


def test_a_frozen_input_gets_no_gradient_and_nothing_is_kept_for_it():
    x, frozen = leaf([1.0, 2.0]), mp.tensor(np.array([3.0, 4.0]))
    y = Times.apply(x, frozen)
    assert y.grad_fn.needs_input_grad == (True, False)
    assert y.grad_fn.inputs == (x, None)
    assert y.grad_fn.saved[0] is None
    y.backward(gradient=np.ones(2))
    assert frozen.grad is None
    np.testing.assert_array_equal(x.grad, [3, 4])


def test_the_graph_does_not_hold_what_needs_no_gradient():
    frozen = Twice.apply(mp.tensor(np.ones(3)))
    array = weakref.ref(frozen.data)
    y = Plus.apply(leaf(np.ones(3)), frozen)
    del frozen
    assert array() is None
    assert y.requires_grad


def test_nothing_is_saved_where_nothing_needs_a_gradient():
    contexts = []

    class Look(Power):
        @staticmethod
        def forward(ctx, x):
            contexts.append(ctx)
            return Power.forward(ctx, x)

    y = Look.apply(mp.tensor(np.ones(3)))
    assert y.grad_fn is None
    assert not y.requires_grad
    assert contexts[0].saved == ()


def test_a_gradient_for_an_input_that_needs_none_is_dropped():
    class Eager(Plus):
        @staticmethod
        def backward(ctx, g):
            return g, "never looked at"

    x = leaf([1.0])
    Eager.apply(x, mp.tensor([1.0])).backward()
    np.testing.assert_array_equal(x.grad, [1])


def test_an_optional_input_may_be_none():
    class Optional(Plus):
        @staticmethod
        def forward(ctx, a, b):
            return a.copy() if b is None else a + b

        @staticmethod
        def backward(ctx, g):
            return g, None

    x = leaf([1.0])
    Optional.apply(x, None).backward()
    np.testing.assert_array_equal(x.grad, [1])


# -- memory -------------------------------------------------------------------------------------------------------
def test_activations_are_freed_while_backward_runs():
    alive: list[int] = []
    saved: list[weakref.ref] = []

    class Keep(Power):
        @staticmethod
        def backward(ctx, g):
            gc.collect()
            alive.append(sum(ref() is not None for ref in saved))
            return g * ctx.saved[0]

    y = leaf(np.full(10, -9.0))
    for _ in range(5):
        y = Keep.apply(y)
        saved.append(weakref.ref(y.grad_fn.saved[0]))
    y.backward(gradient=np.ones(10))  # y itself holds the last one
    assert alive == [5, 5, 4, 3, 2]
    del y
    assert sum(ref() is not None for ref in saved) == 0


def test_backward_needs_memory_for_a_few_gradients_not_for_all():
    size = 100_000
    y = x = leaf(np.zeros(size))
    for _ in range(30):
        y = Twice.apply(y)
    tracemalloc.start()
    y.backward(gradient=np.ones(size))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * size * 8
    assert x.grad[0] == 2.0**30


def test_no_reference_cycle_keeps_a_graph_alive():
    gc.disable()
    try:
        x = leaf(np.ones(3))
        y = Power.apply(x)
        array = weakref.ref(y.grad_fn.saved[0])
        del y
        assert array() is None
    finally:
        gc.enable()


# -- changes of what was saved --------------------------------------------------------------------------------------
def test_a_saved_input_that_was_changed_is_noticed_and_the_operation_named():
    x, frozen = leaf([1.0]), mp.tensor(np.array([3.0]))
    y = Times.apply(x, frozen)
    frozen.add_(1.0)
    with pytest.raises(RuntimeError, match=r"Times saved a tensor .* changed in place afterwards \(1 write"):
        y.backward()


def test_a_saved_output_that_was_changed_is_noticed():
    y = Power.apply(leaf([1.0]))
    z = Twice.apply(y)
    with mp.no_grad():
        y.mul_(2.0)
    with pytest.raises(RuntimeError, match="Power saved a tensor"):
        z.backward()


@pytest.mark.parametrize("view", [lambda t: t.detach(), Turn.apply], ids=["detach", "a view's Function"])
def test_a_write_to_a_view_is_a_write_to_its_base(view):
    x, frozen = leaf(np.ones((2, 3))), mp.tensor(np.ones((2, 3)))
    other = view(frozen)
    y = Times.apply(x, frozen)
    other.fill_(5.0)
    with pytest.raises(RuntimeError, match="Times saved a tensor"):
        y.backward(gradient=np.ones((2, 3)))


def test_a_write_to_the_base_is_a_write_to_a_saved_view():
    x, frozen = leaf(np.ones((3, 2))), mp.tensor(np.ones((2, 3)))
    y = Times.apply(x, Turn.apply(frozen))
    frozen.zero_()
    with pytest.raises(RuntimeError, match="Times saved a tensor"):
        y.backward(gradient=np.ones((3, 2)))


def test_changes_before_saving_or_of_what_is_not_saved_are_fine():
    x, frozen = leaf([1.0]), mp.tensor(np.array([3.0]))
    frozen.add_(1.0)
    y = Plus.apply(Times.apply(x, frozen), x)
    with mp.no_grad():
        x.add_(1.0)  # neither operation needs x for its gradient
    y.backward()
    np.testing.assert_array_equal(x.grad, [5])


def test_a_tensor_in_the_graph_is_changed_under_no_grad_only():
    x = leaf([1.0])
    for change in (x.zero_, lambda: x.add_(1.0), lambda: x.copy_([2.0])):
        with pytest.raises(RuntimeError, match="only under no_grad"):
            change()
    with mp.no_grad():
        x.copy_([2.0])
    assert x.item() == 2


# -- debug mode -----------------------------------------------------------------------------------------------------
def test_writes_through_data_are_noticed_in_debug_mode_only(debug):
    x, frozen = leaf([1.0]), mp.tensor(np.array([3.0]))
    y = Times.apply(x, frozen)
    frozen.data[0] = 7.0
    with pytest.raises(ContractError, match=r"Times.forward saved an array that was written to since"):
        y.backward()
    mp.set_debug(False)
    y = Times.apply(x, frozen)
    frozen.data[0] = 9.0
    y.backward()
    np.testing.assert_array_equal(x.grad, [9])


def test_a_backward_that_writes_to_its_gradient_is_noticed(debug):
    def scaled(g):
        g *= 2
        return g

    with pytest.raises(ContractError, match=r"Odd.backward wrote to the gradient that it was given"):
        returning(scaled).apply(leaf([1.0])).backward()


def test_a_backward_that_writes_to_what_was_saved_is_noticed(debug):
    class Reuse(Power):
        @staticmethod
        def backward(ctx, g):
            ctx.saved[0][...] *= g
            return ctx.saved[0].copy()

    with pytest.raises(ContractError) as caught:
        Reuse.apply(leaf([1.0, 2.0])).backward(gradient=np.array([2.0, 3.0]))
    assert caught.value.cause == "mutates-saved"


def test_a_forward_that_writes_to_its_input_is_noticed(debug):
    class InPlace(Twice):
        @staticmethod
        def forward(ctx, x):
            x *= 2
            return x.copy()

    with pytest.raises(ContractError, match=r"InPlace.forward wrote to one of its inputs"):
        InPlace.apply(leaf([1.0]))


def test_debug_mode_takes_every_kind_of_array(debug):
    class Keep(Twice):
        @staticmethod
        def forward(ctx, x, *, extra):
            ctx.save_for_backward(extra)
            return x.copy()

    for extra in (np.ones(()), np.ones((0, 3)), np.ones((4, 4))[::2, ::-1], np.array([True]), np.arange(3), None):
        Keep.apply(leaf([1.0]), extra=extra).backward()
