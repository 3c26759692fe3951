"""The table of FLOPs against the products that NumPy does in the reference kernels, operation by operation."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path

import numpy as np
import pytest
from minitorch_peft.kernels.layout import rows_of

import minitorch_peft.functional as F
from minitorch_peft import kernels
from minitorch_peft.analysis.ledger import flops as table
from minitorch_peft.analysis.ledger.flops import flops
from minitorch_peft.analysis.ledger.trace import prepared
from minitorch_peft.autograd.function import Context, Function
from minitorch_peft.autograd.profiler import metered
from minitorch_peft.autograd.tensor import Tensor
from minitorch_peft.models import GPT, GPTConfig
from minitorch_peft.nn import ForwardContext
from minitorch_peft.peft import METHODS
from minitorch_peft.quant import quantize_model

sys.path.insert(0, str(Path(__file__).parent))

from counting import Counting, counting

SHAPE = {"vocab_size": 29, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4}
FAMILIES = {"gpt2": GPTConfig(**SHAPE), "llama": GPTConfig.llama(**SHAPE, num_key_value_heads=2, n_inner=40)}
WASTEFUL = {
    "LoraDropout",
    "LoraGathered",
}  # their references run LoRA layers on weights of zeros, and the base beside them


def taped(run):
    """(node, inputs, constants) of every operation that ``run()`` put into a graph, and the meter's call of each."""
    Context.tape = []
    try:
        with metered() as meter:
            run()
        tape = Context.tape
    finally:
        Context.tape = None
    calls = [call for call in meter.calls if any(call.needs)]
    assert [node.name for node, _, _ in tape] == [call.name for call in calls]
    return zip(tape, calls, strict=True)


def check(tape):
    """Every operation costs as many FLOPs of products as NumPy does for it; the names of those that have any."""
    seen = set()
    for (node, inputs, constants), call in tape:
        if node.name in WASTEFUL or (node.name == "Attention" and not any(call.needs[:2])):
            continue  # (attention's kernel makes no dP where only V asks for a gradient, its reference does)
        ctx = Context(node.name, node.needs_input_grad)
        counted = []
        Counting.flops = 0
        y = node.function.forward(ctx, *(None if t is None else counting(t.data) for t in inputs), **constants)
        counted.append(Counting.flops)
        Counting.flops = 0
        ctx.saved = tuple(counting(a) for a in ctx.saved)
        node.function.backward(ctx, counting(np.ones_like(np.asarray(y))))
        counted.append(Counting.flops)
        call.backward = True
        said = [f.products for f in flops(call)]
        assert said == pytest.approx(counted, rel=0.02), f"{call}: the table says {said}, NumPy did {counted}"
        if any(counted):
            seen.add(node.name)
    return seen


@pytest.fixture(autouse=True)
def plain_rows(monkeypatch):
    """``rows_of`` makes a copy that does not count: a reshape does. In the references only, which all are here first:
    a module that is imported in the meantime would keep what it finds."""
    for found in pkgutil.walk_packages(kernels.__path__, "minitorch_peft.kernels."):
        if found.name.endswith(".reference"):
            module = importlib.import_module(found.name)
            if getattr(module, "rows_of", None) is rows_of:
                monkeypatch.setattr(module, "rows_of", lambda x: x.reshape(-1, x.shape[-1]))


CASES = [
    pytest.param(config, "llama" if i and method.name != "bitfit" else "gpt2",
                 id=f"{method.name}-{i}", marks=pytest.mark.slow if i else ())
    for method in METHODS.values() for i, config in enumerate(method.examples)
]  # fmt: skip


@pytest.mark.parametrize("config, family", CASES)
def test_products_are_those_that_numpy_does(config, family):
    base = GPT(FAMILIES[family]).astype(np.float64).train()
    ids = np.random.default_rng(0).integers(0, SHAPE["vocab_size"], (3, 10))
    with prepared(base, config, seed=0) as model:
        assert check(taped(lambda: model(ids, labels=ids, context=ForwardContext())))


def test_products_with_weights_in_four_bits():
    model = quantize_model(GPT(FAMILIES["gpt2"])).astype(np.float64).train()
    ids = np.arange(20).reshape(2, 10)
    with prepared(model, METHODS["lora"].examples[0], seed=0) as lora:
        seen = check(taped(lambda: lora(ids, labels=ids, context=ForwardContext())))
    assert {"Linear4bit", "LoraLinear4bit"} <= seen


def test_rows_under_adapters_of_their_own_cost_what_rows_under_one_cost():
    lora, ids = METHODS["lora"].examples[0], np.arange(20).reshape(2, 10)
    costs = []
    for rows in ({"adapter_names": ["a", "b"]}, {}):
        with prepared(GPT(FAMILIES["gpt2"]), {"a": lora, "b": lora} if rows else lora, seed=0) as p, metered() as meter:
            p(ids, labels=ids, **rows).loss.backward()
        costs.append(sum(f.products + b.products for f, b in map(flops, meter.calls)))
    assert costs[0] == costs[1]


def test_products_of_single_operations():
    def leaf(*shape):
        return Tensor(np.random.default_rng(0).standard_normal(shape), requires_grad=True)

    def run():
        F.matmul(leaf(2, 3, 4), leaf(2, 4, 5))
        F.matmul(leaf(3, 4), Tensor(np.ones((4, 5))))
        F.einsum("bij,jk->bik", leaf(2, 3, 4), leaf(4, 5))
        F.lstm_layer(leaf(2, 5, 3), leaf(16, 3), leaf(16, 4), leaf(16), leaf(16))
        F.linear(leaf(3, 4), Tensor(np.ones((5, 4))))

    assert check(taped(run)) == {"MatMul", "Einsum", "LSTM", "Linear"}


def test_every_operation_of_a_method_is_in_the_table():
    """One that is not would be counted as one operation an element, whatever it multiplies."""

    def below(cls):
        return {c for sub in cls.__subclasses__() for c in (sub, *below(sub))}

    known = table.PRODUCTS.keys() | table.MOVES | table.PER_ELEMENT.keys()
    missing = {c.__name__ for c in below(Function) if c.__module__.startswith("minitorch_peft.peft")} - known
    assert not missing, f"add to PRODUCTS, PER_ELEMENT or MOVES in analysis/ledger/flops.py: {sorted(missing)}"
