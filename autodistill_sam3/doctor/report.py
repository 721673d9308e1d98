"""What was found, and how it is shown."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

Level = Literal["ok", "info", "warning", "problem"]

_WIDTH = 120
_CURE = "cure: "


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        section: What it belongs to, such as "Device".
        title: What was looked at.
        value: What was found.
        level: "ok": as it should be. "info": worth knowing. "warning": labelling runs, but slower or with less than
            was meant. "problem": labelling with these settings could not run.
        cure: What to do about a warning or a problem.
    """

    section: str
    title: str
    value: str
    level: Level = "ok"
    cure: str = ""


@dataclass(frozen=True)
class Report:
    """Everything that was found.

    Attributes:
        findings: In the order in which they are shown; those of a section follow each other.
    """

    findings: tuple[Finding, ...]

    @property
    def can_label(self) -> bool:
        """Whether labelling with the settings that were asked about could run."""
        return not self.of_level("problem")

    def of_level(self, level: Level) -> list[Finding]:
        """The findings of this level."""
        return [finding for finding in self.findings if finding.level == level]


def format_report(report: Report) -> str:
    """Plain text for a terminal or a bug report.

    Example:
        >>> print(format_report(Report((Finding("Device", "GPU", "none", "problem", "Buy one."),))))
        Device
          problem  GPU   none
                         cure: Buy one.
        <BLANKLINE>
        Labelling could not run: 1 problem, 0 warnings.
    """
    indent = max((len(finding.title) for finding in report.findings), default=0) + 3
    lines: list[str] = []
    for section, findings in groupby(report.findings, key=lambda finding: finding.section):
        lines += [section, *_rows(findings, indent), ""]
    can = "can run" if report.can_label else "could not run"
    counts = [_count(len(report.of_level(level)), level) for level in ("problem", "warning")]
    return "\n".join([*lines, f"Labelling {can}: {', '.join(counts)}."])


def _rows(findings: Iterable[Finding], indent: int) -> Iterator[str]:
    for finding in findings:
        yield from _wrapped(f"  {finding.level:<7}  {finding.title:<{indent}}", finding.value)
        if finding.cure:
            yield from _wrapped(" " * (11 + indent) + _CURE, finding.cure)


def _wrapped(start: str, text: str) -> Iterator[str]:
    """The text behind `start`, further lines under its beginning; words such as paths stay whole."""
    hanging = " " * len(start)
    for number, line in enumerate(text.splitlines() or [""]):
        yield (
            textwrap.fill(
                line,
                _WIDTH,
                initial_indent=hanging if number else start,
                subsequent_indent=hanging,
                break_long_words=False,
                break_on_hyphens=False,
            ).rstrip()
            or start.rstrip()
        )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
