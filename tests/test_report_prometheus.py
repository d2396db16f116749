"""Reports from a real Prometheus that scraped a program for two days: they say what the ledger's say."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from backends import Prometheus, prometheus, run
from reported import Program, program

import taskpilot_instrument as tp
from taskpilot_instrument._report.report import Report
from taskpilot_instrument.errors import SourceError

MONDAY = datetime(2026, 11, 23, tzinfo=UTC)
TUESDAY = MONDAY + timedelta(days=1)
SCRAPED = timedelta(minutes=5)
#: Minutes since Monday's midnight, and what happens then; on Tuesday the program is busier and worse.
RUNS: list[tuple[int, dict[str, Any]]] = [
    *((60 * hour + 7, {"seconds": 0.6, "correct": True}) for hour in range(6, 20)),
    *((1440 + 30 * half + 11, {"seconds": 1.5, "correct": half % 3 > 0, "fails": half % 8 == 7})
      for half in range(12, 44)),
    (1440 + 12 * 60 + 2, {"seconds": 1.5, "violations": 2, "workflow": 'bill"ing\\', "agent": "Reviewer|Agent"}),
    (1440 + 13 * 60 + 2, {"seconds": 1.5, "model": "my-own-model"}),
    *((60 * hour + 3, {"seconds": 0.1, "wastes": True}) for hour in (9, 24 + 11, 24 + 15)),
]  # fmt: skip


class Told(NamedTuple):
    """A Prometheus that scraped a program, and the ledger that the same program wrote."""

    prometheus: Prometheus
    ledger: str


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    """What a program told both of."""
    folder = tmp_path_factory.mktemp("prometheus")
    ledger = str(folder / "ledger.db")
    lines: list[str] = []
    with program(MONDAY, ledger=ledger) as runs:
        _live(runs, lines)
    file = folder / "scraped.om"
    file.write_text("\n".join([*lines, "# EOF", ""]))
    made = run("promtool", "tsdb", "create-blocks-from", "openmetrics", file, folder / "data")
    assert 0 == made.returncode, made.stderr
    with prometheus(folder, {}) as server:
        yield Told(server, ledger)


def _live(runs: Program, lines: list[str]) -> None:
    """Let two days pass, scraped every five minutes."""
    waiting = sorted(RUNS, key=lambda each: each[0])
    moment = MONDAY
    while moment <= MONDAY + timedelta(days=2):
        runs.wait_until(moment)
        lines += _scraped(runs, moment)
        moment += SCRAPED
        while waiting and MONDAY + timedelta(minutes=waiting[0][0]) < moment:
            minutes, about = waiting.pop(0)
            runs.wait_until(MONDAY + timedelta(minutes=minutes))
            runs.run(**about)


def _scraped(runs: Program, moment: datetime) -> Iterator[str]:
    """Yield the program's samples under a job, and some runs of another job."""
    for family in runs.captured.metrics.registry.collect():
        for sample in family.samples:
            if sample.name.startswith("taskpilot_") and not sample.name.endswith("_created"):
                labels = {"job": "taskpilot", **sample.labels}
                text = ",".join(f"{name}={_quoted(value)}" for name, value in labels.items())
                yield f"{sample.name}{{{text}}} {sample.value} {moment.timestamp():.0f}"
    passed = (moment - MONDAY) // SCRAPED
    yield (
        f'taskpilot_workflow_runs_total{{job="other",workflow="w",outcome="error"}} {passed} {moment.timestamp():.0f}'
    )


def _quoted(value: str) -> str:
    text = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


@pytest.fixture(scope="module")
def both(told: Told) -> tuple[Report, Report]:
    """Tuesday's report from Prometheus, and from the ledger."""
    day = date(2026, 11, 24)
    return (
        tp.report("day", end=day, prometheus=f"{told.prometheus.url}?job=taskpilot"),
        tp.report("day", end=day, ledger=told.ledger),
    )


def test_figures_are_those_of_the_ledger(both: tuple[Report, Report]) -> None:
    """Value and value before are the ledger's, exactly; what no metric tells is unknown."""
    made, expected = both
    assert [2, 1] == [expected.figures["retries"].value, expected.figures["retries"].before]
    unknown = {"checked_runs_percent", "cost_coverage_percent", "lost_cost_usd"}
    assert unknown == {key for key, figure in made.figures.items() if figure.value is None}
    for key in set(made.figures) - unknown:
        ours, theirs = made.figures[key], expected.figures[key]
        for mine, other in ((ours.value, theirs.value), (ours.before, theirs.before)):
            assert (None if other is None else pytest.approx(float(other), rel=1e-9)) == (
                None if mine is None else float(mine)
            ), key
        assert (theirs.trend, theirs.verdict, theirs.is_lower_bound) == (ours.trend, ours.verdict, ours.is_lower_bound)


def test_the_course_is_that_of_the_ledger(both: tuple[Report, Report]) -> None:
    """Hour by hour too: each run falls well within its hour here."""
    made, expected = both
    for key, points in expected.trends.items():
        for mine, other in zip(made.trends[key], points, strict=True):
            for ours, theirs in ((mine.value, other.value), (mine.before, other.before)):
                assert (None if theirs is None else pytest.approx(float(theirs), rel=1e-9)) == (
                    None if ours is None else float(ours)
                ), (key, mine.label)


def test_breakdowns_are_those_of_the_ledger(both: tuple[Report, Report]) -> None:
    """Workflows, errors, models, agents and policies have the names and counts that they have in the ledger."""
    made, expected = both
    assert set(expected.tables) == set(made.tables)
    for key, table in expected.tables.items():
        first = table.columns[0].key
        assert {row.name: pytest.approx(row.values[first], rel=1e-9) for row in table.rows} == {
            row.name: row.values[first] for row in made.tables[key].rows
        }, key


def test_one_service_or_all(told: Told) -> None:
    """Without a job the runs of all services count."""
    everything = tp.report("day", end=date(2026, 11, 24), prometheus=told.prometheus.url)
    assert 288 + 36 == everything.figures["runs"].value


def test_the_source_is_named_without_its_password(told: Told) -> None:
    """A report names the Prometheus that it is from, not the credentials."""
    address = told.prometheus.url.replace("http://", "http://me:hidden@")
    made = tp.report("week", end=date(2026, 11, 24), prometheus=address, now=TUESDAY + timedelta(hours=23))
    assert f"Prometheus {told.prometheus.url}" == made.source
    assert "hidden" not in made.markdown() + made.html() + made.json()
    assert any("exact to the scrape" in note for note in made.notes)


def test_today_is_asked_for_too(told: Told) -> None:
    """Of a day that is not over it is asked to the second."""
    made = tp.report("day", prometheus=told.prometheus.url)
    assert not made.is_whole
    assert made.before[1] - made.before[0] == made.until - made.since


def test_a_question_that_fails_is_told(told: Told) -> None:
    """What Prometheus says of a question that it cannot answer is said."""
    with pytest.raises(SourceError, match="404"):
        tp.report("day", end=date(2026, 11, 24), prometheus=f"{told.prometheus.url}/elsewhere")


def test_restarts_lose_nothing(tmp_path: Path) -> None:
    """A process that began anew is counted from nothing in the hour in which it did, and in the day."""
    family = "taskpilot_workflow_runs_total"
    #: What was scraped every ten minutes from nine o'clock on; it restarted twice, and came to more than before once.
    counts = [0, 3, 5, 2, 4, 4, 6, 9, 11, 12, 12, 12]
    starts = [100, 100, 100, 200, 200, 200, 200, 200, 300, 300, 300, 300]
    lines = [f"# TYPE {family.removesuffix('_total')} counter"]
    labels = 'job="taskpilot",instance="a:9464"'
    begin = (TUESDAY + timedelta(hours=9, minutes=5)).timestamp()
    moments = [begin + 600 * place for place in range(len(counts))]
    lines += [
        f'{family}{{{labels},workflow="triage",outcome="success"}} {count} {moment:.0f}'
        for count, moment in zip(counts, moments, strict=True)
    ]
    lines.append("# TYPE process_start_time_seconds gauge")
    lines += [
        f"process_start_time_seconds{{{labels}}} {start} {moment:.0f}"
        for start, moment in zip(starts, moments, strict=True)
    ]
    (tmp_path / "scraped.om").write_text("\n".join([*lines, "# EOF", ""]))
    made = run("promtool", "tsdb", "create-blocks-from", "openmetrics", tmp_path / "scraped.om", tmp_path / "data")
    assert 0 == made.returncode, made.stderr
    with prometheus(tmp_path, {}) as server:
        told = tp.report("day", end=TUESDAY.date(), prometheus=server.url)
    assert 5 + 9 + 12 == told.figures["runs"].value
    hours = {point.label: point.value for point in told.trends["runs"] if point.value}
    assert {"09:00": 5 + 4, "10:00": 5 + 12} == hours
