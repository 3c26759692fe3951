"""gradcheck: what it accepts, what it refuses to judge, and what its errors say."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

import minitorch_peft as mp
import minitorch_peft.functional as F
from minitorch_peft.autograd.function import Context

from . import rules
from .functions import Plus, Power, Times, Turn, Twice, leaf


def drawn(*shape: int, seed: int = 0) -> mp.Tensor:
    return leaf(np.random.default_rng(seed).standard_normal(shape))


def failure(*args, **kwargs) -> mp.GradcheckError:
    with pytest.raises(mp.GradcheckError) as caught:
        mp.gradcheck(*args, **kwargs)
    return caught.value


class Cube(mp.Function):
    """The rule forgets the 3."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved[0] ** 2


# -- inputs that it takes ------------------------------------------------------------------------------------------
def test_several_inputs_and_broadcasting():
    assert mp.gradcheck(lambda a, b, c: a * b + F.exp(c), (drawn(2, 3), drawn(3), drawn(2, 1)))


@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (1,), (1, 1), (3, 4)])
def test_every_shape(shape):
    assert mp.gradcheck(lambda x: F.tanh(x) * x, (drawn(*shape),))


def test_an_output_without_elements():
    assert mp.gradcheck(lambda x: x[:0], (drawn(3),))


@pytest.mark.parametrize("x", [drawn(4, 6).data.T, drawn(8, 6).data[::2, ::-1], np.broadcast_to(drawn(3).data, (2, 3))])
def test_layouts_stay_as_they_are(x):
    tensor, seen = mp.Tensor(x, requires_grad=True), []

    def fn(t):
        seen.append(t.data.strides)
        return F.sin(t)

    assert mp.gradcheck(fn, (tensor,))
    assert seen[0] == x.strides
    assert tensor.data is x


def test_a_single_tensor_needs_no_tuple():
    assert mp.gradcheck(F.exp, drawn(3))


def test_other_arguments_are_passed_on():
    ids, frozen = mp.tensor(np.array([1, 1, 0])), mp.tensor(np.ones((3, 2)))
    assert mp.gradcheck(lambda w, i, f, s: F.embedding(i, w) * f * s, (drawn(2, 2), ids, frozen, 3.0))


def test_one_tensor_twice():
    x = drawn(3)
    assert mp.gradcheck(F.mul, (x, x))


def test_leaves_that_fn_reaches_by_itself():
    w, b, x = drawn(4, 3), drawn(4), drawn(2, 3)
    assert mp.gradcheck(lambda x: F.linear(x, w, b), (x,), parameters={"weight": w, "bias": b})
    assert mp.gradcheck(lambda: F.linear(x, w, b), (), parameters=[w, b])
    error = failure(lambda x: Cube.apply(F.linear(x, w, b)), (mp.tensor(x.data),), parameters={"weight": w, "bias": b})
    assert (error.operation, error.name) == ("Cube", "weight")
    assert "(seen in the gradient of weight)" in str(error)


def test_frozen_parameters_are_passed_over():
    w, frozen = drawn(3), mp.tensor(np.ones(3))
    assert mp.gradcheck(lambda: Times.apply(w, frozen), (), parameters={"w": w, "frozen": frozen})


def test_nothing_is_left_behind():
    x, w = drawn(3), drawn(3)
    x.grad, data = np.full(3, 7.0), x.data
    bits = x.data.tobytes()
    for fn in (F.mul, lambda x, w: Cube.apply(x * w)):
        with contextlib.suppress(mp.GradcheckError):
            mp.gradcheck(fn, (x, w))
        assert x.data is data
        assert x.data.tobytes() == bits
        np.testing.assert_array_equal(x.grad, [7, 7, 7])
        assert w.grad is None
        assert Context.debug is False
        assert Context.tape is None


def test_the_same_seed_checks_the_same_numbers():
    errors = [failure(Cube.apply, (drawn(3),), seed=s) for s in (1, 1, 2)]
    assert errors[0].analytic == errors[1].analytic != errors[2].analytic


# -- how fine it is --------------------------------------------------------------------------------------------------
def scaled(factor: float) -> type[mp.Function]:
    class Scaled(Power):
        @staticmethod
        def backward(ctx, g):
            return g * ctx.saved[0] * factor

    return Scaled


@pytest.mark.parametrize("error", [1e-5, -1e-6, 3e-7])
def test_small_errors_are_seen(error):
    assert failure(scaled(1 + error).apply, (drawn(3, 4),)).cause == "factor"


def test_rtol_and_atol_widen_the_tolerance():
    assert mp.gradcheck(scaled(1 + 1e-5).apply, (drawn(3),), rtol=1e-4)
    assert mp.gradcheck(scaled(1 + 1e-5).apply, (drawn(3),), atol=1e-3)
    assert mp.gradcheck(scaled(1 + 1e-9).apply, (drawn(3),))


@pytest.mark.parametrize("eps", [1e-2, 1e-4, 1e-6])
def test_the_step_matters_little(eps):
    assert mp.gradcheck(lambda x: F.softmax(x, -1), (drawn(3, 4),), eps=eps)
    assert failure(Cube.apply, (drawn(3, 4),), eps=eps).cause == "factor"


def test_one_wrong_element_among_thousands_is_found():
    class Typo(Power):
        @staticmethod
        def backward(ctx, g):
            dx = g * ctx.saved[0]
            dx[17, 23] *= 1.5
            return dx

    error = failure(Typo.apply, (drawn(60, 80),))
    assert error.element == (17, 23)
    assert error.analytic == pytest.approx(1.5 * error.numeric, rel=1e-6)


def test_every_input_is_held_to_its_own_scale():
    """The second gradient is a millionth of the first, and still checked."""

    class Small(Plus):
        @staticmethod
        def forward(ctx, a, b):
            return 1e3 * a + 1e-3 * b

        @staticmethod
        def backward(ctx, g):
            return 1e3 * g, 1e-3 * g * 1.001

    assert failure(Small.apply, (drawn(3), drawn(3, seed=1))).input_index == 1


def test_steps_shrink_where_the_domain_or_the_curvature_asks_for_it():
    assert mp.gradcheck(F.log, (leaf([1e-5, 1.0, 1e4]),))
    assert mp.gradcheck(lambda x: F.sin(x * 300.0), (leaf([0.1, 1.0, 2.0]),))
    assert mp.gradcheck(F.relu, (leaf([1e-4, -1e-5, 3e-6, 1.0]),))


@pytest.mark.parametrize("values", [[0.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0] * 5, [1e-3, 0.0, 0.0, 1e3]])
def test_products_with_zeros(values):
    """f, its gradient and the inputs are 0 at once: only the way in which differences fall tells that all is well."""
    assert mp.gradcheck(lambda x: F.prod(x), (leaf(values),))


def test_what_has_no_influence_has_gradient_zero():
    assert mp.gradcheck(lambda x: F.sum(F.softmax(x, -1)), (drawn(3, 4),))
    assert mp.gradcheck(lambda x: F.sign(x) + 0.0 * x, (leaf([1.0, -2.0]),))
    assert mp.gradcheck(lambda x: x.detach() * 0.0, (drawn(3),))


@pytest.mark.parametrize(
    "fn", [F.tanh, F.sigmoid, lambda x: F.softmax(x, -1), lambda x: F.cross_entropy(x, np.array([0]))]
)
def test_saturation_is_no_false_alarm(fn):
    assert mp.gradcheck(fn, (leaf([[300.0, -40.0, 80.0]]),))


# -- what it cannot judge ----------------------------------------------------------------------------------------------
def test_single_precision_is_refused():
    with pytest.raises(TypeError, match="input 0 is float32; differences need float64"):
        mp.gradcheck(F.exp, (mp.tensor([1.0], requires_grad=True),))
    with pytest.raises(TypeError, match="w is float32"):
        mp.gradcheck(F.exp, (drawn(2),), parameters={"w": mp.tensor([1.0], requires_grad=True)})
    with pytest.raises(TypeError, match="fn turned float64 inputs into float32"):
        mp.gradcheck(lambda x: x.to(np.float32), (drawn(2),))


def test_misuse_is_refused():
    with pytest.raises(ValueError, match="nothing to check"):
        mp.gradcheck(F.exp, (mp.tensor(np.ones(2)),))
    with pytest.raises(ValueError, match="input 0 is not a leaf"):
        mp.gradcheck(F.exp, (Twice.apply(drawn(2)),))
    with pytest.raises(TypeError, match="fn must return one Tensor, it returned tuple"):
        mp.gradcheck(lambda x: (x, x), (drawn(2),))


def test_an_error_inside_a_rule_is_left_alone():
    class Broken(Twice):
        @staticmethod
        def backward(ctx, g):
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        mp.gradcheck(Broken.apply, (drawn(2),))


def test_noise_has_to_be_frozen():
    class Noisy(Twice):
        @staticmethod
        def forward(ctx, x):
            return 2 * x + np.random.default_rng().random(x.shape)

    error = failure(lambda x: Noisy.apply(F.exp(x)), (drawn(3),))
    assert (error.cause, error.operation) == ("nondeterministic", "Noisy")
    rng = np.random.default_rng(0)
    error = failure(lambda x: x * mp.tensor(rng.random(3)), (drawn(3),))
    assert (error.cause, error.operation) == ("nondeterministic", None)
    assert mp.gradcheck(lambda x: F.dropout(x, 0.5, key=(0, "site", 1)), (drawn(5),))


def test_what_is_not_finite_is_named():
    error = failure(lambda x: F.exp(F.log(x)), (leaf([1.0, -1.0]),))
    assert (error.cause, error.operation, error.element) == ("nonfinite", "Log", (1,))
    error = failure(lambda x: F.sqrt(x) + 1.0, (leaf([0.0, 1.0]),))
    assert (error.cause, error.operation, error.element) == ("nonfinite", "Sqrt", (0,))
    assert error.analytic in (np.inf, -np.inf)


def test_infinite_scores_inside_are_fine():
    """A mask of -inf before a softmax: neither it nor its gradient moves."""
    mask = np.triu(np.ones((3, 3), bool), 1)
    assert mp.gradcheck(lambda x: F.softmax(F.masked_fill(x, mask, -np.inf), -1), (drawn(3, 3),))
    error = failure(lambda x: Cube.apply(F.softmax(F.masked_fill(x, mask, -np.inf), -1)), (drawn(3, 3),))
    assert (error.operation, error.cause) == ("Cube", "factor")

    class Doubled(rules.MaskedFill):
        @staticmethod
        def backward(ctx, g):
            return 2 * rules.MaskedFill.backward(ctx, g)

    error = failure(lambda x: F.softmax(Doubled.apply(x, mask=mask, value=-np.inf), -1), (drawn(3, 3),))
    assert (error.operation, error.cause) == ("Doubled", "factor")


@pytest.mark.parametrize(
    ("fn", "x", "element"),
    [
        (F.relu, [1.0, 0.0, -1.0], (1,)),
        (F.abs, [0.0, 3.0], None),  # the rule gives 0 there, the mean of both sides: nothing to see
        (lambda x: F.amax(x, -1), [1.0, 2.0, 2.0], None),  # the rule shares the gradient of a tie
        (lambda x: F.topk(x, 1)[0] + x[0], [1.0, 2.0, 2.0], (2,)),
        (lambda x: F.relu(F.exp(x) - 1.0), [0.0, 3.0], (0,)),
    ],
)
def test_a_kink_is_called_a_kink(fn, x, element):
    if element is None:
        assert mp.gradcheck(fn, (leaf(x),))
        return
    error = failure(fn, (leaf(x),))
    assert error.cause == "kink"
    assert error.element == element
    assert "cannot be checked here" in str(error)


def test_a_wrong_rule_beside_a_kink_is_blamed():
    slope = np.array([100.0, 1.0, 1.0, 1.0])  # the kink has the largest difference

    class Half(Twice):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x > 0)
            return np.maximum(x, 0) * slope

        @staticmethod
        def backward(ctx, g):
            return 0.5 * g * ctx.saved[0] * slope

    error = failure(Half.apply, (leaf([0.0, 1.0, 2.0, -1.0]),))
    assert (error.operation, error.cause) == ("Half", "factor")
    assert error.element in ((1,), (2,))


def test_a_wrong_operation_behind_one_on_a_kink_is_blamed():
    error = failure(lambda x: Cube.apply(F.relu(x) + 1.0), (leaf([0.0, 1.0, 2.0]),))
    assert (error.operation, error.cause) == ("Cube", "factor")


def test_noise_from_a_cancellation_is_met_with_larger_steps():
    assert mp.gradcheck(lambda x: (x * 3.0 + 1e8) - 1e8, (drawn(4),))


def test_a_jump_is_no_derivative():
    class Floor(Twice):
        @staticmethod
        def forward(ctx, x):
            return np.floor(x)

    error = failure(Floor.apply, (leaf([2.0, 5.0]),))
    assert error.cause in ("unsettled", "kink")


def test_single_precision_inside_is_not_taken_for_a_wrong_rule():
    error = failure(lambda x: F.exp(x.to(np.float32)).to(np.float64), (drawn(3),))
    assert error.cause == "unsettled"


def test_inputs_must_not_change():
    class InPlace(Twice):
        @staticmethod
        def forward(ctx, x):
            x += 1.0
            return x.copy()

    error = failure(InPlace.apply, (drawn(2),))
    assert (error.cause, error.operation) == ("mutates-input", "InPlace")

    class InBackward(Twice):
        @staticmethod
        def forward(ctx, x):
            ctx.x = x  # not by save_for_backward, so the engine does not watch it
            return 2 * x

        @staticmethod
        def backward(ctx, g):
            ctx.x *= g
            return 2 * g

    error = failure(InBackward.apply, (drawn(2),))
    assert (error.cause, str(error)) == ("mutates-input", "the backward pass changed an input in place: work on a copy")

    def outside(x):
        y = F.exp(x)
        x.data[0] = 5.0
        return y

    assert failure(outside, (drawn(2),)).cause == "mutates-input"


def test_a_path_outside_the_graph_is_told_from_a_wrong_rule():
    error = failure(lambda x: x * mp.tensor(x.data), (drawn(3),))
    assert (error.operation, error.cause) == (None, "outside-graph")
    assert "each operation's own rule is right (Mul)" in str(error)
    error = failure(lambda x: mp.tensor(x.data), (drawn(3),))
    assert error.cause == "outside-graph"
    assert "the output has no graph" in str(error)


# -- which operation, which element ----------------------------------------------------------------------------------
def test_the_wrong_operation_of_a_deep_graph_is_named():
    def fn(x, w):
        h = F.layer_norm(F.linear(x, w), (4,))
        h = F.gelu(h) + Cube.apply(h)
        return F.cross_entropy(F.softmax(h, -1), np.array([0, 1, 2]))

    error = failure(fn, (drawn(3, 5), drawn(4, 5, seed=1)))
    assert (error.operation, error.input_index, error.cause, error.name) == ("Cube", 0, "factor", "input 0")
    assert str(error).startswith("Cube.backward: the gradient of input 0 (3x4) is wrong")
    assert "1/3 times" in str(error)


def test_the_input_of_the_operation_is_named():
    class SecondWrong(Times):
        @staticmethod
        def backward(ctx, g):
            a, b = ctx.saved
            return g * b, -g * a

    error = failure(lambda a: SecondWrong.apply(F.exp(a), F.sin(a)), (drawn(3),))
    assert (error.operation, error.input_index, error.cause) == ("SecondWrong", 1, "sign")


def test_the_first_wrong_operation_is_named_and_operations_off_the_path_are_not():
    def fn(x):
        rules.PlainSoftmax.apply(Cube.apply(x), dim=0)  # wrong, but its result is dropped
        return Cube.apply(scaled(2.0).apply(x))

    error = failure(fn, (drawn(3),))
    assert (error.operation, error.cause) == ("Scaled", "factor")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_whole_gpt_and_one_wrong_operation_in_it(family, monkeypatch):
    """The rule is off by a ten-thousandth."""
    from minitorch_peft.models import GPT, GPTConfig
    from minitorch_peft.ops.attention import Attention

    make = GPTConfig if family == "gpt2" else GPTConfig.llama
    model = GPT(make(vocab_size=7, n_positions=4, n_embd=8, n_layer=1, n_head=2), seed=0)
    parameters = dict(model.named_parameters())
    for p in parameters.values():
        p.data = p.data.astype(np.float64)
    ids = np.array([[1, 2, 3], [4, 1, 1]])
    assert mp.gradcheck(lambda: model(ids, labels=ids).loss, (), parameters=parameters)

    right = Attention.backward

    def wrong(ctx, g):
        dq, dk, dv = right(ctx, g)
        return dq, dk, dv * 1.0001

    monkeypatch.setattr(Attention, "backward", staticmethod(wrong))
    error = failure(lambda: model(ids).logits, (), parameters=parameters)
    assert (error.operation, error.input_index, error.cause) == ("Attention", 2, "factor")
    assert error.name in parameters


def test_analytic_and_numeric_belong_to_the_element_and_the_cotangent():
    error = failure(Cube.apply, (drawn(2, 3),))
    x = error.arrays[0][error.element]
    assert error.analytic == pytest.approx(error.cotangent[error.element] * x**2, rel=1e-9)
    assert error.numeric == pytest.approx(error.cotangent[error.element] * 3 * x**2, rel=1e-6)


def test_a_generator_among_the_constants_does_not_confuse_the_search():
    class Shake(Twice):
        @staticmethod
        def forward(ctx, x, *, rng):
            noise = rng.random(x.shape)
            ctx.save_for_backward(noise)
            return x * noise

        @staticmethod
        def backward(ctx, g):
            return g * ctx.saved[0]

    error = failure(lambda x: Cube.apply(Shake.apply(x, rng=np.random.default_rng(0))), (drawn(4),))
    assert error.operation == "Cube"

    class Wrong(Shake):
        @staticmethod
        def backward(ctx, g):
            return 2 * g * ctx.saved[0]

    error = failure(lambda x: Wrong.apply(F.exp(x), rng=np.random.default_rng(0)), (drawn(4),))
    assert (error.operation, error.cause) == ("Wrong", "factor")


def test_a_mutation_of_what_another_operation_saved_is_named():
    class Reuse(Twice):
        @staticmethod
        def forward(ctx, x):
            x *= 2  # the output that Power saved
            return x

    error = failure(lambda x: Reuse.apply(Power.apply(x)), (drawn(3),))
    assert (error.cause, error.operation) == ("mutates-input", "Reuse")


# -- the message -------------------------------------------------------------------------------------------------------
def printed(message: str, **names) -> np.ndarray:
    """Run the snippet of a message; the value of its last line."""
    lines = message.split("to reproduce:\n")[1].splitlines()
    *body, last = (line.strip() for line in lines)
    scope: dict = dict(names)
    exec("\n".join(body), scope)
    return eval(last, scope)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_the_snippet_shows_the_wrong_value(shape):
    error = failure(lambda x: Cube.apply(F.exp(x)), (drawn(*shape),))
    assert "\n    from tests.autograd.test_gradcheck import Cube\n" in str(error)
    assert printed(str(error))[error.element] == error.analytic


def test_the_snippet_writes_constants_and_integer_inputs():
    class Pick(mp.Function):
        @staticmethod
        def forward(ctx, x, ids, *, dim, scale, flag):
            ctx.ids, ctx.shape = ids, x.shape
            return x[ids] * scale

        @staticmethod
        def backward(ctx, g):
            dx = np.zeros(ctx.shape)
            dx[ctx.ids] = g
            return dx, None

    ids = mp.tensor(np.array([0, 2, 2]))
    error = failure(lambda x: Pick.apply(x, ids, dim=(0, 1), scale=2.0, flag=None), (drawn(3, 2),))
    assert "Pick.apply(x0, np.array([0, 2, 2]), dim=(0, 1), scale=2.0, flag=None)" in str(error).replace(
        Pick.__qualname__, "Pick"
    )
    assert f"# {Pick.__qualname__} is the one of" in str(error)


def test_the_message_stays_short_and_large_arrays_come_from_the_error():
    error = failure(Cube.apply, (drawn(40, 40),))
    assert len(str(error).splitlines()) <= 12
    assert max(map(len, str(error).splitlines())) < 200
    value = printed(str(error).replace("error = sys.last_value", ""), error=error)
    assert value[error.element] == error.analytic
    assert "of 96 sampled" in str(error) or "of 97 sampled" in str(error)


# -- laws that a checker has to keep ---------------------------------------------------------------------------------
def test_a_transposed_input_is_no_excuse():
    assert mp.gradcheck(lambda x: Turn.apply(x) * 2.0, (drawn(2, 3),))
    assert failure(lambda x: Cube.apply(Turn.apply(x)), (drawn(2, 3),)).operation == "Cube"


def test_values_may_not_depend_on_the_layout():
    class FirstInMemory(Twice):
        @staticmethod
        def forward(ctx, x):
            return x * x.ravel(order="K")[1]

    x = mp.Tensor(drawn(3, 4).data.T, requires_grad=True)
    assert failure(FirstInMemory.apply, (x,)).cause == "nondeterministic"
