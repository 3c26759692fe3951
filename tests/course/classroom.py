"""A class of made-up submissions whose right scores are known, to grade as a teacher would.

    python -P tests/course/classroom.py a1 40 runs/class        # 40 submissions, and expected.csv
    minitorch-peft course grade runs/class/submissions/* --out runs/class/graded

Each task of each student is a right solution, a known mistake (both from ``course/teacher/proofs``) or open.
"""

from __future__ import annotations

import csv
import random
import sys
import zipfile
from pathlib import Path

from minitorch_peft.course import marks
from minitorch_peft.course.library import Library
from minitorch_peft.course.manifest import Assignment, load
from minitorch_peft.course.teacher import build
from minitorch_peft.course.teacher.proof import proofs_of


def make_class(assignment: Assignment, folder: Path, count: int, seed: int = 0) -> dict[str, int]:
    """Write ``count`` submissions (folders and zips in turn) into ``folder``; gives their right scores by name."""
    handout = {name: data.decode() for name, data in build.handout(assignment).items() if name.endswith(".py")}
    rng = random.Random(seed)
    scores = {}
    with Library() as library:
        for i in range(count):
            name = f"student-{i + 1:02}"
            solutions, scores[name] = work_of_one(assignment, library, rng)
            changed = {
                path: marks.replace(text, solutions)
                for path, text in handout.items()
                if path in {library.regions[r][0] for r in solutions}
            }
            write(changed, folder, name, as_zip=bool(i % 2))
    return scores


def work_of_one(assignment: Assignment, library: Library, rng: random.Random) -> tuple[dict[str, str], int]:
    """One student's solutions by region, and the points that they are worth. Some work hard, some less so."""
    diligence = rng.uniform(0.3, 1.0)
    solutions: dict[str, str] = {}
    score = 0
    for task in assignment.tasks:
        proof, own = proofs_of(assignment)[task.id], {r: library.solution(r) for r in library.regions_of(task.id)}
        luck = rng.random()
        if luck < diligence * 0.8:
            solutions |= own | dict(rng.choice([{}, *proof.right.values()]))
            score += task.points
        elif luck < diligence:
            solutions |= own | dict(rng.choice(list(proof.wrong.values())))
        else:
            solutions |= dict.fromkeys(own, task.hole())
    return solutions, score


def write(files: dict[str, str], folder: Path, name: str, as_zip: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if as_zip:
        with zipfile.ZipFile(folder / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for path, text in files.items():
                archive.writestr(f"{name}/{path}", text)
        return
    for path, text in files.items():
        place = folder / name / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    id, number, target = sys.argv[1:]
    expected = make_class(load(id), Path(target) / "submissions", int(number))
    with open(Path(target) / "expected.csv", "w", newline="") as file:
        csv.writer(file).writerows([("name", "score"), *expected.items()])
    print(f"{number} submissions in {target}/submissions, their right scores in {target}/expected.csv")
