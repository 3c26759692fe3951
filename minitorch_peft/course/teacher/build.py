"""Handouts: the library with an assignment's solutions cut out, its notebook, its tests and a README."""

from __future__ import annotations

import configparser
import io
import json
import re
import shutil
import zipfile
from collections.abc import Container, Mapping
from importlib.resources import files as resources
from pathlib import Path, PurePosixPath

from minitorch_peft.course import marks
from minitorch_peft.course.library import KERNELS, PACKAGE, holds_solutions, solutions, sources
from minitorch_peft.course.manifest import Assignment, matches

SUFFIXES = {".py", ".toml", ".json", ".safetensors", ".typed"}  # of the package's files
LARGEST = 3_000_000  # bytes of a checkpoint that is handed out
TELLING = 40  # characters of a line, without spaces, from which on it is no coincidence
YOURS = "# *Your answer.*"
EXTRAS = ("data", "course")
WHEN = (1980, 1, 1, 0, 0, 0)  # of every entry of a zip, so that the same sources give the same bytes


class BuildError(ValueError):
    """The sources do not give a sound handout."""


Files = dict[str, bytes]

DISPATCH = "kernels/dispatch.py"
ROW = re.compile(
    r'(?P<before>^    "(?P<family>\w+)": \(\s*\([^)]*\),\s*)\((?P<backends>[^)]*)\)(?P<after>,?\s*\),\n)', re.MULTILINE
)


def handout(assignment: Assignment) -> Files:
    """Every file of a handout, by path. Nothing is copied that is not listed here, so nothing else can leak.

    Raises BuildError, naming the file, where the sources and the manifest do not fit together.
    """
    root = clone()
    found = {name: data for name, data in package_files(root).items() if is_handed_out(name, assignment)}
    texts = {name: data.decode() for name, data in found.items() if name.endswith(".py")}
    cut = {name: cut_solutions(name, text, assignment) for name, text in conceal(texts, assignment).items()}
    found |= {name: text.encode() for name, text in cut.items()}
    record = {name: text for name, text in cut.items() if holds_solutions(name, text)}
    found["minitorch_peft/course/handout.json"] = to_json({"assignment": assignment.id, "files": record})
    manifest = f"minitorch_peft/course/assignments/{assignment.id}/manifest.toml"
    found[manifest] = without_replacements(found[manifest].decode()).encode()
    found |= notebook(root, assignment)
    found[f"tests/test_{assignment.id}.py"] = template("test_tasks.txt").format(id=assignment.id).encode()
    found["README.md"] = readme(assignment).encode()
    found["setup.cfg"] = setup_cfg((root / "setup.cfg").read_text(encoding="utf-8"), found).encode()
    for name in ("pyproject.toml", "LICENSE"):
        found[name] = (root / name).read_bytes()
    audit(found, assignment)
    return dict(sorted(found.items()))


def clone() -> Path:
    """The folder of the repository that this package runs from. Raises BuildError for an installed package."""
    root = PACKAGE.parent
    if not (root / "setup.cfg").is_file() or KERNELS.parent != root:
        raise BuildError("handouts are built from a clone of the repository (pip install --editable '.[teach]')")
    return root


def package_files(root: Path) -> Files:
    """The package's files by their path from the root; no caches, nothing hidden, no large checkpoints."""
    found = {}
    for folder in (PACKAGE, KERNELS):
        for path in sorted(folder.rglob("*")):
            inside = path.relative_to(root)
            if path.suffix not in SUFFIXES or any(p.startswith((".", "__pycache__")) for p in inside.parts):
                continue
            if path.suffix != ".safetensors" or path.stat().st_size <= LARGEST:
                found[inside.as_posix()] = path.read_bytes()
    return found


def is_handed_out(name: str, assignment: Assignment) -> bool:
    """Not the teacher's part, other assignments, or what the manifest leaves out."""
    parts = PurePosixPath(name).parts
    if matches(name, assignment.leave_out) or parts[:3] == ("minitorch_peft", "course", "teacher"):
        return False
    if parts[:2] == ("minitorch_peft", "cli") and parts[-1] in ("teaching.py", "grading.py"):
        return False
    return not (
        parts[:3] == ("minitorch_peft", "course", "assignments") and len(parts) > 4 and parts[3] != assignment.id
    )


def conceal(texts: Mapping[str, str], assignment: Assignment) -> dict[str, str]:
    """The texts with the manifest's replacements made. Each must fit exactly once."""
    changed = dict(texts)
    everything = sources()
    for pattern in assignment.leave_out:
        if not any(matches(name, [pattern]) for name in everything):
            raise BuildError(f"{assignment.id} leaves out {pattern}, which does not exist")
    for change in assignment.replacements:
        times = changed.get(change.file, "").count(change.old)
        if times != 1:
            raise BuildError(
                f"{assignment.id} replaces text of {change.file} that is there {times} times: {change.old!r}"
            )
        changed[change.file] = changed[change.file].replace(change.old, change.new)
    return changed | {DISPATCH: fitted(changed[DISPATCH], changed)}


def fitted(table: str, names: Container[str]) -> str:
    """The table of kernels without the versions, and the families, that are not among the files ``names``."""

    def row(found: re.Match[str]) -> str:
        backends = re.findall(r"\w+", found["backends"])
        kept = [b for b in backends if f"kernels/{found['family']}/{b}.py" in names]
        listed = ", ".join(f'"{b}"' for b in kept) + ("," if len(kept) == 1 else "")
        return f"{found['before']}({listed}){found['after']}" if kept else ""

    text, count = ROW.subn(row, table)
    if not count:
        raise BuildError(f"{DISPATCH} has no rows of the expected form")
    return text


def without_replacements(text: str) -> str:
    """A manifest without its ``[[replace]]`` tables: they hold what the handout is not to say."""
    kept, lines = True, []
    for line in text.splitlines(keepends=True):
        if line.startswith("[["):
            kept = line.strip() != "[[replace]]"
        if kept:
            lines.append(line)
    return "".join(lines)


def cut_solutions(name: str, text: str, assignment: Assignment) -> str:
    """``text`` with this assignment's solutions cut out, and without the marks of the others."""
    if not holds_solutions(name, text):
        return text
    holes, others = {}, []
    for region in marks.find(text).values():
        if region.task in [t.id for t in assignment.tasks]:
            holes[region.id] = assignment.task(region.task).hole()
        else:
            others += [region.start - 1, region.stop]
    lines = [line for i, line in enumerate(text.split("\n")) if i not in others]
    return marks.replace("\n".join(lines), holes)


def notebook(root: Path, assignment: Assignment) -> Files:
    """The assignment's notebook without model answers and without outputs, as .ipynb and as the script it is."""
    import jupytext

    text = (root / assignment.notebook).read_text(encoding="utf-8")
    for region in reversed(marks.find(text).values()):
        lines = text.split("\n")
        lines[region.start - 1 : region.stop + 1] = [YOURS]
        text = "\n".join(lines)
    cells = jupytext.reads(text, fmt="py:percent")
    for number, cell in enumerate(cells.cells):
        cell["id"] = f"cell-{number}"  # not a random one: the same sources give the same bytes
    return {
        f"{assignment.id}.py": text.encode(),
        f"{assignment.id}.ipynb": jupytext.writes(cells, fmt="ipynb").encode(),
    }


def readme(assignment: Assignment) -> str:
    rows = "\n".join(f"| {t.id} | {t.title} | {t.points} | {t.minutes} | {where(t.where)} |" for t in assignment.tasks)
    return template("README.md").format(
        id=assignment.id, name=assignment.id.upper(), title=assignment.title, summary=assignment.summary,
        hours=f"{assignment.hours:g}", points=assignment.points, rows=rows, first=assignment.tasks[0].id,
    )  # fmt: skip


def where(places: tuple[str, ...]) -> str:
    return "<br>".join(f"`{place}`" for place in places)


def setup_cfg(text: str, found: Files) -> str:
    """The repository's setup.cfg for what is handed out: its packages, its data, a student's extras."""
    parser = configparser.RawConfigParser()
    parser.read_string(text)
    folders = {PurePosixPath(name).parent.as_posix() for name in found if name.endswith("__init__.py")}
    packages = parser["options"]["packages"].split()
    kept = [p for p in packages if folder_of(p) in folders]
    parser["options"]["packages"] = "\n" + "\n".join(kept)
    data = parser["options.package_data"]
    for package in [p for p in data if p not in kept]:
        del data[package]
    data["minitorch_peft.course"] = "handout.json"
    for extra in [e for e in parser["options.extras_require"] if e not in EXTRAS]:
        del parser["options.extras_require"][extra]
    out = io.StringIO()
    parser.write(out)
    return re.sub(r"\n\t", "\n    ", out.getvalue())


def folder_of(package: str) -> str:
    return (
        package.removeprefix("minitorch_peft.").replace(".", "/")
        if ".kernels" in package
        else package.replace(".", "/")
    )


def audit(found: Files, assignment: Assignment) -> None:
    """Raise BuildError if anything is there that would give a solution away or that ran on the reference."""
    text = {name: data.decode() for name, data in found.items() if not name.endswith(".safetensors")}
    expected = {task.id: len(task.where) for task in assignment.tasks}
    holes = dict.fromkeys(expected, 0)
    for name, content in text.items():
        if not (name.endswith(".py") and holds_solutions(name, content)):
            continue
        for region in marks.find(content).values():
            if region.kind == "question" or marks.body(content, region).strip() != assignment.task(region.task).hole():
                raise BuildError(f"{name}: the solution of {region.id} is still there")
            holes[region.task] += 1
    if holes != expected:
        raise BuildError(f"{assignment.id}: regions by task are {holes}, the manifest's `where` names {expected}")
    for change in assignment.replacements:
        if left := [name for name, content in text.items() if change.old.strip() in content]:
            raise BuildError(f"{', '.join(left)}: what {assignment.id} replaces is still there: {change.old.strip()!r}")
    for name in found:
        if any(part.startswith(".") or part == "__pycache__" for part in PurePosixPath(name).parts):
            raise BuildError(f"{name} has no place in a handout")
    cells = json.loads(text[f"{assignment.id}.ipynb"])["cells"]
    if any(cell.get("outputs") or cell.get("execution_count") for cell in cells):
        raise BuildError("the notebook has outputs")
    if leaks := leaked_lines(text, assignment):
        raise BuildError("lines of solutions stand elsewhere in the handout:\n" + "\n".join(leaks))


def leaked_lines(text: Mapping[str, str], assignment: Assignment) -> list[str]:
    """Telling lines of solutions that also stand somewhere else in the handout, notebook and docstrings included."""
    squeezed = {name: re.sub(r"\s", "", content) for name, content in text.items()}
    leaks = []
    for id, (source, region) in solutions().items():
        if region.task not in [t.id for t in assignment.tasks]:
            continue
        for line in marks.body((clone() / source).read_text(encoding="utf-8"), region).splitlines():
            code = re.sub(r"\s", "", line.partition("  #")[0])
            if len(code) >= TELLING:
                leaks += [f"{id}: {line.strip()} (in {name})" for name, content in squeezed.items() if code in content]
    return leaks


def write(found: Files, folder: Path) -> Path:
    """Write the files into ``folder`` (which must not exist) and into a zip of that name beside it; gives the zip."""
    if folder.exists():
        raise BuildError(f"{folder} exists already: name another folder, or remove it")
    for name, data in found.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return write_zip({f"{folder.name}/{name}": data for name, data in found.items()}, folder.with_suffix(".zip"))


def write_zip(found: Files, path: Path, executable: tuple[str, ...] = ()) -> Path:
    """A zip with the same bytes for the same files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(found.items()):
            entry = zipfile.ZipInfo(name, WHEN)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (0o755 if name in executable else 0o644) << 16
            archive.writestr(entry, data)
    shutil.move(partial, path)
    return path


def autograder(assignment: Assignment, seed: int) -> Files:
    """What Gradescope wants: ``setup.sh``, ``run_autograder`` and the whole package with the teacher's part."""
    root = clone()
    found = {f"source/{name}": data for name, data in package_files(root).items()}
    for name in ("setup.cfg", "pyproject.toml", "LICENSE", "README.md"):
        found[f"source/{name}"] = (root / name).read_bytes()
    for path in sorted((PACKAGE / "course" / "teacher" / "templates").iterdir()):
        found[f"source/{path.relative_to(root).as_posix()}"] = path.read_bytes()
    found["setup.sh"] = template("setup.sh").encode()
    found["run_autograder"] = template("run_autograder").format(id=assignment.id, seed=seed).encode()
    return found


def template(name: str) -> str:
    return resources("minitorch_peft.course.teacher").joinpath("templates", name).read_text(encoding="utf-8")


def to_json(value: object) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
