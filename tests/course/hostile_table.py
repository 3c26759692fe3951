"""Hostile and broken submissions, graded: ``python -P tests/course/hostile_table.py [WORD]`` prints what each one got.

Each has a hostile solution of task 1.3 of assignment A1 (``hostile/regions.toml``), or is broken as a whole (``broken``
below), beside a right solution of task 1.6, whose points it must not cost. Exit code 1 where one is judged wrongly.
"""

from __future__ import annotations

import io
import os
import re
import sys
import tempfile
import textwrap
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from minitorch_peft.course.library import KERNELS, PACKAGE, Library
from minitorch_peft.course.manifest import Assignment, load
from minitorch_peft.course.process import Limits
from minitorch_peft.course.teacher import grade
from minitorch_peft.course.teacher.results import Result, remarks, told

REGIONS = Path(__file__).parent / "hostile" / "regions.toml"
LIMITS = Limits(call_seconds=4.0, total_seconds=12.0, cpu_seconds=12, memory=1 << 30)
TASK, OTHER = "1.3", "1.6"
SECRET = "np.add.at"  # of the library's solution of the other task
SHOWN = 160  # characters of what is told
NESTED = "".join(f"{' ' * i}try:\n{' ' * i} pass\n{' ' * i}finally:\n" for i in range(19)) + " " * 19 + "x = 1"


@dataclass(frozen=True)
class Case:
    """One submission, written by ``make(folder)``, which gives its path; ``says``: a pattern of what is told."""

    name: str
    says: str
    make: Callable[[Path], Path]
    earns: bool = False
    keeps_other: bool = True


@dataclass(frozen=True)
class Judged:
    case: Case
    result: Result

    @property
    def points(self) -> dict[str, int]:
        return {t.task: t.earned for t in self.result.tasks}

    @property
    def said(self) -> str:
        """What the student reads."""
        failed = [told(t) for t in self.result.tasks if t.task == TASK and t.status != "passed"]
        causes = [f"{t.message} (likely cause: {t.because})" if t.because else t.message for t in failed]
        return " | ".join([*remarks(self.result), *causes])

    @property
    def good(self) -> bool:
        right = {TASK: 10 * self.case.earns, OTHER: 8 * self.case.keeps_other}
        says = re.search(self.case.says, self.said, re.DOTALL) is not None
        return self.points == right and says and SECRET not in self.said


class Suite:
    """The sources that the cases are made of."""

    def __init__(self, out: Path) -> None:
        with Library() as library:
            self.own = {id: library.solution(id) for task in (TASK, OTHER) for id in library.regions_of(task)}
        checks = PACKAGE / "course" / "assignments" / "a1" / "checks.py"
        self.words = {"PACKAGE": repr(str(PACKAGE)), "KERNELS": repr(str(KERNELS)), "CHECKS": repr(str(checks)),
                      "OUT": repr(str(out)), "NESTED": NESTED, "RIGHT": textwrap.dedent(self.own["1.3a"]).strip("\n"),
                      "PARENTHESES": f"return {'(' * 100_000}"}  # fmt: skip

    def cases(self) -> list[Case]:
        table = tomllib.loads(REGIONS.read_text(encoding="utf-8"))["case"]
        hostile = [
            Case(c["name"], c["says"], self.folder(self.filled(c["source"])), c.get("earns", False)) for c in table
        ]
        return [*hostile, *broken(self)]

    def filled(self, source: str) -> str:
        return re.sub(r"\b[A-Z]{3,}\b", lambda m: self.words.get(m[0], m[0]), source.strip("\n"))

    def task(self, source: str | None = None) -> str:
        """A file with both regions of the task."""
        return marked({"1.3a": source or self.own["1.3a"], "1.3b": self.own["1.3b"]})

    @property
    def other(self) -> str:
        return marked({id: source for id, source in self.own.items() if id.startswith(OTHER)})

    def folder(self, source: str | None = None, **files: bytes) -> Callable[[Path], Path]:
        """A submission of two files, and others: "name__py" -> contents."""

        def make(folder: Path) -> Path:
            folder.mkdir()
            (folder / "task.py").write_text(self.task(source), encoding="utf-8")
            (folder / "other.py").write_text(self.other, encoding="utf-8")
            for name, data in files.items():
                (folder / name.replace("__", ".")).write_bytes(data)
            return folder

        return make

    def zip(self, **entries: str | bytes) -> Callable[[Path], Path]:
        """A zip of the other task and of ``entries``."""

        def make(folder: Path) -> Path:
            path = folder.with_suffix(".zip")
            path.write_bytes(zipped({"other.py": self.other, **entries}))
            return path

        return make


def marked(regions: dict[str, str]) -> str:
    return "".join(
        f'    # BEGIN SOLUTION(task="{id}")\n{textwrap.indent(source, "    ")}\n    # END SOLUTION\n'
        for id, source in regions.items()
    )


def zipped(entries: dict[str, str | bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return data.getvalue()


def encrypted(data: bytes) -> bytes:
    """The zip with every entry's flag of encryption set."""
    changed = bytearray(data)
    for start, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        for found in re.finditer(re.escape(start), data):
            changed[found.start() + offset] |= 1
    return bytes(changed)


def broken(suite: Suite) -> Iterator[Case]:
    def alone(folder: Path) -> Path:
        folder.mkdir()
        (folder / "other.py").write_text(suite.other)
        return folder

    def linked(folder: Path) -> Path:
        alone(folder)
        (folder / "task.py").symlink_to(KERNELS / "softmax" / "reference.py")
        (folder / "all").symlink_to(KERNELS)
        return folder

    def pipe(folder: Path) -> Path:
        alone(folder)
        os.mkfifo(folder / "task.py")
        return folder

    def written(data: bytes, suffix: str) -> Callable[[Path], Path]:
        def make(folder: Path) -> Path:
            path = folder.with_suffix(suffix)
            path.write_bytes(data)
            return path

        return make

    task, both = suite.task(), zipped({"task.py": suite.task(), "other.py": suite.other})
    yield Case("a right folder", "", suite.folder(), earns=True)
    yield Case("a right zip", "", suite.zip(**{"deep/down/task.py": task}), earns=True)
    yield Case("a file is missing", "no solution of 1.3", alone)
    yield Case("binary junk beside it", "not UTF-8", suite.folder(junk__py=os.urandom(5000) + b"\xff"), earns=True)
    yield Case("binary junk for it", "is no text|not UTF-8", suite.folder(task__py=task.encode() + b"\0\1\2"))
    yield Case("binary junk alone", "no zip, or a damaged one", written(os.urandom(5000), ".zip"), keeps_other=False)
    yield Case("UTF-16", "is UTF-16", suite.folder(task__py=task.encode("utf-16")))
    yield Case("Latin-1", "not UTF-8", suite.folder(task__py=("# \xe9\n" + task).encode("latin-1")))
    yield Case("UTF-8 with a mark, and CRLF", "",
               suite.folder(task__py=task.replace("\n", "\r\n").encode("utf-8-sig")), earns=True)  # fmt: skip
    yield Case("damaged marks", "mark is damaged", suite.folder(task__py=task.replace("# END", "# AND", 1).encode()))
    yield Case("two versions", "different solutions of 1.3a", suite.folder(old__py=suite.task("return x").encode()))
    yield Case("a link to the reference", "is a link", linked)
    yield Case("a pipe for a file", "no solution of 1.3", pipe)
    yield Case("zip bomb", "zip bomb", suite.zip(**{"task.py": task + "#" * 50_000_000}))
    yield Case("many entries", "entries: hand in", suite.zip(**{f"{i}.py": "" for i in range(21_000)}),
               keeps_other=False)  # fmt: skip
    yield Case("a zip in a zip", "zip inside a zip", suite.zip(**{"task.zip": zipped({"task.py": task})}))
    yield Case("path traversal", "points out of the zip", suite.zip(**{"../../task.py": task}))
    yield Case("an absolute path", "points out of the zip", suite.zip(**{"/tmp/task.py": task}))
    yield Case("an encrypted zip", "without a password", written(encrypted(both), ".zip"), keeps_other=False)
    yield Case("half a zip", "no zip, or a damaged one", written(both[: len(both) // 2], ".zip"), keeps_other=False)
    yield Case("nothing", "no .py file", written(b"", ".py"), keeps_other=False)


def small_assignment() -> Assignment:
    """A1 with the two tasks alone."""
    a1 = load("a1")
    return replace(a1, tasks=(a1.task(TASK), a1.task(OTHER)))


def judged(folder: Path, jobs: int, only: str = "") -> Iterator[Judged]:
    """Grade every case (whose name has ``only`` in it), as ``course grade`` does, but with small limits."""
    cases = {}
    for number, case in enumerate(c for c in Suite(folder / "out").cases() if only in c.name):
        path = case.make(folder / f"{number:02}")
        cases[path.stem] = (case, path)
    submissions = grade.submissions_at([path for _, path in cases.values()])
    for result in grade.grade(submissions, small_assignment(), folder / "out", 1, jobs, limits=LIMITS):
        yield Judged(cases[result.name][0], result)


def row(one: Judged) -> str:
    first, other = (one.points.get(task, "?") for task in (TASK, OTHER))
    said = " ".join(one.said.split()) or "(right)"
    return f"{'ok ' if one.good else 'BAD'} {one.case.name:52} {first:>3} {other:>3}  {said[:SHOWN]}"


def main(only: str = "") -> int:
    print(f"    {'submission':52} {TASK} {OTHER}  what is told")
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        found = []
        for one in judged(Path(folder), 3, only):
            found.append(one)
            print(row(one), flush=True)
    bad = [one.case.name for one in found if not one.good]
    print(f"{len(found)} submissions, {len(bad)} judged wrongly" + (f": {', '.join(bad)}" if bad else ""))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
