"""The one place where Triton is imported: a family's ``triton.py`` says ``from ..device.triton import tl, triton``.

Raises NotInstalledError (an ImportError) where Triton is missing, too old to run without torch, or has no wheels (it is
for Linux).
"""

from __future__ import annotations

from ..dispatch import NotInstalledError

NEEDS = "the Triton kernels need triton >= 3.8 (Linux): pip install 'minitorch-peft[gpu]'"

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise NotInstalledError(f"{NEEDS}; {error}") from error

if tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 8):
    raise NotInstalledError(f"{NEEDS}; {triton.__version__} is installed, which imports torch to launch a kernel")

__all__ = ["tl", "triton"]
