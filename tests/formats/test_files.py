"""Files are written whole or not at all, and what cannot be read is refused in one clear line."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minitorch_peft.formats.files import (
    FileFormatError,
    atomic_write,
    read_arrays,
    read_json,
    read_metadata,
    write_arrays,
    write_json,
)

DTYPES = ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint8", "bool"]


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(DTYPES).flatmap(
        lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    )
)
def test_arrays_come_back_bit_for_bit(tmp_path_factory, array):
    path = tmp_path_factory.mktemp("io") / "a.safetensors"
    write_arrays(path, {"x": array, "turned": array.T, "every.other": array[..., ::2] if array.ndim else array})
    read = read_arrays(path)
    assert set(read) == {"x", "turned", "every.other"}
    assert same(read["x"], array)
    assert same(read["turned"], array.T)
    assert same(read["every.other"], array[..., ::2] if array.ndim else array)


def test_metadata_comes_back(tmp_path):
    write_arrays(tmp_path / "a", {"x": np.zeros(2)}, {"step": "3"})
    assert read_metadata(tmp_path / "a") == {"step": "3"}
    write_arrays(tmp_path / "a", {"x": np.zeros(2)})
    assert read_metadata(tmp_path / "a") == {}


def raw_safetensors(**tensors: tuple[str, list[int], bytes]) -> bytes:
    """A file made by hand, for dtypes that NumPy lacks."""
    header, body = {}, b""
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def test_bfloat16_is_widened(tmp_path):
    exact = np.array([[1.0, -2.5, 0.0], [np.inf, 3.0e38, -0.0078125]], np.float32)
    exact = (exact.view(np.uint32) & 0xFFFF0000).view(np.float32)
    upper = (exact.view(np.uint32) >> 16).astype("<u2").tobytes()
    plain = np.arange(2, dtype=np.float32)
    (tmp_path / "b").write_bytes(raw_safetensors(b=("BF16", [2, 3], upper), f=("F32", [2], plain.tobytes())))
    read = read_arrays(tmp_path / "b")
    assert same(read["b"], exact) and same(read["f"], plain)


def test_other_dtypes_are_refused(tmp_path):
    (tmp_path / "f8").write_bytes(raw_safetensors(x=("F8_E4M3", [2], b"\x00\x01")))
    with pytest.raises(FileFormatError, match=r"f8: holds F8_E4M3 tensors; convert"):
        read_arrays(tmp_path / "f8")


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path):
    path = tmp_path / "a.safetensors"
    write_arrays(path, {"x": np.arange(5.0), "y": np.zeros((2, 2), np.int32)})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(FileFormatError, match=r"a\.safetensors: cannot be read .*truncated") as error:
            read_arrays(path)
        assert "\n" not in str(error.value)


def test_what_is_no_safetensors_file_is_refused(tmp_path):
    with pytest.raises(FileFormatError, match=r"nothing\.here: no such file; check the path"):
        read_arrays(tmp_path / "nothing.here")
    with pytest.raises(FileFormatError, match="no such file"):
        read_arrays(tmp_path)
    (tmp_path / "text").write_text("this is a text file, and a long one at that")
    with pytest.raises(FileFormatError, match="text: cannot be read"):
        read_arrays(tmp_path / "text")


def test_json_comes_back_and_damage_is_refused(tmp_path):
    path = tmp_path / "c.json"
    value = {"b": [1, 2.5, None, True], "a": "Þé"}
    write_json(path, value)
    assert read_json(path) == value
    assert path.read_text(encoding="utf-8").index('"a"') < path.read_text(encoding="utf-8").index('"b"')
    for text, message in (("{", "is not JSON"), ("[1]", "holds a JSON list"), ("", "is not JSON")):
        path.write_text(text)
        with pytest.raises(FileFormatError, match=f"c.json: {message}"):
            read_json(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FileFormatError, match="is not JSON"):
        read_json(path)
    with pytest.raises(FileFormatError, match="no such file"):
        read_json(tmp_path / "none.json")
    with pytest.raises(FileFormatError, match="no such file"):
        read_json(tmp_path)


def test_json_without_a_standard_form_is_not_written(tmp_path):
    write_json(tmp_path / "c.json", {"loss": 1.0})
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "c.json", {"loss": float("nan")})
    assert read_json(tmp_path / "c.json") == {"loss": 1.0}


# -- atomic --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_system_call_leaves_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / "a.safetensors"
    write_arrays(path, {"x": np.arange(3.0)})

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space left"):
        write_arrays(path, {"x": np.zeros(1000)})
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["a.safetensors"]
    assert same(read_arrays(path)["x"], np.arange(3.0))


def test_the_bytes_reach_the_disk_before_the_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    write_json(tmp_path / "c.json", {})
    assert len(calls) == 3 and calls[0].endswith(".tmp") and calls[1:] == ["replace", str(tmp_path)]


def test_an_error_while_writing_leaves_no_file(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "a") as temporary:
        temporary.write_text("half of")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


LIMITED = """
import resource, signal, sys
import numpy as np
from minitorch_peft.formats.files import write_arrays
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_arrays(sys.argv[1], {"x": np.zeros(100000)})
except OSError as error:
    print(type(error).__name__, error)
    sys.exit(3)
"""


def test_a_disk_that_refuses_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.safetensors"
    write_arrays(path, {"x": np.arange(3.0)})
    done = subprocess.run([sys.executable, "-P", "-c", LIMITED, path], capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert "File too large" in done.stdout
    assert os.listdir(tmp_path) == ["a.safetensors"]
    assert same(read_arrays(path)["x"], np.arange(3.0))


FOREVER = """
import itertools, sys
import numpy as np
from minitorch_peft.formats.files import write_arrays
for i in itertools.count():
    write_arrays(sys.argv[1], {"x": np.full(200_000, i)})
    print(i, flush=True)
"""


def test_a_killed_writer_leaves_a_whole_file(tmp_path):
    path = tmp_path / "a.safetensors"
    for wait in (0.0, 0.003, 0.011):
        process = subprocess.Popen([sys.executable, "-P", "-c", FOREVER, path], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        written = [int(line) for line in process.communicate()[0].split()]
        x = read_arrays(path)["x"]
        assert (x == x[0]).all() and x[0] >= max(written, default=0)


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o022)
    try:
        write_arrays(tmp_path / "a", {"x": np.zeros(1)})
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


def test_a_link_stays_a_link(tmp_path):
    write_json(tmp_path / "real.json", {"v": 1})
    (tmp_path / "link.json").symlink_to("real.json")
    write_json(tmp_path / "link.json", {"v": 2})
    assert (tmp_path / "link.json").is_symlink()
    assert read_json(Path(tmp_path / "real.json")) == {"v": 2}
