"""What students hand in: every form of it is read, and nothing of it is trusted."""

from __future__ import annotations

import io
import os
import struct
import zipfile

import pytest

from minitorch_peft.course.teacher import submission
from minitorch_peft.course.teacher.submission import decoded, is_hole, leaves, name_of, read, tail


def region(id: str, source: str = "return 1") -> str:
    return f'def f():\n    # BEGIN SOLUTION(task="{id}")\n    {source}\n    # END SOLUTION\n'


def zipped(path, entries, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def project(tmp_path):
    """A folder with two solutions, deep down, and much that is not to be read."""
    inner = tmp_path / "anna" / "my project" / "minitorch_peft"
    for folder in ("ops", "course", "course/assignments/a1", "__pycache__", ".venv", "env2"):
        (inner / folder).mkdir(parents=True)
    (inner / "ops" / "one.py").write_text(region("1.1a", "return 11"))
    (inner / "two.py").write_text(region("1.2", "return 12"))
    (inner / "course" / "marks.py").write_text(region("1.1a", "an example"))
    for skipped in ("__pycache__", ".venv", "env2"):
        (inner / skipped / "old.py").write_text(region("1.1a", "return 'old'"))
    (inner / "env2" / "pyvenv.cfg").write_text("")
    (tmp_path / "anna" / "__MACOSX").mkdir()
    (tmp_path / "anna" / "__MACOSX" / "._one.py").write_bytes(b"\0\5\x16\7")
    return tmp_path / "anna"


EXPECTED = {"1.1a": "    return 11\n", "1.2": "    return 12\n"}


def test_a_folder_is_read_however_deep_without_caches_and_environments(project):
    found = read(project)
    assert (found.name, found.regions, found.spoiled, found.notes) == ("anna", EXPECTED, {}, [])


def test_a_zip_and_a_zip_in_a_folder_are_read_alike(project, tmp_path):
    files = {str(p.relative_to(tmp_path)): p.read_bytes() for p in sorted(project.rglob("*")) if p.is_file()}
    files = {name: data for name, data in files.items() if "env2" not in name}
    path = zipped(tmp_path / "ben.zip", files)
    assert (read(path).name, read(path).regions, read(path).notes) == ("ben", EXPECTED, [])
    (tmp_path / "Carla_123_assignsubmission_file").mkdir()
    path.rename(tmp_path / "Carla_123_assignsubmission_file" / "upload.zip")
    moodle = read(tmp_path / "Carla_123_assignsubmission_file")
    assert (moodle.name, moodle.regions) == ("Carla_123_assignsubmission_file", EXPECTED)


def test_a_single_file_is_read(tmp_path):
    (tmp_path / "dora.v2.py").write_text(region("1.2"))
    assert read(tmp_path / "dora.v2.py").regions == {"1.2": "    return 1\n"}
    assert name_of(tmp_path / "dora.v2.py") == "dora.v2"
    (tmp_path / "e.f").mkdir()
    assert name_of(tmp_path / "e.f") == "e.f"


def test_long_names_are_cut_and_differ_all_the_same(tmp_path):
    names = [name_of(tmp_path / f"{'é' * 120}{end}.zip") for end in "ab"]
    assert names[0] != names[1] and all(n.startswith("é" * 50 + "-") and len(n.encode()) == 109 for n in names)
    assert name_of(tmp_path / f"{'a' * 100}.py") == "a" * 100


def test_what_the_system_cannot_read_is_an_error_and_no_empty_submission(tmp_path, monkeypatch):
    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "a.py").write_text(region("1.1"))
    monkeypatch.setattr(submission, "contents", refused)
    assert read(tmp_path / "a.py").error == "it cannot be read (Permission denied)"
    assert read(tmp_path).notes == ["a.py cannot be read (Permission denied)"]  # one of several


@pytest.mark.parametrize("data", [region("1.2").encode("utf-8-sig"), region("1.2").replace("\n", "\r\n").encode()])
def test_marks_of_order_and_line_ends_do_not_matter(tmp_path, data):
    (tmp_path / "a.py").write_bytes(data)
    assert read(tmp_path / "a.py").regions == {"1.2": "    return 1\n"}


@pytest.mark.parametrize(
    ("data", "note"),
    [
        (region("1.2").encode("utf-16"), "a.py is UTF-16: save it as UTF-8"),
        (b"# \xe9\n" + region("1.2").encode(), "a.py is not UTF-8 (byte 2): save it as UTF-8"),
        (region("1.2").encode() + b"\0", "a.py is no text: it has null bytes"),
        (
            region("1.2").replace("# END", "# AND").encode(),
            "a.py: a mark is damaged (line 2: the solution of 1.2 has no END SOLUTION)",
        ),
        (b"x = 1\n" * 300_000, "a.py has more than 1 MB"),
        (b"x = 1\n", "no .py file in it has a mark"),
        (b"", "no .py file in it has a mark"),
    ],
)
def test_what_cannot_be_used_is_noted(tmp_path, data, note):
    (tmp_path / "a.py").write_bytes(data)
    found = read(tmp_path / "a.py")
    assert found.regions == {} and found.notes[0].startswith(note)


def test_a_damaged_mark_costs_its_own_solution_only(tmp_path):
    lost = region("1.2").replace("# END", "# AND")
    (tmp_path / "a.py").write_text(region("1.1") + lost + region("1.3") + region("1.4").replace("# BEGIN", "# BEG"))
    found = read(tmp_path)
    assert list(found.regions) == ["1.1", "1.3"]
    assert list(found.spoiled) == ["1.2"] and "which has no END SOLUTION" in found.spoiled["1.2"]
    assert found.notes == [
        found.spoiled["1.2"],
        "a.py: a mark is damaged (line 16: a solution ends that did not begin)",
    ]
    (tmp_path / "b.py").write_text(region("1.2"))
    assert list(read(tmp_path).regions) == ["1.1", "1.2", "1.3"] and read(tmp_path).spoiled == {}


@pytest.mark.parametrize("name", ["dist", "build", "env", "venv"])
def test_folders_of_environments_and_builds_are_read_where_nothing_else_has_a_solution(tmp_path, name):
    inner = tmp_path / "anna" / name / "minitorch_peft"
    (inner / "site-packages").mkdir(parents=True)
    (inner / "a.py").write_text(region("1.1"))
    (inner / "site-packages" / "b.py").write_text(region("1.2"))
    files = {p.relative_to(tmp_path / "anna").as_posix(): p.read_bytes() for p in inner.rglob("*.py")}
    for found in (read(tmp_path / "anna"), read(zipped(tmp_path / "anna.zip", files))):
        assert list(found.regions) == ["1.1"]
        assert found.notes == [f"no solution was outside of folders called {name}, so what is in these was read"]
    (tmp_path / "anna" / "c.py").write_text(region("1.3"))
    assert (list(read(tmp_path / "anna").regions), read(tmp_path / "anna").notes) == (["1.3"], [])


def test_two_versions_of_a_solution_spoil_it_but_a_hole_does_not(tmp_path):
    hole = 'raise NotImplementedError("Task 1.2: Sums; read chapter 2")'
    (tmp_path / "a.py").write_text(region("1.1", "return 1") + region("1.2", hole) + region("1.3"))
    (tmp_path / "b.py").write_text(region("1.1", "return 2") + region("1.2", "return 2") + region("1.3"))
    found = read(tmp_path)
    assert found.regions == {"1.2": "    return 2\n", "1.3": "    return 1\n"}
    assert found.spoiled == {
        "1.1": "the submission has different solutions of 1.1 in a.py, b.py: only one may be there"
    }
    assert found.notes == [found.spoiled["1.1"]]
    assert is_hole(hole) and not is_hole(hole + "\nreturn 1")


def test_nothing_is_followed_out_of_the_folder(tmp_path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "a.py").write_text(region("1.1"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "link.py").symlink_to(tmp_path / "secret" / "a.py")
    (tmp_path / "mine" / "folder").symlink_to(tmp_path / "secret")
    os.mkfifo(tmp_path / "mine" / "pipe.py")
    found = read(tmp_path / "mine")
    assert found.regions == {} and found.notes == ["link.py is a link: not followed"]


def test_a_missing_submission_and_one_of_another_kind_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no submission .*nobody"):
        read(tmp_path / "nobody")
    (tmp_path / "essay.docx").write_bytes(b"PK")
    assert read(tmp_path / "essay.docx").notes == ["essay.docx is no folder, .zip or .py file"]


def test_a_folder_has_limits(tmp_path, monkeypatch):
    monkeypatch.setattr(submission, "MOST_ENTRIES", 3)
    monkeypatch.setattr(submission, "LARGEST_TOTAL", 150)
    for i in range(5):
        (tmp_path / f"{i}.py").write_text(region(f"1.{i}"))
    notes = read(tmp_path).notes
    assert any(n.startswith("more than 3 files") for n in notes)
    assert any(n.startswith("more than 0 MB of sources") for n in notes)


@pytest.mark.parametrize("name", ["../a.py", "x/../../a.py", "/a.py", "C:/a.py", "..\\a.py", "\\a.py"])
def test_a_name_that_leaves_the_zip_is_refused(tmp_path, name):
    found = read(zipped(tmp_path / "a.zip", {name: region("1.1"), "b.py": region("1.2")}))
    assert leaves(name) and list(found.regions) == ["1.2"]
    assert "points out of the zip" in found.notes[0]


def test_a_link_in_a_zip_is_not_followed(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        entry = zipfile.ZipInfo("a.py")
        entry.external_attr = 0o120777 << 16
        archive.writestr(entry, "/etc/passwd")
    assert read(tmp_path / "a.zip").notes == ["a.py is a link: not followed"]


def test_a_zip_bomb_is_refused_whatever_it_says_of_its_size(tmp_path):
    data = io.BytesIO()
    zipped(data, {"a.py": region("1.1") + "#" * 30_000_000, "b.py": region("1.2")})
    path = tmp_path / "a.zip"
    path.write_bytes(data.getvalue())
    assert "a zip bomb, refused" in read(path).notes[0] and list(read(path).regions) == ["1.2"]
    lie = data.getvalue().replace(struct.pack("<I", 30_000_000 + len(region("1.1"))), struct.pack("<I", 100))
    path.write_bytes(lie)
    assert "1.1" not in read(path).regions


def test_zips_that_cannot_be_read_are_told(tmp_path):
    path = tmp_path / "a.zip"
    whole = zipped(path, {"a.py": region("1.1") * 1}).read_bytes()
    path.write_bytes(whole[:40])
    assert "is no zip, or a damaged one" in read(path).notes[0]
    path.write_bytes(whole[:45] + b"\xff" + whole[46:])
    assert "damaged" in read(path).notes[0]
    zipped(path, {"a.py": region("1.1")}, zipfile.ZIP_LZMA)
    assert read(path).notes == ["a.py is packed by an unusual method: make an ordinary zip"]
    zipped(path, {"inner.zip": whole})
    assert read(path).notes == ["inner.zip is a zip inside a zip: not read"]


def test_there_is_an_end_to_notes(tmp_path):
    for i in range(50):
        (tmp_path / f"{i}.py").write_bytes(b"\xff")
    notes = read(tmp_path).notes
    assert len(notes) == submission.MOST_NOTES + 1 and notes[-1] == "... and more"


def test_notes_are_readable(tmp_path):
    (tmp_path / "a\x1b[2J.py").write_bytes(b"\xff")
    assert read(tmp_path).notes == ["a\ufffd[2J.py is not UTF-8 (byte 0): save it as UTF-8"]


def test_the_fingerprint_is_of_what_counts(tmp_path):
    (tmp_path / "a.py").write_text(region("1.1"))
    first = read(tmp_path).digest
    (tmp_path / "notes.txt").write_text("new")
    assert read(tmp_path).digest == first
    (tmp_path / "a.py").write_text(region("1.1", "return 2"))
    assert read(tmp_path).digest != first


def test_names_are_cut_to_the_repository():
    assert tail("x/y/minitorch_peft/course/marks.py") == "minitorch_peft/course/marks.py"
    assert tail("my_minitorch_peft/a.py") == "my_minitorch_peft/a.py"
    assert tail("kernels/a.py") == "kernels/a.py"


def test_text_is_decoded_with_plain_line_ends():
    assert decoded("a.py", b"a\r\nb\rc") == "a\nb\nc"
