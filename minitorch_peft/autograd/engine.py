"""Reverse-mode differentiation: walk the graph backwards once, in topological order."""

from __future__ import annotations

from typing import Any

import numpy as np

from minitorch_peft.autograd import profiler
from minitorch_peft.autograd.function import ARRAY, Context, ContractError, Node, checksum
from minitorch_peft.autograd.tensor import Tensor


def backward(root: Tensor, gradient: Tensor | np.ndarray | None = None) -> None:
    """Accumulate the gradient of ``root`` (weighted by ``gradient``) into ``.grad`` of every leaf."""
    if not root.requires_grad:
        raise RuntimeError("backward() on a tensor that does not require a gradient: nothing it came from does")
    # BEGIN SOLUTION(task="1.7a")
    gradients = {id(root): _initial_gradient(root, gradient)}
    summed: set[int] = set()  # tensors whose gradient is a sum made here, which may be added to in place
    order = topological_order(root)
    while order:  # popping lets each activation go as soon as its gradient has passed
        tensor = order.pop()
        g = gradients.pop(id(tensor), None)
        node = tensor.grad_fn
        if g is None:
            continue
        if node is None:
            tensor.grad = g if tensor.grad is None else np.asarray(tensor.grad + g)  # 0-d sums are no arrays
            continue
        for t, gi in zip(node.inputs, _input_gradients(node, g), strict=True):
            if t is None or gi is None:
                continue
            key = id(t)
            if key not in gradients:
                gradients[key] = gi
            elif key in summed:
                gradients[key] += gi
            else:
                gradients[key] = np.asarray(gradients[key] + gi)
                summed.add(key)
        node.release()
    # END SOLUTION


def topological_order(root: Tensor) -> list[Tensor]:
    """Every tensor that requires a gradient, each after all that it was computed from (no recursion)."""
    # BEGIN SOLUTION(task="1.7b")
    order: list[Tensor] = []
    seen: set[int] = set()
    stack: list[tuple[Tensor, bool]] = [(root, False)]
    while stack:
        tensor, inputs_done = stack.pop()
        if inputs_done:
            order.append(tensor)
        elif id(tensor) not in seen:
            seen.add(id(tensor))
            stack.append((tensor, True))
            if tensor.grad_fn is not None:
                _check_alive(tensor.grad_fn)
                stack.extend((t, False) for t in tensor.grad_fn.inputs if t is not None)
    return order
    # END SOLUTION


def _check_alive(node: Node) -> None:
    if node.function is None:
        raise RuntimeError(
            f"backward() a second time through {node.name}: what it had saved was freed by the first backward. "
            "Compute the forward pass again."
        )


def _initial_gradient(root: Tensor, gradient: Tensor | np.ndarray | None) -> np.ndarray:
    if gradient is None:
        if root.data.size != 1:
            raise RuntimeError(f"backward() on shape {root.shape} needs gradient=, an array of the same shape")
        return np.ones_like(root.data)
    g = gradient.data if isinstance(gradient, Tensor) else np.asarray(gradient)
    if g.shape != root.shape:
        raise ValueError(f"backward(gradient=...) has shape {g.shape}, the tensor has {root.shape}")
    return g.astype(root.dtype)


def _input_gradients(node: Node, g: np.ndarray) -> tuple[Any, ...]:
    """Run one backward rule and hold it to its contract: a gradient has its input's shape and dtype."""
    if profiler.meter is not None:
        profiler.meter.begin_backward()
    node.restore()
    node.check_unchanged()
    saved = node.saved
    result = _run_rule(node, g)
    if len(result) != len(node.inputs):
        raise ContractError(
            node.name, "count", f"backward returned {len(result)} gradient(s) for {len(node.inputs)} input(s)"
        )
    gradients: list[Any] = []
    for i, (t, gi) in enumerate(zip(node.inputs, result, strict=True)):
        if t is None or gi is None:
            gradients.append(None)
            continue
        if not isinstance(gi, ARRAY) or gi.shape != t.shape or gi.dtype != t.dtype:
            got = f"{gi.dtype} {gi.shape}" if isinstance(gi, ARRAY) else type(gi).__name__
            raise ContractError(
                node.name, "shape", f"backward: gradient {i} is {got}, its input is {t.dtype} {t.shape}", i
            )
        # a leaf keeps its gradient: it must not share memory with another gradient or with what was saved
        gi = np.asarray(gi)
        gradients.append(_own(gi, g, saved, gradients) if t.is_leaf else gi)
    if profiler.meter is not None:
        profiler.meter.backward(node, (g, *gradients))
    return tuple(gradients)


def _run_rule(node: Node, g: np.ndarray) -> tuple[Any, ...]:
    assert node.function is not None
    before = checksum(g) if Context.debug else None
    with profiler.record(node.name, "backward"):
        try:
            result = node.function.backward(node, g)
        except Exception as error:
            error.add_note(f"in the backward rule of {node.name}, for a gradient {g.dtype} {g.shape}")
            raise
    if before is not None:
        if checksum(g) != before:
            raise ContractError(node.name, "mutates-gradient", "backward wrote to the gradient that it was given")
        node.check_unchanged()
    return result if isinstance(result, tuple) else (result,)


def _own(gi: np.ndarray, g: np.ndarray, saved: tuple[Any, ...], earlier: list[Any]) -> np.ndarray:
    shared = gi is g or gi.base is not None or any(gi is a for a in saved) or any(gi is a for a in earlier)
    return np.array(gi) if shared else gi
