"""The floor that everything fast stands on: arrays in, arrays out, no Tensor and no graph.

Each family has a NumPy ``reference.py`` (the definition, any float dtype) and a ``numba.py`` (float32, same names and
signatures). ``get(name, dtype)`` chooses; importing this package loads neither Numba nor SciPy.
"""

from .dispatch import BACKENDS, FAMILIES, TABLE, get, use_backend

__all__ = ["BACKENDS", "FAMILIES", "TABLE", "get", "use_backend"]
