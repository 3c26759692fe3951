"""The checks of assignment A5. Expected values come from loops, complex steps, bisection, and the plain GPT."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.special
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minitorch_peft.autograd.tensor import Tensor, no_grad
from minitorch_peft.course.checks import Code, SolutionError, Variant, check
from minitorch_peft.course.expect import Failed, along, close, equal, require, vjp
from minitorch_peft.models import GPT, GPTConfig
from minitorch_peft.testing import Draw, arrays, shapes

GPT2 = {"vocab_size": 23, "n_positions": 24, "n_embd": 12, "n_layer": 2, "n_head": 3}
GROUPED = {
    "vocab_size": 23, "n_positions": 24, "n_embd": 16, "n_layer": 3, "n_head": 4, "num_key_value_heads": 2,
    "n_inner": 20,
}  # fmt: skip
FAMILIES: dict[bool, dict[str, Any]] = {False: GPT2, True: GROUPED}
BASE = "__base__"


def plain_model(llama: bool, seed: int) -> GPT:
    fields = FAMILIES[llama]
    return GPT(GPTConfig.llama(**fields) if llama else GPTConfig(**fields), seed=seed)


# -- 5.1 and 5.2 a bottleneck ------------------------------------------------------------------------------------------
def gelu_new(u: Any) -> Any:
    return u / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))


NON_LINEARITIES: dict[str, Any] = {
    "relu": lambda u: np.where(np.real(u) > 0, u, 0),
    "tanh": np.tanh,
    "swish": lambda u: u / (1 + np.exp(-u)),
    "gelu": lambda u: u / 2 * (1 + scipy.special.erf(u / math.sqrt(2))),
    "gelu_new": gelu_new,
    "identity": lambda u: u,
}
INPUTS = ("h", "z", "W_down", "b_down", "W_up", "b_up", "scale")


def narrow(case: dict[str, Any]) -> Any:
    return case["z"] @ case["W_down"].T + case["b_down"]


def bottlenecked(case: dict[str, Any]) -> Any:
    """y, channel by channel."""
    a = NON_LINEARITIES[case["f"]](narrow(case))
    C = len(case["W_up"])
    s = np.broadcast_to(case["s"] if case["scale"] is None else case["scale"], (C,))
    columns = [s[c] * (a @ case["W_up"][c] + case["b_up"][c]) for c in range(C)]
    change = np.stack(columns, axis=-1)
    if case["to_z"]:
        return case["z"] + change
    return change if case["h"] is None else case["h"] + change


@st.composite
def bottlenecks(draw: Draw, v: Variant) -> dict[str, Any]:
    """The inputs of a bottleneck: added to h, to z or to nothing; s a constant, learned, or one for each channel."""
    C, w = draw(st.integers(1, v.max_side)), draw(st.integers(1, v.max_side))
    shape = (*draw(shapes(1, 2, 1, v.max_side)), C)
    learned = draw(st.sampled_from([0, 1, C]))
    h = draw(st.none() | arrays(shape))
    return {
        "h": h,
        "to_z": h is None and draw(st.booleans()),
        "z": draw(arrays(shape)),
        "W_down": draw(arrays((w, C))),
        "b_down": draw(arrays((w,))),
        "W_up": draw(arrays((C, w))),
        "b_up": draw(arrays((C,))),
        "scale": draw(arrays((learned,))) if learned else None,
        "s": 1.0 if learned else draw(st.sampled_from([4.0, 1.0, 0.5])),
        "f": draw(st.sampled_from(list(NON_LINEARITIES))),
    }


def drawn_bottleneck(
    seed: int, f: str, lead: tuple[int, ...] = (2, 3), C: int = 5, w: int = 3, learned: bool = True
) -> dict[str, Any]:
    """One of a given size, in float64."""
    rng = np.random.default_rng(seed)
    sizes = {"h": (*lead, C), "z": (*lead, C), "W_down": (w, C), "b_down": (w,), "W_up": (C, w), "b_up": (C,)}
    case: dict[str, Any] = {name: rng.standard_normal(shape) for name, shape in sizes.items()}
    return case | {
        "scale": rng.standard_normal(C) if learned else None,
        "s": 1.0 if learned else 4.0,
        "f": f,
        "to_z": False,
    }


def in_float32(case: dict[str, Any]) -> dict[str, Any]:
    """The same, rounded to float32."""
    return {n: v.astype(np.float32) if isinstance(v, np.ndarray) else v for n, v in case.items()}


def in_float64(case: dict[str, Any]) -> dict[str, Any]:
    return {n: v.astype(np.float64) if isinstance(v, np.ndarray) else v for n, v in case.items()}


def run_forward(code: Code, case: dict[str, Any]) -> dict[str, Any]:
    return code("probes:forward", [case[name] for name in INPUTS], case["f"], case["s"], case["to_z"])


@check("5.1", "h and the scaled change, with every kind of s", given=lambda v: {"case": bottlenecks(v)}, examples=30)
def forward_values(code: Code, case: dict[str, Any]) -> None:
    y = run_forward(code, case)["y"]
    close(y, bottlenecked(case), "y", because=cause_of(y, case))


def cause_of(y: Any, case: dict[str, Any]) -> str | None:
    """Which mistake, if a common one, would give this y."""
    alone = bottlenecked({**case, "h": None, "to_z": False})
    start = bottlenecked(case) - alone
    unscaled = bottlenecked({**case, "scale": None, "s": 1.0})
    s = case["s"] if case["scale"] is None else case["scale"]
    mistakes = {
        "what the change is to be added to is missing": alone,
        "it is added twice": alone + 2 * start,
        "s multiplies the change alone, not what it is added to": alone + s * start,
        "s is missing": unscaled,
        "b_up belongs to the change, and is scaled with it": bottlenecked(case) + (1 - s) * case["b_up"],
        "f is missing": bottlenecked({**case, "f": "identity"}),
    }
    shaped = isinstance(y, np.ndarray) and y.shape == alone.shape
    return next((words for words, value in mistakes.items() if shaped and np.allclose(y, value)), None)


@check(
    "5.1", "the narrow u is kept as it was before the non-linearity", examples=15,
    given=lambda v: {"case": bottlenecks(v)},
)  # fmt: skip
def forward_kept(code: Code, case: dict[str, Any]) -> None:
    found = run_forward(code, case)
    u = narrow(case)
    require(isinstance(found["u"], np.ndarray) and found["u"].size == u.size, "u is not kept as an array (..., w)")
    close(found["u"].reshape(u.shape), u, "u, kept for the backward pass,", because="was f applied to it in place?")


@check("5.1", "no array that came in is changed")
def forward_inputs(code: Code, variant: Variant) -> None:
    case = drawn_bottleneck(variant.seed, "relu", learned=False)
    _, after = code.inplace("probes:forward", [case[name] for name in INPUTS], "relu", 4.0, False)
    for name, value in zip(INPUTS, after[0], strict=True):
        if case[name] is not None:
            equal(
                value, case[name], f"{name} after the pass", "an operation in place on what came in: y is a new array"
            )


@check("5.1", "float32 in, float32 out")
def forward_float32(code: Code, variant: Variant) -> None:
    for learned in (False, True):
        case = in_float32(drawn_bottleneck(variant.seed, "swish", learned=learned))
        expected = bottlenecked(in_float64(case)).astype(np.float32)
        close(run_forward(code, case)["y"], expected, "y", rtol=1e-5, atol=1e-5)


@check("5.1", "a sequential adapter reads the sub-layer's output, a parallel one its input")
def forward_place(code: Code, variant: Variant) -> None:
    rng = np.random.default_rng(variant.seed)
    y, x = rng.standard_normal((2, 1, 2, 3))
    because = "sequential: z is h, what the sub-layer gives; parallel: z is x, what the sub-layer is given"
    close(code("probes:reads", y, x, False), y, "what a sequential adapter reads", because=because)
    close(code("probes:reads", y, x, True), x, "what a parallel adapter reads", because=because)


NEEDS = st.lists(st.booleans(), min_size=5, max_size=5).map(lambda n: [*n, n[-1], n[-1]])
"""What is above f trains together: W_up, b_up and a learned s."""

GRADIENTS = ("dh", "dz", "dW_down", "db_down", "dW_up", "db_up", "ds")


def run_backward(code: Code, case: dict[str, Any], g: np.ndarray, needs: list[bool]) -> list[Any]:
    factor = np.full(1, case["s"], case["z"].dtype) if case["scale"] is None else case["scale"]
    u = narrow(case).astype(case["z"].dtype)
    saved = [case["z"] if needs[2] else None, u, case["W_down"], case["W_up"], case["b_up"], factor]
    got = code("probes:backward", g, saved, case["f"], case["scale"] is not None, case["to_z"], needs)
    require(isinstance(got, list) and len(got) == 7, f"seven results are due: {', '.join(GRADIENTS)}")
    return got


def hold_gradients(got: list[Any], case: dict[str, Any], g: np.ndarray, needs: list[bool], **how: Any) -> None:
    exact = in_float64(case)
    for value, need, name, label in zip(got, needs, INPUTS, GRADIENTS, strict=True):
        if not need:
            require(value is None, f"{label} is not needed, but it is not None")
            continue

        def f(x: Any, name: str = name) -> Any:
            return bottlenecked({**exact, name: x})

        close(value, vjp(f, exact[name], g.astype(np.float64)).astype(case["z"].dtype), label, **how)


def needed(case: dict[str, Any], needs: list[bool]) -> list[bool]:
    """What can be needed: an h or a scale that is not there has no gradient."""
    return [need and case[name] is not None for need, name in zip(needs, INPUTS, strict=True)]


@check(
    "5.2", "the gradients of all inputs", examples=25,
    given=lambda v: {"case": bottlenecks(v), "data": st.integers(0, 9999)},
)  # fmt: skip
def backward_gradients(code: Code, case: dict[str, Any], data: int) -> None:
    g = np.random.default_rng(data).standard_normal(case["z"].shape)
    needs = needed(case, [True] * 7)
    hold_gradients(run_backward(code, case, g, needs), case, g, needs)


@check(
    "5.2", "None where no gradient is needed, the right one elsewhere", examples=20,
    given=lambda v: {"case": bottlenecks(v), "needs": NEEDS, "data": st.integers(0, 9999)},
)  # fmt: skip
def backward_needs(code: Code, case: dict[str, Any], needs: list[bool], data: int) -> None:
    g = np.random.default_rng(data).standard_normal(case["z"].shape)
    needs = needed(case, needs)
    hold_gradients(run_backward(code, case, g, needs), case, g, needs)


@check("5.2", "a large example, in one pass")
def backward_large(code: Code, variant: Variant) -> None:
    case = drawn_bottleneck(variant.seed, "swish", (2, 60), 96, 24)
    g = np.random.default_rng(variant.seed + 1).standard_normal(case["z"].shape)
    got = run_backward(code, case, g, [True] * 7)
    for value, name, label in zip(got, INPUTS, GRADIENTS, strict=True):

        def f(x: Any, name: str = name) -> Any:
            return bottlenecked({**case, name: x})

        along(value, f, case[name], g, f"{label} for z of shape {case['z'].shape}", variant.seed)


@check("5.2", "float32 in, float32 out")
def backward_float32(code: Code, variant: Variant) -> None:
    for learned in (False, True):
        case = in_float32(drawn_bottleneck(variant.seed, "gelu", learned=learned))
        g = np.random.default_rng(variant.seed + 1).standard_normal(case["z"].shape).astype(np.float32)
        needs = needed(case, [True] * 7)
        hold_gradients(run_backward(code, case, g, needs), case, g, needs, rtol=2e-5, atol=2e-5)


# -- 5.3 a prompt ------------------------------------------------------------------------------------------------------
@st.composite
def prompts(draw: Draw, v: Variant) -> dict[str, Any]:
    B, T, C = (draw(st.integers(1, v.max_side)) for _ in range(3))
    k = draw(st.integers(1, v.max_side))
    return {"x": draw(arrays((B, T, C))), "prompt": draw(arrays((k, C))), "g": draw(arrays((B, k + T, C)))}


def placed(x: np.ndarray, *before: np.ndarray) -> np.ndarray:
    """[P_1; P_2; ...; x], row by row."""
    return np.stack([np.concatenate([*before, row]) for row in x])


@check(
    "5.3", "the prompt before the vectors of every row, and its gradient", examples=20,
    given=lambda v: {"case": prompts(v)},
)  # fmt: skip
def prompt_before(code: Code, case: dict[str, Any]) -> None:
    x, prompt, g = case["x"], case["prompt"], case["g"]
    found = code("probes:prompt_gradients", x, prompt, g)
    close(found["y"], placed(x, prompt), "[P; x]")
    k, what = len(prompt), "the gradient of the prompt"
    require(found["prompt"] is not None, "no gradient reaches the prompt", "a copy, or an array in a Tensor's place")
    close(found["prompt"], sum(row[:k] for row in g), what, because="one prompt serves all rows: a sum over the batch")
    require(found["x"] is not None, "no gradient reaches the vectors of the input")
    close(found["x"], g[:, k:], "the gradient of the vectors")


@check("5.3", "only in a pass that announces prompts, and only where the adapter acts")
def prompt_passes(code: Code, variant: Variant) -> None:
    rng = np.random.default_rng(variant.seed)
    x, P, Q = rng.standard_normal((2, 3, 4)), rng.standard_normal((2, 4)), rng.standard_normal((1, 4))
    run = "probes:prompted"
    close(code(run, x, [P], [True], None, 2), placed(x, P), "the first pass")
    because = "in a later pass the cache holds the prompt already: prompt_length is 0"
    close(code(run, x, [P], [True], None, 0), x, "a later pass (prompt_length 0)", because=because)
    close(code(run, x, [P], [False], None, 2), x, "a pass of an adapter that does not act", because="whose rows?")
    close(code(run, x, [P, Q], [True, True], None, 3), placed(x, P, Q), "two prompts, the first one innermost")
    close(code(run, x, [P, Q], [True, False], None, 2), placed(x, P), "two prompts, of which the inner one acts")


@check("5.3", "each row its own prompt, placed once")
def prompt_rows(code: Code, variant: Variant) -> None:
    rng = np.random.default_rng(variant.seed)
    x, P, Q = rng.standard_normal((4, 2, 3)), rng.standard_normal((1, 3)), rng.standard_normal((3, 3))
    names = ["a1", BASE, "a0", "a1"]
    rows = [np.array([n == name for n in names]) for name in ("a0", "a1")]
    got = code("probes:prompted", x, [P, Q], rows, names, 3)
    own = {"a0": np.concatenate([np.zeros((2, 3)), P]), "a1": Q, BASE: np.zeros((3, 3))}
    expected = np.stack([np.concatenate([own[name], row]) for name, row in zip(names, x, strict=True)])
    close(got, expected, "rows that run under a1, none, a0, a1", because="does a layer look at prompts_placed?")


@check("5.3", "a model reads the same in several passes as in one")
def prompt_in_model(code: Code, variant: Variant) -> None:
    rng = np.random.default_rng(variant.seed)
    for llama in (False, True):
        seed, C = variant.seed % 1000, FAMILIES[llama]["n_embd"]
        prompt, ids = rng.standard_normal((3, C)).astype(np.float32), rng.integers(0, 23, (2, 7))
        model = plain_model(llama, seed)
        with no_grad():
            vectors = model.embed.tokens(ids).data
            whole = model(inputs_embeds=Tensor(placed(vectors, prompt))).logits.data[:, 3:]
        parts = [ids[:, :4], ids[:, 4:5], ids[:, 5:]]
        got = code("probes:prompted_model", FAMILIES[llama], llama, seed, prompt, parts)
        for number, (logits, expected) in enumerate(zip(got, np.split(whole, [4, 5], axis=1), strict=True)):
            close(logits, expected, f"the logits of pass {number + 1}", rtol=1e-4, atol=1e-4)


# -- 5.4 a prefix's table ----------------------------------------------------------------------------------------------
def sizes(llama: bool) -> tuple[int, int, int]:
    """Layers, heads of keys and values, channels of a head."""
    f = FAMILIES[llama]
    return f["n_layer"], f.get("num_key_value_heads", f["n_head"]), f["n_embd"] // f["n_head"]


def split_up(table: np.ndarray, llama: bool) -> list[list[np.ndarray]]:
    """[key, value] of each layer, number by number."""
    L, H, D = sizes(llama)
    pairs = [[np.zeros((H, len(table), D), table.dtype) for _ in range(2)] for _ in range(L)]
    for row, numbers in enumerate(table):
        column = 0
        for layer in range(L):
            for part in range(2):
                for head in range(H):
                    for d in range(D):
                        pairs[layer][part][head, row, d] = numbers[column]
                        column += 1
    return pairs


@st.composite
def tables(draw: Draw, v: Variant) -> dict[str, Any]:
    """A table whose numbers are all different, for one of two families."""
    llama, k = draw(st.booleans()), draw(st.integers(1, v.max_side + 1))
    L, H, D = sizes(llama)
    width = 2 * L * H * D
    rng = np.random.default_rng(draw(st.integers(0, 9999)))
    return {"llama": llama, "table": rng.permutation(k * width).reshape(k, width).astype(np.float64)}


def hold_pairs(got: Any, expected: list[list[np.ndarray]], what: str, **how: Any) -> None:
    require(isinstance(got, list) and len(got) == len(expected), f"a pair for each of {len(expected)} layers is due")
    for layer, (pair, wanted) in enumerate(zip(got, expected, strict=True)):
        require(len(pair) == 2, f"layer {layer}: a key and a value are due")
        for value, want, part in zip(pair, wanted, ("keys", "values"), strict=True):
            close(value, want, f"the {part} of layer {layer} {what}".rstrip(), **how)


@check(
    "5.4", "keys and values of every layer, (kv_heads, k, head_dim)", examples=15,
    given=lambda v: {"case": tables(v)},
)  # fmt: skip
def prefix_layout(code: Code, case: dict[str, Any]) -> None:
    found = code("probes:prefix", FAMILIES[case["llama"]], case["llama"], case["table"])
    L, H, D = sizes(case["llama"])
    because = f"row by row, the columns count layers ({L}), key and value, heads ({H}), channels ({D}), in this order"
    hold_pairs(found["pairs"], split_up(case["table"], case["llama"]), "", because=because)


@check("5.4", "every number of the table gets the gradient of the one place where it went")
def prefix_gradient(code: Code, variant: Variant) -> None:
    rng = np.random.default_rng(variant.seed)
    for llama in (False, True):
        L, H, D = sizes(llama)
        weights = rng.standard_normal((3, 2 * L * H * D))
        table = rng.standard_normal(weights.shape)
        found = code("probes:prefix", FAMILIES[llama], llama, table, split_up(weights, llama))
        require(found["gradient"] is not None, "no gradient reaches the table", "a copy instead of views of the tensor")
        close(found["gradient"], weights, "the table's gradient")


@check("5.4", "a table that a network makes")
def prefix_projected(code: Code, variant: Variant) -> None:
    for llama in (False, True):
        found = code("probes:projected_prefix", FAMILIES[llama], llama, 3, 5, variant.seed % 1000)
        E, W_1, b_1, W_2, b_2 = found["parameters"]
        table = np.tanh(E @ W_1.T + b_1) @ W_2.T + b_2
        hold_pairs(found["pairs"], split_up(table, llama), "", because="`table` is what the encoder makes; E is not it")


# -- 5.5 the cache -----------------------------------------------------------------------------------------------------
@st.composite
def prefixes(draw: Draw, v: Variant) -> dict[str, Any]:
    """Adapters [name, pairs, prompt_length, active], what they are in line, and a batch."""
    L, H, D = (draw(st.integers(1, v.max_side)) for _ in range(3))
    seed, number = draw(st.integers(0, 9999)), draw(st.integers(1, 3))
    rng = np.random.default_rng(seed)
    adapters: list[list[Any]] = []
    for i in range(number):
        k = draw(st.integers(1, v.max_side))
        adapters.append([f"a{i}", rng.standard_normal((L, 2, H, k, D)), 0, draw(st.booleans()) or i == 0])
    adapters.insert(draw(st.integers(0, number)), ["prompt", None, draw(st.integers(1, 3)), draw(st.booleans())])
    return {
        "adapters": adapters,
        "batch": draw(st.integers(1, v.max_side)),
        "length": draw(st.integers(1, v.max_side)),
        "own_cache": draw(st.booleans()),
    }


def sent(adapters: list[list[Any]]) -> list[list[Any]]:
    """As the wire carries them: lists of arrays."""
    return [[name, None if p is None else [list(pair) for pair in p], k, on] for name, p, k, on in adapters]


def in_line(case: dict[str, Any], added: int) -> tuple[list[list[np.ndarray]], int]:
    """What the cache should hold after ``added`` tokens of sevens, and the number of prefix keys."""
    acting = [pairs for _, pairs, _, on in case["adapters"] if on and pairs is not None]
    whole = np.concatenate(acting, axis=3)
    L, _, H, k, D = whole.shape
    held = np.full((case["batch"], L, 2, H, k + added, D), 7.0)
    held[..., :k, :] = whole
    return [[held[:, layer, part] for part in range(2)] for layer in range(L)], k


@check(
    "5.5", "a first pass: the prefix in every layer and row, and positions go on after it", examples=25,
    given=lambda v: {"case": prefixes(v)},
)  # fmt: skip
def cache_starts(code: Code, case: dict[str, Any]) -> None:
    hold_passes(code, case, 1)


@check(
    "5.5", "later passes find it in the cache: nothing is added twice", examples=25,
    given=lambda v: {"case": prefixes(v)},
)  # fmt: skip
def cache_goes_on(code: Code, case: dict[str, Any]) -> None:
    hold_passes(code, case, 3)


def hold_passes(code: Code, case: dict[str, Any], passes: int) -> None:
    T = case["length"]
    found = code("probes:started", sent(case["adapters"]), case["batch"], T, None, case["own_cache"], passes)
    prompt = sum(length for _, _, length, on in case["adapters"] if on)
    for number, state in enumerate(found):
        expected, k = in_line(case, number * T)
        what = f"before pass {number + 1}"
        require(state is not None, f"there is no cache {what}; the prefix has to be in one")
        equal(state["layers"], list(range(len(expected))), f"the layers in the cache {what}")
        because = "the caller's own cache has to be filled: another object helps nobody" if case["own_cache"] else None
        require(state["pairs"] != [], f"the cache is empty {what}", because)
        hold_pairs(state["pairs"], expected, what)
        equal(state["next"], k + number * T, f"next_position {what}", "the text's positions go on after the prefix")
        equal(state["real"], None, f"`real` {what} (no row is filled up)")
        announced = prompt if number == 0 else 0
        equal(state["prompt"], announced, f"prompt_length {what}", "prompts are announced in a first pass only")
    require(len(found) == passes, "the cache was lost on the way")


@check("5.5", "without a prefix nothing is made")
def cache_not_started(code: Code, variant: Variant) -> None:
    rng = np.random.default_rng(variant.seed)
    off = ["a", rng.standard_normal((2, 2, 1, 3, 2)), 0, False]
    for adapters in ([off], [["p", None, 2, True]], []):
        plain = code("probes:started", sent(adapters), 2, 3, None, False)
        require(plain == [None], "a cache was made although no adapter that acts has a prefix")
        (own,) = code("probes:started", sent(adapters), 2, 3, None, True)
        require(own["layers"] == [] and own["next"] == 0, "keys or positions appeared without a prefix")
        equal(own["prompt"], sum(k for _, _, k, on in adapters if on), "prompt_length")


@check("5.5", "each row its own prefix; what fills a row up is not real")
def cache_rows(code: Code, variant: Variant) -> None:
    rng = np.random.default_rng(variant.seed)
    L, H, D = 2, 2, 3
    short, long = (rng.standard_normal((L, 2, H, k, D)) for k in (1, 3))
    names = ["a1", BASE, "a0"]
    adapters = [["a0", short, 0, True], ["a1", long, 0, True]]
    whole = np.zeros((3, L, 2, H, 3, D))
    whole[0], whole[2, ..., 2:, :] = long, short
    for own_cache in (False, True):
        (state,) = code("probes:started", sent(adapters), 3, 2, names, own_cache)
        require(state is not None, "there is no cache")
        expected = [[whole[:, layer, part] for part in range(2)] for layer in range(L)]
        hold_pairs(state["pairs"], expected, "for rows under a1, none, a0")
        real = np.array([[True] * 3, [False] * 3, [False, False, True]])
        require(isinstance(state["real"], np.ndarray), "`real` of the cache is not set, though some rows are filled up")
        equal(state["real"], real, "`real`")
        equal(state["next"], 3, "next_position")


@check("5.5", "one prefix serves all rows: its gradient is a sum over them")
def cache_gradient(code: Code, variant: Variant) -> None:
    rng = np.random.default_rng(variant.seed)
    L, H, k, D, B = 2, 2, 3, 2, 4
    pairs, weights = rng.standard_normal((L, 2, H, k, D)), rng.standard_normal((L, 2, B, H, k, D))
    got = code("probes:prefix_gradients", [list(p) for p in pairs], B, [list(w) for w in weights])
    for layer, grads in enumerate(got):
        for value, w, part in zip(grads, weights[layer], ("keys", "values"), strict=True):
            require(value is not None, f"no gradient reaches the {part} of layer {layer}", "a copy of the numbers")
            close(value, sum(w), f"the gradient of the {part} of layer {layer}")


@check("5.5", "a prefix of a text's own keys and values is as good as the text")
def cache_of_words(code: Code, variant: Variant) -> None:
    rng = np.random.default_rng(variant.seed)
    for llama in (False, True):
        seed, model = variant.seed % 1000, plain_model(llama, variant.seed % 1000)
        words, ids = rng.integers(0, 23, (1, 4)), rng.integers(0, 23, (2, 6))
        with no_grad():
            held = model(words, use_cache=True).past_key_values
            assert held is not None
            pairs = [[t.data[0] for t in held.entries[layer]] for layer in range(model.config.n_layer)]
            whole = model(np.concatenate([np.repeat(words, 2, axis=0), ids], axis=1)).logits.data[:, 4:]
        parts = [ids[:, :3], ids[:, 3:4], ids[:, 4:]]
        got = code("probes:prefixed_model", FAMILIES[llama], llama, seed, pairs, parts)
        for number, (logits, expected) in enumerate(zip(got, np.split(whole, [3, 4], axis=1), strict=True)):
            close(logits, expected, f"the logits of pass {number + 1}", rtol=1e-4, atol=1e-4)


# -- 5.6 BitFit --------------------------------------------------------------------------------------------------------
BIASED: dict[str, tuple[bool, dict[str, Any]]] = {
    "gpt2": (False, {**GPT2, "n_embd": 16, "n_head": 4, "num_key_value_heads": 2}),
    "llama with biases": (True, {**GROUPED, "attention_bias": True, "mlp_bias": True}),
}


def sizes_of_biases(family: str) -> dict[str, int]:
    """Path to size of every bias, listed by hand."""
    llama, f = BIASED[family]
    C = f["n_embd"]
    inner, kv = f.get("n_inner", 4 * C), f["num_key_value_heads"] * (C // f["n_head"])
    block = {"attn.q_proj": C, "attn.k_proj": kv, "attn.v_proj": kv, "attn.o_proj": C}
    block |= {"mlp.up_proj": inner, "mlp.down_proj": C} | (
        {"mlp.gate_proj": inner} if llama else {"ln_1": C, "ln_2": C}
    )
    found = {f"blocks.{i}.{name}.bias": size for i in range(f["n_layer"]) for name, size in block.items()}
    return found | ({} if llama else {"ln_f.bias": C})


@st.composite
def bias_choices(draw: Draw, v: Variant) -> dict[str, Any]:
    """A family, settings, and the biases that they choose."""
    family = draw(st.sampled_from(list(BIASED)))
    everything = sizes_of_biases(family)
    kinds = sorted({path.split(".")[-2] for path in everything})
    settings: dict[str, Any] = {}
    chosen = everything
    if pattern := draw(st.sampled_from([None, "blocks.0.**", "mlp.**", "blocks.1.*.q_proj.*"])):
        settings["target_parameters"] = [pattern]
        part = {"blocks.0.**": "blocks.0.", "mlp.**": ".mlp.", "blocks.1.*.q_proj.*": "blocks.1.attn.q_proj."}[pattern]
        chosen = {path: size for path, size in chosen.items() if part in path}
    elif draw(st.booleans()):
        names = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=3, unique=True))
        settings["target_parameters"] = [f"{name}.bias" for name in names]
        chosen = {path: size for path, size in chosen.items() if path.split(".")[-2] in names}
    if draw(st.booleans()):
        there = sorted({path.split(".")[-2] for path in chosen})
        settings["bias_kinds"] = draw(st.lists(st.sampled_from(there), min_size=1, max_size=3, unique=True))
        chosen = {path: size for path, size in chosen.items() if path.split(".")[-2] in settings["bias_kinds"]}
    return {"family": family, "settings": settings, "chosen": chosen}


@check(
    "5.6", "all biases, or some kinds of them, with their sizes, and their count", examples=25,
    given=lambda v: {"case": bias_choices(v)},
)  # fmt: skip
def bitfit_chosen(code: Code, case: dict[str, Any]) -> None:
    llama, fields = BIASED[case["family"]]
    hold_biases(code("probes:biases", fields, llama, case["settings"]), case["chosen"], case["settings"])


def hold_biases(found: dict[str, Any], chosen: dict[str, int], settings: dict[str, Any]) -> None:
    targets = found["targets"]
    require(isinstance(targets, dict), "the targets are not a dict")
    missing, more = sorted(chosen.keys() - targets.keys()), sorted(targets.keys() - chosen.keys())
    require(not missing, f"{', '.join(missing[:3])} should be chosen for {settings}")
    require(not more, f"{', '.join(more[:3])} should not be chosen for {settings}")
    equal({path: int(size) for path, size in targets.items()}, chosen, "the sizes of the chosen biases")
    count = found["count"]
    whole = isinstance(count, int | np.integer) and not isinstance(count, bool)
    require(whole, f"the count is {count!r}: a whole number is due")
    require(int(count) == sum(chosen.values()), f"the count is {count}; expected {sum(chosen.values())} for {settings}")


@check("5.6", "the base's biases only, whatever is attached to it")
def bitfit_beside(code: Code) -> None:
    for family, (llama, fields) in BIASED.items():
        hold_biases(code("probes:biases", fields, llama, {}, True), sizes_of_biases(family), {})


@check("5.6", "a model without biases is refused, and so is a kind that is not there")
def bitfit_refused(code: Code) -> None:
    for llama, fields, settings in ((True, GROUPED, {}), (False, GPT2, {"bias_kinds": ["gate_proj"]})):
        try:
            found = code("probes:biases", fields, llama, settings)
        except SolutionError as error:
            require(error.message.startswith("ValueError"), f"a ValueError is due, not {error.message}")
            continue
        raise Failed(f"{', '.join(list(found['targets'])[:3])} chosen for {settings}; there is no such bias")


# -- 5.7 the gate ------------------------------------------------------------------------------------------------------
ENDS = ((-1.5, 1.5), (-0.1, 1.1), (-0.5, 2.0))


def levels(shape: Any) -> st.SearchStrategy[np.ndarray]:
    """Numbers from about certainly closed to about certainly open."""
    return hnp.arrays(np.float64, shape, elements=st.integers(-8000, 8000).map(lambda n: n / 1000))


@st.composite
def gate_cases(draw: Draw, v: Variant) -> dict[str, Any]:
    shape = draw(shapes(1, 2, 1, v.max_side))
    alpha, noise, g = (draw(levels(shape)) for _ in range(3))
    return {"alpha": alpha, "noise": draw(st.sampled_from([0.0, noise])), "g": g, "ends": draw(st.sampled_from(ENDS))}


def gate_of(alpha: float, noise: float, left: float, right: float) -> float:
    """z of one number."""
    s = float(scipy.special.expit(alpha + noise))
    return min(1.0, max(0.0, s * (right - left) + left))


def gates_of(alpha: np.ndarray, noise: Any, left: float, right: float) -> np.ndarray:
    spread = np.broadcast_to(noise, alpha.shape)
    return np.array([gate_of(a, e, left, right) for a, e in zip(alpha.flat, spread.flat, strict=True)]).reshape(
        alpha.shape
    )


@check("5.7", "z: stretched, then held between 0 and 1", given=lambda v: {"case": gate_cases(v)}, examples=25)
def gate_values(code: Code, case: dict[str, Any]) -> None:
    left, right = case["ends"]
    got = code("probes:gate", case["alpha"], case["noise"], left, right)
    close(got, gates_of(case["alpha"], case["noise"], left, right), f"z for l = {left}, r = {right}")


@check("5.7", "exactly 0 and exactly 1 at the ends, also far out; float32 stays float32")
def gate_ends(code: Code, variant: Variant) -> None:
    for left, right in ENDS:
        for dtype in (np.float64, np.float32):
            alpha = np.array([-1000.0, -50.0, -9.0, 9.0, 50.0, 1000.0], dtype)
            expected = np.array([0, 0, 0, 1, 1, 1], dtype)
            equal(
                code("probes:gate", alpha, np.zeros(6, dtype), left, right), expected, f"z for l = {left}, r = {right}"
            )


@check("5.7", "the gradient of alpha, of which z alone is left", given=lambda v: {"case": gate_cases(v)}, examples=25)
def gate_gradient(code: Code, case: dict[str, Any]) -> None:
    (left, right), alpha, g = case["ends"], case["alpha"], case["g"]
    z = gates_of(alpha, case["noise"], left, right)
    slope = np.zeros(alpha.shape)
    for i in np.ndindex(alpha.shape):
        if 0 < z[i] < 1:
            point = alpha[i] + np.broadcast_to(case["noise"], alpha.shape)[i] + 1e-30j
            slope[i] = np.imag((right - left) / (1 + np.exp(-point))) / 1e-30
    got = code("probes:gate_backward", g, z, left, right)
    close(got, g * slope, f"dalpha for z = {z.round(3).tolist()}, l = {left}, r = {right}", rtol=1e-6, atol=1e-8)


@check("5.7", "no gradient where the gate is held at an end, and float32 stays float32")
def gate_held(code: Code, variant: Variant) -> None:
    for left, right in ENDS:
        for dtype in (np.float64, np.float32):
            z, g = np.array([0, 1, 0.5, 1, 0], dtype), np.array([3, -2, 1, 5, -4], dtype)
            s = (0.5 - left) / (right - left)
            expected = np.array([0, 0, (right - left) * s * (1 - s), 0, 0], dtype)
            got = code("probes:gate_backward", g, z, left, right)
            close(got, expected, f"dalpha for l = {left}, r = {right}", rtol=1e-6)


@check(
    "5.7", "the probability that a gate is open", examples=15,
    given=lambda v: {"alpha": levels(shapes(1, 2, 1, v.max_side)), "ends": st.sampled_from(ENDS)},
)  # fmt: skip
def gate_open(code: Code, alpha: np.ndarray, ends: tuple[float, float]) -> None:
    left, right = ends
    found = code("probes:open_probability", alpha, left, right)
    expected = np.array([open_share(a, left, right) for a in alpha.flat]).reshape(alpha.shape)
    because = "P(z > 0) = P(s > s₀): which s₀ is stretched to 0, and which ε gives it?"
    close(found["value"], expected, f"P(z > 0) for l = {left}, r = {right}", rtol=1e-7, atol=1e-9, because=because)
    require(found["trains"] is True, "P(z > 0) is no longer connected to alpha: the penalty could not train it")


def open_share(alpha: float, left: float, right: float) -> float:
    """The share of u in (0, 1) for which z > 0: the largest u with z = 0, by bisection."""
    low, high = -100.0, 100.0  # of ε = log u - log (1 - u)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if gate_of(alpha, middle, left, right) == 0 else (low, middle)
    return float(scipy.special.expit(-high))


# -- 5.8 a prefix, without one -----------------------------------------------------------------------------------------
ATTENTION: dict[str, Any] = {
    "vocab_size": 5, "n_positions": 12, "n_embd": 12, "n_layer": 1, "n_head": 4, "num_key_value_heads": 2,
    "initializer_range": 0.7,
}  # fmt: skip


def prefixed_attention(x: np.ndarray, keys: Any, values: Any, mask: np.ndarray | None, seed: int) -> Any:
    """Attention over [P; K], query by query and head by head, with the weights of the model of this seed."""
    attn = GPT(GPTConfig(**ATTENTION), seed=seed).astype(np.dtype(np.float64)).blocks[0].attn
    weights = {n: getattr(attn, n) for n in ("q_proj", "k_proj", "v_proj", "o_proj")}
    q, k, v = (x @ weights[n].weight.data.T + weights[n].bias.data for n in ("q_proj", "k_proj", "v_proj"))
    B, T, C = x.shape
    H, kv, D = 4, 2, 3
    y = np.zeros((B, T, C), np.result_type(keys, values, x))
    for b in range(B):
        for t in range(T):
            for head in range(H):
                shared = head * kv // H
                columns = slice(shared * D, (shared + 1) * D)
                seen = [s for s in range(t + 1) if mask is None or mask[b, s]]
                K = np.concatenate([keys[shared], k[b, seen][:, columns]])
                V = np.concatenate([values[shared], v[b, seen][:, columns]])
                scores = K @ q[b, t, head * D : (head + 1) * D] / math.sqrt(D)
                weight = np.exp(scores - np.max(np.real(scores)))
                y[b, t, head * D : (head + 1) * D] = weight @ V / weight.sum()
    return y @ weights["o_proj"].weight.data.T + weights["o_proj"].bias.data


def gated_case(seed: int, size: float = 1.0, B: int = 2, T: int = 4, k: int = 3) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "x": size * rng.standard_normal((B, T, 12)), "keys": rng.standard_normal((2, k, 3)),
        "values": rng.standard_normal((2, k, 3)), "g": rng.standard_normal((B, T, 12)), "seed": seed % 1000,
    }  # fmt: skip


def run_gated(code: Code, case: dict[str, Any], mask: Any = None, g: Any = None) -> dict[str, Any]:
    pair = [case["keys"], case["values"]]
    return code("probes:gated", ATTENTION, case["seed"], pair, case["x"], mask, g)


def wanted(case: dict[str, Any], mask: Any = None) -> np.ndarray:
    return prefixed_attention(case["x"], case["keys"], case["values"], mask, case["seed"])


@check("5.8", "the gated change gives what attention to the prefix would give")
def gated_values(code: Code, variant: Variant) -> None:
    for number, (B, T, k) in enumerate([(1, 1, 1), (2, 4, 3), (1, 5, 1), (2, 2, 6)]):
        case = gated_case(variant.seed + number, B=B, T=T, k=k)
        close(run_gated(code, case)["y"], wanted(case), f"the output for T = {T}, k = {k}")


@check("5.8", "where keys are masked")
def gated_masked(code: Code, variant: Variant) -> None:
    case = gated_case(variant.seed)
    mask = np.array([[0, 0, 1, 1], [1, 1, 1, 1]])
    got, expected = run_gated(code, case, mask)["y"], wanted(case, mask)
    real = mask.astype(bool)
    close(got[real], expected[real], "the output of the positions that are not padding")


@check("5.8", "large scores: no overflow")
def gated_large(code: Code, variant: Variant) -> None:
    for size in (100.0, 3000.0):
        case = gated_case(variant.seed, size)
        close(run_gated(code, case)["y"], wanted(case), f"the output for x of size {size:g}", rtol=1e-6)


@check("5.8", "float32 in, float32 out")
def gated_float32(code: Code, variant: Variant) -> None:
    case = gated_case(variant.seed)
    narrow_case = in_float32(case)
    expected = wanted(in_float64(narrow_case)).astype(np.float32)
    close(run_gated(code, narrow_case)["y"], expected, "the output", rtol=1e-4, atol=1e-4)


@check("5.8", "keys and values get the gradients that they would get as a prefix")
def gated_gradients(code: Code, variant: Variant) -> None:
    case = gated_case(variant.seed, T=3, k=2)
    found = run_gated(code, case, None, case["g"])
    for name in ("keys", "values"):

        def f(array: Any, name: str = name) -> Any:
            return wanted({**case, name: array})

        require(found[name] is not None, f"no gradient reaches the {name}")
        close(found[name], vjp(f, case[name], case["g"]), f"the gradient of the {name}", rtol=1e-6, atol=1e-8)
