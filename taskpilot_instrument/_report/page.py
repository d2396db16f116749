"""A report as one page of HTML: to be read in light and dark, on a phone, on paper, and aloud."""

from collections.abc import Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING, Final

from taskpilot_instrument._display import UNKNOWN
from taskpilot_instrument._report import words
from taskpilot_instrument._report.compare import Figure
from taskpilot_instrument._report.plot import plot
from taskpilot_instrument._report.signals import DEFINITIONS
from taskpilot_instrument._report.tables import Table

if TYPE_CHECKING:
    from taskpilot_instrument._report.report import Report

#: Should anything in it ever pass for more than text, the browser is told to run and load nothing.
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE: Final = """
:root { color-scheme: light dark; --back: #f6f7f9; --card: #fff; --text: #16181d; --quiet: #5a6270; --line: #d9dde4;
  --now: #2563eb; --before: #9a3412; --good: #15713a; --warn: #8a5300; --bad: #b42318; }
@media (prefers-color-scheme: dark) { :root { --back: #0f1115; --card: #181b21; --text: #e8eaee; --quiet: #9aa3b2;
  --line: #2c313a; --now: #60a5fa; --before: #fdba74; --good: #4ade80; --warn: #fbbf24; --bad: #f87171; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 16px; background: var(--back); color: var(--text);
  font: 15px/1.45 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.45rem; margin: 0; } h2 { font-size: 1.1rem; margin: 0 0 8px; }
p { margin: 4px 0; } .first { border-left: 4px solid var(--warn); padding-left: 8px; }
.quiet { color: var(--quiet); font-size: 0.9rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px;
  margin-top: 16px; }
.course { display: grid; grid-template-columns: minmax(0, 3fr) minmax(0, 2fr); gap: 16px; align-items: start; }
.course > * { min-width: 0; } figure { margin: 0; }
.scroll { overflow: auto; } .course .scroll { max-height: 300px; }
:focus-visible { outline: 2px solid var(--now); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-size: 0.92rem; overflow-wrap: normal; }
caption { text-align: left; color: var(--quiet); font-size: 0.85rem; padding-bottom: 4px; }
th, td { padding: 5px 8px; border-top: 1px solid var(--line); text-align: right; font-variant-numeric: tabular-nums;
  vertical-align: top; white-space: nowrap; }
th { font-weight: 600; }
th:first-child { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 7em; }
tbody th { font-weight: 400; } thead td { border-top: 0; } thead th { color: var(--quiet); border-top: 0; }
small { display: block; color: var(--quiet); }
.better, .healthy { color: var(--good); } .warning { color: var(--warn); } .worse, .critical { color: var(--bad); }
.better, .worse, .healthy, .warning, .critical { font-weight: 600; }
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--quiet); font-size: 12px; } line.scale { stroke: var(--line); }
line.limit { stroke: var(--good); stroke-dasharray: 2 4; stroke-width: 1.5; }
rect.now, circle.now { fill: var(--now); } rect.now { fill-opacity: 0.65; } polyline { fill: none; stroke-width: 2; }
polyline.now { stroke: var(--now); }
polyline.before { stroke: var(--before); stroke-dasharray: 5 4; stroke-width: 1.5; }
circle.before { fill: var(--before); }
.key { display: flex; flex-wrap: wrap; gap: 4px 18px; }
.key span::before { content: ""; display: inline-block; width: 18px; margin-right: 6px; vertical-align: middle;
  border-top: 3px solid var(--now); }
.key .was::before { border-top: 2px dashed var(--before); } .key .limit::before { border-top: 2px dotted var(--good); }
@media (max-width: 760px) { .course { grid-template-columns: minmax(0, 1fr); }
  body, section { padding: 10px; } svg text { font-size: 20px; }
  table { font-size: 0.84rem; } th, td { padding: 4px; } th:first-child { min-width: 5.5em; }
  td:last-child { white-space: normal; } }
@media print { :root { --back: #fff; --card: #fff; --text: black; --quiet: dimgray; --line: #bbb; --now: #2563eb;
  --before: #9a3412; --good: #15713a; --warn: #8a5300; --bad: #b42318; }
  body { max-width: none; padding: 0; font-size: 11px; } section { break-inside: avoid; border: 0; padding: 0; }
  .scroll, .course .scroll { overflow: visible; max-height: none; } rect { print-color-adjust: exact; } }
"""


def html(report: "Report") -> str:
    """Return a report's review as a page; names are text in it, whatever they hold."""
    return "".join(_parts(report))


def _parts(report: "Report") -> Iterator[str]:
    title = escape(words.title_of(report))
    yield (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>'
        f"<style>{_STYLE}</style></head>\n<body><header><h1>{title}</h1>"
        f'<p class="quiet">{escape(words.subtitle_of(report))}.</p>'
        f'<p>Golden signals: <span class="{report.verdict}">{report.verdict}</span></p>'
    )
    yield from (f'<p class="first">{escape(note)}</p>' for note in report.first)
    yield "</header><main>"
    for heading, keys in report.review.sections.items():
        yield _section(heading, _figures(heading, [report.figures[key] for key in keys]))
    for key in report.review.plots:
        yield _course(report, key)
    for key in report.review.tables:
        if key in report.tables:
            yield _section(report.tables[key].title, _breakdown(report.tables[key]))
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes[len(report.first) :])
    yield f'<section><h2>Notes</h2><ul class="quiet">{notes}</ul></section></main></body></html>\n'


def _section(heading: str, content: str) -> str:
    return f"<section><h2>{escape(heading)}</h2>{content}</section>\n"


def _figures(heading: str, figures: Sequence[Figure]) -> str:
    rows = []
    for each in figures:
        value, before, change, trend, verdict = words.cells(each)
        rows.append(
            f'<tr><th scope="row">{escape(each.label)}</th><td>{value}{_under(verdict, each.verdict)}</td>'
            f"<td>{before}</td><td>{change}{_under(trend, each.trend)}</td></tr>"
        )
    return _table(heading, "", words.HEADS[:3], rows)


def _under(text: str, kind: str) -> str:
    return "" if text == UNKNOWN else f'<small class="{kind}">{text}</small>'


def _course(report: "Report", key: str) -> str:
    definition, points, slot = DEFINITIONS[key], report.trends[key], words.slot_of(report)
    rows = [
        f'<tr><th scope="row">{escape(point.label)}</th><td>{words.shown(point.value, definition.unit)}</td>'
        f"<td>{words.shown(point.before, definition.unit)}</td></tr>"
        for point in points
        if point.value is not None or point.before is not None
    ]
    legend = f"<span>this {report.period}</span>"
    if any(point.before is not None for point in points):
        legend += f'<span class="was">the {report.period} before</span>'
    drawn = plot(definition, points, report.places, f"plot-{key.replace('_', '-')}")
    if 'class="limit"' in drawn:
        legend += '<span class="limit">bound of healthy</span>'
    label = definition.label
    heading = f"{label if label.startswith('p95') else label[0].upper() + label[1:]}, by {slot}"
    return _section(
        heading,
        f'<div class="course"><figure>{drawn}<figcaption class="quiet key">{legend}</figcaption></figure>'
        f"{_table(heading, slot, ('value', 'before'), rows)}</div>",
    )


def _breakdown(table: Table) -> str:
    rows = []
    for row in table.rows:
        note = f"<small>{escape(row.note)}</small>" if row.note else ""
        cells = "".join(
            f"<td>{words.shown(row.values[column.key], column.unit)}"
            f"<small>before {words.shown(row.before[column.key], column.unit)}</small></td>"
            for column in table.columns
        )
        rows.append(f'<tr><th scope="row">{escape(row.name)}{note}</th>{cells}</tr>')
    return _table(table.title, table.head, [column.label for column in table.columns], rows)


def _table(name: str, head: str, columns: Sequence[str], rows: Sequence[str]) -> str:
    """Return a table that scrolls by itself, with a keyboard too, where it is wider than the screen."""
    heads = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    first = f'<th scope="col">{escape(head)}</th>' if head else "<td></td>"
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(name)}: figures"><table><thead><tr>{first}'
        f"{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
