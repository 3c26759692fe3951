"""Lets the tests in this folder import ``benchmarks`` without leaving the clone, and its ``kernels``, on the path."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))
import benchmarks  # noqa: F401

sys.path.pop()
