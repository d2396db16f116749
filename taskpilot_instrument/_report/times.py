"""The times of a report: its calendar period, the equal part of the one before, and the hours or days in them."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from itertools import pairwise
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

from taskpilot_instrument.errors import ConfigurationError

_DAY: Final = timedelta(days=1)
_HOUR: Final = timedelta(hours=1)
#: What is younger has no figures.
_LEAST: Final = timedelta(minutes=1)


class Period(StrEnum):
    """Say how long a report looks back: a calendar day, an ISO week from Monday on, or a month."""

    DAY = "day"
    WEEK = "week"
    MONTH = "month"


class Stretch(NamedTuple):
    """A stretch of time; the end does not belong to it. Reckoned in UTC, where every hour is as long as the others."""

    since: datetime
    until: datetime

    @property
    def length(self) -> timedelta:
        """How long it is."""
        return self.until - self.since


class Times(NamedTuple):
    """The times of a report.

    :param now: the stretch that is reported on.
    :param before: what it is compared with: the period before, or as much of it as the period has had so far; of no
        length where it has not had the finest part yet that figures are known in.
    :param ends_at: when the period ends.
    :param is_whole: True where it is over.
    :param lengths: of both whole periods.
    """

    period: Period
    zone: ZoneInfo
    now: Stretch
    before: Stretch
    ends_at: datetime
    is_whole: bool
    lengths: tuple[timedelta, timedelta]

    def slots(self, stretch: Stretch) -> list[Stretch]:
        """Return the hours of a day, or the days of a week or month, as far as the stretch reaches."""
        starts = [*self._starts(stretch), stretch.until]
        return [Stretch(*pair) for pair in pairwise(starts)]

    def _starts(self, stretch: Stretch) -> Iterator[datetime]:
        moment = stretch.since
        while moment < stretch.until:
            yield moment
            if self.period is Period.DAY:
                moment += _HOUR
            else:
                moment = _midnight(moment.astimezone(self.zone).date() + _DAY, self.zone)

    @property
    def are_equal(self) -> bool:
        """True where both stretches are of one length."""
        return self.now.length == self.before.length

    @property
    def is_compared(self) -> bool:
        """False where there is nothing of equal length before."""
        return bool(self.before.length)


def times_of(period: Period, zone: ZoneInfo, day: date | None, now: datetime, grain: timedelta) -> Times:
    """Return the times of the period that a day lies in.

    :param day: in the zone; None is today.
    :param now: a period that is not over ends here.
    :param grain: the finest that figures are known in: an unfinished period ends with the last whole one of it.
    :raises ConfigurationError: where the period has not begun.
    """
    now = now.astimezone(UTC)
    today = now.astimezone(zone).date()
    try:
        first = first_day(period, day or today)
        following = first_day(
            period, first + _DAY * (1 if period is Period.DAY else 7 if period is Period.WEEK else 31)
        )
        start, end = _midnight(first, zone), _midnight(following, zone)
        start_before = _midnight(first_day(period, first - _DAY), zone)
    except OverflowError:
        raise ConfigurationError(f"end={day}: there is no calendar for this day") from None
    if start > now:
        raise ConfigurationError(f"end={day}: the {period} of this day has not begun; today is {today}")
    is_whole = end <= now
    until = end if is_whole else max(start, _floor(now, grain))
    until_before = start if is_whole else min(start, start_before + (until - start))
    if until == start and now - start >= _LEAST:
        until = now  # better some of an hour than nothing; there is no such part of an hour before
    return Times(
        period, zone, Stretch(start, until), Stretch(start_before, until_before), end, is_whole,
        (end - start, start - start_before),
    )  # fmt: skip


def first_day(period: Period, day: date) -> date:
    """Return the first day of the period that a day lies in."""
    if period is Period.WEEK:
        return day - _DAY * day.weekday()
    return day.replace(day=1) if period is Period.MONTH else day


def _midnight(day: date, zone: ZoneInfo) -> datetime:
    """Return when a local day begins, in UTC.

    Where the clock jumps over midnight, the offset before the jump applies, which gives the instant of the jump.
    """
    return datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC)


def _floor(moment: datetime, grain: timedelta) -> datetime:
    return moment - (moment - datetime.fromtimestamp(0, UTC)) % grain
