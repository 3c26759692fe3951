"""Hostile and broken submissions: each gets what it earns, says why, and costs nobody else anything."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from minitorch_peft.course import sandbox, wire
from minitorch_peft.course.library import KERNELS, PACKAGE, Library
from minitorch_peft.course.process import Limits, Process, StartError, Stopped

from . import hostile_table as table

BACKWARD = "ops.matmul:MatMul.backward"
FAST = Limits(call_seconds=3.0, total_seconds=6.0)
whole_sandbox = pytest.mark.skipif(sandbox.available() != sandbox.ALL_LAYERS, reason="needs the whole sandbox")


def processes_of(folder: Path) -> list[str]:
    """The command lines of the processes that name ``folder``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has just ended
            continue
        if str(folder) in line:
            found.append(line)
    return found


@pytest.mark.slow
@whole_sandbox
def test_each_submission_gets_what_it_earns(tmp_path, capsys):
    before = {p: (p.stat().st_mode, p.stat().st_mtime) for p in (PACKAGE, KERNELS)}
    found = []
    with capsys.disabled():  # for the log
        print()
        for one in table.judged(tmp_path, jobs=3):
            found.append(one)
            print(table.row(one))
    assert len(found) > 90
    assert [table.row(one) for one in found if not one.good] == []
    assert processes_of(tmp_path) == []
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [".lock", "results"]
    assert len(list((tmp_path / "out" / "results").iterdir())) == len(found)
    assert {p: (p.stat().st_mode, p.stat().st_mtime) for p in (PACKAGE, KERNELS)} == before


@pytest.fixture(scope="module")
def library():
    with Library() as made:
        yield made


@pytest.fixture
def started(library):
    """A process in which the rule ``MatMul.backward(ctx, g)`` is the given source: what it is called with is ours."""
    running = []

    def start(source: str, limits: Limits = FAST) -> Process:
        process = Process(library.spliced({"1.2": source}), "probes", limits, sandbox.available())
        running.append(process)
        return process

    yield start
    for process in running:
        process.close()
        assert not Path(process.folder.name).exists()


@pytest.mark.slow
def test_a_flood_of_calls_back_ends_with_the_time(started):
    process = started("while True: g(1.0)")
    begun = time.monotonic()
    with pytest.raises(Stopped, match="no answer within 3 s"):
        process.call(BACKWARD, [None, lambda x: x], {})
    assert time.monotonic() - begun < 6


def test_calls_back_take_small_arguments_only(started):
    process = started("import numpy\nreturn g([numpy.zeros(20_000)])")
    with pytest.raises(Stopped, match="far too large an array"):
        process.call(BACKWARD, [None, lambda x: x], {})


def test_a_call_back_that_raises_is_the_solutions_to_hear(started):
    process = started("return [g(2.0), g(0.0)]")
    outcome = process.call(BACKWARD, [None, lambda x: 1 / x], {})
    assert outcome["error"] == "RuntimeError" and "raised ZeroDivisionError: float division" in outcome["message"]
    assert process.call(BACKWARD, [None, lambda x: x + 1], {})["value"] == [3.0, 1.0]  # nothing is left in the pipes


@pytest.mark.slow
def test_a_process_that_does_not_read_holds_nobody_up(started):
    forged = (
        "import os, time\nfrom minitorch_peft.course import wire\n"
        "for n in range(3, 64):\n"
        "    try: os.write(n, wire.pack({'value': 1, 'args': [], 'kwargs': {}}))\n"
        "    except OSError: pass\n"
        "time.sleep(1e9)"
    )
    process = started(forged)
    assert process.call(BACKWARD, [None, None], {})["value"] == 1  # its own word for it
    with pytest.raises(Stopped, match="no answer within 3 s"):
        process.call(BACKWARD, ["x" * (1 << 20), None], {})  # more than the pipe holds


def test_what_keeps_the_process_from_starting_is_not_the_students_doing(library, monkeypatch, tmp_path):
    broken = tmp_path / "boot.py"
    broken.write_text("raise SystemExit(3)")
    monkeypatch.setattr("minitorch_peft.course.process.BOOT", broken)
    with pytest.raises(StartError, match=r"did not start.*exit code 3"):
        Process(library.root, "probes", FAST, ("limits",))


def test_the_prints_of_a_process_are_kept_short_and_harmless(started):
    process = started("print('\\x1b[2J' + 'x' * 10**5)\nreturn 1", replace(FAST, printed=100))
    process.call(BACKWARD, [None, None], {})
    process.close()
    assert process.printed == "\ufffd[2J" + "x" * 96


def test_only_python_and_its_packages_can_be_read(tmp_path):
    hidden = [str(PACKAGE), str(KERNELS)]
    paths = sandbox.readable_paths(str(tmp_path), hidden)
    assert not any(h == p or h.startswith(p + os.sep) for h in hidden for p in paths)
    assert os.path.realpath(os.path.expanduser("~")) not in paths and "/" not in paths


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b'{"a": ["<f8", [0, 4611686018427387904], "C"]}', "damaged"),
        (b'{"a": ["<f8", [99999999999999999999], "C"]}', "damaged"),
        (b'{"a": ["O", [1], "C"]}', "damaged"),
        (b'{"a": ["f8,f8", [1], "C"]}', "damaged"),
        (b'{"a": 3}', "damaged"),
        (b'{"d": [1]}', "damaged"),
        (b"{}", "damaged"),
        (b"1" * 5000, "damaged"),
        (b"[" * 60 + b"]" * 60, "nested"),
        (b"[" * 100_000, "damaged"),
        (b"\xff\xfe", "damaged"),
        (b'"x"', "left over"),
    ],
)
def test_forged_headers_are_refused(header, message):
    with pytest.raises(wire.WireError, match=message):
        wire.unpack(header + b"tail", len(header))
