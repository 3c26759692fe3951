"""Checkpoint files: whole or refused, and never lost to a write that failed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from minitorch_peft.formats import files
from minitorch_peft.training import CheckpointError
from minitorch_peft.training.checkpoint import Checkpoint, CheckpointFolder, read_checkpoint, write_checkpoint
from minitorch_peft.training.tree import pack, unpack


def checkpoint(step: int = 3) -> Checkpoint:
    rng = np.random.default_rng(step)
    arrays = {
        "model/w": rng.standard_normal((3, 4)).astype(np.float32),
        "optimizer/exp_avg.w": rng.standard_normal((3, 4)),
        "optimizer/step.w": np.asarray(step),
        "model/transposed": rng.standard_normal((2, 5)).T,
        "model/empty": np.zeros((0, 2), np.float32),
    }
    return Checkpoint(step, arrays, {"state": {"best_loss": 0.1 + 0.2, "stopped": False}, "note": "ünïcode"})


def same(a: Checkpoint, b: Checkpoint) -> bool:
    return (
        a.step == b.step
        and a.info == b.info
        and a.arrays.keys() == b.arrays.keys()
        and all(x.dtype == b.arrays[k].dtype for k, x in a.arrays.items())
        and all(x.shape == b.arrays[k].shape for k, x in a.arrays.items())
        and all(x.tobytes() == b.arrays[k].tobytes() for k, x in a.arrays.items())
    )


# -- one file ------------------------------------------------------------------------------------------------
def test_what_is_read_is_what_was_written(tmp_path):
    write_checkpoint(tmp_path / "c", checkpoint())
    back = read_checkpoint(tmp_path / "c")
    assert same(back, checkpoint())
    assert back.part("optimizer").keys() == {"exp_avg.w", "step.w"}


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("written") / "c"
    write_checkpoint(path, checkpoint())
    return path


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_changed_byte_goes_unnoticed(written, data):
    """Every flip is refused, but for one that changes nothing that is read (a space for a newline)."""
    content = bytearray(written.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    damaged = written.with_name("flipped")
    damaged.write_bytes(content)
    try:
        read = read_checkpoint(damaged)
    except CheckpointError as error:
        assert str(damaged) in str(error)
    else:
        assert same(read, checkpoint())


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_no_truncated_file_is_read(written, data):
    content = written.read_bytes()
    damaged = written.with_name("cut")
    damaged.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(CheckpointError, match="cut"):
        read_checkpoint(damaged)


def test_a_flipped_bit_in_an_array_is_named_as_damage(written):
    content = bytearray(written.read_bytes())
    content[-3] ^= 1
    damaged = written.with_name("bit")
    damaged.write_bytes(content)
    with pytest.raises(CheckpointError, match="bit: is damaged: its checksum"):
        read_checkpoint(damaged)


def test_another_safetensors_file_is_no_checkpoint(tmp_path):
    safetensors.numpy.save_file({"w": np.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="no checkpoint of a training run"):
        read_checkpoint(tmp_path / "model.safetensors")


# -- the folder ----------------------------------------------------------------------------------------------
def steps(folder: CheckpointFolder) -> list[int]:
    return [int(path.stem[5:]) for path in folder.paths()]


def test_the_last_k_and_the_best_are_kept(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=2)
    for step in range(1, 7):
        path = folder.save(checkpoint(step), best_step=2 if step >= 2 else 0)
        assert path == tmp_path / f"step-{step:08d}.safetensors" and path.exists()
    assert steps(folder) == [2, 5, 6]
    folder.save(checkpoint(7), best_step=7)
    assert steps(folder) == [6, 7]
    assert same(folder.load_newest(), checkpoint(7))


def test_an_empty_folder_has_nothing_to_load(tmp_path):
    assert CheckpointFolder(tmp_path / "new", keep=1).load_newest() is None


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_taken(damage, tmp_path):
    folder = CheckpointFolder(tmp_path, keep=3)
    for step in (1, 2, 3):
        folder.save(checkpoint(step))
    newest = folder.at(3)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 4
    newest.write_bytes({"truncated": content[:-9], "flipped": content, "emptied": b""}[damage])
    with pytest.warns(UserWarning, match=rf"{newest.name}.*going on from {folder.at(2)}"):
        assert same(folder.load_newest(), checkpoint(2))
    assert steps(folder) == [1, 2]
    assert (tmp_path / f"{newest.name}.corrupt").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert folder.load_newest().step == 2, "the warning came again"


def test_if_all_are_damaged_nothing_is_started_anew(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=3)
    for step in (1, 2):
        folder.save(checkpoint(step)).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"no usable checkpoint in .*step-00000002.*step-00000001"):
        folder.load_newest()


def test_what_a_killed_process_left_is_removed(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=1)
    folder.save(checkpoint(1))
    stale = [tmp_path / ".step-00000002.safetensors.0a1b2c3d.tmp", tmp_path / ".metrics.jsonl.0a1b2c3d.tmp"]
    for path in stale:
        path.write_bytes(b"half")
    with folder.opened():
        assert not any(path.exists() for path in stale)
        assert folder.load_newest().step == 1


def test_two_processes_cannot_train_in_one_folder(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=1)
    other = (
        "import sys; from minitorch_peft.training.checkpoint import CheckpointFolder\n"
        f"with CheckpointFolder({str(tmp_path)!r}, 1).opened(): pass"
    )
    with folder.opened():
        refused = subprocess.run([sys.executable, "-P", "-c", other], capture_output=True, text=True)
    assert refused.returncode and "another process is training in this folder" in refused.stderr
    assert subprocess.run([sys.executable, "-P", "-c", other]).returncode == 0, "the lock was not given back"


# -- a write that fails --------------------------------------------------------------------------------------
def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_failed_write_leaves_the_checkpoints_that_were_there(name, tmp_path, monkeypatch):
    """At the last moments; test_training_kill has disks that are full while the bytes are written."""
    folder = CheckpointFolder(tmp_path, keep=1)
    folder.save(checkpoint(1))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(os, name, no_space)
    with pytest.raises(CheckpointError) as caught:
        folder.save(checkpoint(2))
    message = str(caught.value)
    assert "step-00000002.safetensors could not be written" in message and "No space left" in message
    assert f"after step 1, is kept: {folder.at(1)}" in message
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    monkeypatch.undo()
    assert same(folder.load_newest(), checkpoint(1))
    assert folder.save(checkpoint(2)).exists()


def test_nothing_old_is_removed_before_the_new_is_on_the_disk(tmp_path, monkeypatch):
    folder = CheckpointFolder(tmp_path, keep=1)
    folder.save(checkpoint(1))
    events = []
    flush, unlink = files._flush, Path.unlink
    monkeypatch.setattr(files, "_flush", lambda p: (events.append(("flush", p.name[-4:])), flush(p)))
    monkeypatch.setattr(Path, "unlink", lambda p, **k: (events.append(("unlink", p.name)), unlink(p, **k)))
    folder.save(checkpoint(2))
    assert events == [
        ("flush", ".tmp"), ("flush", tmp_path.name[-4:]), ("unlink", "step-00000001.safetensors")
    ]  # fmt: skip


# -- the state of methods ------------------------------------------------------------------------------------
def test_nested_state_comes_back():
    tree = {
        "default/scores": np.arange(3.0),
        "budget": {"step": 3, "names": ["a", "b"], "mask": [np.array([True, False]), None], "beta": 0.85},
        "scalar": np.float32(1.5),
    }
    arrays: dict[str, np.ndarray] = {}
    back = unpack(pack(tree, arrays, "method"), arrays)
    assert (back["default/scores"] == tree["default/scores"]).all()
    assert back["budget"]["names"] == ["a", "b"] and back["budget"]["mask"][1] is None
    assert back["budget"]["mask"][0].dtype == bool and back["scalar"].dtype == np.float32


@pytest.mark.parametrize("bad", [{"f": print}, {1: "a"}, {"__array__": 1}, {"a": {"b": {1, 2}}}])
def test_state_that_cannot_be_saved_is_refused(bad):
    with pytest.raises(TypeError, match="method"):
        pack(bad, {}, "method")
