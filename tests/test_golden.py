"""The golden signals: definitions, filters, windows, verdicts and how they are shown."""

import re
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metrics_records import ManualClock, agent_run, llm_call, workflow_run

from taskpilot_instrument._verdicts import THRESHOLDS, Verdict, judge
from taskpilot_instrument.errors import ConfigurationError
from taskpilot_instrument.golden import GoldenSignals, compute, parse_window
from taskpilot_instrument.semconv import Outcome
from taskpilot_instrument.sinks.metrics import MetricsBackend
from taskpilot_instrument.typing import Clock


@pytest.fixture
def clock() -> ManualClock:
    """A clock that only moves when told."""
    return ManualClock()


@pytest.fixture
def backend(clock: ManualClock) -> Iterator[MetricsBackend]:
    """A backend on that clock."""
    with closing(MetricsBackend(clock=clock.clock)) as made:
        yield made


# --- definitions ------------------------------------------------------------------------------------


def test_the_five_definitions(backend: MetricsBackend) -> None:
    """Each signal is what the contract says, unrounded."""
    for outcome, ms in ((Outcome.SUCCESS, 100), (Outcome.SUCCESS, 200), (Outcome.ERROR, 3000)):
        backend.finished(workflow_run(outcome=outcome, ms=ms))
        backend.finished(llm_call(cost="0.05"))
    backend.record_policy_violation("PlannerAgent", "no_pii")
    for correct in (True, True, False):
        backend.record_feedback(correct=correct)
    signals = compute(backend)
    assert 100 * 2 / 3 == signals.success_rate
    assert 3000 == signals.p95_latency_ms
    assert 0.075 == pytest.approx(signals.cost_per_successful_task_usd)
    assert 100 * 2 / 3 == signals.user_confirmed_correctness_percent
    assert 100 / 3 == signals.policy_violation_rate_percent
    assert (3, 2, 3, 1) == (signals.runs, signals.successes, signals.feedback, signals.violations)
    assert (0.15, 1.0) == (signals.total_cost_usd, signals.cost_coverage)


def test_nothing_is_known_of_nothing(backend: MetricsBackend) -> None:
    """Before anything ran, no signal has a value and no verdict is given; the dictionary says 0.0."""
    signals = compute(backend)
    assert (None,) * 5 == (
        signals.success_rate,
        signals.p95_latency_ms,
        signals.cost_per_successful_task_usd,
        signals.user_confirmed_correctness_percent,
        signals.policy_violation_rate_percent,
    )
    assert Verdict.UNKNOWN is signals.verdict
    assert 0.0 == signals.as_dict()["success_rate"]


def test_an_agents_and_a_workflows_sums_are_not_spent_again(backend: MetricsBackend) -> None:
    """Runs carry the cost of everything beneath them on their spans; only calls are spend."""
    backend.finished(llm_call(cost="0.05"))
    backend.finished(agent_run(cost=Decimal("0.05")))
    backend.finished(workflow_run(cost=Decimal("0.05")))
    assert 0.05 == compute(backend).total_cost_usd


@given(st.lists(st.floats(1, 3_600_000), min_size=1, max_size=200))
def test_p95_is_within_one_percent(durations: list[float]) -> None:
    """The p95 of workflow latency is the value at the nearest rank, within 1 %."""
    backend = MetricsBackend(aliases=False)
    for ms in durations:
        backend.finished(workflow_run(ms=ms))
    exact = sorted(durations)[-(-95 * len(durations) // 100) - 1]
    assert exact == pytest.approx(compute(backend).p95_latency_ms, rel=0.01)
    backend.close()


@given(
    runs=st.lists(st.sampled_from(Outcome), max_size=20),
    costs=st.lists(st.one_of(st.none(), st.integers(0, 100).map(str)), max_size=8),
    feedback=st.lists(st.booleans(), max_size=5),
    violations=st.integers(0, 3),
)
def test_the_dictionary_is_the_same_everywhere(
    runs: list[Outcome], costs: list[str | None], feedback: list[bool], violations: int
) -> None:
    """The object's dictionary and the backend's are one, small costs apart, and agree with the unrounded values."""
    backend = MetricsBackend(aliases=False)
    for outcome in runs:
        backend.finished(workflow_run(outcome=outcome))
    for cost in costs:
        backend.finished(llm_call(cost=cost))
    for correct in feedback:
        backend.record_feedback(correct)
    for _ in range(violations):
        backend.record_policy_violation("A", "p")
    signals = compute(backend)
    assert backend.get_golden_signals() == signals.as_dict()
    for key, value in signals.as_dict().items():
        unrounded = getattr(signals, key)
        assert value in (None, 0.0) if unrounded is None else value == pytest.approx(unrounded, abs=0.005)
    backend.close()


# --- what is only partly known ----------------------------------------------------------------------


def test_partly_known_cost_is_a_lower_bound(backend: MetricsBackend) -> None:
    """Where some calls have no price, the cost is what is known, says so, and is never called healthy."""
    backend.finished(workflow_run())
    backend.finished(llm_call(cost="0.05"))
    backend.finished(llm_call("mystery", cost=None))
    signals = compute(backend)
    assert (0.05, 0.5) == (signals.cost_per_successful_task_usd, signals.cost_coverage)
    assert Verdict.UNKNOWN is signals.verdicts["cost_per_successful_task_usd"]
    assert "≥ $0.0500" in str(signals)
    backend.finished(llm_call(cost="0.95"))
    assert Verdict.CRITICAL is compute(backend).verdicts["cost_per_successful_task_usd"]


def test_cost_without_any_price_or_success_is_unknown(backend: MetricsBackend) -> None:
    """Neither unpriced calls nor spend without a success make a cost per task of 0, in the dictionary either."""
    backend.finished(workflow_run())
    backend.finished(llm_call("mystery", cost=None))
    assert None is compute(backend).cost_per_successful_task_usd
    assert None is backend.get_golden_signals()["cost_per_successful_task_usd"]
    failing = MetricsBackend()
    failing.finished(workflow_run(outcome=Outcome.ERROR))
    failing.finished(llm_call())
    assert None is compute(failing).cost_per_successful_task_usd
    assert None is failing.get_golden_signals()["cost_per_successful_task_usd"]


def test_workflows_without_llm_calls_cost_nothing(backend: MetricsBackend) -> None:
    """Nothing was called, so nothing was spent: that is known."""
    backend.finished(workflow_run())
    signals = compute(backend)
    assert (0.0, None) == (signals.cost_per_successful_task_usd, signals.cost_coverage)


# --- filters and windows ----------------------------------------------------------------------------


def test_filters_select_runs_and_spend(backend: MetricsBackend) -> None:
    """By workflow the runs are its runs, by agent that agent's, by model the model's calls; spend follows."""
    backend.finished(workflow_run("triage"))
    backend.finished(workflow_run("report", outcome=Outcome.ERROR))
    backend.finished(agent_run("Planner", ms=300))
    backend.finished(llm_call("gpt-4o", agent="Planner", cost="0.5", ms=250))
    backend.finished(llm_call("mini", agent="Reviewer", cost="0.25", workflow="report", outcome=Outcome.ERROR))
    backend.record_policy_violation("Planner", "p")
    triage, planner = compute(backend, workflow="triage"), compute(backend, agent="Planner")
    mini = compute(backend, model="mini")
    assert (100.0, 0.5) == (triage.success_rate, triage.total_cost_usd)
    assert (1, 300, 0.5, 100.0) == (
        planner.runs,
        planner.p95_latency_ms,
        planner.total_cost_usd,
        planner.policy_violation_rate_percent,
    )
    assert (1, 0.0, 0.25) == (mini.runs, mini.success_rate, mini.total_cost_usd)
    assert None is mini.policy_violation_rate_percent
    assert 0 == compute(backend, agent="Planner", model="mini").runs


def test_direct_writes_count_where_a_filter_can_place_them(backend: MetricsBackend) -> None:
    """What was written by name counts under its agent or model, and of violations nothing is known of one workflow."""
    backend.increment_counter("llm.cost.agent.Planner", 2)
    backend.increment_counter("llm.cost.model.mini", 1)
    backend.increment_counter("agent.Planner.policy.violations")
    spent = [compute(backend, **only).total_cost_usd for only in ({}, {"agent": "Planner"}, {"model": "mini"})]
    assert [2.0, 2.0, 1.0] == spent
    assert (0.0, None) == (compute(backend, workflow="w").total_cost_usd, compute(backend, workflow="w").violations)


def test_a_window_slides(backend: MetricsBackend, clock: ManualClock) -> None:
    """An hour later only what ran within the hour counts, whatever the source."""
    backend.finished(workflow_run(outcome=Outcome.ERROR))
    backend.increment_counter("policy.violations.total")
    clock.advance(3700)
    backend.finished(workflow_run())
    recent = compute(backend, window="1h")
    assert (100.0, 0.0, 3600) == (recent.success_rate, recent.policy_violation_rate_percent, recent.window_seconds)
    assert (50.0, 50.0) == (compute(backend).success_rate, compute(backend, window="24h").policy_violation_rate_percent)


@pytest.mark.parametrize(("window", "seconds"), [("60s", 60), ("90s", 90), ("15m", 900), ("1h", 3600), ("24h", 86400)])
def test_windows_from_a_minute_to_a_day(window: str, seconds: int) -> None:
    """Seconds, minutes and hours are understood."""
    assert seconds == parse_window(window)


@pytest.mark.parametrize(
    "window", ["59s", "25h", "1441m", "1d", "", "h", "1.5h", "-1h", " 1h", "1h\n", "١h", 3600, None]
)
def test_other_windows_are_refused(window: str) -> None:
    """The error says what a window looks like."""
    with pytest.raises(ConfigurationError, match="'15m'"):
        parse_window(window)


@pytest.mark.parametrize(
    ("window", "meant"), [(3600, "1h"), ("3600", "1h"), (90, "90s"), ("1d", "24h"), ("2d", None), ("5s", None)]
)
def test_a_window_without_its_unit_is_understood_enough_to_say_what_is_right(window: Any, meant: str | None) -> None:
    """The error names what was given, and what it probably means."""
    with pytest.raises(ConfigurationError) as caught:
        parse_window(window)
    assert str(caught.value).startswith(f"window={window!r}: expected text")
    assert str(caught.value).endswith("'1h'" if meant is None else f"(did you mean {meant!r}?)")


# --- verdicts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "healthy", "warning", "critical"),
    [
        ("success_rate", 95, 90, 89.99),
        ("p95_latency_ms", 2000, 5000, 5000.01),
        ("cost_per_successful_task_usd", 0.10, 0.50, 0.501),
        ("policy_violation_rate_percent", 1, 2, 2.01),
    ],
)
def test_thresholds_include_their_bounds(key: str, healthy: float, warning: float, critical: float) -> None:
    """A value on a bound still has the better verdict."""
    expected = [Verdict.HEALTHY, Verdict.WARNING, Verdict.CRITICAL, Verdict.UNKNOWN]
    assert expected == [judge(key, value) for value in (healthy, warning, critical, None)]


def test_the_worst_known_verdict_is_the_overall_one(backend: MetricsBackend) -> None:
    """One warning makes a warning, whatever is unknown beside it."""
    for _ in range(100):
        backend.finished(workflow_run(ms=2500))
    signals = compute(backend)
    assert Verdict.UNKNOWN is signals.verdicts["user_confirmed_correctness_percent"]
    assert Verdict.WARNING is signals.verdict
    assert set(signals.as_dict()) == set(signals.verdicts) == {*THRESHOLDS, "user_confirmed_correctness_percent"}


# --- showing ----------------------------------------------------------------------------------------


def some_signals(backend: MetricsBackend) -> GoldenSignals:
    """Return signals with a value in each row."""
    for outcome in (Outcome.SUCCESS, Outcome.ERROR):
        backend.finished(workflow_run(outcome=outcome, ms=1234))
    backend.finished(llm_call())
    backend.record_feedback(correct=True)
    return compute(backend, window="15m")


def test_print_shows_an_aligned_table(backend: MetricsBackend) -> None:
    """Values, verdicts and what they rest on stand in columns."""
    expected = """\
Golden signals, last 15m: critical
  success rate          50.00 %  critical      1 of 2 runs, 1 failed
  p95 latency          1,234 ms  healthy       2 timed
  cost per task      $0.0000525  healthy       $0.0000525 spent, 1 of 1 billable calls priced, \
an unknown sum in failed runs
  user correctness     100.00 %  no threshold  1 of 1 confirmed
  policy violations      0.00 %  healthy       0 counted, no run was checked"""
    assert expected == str(some_signals(backend))


def test_what_is_counted_has_its_name(backend: MetricsBackend) -> None:
    """A gate on a model passes on calls, and one on an agent on its runs: both say so."""
    backend.finished(workflow_run())
    backend.finished(agent_run("Planner"))
    backend.finished(llm_call(agent="Planner", model="mini"))
    model, agent = str(compute(backend, model="mini")), str(compute(backend, agent="Planner"))
    assert re.search(r"success rate +100.00 % +healthy +1 of 1 calls\n", model)
    assert re.search(r"cost per call +\$", model)
    assert re.search(r"policy violations +– +unknown +not known of a model's calls$", model)
    assert re.search(r"success rate +100.00 % +healthy +1 of 1 agent runs\n", agent)
    assert re.search(r"cost per agent run +\$", agent)
    assert "1 of 1 runs" in str(compute(backend))


def test_since_when(clock: ManualClock) -> None:
    """Without a window the head says when the counting began, in UTC; with one it need not."""
    with closing(MetricsBackend(clock=Clock(clock.clock.monotonic_ns, lambda: 1_764_115_405_000_000_000))) as backend:
        assert datetime(2025, 11, 26, 0, 3, 25, tzinfo=UTC) == compute(backend).since
        assert str(compute(backend)).startswith("Golden signals, since the start at 2025-11-26T00:03:25Z: unknown\n")
        assert compute(backend, window="1h").since is None


def test_a_cost_that_is_not_zero_never_shows_as_zero(backend: MetricsBackend) -> None:
    """However small it is, digits that count are shown; the contract's dictionary has four decimals."""
    backend.finished(workflow_run())
    backend.finished(llm_call(cost="0.0000000123"))
    assert "$0.0000000123" in str(compute(backend))
    assert 0.0 == compute(backend).as_dict()["cost_per_successful_task_usd"]


def test_violations_without_a_workflow_are_not_known_of_one(backend: MetricsBackend) -> None:
    """What was told by name may be of any workflow: of one it is unknown, not zero, unless others are known there."""
    key = "policy_violation_rate_percent"
    backend.finished(workflow_run())
    assert 0.0 == compute(backend, workflow="triage").policy_violation_rate_percent
    backend.increment_counter("policy.violations.total")
    signals = compute(backend, workflow="triage")
    assert (None, None, Verdict.UNKNOWN) == (signals.violations, signals.as_dict()[key], signals.verdicts[key])
    assert "told by name, which carries none" in str(signals)
    assert 100.0 == compute(backend).policy_violation_rate_percent
    backend.record_policy_violation("Planner", "p", workflow="triage")
    assert 1 == compute(backend, workflow="triage").violations


def test_html_is_escaped(backend: MetricsBackend) -> None:
    """Names from outside do not become markup."""
    shown = compute(backend, agent="<script>")._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert 5 == shown.count("<tr>")


def test_signals_do_not_change(backend: MetricsBackend) -> None:
    """The answer is a snapshot: later runs are not in it."""
    signals = some_signals(backend)
    before = str(signals)
    backend.finished(workflow_run())
    assert before == str(signals)
    with pytest.raises(AttributeError):
        signals.success_rate = 100.0  # type: ignore[misc]
