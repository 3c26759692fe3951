"""Marks: regions are found by lines, whatever stands around them, and replaced without touching the rest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitorch_peft.course import marks
from minitorch_peft.course.library import Library, solutions, sources

SOURCE = '''def f(x):
    """Text."""
    # BEGIN SOLUTION(task="7.1a")
    y = x

    return y
    # END SOLUTION


class C:
    def g(self):
        # BEGIN SOLUTION(task="7.1b")
        return 1
        # END SOLUTION
'''


def test_regions_have_ids_lines_and_indentation():
    a, b = marks.find(SOURCE).values()
    assert (a.id, a.task, a.indent) == ("7.1a", "7.1", "    ")
    assert (b.id, b.task, b.indent) == ("7.1b", "7.1", "        ")
    assert marks.body(SOURCE, a) == "    y = x\n\n    return y\n"


def test_replacing_keeps_marks_indentation_and_everything_else():
    new = marks.replace(SOURCE, {"7.1a": "    if x:\n        return 2\n    return 3\n"})
    assert new == SOURCE.replace("    y = x\n\n    return y\n", "    if x:\n        return 2\n    return 3\n")
    assert marks.replace(SOURCE, {}) == SOURCE
    assert marks.replace(SOURCE, {r.id: marks.body(SOURCE, r) for r in marks.find(SOURCE).values()}) == SOURCE


ODD = """\
#   y = x + 1
    y = x  # a comment at column 0 above, a string's end below
    z = \'\'\'
end\'\'\'
    return y
"""


def test_lines_at_column_0_stay_where_they_are():
    """What is right in a student's file, where an editor commented a line out, must be right when spliced."""
    text = marks.replace(SOURCE, {"7.1a": ODD})
    assert ODD in text
    (region,) = [r for r in marks.find(text).values() if r.id == "7.1a"]
    assert marks.replace(SOURCE, {"7.1a": marks.body(text, region)}) == text


def test_a_damaged_mark_spoils_its_own_region_only():
    lost_end = SOURCE.replace("    # END SOLUTION\n", "", 1)
    regions, broken = marks.scan(lost_end)
    assert list(regions) == ["7.1b"] and list(broken) == ["7.1a"]
    assert marks.replace(lost_end, {"7.1a": "pass", "7.1b": "return 2"}) == lost_end.replace("return 1", "return 2")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s.replace("    # END SOLUTION\n", "", 1), "begins inside that of 7.1a"),
        (lambda s: s[: s.rindex("        # END")], "7.1b has no END SOLUTION"),
        (lambda s: s.replace('    # BEGIN SOLUTION(task="7.1a")\n', ""), "ends that did not begin"),
        (lambda s: s.replace("7.1b", "7.1a"), "7.1a is there twice"),
    ],
)
def test_damaged_marks_are_named_with_their_line(damage, message):
    with pytest.raises(marks.MarkError, match=rf"^line \d+: .*{message}"):
        marks.find(damage(SOURCE))


@given(st.text(alphabet=" \n#BEGINSOLUTIONtask()=\"7.1a'", max_size=200))
def test_any_text_is_read_or_refused(text):
    try:
        found = marks.find(text)
    except marks.MarkError:
        return
    assert marks.replace(text, {}) == text
    assert all(r.start <= r.stop for r in found.values())


def test_the_library_is_marked_with_whole_statements():
    """Each region compiles when it is replaced by a hole, and by itself: it is a run of statements of one block."""
    files = sources()
    for id, (name, region) in solutions().items():
        text = files[name].read_text(encoding="utf-8")
        compile(marks.replace(text, {id: 'raise NotImplementedError("hole")'}), name, "exec")
        assert marks.replace(text, {id: marks.body(text, region)}) == text


def test_splicing_an_unknown_region_is_refused():
    with Library() as library, pytest.raises(ValueError, match=r"no region 9\.9"):
        library.spliced({"9.9": "pass"})


def test_what_a_copy_changes_is_changed_nowhere_else():
    with Library() as library:
        name, region = library.regions["1.3a"]
        before = library.text(name)
        copies = {source: library.spliced({region.id: source}) for source in ("return 1", "return 2")}
        texts = {source: library.path(name, root).read_text() for source, root in copies.items()}
        assert library.text(name) == before
        assert texts == {source: marks.replace(before, {region.id: source}) for source in copies}
