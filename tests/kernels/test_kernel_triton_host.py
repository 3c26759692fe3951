"""The public functions of the Triton kernels as on a GPU, compiled, against the mock driver: launches and results.

The mock computes none of these kernels. It is strict about how they are loaded and launched, and keeps the account.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from mock_driver import Outcome, build

pytestmark = pytest.mark.slow
LOW = "_low_gradients _sum_parts _sum_parts "  # d(xa) and dB in one pass, then the sums of their parts
DA = "_a_gradients _sum_parts"
LAUNCHES = {
    "forward": "_down _product",
    "forward of a small rank": "_in_loop",
    "backward": f"{LOW} _product _product _column_sums _sum_parts {DA}",
    "dropout": "_down _product",
    "dropout backward": f"{LOW} _product _add_dropped {DA}",
    "stacked": "_down _product _product",
    "stacked backward": f"{LOW} {LOW} _product {DA} _sum_parts",
    "gathered": "_rows_to_rank _rows_product",
    "gathered backward": "_rows_to_rank _rows_product _sum_by_adapter _sum_by_adapter",
    "4-bit": "_forward",
    "4-bit, 2 rows": "_down _few_rows",
    "4-bit, 1 row": "_one_row",
    "4-bit backward": f"{LOW} _grad_x {DA}",
    "quantize": "_quantize",
    "dequantize": "dequantize",
}
SHAPES = {
    "forward": [(48, 64), (48, 20)],
    "backward": [(48, 128), (64, 128), (64,), (20, 128), (64, 20)],
    "dropout backward": [(48, 128), None, None, (20, 128), (64, 20)],
    "stacked backward": [(48, 128), [(20, 128)] * 2, [(64, 20)] * 2],
    "gathered backward": [(2, 24, 128), (2, 20, 128), (2, 64, 20)],
    "4-bit, 2 rows": [(2, 64), (2, 20)],
    "4-bit backward": [(48, 128), None, (20, 128), (64, 20)],
}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    mock = build(tmp_path_factory.mktemp("driver"))
    program = Path(__file__).with_name("triton_host_program.py")
    return Outcome(mock, mock / "log", "-P", program, MOCK_CAPABILITY="90")


def test_what_is_launched_is_what_the_design_says(outcome):
    """The forward pass reads x twice or once, backward reads the gradient once for d(xa) and dB, and so on; each call
    was made on NumPy arrays, then on device arrays (but for quantize)."""
    assert outcome.status == 0, outcome.errors
    made = [kernel for name, kernels in LAUNCHES.items() for kernel in kernels.split() * (1 + (name != "quantize"))]
    assert [launch["kernel"] for launch in outcome.launches] == made


@pytest.mark.parametrize("name", SHAPES)
def test_results_live_where_the_arguments_live(outcome, name):
    def kind(text: str, shapes: object) -> object:
        if isinstance(shapes, list):
            return [kind(text, shape) for shape in shapes]
        return shapes and f"{text} {shapes}"

    assert outcome.result[name] == kind("ndarray float32", SHAPES[name])
    assert outcome.result[f"{name}, bfloat16"] == kind("DeviceArray bfloat16", SHAPES[name])


def test_device_memory_is_given_back_but_for_the_table_of_pairs(outcome):
    assert outcome.memory["bytes_in_use"] == 256 * 8
