"""Alias names: the dotted names as Prometheus metrics, in output that every parser accepts."""

import logging
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metrics_records import agent_run, llm_call, workflow_run
from prometheus_client import CollectorRegistry, Counter
from prometheus_client import generate_latest as generate_classic
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_classic

from taskpilot_instrument.semconv import Outcome
from taskpilot_instrument.sinks.metrics import MetricsBackend


def values(backend: MetricsBackend) -> dict[str, float]:
    """Return every label-free sample by name, as the OpenMetrics parser reads it."""
    text = generate_openmetrics(backend.registry).decode()
    return {s.name: s.value for metric in parse_openmetrics(text) for s in metric.samples if not s.labels}


def busy() -> MetricsBackend:
    """Return a backend in which some of everything happened."""
    backend = MetricsBackend()
    backend.finished(workflow_run(ms=1500))
    backend.finished(workflow_run("other-workflow", ms=40, outcome=Outcome.ERROR))
    backend.finished(agent_run(ms=700))
    backend.finished(llm_call())
    backend.record_policy_violation("PlannerAgent", "no_pii")
    backend.record_guardrail_block("PlannerAgent", "jailbreak", "input")
    backend.record_guardrail_block("PlannerAgent", "toxicity", "output")
    backend.record_feedback(correct=True, agent="PlannerAgent")
    backend.record_feedback(correct=False)
    return backend


def test_every_alias_is_served() -> None:
    """The names that people type into Grafana, each with its value."""
    expected = {
        "workflow_runs": 2,
        "workflow_success": 1,
        "workflow_latency_ms_count": 2,
        "workflow_latency_ms_sum": 1540,
        "agent_planneragent_latency_ms_count": 1,
        "agent_planneragent_latency_ms_sum": 700,
        "llm_cost_total": 0.0000525,
        "llm_cost_agent_planneragent": 0.0000525,
        "llm_cost_model_gpt_4o_mini": 0.0000525,
        "llm_tokens_input_gpt_4o_mini": 150,
        "llm_tokens_output_gpt_4o_mini": 50,
        "llm_tokens_total_gpt_4o_mini": 200,
        "llm_tokens_input_total": 150,
        "llm_tokens_output_total": 50,
        "llm_tokens_total_all": 200,
        "llm_quality_user_confirmed_correct": 1,
        "llm_quality_user_confirmed_incorrect": 1,
        "policy_violations_total": 1,
        "agent_planneragent_policy_violations": 1,
        "agent_planneragent_guardrails_blocked": 1,
        "agent_planneragent_guardrails_output_blocked": 1,
    }
    found = values(busy())
    assert expected == pytest.approx({name: found.get(name) for name in expected})


def test_latency_bounds_are_milliseconds() -> None:
    """Buckets lie at the bounds of the seconds histogram × 1000, cumulative over all workflows."""
    registry = busy().registry
    assert 0.0 == registry.get_sample_value("workflow_latency_ms_bucket", {"le": "25.0"})
    assert 1.0 == registry.get_sample_value("workflow_latency_ms_bucket", {"le": "50.0"})
    assert 2.0 == registry.get_sample_value("workflow_latency_ms_bucket", {"le": "2000.0"})
    assert 2.0 == registry.get_sample_value("workflow_latency_ms_bucket", {"le": "+Inf"})


def test_known_aliases_are_there_before_anything_happened() -> None:
    """A dashboard finds zero, not nothing, and a first increment is seen as one."""
    found = values(MetricsBackend())
    names = ("workflow_runs", "workflow_latency_ms_count", "llm_cost_total", "policy_violations_total")
    assert [0.0] * 4 == [found[name] for name in names]


PARSERS = pytest.mark.parametrize(
    ("generate", "parse"),
    [(generate_classic, parse_classic), (generate_openmetrics, parse_openmetrics)],
    ids=["classic", "openmetrics"],
)
#: Models whose aliases come close to other names.
AWKWARD = [
    "total",
    "Total",
    "all",
    "created",
    "x",
    "x_total",
    "x.total",
    "sum",
    "count",
    "bucket",
    "1",
    "größe",
    "-",
    "a\nb",
]


@PARSERS
def test_both_parsers_accept_awkward_names(
    generate: Callable[[CollectorRegistry], bytes], parse: Callable[[str], list[Metric]]
) -> None:
    """Agents and models called like parts of other names make no clash, and each family comes once."""
    backend = busy()
    for name in AWKWARD:
        backend.finished(llm_call(name, agent=f"{name}_latency_ms"))
        backend.finished(agent_run(name))
    families = [metric.name for metric in parse(generate(backend.registry).decode())]
    assert len(set(families)) == len(families)
    assert "workflow_runs" in families


name_strategy = st.one_of(st.sampled_from(AWKWARD), st.text(min_size=1, max_size=12))


@settings(max_examples=50)
@given(st.lists(st.tuples(name_strategy, name_strategy), max_size=6))
def test_any_agent_and_model_can_be_exposed(pairs: list[tuple[str, str]]) -> None:
    """Whatever agents and models are called, the output parses, and the totals count each call once."""
    backend = MetricsBackend()
    for agent, model in pairs:
        backend.finished(llm_call(model, agent=agent, cost="0.25"))
    list(parse_classic(generate_classic(backend.registry).decode()))
    found = values(backend)
    assert 0.25 * len(pairs) == found["llm_cost_total"]
    assert 150 * len(pairs) == found["llm_tokens_input_total"]
    backend.close()


def test_values_that_collide_are_added_up_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    """Two models with one alias are one series, and the log says so once."""
    backend = MetricsBackend()
    backend.finished(llm_call("gpt-4o"))
    backend.finished(llm_call("GPT_4o"))
    backend.finished(agent_run("My Agent", ms=100))
    backend.finished(agent_run("my-agent", ms=200))
    with caplog.at_level(logging.WARNING):
        values(backend)
        found = values(backend)
    assert 300 == found["llm_tokens_input_gpt_4o"]
    assert 300 == pytest.approx(found["agent_my_agent_latency_ms_sum"])
    assert 1 == sum("llm_tokens_input_gpt_4o" in message for message in caplog.messages)


def test_collisions_without_end_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Of the first hundred it is said once; all are added up."""
    backend = MetricsBackend()
    for number in range(40):
        for model in (f"m-{number}", f"m_{number}", f"m.{number}"):
            backend.finished(llm_call(model))
    with caplog.at_level(logging.WARNING):
        values(backend)
        found = values(backend)
    assert {450} == {found[f"llm_tokens_input_m_{number}"] for number in range(40)}
    assert 100 == sum("share the alias" in message for message in caplog.messages)


def test_a_total_is_never_mistaken_for_a_model(caplog: pytest.LogCaptureFixture) -> None:
    """A model called Total keeps its dotted name; the alias is the total, and the log says so."""
    backend = MetricsBackend()
    backend.finished(llm_call("Total"))
    backend.finished(llm_call("gpt-4o"))
    with caplog.at_level(logging.WARNING):
        found = values(backend)
    assert 300 == found["llm_tokens_input_total"]
    assert 150 == found["llm_tokens_input_gpt_4o"]
    assert 150 == backend.get_counter("llm.tokens.input.Total")
    assert any("llm.tokens.input.Total" in message for message in caplog.messages)


def test_aliases_agree_with_the_dotted_names() -> None:
    """What Prometheus sees under an alias is what Python reads under the dotted name, direct writes included."""
    backend = busy()
    backend.increment_counter("llm.cost.model.gpt-4.1-mini", 0.5)
    backend.increment_counter("workflow.success", 2)
    found = values(backend)
    assert backend.get_counter("llm.cost.total") == found["llm_cost_total"]
    assert backend.get_counter("llm.cost.model.gpt-4.1-mini") == found["llm_cost_model_gpt_4_1_mini"] == 0.5
    assert backend.get_counter("workflow.runs") == found["workflow_runs"] == 4


def test_aliases_can_be_switched_off() -> None:
    """Without them only the canonical families are served."""
    backend = MetricsBackend(aliases=False)
    backend.finished(workflow_run())
    families = [metric.name for metric in backend.registry.collect()]
    assert all(name.startswith("taskpilot_") for name in families)


def test_an_alias_that_the_application_has_is_left_to_it(caplog: pytest.LogCaptureFixture) -> None:
    """An application's own metric of that name stays, the other aliases are served, and the log says which is not."""
    registry = CollectorRegistry()
    Counter("llm_cost_total", "The application's own.", registry=registry).inc(7)
    with caplog.at_level(logging.WARNING):
        backend = MetricsBackend(registry)
    backend.finished(workflow_run())
    found = values(backend)
    assert 7.0 == found["llm_cost_total"]
    assert 1.0 == found["workflow_runs"]
    assert any("llm_cost_total" in message for message in caplog.messages)
