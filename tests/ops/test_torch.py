"""Every operation against its peer in torch: values and gradients in float64, over drawn arguments."""

from __future__ import annotations

import operator
from functools import reduce
from typing import Any

import numpy as np
import pytest
from hypothesis import reject

from minitorch_peft.ops.table import OPERATIONS, Operation
from minitorch_peft.testing import Case

from .drawing import as_list, assert_close, cotangent, drawn, each

PEERS = [row for row in OPERATIONS if row.torch is not None]


@pytest.fixture(scope="module")
def torch() -> Any:
    import torch

    torch.set_num_threads(1)
    return torch


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:reduction")  # torch explains kl_div's "mean"
@each(PEERS)
def test_values_and_gradients_are_those_of_torch(torch: Any, row: Operation) -> None:
    def check(case: Case) -> None:
        ours, theirs = case.tensors(), [torch.tensor(x, requires_grad=True) for x in case.inputs]
        got = as_list(case.call(row.function, ours if row.differentiable else case.inputs))
        wanted = as_list(peer_call(torch, case, theirs))
        assert [str(t.dtype) for t in got] == [str(t.dtype).removeprefix("torch.") for t in wanted]
        assert_close([t.data for t in got], [t.detach().numpy() for t in wanted], 1e-9, case)
        if row.differentiable:
            assert_close(our_gradients(case, ours), their_gradients(torch, wanted, theirs), 1e-8, case)

    drawn(row, check, examples=12)


def our_gradients(case: Case, tensors: list[Any]) -> list[np.ndarray]:
    y = case.output(*tensors)
    y.backward(gradient=cotangent(y.shape))
    return [t.grad for t in tensors]


def their_gradients(torch: Any, outputs: list[Any], inputs: list[Any]) -> list[np.ndarray]:
    outputs = [t for t in outputs if t.is_floating_point()]
    whole = outputs[0] if len(outputs) == 1 else torch.cat([t.reshape(-1) for t in outputs])
    whole.backward(torch.tensor(cotangent(tuple(whole.shape))))
    return [np.zeros(t.shape) if t.grad is None else t.grad.numpy() for t in inputs]


def peer_call(torch: Any, case: Case, inputs: list[Any]) -> Any:
    """torch's function on the same arguments; arrays among them become its tensors."""
    name = case.operation.torch
    module = {"torch": torch, "operator": operator}[name.split(".")[0]]
    function = reduce(getattr, name.split(".")[1:], module)
    adapt = ADAPTED.get(case.operation.name, lambda args, kwargs: (args, kwargs))

    def call(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = adapt(args, kwargs)
        args = tuple(convert(torch, x) for x in args)
        return function(*args, **{key: convert(torch, x) for key, x in kwargs.items()})

    return case.call(call, inputs)


def convert(torch: Any, x: Any) -> Any:
    if isinstance(x, tuple):
        return tuple(convert(torch, y) for y in x)
    return torch.tensor(np.ascontiguousarray(x).reshape(x.shape)) if isinstance(x, np.ndarray) else x


# -- where the two differ, and how the one is said in the other -----------------------------------------------
def explicit_mask(args: Any, kwargs: Any) -> Any:
    """torch takes either a mask or is_causal, aligns causality to the top left, and a row without keys is nan."""
    (q, k, _), mask = args, kwargs["attn_mask"]
    T, S = q.shape[-2], k.shape[-2]
    keep = np.tri(T, S, S - T if kwargs["is_causal"] else S, dtype=bool)
    if mask is not None:
        keep = keep & (mask if mask.dtype == bool else mask > -np.inf)
        if mask.dtype != bool:
            keep = np.where(keep, mask, -np.inf)
    seen = keep if keep.dtype == bool else keep > -np.inf
    if not seen.any(-1).all():
        reject()
    return args, {"attn_mask": keep, "enable_gqa": kwargs["enable_gqa"]}


def forward_slices(args: Any, kwargs: Any) -> Any:
    """torch has no negative steps."""
    _, index = args
    items = index if isinstance(index, tuple) else (index,)
    if any(isinstance(i, slice) and (i.step or 1) < 0 for i in items):
        reject()
    return args, kwargs


def whole_source(args: Any, kwargs: Any) -> Any:
    """torch differentiates scatter_add only where the index is as large as the source."""
    _, _, index, source = args
    if index.shape != tuple(source.shape):
        reject()
    return args, kwargs


ADAPTED = {"scaled_dot_product_attention": explicit_mask, "getitem": forward_slices, "scatter_add": whole_source}
