"""Lets the tests in this folder import ``peft_cases`` and ``toy_methods``; models this small need one thread."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    import numba
    from threadpoolctl import threadpool_limits

    before = numba.get_num_threads()
    numba.set_num_threads(1)
    with threadpool_limits(1, "blas"):
        yield
    numba.set_num_threads(before)
