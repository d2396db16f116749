"""A report as Markdown: tables that read well as plain text too."""

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from taskpilot_instrument._report import words
from taskpilot_instrument._report.signals import DEFINITIONS, Value
from taskpilot_instrument._report.tables import Table

if TYPE_CHECKING:
    from taskpilot_instrument._report.report import Report

_SPECIAL: Final = re.compile(r"([\\`*_\[\]<>#|~&$])")
#: Line breaks end a row, other control characters may do anything to a terminal.
_UNSEEN: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def markdown(report: "Report") -> str:
    """Return a report's review as Markdown; names are text in it, whatever they hold."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: "Report") -> Iterator[str]:
    yield f"# {words.title_of(report)}"
    yield ""
    yield f"{escaped(words.subtitle_of(report))}."
    yield ""
    yield f"Golden signals: **{report.verdict}**"
    for note in report.first:
        yield from ("", note)
    for heading, keys in report.review.sections.items():
        yield from _section(heading, _figures(report, keys))
    yield from _section(f"By {words.slot_of(report)} (in parentheses: before)", _course(report))
    for key in report.review.tables:
        if key in report.tables:
            yield from _section(f"{report.tables[key].title} (in parentheses: before)", _breakdown(report.tables[key]))
    yield from ("", "## Notes", "")
    yield from (f"- {note}" for note in report.notes[len(report.first) :])


def _section(heading: str, rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield from ("", f"## {heading}", "")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head, *body = rows
    yield _row(head, widths)
    yield f"| {'-' * widths[0]} | " + " | ".join(f"{'-' * (width - 1)}:" for width in widths[1:]) + " |"
    yield from (_row(row, widths) for row in body)


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = zip(cells, widths, strict=True)
    return "| " + " | ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]) + " |"


def _figures(report: "Report", keys: Sequence[str]) -> list[list[str]]:
    return [
        ["", *words.HEADS],
        *([figure.label, *words.cells(figure)] for figure in map(report.figures.get, keys) if figure),
    ]


def _course(report: "Report") -> list[list[str]]:
    """Return one row for each hour or day of which anything is known."""
    definitions = [DEFINITIONS[key] for key in report.review.plots]
    rows = [[words.slot_of(report), *(definition.label for definition in definitions)]]
    for points in zip(*(report.trends[definition.key] for definition in definitions), strict=True):
        if any(point.value is not None or point.before is not None for point in points):
            pairs = zip(points, definitions, strict=True)
            rows.append([points[0].label, *(_both(each.value, each.before, about.unit) for each, about in pairs)])
    return rows


def _both(value: Value, before: Value, unit: str) -> str:
    return f"{words.shown(value, unit)} ({words.shown(before, unit)})"


def _breakdown(table: Table) -> list[list[str]]:
    rows = [[table.head, *(column.label for column in table.columns)]]
    for row in table.rows:
        note = f" ({escaped(row.note)})" if row.note else ""
        rows.append(
            [
                f"{escaped(row.name)}{note}",
                *(_both(row.values[each.key], row.before[each.key], each.unit) for each in table.columns),
            ]
        )  # fmt: skip
    return rows


def escaped(text: str) -> str:
    """Return text that Markdown shows as it is, in a cell of a table too."""
    return _SPECIAL.sub(r"\\\1", _UNSEEN.sub(" ", text))
