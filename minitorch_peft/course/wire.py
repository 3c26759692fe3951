"""What passes between the grader and a student's process: plain data and arrays, never objects.

A frame is 4 bytes of header length, 8 bytes of frame length, a JSON header, and the arrays' bytes one after another.
Nothing is unpickled: whatever the other side sends, the worst that comes of it is a :class:`WireError`.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from typing import IO, Any

import numpy as np

HEAD = struct.Struct("<IQ")
KINDS = "biuf"
LARGEST = 1 << 26  # bytes of one frame, and of an array
LARGEST_HEADER = 1 << 22  # JSON takes many times its length in memory
DEEPEST = 50


class WireError(RuntimeError):
    """Bytes or values that the wire does not carry."""


def pack(value: Any, functions: list[Callable] | None = None) -> bytes:
    """One frame. Functions are kept in ``functions`` and sent as their number; without it they are refused."""
    arrays: list[np.ndarray] = []
    header = json.dumps(_tree(value, arrays, functions, 0)).encode()
    size = len(header) + sum(a.nbytes for a in arrays)
    if size > LARGEST:
        raise WireError(f"a value of {size:,} bytes; at most {LARGEST:,} are carried")
    if len(header) > LARGEST_HEADER:
        raise WireError(f"{len(header):,} bytes of lists, strings and numbers; at most {LARGEST_HEADER:,} are carried")
    return b"".join([HEAD.pack(len(header), size), header, *(a.tobytes(order="A") for a in arrays)])


def unpack(frame: bytes, header_size: int, call: Callable[[int, list], Any] | None = None) -> Any:
    """The value of a frame's body. Functions come back as ones that run ``call(number, arguments)``."""
    try:
        tree = json.loads(frame[:header_size])
        value, used = _value(tree, memoryview(frame), header_size, call, 0)
    except WireError:
        raise
    except Exception as error:  # bytes from a stranger: whatever they break, they are damaged
        raise WireError(f"a damaged frame: {type(error).__name__}") from None
    if used != len(frame):
        raise WireError("a damaged frame: bytes left over")
    return value


def send(stream: IO[bytes], value: Any, functions: list[Callable] | None = None) -> None:
    stream.write(pack(value, functions))
    stream.flush()


def receive(stream: IO[bytes], call: Callable[[int, list], Any] | None = None) -> Any:
    """The next frame's value. Raises EOFError where the other side has closed, WireError for what is no frame."""
    header_size, size = HEAD.unpack(_exactly(stream, HEAD.size))
    if size > LARGEST or header_size > min(size, LARGEST_HEADER):
        raise WireError(f"a damaged frame: it claims {size:,} bytes")
    return unpack(_exactly(stream, size), header_size, call)


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = stream.read(min(size - len(data), 1 << 20))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


def _tree(value: Any, arrays: list[np.ndarray], functions: list[Callable] | None, depth: int) -> Any:
    if depth > DEEPEST:
        raise WireError("a value nested too deeply")
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.generic) and value.dtype.kind in KINDS:
        return {"s": _described(np.asarray(value), arrays)}
    if type(value) is np.ndarray and value.dtype.kind in KINDS:
        return {"a": _described(value, arrays)}
    if isinstance(value, list | tuple | dict) and len(value) > LARGEST_HEADER // 2:
        raise WireError(f"{len(value):,} separate values; at most {LARGEST_HEADER // 2:,} are carried, or an array")
    if isinstance(value, list | tuple):
        return [_tree(v, arrays, functions, depth + 1) for v in value]
    if type(value) is dict and all(type(k) is str for k in value):
        return {"d": {k: _tree(v, arrays, functions, depth + 1) for k, v in value.items()}}
    if functions is not None and callable(value):
        functions.append(value)
        return {"f": len(functions) - 1}
    raise WireError(_refusal(value))


def _refusal(value: Any) -> str:
    if isinstance(value, np.ndarray) and value.dtype.kind in KINDS:
        return f"a {type(value).__module__}.{type(value).__name__}; expected a plain numpy.ndarray"
    kind = f"array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
    return f"an object of type {kind}; expected arrays, numbers, strings, None, lists, tuples or dicts"


def _described(array: np.ndarray, arrays: list[np.ndarray]) -> list[Any]:
    if array.nbytes > LARGEST:  # it may be a broadcast one, of a few bytes
        raise WireError(f"an array of {array.nbytes:,} bytes; at most {LARGEST:,} are carried")
    order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    arrays.append(np.ascontiguousarray(array) if order == "C" else array)
    return [array.dtype.str, list(array.shape), order]


def _value(
    tree: Any, frame: memoryview, at: int, call: Callable[[int, list], Any] | None, depth: int
) -> tuple[Any, int]:
    if depth > DEEPEST:
        raise WireError("a value nested too deeply")
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree, at
    if isinstance(tree, list):
        values = []
        for item in tree:
            value, at = _value(item, frame, at, call, depth + 1)
            values.append(value)
        return values, at
    ((kind, content),) = tree.items()
    if kind == "d":
        pairs = {}
        for key, item in content.items():
            pairs[key], at = _value(item, frame, at, call, depth + 1)
        return pairs, at
    if kind == "f":
        if call is None:
            raise WireError("a function, where none is expected")
        number = int(content)
        return (lambda *arguments: call(number, list(arguments))), at
    array, at = _array(content, frame, at)
    return (array if kind == "a" else array[()]), at


def _array(content: Any, frame: memoryview, at: int) -> tuple[np.ndarray, int]:
    name, shape, order = content
    dtype = np.dtype(str(name))
    if dtype.kind not in KINDS or not all(type(n) is int and n >= 0 for n in shape) or len(shape) > 32:
        raise ValueError
    if math.prod(max(n, 1) for n in shape) * dtype.itemsize > LARGEST:  # an empty one may have a huge axis
        raise ValueError
    stop = at + math.prod(shape) * dtype.itemsize
    if stop > len(frame):
        raise ValueError
    if dtype.kind == "b":  # every byte a proper truth value
        flat = np.frombuffer(frame[at:stop], np.uint8) != 0
    else:
        flat = np.frombuffer(frame[at:stop], dtype).copy()  # its own memory, and writable
    return flat.reshape(shape, order="F" if order == "F" else "C"), stop
