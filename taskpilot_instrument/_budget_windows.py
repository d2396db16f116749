"""Calendar windows of budgets: which one an instant falls into, and when it ends."""

from datetime import UTC, datetime, timedelta
from typing import Final, Literal, NamedTuple, get_args
from zoneinfo import ZoneInfo

WindowName = Literal["hour", "day", "week", "month", "total"]
_SECOND: Final = timedelta(seconds=1)
WINDOWS: Final[tuple[str, ...]] = get_args(WindowName)


class Window(NamedTuple):
    """One window of a budget.

    :param key: names it among all windows of its kind and zone, such as ``2026-W48``.
    :param ends_at: when the next one begins, in the budget's zone; None where there is no next one.
    """

    key: str
    ends_at: datetime | None


def window_at(name: str, zone: ZoneInfo, at_s: float) -> Window:
    """Return the window that an instant falls into.

    Days, ISO weeks (from Monday on) and months begin at local midnight: a day may have 23 or 25 hours. An hour that the
    clock shows twice is two windows.

    :param name: ``hour``, ``day``, ``week``, ``month`` or ``total``.
    :param at_s: seconds since 1970.
    """
    local = datetime.fromtimestamp(at_s, zone)
    if name == "total":
        return Window("total", None)
    if name == "hour":
        return Window(local.strftime("%Y-%m-%dT%H%z"), _end_of_hour(local, zone))
    day = local.date()
    if name == "day":
        key, after = day.isoformat(), day + timedelta(days=1)
    elif name == "week":
        year, week, weekday = day.isocalendar()
        key, after = f"{year}-W{week:02d}", day + timedelta(days=8 - weekday)
    else:
        key, after = day.strftime("%Y-%m"), (day.replace(day=1) + timedelta(days=32)).replace(day=1)
    return Window(key, _first_instant(after.year, after.month, after.day, zone))


def _end_of_hour(local: datetime, zone: ZoneInfo) -> datetime:
    """Return when the clock shows the next hour: reckoned in UTC, where no hour is missing or twice."""
    within = local.astimezone(UTC).replace(microsecond=0)
    end = within + timedelta(seconds=3600 - local.minute * 60 - local.second)
    if (end - _SECOND).astimezone(zone).utcoffset() != local.utcoffset():
        # The clock jumps in the midst of the hour. Where, is narrowed down to the second.
        while end - within > _SECOND:
            middle = within + timedelta(seconds=(end - within) // _SECOND // 2)
            if middle.astimezone(zone).utcoffset() == local.utcoffset():
                within = middle
            else:
                end = middle
    return end.astimezone(zone)


def _first_instant(year: int, month: int, day: int, zone: ZoneInfo) -> datetime:
    """Return the first instant of a local day, which is not midnight where the clock jumps over it."""
    midnight = datetime(year, month, day, tzinfo=zone)
    # Where midnight does not exist, UTC reckoned with the offset before the jump is the instant of the jump or later.
    return midnight.astimezone(UTC).astimezone(zone)
