"""A call that we refused before it was sent is no request to the model: it is told apart, and tells of no model."""

import logging
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import openai
import pytest
from metrics_records import llm_call
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

import taskpilot_instrument as tp
from taskpilot_instrument import _signals_json as as_json
from taskpilot_instrument._waste import WasteInMetrics
from taskpilot_instrument.comparison import ModelComparison, compare
from taskpilot_instrument.embedded import EmbeddedServer, Reply
from taskpilot_instrument.golden import of_sample
from taskpilot_instrument.semconv import Outcome
from taskpilot_instrument.sinks._signals import Sample
from taskpilot_instrument.sinks.metrics import MetricsBackend
from taskpilot_instrument.testing import Captured, capture
from taskpilot_instrument.web.breakdown import by_agent

MODEL, OTHER = "gpt-4o-mini", "gpt-4o"
MESSAGES: Any = [{"role": "user", "content": "hello"}]
LIMITS = [tp.TokenLimit(100, on_exceed="block")]
DURATIONS = "gen_ai.client.operation.duration"

pytestmark = pytest.mark.openai


def work(client: openai.OpenAI, *, sent: int = 2, refused: int = 3, asks_for: str = MODEL) -> None:
    """Make calls, and in the same run others that a limit refuses."""

    @tp.observed_agent(name="PlannerAgent")
    def plan() -> None:
        for _ in range(sent):
            client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=10)
        for _ in range(refused):
            with pytest.raises(tp.TokenLimitError):
                client.chat.completions.create(model=asks_for, messages=MESSAGES, max_tokens=1_000)

    plan()


def test_they_are_in_none_of_the_models_figures(client: openai.OpenAI) -> None:
    """A comparison counts them in a row of their own; success, latency and problems are of the calls that were sent."""
    with capture(token_limits=LIMITS) as captured:
        work(client)
        comparison = captured.handle.compare_models()
    (told,) = comparison.models
    assert (2, 3, 100.0, {}) == (told.calls, told.blocked_calls, told.success_rate.value, dict(told.problems))
    assert 2 == told.p50_latency_ms.sample == told.success_rate.sample
    assert ["refused", "before", "sent", "3"] in [line.split() for line in str(comparison).splitlines()]
    assert comparison == ModelComparison.from_dict(comparison.as_dict())


def test_without_any_there_is_no_row(captured: Captured, client: openai.OpenAI) -> None:
    """What did not happen takes no room."""
    work(client, refused=0)
    assert "refused" not in str(captured.handle.compare_models())
    assert "refused" not in str(tp.health())


def test_a_model_that_was_only_refused_is_shown(client: openai.OpenAI) -> None:
    """It has a row, and nothing is known of it; nor is the run the one of a model that was not called."""
    with capture(token_limits=LIMITS) as captured:
        work(client, asks_for=OTHER)
        first, second = captured.handle.compare_models().models
        agent = captured.tags("PlannerAgent.execute")
    assert (MODEL, 2, 0, 1) == (first.model, first.calls, first.blocked_calls, first.cost_per_successful_run_usd.sample)
    assert (OTHER, 0, 3, None) == (second.model, second.calls, second.blocked_calls, second.success_rate.value)
    assert (None, 0) == (second.p95_latency_ms.value, second.cost_per_successful_run_usd.sample)
    assert MODEL == agent["model"]


def test_the_fastest_to_refuse_is_not_the_best() -> None:
    """Of two models alike, the one whose calls a budget refuses is neither the faster nor the worse one."""
    backend, alike = MetricsBackend(), MetricsBackend()
    for number in range(400):
        for model in (MODEL, OTHER):
            backend.finished(llm_call(model, ms=100.0 + number))
            alike.finished(llm_call(model, ms=100.0 + number))
        refusal = {"outcome": Outcome.BLOCKED, "error_type": "BudgetExceededError", "usage": None, "cost": None}
        backend.finished(llm_call(OTHER, ms=0.1, **refusal))
    assert compare(alike).findings == compare(backend).findings


def test_golden_signals_of_a_model_are_of_its_requests(client: openai.OpenAI) -> None:
    """Its runs are the calls that were sent; how many were refused stands beside them, also in JSON."""
    with capture(token_limits=LIMITS) as captured:
        work(client)
        found = captured.handle.golden_signals(model=MODEL)
        whole = captured.golden_signals()
    assert (2, 100.0, 2, 3) == (found.runs, found.success_rate, found.sample.timed, found.blocked_calls)
    assert "2 of 2 calls, 3 refused before sent" in str(found)
    assert (2, 3, 1, 1.0) == (whole.sample.calls, whole.blocked_calls, whole.runs, whole.cost_coverage)
    assert found == as_json.from_json(as_json.to_json(found))


def test_histograms_time_requests_and_the_counter_counts_all(client: openai.OpenAI) -> None:
    """Prometheus and OpenTelemetry time what was sent; the family of calls has the refused ones under their outcome."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    with capture(token_limits=LIMITS, meter_provider=provider) as captured:
        work(client)
        text = captured.prometheus_text.splitlines()
        points = [
            point
            for resource in reader.get_metrics_data().resource_metrics  # type: ignore[union-attr] # there are some
            for scope in resource.scope_metrics
            for metric in scope.metrics
            for point in metric.data.data_points
            if metric.name == DURATIONS
        ]
    provider.shutdown()
    labels = f'model="{MODEL}",provider="openai"'
    assert f"taskpilot_llm_duration_seconds_count{{{labels}}} 2.0" in text
    calls = [line for line in text if line.startswith("taskpilot_llm_calls_total{") and 'outcome="blocked"' in line]
    assert ["3.0"] == [line.rpartition(" ")[2] for line in calls]
    assert [(2, False)] == [(point.count, "error.type" in point.attributes) for point in points]


def test_health_knows_that_they_did_not_pass(client: openai.OpenAI) -> None:
    """They were neither seen at the transport nor are they open."""
    with capture(token_limits=LIMITS):
        work(client)
        state = tp.health()
    assert (2, 2, 0, 3) == (state.calls_seen, state.calls_recorded, state.calls_open, state.calls_blocked)
    assert "2 seen at the transport, 2 recorded, 0 open; 3 refused before they were sent" in str(state)


def test_the_page_tells_them_apart(client: openai.OpenAI) -> None:
    """The figures of an agent have them beside its calls, also where it made no other."""
    with capture(token_limits=LIMITS) as captured:
        work(client)
        with pytest.raises(tp.TokenLimitError):
            client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=1_000)
        rows = {each["agent"]: each for each in by_agent(captured.handle.metrics.windows.select())}
    told = {name: (each["calls"], each["failed_calls"], each["blocked_calls"]) for name, each in rows.items()}
    assert {"PlannerAgent": (2, 0, 3), "none": (0, 0, 1)} == told


def test_a_report_tells_them_apart(tmp_path: Path, client: openai.OpenAI) -> None:
    """Its calls, their success, mean latency and errors are of what was sent."""
    with capture(token_limits=LIMITS, ledger=str(tmp_path / "ledger.db")):
        work(client)
        later = datetime.now(UTC) + timedelta(hours=1)  # the running hour is left out
        made = tp.report("day", end=datetime.now(UTC).date(), now=later)
    values = {key: each.value for key, each in made.figures.items()}
    assert (2, 3, 100.0) == (values["llm_calls"], values["blocked_calls"], values["llm_success_rate"])
    for table in ("models", "agents"):
        (row,) = made.tables[table].rows
        assert (2, 100.0, "3 calls refused before sent") == (
            row.values["calls"], row.values["success_rate"], row.note,
        )  # fmt: skip
        assert (row.values["mean_latency_ms"] or 0) > 0
    assert "errors" not in made.tables


def test_retries_are_in_the_table(captured: Captured, server: EmbeddedServer, client: openai.OpenAI) -> None:
    """Where the client sent requests again, the golden signals say how often; elsewhere nothing."""
    client.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert "retr" not in str(captured.golden_signals())
    server.script(*[Reply.error(429, headers={"retry-after-ms": "1"})] * 2, Reply("done"))
    client.with_options(max_retries=2).chat.completions.create(model=MODEL, messages=MESSAGES)
    found = captured.golden_signals()
    assert (2, 2) == (found.retries, as_json.to_json(found)["retries"])
    assert "2 of 2 billable calls priced, 2 retries" in str(found)


@pytest.mark.parametrize(
    ("wasted", "said"),
    [
        (WasteInMetrics(3, 1, 0, Decimal(0), None), "3 calls without a price, waste not known, 1 retry"),
        (WasteInMetrics(3, 0, 10, Decimal("0.5"), None), "3 calls without a price, ≥ $0.5000 wasted"),
        (WasteInMetrics(1, 1, 0, Decimal(0), None), "3 calls without a price, 1 retry"),
    ],
)
def test_waste_that_metrics_cannot_tell(wasted: WasteInMetrics, said: str) -> None:
    """Where calls failed, and some calls have no price, the families cannot tell that nothing was wasted."""
    sample = Sample(9, 9, 1.0, 9, Decimal(1), 9, None, 3, 0, 0, 0, None, None, wasted)
    (line,) = [line for line in str(of_sample(sample, None, None, None, None)).splitlines() if "cost per task" in line]
    assert line.endswith(f"≥ $1.0000 spent, {said}")


def test_repricing_warns_of_nothing(captured: Captured, caplog: pytest.LogCaptureFixture) -> None:
    """To ask what a model would have cost is no call of it."""
    with caplog.at_level(logging.WARNING, "taskpilot_instrument"), pytest.raises(tp.ConfigurationError):
        captured.handle.compare_models(reprice=["asked-but-never-called"])
    assert [] == caplog.records
