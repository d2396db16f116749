"""How a report says things: values, changes, times, and what a reader has to know."""

from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from taskpilot_instrument._display import UNKNOWN, milliseconds, of, percent, usd
from taskpilot_instrument._report.compare import Figure, Trend
from taskpilot_instrument._report.figures import Source
from taskpilot_instrument._report.signals import MS, PERCENT, USD, Facts, Value, cost
from taskpilot_instrument._report.times import Period, Stretch, Times
from taskpilot_instrument._verdicts import Verdict

if TYPE_CHECKING:
    from taskpilot_instrument._report.report import Report

HEADS: Final = ("value", "before", "change", "trend", "verdict")
#: Not ``strftime``'s, which speaks the application's language.
_WEEKDAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip


def shown(value: Value, unit: str, *, is_lower_bound: bool = False) -> str:
    """Show a value in its unit."""
    if value is None:
        return UNKNOWN
    bound = "≥ " if is_lower_bound else ""
    if unit == USD:
        return bound + (usd(float(value)) if value else "$0")
    if unit == MS:
        return milliseconds(float(value))
    return percent(float(value)) if unit == PERCENT else f"{round(value):,}"


def changed(figure: Figure) -> str:
    """Show what changed: in percent of what was before, of percentages in points."""
    if figure.change is None:
        return UNKNOWN
    if not figure.change:
        return "±0"
    if figure.unit == PERCENT:
        return f"{figure.change:+.2f} points"
    if figure.change_percent is not None:
        return f"{figure.change_percent:+,.1f} %"
    return f"{'+' if figure.change > 0 else ''}{shown(figure.change, figure.unit)}"


def cells(figure: Figure) -> tuple[str, str, str, str, str]:
    """Show a figure under :data:`HEADS`."""
    trend = UNKNOWN if figure.trend is Trend.UNKNOWN else str(figure.trend)
    return (
        shown(figure.value, figure.unit, is_lower_bound=figure.is_lower_bound),
        shown(figure.before, figure.unit, is_lower_bound=figure.was_lower_bound),
        changed(figure),
        f"{trend} (few)" if figure.few and figure.trend in {Trend.BETTER, Trend.WORSE} else trend,
        UNKNOWN if figure.verdict is Verdict.UNKNOWN else str(figure.verdict),
    )


def slot_of(report: "Report") -> str:
    """Name what the course of a figure goes by."""
    return "hour" if report.period is Period.DAY else "day"


def title_of(report: "Report") -> str:
    """Name the review and its period."""
    return f"{report.review.title}: {_period(report.period, report.since)}"


def subtitle_of(report: "Report") -> str:
    """Say which times are compared, and where the figures are from."""
    so_far = "" if report.is_whole else " (not over)"
    since, until = report.before
    before = f"compared with {_moment(since)} to {_moment(until)}" if since < until else "compared with nothing yet"
    return (
        f"{_moment(report.since)} to {_moment(report.until)}{so_far}, {before}; {report.timezone}; from {report.source}"
    )


def label_of(slot: Stretch, times: Times) -> str:
    """Name an hour or a day."""
    local = slot.since.astimezone(times.zone)
    if times.period is not Period.DAY:
        return f"{_WEEKDAYS[local.weekday()]} {local.date().isoformat()}"
    return f"{local:%H:%M}{f' {local.tzname()}' if local.fold else ''}"


def short_label(label: str, places: int) -> str:
    """Return a label as short as an axis needs it: the hour, the day of the week, or that of the month.

    :param places: how many of them the axis has.
    """
    if label[2] == ":":
        return label[:2]
    return label[:3] if places <= len(_WEEKDAYS) else str(int(label[-2:]))


def first(times: Times, now: Facts | None, before: Facts | None, latest: Facts | None) -> tuple[str, ...]:
    """Return what a reader has to know before the figures: why they are fewer than expected.

    :param latest: what happened since the figures end.
    """
    notes = []
    if not times.is_compared and times.now.length:
        notes.append(
            f"The {times.period} has just begun: these are the figures of its first hour, until "
            f"{times.now.until.astimezone(times.zone):%H:%M}. As whole hours are kept, there is no equal part of the "
            f"{times.period} before."
        )
    if latest is not None:
        spent = shown(cost(latest.calls), USD, is_lower_bound=latest.sample.unpriced != 0)
        notes.append(
            f"The hour since {times.now.until.astimezone(times.zone):%H:%M} is not over, and not in the figures: "
            f"{of(round(latest.sample.runs), 'run')}, {round(latest.sample.successes):,} successful, {spent} so far."
        )
    until = times.now.until.astimezone(times.zone)
    return (*notes, *_of_what_is_missing(times, now, before, f" until {until:%H:%M}" if latest is not None else ""))


def about(times: Times, source: Source, now: Facts | None, *, empty_days: int) -> tuple[str, ...]:
    """Return what else a reader has to know of a report.

    :param empty_days: at the beginning of the period before, of which nothing is known, where they matter.
    """
    notes = [*_of_times(times), *source.notes]
    if times.now.since.timestamp() % source.grain.total_seconds():
        notes.append("The periods of this zone begin within an hour: each hour counts where it begins.")
    if empty_days:
        notes.append(
            f"Before, nothing was recorded in the first {of(empty_days, 'day')}: totals may be of unequal times."
        )
    if now is not None and now.sample.unpriced:
        notes.append(
            f"The cost of {of(now.sample.unpriced, 'call')} is not known, or not wholly: costs with ≥ are lower bounds."
        )
    if now is not None:
        notes.append(
            "p95 is estimated from the buckets of a histogram, which can be added up, as Prometheus does: it is as "
            "exact as the bucket that it falls into. Verdicts of users count when they were given."
        )
    return tuple(notes)


def _of_times(times: Times) -> list[str]:
    notes: list[str] = []
    if not times.is_compared:
        return notes
    if not times.is_whole:
        notes.append(
            f"The {times.period} is not over: its first {_length(times.now.length)} are compared with the equal part "
            f"of the {times.period} before."
            if times.are_equal
            else f"The {times.period} is not over, but longer already than the whole {times.period} before."
        )
    elif not times.are_equal:
        notes.append(
            f"This {times.period} has {_length(times.lengths[0])}, the one before {_length(times.lengths[1])}: totals "
            f"are of unequal times."
        )
    return notes


def _of_what_is_missing(times: Times, now: Facts | None, before: Facts | None, until: str) -> list[str]:
    """Say of what nothing is known.

    :param until: up to when the figures are, where something happened since.
    """
    if not times.is_compared:
        return [f"Nothing was recorded in it{until or ' so far'}."] if now is None else []
    if now is None and before is None:
        return [f"Nothing was recorded in either period{until}."]
    if now is None:
        return [f"Nothing was recorded in this period{until}."]
    return ["Nothing was recorded in the period before."] if before is None else []


def _length(length: timedelta) -> str:
    days, rest = divmod(length, timedelta(days=1))
    hours = rest / timedelta(hours=1)
    parts = [of(days, "day")] if days else []
    if hours or not days:
        parts.append(f"{Decimal(round(hours, 2)).normalize():f} hours" if hours % 1 else of(int(hours), "hour"))
    return " and ".join(parts)


def _period(period: Period, since: datetime) -> str:
    if period is Period.MONTH:
        return f"{_MONTHS[since.month - 1]} {since.year}"
    if period is Period.WEEK:
        year, week, _ = since.isocalendar()
        return f"week {week} of {year}"
    return f"{_WEEKDAYS[since.weekday()]} {since.date().isoformat()}"


def _moment(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M}"
