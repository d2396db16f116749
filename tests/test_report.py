"""Reports on what real runs left in a ledger, under a clock of the test's."""

import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reported import CALL_USD, Program, program

import taskpilot_instrument as tp
from taskpilot_instrument.errors import ConfigurationError, LedgerError
from taskpilot_instrument.semconv import DURATION_BUCKETS
from taskpilot_instrument.sinks.ledger import Rollup, Vote, open_ledger

MONDAY = datetime(2026, 11, 23, tzinfo=UTC)
TUESDAY = MONDAY + timedelta(days=1)


def two_days(runs: Program) -> None:
    """Make a Monday of two good runs, and a Tuesday of four: one fails, one breaks a policy, one is voted down."""
    runs.wait_until(MONDAY + timedelta(hours=9))
    runs.run(seconds=0.6, correct=True)
    runs.wait_until(MONDAY + timedelta(hours=23, minutes=59))
    runs.run(seconds=0.6)
    runs.wait_until(TUESDAY)
    runs.run(seconds=1.5, correct=True)
    runs.wait_until(TUESDAY + timedelta(hours=9))
    runs.run(seconds=1.5, correct=False, violations=1)
    runs.run(seconds=1.5, usage=(300, 100), model="gpt-4o-mini", agent="ReviewerAgent")
    runs.run(seconds=1.5, fails=True, workflow="billing")


@pytest.fixture
def ledger(tmp_path: Path) -> str:
    """A SQLite ledger that two days of a program are in."""
    path = str(tmp_path / "ledger.db")
    with program(MONDAY, ledger=path) as runs:
        two_days(runs)
    return path


# --- what is in it --------------------------------------------------------------------------------


def test_a_day_beside_the_day_before(ledger: str) -> None:
    """Each figure has its value, the one before, the change, whether that is better, and its verdict."""
    made = tp.report("day", end=date(2026, 11, 24), ledger=ledger)
    told = {key: (each.value, each.before, each.trend, each.verdict) for key, each in made.figures.items()}
    cost, cost_before = Decimal(CALL_USD) * 4, Decimal(CALL_USD) * 2
    assert (75.0, 100.0, "worse", "critical") == told["success_rate"]
    assert (float(cost) / 3, float(cost_before) / 2, "worse", "healthy") == told["cost_per_successful_task_usd"]
    assert (50.0, 100.0, "worse", "unknown") == told["user_confirmed_correctness_percent"]
    assert (25.0, 0.0, "worse", "critical") == told["policy_violation_rate_percent"]
    assert (cost, cost_before, "more", "unknown") == told["total_cost_usd"]
    assert (4, 2, "more", "unknown") == told["runs"]
    assert (1, 0) == told["failed_runs"][:2]
    assert (600, 300) == told["input_tokens"][:2]
    assert (1, 0) == told["policy_violations"][:2]
    assert (100.0, 100.0, "same") == told["checked_runs_percent"][:3]
    assert (made.figures["runs"].change, made.figures["runs"].change_percent) == (2, 100.0)
    assert made.figures["success_rate"].few


def test_p95_is_that_of_the_bucket(ledger: str) -> None:
    """Runs of 0.6 s lie between 0.5 s and 1 s, runs of 1.5 s between 1 s and 2 s: 95 % of the way through."""
    p95 = tp.report("day", end=date(2026, 11, 24), ledger=ledger).figures["p95_latency_ms"]
    assert pytest.approx(1950) == p95.value
    assert pytest.approx(975) == p95.before


def test_the_course_of_the_day(ledger: str) -> None:
    """Each hour has its figures beside those of the same hour before; an hour without runs is unknown, not zero."""
    made = tp.report("day", end=date(2026, 11, 24), ledger=ledger)
    found = {point.label: (point.value, point.before) for point in made.trends["runs"]}
    assert 24 == len(found)
    assert {"00:00": (1, None), "09:00": (3, 1), "23:00": (None, 1)} == {
        label: pair for label, pair in found.items() if pair != (None, None)
    }


def test_breakdowns(ledger: str) -> None:
    """Workflows, errors, models, agents and policies are told apart, each beside the period before."""
    made = tp.report("day", end=date(2026, 11, 24), ledger=ledger)
    first = {key: table.rows[0] for key, table in made.tables.items()}
    assert ("triage", 3, 2) == (first["workflows"].name, first["workflows"].values["runs"], 2)
    error = first["errors"]
    assert ("BadRequestError", 1, 0) == (error.name, error.values["count"], error.before["count"])
    assert "mostly PlannerAgent, gpt-4o-mini" == error.note
    assert (Decimal(CALL_USD) * 4, 100.0) == tuple(first["models"].values[name] for name in ("cost_usd", "cost_share"))
    agents = {row.name: (row.values["calls"], row.values["cost_usd"]) for row in made.tables["agents"].rows}
    assert {
        "PlannerAgent": (3, Decimal(CALL_USD) * 2), "ReviewerAgent": (1, Decimal(CALL_USD) * 2),
    } == agents  # fmt: skip
    assert ("no-secrets", 1) == (first["policies"].name, first["policies"].values["count"])
    assert {"success": 3, "error": 1} == {row.name: row.values["count"] for row in made.tables["outcomes"].rows}


@pytest.mark.parametrize("where", ["memory", "redis"])
def test_every_ledger_tells_the_same(where: str, ledger: str, request: pytest.FixtureRequest) -> None:
    """A report from Redis, or from the ledger in force in memory, is that from SQLite."""
    place = "memory" if where == "memory" else request.getfixturevalue("redis").url
    with program(MONDAY, ledger=place) as runs:
        two_days(runs)
        made = tp.report("day", end=date(2026, 11, 24))
    expected = tp.report("day", end=date(2026, 11, 24), ledger=ledger)
    assert {**expected.to_dict(), "source": ""} == {**made.to_dict(), "source": ""}


def test_the_ledger_in_force_is_taken(tmp_path: Path) -> None:
    """Within the program itself, what happened a moment ago is in its report; a ledger that fails is told."""
    place = str(tmp_path / "ledger.db")
    with program(MONDAY, ledger=place) as runs:
        for _ in range(3):
            runs.run()
        made = tp.report("day", end=MONDAY.date())
        assert (3, f"ledger {place}") == (made.figures["runs"].value, made.source)
        runs.run()
        Path(place).unlink()
        with pytest.raises(LedgerError):
            tp.report("day", end=MONDAY.date())


def test_nothing_known_is_not_zero(tmp_path: Path) -> None:
    """Of a period in which nothing was recorded nothing is known, and every format says so."""
    place = str(tmp_path / "ledger.db")
    open_ledger(place).close()
    for period in ("day", "week", "month"):
        made = tp.report(period, end=date(2026, 11, 1), ledger=place)
        assert {None} == {figure.value for figure in made.figures.values()}
        assert "unknown" == made.verdict
        assert "| runs " in made.markdown()
        assert "Nothing was recorded in either period." in made.html()
        assert {} == made.tables


def test_unknown_costs_are_lower_bounds(tmp_path: Path) -> None:
    """With a call of unknown cost, sums are marked as lower bounds, and a cost of which nothing is known is unknown."""
    place = str(tmp_path / "ledger.db")
    with program(MONDAY, ledger=place) as runs:
        runs.run(model="my-own-model")
        runs.wait_until(TUESDAY)
        runs.run(model="my-own-model")
        runs.run()
    made = tp.report("day", end=date(2026, 11, 24), ledger=place)
    cost = made.figures["total_cost_usd"]
    assert (Decimal(CALL_USD), None, True) == (cost.value, cost.before, cost.is_lower_bound)
    assert "unknown" == made.figures["cost_per_successful_task_usd"].verdict
    assert 50.0 == made.figures["cost_coverage_percent"].value
    assert "≥ $0.0000525" in made.markdown()


# --- calendars ------------------------------------------------------------------------------------


def test_an_unfinished_period_is_compared_with_the_equal_part(ledger: str) -> None:
    """At half past nine there are nine whole hours, beside nine of the day before; the rest is told apart."""
    made = tp.report("day", now=TUESDAY + timedelta(hours=9, minutes=30), ledger=ledger)
    assert (TUESDAY + timedelta(hours=9), False) == (made.until, made.is_whole)
    assert (MONDAY, MONDAY + timedelta(hours=9)) == made.before
    assert (1, None) == (made.figures["runs"].value, made.figures["runs"].before)
    notes = " ".join(made.notes)
    assert "its first 9 hours are compared with the equal part of the day before" in notes
    said = "The hour since 09:00 is not over, and not in the figures: 3 runs, 2 successful, $0.000158 so far."
    assert said == made.first[0]
    assert made.first == made.notes[: len(made.first)]
    for text in (made.markdown(), made.html()):
        assert 1 == text.count("The hour since 09:00")
        assert text.index("The hour since 09:00") < text.index("success rate")


def test_what_happened_in_the_running_hour_alone(tmp_path: Path) -> None:
    """Where only the hour that runs has something, the report does not say that nothing was recorded at all."""
    place = str(tmp_path / "ledger.db")
    with program(TUESDAY + timedelta(hours=9, minutes=5), ledger=place) as runs:
        runs.run()
    made = tp.report("day", now=TUESDAY + timedelta(hours=9, minutes=30), ledger=place)
    running, nothing = made.first
    assert running.endswith("not in the figures: 1 run, 1 successful, $0.0000525 so far.")
    assert "Nothing was recorded in either period until 09:00." == nothing
    earlier = tp.report("day", now=TUESDAY + timedelta(hours=9), ledger=place)
    assert ("Nothing was recorded in either period.",) == earlier.first


@pytest.mark.parametrize(
    ("period", "begins"), [("day", TUESDAY), ("week", MONDAY), ("month", datetime(2026, 12, 1, tzinfo=UTC))]
)
def test_the_first_hour_of_a_period(tmp_path: Path, period: str, begins: datetime) -> None:
    """In its first hour a period has that hour so far, beside nothing, as hours are kept whole; that is said first."""
    place, now = str(tmp_path / "ledger.db"), begins + timedelta(minutes=22)
    with program(begins - timedelta(hours=24), ledger=place) as program_runs:
        program_runs.run()
        program_runs.wait_until(begins + timedelta(minutes=5))
        program_runs.run(correct=True)
        program_runs.run(fails=True)
    made = tp.report(period, ledger=place, now=now)
    assert (begins, now, False) == (made.since, made.until, made.is_whole)
    runs, cost = made.figures["runs"], made.figures["total_cost_usd"]
    assert (2, None, None, "unknown") == (runs.value, runs.before, runs.change, runs.trend)
    assert (50.0, Decimal(CALL_USD)) == (made.figures["success_rate"].value, cost.value)
    assert 100.0 == made.figures["user_confirmed_correctness_percent"].value
    assert [Decimal(CALL_USD)] == [point.value for point in made.trends["total_cost_usd"]]
    assert {None} == {each for table in made.tables.values() for row in table.rows for each in row.before.values()}
    assert "$0.00002" in made.html()  # on the scale of the costs
    assert "the day before</span>" not in made.html()
    (said,) = made.first
    assert f"The {period} has just begun: these are the figures of its first hour, until 00:22." in said
    assert not any("equal part of the" in note or "unequal" in note for note in made.notes[1:])
    assert "compared with nothing yet" in made.markdown()


def test_a_period_of_less_than_a_minute(ledger: str) -> None:
    """What has only just begun has no figures."""
    made = tp.report("day", now=TUESDAY + timedelta(seconds=59), ledger=ledger)
    assert (TUESDAY, None) == (made.until, made.figures["runs"].value)
    assert ("Nothing was recorded in it so far.",) == made.first


@pytest.mark.parametrize(("day", "hours"), [(date(2026, 10, 25), 25), (date(2026, 3, 29), 23), (date(2026, 3, 28), 24)])
def test_days_of_a_zone_are_as_long_as_they_are(ledger: str, day: date, hours: int) -> None:
    """Where the clock is put back a day has 25 hours, where it is put forward 23; the report says so."""
    made = tp.report("day", end=day, timezone="Europe/Berlin", ledger=ledger)
    assert timedelta(hours=hours) == made.ends_at.astimezone(UTC) - made.since.astimezone(UTC)
    assert hours == made.places == len({point.label for point in made.trends["runs"]})
    assert (hours != 24) == any("totals are of unequal times" in note for note in made.notes)


@pytest.mark.parametrize(
    ("period", "since", "until"),
    [
        ("day", "2026-11-25T00:00:00+05:30", "2026-11-26T00:00:00+05:30"),
        ("week", "2026-11-23T00:00:00+05:30", "2026-11-30T00:00:00+05:30"),
        ("month", "2026-11-01T00:00:00+05:30", "2026-12-01T00:00:00+05:30"),
    ],
)
def test_periods_are_those_of_the_calendar(ledger: str, period: str, since: str, until: str) -> None:
    """A day, a week from Monday on and a month begin at local midnight, also where that is within an hour."""
    made = tp.report(period, end=date(2026, 11, 25), timezone="Asia/Kolkata", ledger=ledger,
                     now=datetime(2027, 1, 1, tzinfo=UTC))  # fmt: skip
    assert (since, until) == (made.since.isoformat(), made.ends_at.isoformat())
    assert any("begin within an hour" in note for note in made.notes)


def test_a_period_that_has_outgrown_the_one_before(ledger: str) -> None:
    """On the thirtieth of March there is more of the month than the whole of February had."""
    made = tp.report("month", now=datetime(2026, 3, 30, tzinfo=UTC), ledger=ledger)
    assert datetime(2026, 3, 1, tzinfo=UTC) == made.before[1]
    assert any("longer already than the whole month before" in note for note in made.notes)


_ZONES = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata"])
_COUNTS = {
    "workflow=a": ("runs", "outcome:success", "us", "violations", *(f"le:{bound:g}" for bound in DURATION_BUCKETS)),
    "agent=a|model=m": ("calls", "cost", "input_tokens", "output_tokens", "retries", "wasted", "error:Broken"),
}
_HOUR = st.integers(int(datetime(2026, 9, 20, tzinfo=UTC).timestamp()) // 3600, 498_550).map(lambda hour: hour * 3600)


@st.composite
def rollups(draw: st.DrawFn) -> Rollup:
    """One hour's figures, as large as they may get."""
    key = draw(st.sampled_from(sorted(_COUNTS)))
    names = draw(st.lists(st.sampled_from(_COUNTS[key]), min_size=1, unique=True))
    return Rollup(draw(_HOUR), key, {name: draw(st.integers(1, 10**15)) for name in names})


@given(st.lists(rollups(), max_size=30), st.lists(_HOUR, max_size=5), _ZONES, st.sampled_from(["week", "month"]))
@settings(max_examples=40)
def test_days_add_up_to_the_whole(hours: list[Rollup], votes: list[int], zone: str, period: str) -> None:
    """What the days of a week or month come to, one by one, is what the whole comes to, exactly."""
    ledger = open_ledger("memory")
    ledger.add_rollups(uuid4().hex, hours)
    for number, at_s in enumerate(votes):
        ledger.put_vote(Vote(str(number), None, None, number % 2 == 0, None, None, None, float(at_s)))
    about: dict[str, Any] = {"timezone": zone, "ledger": ledger, "now": datetime(2026, 12, 31, tzinfo=UTC)}
    whole = tp.report(period, end=date(2026, 10, 25), **about)
    days = [
        tp.report("day", end=whole.since.date() + timedelta(days=number), **about) for number in range(whole.places)
    ]
    for key in ("runs", "failed_runs", "policy_violations", "llm_calls", "input_tokens", "output_tokens", "retries",
                "feedback", "total_cost_usd", "wasted_cost_usd"):  # fmt: skip
        amounts = [day.figures[key].value for day in days]
        assert sum(amount for amount in amounts if amount is not None) == (whole.figures[key].value or 0), key


# --- formats --------------------------------------------------------------------------------------


@pytest.mark.parametrize("period", ["day", "week", "month"])
def test_json_is_the_dictionary(ledger: str, period: str) -> None:
    """The JSON holds every figure, course and table; sums of money are text with all their digits."""
    made = tp.report(period, end=date(2026, 11, 24), ledger=ledger, now=MONDAY + timedelta(days=60))
    told = json.loads(made.json())
    assert made.to_dict() == told
    assert (1, period) == (told["schema"], told["period"])
    assert set(made.review.plots) == set(told["trends"])
    assert Decimal(told["figures"]["total_cost_usd"]["value"]) == made.figures["total_cost_usd"].value
    shown = {key for keys in made.review.sections.values() for key in keys}
    assert shown <= set(told["figures"])


NASTY = [
    "<script>alert(1)</script>",
    "a|b",
    "agent=a|model=b",
    "[x](javascript:1)",
    "100%7C",
    "new\nline",
    "`*_#",
    "\ud800",
]


def test_names_are_text(tmp_path: Path) -> None:
    """Names that are markup, or look like a key of the ledger, stand in every format as they are."""
    place = str(tmp_path / "ledger.db")
    with program(MONDAY, ledger=place) as runs:
        for name in NASTY:
            runs.run(agent=name, workflow=name)
    made = tp.report("month", end=MONDAY.date(), ledger=place, now=MONDAY + timedelta(days=60))
    names = {name.encode("utf-8", "backslashreplace").decode() for name in NASTY}
    assert names == {row.name for row in made.tables["agents"].rows}
    assert names == {row.name for row in made.tables["workflows"].rows}
    assert "<script" not in made.html()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in made.html()
    text = made.markdown()
    assert r"\<script\>alert(1)\</script\>" in text
    assert r"a\|b" in text
    widths = {line.replace(r"\|", "").count("|") for line in text.splitlines() if line.startswith("| new")}
    assert {5, 8} == widths  # no name breaks its row


def test_many_rows_are_added_up(tmp_path: Path) -> None:
    """Beyond twenty, the rest of a table is one row."""
    place = open_ledger("memory")
    hour = int(MONDAY.timestamp())
    place.add_rollups(
        uuid4().hex, [Rollup(hour, f"agent=a{number}|model=m", {"calls": 1, "cost": 5}) for number in range(25)]
    )
    rows = tp.report("day", end=MONDAY.date(), ledger=place).tables["agents"].rows
    assert (21, "5 more", 5) == (len(rows), rows[-1].name, rows[-1].values["calls"])


# --- wrong use ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"period": "year"}, "expected day, week or month"),
        ({"timezone": "Mars/Olympus"}, "expected a name such as"),
        ({"timezone": "../etc/passwd"}, "expected a name such as"),
        ({"end": date(2100, 1, 1)}, "has not begun"),
        ({"end": datetime(2026, 1, 1, tzinfo=UTC)}, "expected a date"),
        ({"end": date(1, 1, 1)}, "no calendar"),
        ({"now": datetime(2026, 1, 1)}, "with its time zone"),  # noqa: DTZ001 - that is what is wrong
        ({"prometheus": "http://127.0.0.1:1"}, "not both"),
        ({"ledger": "memory"}, "its process's own"),
    ],
)
def test_wrong_use_is_told(ledger: str, wrong: dict[str, Any], said: str) -> None:
    """An argument that is none is refused with what would be right."""
    with pytest.raises(ConfigurationError, match=said):
        tp.report(**{"ledger": ledger, **wrong})


def test_a_report_makes_no_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no ledger that is said, and none is made."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("TASKPILOT_LEDGER", raising=False)
    with pytest.raises(LedgerError, match="there is no ledger at"):
        tp.report()
    assert [] == list(tmp_path.iterdir())


def test_the_ledger_of_the_environment_is_taken(ledger: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an instrumentation in force, TASKPILOT_LEDGER says where the ledger is."""
    monkeypatch.setenv("TASKPILOT_LEDGER", ledger)
    made = tp.report("day", end=date(2026, 11, 24))
    assert (4, ZoneInfo("UTC")) == (made.figures["runs"].value, made.since.tzinfo)
