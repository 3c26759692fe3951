"""Optimizer state in pages: the same bits under any budget, little memory, and no trace on the disk."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minitorch_peft.nn import Parameter
from minitorch_peft.optim import AdamW, AdamW8bit, PagedAdamW, PagedAdamW8bit
from minitorch_peft.optim import pages as pages_module
from minitorch_peft.optim.pages import Pages

SHAPES = {"large": (37, 301), "bias": (5,), "gain": (), "empty": (0, 4), "medium": (70, 70), "last": (1030,)}
PAIRS = [(AdamW, PagedAdamW), (AdamW8bit, PagedAdamW8bit)]
OPTIONS = {"lr": 0.05, "betas": (0.8, 0.99), "weight_decay": 0.1}


def parameters(dtype: type = np.float32) -> dict[str, Parameter]:
    rng = np.random.default_rng(0)
    return {name: Parameter(np.asarray(rng.standard_normal(s), dtype)) for name, s in SHAPES.items()}


def take_steps(optimizer, params, steps: range) -> None:
    """Of very different sizes; "medium" has a gradient at odd steps only."""
    for step in steps:
        rng = np.random.default_rng(100 + step)
        for name, p in params.items():
            g = np.asarray(10.0 ** rng.integers(-4, 3) * rng.standard_normal(p.shape), p.dtype)
            p.grad = g if step % 2 or name != "medium" else None
        optimizer.step(factor=1 / (1 + step))


def same_bits(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(
        (v.dtype, v.shape, v.tobytes()) == (b[k].dtype, b[k].shape, b[k].tobytes()) for k, v in a.items()
    )


def data(params) -> dict[str, np.ndarray]:
    return {name: p.data for name, p in params.items()}


@pytest.mark.parametrize(("plain", "paged"), PAIRS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("frames", "page_bytes"), [(1, 4096), (3, 4160), (2, 1 << 16), (1000, 4096)])
def test_the_same_bits_as_without_pages(plain, paged, dtype, frames, page_bytes):
    one, two = parameters(dtype), parameters(dtype)
    a, b = plain(one, **OPTIONS), paged(two, **OPTIONS, budget=frames * page_bytes, page_bytes=page_bytes)
    take_steps(a, one, range(7))
    take_steps(b, two, range(7))
    assert same_bits(data(one), data(two)) and same_bits(a.state_dict(), b.state_dict())
    assert page_bytes <= b.pages.frames.nbytes <= frames * page_bytes
    assert (b.pages.written > 0) == (len(b.pages.frames) < b.pages.pages)


@pytest.mark.slow
@pytest.mark.parametrize(("plain", "paged"), PAIRS)
def test_the_same_bits_over_threads_and_many_steps(plain, paged):
    one, two = ({"p": Parameter(np.random.default_rng(0).standard_normal(300_007, np.float32))} for _ in range(2))
    a, b = plain(one, **OPTIONS), paged(two, **OPTIONS, budget=3 << 18, page_bytes=1 << 18)
    take_steps(a, one, range(40))
    take_steps(b, two, range(40))
    assert same_bits(data(one), data(two)) and same_bits(a.state_dict(), b.state_dict())


@pytest.mark.parametrize(("plain", "paged"), PAIRS)
def test_saved_states_are_exchanged_with_the_plain_optimizer(plain, paged):
    whole = parameters()
    take_steps(plain(whole, **OPTIONS), whole, range(6))
    params = parameters()
    first = paged(params, **OPTIONS, budget=4096, page_bytes=4096)
    take_steps(first, params, range(2))
    second = plain(params, **OPTIONS)
    second.load_state_dict(first.state_dict())
    take_steps(second, params, range(2, 4))
    third = paged(params, **OPTIONS, budget=8192, page_bytes=8192)
    third.load_state_dict(second.state_dict())
    take_steps(third, params, range(4, 6))
    assert same_bits(data(params), data(whole))


def test_a_state_that_does_not_fit_changes_nothing():
    params = parameters()
    optimizer = PagedAdamW(params, budget=4096, page_bytes=4096)
    take_steps(optimizer, params, range(2))
    before = optimizer.state_dict()
    with pytest.raises(ValueError, match=r"exp_avg\.bias.*float32 \(6,\), expected float32 \(5,\)"):
        optimizer.load_state_dict({**before, "exp_avg.bias": np.zeros(6, np.float32)})
    assert same_bits(optimizer.state_dict(), before)


def test_a_parameter_that_is_not_contiguous():
    rng = np.random.default_rng(0)
    array, g = rng.standard_normal((40, 50)).astype(np.float32), rng.standard_normal((40, 50)).astype(np.float32)
    one, two = {"p": Parameter(array.copy())}, {"p": Parameter(array.copy())}
    two["p"].data = np.asfortranarray(array)
    a, b = AdamW(one, **OPTIONS), PagedAdamW(two, **OPTIONS, budget=4096, page_bytes=4096)
    for optimizer, params in ((a, one), (b, two)):
        params["p"].grad = g
        optimizer.step()
    assert same_bits(data(one), data(two))


def test_versions_count_as_without_pages():
    params = parameters()
    take_steps(PagedAdamW(params, budget=4096, page_bytes=4096), params, range(3))
    assert params["bias"].version.count == 3 and params["medium"].version.count == 1


def test_the_idlest_page_goes_out_and_a_step_turns_round():
    pages = Pages(budget=3 * 64, page_bytes=64, directory=None)
    places = pages.reserve([64] * 4)
    for i in (0, 1, 2, 0, 3):
        pages.at(places[i])[:] = i
    assert list(pages.resident) == [2, 0, 3] and (pages.read, pages.written) == (0, 1)
    assert pages.at(places[1])[0] == 1 and list(pages.resident) == [0, 3, 1]

    params = {"p": Parameter(np.zeros(8 * 512, np.float32))}  # 8 pages of 4096 bytes, of which 4 stay
    optimizer = PagedAdamW(params, budget=5 * 4096 - 1, page_bytes=4096)
    take_steps(optimizer, params, range(1))
    before = optimizer.pages.read
    take_steps(optimizer, params, range(1, 11))
    assert optimizer.pages.read - before == 10 * 4, "half of the pages were there, at every step"


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_pages_hold_what_was_written(data):
    """Against a dict, over any order of reservations, writes and reads."""
    pages = Pages(budget=data.draw(st.integers(1, 4)) * 256, page_bytes=256, directory=None)
    places, expected = [], []
    for action in data.draw(st.lists(st.integers(0, 255), max_size=60)):
        if action % 3 == 0 or not places:
            for place in pages.reserve(data.draw(st.lists(st.integers(1, 256), max_size=3))):
                places.append(place)
                expected.append(bytes(place.size))
        else:
            i = action % len(places)
            assert pages.at(places[i]).tobytes() == expected[i]
            pages.at(places[i])[:] = action
            expected[i] = bytes([action]) * places[i].size
    for place, content in zip(places, expected, strict=True):
        assert pages.at(place).tobytes() == content
    assert len(pages.resident) <= len(pages.frames)


def test_records_that_fit_share_a_page():
    pages = Pages(budget=256, page_bytes=256, directory=None)
    places = pages.reserve([100, 60, 64, 1])
    assert [(p.page, p.offset) for p in places] == [(0, 0), (0, 128), (0, 192), (1, 0)]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"budget": 4095, "page_bytes": 4096}, "budget must hold at least one page of 4096 bytes, got 4095"),
        ({"budget": -5}, "budget must hold at least one page of 1048576 bytes, got -5"),
        ({"budget": "1MB"}, "budget must be a whole number of bytes, got '1MB'"),
        ({"budget": 1e7}, "budget must be a whole number of bytes, got 10000000.0"),
        ({"budget": 4096, "page_bytes": 64.0}, "page_bytes must be a whole number of bytes, got 64.0"),
        ({"budget": 4096, "page_bytes": 100}, "page_bytes must be a multiple of 64, got 100"),
        ({"budget": 4096, "page_bytes": 0}, "page_bytes must be a multiple of 64, got 0"),
    ],
)
def test_a_bad_budget_is_named(options, text):
    with pytest.raises((ValueError, TypeError), match=text):
        PagedAdamW(parameters(), **options)


def test_a_page_too_small_for_a_block_is_named():
    params = parameters()
    optimizer = PagedAdamW8bit(params, budget=512, page_bytes=512)
    with pytest.raises(ValueError, match="page_bytes must hold the state of 256 elements, got 512"):
        take_steps(optimizer, params, range(1))


def test_a_directory_that_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        PagedAdamW(parameters(), directory=tmp_path / "missing")


# -- a full disk -----------------------------------------------------------------------------------------------
@pytest.fixture
def full_disk():
    """No file may grow beyond 16 KiB: reserving space fails as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16384, before[1]))
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)  # call it to free space
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_named_and_nothing_is_lost(full_disk):
    whole = parameters()
    take_steps(AdamW(whole, **OPTIONS), whole, range(3))

    params = parameters()
    before = {name: p.data.copy() for name, p in params.items()}
    optimizer = PagedAdamW(params, **OPTIONS, budget=4096, page_bytes=4096)
    with pytest.raises(OSError, match=r"no room for \d+ .*whatever the budget\); nothing has changed") as caught:
        take_steps(optimizer, params, range(1))
    assert caught.value.errno == errno.EFBIG
    assert same_bits(data(params), before) and optimizer.state_dict() == {}
    assert os.fstat(optimizer.pages.file.fileno()).st_size == 0
    full_disk()
    take_steps(optimizer, params, range(3))
    assert same_bits(data(params), data(whole))


def test_what_was_reserved_of_a_request_that_fails_is_given_back(monkeypatch):
    def half(descriptor, start, size):
        os.ftruncate(descriptor, start + size // 2)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    pages = Pages(budget=4096, page_bytes=4096, directory=None)
    (place,) = pages.reserve([4096])
    pages.at(place)[:] = 5
    with monkeypatch.context() as patch:
        patch.setattr(pages_module.os, "posix_fallocate", half)
        with pytest.raises(OSError, match="no room for 40960 more bytes of pages"):
            pages.reserve([4096] * 10)
    assert os.fstat(pages.file.fileno()).st_size == 4096 and pages.pages == 1
    more = pages.reserve([4096] * 2)
    assert [p.page for p in more] == [1, 2] and not pages.at(more[1]).any() and pages.at(place)[0] == 5


def test_a_full_disk_while_loading_keeps_the_state(full_disk):
    params = {"p": Parameter(np.ones(1024, np.float32))}
    optimizer = PagedAdamW(params, **OPTIONS, budget=4096, page_bytes=4096)
    take_steps(optimizer, params, range(2))
    state = optimizer.state_dict()
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    with pytest.raises(OSError, match="no room for 8192 more bytes"):
        optimizer.load_state_dict(state)
    full_disk()
    assert same_bits(optimizer.state_dict(), state)


def test_a_page_that_cannot_be_written_stays_in_memory(monkeypatch):
    class Broken:
        """A disk that is full although space was reserved (or that has failed)."""

        def __init__(self, file):
            self.file, self.works = file, False

        def write(self, buffer):
            if not self.works:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(buffer[:100])  # a short write is no error

        def __getattr__(self, name):
            return getattr(self.file, name)

    pages = Pages(budget=128, page_bytes=128, directory=None)
    one, two = pages.reserve([128, 128])
    pages.at(one)[:] = 7
    pages.file = broken = Broken(pages.file)
    with pytest.raises(OSError, match=r"could not be written back \(No space left on device\): it is still in memory"):
        pages.at(two)
    assert pages.at(one).tolist() == [7] * 128
    broken.works = True
    pages.at(two)[:] = 8
    assert pages.at(one).tolist() == [7] * 128 and pages.at(two).tolist() == [8] * 128


def test_a_file_that_ends_too_early_is_an_error_and_frees_the_frame():
    pages = Pages(budget=128, page_bytes=128, directory=None)
    one, two, three = pages.reserve([128] * 3)
    pages.at(three)[:] = 3
    pages.at(one)[:] = 1
    os.ftruncate(pages.file.fileno(), 0)
    for _ in range(2):
        with pytest.raises(OSError, match="ends too early"):
            pages.at(three)
    assert pages.at(one).tolist() == [1] * 128 and pages.at(two).tolist() == [0] * 128


def test_space_is_reserved_before_it_is_used(tmp_path):
    pages = Pages(budget=1 << 16, page_bytes=1 << 16, directory=tmp_path)
    pages.reserve([1 << 16] * 8)
    assert os.fstat(pages.file.fileno()).st_blocks * 512 >= 8 << 16


def test_space_is_reserved_where_the_system_has_no_call_for_it(tmp_path, monkeypatch):
    monkeypatch.delattr(pages_module.os, "posix_fallocate")
    pages = Pages(budget=1 << 16, page_bytes=1 << 16, directory=tmp_path)
    pages.reserve([1 << 16] * 3 + [100])
    assert os.fstat(pages.file.fileno()).st_size == 4 << 16


# -- what is left behind, and what it takes ----------------------------------------------------------------------
PROGRAM = """
import sys, time
import numpy as np
from minitorch_peft.nn import Parameter
from minitorch_peft.optim import PagedAdamW
p = Parameter(np.ones((64, 1024), np.float32))
optimizer = PagedAdamW({"p": p}, budget=1 << 16, page_bytes=1 << 14, directory=sys.argv[1])
p.grad = np.ones_like(p.data)
for _ in range(3):
    optimizer.step()
assert optimizer.pages.written
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_a_killed_process_leaves_no_file(tmp_path):
    program = [sys.executable, "-c", PROGRAM, tmp_path]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            assert list(tmp_path.iterdir()) == [], "the file has no name even while it is used"
        finally:
            process.kill()
    assert list(tmp_path.iterdir()) == []


def test_pages_that_are_dropped_close_their_file():
    pages = Pages(budget=4096, page_bytes=4096, directory=None)
    file = pages.file
    del pages
    assert file.closed


MEASURED = """
import ctypes, sys
import numpy as np
from minitorch_peft.nn import Parameter
from minitorch_peft import optim

def peak():  # bytes of resident memory at most since the last call
    high = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return int(high.split()[1]) * 1024

make = getattr(optim, sys.argv[1])
options = {"budget": int(sys.argv[2])} if len(sys.argv) > 2 else {}
warm = {"p": Parameter(np.ones(1 << 18, np.float32))}
warm["p"].grad = np.ones_like(warm["p"].data)
for name in ("AdamW", "AdamW8bit", "PagedAdamW", "PagedAdamW8bit"):  # load and compile what the step needs
    getattr(optim, name)(warm).step()
params = {str(i): Parameter(np.ones(1 << 20, np.float32)) for i in range(24)}
for p in params.values():
    p.grad = np.full_like(p.data, 0.5)
ctypes.CDLL(None).malloc_trim(0)  # what was freed but kept would hide what is taken now
peak()
before = peak()
optimizer = make(params, **options)
for _ in range(3):
    optimizer.step()
print(peak() - before)
"""


def resident_bytes(*args: str) -> int:
    program = [sys.executable, "-c", MEASURED, *args]
    return int(subprocess.run(program, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="the peak is measured through Linux's /proc")
@pytest.mark.parametrize(
    ("plain", "paged", "state"), [("AdamW", "PagedAdamW", 192), ("AdamW8bit", "PagedAdamW8bit", 48)]
)
def test_resident_memory_stays_under_the_budget(plain, paged, state):
    """24 Mi parameters: 192 MiB of float32 state, or 48.75 in eight bits, under 16 MiB, all told."""
    mib = 1 << 20
    assert resident_bytes(plain) >= state * mib
    assert resident_bytes(paged, str(16 * mib)) < 16 * mib
