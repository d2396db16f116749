"""A report: what a day, a week or a month was like, each figure beside that of the period before."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import zip_longest
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from taskpilot_instrument._report import words
from taskpilot_instrument._report.compare import Figure, compare, plain, worst
from taskpilot_instrument._report.figures import Figures, Source
from taskpilot_instrument._report.ledger import LedgerSource
from taskpilot_instrument._report.review import REVIEWS, Review
from taskpilot_instrument._report.signals import DEFINITIONS, Definition, Facts, Value, facts_of, value_of
from taskpilot_instrument._report.tables import Table, tables
from taskpilot_instrument._report.times import Period, Stretch, Times, times_of
from taskpilot_instrument._verdicts import Verdict
from taskpilot_instrument.errors import ConfigurationError
from taskpilot_instrument.settings import Settings

#: Of the JSON; another number says that something was taken away or means something else.
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Point:
    """A figure in one hour of a day, or one day of a week or month; ``before`` is that of the same place before.

    :param label: names the hour or day.
    """

    label: str
    since: datetime
    value: Value
    before: Value

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "label": self.label, "since": self.since.isoformat(), "value": plain(self.value),
            "before": plain(self.before),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Report:
    """A period and the one before; what is unknown is None.

    :param since: when the period begins, in its time zone; so all times.
    :param until: where the figures end: the period's end, or its last whole hour so far.
    :param is_whole: True where the period is over.
    :param before: from when until when the figures before are.
    :param source: where the figures are from.
    :param figures: every figure by its key.
    :param trends: the course of figures by their keys.
    :param tables: breakdowns by their keys; without those that are empty.
    :param first: what a reader has to know before anything else: what the figures are without.
    :param notes: that, and what else is to be known to take the figures for what they are.
    """

    period: Period
    timezone: str
    since: datetime
    until: datetime
    ends_at: datetime
    is_whole: bool
    before: tuple[datetime, datetime]
    source: str
    figures: Mapping[str, Figure]
    trends: Mapping[str, tuple[Point, ...]]
    tables: Mapping[str, Table]
    first: tuple[str, ...]
    notes: tuple[str, ...]
    #: Hours of the whole day, or days of the whole week or month.
    places: int

    @property
    def review(self) -> Review:
        """What of it is shown in this period's review."""
        return REVIEWS[self.period]

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of the golden signals that are known."""
        return worst(self.figures.values())

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON has it; exact sums of money are text."""
        return {
            "schema": SCHEMA,
            "period": str(self.period),
            "timezone": self.timezone,
            "since": self.since.isoformat(),
            "until": self.until.isoformat(),
            "ends_at": self.ends_at.isoformat(),
            "is_whole": self.is_whole,
            "before": {"since": self.before[0].isoformat(), "until": self.before[1].isoformat()},
            "source": self.source,
            "verdict": str(self.verdict),
            "figures": {key: figure.as_dict() for key, figure in self.figures.items()},
            "trends": {key: [point.as_dict() for point in points] for key, points in self.trends.items()},
            "tables": {key: table.as_dict() for key, table in self.tables.items()},
            "notes": list(self.notes),
        }

    def json(self) -> str:
        """Return all of it as JSON."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"

    def markdown(self) -> str:
        """Return its review as Markdown."""
        from taskpilot_instrument._report.markdown import markdown

        return markdown(self)

    def html(self) -> str:
        """Return its review as a page of its own: no script, and nothing from elsewhere."""
        from taskpilot_instrument._report.page import html

        return html(self)

    def __str__(self) -> str:
        return self.markdown()


def make(
    period: str, *, end: date | None, timezone: str, ledger: object, prometheus: str | None, now: datetime | None
) -> Report:
    """Make a report; see :func:`taskpilot_instrument.report`."""
    if period not in list(Period):
        raise ConfigurationError(f"period={period!r}: expected day, week or month")
    if end is not None and (not isinstance(end, date) or isinstance(end, datetime)):
        raise ConfigurationError(f"end={end!r}: expected a date such as date(2026, 11, 25)")
    if now is not None and (not isinstance(now, datetime) or now.tzinfo is None):
        raise ConfigurationError(f"now={now!r}: expected a datetime with its time zone")
    if ledger is not None and prometheus is not None:
        raise ConfigurationError("a report is from one source: give ledger or prometheus, not both")
    zone = _zone(timezone)
    source = _source(ledger, prometheus)
    try:
        moment = now or datetime.now(UTC)
        times = times_of(Period(period), zone, end, moment, source.grain)
        return _report(source, times, timezone, moment.astimezone(UTC))
    finally:
        source.close()


def _report(source: Source, times: Times, timezone: str, moment: datetime) -> Report:
    now, course = source.read(times.now, times.slots(times.now))
    before, course_before = source.read(times.before, times.slots(times.before))
    pair = facts_of(now), facts_of(before)
    latest = None
    if not times.is_whole and moment - times.now.until >= timedelta(minutes=1):
        latest = facts_of(source.read(Stretch(times.now.until, moment), [])[0])
    here = times.zone
    first = words.first(times, *pair, latest)
    return Report(
        period=times.period,
        timezone=timezone,
        since=times.now.since.astimezone(here),
        until=times.now.until.astimezone(here),
        ends_at=times.ends_at.astimezone(here),
        is_whole=times.is_whole,
        before=(times.before.since.astimezone(here), times.before.until.astimezone(here)),
        source=source.name,
        figures=compare(*pair),
        trends=_trends(times, course, course_before),
        tables=tables(now, before),
        first=first,
        notes=(*first, *words.about(times, source, pair[0], empty_days=_empty_days(times, course_before))),
        places=len(times.slots(Stretch(times.now.since, times.ends_at))),
    )


def _empty_days(times: Times, course_before: list[Figures]) -> int:
    """Return with how many days of nothing the period before begins; none where they are few, such as a weekend."""
    known = [not figures.is_empty for figures in course_before]
    if times.period is Period.DAY or not any(known):
        return 0
    empty = known.index(True)
    return empty if empty > len(known) / 4 else 0


def _trends(times: Times, course: list[Figures], course_before: list[Figures]) -> dict[str, tuple[Point, ...]]:
    """Return the course of every figure that the review draws; both periods begin at the same place."""
    facts, facts_before = list(map(facts_of, course)), list(map(facts_of, course_before))
    places = list(zip_longest(times.slots(times.now), facts, facts_before))[: len(facts)]

    def point(definition: Definition, slot: Stretch, now: Facts | None, before: Facts | None) -> Point:
        begins = slot.since.astimezone(times.zone)
        return Point(words.label_of(slot, times), begins, value_of(definition, now), value_of(definition, before))

    return {key: tuple([point(DEFINITIONS[key], *place) for place in places]) for key in REVIEWS[times.period].plots}


def today(timezone: str) -> date:
    """Return the day that it is in a time zone.

    :raises ConfigurationError: where there is no such zone.
    """
    return datetime.now(_zone(timezone)).date()


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, TypeError, OSError):
        raise ConfigurationError(f"timezone={name!r}: expected a name such as UTC or Europe/Berlin") from None


def _source(ledger: object, prometheus: str | None) -> Source:
    if prometheus is not None:
        from taskpilot_instrument._report.prometheus import PrometheusSource

        return PrometheusSource(prometheus)
    return LedgerSource(Settings().ledger if ledger is None else ledger)
