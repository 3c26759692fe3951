"""What a student handed in: a folder, a zip or one .py file, read into the contents of its marked regions.

Nothing is trusted: names, sizes, encodings and archives may be wrong or hostile. Nothing is extracted, followed or run.
Whatever cannot be used is left out and noted; the rest counts.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from minitorch_peft.course import marks
from minitorch_peft.course.expect import readable
from minitorch_peft.course.library import holds_solutions

MOST_ENTRIES = 20_000  # files in a folder, or entries in a zip
LARGEST_FILE = 1 << 20  # bytes of a source
LARGEST_ZIP = 200 << 20
LARGEST_TOTAL = 50 << 20  # bytes of all sources
LARGEST_RATIO = 200  # of an entry's size to its size in the zip, from SMALL on
SMALL = 1 << 16
LONGEST_NAME = 100  # bytes of a submission's name, which names files
MOST_NOTES = 20
NEVER_READ = {"__MACOSX", "__pycache__", "node_modules", "site-packages"}
SECOND_BEST = {"build", "dist", "env", "venv"}  # folders that are read where nothing else has a solution
HOLE = re.compile(r'raise NotImplementedError\("Task [^\n]*\)')


@dataclass(frozen=True)
class Submission:
    """``regions``: id -> source. ``spoiled``: region id -> why it cannot count. ``notes``: what else was noticed.

    ``error``: why the system could not read it, in which case nothing is known of what is in it.
    """

    name: str
    regions: dict[str, str]
    spoiled: dict[str, str]
    notes: list[str]
    error: str = ""

    @property
    def digest(self) -> str:
        """A fingerprint of all that grading looks at."""
        content = json.dumps([self.regions, self.spoiled, self.notes], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


class UnreadableError(ValueError):
    """A part of a submission that cannot be used; the rest can."""


def read(path: Path) -> Submission:
    """The submission at ``path``. Raises FileNotFoundError where nothing is; all else that is wrong is noted."""
    if not path.exists():
        raise FileNotFoundError(f"there is no submission {path}")
    reading = Reading()
    try:
        reading.take(path)
        if not (reading.found or reading.broken) and reading.passed_over:
            folders = ", ".join(sorted(reading.passed_over))
            reading.skipped, reading.total = NEVER_READ, 0
            reading.take(path)
            if reading.found or reading.broken:
                reading.note(f"no solution was outside of folders called {folders}, so what is in these was read")
    except UnreadableError as problem:
        reading.note(str(problem))
    except OSError as error:
        return Submission(name_of(path), {}, {}, [], f"it cannot be read ({error.strerror or error})")
    if not reading.found and not reading.notes:
        reading.note("no .py file in it has a mark (# BEGIN SOLUTION): is it the right folder or file?")
    regions, spoiled = reading.settled()
    return Submission(name_of(path), regions, spoiled, reading.notes)


def name_of(path: Path) -> str:
    """What a submission is called: a folder's name, a file's without its ending; of a very long one the beginning."""
    path = path.resolve()
    name = readable(path.name if path.is_dir() else path.stem)
    if len(name.encode()) <= LONGEST_NAME:
        return name
    return f"{name.encode()[:LONGEST_NAME].decode(errors='ignore')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


class Reading:
    """Collects the regions of one submission, within the limits."""

    def __init__(self) -> None:
        self.found: dict[str, list[tuple[str, str]]] = {}  # region id -> (file, source) of each place
        self.broken: dict[str, str] = {}  # region id -> what is wrong with its marks
        self.notes: list[str] = []
        self.total = 0
        self.skipped = NEVER_READ | SECOND_BEST
        self.passed_over: set[str] = set()  # of the second best

    def note(self, text: str) -> None:
        text = readable(text)
        if len(self.notes) < MOST_NOTES and text not in self.notes:
            self.notes.append(text)
        elif len(self.notes) == MOST_NOTES:
            self.notes.append("... and more")

    def take(self, path: Path) -> None:
        if path.is_dir():
            self.folder(path)
        elif not path.is_file():
            raise UnreadableError(f"{path.name} is neither a folder nor a file")
        elif path.suffix.lower() == ".zip":
            self.archive(path.name, path)
        elif path.suffix.lower() == ".py":
            self.source(path.name, contents(path))
        else:
            raise UnreadableError(f"{path.name} is no folder, .zip or .py file")

    def folder(self, root: Path) -> None:
        for path in walk(root, self):
            name = path.relative_to(root).as_posix()
            with self.noting(name):
                if path.suffix.lower() == ".zip":
                    self.archive(name, path)
                elif path.suffix.lower() == ".py":
                    self.source(name, contents(path))

    def archive(self, name: str, path: Path) -> None:
        """The sources in a zip, read in memory: an entry's name never becomes a path here."""
        if path.stat().st_size > LARGEST_ZIP:
            raise UnreadableError(f"{name} has more than {LARGEST_ZIP >> 20} MB: hand in the sources only")
        try:
            with zipfile.ZipFile(path) as opened:
                entries = opened.infolist()
                if len(entries) > MOST_ENTRIES:
                    raise UnreadableError(f"{name} has more than {MOST_ENTRIES:,} entries: hand in the sources only")
                for entry in entries:
                    with self.noting(entry.filename):
                        self.entry(opened, entry)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
            if isinstance(error, UnreadableError):
                raise
            raise UnreadableError(f"{name} is no zip, or a damaged one ({error}): pack and upload it again") from None

    def entry(self, opened: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
        name = entry.filename
        if leaves(name):
            raise UnreadableError(f"the zip's entry {name!r} points out of the zip: refused")
        if entry.is_dir() or self.skips(*PurePosixPath(name).parts):
            return
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise UnreadableError(f"{name} is a link: not followed")
        if name.lower().endswith(".zip"):
            raise UnreadableError(f"{name} is a zip inside a zip: not read")
        if name.lower().endswith(".py"):
            self.source(name, unpacked(opened, entry))

    def source(self, name: str, data: bytes) -> None:
        self.total += len(data)
        if self.total > LARGEST_TOTAL:
            raise UnreadableError(f"more than {LARGEST_TOTAL >> 20} MB of sources: {name} and what follows is not read")
        text = decoded(name, data)
        if not holds_solutions(tail(name), text):
            return
        regions, broken = marks.scan(text)
        for region in regions.values():
            if region.kind == "task":
                self.found.setdefault(region.id, []).append((name, marks.body(text, region)))
        for id, problem in broken.items():
            message = f"{name}: a mark is damaged ({problem})"
            self.note(message)
            self.broken[id] = readable(message)

    def skips(self, *parts: str) -> bool:
        """Is one of these folders (or the file) a cache, an environment or hidden?"""
        found = [p for p in parts if p in self.skipped or (p.startswith(".") and p not in (".", ".."))]
        self.passed_over |= SECOND_BEST.intersection(found)
        return bool(found)

    def noting(self, name: str) -> Noting:
        return Noting(self, name)

    def settled(self) -> tuple[dict[str, str], dict[str, str]]:
        """The one source of each region; and why others do not count: two files differ, or their marks are damaged."""
        regions = {}
        spoiled = {id: problem for id, problem in self.broken.items() if id and id not in self.found}
        for id, places in sorted(self.found.items()):
            written = {source: name for name, source in places if not is_hole(source)}
            if len(written) > 1:
                names = ", ".join(dict.fromkeys(readable(name) for name, source in places if source in written))
                spoiled[id] = f"the submission has different solutions of {id} in {names}: only one may be there"
                self.note(spoiled[id])
            else:
                regions[id] = next(iter(written), places[0][1])
        return regions, spoiled


class Noting:
    """Turns what is wrong with one file into a note, so that the others are still read."""

    def __init__(self, reading: Reading, name: str) -> None:
        self.reading, self.name = reading, name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, UnreadableError):
            self.reading.note(str(error))
        elif isinstance(error, OSError):
            self.reading.note(f"{self.name} cannot be read ({error.strerror})")
        return isinstance(error, UnreadableError | OSError)


def walk(root: Path, reading: Reading) -> Iterator[Path]:
    """The regular files below ``root`` in order, without links, caches, environments and hidden folders."""
    count = 0
    for folder, folders, files in os.walk(root):
        here = Path(folder)
        if here != root and "pyvenv.cfg" in files:
            folders.clear()
            continue
        folders[:] = sorted(f for f in folders if not reading.skips(f) and not (here / f).is_symlink())
        for name in sorted(files):
            count += 1
            if count > MOST_ENTRIES:
                reading.note(f"more than {MOST_ENTRIES:,} files: the rest is not read; hand in the sources only")
                return
            path = here / name
            if name.lower().endswith((".py", ".zip")) and not name.startswith("."):
                if path.is_symlink():
                    reading.note(f"{path.relative_to(root).as_posix()} is a link: not followed")
                elif path.is_file():
                    yield path


def leaves(name: str) -> bool:
    """Is this an absolute name, or one that climbs out of its folder?"""
    parts = re.split(r"[/\\]", name)
    return name.startswith(("/", "\\")) or ".." in parts or bool(re.match(r"[A-Za-z]:", name)) or "\0" in name


def contents(path: Path) -> bytes:
    with path.open("rb") as file:
        return limited(path.name, file)


def unpacked(opened: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """An entry's bytes. What the zip says of its size is checked, and not believed."""
    name = entry.filename
    if entry.flag_bits & 1:
        raise UnreadableError(f"{name} is encrypted: hand in a zip without a password")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UnreadableError(f"{name} is packed by an unusual method: make an ordinary zip")
    if entry.file_size > SMALL and entry.file_size > LARGEST_RATIO * entry.compress_size:
        raise UnreadableError(
            f"{name} unpacks to {entry.file_size:,} bytes of {entry.compress_size:,}: a zip bomb, refused"
        )
    try:
        with opened.open(entry) as file:
            return limited(name, file)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, NotImplementedError) as error:
        if isinstance(error, UnreadableError):
            raise
        raise UnreadableError(f"{name} is damaged in the zip ({error}): pack and upload it again") from None


def limited(name: str, file: IO[bytes]) -> bytes:
    data = file.read(LARGEST_FILE + 1)
    if len(data) > LARGEST_FILE:
        raise UnreadableError(f"{name} has more than {LARGEST_FILE >> 20} MB: no source has")
    return data


def decoded(name: str, data: bytes) -> str:
    """A source's text, with plain line ends."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UnreadableError(f"{name} is UTF-16: save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableError(f"{name} is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    if "\0" in text:
        raise UnreadableError(f"{name} is no text: it has null bytes")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def tail(name: str) -> str:
    """``name`` from the repository's root on, however deep the project lies in the submission."""
    before, package, rest = name.rpartition("minitorch_peft/")
    return package + rest if not before or before.endswith("/") else name


def is_hole(source: str) -> bool:
    """Is this what the handout has in place of a solution?"""
    return HOLE.fullmatch(source.strip()) is not None
