"""How answers are shown: numbers as people read them, aligned tables, and the same tables as HTML."""

from collections.abc import Sequence
from html import escape
from math import floor, log10

#: Stands where nothing is known.
UNKNOWN = "–"
_UNITS = {"s": 1, "m": 60, "h": 3600}


def span(seconds: int) -> str:
    """Show a stretch of time in the largest unit that it is a whole number of."""
    unit, size = next((unit, size) for unit, size in reversed(_UNITS.items()) if seconds % size == 0)
    return f"{seconds // size}{unit}"


def usd(amount: float | None) -> str:
    """Show money with four decimals, and small amounts with three digits that count: they add up to large ones."""
    if amount is None:
        return UNKNOWN
    return f"{'-' if amount < 0 else ''}${abs(amount):,.{usd_decimals(amount)}f}"


def usd_decimals(amount: float) -> int:
    """Return with how many decimals money is shown: four, or so many that three digits count; never as zero."""
    return 4 if not 0 < abs(amount) < 0.01 else 2 - floor(log10(abs(amount)))


def milliseconds(value: float | None) -> str:
    """Show a duration, with a decimal where it is short."""
    if value is None:
        return UNKNOWN
    return f"{value:,.0f} ms" if abs(value) >= 10 else f"{value:.1f} ms"


def percent(value: float | None) -> str:
    """Show a share."""
    return UNKNOWN if value is None else f"{value:.2f} %"


def number(value: float | None) -> str:
    """Show how many."""
    return UNKNOWN if value is None else f"{value:,}"


def of(amount: int, what: str) -> str:
    """Show how many of what."""
    return f"{amount:,} {what}" if amount == 1 else f"{amount:,} {what}s"


def table(rows: Sequence[Sequence[str]], *, indent: str = "  ") -> list[str]:
    """Return lines in which columns are aligned: the first to the left, further ones to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        (indent + "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])).rstrip() for row in rows
    ]


def html_table(caption: str, rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose first row is its head; all of it is escaped."""
    head, *body = rows
    lines = "".join(_html_row("td", row) for row in body)
    return (
        f"<table><caption>{escape(caption)}</caption><thead>{_html_row('th', head)}</thead>"
        f"<tbody>{lines}</tbody></table>"
    )


def _html_row(cell: str, texts: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{cell}>{escape(text)}</{cell}>' for text in texts)}</tr>"
