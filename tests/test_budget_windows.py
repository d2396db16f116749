"""Windows of budgets are those of the calendar on the wall, also where the clock jumps."""

from datetime import UTC, date, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from taskpilot_instrument._budget_windows import WINDOWS, window_at

#: Half an hour of summer time, changes at midnight and before it, halves and quarters of hours.
ODD = [
    "UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe",
    "America/Havana", "America/Santiago", "America/Asuncion", "Asia/Beirut", "Africa/Cairo", "America/Nuuk",
    "Africa/Casablanca", "Pacific/Chatham",
]  # fmt: skip
EVERY = sorted(available_timezones())
BEGIN, END = (int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) for year in (2020, 2035))


@cache
def changes(zone: str) -> list[int]:
    """Return the instants, to the second, at which a zone's clock jumps."""
    found: list[int] = []

    def offset(at_s: int) -> timedelta | None:
        return datetime.fromtimestamp(at_s, ZoneInfo(zone)).utcoffset()

    for day in range(BEGIN, END, 86_400):
        low, high = day, day + 86_400
        if offset(low) == offset(high):
            continue
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if offset(low) != offset(middle) else (middle, high)
        found.append(high)
    return found


def near_changes(zone: str) -> st.SearchStrategy[int]:
    """Any instant, and more often one within a few hours of a jump."""
    anywhere = st.integers(BEGIN, END)
    if not changes(zone):
        return anywhere
    return anywhere | st.builds(int.__add__, st.sampled_from(changes(zone)), st.integers(-10_000, 100_000))


MOMENTS = (st.sampled_from(ODD)).flatmap(lambda zone: st.tuples(st.just(zone), near_changes(zone)))


@given(st.sampled_from([name for name in WINDOWS if name != "total"]), MOMENTS)
@example("hour", ("Pacific/Chatham", 1_586_006_100))
@example("hour", ("Australia/Lord_Howe", 1_585_999_800))
def test_a_window_ends_where_the_next_begins(name: str, moment: tuple[str, int]) -> None:
    """An instant lies before its window's end; the second before the end is in it, the end is in the next."""
    zone, at_s = ZoneInfo(moment[0]), moment[1]
    window = window_at(name, zone, at_s)
    assert window.ends_at is not None
    end = int(window.ends_at.timestamp())
    assert at_s < end
    assert window == window_at(name, zone, end - 1)
    assert window.key != window_at(name, zone, end).key


@given(st.sampled_from(EVERY), st.integers(BEGIN, END))
def test_the_key_is_the_date_on_the_wall(zone: str, at_s: int) -> None:
    """Day, ISO week and month are those that the local date says, in every zone that there is."""
    wall = datetime.fromtimestamp(at_s, ZoneInfo(zone))
    year, week, _ = wall.isocalendar()
    keys = [window_at(name, ZoneInfo(zone), at_s).key for name in ("day", "week", "month", "total")]
    assert [f"{wall:%Y-%m-%d}", f"{year}-W{week:02d}", f"{wall:%Y-%m}", "total"] == keys


@given(st.sampled_from(["day", "week", "month"]), MOMENTS)
def test_windows_end_where_the_date_changes(name: str, moment: tuple[str, int]) -> None:
    """Days, weeks and months end when the local date changes, weeks on a Monday, months on a first."""
    zone = ZoneInfo(moment[0])
    ends = window_at(name, zone, moment[1]).ends_at
    assert ends is not None
    assert ends.tzinfo is zone
    before = (ends.astimezone(UTC) - timedelta(seconds=1)).astimezone(zone)
    assert before.date() < ends.date()
    assert name != "week" or ends.weekday() == 0
    assert name != "month" or ends.day == 1


@given(MOMENTS)
def test_hours_are_those_of_the_clock(moment: tuple[str, int]) -> None:
    """All of an hour's window shows the same hour, and it lasts no longer than one."""
    zone, at_s = ZoneInfo(moment[0]), moment[1]
    window = window_at("hour", zone, at_s)
    assert window.ends_at is not None
    left = window.ends_at.timestamp() - at_s
    assert 0 < left <= 3600
    assert f"{datetime.fromtimestamp(at_s, zone):%Y-%m-%dT%H%z}" == window.key


@pytest.mark.parametrize(("day", "hours"), [("2026-03-29", 23), ("2026-10-25", 25), ("2026-06-01", 24)])
def test_days_are_as_long_as_the_clock_makes_them(day: str, hours: int) -> None:
    """The day on which clocks go forward has 23 hours, and the one on which they go back 25."""
    zone = ZoneInfo("Europe/Berlin")
    begin = datetime.fromisoformat(f"{day}T00:00").replace(tzinfo=zone).timestamp()
    window = window_at("day", zone, begin)
    assert window.ends_at is not None
    assert day == window.key
    assert hours * 3600 == window.ends_at.timestamp() - begin
    assert hours == len({window_at("hour", zone, begin + 1800 * step).key for step in range(2 * hours)})


def test_a_midnight_that_does_not_exist() -> None:
    """Where the clock jumps over midnight the day begins with the jump."""
    zone = ZoneInfo("America/Havana")
    (jump,) = [
        each for each in changes("America/Havana") if datetime.fromtimestamp(each, UTC).date() == date(2024, 3, 10)
    ]
    ends = window_at("day", zone, jump - 1).ends_at
    assert ends is not None
    assert (jump, "2024-03-10T01:00:00-04:00") == (ends.timestamp(), ends.isoformat())


@pytest.mark.parametrize(
    ("at", "key"),
    [("2026-12-31T12:00", "2026-W53"), ("2027-01-03T23:59", "2026-W53"), ("2027-01-04T00:00", "2027-W01")],
)
def test_weeks_are_those_of_iso(at: str, key: str) -> None:
    """The week of New Year belongs to the year that has most of it."""
    assert key == window_at("week", ZoneInfo("UTC"), datetime.fromisoformat(f"{at}+00:00").timestamp()).key
