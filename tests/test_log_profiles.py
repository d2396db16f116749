"""Log lines in the names of the Elastic Common Schema."""

import re

import pytest
from log_bench import Bench, run_workflow

from taskpilot_instrument.semconv import (
    ECS_FIELDS,
    LOG_FIELDS_ALWAYS,
    LOG_FIELDS_OPTIONAL,
    Kind,
    Outcome,
)

# --- profiles ------------------------------------------------------------------------------------------


def test_ecs_line_has_the_names_of_the_common_schema() -> None:
    """The whole line of an LLM call in the ECS profile."""
    bench = Bench(profile="ecs", service_name="billing")
    run_workflow(bench)
    line = bench.lines[1]

    assert re.fullmatch("[0-9a-f]{32}", line.pop("trace.id"))
    assert re.fullmatch("[0-9a-f]{16}", line.pop("span.id"))
    assert {
        "@timestamp": "2024-12-21T10:00:00.124Z",
        "log.level": "info",
        "message": "[AUDIT] chat gpt-4o-mini called",
        "event.action": "llm.called",
        "labels.category": "audit",
        "labels.request_id": "req-abc-123",
        "service.name": "billing",
        "labels.workflow": "triage",
        "gen_ai.agent.name": "PlannerAgent",
        "gen_ai.request.model": "gpt-4o-mini",
        "gen_ai.usage.input_tokens": 150,
        "gen_ai.usage.output_tokens": 50,
        "taskpilot.cost_usd": 0.0000525,
        "taskpilot.latency_ms": 1.5,
        "labels.outcome": "success",
        "event.kind": "event",
        "event.outcome": "success",
        "event.duration": 1_500_000,
        "ecs.version": "9.2.0",
    } == line


@pytest.mark.parametrize(
    ("expected", "outcome"),
    [
        ("success", "success"), ("failure", "error"), ("failure", "blocked"), ("unknown", "cancelled"),
    ],
)  # fmt: skip
def test_ecs_outcome_is_one_of_three(expected: str, outcome: str) -> None:
    """``event.outcome`` takes an allowed value, and ours stands beside it."""
    bench = Bench(profile="ecs")
    bench.start(Kind.TOOL).finish(outcome=Outcome(outcome))

    assert (expected, outcome) == (bench.line["event.outcome"], bench.line["labels.outcome"])


def test_ecs_lines_of_a_start_and_a_failure() -> None:
    """A start has neither outcome nor duration; a failure has ``error.*``."""
    bench = Bench(profile="ecs")
    bench.start(Kind.AGENT, "PlannerAgent").finish(ValueError("wrong"))
    started, failed, _ = bench.lines

    assert {"event.outcome", "event.duration"}.isdisjoint(started)
    assert ("error", "ValueError", "wrong") == tuple(failed[n] for n in ("log.level", "error.type", "error.message"))


def test_ecs_has_a_name_for_every_field() -> None:
    """No field of the flat profile lacks its ECS name, and no two share one or nest in one another."""
    renamed = list(ECS_FIELDS.values())

    assert {*LOG_FIELDS_ALWAYS, *LOG_FIELDS_OPTIONAL} == set(ECS_FIELDS)
    assert [] == [(a, b) for a in renamed for b in renamed if b.startswith(f"{a}.")]
    assert len(renamed) == len(set(renamed))
