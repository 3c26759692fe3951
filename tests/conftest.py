"""Shared by all tests."""

import sys
from pathlib import Path

# `python -m pytest` puts the clone on the path, where its folder `kernels` would shadow the package of that
# name that transformers and bitsandbytes look for; ours is imported as minitorch_peft.kernels, installed.
ROOT = Path(__file__).resolve().parents[1]
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
