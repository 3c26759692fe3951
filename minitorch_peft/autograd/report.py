"""GradcheckError, and the few lines that reproduce it in a REPL."""

from __future__ import annotations

from typing import Any

import numpy as np

from minitorch_peft.autograd.diagnose import Cause
from minitorch_peft.autograd.difference import Failure
from minitorch_peft.autograd.locate import Call, Elements

INLINE = 64  # arrays of at most this many elements are printed


class GradcheckError(RuntimeError):
    """A gradient is wrong, or cannot be checked.

    ``operation`` names the Function to blame (None: fn as a whole), ``input_index`` the positional input of
    it whose gradient is wrong, ``name`` the input or parameter of fn where that was seen, ``element`` an
    index tuple, ``analytic`` and ``numeric`` the two values there (for ``cotangent``), ``cause`` a code such
    as "factor", "sign", "zero", "transposed". ``arrays`` and ``constants`` are what the operation was given.
    None: not known.
    """

    def __init__(
        self,
        message: str,
        *,
        cause: str,
        operation: str | None = None,
        input_index: int | None = None,
        name: str | None = None,
        element: tuple[int, ...] | None = None,
        analytic: float | None = None,
        numeric: float | None = None,
        arrays: tuple[np.ndarray | None, ...] = (),
        constants: dict[str, Any] | None = None,
        cotangent: np.ndarray | None = None,
    ) -> None:
        super().__init__(message)
        self.operation, self.input_index, self.name, self.element = operation, input_index, name, element
        self.analytic, self.numeric, self.cause = analytic, numeric, cause
        self.arrays, self.constants, self.cotangent = arrays, constants or {}, cotangent


def wrong_gradient(
    problem: Any, call: Call | None, name: str | None, failure: Failure, elements: Elements, cause: Cause
) -> GradcheckError:
    """All that is known about a failure of ``problem`` (an operation's ``call``, or fn itself)."""
    x = problem.arrays[failure.which]
    index = failure.which if call is None else call.positions[failure.which]
    element = analytic = numeric = None
    if x.size:
        worst = elements.worst()
        at = int(np.flatnonzero(elements.flat == worst)[0])
        element = tuple(int(i) for i in np.unravel_index(worst, x.shape))
        numeric = float(elements.numeric[at])
        if failure.verdict != "shape" or np.shape(failure.gradient) == x.shape:
            analytic = float(elements.analytic[at])
    lines = [_headline(problem, call, name, failure, cause)]
    if element is not None:
        sampled = "" if elements.complete else " sampled"
        wrong = f"{elements.wrong.sum()} of {len(elements.flat)}{sampled} are wrong"
        shown = "none" if analytic is None else f"{analytic:.8g}"
        lines.append(f"  element {element}: analytic {shown}, numeric {numeric:.8g} ({wrong})")
    lines.append(f"  likely cause: {cause.text}")
    if call is not None:
        lines += ["  to reproduce:", *("    " + line for line in snippet(call, index, failure.u, element))]
    return GradcheckError(
        "\n".join(lines),
        cause=cause.code,
        operation=None if call is None else call.operation,
        input_index=index,
        name=name,
        element=element,
        analytic=analytic,
        numeric=numeric,
        arrays=tuple(problem.arrays) if call is None else tuple(call.inputs),
        constants=None if call is None else call.constants,
        cotangent=failure.u,
    )


def _headline(problem: Any, call: Call | None, name: str | None, failure: Failure, cause: Cause) -> str:
    form = f"{'x'.join(map(str, problem.arrays[failure.which].shape)) or '0-d'}"
    state = "cannot be checked here" if cause.code in ("kink", "unsettled") else "is wrong"
    if call is None:
        return f"the gradient of {problem.names[failure.which]} ({form}) {state}"
    seen = "" if name in (None, problem.names[failure.which]) else f" (seen in the gradient of {name})"
    return f"{call.operation}.backward: the gradient of {problem.names[failure.which]} ({form}) {state}{seen}"


def snippet(call: Call, index: int, u: np.ndarray, element: tuple[int, ...] | None) -> list[str]:
    """Lines for a REPL that show the wrong value; large arrays are taken from the error itself."""
    lines = ["import numpy as np, minitorch_peft as mp"]
    function = call.function
    if "<locals>" in function.__qualname__ or function.__module__ == "__main__":
        lines.append(f"# {function.__qualname__} is the one of {function.__module__}")
    else:
        lines.append(f"from {function.__module__} import {function.__qualname__.split('.')[0]}")
    constants = {k: _literal(v, f"error.constants[{k!r}]") for k, v in call.constants.items()}
    inputs = [_literal(a, f"error.arrays[{i}]") for i, a in enumerate(call.inputs)]
    gradient = _literal(u, "error.cotangent")
    if any("error." in text for text in (*constants.values(), *inputs, gradient)):
        lines.append("import sys; error = sys.last_value  # the GradcheckError, for what is too large to print")
    arguments = []
    for i, (text, need) in enumerate(zip(inputs, call.needs, strict=True)):
        if need:
            lines.append(f"x{i} = mp.tensor({text}, requires_grad=True)")
        arguments.append(f"x{i}" if need else text)
    arguments += [f"{k}={v}" for k, v in constants.items()]
    name = function.__name__ if "<locals>" in function.__qualname__ else function.__qualname__
    lines.append(f"y = {name}.apply({', '.join(arguments)})")
    lines.append(f"y.backward(gradient={gradient})")
    lines.append(f"x{index}.grad  # see {list(element)}" if element else f"x{index}.grad")
    return lines


def _literal(value: Any, otherwise: str) -> str:
    """An expression for ``value``, or ``otherwise``."""
    if isinstance(value, np.ndarray):
        if value.size > INLINE or not np.isfinite(value).all():
            return otherwise
        body = f"np.array({value.tolist()}, dtype=np.{value.dtype.name})"
        if value.dtype in (np.float64, np.int64, np.bool_) and value.size:
            body = f"np.array({value.tolist()})"
        return body if value.size or value.ndim == 1 else f"np.zeros({value.shape}, dtype=np.{value.dtype.name})"
    if isinstance(value, tuple):
        parts = [_literal(v, otherwise) for v in value]
        return otherwise if otherwise in parts else f"({', '.join(parts)}{',' * (len(parts) == 1)})"
    if isinstance(value, np.dtype):
        return f"np.dtype({value.name!r})"
    simple = value is None or value is Ellipsis or isinstance(value, bool | int | float | str | slice)
    return repr(value) if simple else otherwise
