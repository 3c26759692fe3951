"""Real processes, really killed: SIGKILL at any moment, Ctrl-C, SIGTERM, and disks that take no more."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minitorch_peft.training.checkpoint import CheckpointFolder, read_checkpoint

CHILD = Path(__file__).with_name("child.py")
HALF_WRITTEN = ".step-*.tmp"


def start(out: Path, steps: int, *options: str, kernels: str | None = "reference") -> subprocess.Popen:
    environment = {**os.environ, **({"MINITORCH_KERNELS": kernels} if kernels else {})}
    return subprocess.Popen(
        [sys.executable, "-P", str(CHILD), str(out), "--steps", str(steps), *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def run(out: Path, steps: int, *options: str, kernels: str | None = "reference") -> subprocess.CompletedProcess:
    child = start(out, steps, *options, kernels=kernels)
    stdout, stderr = child.communicate(timeout=300)
    return subprocess.CompletedProcess(child.args, child.returncode, stdout, stderr)


def finish(out: Path, steps: int, kernels: str | None = "reference") -> None:
    done = run(out, steps, kernels=kernels)
    assert done.returncode == 0 and "done" in done.stdout, done.stderr


def outcome(out: Path, steps: int) -> dict:
    """Everything that a run leaves, but for the time that it took."""
    last = read_checkpoint(CheckpointFolder(out, 2).at(steps))
    state = {k: v for k, v in last.info["state"].items() if k != "seconds"}
    log = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {
        "arrays": {name: (a.dtype, a.shape, a.tobytes()) for name, a in last.arrays.items()},
        "state": state,
        "log": [{k: v for k, v in line.items() if k != "seconds"} for line in log],
        "files": sorted(p.name for p in out.iterdir()),
    }


def wait_for(child: subprocess.Popen, line: str) -> None:
    assert child.stdout is not None
    for found in child.stdout:
        if found.strip() == line:
            return
    raise AssertionError(f"the process ended before {line!r}: {child.stderr.read() if child.stderr else ''}")


def kill_at_random(out: Path, steps: int, kills: int, rng: random.Random, kernels: str | None = "reference") -> int:
    """Start, let at least one step pass, kill after a random while; again and again. Returns the kills made."""
    made = 0
    while made < kills:
        child = start(out, steps, kernels=kernels)
        assert child.stdout is not None
        if not child.stdout.readline().startswith("step"):
            child.wait()
            break  # the run was finished
        time.sleep(rng.uniform(0, 0.12))
        child.kill()
        child.communicate()
        made += child.returncode == -signal.SIGKILL
        if child.returncode == 0:
            break
    return made


def kill_while_writing(out: Path, steps: int, kernels: str | None = "reference") -> None:
    """Kill when a checkpoint has been written but has not taken its place; the file lies there afterwards."""
    child = start(out, steps, "--slow-writes", "0.2", kernels=kernels)
    deadline = time.monotonic() + 120
    while not list(out.glob(HALF_WRITTEN)):
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    child.kill()
    child.communicate()
    assert list(out.glob(HALF_WRITTEN)), "the process was not killed while it wrote"


# -- SIGKILL -------------------------------------------------------------------------------------------------
def test_killed_at_random_and_while_writing_ends_with_the_same_bits(tmp_path):
    steps, rng = 40, random.Random(0)
    finish(tmp_path / "whole", steps)
    cut = tmp_path / "cut"
    assert kill_at_random(cut, steps, 2, rng) == 2
    kill_while_writing(cut, steps)
    finish(cut, steps)
    assert outcome(cut, steps) == outcome(tmp_path / "whole", steps)


@pytest.mark.slow
def test_killed_many_times_ends_with_the_same_bits(tmp_path):
    """On the fast kernels, with the threads that the machine has."""
    steps, rng = 250, random.Random(1)
    finish(tmp_path / "whole", steps, kernels=None)
    cut, kills = tmp_path / "cut", 0
    for _ in range(5):
        kills += kill_at_random(cut, steps, 3, rng, kernels=None)
        if not CheckpointFolder(cut, 2).at(steps).exists():
            kill_while_writing(cut, steps, kernels=None)
            kills += 1
    finish(cut, steps, kernels=None)
    assert kills >= 8
    assert outcome(cut, steps) == outcome(tmp_path / "whole", steps)


# -- asked to stop -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_asked_to_stop_it_saves_and_says_how_to_go_on(number, name, tmp_path):
    """Checkpoints are due after new bests only (steps 7, 14, ...): it saves the step at which it was asked."""
    steps = 60
    out = tmp_path / "cut"
    child = start(out, steps, "--save-every", "1000")
    wait_for(child, "step 3")
    child.send_signal(number)
    _, message = child.communicate(timeout=60)
    assert child.returncode == 128 + number
    assert f"{name}: finishing this step, then saving" in message
    saved = CheckpointFolder(out, 2).paths()[-1]
    step = int(saved.stem[5:])
    assert f"stopped by {name} after step {step} of {steps}, which is saved in {saved}" in message
    assert "resume=True" in message and str(out) in message and "Traceback" not in message
    assert step >= 3
    finish(out, steps)
    finish(tmp_path / "whole", steps)
    assert outcome(out, steps)["arrays"] == outcome(tmp_path / "whole", steps)["arrays"]


def test_the_second_ctrl_c_ends_it_at_once(tmp_path):
    """It waits a minute for a batch; the first Ctrl-C would let it."""
    out = tmp_path / "cut"
    child = start(out, 30, "--wait-at", "8")
    wait_for(child, "waiting")
    child.send_signal(signal.SIGINT)
    assert child.stderr is not None
    assert child.stderr.readline() == "\n" and "finishing this step" in child.stderr.readline()
    time.sleep(0.3)
    assert child.poll() is None, "the first Ctrl-C ended it at once"
    child.send_signal(signal.SIGINT)
    _, message = child.communicate(timeout=30)
    assert child.returncode not in (0, None) and "KeyboardInterrupt" in message
    assert CheckpointFolder(out, 2).load_newest().step == 4
    finish(out, 30)
    finish(tmp_path / "whole", 30)
    assert outcome(out, 30) == outcome(tmp_path / "whole", 30)


# -- a disk that takes no more -------------------------------------------------------------------------------
def test_a_write_that_the_system_refuses_keeps_the_checkpoint_before(tmp_path):
    """No file may grow beyond 20 kB (RLIMIT_FSIZE), a checkpoint has more."""
    out, steps = tmp_path / "cut", 20
    child = start(out, steps, "--wait-at", "12")
    wait_for(child, "waiting")
    child.kill()
    child.communicate()
    before = {p.name: p.read_bytes() for p in out.glob("step-*")}
    assert "step-00000006.safetensors" in before and len(before["step-00000006.safetensors"]) > 20_000
    refused = run(out, steps, "--largest-file", "20000")
    assert refused.returncode == 1
    assert "step-00000007.safetensors could not be written" in refused.stderr
    assert f"after step 6, is kept: {out / 'step-00000006.safetensors'}" in refused.stderr
    assert {p.name: p.read_bytes() for p in out.glob("step-*")} == before
    assert not list(out.glob("*.tmp")) and not list(out.glob(HALF_WRITTEN))
    finish(out, steps)
    finish(tmp_path / "whole", steps)
    assert outcome(out, steps) == outcome(tmp_path / "whole", steps)


def can_mount() -> bool:
    command = "mount -t tmpfs tmpfs /mnt"
    return (
        shutil.which("unshare") is not None
        and not subprocess.run(
            ["unshare", "--mount", "--map-root-user", "sh", "-c", command], capture_output=True
        ).returncode
    )


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path):
    """A file system of 600 kB that fills up after step 5; then there is room again."""
    if not can_mount():
        pytest.skip("this user may not mount a file system of a chosen size")
    (tmp_path / "disk").mkdir()
    script = """
        set -e
        mount -t tmpfs -o size=600k tmpfs "$1/disk"
        if "$2" -P "$3" "$1/disk/run" --steps 12 --fill-at 5; then echo "did not notice"; exit 1; fi
        ls -A "$1/disk/run"
        rm "$1/disk/run/filler"
        "$2" -P "$3" "$1/disk/run" --steps 12
        cp -r "$1/disk/run" "$1/cut"
    """
    done = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", script, "sh", str(tmp_path), sys.executable, str(CHILD)],
        capture_output=True, text=True, env={**os.environ, "MINITORCH_KERNELS": "reference"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "full" in done.stdout and "done" in done.stdout
    assert "No space left on device" in done.stderr and "after step 4, is kept" in done.stderr
    assert ".tmp" not in done.stdout
    finish(tmp_path / "whole", 12)
    assert outcome(tmp_path / "cut", 12) == outcome(tmp_path / "whole", 12)
