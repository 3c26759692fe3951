"""Lets the tests in this folder, and the processes that they start, import ``training_cases``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
