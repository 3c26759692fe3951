"""The checks of A2. Expected values are plain loops, closed forms and complex steps: nothing of the library."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from minitorch_peft.course.checks import Variant, check
from minitorch_peft.course.expect import along, close, equal, require, vjp

SCORES = "kernels.attention.reference:_scores"
ATTENTION = "kernels.attention.reference:attention_forward"
ATTENTION_BACKWARD = "kernels.attention.reference:attention_backward"
ADAMW = "kernels.optimizer.reference:adamw_step"
PROBABILITIES = "models.generation:probabilities"
SAMPLE = "models.generation:sample"
IS_ABOVE = "peft.parameter.partial:is_above"

IGNORE = -100
Draw = Callable[[st.SearchStrategy], Any]


def plain(value: Any) -> Any:
    if isinstance(value, list):
        return [plain(v) for v in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


class Case(dict):
    """Arguments that belong together; a counter-example shows them as one line."""

    def __repr__(self) -> str:
        return f"({', '.join(f'{name}={plain(value)!r}' for name, value in self.items())})"

    def __or__(self, other: Any) -> Case:
        return Case({**self, **other})


def numbers(draw: Draw, *shape: int) -> np.ndarray:
    """Numbers of two decimals: a counter-example can be read, and none is degenerate by chance."""
    return draw(st.integers(0, 999).map(lambda seed: np.random.default_rng(seed).standard_normal(shape).round(2)))


# -- 2.1 attention -------------------------------------------------------------------------------------------
@st.composite
def attention_cases(
    draw: Draw, side: int, groups: int = 3, masks: tuple[str, ...] = ("none", "bool", "float"), grad: bool = False
) -> Case:
    """The arguments of one call; keys may outnumber queries, and queries keys."""
    batch, shared = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    heads = shared * draw(st.integers(1, groups))
    queries, keys, width = draw(st.tuples(*[st.integers(1, side)] * 3))
    case = Case(
        q=numbers(draw, batch, heads, queries, width),
        k=numbers(draw, batch, shared, keys, width),
        v=numbers(draw, batch, shared, keys, width),
        mask=draw(mask_of(draw(st.sampled_from(masks)), (batch, heads, queries, keys))),
        causal=draw(st.booleans()),
        scale=draw(st.sampled_from([0.5, 1.0, 0.3])),
    )
    return case | {"g": numbers(draw, batch, heads, queries, width)} if grad else case


@st.composite
def mask_of(draw: Draw, kind: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """None, or a mask that broadcasts to ``shape``."""
    if kind == "none":
        return None
    sizes = [n if draw(st.booleans()) else 1 for n in shape[:3]] + [shape[3]]
    if sizes[:2] == [1, 1] and draw(st.booleans()):
        sizes = sizes[2:]
    seen = np.random.default_rng(draw(st.integers(0, 999))).random(sizes) < 0.7
    return seen if kind == "bool" else np.where(seen, numbers(draw, *sizes), -np.inf)


def visible(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """bool (B, H, T, S): which keys each query sees; and what is added to their scores."""
    (b, h, t, _), s = case["q"].shape, case["k"].shape[2]
    seen, added = np.ones((b, h, t, s), bool), np.zeros((b, h, t, s))
    if case["mask"] is not None:
        full = np.broadcast_to(case["mask"], seen.shape)
        seen = full.copy() if full.dtype == bool else full > -np.inf
        added = np.where(seen, full, 0.0) if full.dtype != bool else added
    if case["causal"]:
        for i in range(t):
            for j in range(s):
                seen[:, :, i, j] &= j - (s - 1) <= i - (t - 1)  # counted from the last key and the last query
    return seen, added


def attend(case: Case) -> dict[str, np.ndarray]:
    """scores, out and lse, one query at a time."""
    q, k, v = case["q"], case["k"], case["v"]
    seen, added = visible(case)
    scores, out = np.full(seen.shape, -np.inf), np.zeros(q.shape)
    lse = np.full(q.shape[:3], -np.inf)
    group = q.shape[1] // k.shape[1]
    for b, h, i in np.ndindex(*q.shape[:3]):
        keys, values, at = k[b, h // group], v[b, h // group], np.flatnonzero(seen[b, h, i])
        row = case["scale"] * keys[at] @ q[b, h, i] + added[b, h, i, at]
        scores[b, h, i, at] = row
        if len(at):
            lse[b, h, i] = row.max() + math.log(sum(math.exp(s - row.max()) for s in row))
            out[b, h, i] = sum(math.exp(s - lse[b, h, i]) * values[j] for s, j in zip(row, at, strict=True))
    return {"scores": scores, "out": out, "lse": lse}


def arguments(case: Case) -> list[Any]:
    return [case[name] for name in ("q", "k", "v", "mask", "causal", "scale")]


@check(
    "2.1",
    "scores: scaled, masked, causal from the last key back",
    given=lambda v: {"case": attention_cases(v.max_side)},
)
def attention_scores(code: Any, case: Case) -> None:
    got, expected = code(SCORES, *arguments(case)), attend(case)["scores"]
    why = None
    if isinstance(got, np.ndarray) and got.shape == expected.shape:
        shown, due = got > -np.inf, expected > -np.inf
        if (shown & ~due).any():
            why = "A query sees a key that is hidden from it: how many keys may the first query see, and the last?"
        elif (due & ~shown).any():
            why = "A key is hidden from a query that may see it: how many keys may the first query see, and the last?"
    close(got, expected, "_scores(q, k, v, mask, causal, scale)", because=why)


@check("2.1", "outputs and log-sum-exp", given=lambda v: {"case": attention_cases(v.max_side)})
def attention_values(code: Any, case: Case) -> None:
    out, lse = code(ATTENTION, *arguments(case))
    expected = attend(case)
    close(out, expected["out"], "out")
    close(lse, expected["lse"], "lse")


@check("2.1", "a query that sees no key gives zeros", given=lambda v: {"case": attention_cases(v.max_side)})
def attention_without_keys(code: Any, case: Case) -> None:
    nothing = {"mask": np.zeros((1, 1, 1, case["k"].shape[2]), bool)}
    too_few = {"causal": True, "mask": None, "k": case["k"][:, :, :1], "v": case["v"][:, :, :1]}
    for change in (nothing, too_few):
        changed = case | change
        out, lse = code(ATTENTION, *arguments(changed))
        expected = attend(changed)
        why = "The maximum and the sum of a row in which every score is -inf: what are they, and what is then divided?"
        close(out, expected["out"], "out", because=why if not np.isfinite(out).all() else None)
        close(lse, expected["lse"], "lse")


@check(
    "2.1", "large scores do not overflow; float32 stays float32", examples=10,
    given=lambda v: {"case": attention_cases(v.max_side)},
)  # fmt: skip
def attention_numbers(code: Any, case: Case) -> None:
    large = case | {"q": 300 * case["q"], "k": 300 * case["k"]}
    out, lse = code(ATTENTION, *arguments(large))
    expected = attend(large)
    why = None if np.isfinite(out).all() else "np.exp of a large score overflows."
    close(out, expected["out"], "out, of scores up to 1e5", because=why)
    close(lse, expected["lse"], "lse, of scores up to 1e5")
    small = Case(
        {n: a.astype(np.float32) if isinstance(a, np.ndarray) and a.dtype != bool else a for n, a in case.items()}
    )
    out, lse = code(ATTENTION, *arguments(small))
    close(out, attend(case)["out"].astype(np.float32), "out in float32", rtol=1e-4, atol=1e-5)
    require(
        out.dtype == lse.dtype == np.float32,
        f"float32 arguments give out in {out.dtype} and lse in {lse.dtype}, expected float32 for both",
        because="An array of another dtype took part: which constant or mask was it?",
    )


# -- 2.2 its gradient ----------------------------------------------------------------------------------------
def plain_attention(case: Case, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The output alone, of real or complex arguments."""
    seen, added = visible(case)
    group = q.shape[1] // k.shape[1]
    scores = case["scale"] * np.einsum("bhtd,bhsd->bhts", q, np.repeat(k, group, 1)) + added
    top = np.where(seen, scores.real, -1e300).max(-1, keepdims=True)
    e = np.where(seen, np.exp(np.where(seen, scores - top, 0)), 0)
    total = e.sum(-1, keepdims=True)
    return (e / np.where(total == 0, 1, total)) @ np.repeat(v, group, 1)


def true_gradients(case: Case) -> dict[str, np.ndarray]:
    q, k, v, g = (case[name] for name in ("q", "k", "v", "g"))
    return {
        "dq": vjp(lambda x: plain_attention(case, x, k, v), q, g),
        "dk": vjp(lambda x: plain_attention(case, q, x, v), k, g),
        "dv": vjp(lambda x: plain_attention(case, q, k, x), v, g),
    }


def backward_arguments(case: Case) -> list[Any]:
    forward = attend(case)
    q, k, v, mask, causal, scale = arguments(case)
    return [case["g"], q, k, v, forward["out"], forward["lse"], mask, causal, scale]


def gradients_agree(code: Any, case: Case) -> None:
    got = code(ATTENTION_BACKWARD, *backward_arguments(case))
    require(len(got) == 3, f"expected three gradients (dq, dk, dv), got {len(got)}")
    for gradient, (name, expected) in zip(got, true_gradients(case).items(), strict=True):
        close(gradient, expected, name)


@check(
    "2.2", "gradients of queries, keys and values", examples=25,
    given=lambda v: {"case": attention_cases(v.max_side, groups=1, masks=("none",), grad=True)},
)  # fmt: skip
def attention_gradients(code: Any, case: Case) -> None:
    gradients_agree(code, case)


@check(
    "2.2", "with masks, and keys that several query heads share", examples=25,
    given=lambda v: {"case": attention_cases(v.max_side, grad=True)},
)  # fmt: skip
def attention_group_gradients(code: Any, case: Case) -> None:
    gradients_agree(code, case)


@check(
    "2.2", "a query that sees no key sends back zeros", examples=12,
    given=lambda v: {"case": attention_cases(v.max_side, grad=True)},
)  # fmt: skip
def attention_gradients_without_keys(code: Any, case: Case) -> None:
    seen = np.ones((case["q"].shape[2], case["k"].shape[2]), bool)
    seen[0] = False
    gradients_agree(code, case | {"mask": seen[None, None], "causal": False})


@check(
    "2.2", "None where no gradient is needed; float32 stays float32", examples=12,
    given=lambda v: {"case": attention_cases(v.max_side, grad=True)},
)  # fmt: skip
def attention_gradients_needed(code: Any, case: Case) -> None:
    expected = true_gradients(case)
    for needs in ([False, True, True], [True, False, True], [True, True, False], [False, False, False]):
        got = code(ATTENTION_BACKWARD, *backward_arguments(case), needs)
        for gradient, need, (name, value) in zip(got, needs, expected.items(), strict=True):
            if need:
                close(gradient, value, f"{name}, needs={tuple(needs)}")
            else:
                require(gradient is None, f"needs={tuple(needs)}: {name} is an array, expected None")
    small = [
        a.astype(np.float32) if isinstance(a, np.ndarray) and a.dtype != bool else a for a in backward_arguments(case)
    ]
    for gradient, name in zip(code(ATTENTION_BACKWARD, *small), expected, strict=True):
        require(gradient.dtype == np.float32, f"float32 arguments give {name} in {gradient.dtype}, expected float32")


@check("2.2", "a large example, in one pass")
def large_attention_gradients(code: Any, variant: Variant) -> None:
    rng = np.random.default_rng(variant.seed)
    query, key = (1, 4, 48, 160), (1, 2, 48, 160)
    q, k, v, g = (rng.standard_normal(shape) for shape in (query, key, key, query))
    case = Case(q=q, k=k, v=v, g=g, mask=None, causal=True, scale=0.1)
    got = code(ATTENTION_BACKWARD, *backward_arguments(case))
    require(len(got) == 3, f"expected three gradients (dq, dk, dv), got {len(got)}")
    where = f"for q of shape {query} and k and v of shape {key}"
    along(got[0], lambda x: plain_attention(case, x, k, v), q, g, f"dq {where}", variant.seed)
    along(got[1], lambda x: plain_attention(case, q, x, v), k, g, f"dk {where}", variant.seed)
    along(got[2], lambda x: plain_attention(case, q, k, x), v, g, f"dv {where}", variant.seed)


# -- 2.3 the cache -------------------------------------------------------------------------------------------
@st.composite
def cache_calls(draw: Draw, side: int, recomputed: bool) -> list[Case]:
    """Passes over some layers; in ``recomputed`` ones a layer may be reached twice in one pass."""
    batch, heads, width, layers = draw(st.tuples(*[st.integers(1, 2)] * 4))
    calls, past = [], 0
    for _ in range(draw(st.integers(1, 3))):
        new = draw(st.integers(1, side))
        again = draw(st.integers(0, layers - 1)) if recomputed else None
        for layer in [*range(layers), *([] if again is None else [again])]:
            key, value = numbers(draw, batch, heads, new, width), numbers(draw, batch, heads, new, width)
            calls.append(Case(layer=layer, key=key, value=value, past_length=past))
        past += new
    return calls


def kept_calls(calls: list[Case]) -> list[list[int]]:
    """For every call, which calls (by number, oldest first) its layer's keys then come from."""
    rows: list[list[int]] = []
    for i, call in enumerate(calls):
        before: list[int] = []
        for j in range(i):  # an earlier pass has a smaller past; of a pass that was repeated, the last call counts
            if calls[j]["layer"] == call["layer"] and calls[j]["past_length"] < call["past_length"]:
                before = [b for b in before if calls[b]["past_length"] != calls[j]["past_length"]] + [j]
        rows.append([*before, i])
    return rows


def joined(calls: list[Case], which: list[int], name: str) -> np.ndarray:
    return np.concatenate([calls[i][name] for i in which], axis=2)


def updates_agree(code: Any, calls: list[Case]) -> None:
    got = code("probes:updates", [dict(call) for call in calls], 7)
    which = kept_calls(calls)
    for i, (key, value) in enumerate(got["returned"]):
        where = f"call {i + 1} (layer {calls[i]['layer']}, past_length {calls[i]['past_length']})"
        for got_array, name in ((key, "key"), (value, "value")):
            expected = joined(calls, which[i], name)
            why = None
            if got_array.ndim == 4 and got_array.shape[2] != expected.shape[2]:
                many = "more" if got_array.shape[2] > expected.shape[2] else "fewer"
                why = f"There are {many} of them than positions so far: which belong to earlier passes?"
            equal(got_array, expected, f"the {name}s that {where} returns", because=why)
    last = {str(call["layer"]): which[i] for i, call in enumerate(calls)}
    require(set(got["held"]) == set(last), f"layers {sorted(got['held'])} are held, expected {sorted(last)}")
    for layer, (key, value) in got["held"].items():
        equal(key, joined(calls, last[layer], "key"), f"the keys held afterwards for layer {layer}")
        equal(value, joined(calls, last[layer], "value"), f"the values held afterwards for layer {layer}")
    require(got["next_position"] == 7, f"next_position was 7 and is {got['next_position']}: update leaves it alone")


@check("2.3", "appends to each layer's keys and values", given=lambda v: {"calls": cache_calls(v.max_side, False)})
def cache_appends(code: Any, calls: list[Case]) -> None:
    updates_agree(code, calls)


@check(
    "2.3", "a second call in the same pass replaces, not appends",
    given=lambda v: {"calls": cache_calls(v.max_side, True)},
)  # fmt: skip
def cache_replaces(code: Any, calls: list[Case]) -> None:
    updates_agree(code, calls)


@check(
    "2.3", "gradients reach the keys and values of earlier passes", examples=15,
    given=lambda v: {"calls": cache_calls(v.max_side, True)},
)  # fmt: skip
def cache_is_differentiable(code: Any, calls: list[Case]) -> None:
    which = kept_calls(calls)
    rng = np.random.default_rng(0)
    shapes = [joined(calls, rows, "key").shape for rows in which]
    weights = [[rng.standard_normal(shape).round(2) for _ in "kv"] for shape in shapes]
    got = code("probes:cache_gradients", [dict(call) for call in calls], weights)
    for part, name in enumerate(("key", "value")):
        expected = [np.zeros(call[name].shape) for call in calls]
        for rows, weight in zip(which, weights, strict=True):
            at = 0
            for i in rows:
                length = expected[i].shape[2]
                expected[i] += weight[part][:, :, at : at + length]
                at += length
        for i, value in enumerate(expected):
            gradient = got[i][part]
            why = "Something between the two passes left the graph." if gradient is None else None
            require(gradient is not None, f"the {name} of call {i + 1} got no gradient", because=why)
            close(gradient, value, f"the gradient of the {name} of call {i + 1}")


@st.composite
def cache_selections(draw: Draw, side: int) -> Case:
    batch, heads, width, layers = draw(st.tuples(*[st.integers(1, 2)] * 4))
    length = draw(st.integers(2, side + 2))
    return Case(
        layers=[[numbers(draw, batch, heads, length, width) for _ in "kv"] for _ in range(layers)],
        keep=draw(st.permutations(range(length)))[: draw(st.integers(1, length - 1))],
    )


@check("2.3", "select keeps the chosen keys of every layer", given=lambda v: {"case": cache_selections(v.max_side)})
def cache_selects(code: Any, case: Case) -> None:
    layers, keep = case["layers"], case["keep"]
    got = code("probes:selected", layers, keep, 9)
    for i, pair in enumerate(layers):
        for part, name in enumerate(("keys", "values")):
            expected = np.stack([pair[part][:, :, j] for j in keep], axis=2)
            equal(got["held"][str(i)][part], expected, f"the {name} of layer {i} after select({keep})")
            mask = np.zeros(pair[part].shape)
            mask[:, :, keep] = 1
            gradient = got["gradients"][i][part]
            require(gradient is not None, f"the {name} of layer {i} got no gradient: they left the graph")
            close(gradient, mask, f"the gradient of their sum at the {name} of layer {i}")
    require(got["length"] == len(keep), f"length is {got['length']} after keeping {len(keep)} keys")
    require(got["next_position"] == 9, f"next_position was 9 and is {got['next_position']}: the positions go on")


# -- 2.4 the masked loss -------------------------------------------------------------------------------------
@st.composite
def pair_cases(draw: Draw, side: int) -> Case:
    """Prompts and answers over a vocabulary of 9, in which the pad (3) is a token like any other."""
    count = draw(st.integers(1, side))
    ids = st.lists(st.integers(0, 8), min_size=1, max_size=side + 1)
    prompts, answers = ([draw(ids) for _ in range(count)] for _ in "xy")
    order = draw(st.permutations(range(count)))[: draw(st.integers(1, count))]
    return Case(prompts=prompts, answers=answers, pad=3, indices=order, side=draw(st.sampled_from(SIDES)))


SIDES = ("left", "right")


def padded(rows: list[list[int]], fill: int, side: str) -> np.ndarray:
    longest = max(map(len, rows))
    blank = [[fill] * (longest - len(row)) for row in rows]
    return np.array([b + r if side == "left" else r + b for b, r in zip(blank, rows, strict=True)])


def same_integers(got: Any, expected: np.ndarray, what: str) -> None:
    require(
        isinstance(got, np.ndarray) and got.dtype.kind in "iu",
        f"{what}: expected an array of integers, got {getattr(got, 'dtype', type(got).__name__)}",
    )
    equal(got.astype(np.int64), expected.astype(np.int64), what)


@check("2.4", "rows: ids, labels on the answer only, mask", given=lambda v: {"case": pair_cases(v.max_side)})
def pair_rows(code: Any, case: Case) -> None:
    first, again = code("probes:rows", case["prompts"], case["answers"], case["pad"], case["indices"], case["side"])
    keys = {"input_ids", "labels", "attention_mask"}
    require(isinstance(first, dict) and set(first) == keys, f"expected a dict with {sorted(keys)}, got {first!r}")
    parts = [(case["prompts"][i], case["answers"][i]) for i in case["indices"]]
    ids, labels, mask = [], [], []
    for prompt, answer in parts:
        ids.append(prompt + answer)
        labels.append([IGNORE for _ in prompt] + answer)
        mask.append([1 for _ in prompt + answer])
    for got, when in ((first, ""), (again, ", asked for a second time")):
        same_integers(got["input_ids"], padded(ids, case["pad"], case["side"]), f"input_ids{when}")
        same_integers(got["labels"], padded(labels, IGNORE, case["side"]), f"labels{when}")
        same_integers(got["attention_mask"], padded(mask, 0, case["side"]), f"attention_mask{when}")


@st.composite
def label_cases(draw: Draw, side: int) -> Case:
    rows, length = draw(st.tuples(st.integers(1, side), st.integers(1, side)))
    seed = draw(st.integers(0, 999))
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random((rows, length)) < 0.3, IGNORE, rng.integers(0, 9, (rows, length)))
    return Case(labels=labels, one_before=draw(st.booleans()))


@check("2.4", "labels: each position predicts the next token", given=lambda v: {"case": label_cases(v.max_side)})
def labels_shift(code: Any, case: Case) -> None:
    labels, one_before = case["labels"], case["one_before"]
    rows, length = labels.shape
    expected = np.full((rows, length + one_before), IGNORE)
    for position in range(length + one_before):
        predicted = position if one_before else position + 1  # of the input's tokens
        if predicted < length:
            expected[:, position] = labels[:, predicted]
    same_integers(code("probes:shifted", labels, one_before, 9), expected, f"the labels with one_before={one_before}")


@check(
    "2.4", "the loss is the mean of -log P(answer token | what is before)", examples=15,
    given=lambda v: {"case": pair_cases(v.max_side), "one_before": st.booleans()},
)  # fmt: skip
def conditional_loss(code: Any, case: Case, one_before: bool) -> None:
    prompts, answers, side = case["prompts"], case["answers"], case["side"]
    lengths = [len(x) + len(y) for x, y in zip(prompts, answers, strict=True)]
    rng = np.random.default_rng(len(lengths))
    head = rng.standard_normal((9, 4)).round(2)
    hidden = rng.standard_normal((len(lengths), max(lengths) + one_before, 4)).round(2)
    nats = []
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        first = (max(lengths) - lengths[row] if side == "left" else 0) + one_before + len(prompt)
        for i, token in enumerate(answer):
            logits = head @ hidden[row, first + i - 1]  # the position before the token predicts it
            nats.append(math.log(sum(math.exp(z) for z in logits)) - logits[token])
    got = code("probes:conditional_loss", prompts, answers, case["pad"], side, hidden, head)
    require(got["targets"] == len(nats), f"{got['targets']} tokens are predicted, expected {len(nats)}")
    close(got["loss"], sum(nats) / len(nats), "the loss")


# -- 2.5 AdamW -----------------------------------------------------------------------------------------------
@st.composite
def adamw_options(draw: Draw) -> dict[str, float]:
    return {
        "lr": draw(st.sampled_from([0.1, 0.5, 0.01])),
        "beta1": draw(st.sampled_from([0.9, 0.5, 0.0])),
        "beta2": draw(st.sampled_from([0.999, 0.9, 0.6])),
        "eps": draw(st.sampled_from([1e-8, 0.1, 1.0])),
        "weight_decay": draw(st.sampled_from([0.0, 0.1, 0.9])),
    }


@st.composite
def adamw_runs(draw: Draw, side: int) -> Case:
    shape = tuple(draw(st.lists(st.integers(1, side), min_size=1, max_size=2)))
    gradients = [numbers(draw, *shape) for _ in range(draw(st.integers(1, side)))]
    return Case(param=numbers(draw, *shape), gradients=gradients, options=draw(adamw_options()))


def trajectory(case: Case) -> list[dict[str, np.ndarray]]:
    """param, exp_avg and exp_avg_sq after every step: the means as weighted sums of all gradients so far."""
    o, p, states = case["options"], case["param"], []
    for t in range(1, len(case["gradients"]) + 1):
        past = [(t - i, g) for i, g in enumerate(case["gradients"][:t], start=1)]
        first = sum((1 - o["beta1"]) * o["beta1"] ** age * g for age, g in past)
        second = sum((1 - o["beta2"]) * o["beta2"] ** age * g**2 for age, g in past)
        root = np.sqrt(second / (1 - o["beta2"] ** t))
        p = p - o["lr"] * o["weight_decay"] * p - o["lr"] * first / (1 - o["beta1"] ** t) / (root + o["eps"])
        states.append({"param": p, "exp_avg": first, "exp_avg_sq": second})
    return states


def steps_agree(code: Any, case: Case, dtype: type, rtol: float = 1e-7, atol: float = 1e-9) -> None:
    param = case["param"].astype(dtype)
    state = [param, np.zeros_like(param), np.zeros_like(param)]
    for t, expected in enumerate(trajectory(case), start=1):
        gradient = case["gradients"][t - 1].astype(dtype)
        before = [a.copy() for a in state]
        _, after = code.inplace(ADAMW, state[0], gradient, *state[1:], *case["options"].values(), t)
        equal(after[1], gradient, f"the gradient after step {t} (it is read, not written)")
        state = [after[0], after[2], after[3]]
        if all((a == b).all() for a, b in zip(state, before, strict=True)) and gradient.any():
            require(False, f"step {t} left all three arrays as they were", because="Are they changed in place?")
        for (name, value), array in zip(expected.items(), state, strict=True):
            close(array, value.astype(dtype), f"{name} after step {t}", rtol, atol)


@check("2.5", "several steps from zero", given=lambda v: {"case": adamw_runs(v.max_side)})
def adamw_steps(code: Any, case: Case) -> None:
    steps_agree(code, case, np.float64)


@check(
    "2.5", "the decay passes through neither m nor v", examples=15,
    given=lambda v: {"case": adamw_runs(v.max_side), "decay": st.sampled_from([0.3, 1.0])},
)  # fmt: skip
def adamw_decay(code: Any, case: Case, decay: float) -> None:
    quiet = case | {
        "gradients": [np.zeros_like(g) for g in case["gradients"]],
        "options": case["options"] | {"weight_decay": decay, "eps": 1e-8},
    }
    steps_agree(code, quiet, np.float64)


@check("2.5", "float32 stays float32", examples=10, given=lambda v: {"case": adamw_runs(v.max_side)})
def adamw_float32(code: Any, case: Case) -> None:
    case = case | {"options": case["options"] | {"eps": max(case["options"]["eps"], 1e-4)}}
    steps_agree(code, case, np.float32, rtol=2e-3, atol=1e-4)


# -- 2.6 sampling --------------------------------------------------------------------------------------------
@st.composite
def sampling_cases(draw: Draw, side: int) -> Case:
    """Logits far enough apart that no two have one rank, and p away from the sums that they are likely to give."""
    rows, size = draw(st.integers(1, side)), draw(st.integers(1, 2 * side))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    logits = np.stack([rng.permutation(size) for _ in range(rows)]) * 0.5 + rng.uniform(0, 0.4, (rows, size)).round(2)
    return Case(
        logits=(draw(st.sampled_from([0.2, 1.0, 3.0])) * (logits - 2)).round(3),
        temperature=draw(st.sampled_from([1.0, 0.5, 2.0])),
        top_k=draw(st.one_of(st.none(), st.integers(1, size + 1))),
        top_p=draw(st.one_of(st.sampled_from([None, 1e-6, 1.0]), st.integers(1, 99).map(lambda n: (n + 0.37) / 100))),
    )


def distribution(logits: np.ndarray, temperature: float, top_k: int | None, top_p: float | None) -> np.ndarray:
    """One row's probabilities, token by token from the likeliest down."""
    order = sorted(range(len(logits)), key=lambda i: -logits[i])[: top_k or None]
    weights = [math.exp((logits[i] - max(logits)) / temperature) for i in order]
    shares = [w / sum(weights) for w in weights]
    kept = len(order)
    if top_p is not None and top_p < 1:
        kept = next((n for n in range(1, len(order)) if math.fsum(shares[:n]) >= top_p), kept)
    p = np.zeros(len(logits))
    for i, share in zip(order[:kept], shares, strict=False):
        p[i] = share / math.fsum(shares[:kept])
    return p


def probabilities_agree(code: Any, case: Case) -> None:
    got = code(PROBABILITIES, case["logits"], case["temperature"], case["top_k"], case["top_p"])
    rest = {name: value for name, value in case.items() if name != "logits"}
    expected = np.stack([distribution(row, **rest) for row in case["logits"]])
    shape = expected.shape
    if isinstance(got, np.ndarray) and got.shape == shape and ((got > 0) != (expected > 0)).any():
        kept, wanted = (got > 0).sum(-1).tolist(), (expected > 0).sum(-1).tolist()
        why = f"Tokens that may be drawn, row by row: {kept}, expected {wanted}."
        if kept == wanted:
            why = "As many tokens are kept as should be, but others."
        close(got, expected, "probabilities", because=why)
    close(got, expected, "probabilities")


@check("2.6", "temperature, then the k largest", given=lambda v: {"case": sampling_cases(v.max_side)})
def top_k_probabilities(code: Any, case: Case) -> None:
    probabilities_agree(code, case | {"top_p": None})


@check("2.6", "then the smallest set that reaches p", given=lambda v: {"case": sampling_cases(v.max_side)})
def top_p_probabilities(code: Any, case: Case) -> None:
    probabilities_agree(code, case)


@check("2.6", "p is a share of what top-k has left")
def top_k_before_top_p(code: Any) -> None:
    logits = np.log([[0.1, 0.4, 0.2, 0.3], [0.3, 0.31, 0.2, 0.19]])
    for top_k, top_p in ((2, 0.5), (3, 0.75), (1, 0.2), (4, 0.95)):
        probabilities_agree(code, Case(logits=logits, temperature=1.0, top_k=top_k, top_p=top_p))


@check("2.6", "large logits do not overflow", examples=5, given=lambda v: {"case": sampling_cases(v.max_side)})
def large_logits(code: Any, case: Case) -> None:
    for shift in (1000.0, -1000.0):
        probabilities_agree(code, case | {"logits": case["logits"] + shift})


@st.composite
def draw_cases(draw: Draw, side: int) -> Case:
    size = draw(st.integers(1, 2 * side))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    weights: np.ndarray = rng.integers(0, 5, (size,)).astype(np.float64)
    weights[rng.integers(size)] += 1  # not all are zero
    return Case(p=weights / weights.sum(), numbers=[0.0, 1 - 2.0**-53, *rng.random(6).tolist()])


def first_above(p: np.ndarray, u: float) -> int:
    total = np.cumsum(p)
    above = [i for i in range(len(p)) if total[i] > u and p[i] > 0]
    return above[0] if above else max(i for i in range(len(p)) if p[i] > 0)


def draws_agree(got: list[Any], p: np.ndarray, given: list[float]) -> None:
    for u, index in zip(given, got, strict=True):
        if np.abs(np.cumsum(p)[:-1] - u).min(initial=1) < 1e-12 and 0 < u < 0.999:
            continue  # on the edge of two tokens, where rounding decides
        require(
            isinstance(index, int | np.integer) and not isinstance(index, bool),
            f"sample gave {index!r}, expected a whole number",
        )
        require(0 <= index < len(p), f"u = {u}: sample gave {index}, expected an index of {len(p)} tokens")
        require(p[index] > 0, f"u = {u}: sample drew token {index}, whose probability is 0; p = {p.round(3).tolist()}")
        right = first_above(p, u)
        require(index == right, f"u = {u}: sample drew token {index}, expected {right}; p = {p.round(3).tolist()}")


@check("2.6", "a draw inverts the cumulative sum", given=lambda v: {"case": draw_cases(v.max_side)})
def draws_invert(code: Any, case: Case) -> None:
    draws_agree(code("probes:drawn", case["p"], case["numbers"]), case["p"], case["numbers"])


@check("2.6", "a token of probability 0 is never drawn, at either end")
def draws_at_the_ends(code: Any) -> None:
    short = np.append(np.full(10, 0.1), [0.0, 0.0])  # adds up to a little less than 1
    draws_agree(code("probes:drawn", short, [1 - 2.0**-53]), short, [1 - 2.0**-53])
    ends = np.array([0.0, 0.25, 0.0, 0.75, 0.0])
    draws_agree(code("probes:drawn", ends, [0.0, 0.25, 0.2]), ends, [0.0, 0.25, 0.2])


@check("2.6", "draws are as frequent as they are probable")
def draw_frequencies(code: Any) -> None:
    p = np.array([0.1, 0.0, 0.6, 0.3])
    got = [code(SAMPLE, p, 5, row, step) for row in range(15) for step in range(20)]
    share = np.bincount(got, minlength=4) / len(got)
    require(len(share) == 4 and np.abs(share - p).max() < 0.1, f"shares of 300 draws {share.round(2)}, expected {p}")


# -- 2.7 freezing --------------------------------------------------------------------------------------------
def is_top(path: str, lowest: int) -> bool:
    first, second = path.split(".")[:2]
    return first in ("ln_f", "lm_head") or (first == "blocks" and int(second) >= lowest)


@st.composite
def models(draw: Draw, side: int) -> Case:
    layers = draw(st.sampled_from([1, 2, side, 12]))
    shape = {"vocab_size": 5, "n_positions": 4, "n_embd": 4, "n_head": 2, "n_layer": layers}
    return Case(
        fields=shape | {"tie_word_embeddings": draw(st.booleans())},
        llama=draw(st.booleans()),
        top_layers=draw(st.integers(0, layers)),
    )


def parameter_sizes(case: Case) -> dict[str, int]:
    """Path to size of every parameter of the model, counted by hand."""
    fields, llama = case["fields"], case["llama"]
    C, V = fields["n_embd"], fields["vocab_size"]
    linear = {f"attn.{name}_proj": (C, C) for name in "qkvo"}
    linear |= {"mlp.gate_proj": (4 * C, C)} if llama else {}
    linear |= {"mlp.up_proj": (4 * C, C), "mlp.down_proj": (C, 4 * C)}
    sizes = {"embed.tokens.weight": V * C} | ({} if llama else {"embed.positions.weight": fields["n_positions"] * C})
    norms = ["ln_f"]
    for i in range(fields["n_layer"]):
        for name, (out, inputs) in linear.items():
            sizes[f"blocks.{i}.{name}.weight"] = out * inputs
            sizes |= {} if llama else {f"blocks.{i}.{name}.bias": out}
        norms += [f"blocks.{i}.ln_1", f"blocks.{i}.ln_2"]
    sizes |= {f"{norm}.{part}": C for norm in norms for part in (("weight",) if llama else ("weight", "bias"))}
    return sizes | ({} if fields["tie_word_embeddings"] else {"lm_head.weight": V * C})


@check("2.7", "what trains: the top blocks, the final norm, a head of its own", examples=15,
       given=lambda v: {"case": models(v.max_side)})  # fmt: skip
def what_trains(code: Any, case: Case) -> None:
    got = code("probes:trained", case["fields"], case["llama"], case["top_layers"])
    lowest = case["fields"]["n_layer"] - case["top_layers"]
    expected = {path: size for path, size in parameter_sizes(case).items() if is_top(path, lowest)}
    kind = "tied" if case["fields"]["tie_word_embeddings"] else "untied"
    where = f"top_layers={case['top_layers']} of {case['fields']['n_layer']}, {kind} head"
    missing, extra = sorted(expected.keys() - got["chosen"].keys()), sorted(got["chosen"].keys() - expected.keys())
    require(
        not missing and not extra,
        f"{where}: {_few(missing)} should be chosen and is not, {_few(extra)} is chosen and should not be",
        because="Count the blocks from the top, and mind what lies outside of them.",
    )
    require(got["chosen"] == expected, f"{where}: the sizes are {got['chosen']}, expected {expected}")
    training = sorted(name.removesuffix(".default") for name in got["training"])
    require(training == sorted(expected), f"{where}: {_few(training)} train, expected {_few(sorted(expected))}")


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "nothing"


@check("2.7", "which parameters lie above a block")
def parameters_above(code: Any) -> None:
    paths = ["embed.tokens.weight", "embed.positions.weight", "ln_f.weight", "ln_f.bias", "lm_head.weight"]
    paths += [f"blocks.{i}.{name}" for i in (0, 1, 2, 9, 10, 11) for name in ("ln_1.bias", "attn.q_proj.weight")]
    for lowest in (0, 1, 2, 3, 10, 12):
        for path in paths:
            got = code(IS_ABOVE, path, lowest)
            require(
                isinstance(got, bool) and got == is_top(path, lowest),
                f"is_above({path!r}, {lowest}) is {got!r}, expected {is_top(path, lowest)}",
            )


@st.composite
def linear_cases(draw: Draw, side: int) -> Case:
    lead = tuple(draw(st.lists(st.integers(1, side), max_size=3)))
    width, out = draw(st.tuples(st.integers(1, side), st.integers(1, side)))
    biased = draw(st.booleans())
    needs = [draw(st.booleans()), draw(st.booleans()), biased and draw(st.booleans())]
    return Case(
        x=numbers(draw, *lead, width),
        w=numbers(draw, out, width),
        b=numbers(draw, out) if biased else None,
        g=numbers(draw, *lead, out),
        needs=needs if any(needs) else [True, False, False],
    )


def sums_over_rows(case: Case) -> list[np.ndarray]:
    """dx, dw and db, one row at a time."""
    x, w, g = case["x"], case["w"], case["g"]
    dx, dw, db = np.zeros(x.shape), np.zeros(w.shape), np.zeros(len(w))
    for row in np.ndindex(*x.shape[:-1]):
        dx[row] = sum(g[row][o] * w[o] for o in range(len(w)))
        dw += np.outer(g[row], x[row])
        db += g[row]
    return [dx, dw, db]


@check("2.7", "a linear layer: gradients for what trains, None for what is frozen",
       given=lambda v: {"case": linear_cases(v.max_side)})  # fmt: skip
def linear_rule(code: Any, case: Case) -> None:
    got = code("probes:linear_gradients", *(case[name] for name in ("x", "w", "b", "g", "needs")))
    require(len(got) == 3, f"backward gives {len(got)} gradients, expected 3: of x, weight and bias")
    for gradient, value, need, name in zip(got, sums_over_rows(case), case["needs"], ("x", "w", "b"), strict=True):
        if need:
            require(gradient is not None, f"needs={case['needs']}: the gradient of {name} is None, expected an array")
            close(gradient, value, f"the gradient of {name}, needs={case['needs']}")
        else:
            require(gradient is None, f"needs={case['needs']}: the gradient of {name} is an array, expected None")


@check("2.7", "the gradient passes through a frozen layer", examples=10,
       given=lambda v: {"case": linear_cases(v.max_side), "seed": st.integers(0, 99)})  # fmt: skip
def through_a_frozen_layer(code: Any, case: Case, seed: int) -> None:
    x, frozen = case["x"], case["w"]
    rng = np.random.default_rng(seed)
    above = rng.standard_normal((2, len(frozen))).round(2)
    g = rng.standard_normal((*x.shape[:-1], 2)).round(2)
    got = code("probes:two_layers", x, frozen, above, g)
    rows, back = x.reshape(-1, x.shape[-1]), g.reshape(-1, 2)
    close(got["above"], back.T @ (rows @ frozen.T), "the gradient of the layer above a frozen one")
    require(got["below"] is not None, "the layer below a frozen one got no gradient")
    close(got["below"], (back @ above @ frozen).T @ rows, "the gradient of the layer below a frozen one")
    require(got["frozen"] is None, "the frozen weight has a gradient")


@check("2.7", "float32 stays float32")
def linear_float32(code: Any) -> None:
    rng = np.random.default_rng(0)
    x, w, b, g = (rng.standard_normal(s).astype(np.float32) for s in ((2, 3, 4), (5, 4), (5,), (2, 3, 5)))
    for needs in ([True, True, True], [True, False, True]):
        for gradient, name in zip(code("probes:linear_gradients", x, w, b, g, needs), "xwb", strict=True):
            if gradient is not None:
                require(gradient.dtype == np.float32, f"the gradient of {name} is {gradient.dtype}, expected float32")
