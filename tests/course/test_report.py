"""Pages for students and for the class: everything is there, and nothing of a student's is taken for HTML."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from minitorch_peft.course.manifest import load
from minitorch_peft.course.runner import Outcome, TaskResult
from minitorch_peft.course.teacher import report, similarity
from minitorch_peft.course.teacher.results import Result

A1 = load("a1")
EVIL = "<script>alert(1)</script>'\"&"


class Tags(HTMLParser):
    """Which elements a page has, and where it points."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]
        assert not [name for name, _ in attributes if name.startswith("on")]


def result(name: str, because: str = "the sign", **changes: object) -> Result:
    outcomes = [Outcome("one", "public", True), Outcome(EVIL, "public", False, EVIL, because, f"x = {EVIL}")]
    tasks = [TaskResult(t.id, t.title, t.points, "passed", [Outcome("one", "public", True)]) for t in A1.tasks[1:]]
    first = TaskResult(A1.tasks[0].id, A1.tasks[0].title, 10, "failed", outcomes, EVIL)
    made = Result(name, "a1", 1, "", [first, *tasks], {"1.1a": EVIL, "1.2": "return 1"}, [EVIL])
    return replace(made, **changes)


def test_everything_of_a_students_is_escaped():
    evil = result(EVIL, EVIL)
    pairs = [similarity.Pair((EVIL, "b"), (1.0, 0.5), ([(EVIL, True), (EVIL, False)], [(EVIL, True)]))]
    for page in (report.student_page(A1, evil), report.class_page(A1, [evil], pairs)):
        tags = Tags(page)
        assert not {"script", "img", "iframe", "link", "object"} & set(tags.tags)
        assert all(link.startswith("students/") and "<" not in link for link in tags.links)
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
        assert "default-src 'none'" in page


def test_a_students_page_tells_what_failed_and_hides_hidden_inputs():
    page = report.student_page(A1, result("anna"))
    assert "Written questions are marked by your teacher." in page
    assert "90 <small>of 100 points</small>" in page and "the sign" in page and "x = &lt;script" in page
    hidden = Outcome("two", "hidden", False, "f is 1", "the sign", "x = secret")
    first = replace(result("anna").tasks[0], outcomes=[hidden], printed="x = secret")
    page = report.student_page(A1, result("anna", tasks=[first]))
    assert "secret" not in page and "two (a hidden example)" in page


def test_a_submission_that_could_not_be_graded_says_so():
    broken = result("anna", tasks=[], error="its grading process ended by signal 9")
    assert "not graded" in report.student_page(A1, broken)
    page = report.class_page(A1, [broken], [])
    assert "could not be graded: its grading process ended by signal 9" in page


def test_a_weak_sandbox_is_said_everywhere():
    weak = result("anna", missing=["landlock"])
    assert "weak sandbox, without landlock" in report.student_page(A1, weak)
    assert "weak sandbox, without landlock" in report.class_page(A1, [weak], [])


def test_the_class_page_counts():
    results = [result("a"), result("b"), result("c", "a factor"), replace(result("d"), tasks=result("d").tasks[1:])]
    row = report.task_row(A1.tasks[0], results)
    assert row.counts == {"passed": 0, "failed": 3, "not done": 0}
    assert row.causes == [("the sign", 2), ("a factor", 1)]
    page = report.class_page(A1, results, [])
    assert "4 submissions, 4 graded; mean 90.0, median 90" in page
    assert "<li>2 \u00d7 the sign</li>" in page


def test_the_distribution_covers_all_scores():
    bars = report.bars([0, 9, 10, 95, 100], 100)
    assert [(label, count) for label, count, _ in bars if count] == [("0-9", 2), ("10-19", 1), ("90-100", 2)]
    assert len(bars) == 10 and max(height for *_, height in bars) == 85


def test_a_folder_without_results_or_of_two_assignments_is_refused(tmp_path):
    with pytest.raises(report.ReportError, match="no results of `course grade`"):
        report.write(tmp_path)
    (tmp_path / "results").mkdir()
    result("a").save(tmp_path / "results" / "a.json")
    replace(result("b"), assignment="a2").save(tmp_path / "results" / "b.json")
    with pytest.raises(report.ReportError, match="several assignments"):
        report.write(tmp_path)
    replace(result("b"), seed=7).save(tmp_path / "results" / "b.json")
    with pytest.raises(report.ReportError, match="results of seeds 1, 7: remove"):
        report.write(tmp_path)


def test_the_pages_are_written_and_linked(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "similar", lambda *_: [])
    (tmp_path / "results").mkdir()
    for name in ("Anna Ünal #1", "ben"):
        result(name).save(tmp_path / "results" / f"{name}.json")
    assert [r.name for r in report.write(tmp_path)] == ["Anna Ünal #1", "ben"]
    assert (tmp_path / "class.csv").read_text().count("\n") == 3
    page = (tmp_path / "index.html").read_text()
    assert re.findall(r'href="(.*?)"', page) == ["students/Anna%20%C3%9Cnal%20%231.html", "students/ben.html"]
    assert (tmp_path / "students" / "Anna Ünal #1.html").is_file()


# -- solutions that resemble each other -------------------------------------------------------------------------
UNUSUAL = """
total = {{}}
for {i} in range(len({x}) * 3 + 7):
    {key} = ({i} * 17 + 4) % 11 if {i} > 2 else sum({x}[:{i}])
    while {key} in total and total[{key}] != {i}:
        {key} = {key} - 1 if {key} > 0 else {i} * {i}
    total[{key}] = [{i}, {key}, {i} ** {key}]
return sorted(total.values(), key=lambda pair: (pair[1], -pair[0]))[::-1]
"""


def test_copies_with_other_names_are_found_and_forced_solutions_are_not():
    own = {"1.2": "return g", "1.3a": "e = np.exp(x - x.max(-1, keepdims=True))\nreturn e / e.sum(-1, keepdims=True)\n"}
    first = Result("a", "a1", 1, "", regions={**own, "1.1a": UNUSUAL.format(i="i", x="values", key="key")})
    second = Result("b", "a1", 1, "", regions={**own, "1.1a": UNUSUAL.format(i="number", x="x", key="slot")})
    third = Result("c", "a1", 1, "", regions=own)
    fourth = Result("d", "a1", 1, "", regions=own)
    (pair,) = similarity.similar(A1, [first, second, third, fourth])
    assert pair.names == ("a", "b") and min(pair.shares) > 0.9
    for text, result_ in zip(pair.texts, (first, second), strict=True):
        assert "".join(piece for piece, _ in text) == similarity.joined(result_.regions)
        assert "range(len(" in "".join(piece for piece, shared in text if shared)


def test_known_text_does_not_count_however_often_it_occurs():
    known = UNUSUAL.format(i="i", x="x", key="key")
    hashes = similarity.fingerprint(known).hashes
    assert similarity.fingerprint(known, hashes).token_coverage == 0
    assert similarity.fingerprint(f"{known}\n{known}", hashes).token_coverage < 3 * similarity.NOISE


def test_one_submission_resembles_nobody():
    assert similarity.similar(A1, [result("a")]) == []


def test_text_is_cut_into_what_is_shared_and_what_is_not():
    assert similarity.pieces("abcdef", [[1, 3], [3, 4]]) == [("a", False), ("bc", True), ("d", True), ("ef", False)]
    assert similarity.pieces("abc", [[], []]) == [("abc", False)]
