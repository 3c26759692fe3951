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


# -- peers, for the tests of parity --------------------------------------------------------------------------------
@pytest.fixture(scope="session", name="torch")
def _torch():
    import torch

    torch.set_num_threads(1)
    return torch


@pytest.fixture(scope="session", name="peft")
def _peft():
    import peft

    return peft


@pytest.fixture(scope="session")
def bases(torch, tmp_path_factory):
    """Family to the directory of a random model whose weights all matter."""
    import transformers
    from peft_cases import BASES

    found = {}
    for name, options in BASES.items():
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(**options, bos_token_id=None, eos_token_id=None)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        for n, p in model.named_parameters():
            norm = "ln" in n or "norm" in n
            torch.nn.init.normal_(p, 1.0 if norm and "bias" not in n else 0.0, 0.15)
        found[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(found[name])
    return found


@pytest.fixture
def load(bases):
    """Family to a new copy of transformers' model."""
    import transformers

    return lambda family: transformers.AutoModelForCausalLM.from_pretrained(bases[family]).eval()
