"""What the graph keeps between forward and backward: what was saved, and of that nothing that can be made again."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from typing import Any

import numpy as np
import pytest

import minitorch_peft as mp
import minitorch_peft.functional as F
from minitorch_peft.autograd.function import Function, set_debug
from minitorch_peft.autograd.profiler import profile
from minitorch_peft.models import GPT, GPTConfig
from minitorch_peft.ops import activation, normalization


def normal(*shape: int, requires_grad: bool = True, dtype: str = "float32") -> mp.Tensor:
    x = np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)
    return mp.tensor(x, requires_grad=requires_grad)


def test_an_output_that_nobody_saved_goes_at_once():
    x = normal(3)
    y = x + 1.0
    gone = weakref.ref(y.data)
    z = y + y
    del y
    assert gone() is None
    z.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [2, 2, 2]


CHEAP = {
    "silu": (activation.Silu, F.silu),
    "gelu": (activation.Gelu, F.gelu),
    "gelu_tanh": (activation.GeluTanh, lambda x: F.gelu(x, "tanh")),
    "swiglu": (activation.Swiglu, lambda x: F.swiglu(x, x * 2.0)),
    "layer_norm": (normalization.LayerNorm, lambda x: F.layer_norm(x, (6,), W6, B6)),
    "rms_norm": (normalization.RmsNorm, lambda x: F.rms_norm(x, (6,), W6)),
}
W6, B6 = normal(6), normal(7, requires_grad=False)[1:]


def test_every_operation_that_makes_its_output_again_is_tried_here():
    def below(cls: type[Function]) -> list[type[Function]]:
        return [c for sub in cls.__subclasses__() for c in (sub, *below(sub))]

    ours = {c for c in below(Function) if c.again is not Function.again and c.__module__.startswith("minitorch_peft.")}
    assert ours == {cls for cls, _ in CHEAP.values()}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CHEAP)
def test_what_is_made_again_has_the_bits_of_what_was_dropped(name, dtype, monkeypatch):
    cls, function = CHEAP[name]
    gradients = []
    for again in (cls.again, Function.again):
        monkeypatch.setattr(cls, "again", staticmethod(again))
        W6.grad = None
        x, w = normal(5, 6, dtype=dtype), normal(4, 6, dtype=dtype)
        h = function(x)
        dropped = weakref.ref(h.data)
        y = F.linear(h, w)
        del h
        assert (dropped() is None) == (again is not Function.again)
        y.sum().backward()
        gradients.append([t.grad.tobytes() for t in (x, w)])
    assert gradients[0] == gradients[1]


def test_it_is_made_once_for_all_who_saved_it_and_goes_with_them():
    x, weights = normal(5, 6), [normal(4, 6) for _ in range(3)]
    h = F.silu(x)
    y = F.linear(h, weights[0]) + F.linear(h, weights[1]) + F.linear(h, weights[2])
    output = h.output
    del h
    with profile() as p:
        y.sum().backward()
    assert p.calls["Silu", "again"] == 1
    gone = weakref.ref(output.remade)
    del output, y
    assert gone() is None


def test_one_after_the_other():
    """What makes an output again may itself have to be made again."""
    x, w = normal(5, 6), normal(4, 6)
    with profile() as p:
        F.linear(F.silu(F.layer_norm(x, (6,))), w).sum().backward()
    assert p.calls["Silu", "again"] == p.calls["LayerNorm", "again"] == 1
    inputs = normal(5, 6, dtype="float64"), normal(4, 6, dtype="float64")
    mp.gradcheck(lambda x, w: F.linear(F.silu(F.layer_norm(x, (6,))), w), inputs)


@pytest.mark.parametrize("changed", ["input", "output"])
def test_a_change_in_place_is_still_noticed(changed):
    x, w = normal(5, 6) + 0.0, normal(4, 6)
    h = F.silu(x)
    y = F.linear(h, w).sum()
    with mp.no_grad():
        (x if changed == "input" else h).mul_(2.0)
    with pytest.raises(RuntimeError, match="changed in place"):
        y.backward()


def test_debugging_notices_another_output(monkeypatch):
    monkeypatch.setattr(activation.Silu, "again", staticmethod(lambda ctx: ctx.saved[0] * 2))
    set_debug(True)
    try:
        y = F.linear(F.silu(normal(5, 6)), normal(4, 6)).sum()
        with pytest.raises(mp.autograd.function.ContractError, match="written to since"):
            y.backward()
    finally:
        set_debug(False)


def test_without_a_gradient_for_its_input_an_output_is_kept():
    """A frozen layer below: there is no node that could make it again."""
    x, w = normal(5, 6, requires_grad=False), normal(4, 6)
    F.linear(F.silu(x), w).sum().backward()
    assert w.grad is not None


def live_bytes(layers: int, **options: Any) -> int:
    """What a forward pass leaves behind for backward, in NumPy's arrays."""
    shape = {"vocab_size": 17, "n_positions": 32, "n_embd": 64, "n_head": 2, **options}
    model = GPT(GPTConfig(n_layer=layers, **shape))
    ids = np.arange(8 * 32).reshape(8, 32) % 17
    model(ids, labels=ids).loss.backward()
    gc.collect()
    tracemalloc.start()
    try:
        out = model(ids, labels=ids)
        gc.collect()
        return tracemalloc.get_traced_memory()[0] + 0 * len(out.logits)
    finally:
        tracemalloc.stop()


LLAMA = {"norm": "rms", "position_embedding": "rotary", "gated_mlp": True, "activation_function": "silu",
         "mlp_bias": False, "attention_bias": False}  # fmt: skip


@pytest.mark.parametrize(("options", "arrays"), [({}, 10), (LLAMA, 18)], ids=["gpt2", "llama"])
def test_a_block_keeps_so_many_arrays_of_its_width(options, arrays):
    """x, q, k, v, attention's output, x, and up (four times as wide): neither a norm's output, nor GELU's, nor what o
    and down give. Llama's gate and the product of gate and up are four times as wide, too."""
    width = 8 * 32 * 64 * 4
    per_block = (live_bytes(6, **options) - live_bytes(2, **options)) / 4 / width
    assert arrays <= per_block < arrays + 0.7
