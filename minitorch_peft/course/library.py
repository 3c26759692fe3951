"""Copies of the package in folders of their own, with other contents in some regions."""

from __future__ import annotations

import compileall
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path

import minitorch_peft
from minitorch_peft import kernels
from minitorch_peft.course import marks
from minitorch_peft.course.manifest import matches

Place = tuple[str, marks.Region]  # a file, from the repository's root, and lines of it
PACKAGE = Path(minitorch_peft.__file__).parent
KERNELS = Path(kernels.__file__).parent


def not_needed(folder: str, names: list[str]) -> set[str]:
    """What a student's process does not need, or must not see: caches, checkpoints, checks, the grader's own part."""
    place = Path(folder)
    kept = set(names)
    if place.name == "course":
        kept = {"__init__.py", "boot.py", "measure.py", "sandbox.py", "wire.py", "worker.py", "assignments"}
    if place.parent.name == "assignments":
        kept -= {"checks.py", "manifest.toml"}
    return {n for n in names if n not in kept or n == "__pycache__" or n.startswith(".") or n.endswith(".safetensors")}


def sources() -> dict[str, Path]:
    """Every source file of the package, by its path from the repository's root."""
    files = {f"minitorch_peft/{p.relative_to(PACKAGE).as_posix()}": p for p in sorted(PACKAGE.rglob("*.py"))}
    inside = "minitorch_peft/kernels/"  # where an installed package has them
    files = {
        (name.removeprefix("minitorch_peft/") if name.startswith(inside) else name): p for name, p in files.items()
    }
    return files | {f"kernels/{p.relative_to(KERNELS).as_posix()}": p for p in sorted(KERNELS.rglob("*.py"))}


def solutions() -> dict[str, Place]:
    """Every marked region of the package: id to its file (from the repository's root) and lines.

    Raises MarkError, naming the file, where marks do not pair up.
    """
    found, broken = survey()
    if broken:
        raise marks.MarkError(next(iter(broken.values())))
    return found


def survey() -> tuple[dict[str, Place], dict[str, str]]:
    """The sound regions of the package, and what is wrong with the others, by id."""
    found: dict[str, Place] = {}
    broken: dict[str, str] = {}
    for name, path in sources().items():
        text = path.read_text(encoding="utf-8")
        if not holds_solutions(name, text):
            continue
        regions, wrong = marks.scan(text)
        broken |= {id: f"{name}: {message}" for id, message in wrong.items()}
        for region in regions.values():
            if region.kind != "task":
                continue
            if region.id in found:
                broken[region.id] = f"{name}: the solution of {region.id} is in {found[region.id][0]} too"
            found[region.id] = (name, region)
    return {id: place for id, place in found.items() if id not in broken}, broken


def holds_solutions(name: str, text: str) -> bool:
    """Has this source marks? Those that the course's own files show are no solutions."""
    frame = name.startswith("minitorch_peft/course/") and not name.startswith("minitorch_peft/course/assignments/")
    return not frame and "# BEGIN SOLUTION(" in text


class Library:
    """A copy of the running package, compiled, from which copies with other solutions are made.

    ``regions``: its solutions, by id; ``broken``: what is wrong with the marks of others.

    ``without``: patterns of files that it lacks (from the repository's root), as they would do a student's work.
    ``frames``: what some files were when they were handed out; of the running package they take the solutions only.
    """

    def __init__(self, without: Iterable[str] = (), frames: Mapping[str, str] | None = None) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="course-library-", ignore_cleanup_errors=True)
        self.root = Path(self.folder.name) / "reference"
        shutil.copytree(PACKAGE, self.root / "minitorch_peft", ignore=not_needed)
        shutil.copytree(KERNELS, self.root / "minitorch_peft" / "kernels", ignore=not_needed, dirs_exist_ok=True)
        for name in (name for name in sources() if matches(name, without)):
            self.path(name).unlink(missing_ok=True)
        self.regions, self.broken = survey()
        for name, text in (frames or {}).items():
            framed = marks.replace(text, {id: self.solution(id) for id in marks.find(text) if id in self.regions})
            self.path(name).write_text(framed, encoding="utf-8")
            self.regions |= {id: (name, region) for id, region in marks.find(framed).items()}
        compileall.compile_dir(self.root, quiet=2, stripdir=str(self.root))
        self.made = 0

    def spliced(self, new: dict[str, str]) -> Path:
        """A copy with ``new`` in the regions that it names by id; remove it when done.

        Raises ValueError for a region that the library does not have. Whether the result is Python is found out in the
        student's process: a page of nested ``finally`` keeps a compiler busy for hours.
        """
        if unknown := sorted(new.keys() - self.regions.keys()):
            raise ValueError(f"the library has no region {', '.join(unknown)}")
        changed = {self.regions[region][0] for region in new}
        texts = {name: marks.replace(self.text(name), new) for name in sorted(changed)}
        self.made += 1
        root = Path(self.folder.name) / f"copy-{self.made}"
        shutil.copytree(self.root, root, copy_function=linked)
        for name, text in texts.items():
            path = self.path(name, root)
            for stale in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
                stale.unlink()
            path.unlink()  # a link: the file that it shares stays as it is
            path.write_text(text, encoding="utf-8")
        return root

    @cached_property
    def broken_files(self) -> list[str]:
        """The marked files that are no Python. (Compiles them: for one's own library, not for a stranger's.)"""
        names = dict.fromkeys(name for name, _ in self.regions.values())
        return [name for name in names if not compiles(self.text(name))]

    def regions_of(self, task: str) -> list[str]:
        """The ids of a task's regions, in order."""
        return sorted(id for id, (_, region) in self.regions.items() if region.task == task)

    def solution(self, region: str) -> str:
        """What the library has in a region."""
        name, place = self.regions[region]
        return marks.body(self.text(name), place)

    def path(self, name: str, root: Path | None = None) -> Path:
        """Where the file ``name`` (from the repository's root) is in a copy."""
        inside = name if name.startswith("minitorch_peft/") else f"minitorch_peft/{name}"
        return (root or self.root) / inside

    def text(self, name: str) -> str:
        return self.path(name).read_text(encoding="utf-8")

    def close(self) -> None:
        self.folder.cleanup()

    def __enter__(self) -> Library:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def linked(source: str, target: str) -> None:
    """The same file at another place, which takes a fraction of the time of a copy; a copy where that cannot be."""
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)


def compiles(text: str) -> bool:
    try:
        compile(text, "solution", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
