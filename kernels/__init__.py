"""The floor that everything fast stands on: arrays in, arrays out, no Tensor and no graph.

Each family has a NumPy ``reference.py`` (the definition, any float dtype) and a ``numba.py`` (float32, same names and
signatures). ``get(name, dtype)`` chooses; importing this package loads neither Numba nor SciPy.
"""

from .dispatch import BACKENDS, FAMILIES, TABLE, get, use_backend

if __name__ != "minitorch_peft.kernels":  # else machine code would be cached under a name that others lack
    raise ImportError(f"this folder is the package minitorch_peft.kernels; it was imported as {__name__!r}")

__all__ = ["BACKENDS", "FAMILIES", "TABLE", "get", "use_backend"]
