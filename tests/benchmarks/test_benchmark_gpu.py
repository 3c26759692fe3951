"""``benchmarks.gpu`` keeps what it has measured, whatever happens to the kernel's process or to the peers'."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("triton")
from benchmarks import gpu


def test_a_row_is_stored_before_the_next_one_is_measured(monkeypatch, tmp_path):
    """Into a folder that is made; the peers' times are in it, and a process that dies is a row that says so."""
    stored = tmp_path / "new" / "gpu.json"
    row = {"kernel": "quantize_4bit", "rows": 16, "us": 2.0}
    found = []

    def measured(kernel, rows):
        yield dict(row)
        found.extend(json.loads(stored.read_text())["table"])
        yield {"kernel": kernel, "wrong": "its process ended with -9"}

    monkeypatch.setattr(gpu, "usable_device", lambda: gpu.cuda.Device("X", (9, 0), 132, 1, 1, 1, "12"))
    monkeypatch.setattr(gpu, "measured", measured)
    monkeypatch.setattr(gpu, "peers", lambda rows: {"quantize_4bit": {"16": {"bitsandbytes": 4.0}}})
    assert gpu.main(["quantize_4bit", "--results", str(stored.parent)]) == 1
    assert found == [row | {"peers us": {"bitsandbytes": 4.0}}]
    assert len(json.loads(stored.read_text())["table"]) == 2


def test_a_process_that_dies_is_reported(monkeypatch):
    dies = 'print(\'{"kernel": "k", "us": 1}\', flush=True); input(); import os; os.abort()'
    monkeypatch.setattr(gpu, "BOOTSTRAP", dies)
    first, last = gpu.measured("k", [16])
    assert first == {"kernel": "k", "us": 1}
    assert last == {"kernel": "k", "wrong": "its process ended with -6; the message is above"}


def test_the_peers_table_is_the_last_line(monkeypatch):
    monkeypatch.setattr(gpu, "BOOTSTRAP", "print('a warning'); print('{\"k\": 1}')")
    assert gpu.peers.__wrapped__((16,)) == {"k": 1}
    monkeypatch.setattr(gpu, "BOOTSTRAP", "print('a warning')")
    assert gpu.peers.__wrapped__((16,)) == {}
