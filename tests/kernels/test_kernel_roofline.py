"""The roofline's arithmetic: counted bytes, bounds and times against figures worked out by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from minitorch_peft.kernels.device.peers import PEERS
from minitorch_peft.kernels.device.roofline import A100, H100, Launch, total
from minitorch_peft.kernels.device.traffic import OURS

WIDE = 4096
U = 2 * WIDE * WIDE  # bytes of a bfloat16 activation of 4096 x 4096, and of a weight


def of(counted, m=WIDE, n=WIDE, k=WIDE, r=16, gpu=H100):
    return total(counted(m, n, k, r), gpu)


def test_a_launch_takes_as_long_as_its_slowest_part():
    assert Launch(3.35e12).seconds(H100) == (1.0, "memory")
    assert Launch(3.35e12, flops=2 * 989.4e12).seconds(H100) == (2.0, "compute")
    assert Launch(0, 0, 3 * 132 * 4 * 32 * 1.755e9).seconds(H100) == (3.0, "issue")
    both = total([Launch(3.35e12, 989.4e11), Launch(0, 2 * 989.4e12)], H100)
    assert (both.seconds, both.bound, both.nbytes) == (3.0, "compute", 3.35e12)
    assert both.intensity == pytest.approx(2.1 * 989.4 / 3.35)


def test_dequantize_is_bound_by_memory_and_one_launch_saves_a_tenth_of_it():
    ours, theirs = of(OURS["dequantize_4bit"]), of(PEERS["dequantize_4bit"]["bitsandbytes"])
    assert ours.nbytes == WIDE * WIDE * (0.5 + 1 / 64 + 1 / 4096 + 2)
    assert ours.nbytes / 1e6 == pytest.approx(42.2, abs=0.05) and theirs.nbytes / 1e6 == pytest.approx(46.4, abs=0.05)
    assert (1e6 * ours.seconds, ours.bound) == (pytest.approx(12.6, abs=0.05), "memory")
    assert of(OURS["dequantize_4bit"], gpu=A100).seconds == pytest.approx(42.21e6 / 2.039e12, rel=1e-3)


@pytest.mark.parametrize(
    ("kernel", "way", "passes"),
    [
        ("lora_linear_forward", "peft", 9),
        ("lora_linear_forward", "unsloth", 5),
        ("lora_linear_forward", "LoRAFusion", 3),
        ("lora_linear_forward", None, 2),  # in one loop: the layer is narrow
        ("lora_linear_forward in two", None, 3.09),  # x A.T in five parts
        ("lora_linear_forward in one loop", None, 2),
        ("lora_linear_backward", "peft", 11),
        ("lora_linear_backward", "unsloth", 9),
        ("lora_linear_backward", "LoRAFusion", 4),
        ("lora_linear_backward", None, 4.75),  # with the parts of its sums, which are added in a fixed order
    ],
)
def test_passes_over_activations(kernel, way, passes):
    """But for the weight, read once, and what is of the rank's size."""
    counted = OURS[kernel] if way is None else PEERS[kernel][way]
    assert of(counted).nbytes / U - 1 == pytest.approx(passes, abs=0.06)


@pytest.mark.parametrize(
    ("m", "dense_then", "fused", "bound"),
    [(1, 23.9, 4.0, "issue"), (64, 24.2, 4.0, "issue"), (256, 25.1, 8.7, "compute"), (1024, 48.6, 34.7, "compute"),
     (4096, 152.8, 138.9, "compute")],
)  # fmt: skip
def test_what_decoding_in_the_product_can_gain(m, dense_then, fused, bound):
    """Microseconds on an H100: most where the weight is what there is to read, a tenth at training shapes."""
    ours, theirs = of(OURS["linear_4bit_forward"], m), of(PEERS["linear_4bit_forward"]["bitsandbytes"], m)
    assert 1e6 * theirs.seconds == pytest.approx(dense_then, rel=0.005)
    assert (1e6 * ours.seconds, ours.bound) == (pytest.approx(fused, rel=0.01), bound)


@pytest.mark.parametrize(("rank", "loop_is_faster"), [(8, True), (16, True), (32, False), (64, False)])
def test_where_the_loop_beats_a_pass_of_its_own(rank, loop_is_faster):
    loop, apart = (of(OURS[f"lora_linear_forward in {way}"], r=rank) for way in ("one loop", "two"))
    assert (loop.seconds < apart.seconds) == loop_is_faster
    assert of(OURS["lora_linear_forward"], r=rank).seconds == min(loop.seconds, apart.seconds)


@pytest.mark.parametrize("n", [256, 1024, 4096, 5120, 6144, 11008, 14336, 16384])
@pytest.mark.parametrize("k", [1024, 4096, 14336])
@pytest.mark.parametrize("rank", [4, 8, 16])
def test_the_faster_of_the_two_is_launched(n, k, rank):
    """But for a tenth of a pass over x, close to where they cross: the rule leaves out what is small."""
    launched, *both = (
        of(OURS[f"lora_linear_forward{way}"], n=n, k=k, r=rank) for way in ("", " in one loop", " in two")
    )
    over = launched.seconds - min(way.seconds for way in both)
    assert over <= 0.1 * 2 * WIDE * k / H100.bandwidth


@pytest.mark.parametrize("kernel", PEERS)
@pytest.mark.parametrize("shape", [(16, 576, 1536, 8), (1024, 4096, 14336, 64)])
def test_a_kernel_and_its_peers_do_the_same_products(kernel, shape):
    """Fusing saves traffic, not arithmetic: the operations agree but for what a peer computes twice."""
    ours = total(OURS.get(f"{kernel} in two", OURS[kernel])(*shape), H100)
    for name, counted in PEERS[kernel].items():
        theirs = total(counted(*shape), H100)
        again = 4 * shape[0] * shape[3] * max(shape[1:3]) * (name == "unsloth")
        assert ours.flops <= theirs.flops <= ours.flops + again
        assert ours.seconds < theirs.seconds or name == "LoRAFusion"


@pytest.mark.slow
def test_the_page_is_written(tmp_path):
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "benchmarks.roofline", "--results", tmp_path, "--rank", "8"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert "lora_linear_4bit_backward" in done.stdout and "H100 us" in done.stdout
    tables = json.loads((tmp_path / "roofline.json").read_text())
    (found,) = (
        dict(zip(tables["columns"], row, strict=True))
        for row in tables["Llama 3 8B"]
        if row[:5] == ["lora_linear_forward", 14336, 4096, 1024, 64]
    )
    ours = total(OURS["lora_linear_forward"](1024, 14336, 4096, 64), A100)
    assert (found["A100 us"], found["A100 bound"]) == (round(1e6 * ours.seconds, 2), "compute")
    assert set(found["H100 peers us"]) == {"peft", "unsloth", "LoRAFusion"}
    assert (tmp_path / "roofline.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_counts_are_of_the_kernels_as_they_are():
    """Tiles and parts of sums: in a process of its own, as Triton must not be in its interpreter's mode."""
    programs = Path(__file__).parent / "device_programs.py"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-P", programs, "sizes_of_the_kernels"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert {name: counted for name, (counted, real) in json.loads(done.stdout).items() if counted != real} == {}
