"""Findings of ``check``, and how they are printed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """``code`` names its kind, ``place`` says where; ``problem`` is what is wrong, ``fix`` what to do about it."""

    code: str
    place: str
    problem: str
    fix: str
    failure: bool = True

    def __str__(self) -> str:
        kind = "FAILURE" if self.failure else "remark "
        return f"{kind} {self.code} at {self.place}: {self.problem}\n    do: {self.fix}"


def failure(code: str, place: str, problem: str, fix: str) -> Finding:
    return Finding(code, place, problem, fix)


def remark(code: str, place: str, problem: str, fix: str) -> Finding:
    return Finding(code, place, problem, fix, failure=False)


@dataclass(frozen=True)
class Report:
    """All findings, failures first when printed.

    >>> report = Report((remark("tied-weights", "default", "merging unties", "save it untied"),))
    >>> report.ok, report.codes
    (True, ['tied-weights'])
    >>> print(report)
    no failure, 1 remark
    remark  tied-weights at default: merging unties
        do: save it untied
    """

    findings: tuple[Finding, ...] = ()

    @property
    def ok(self) -> bool:
        """No failure; there may be remarks."""
        return not any(f.failure for f in self.findings)

    @property
    def codes(self) -> list[str]:
        return [f.code for f in self.findings]

    def __str__(self) -> str:
        bad, good = ([f for f in self.findings if f.failure is kind] for kind in (True, False))
        parts = [counted(len(bad), "failure")] if bad or not good else ["no failure"]
        heading = ", ".join(parts + ([counted(len(good), "remark")] if good else []))
        return "\n".join([heading, *map(str, [*bad, *good])])


def counted(count: int, word: str) -> str:
    return f"no {word}" if not count else f"{count} {word}{'s' if count > 1 else ''}"
