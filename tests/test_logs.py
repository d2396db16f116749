"""Log lines as the sink writes them: real operations go in, parsed lines come out."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from log_bench import ECS_OBJECTS, START_NS, Bench, NoSpans, run_workflow

from taskpilot_instrument._records import LLMCall
from taskpilot_instrument.errors import BlockedError
from taskpilot_instrument.redaction import MARKER
from taskpilot_instrument.semconv import (
    LOG_FIELDS_ALWAYS,
    LOG_FIELDS_OPTIONAL,
    Kind,
    Outcome,
)
from taskpilot_instrument.usage import TokenUsage

# --- lines of operations -------------------------------------------------------------------------------


def test_a_run_is_told_in_five_lines(bench: Bench) -> None:
    """Each operation gives its line when it ends, an agent one more when it starts."""
    run_workflow(bench)

    assert [
        ("agent.started", "[AUDIT] PlannerAgent Input"),
        ("llm.called", "[AUDIT] chat gpt-4o-mini called"),
        ("tool.called", "[AUDIT] create_task called"),
        ("agent.finished", "[AUDIT] PlannerAgent Output"),
        ("workflow.finished", "[AUDIT] triage finished"),
    ] == [(line["event_name"], line["message"]) for line in bench.lines]
    assert {("INFO", "audit")} == {(line["level"], line["category"]) for line in bench.lines}


def test_line_of_an_llm_call_has_every_field_in_order(bench: Bench) -> None:
    """The whole line, as the contract with Kibana names it."""
    with bench.start(Kind.WORKFLOW, "triage", request_id="req-abc-123"), bench.start(Kind.AGENT, "PlannerAgent"):
        operation = bench.call(usage=TokenUsage(150, 50))
        with operation:
            bench.time.passed_ns += 1_500_000
        context = operation.span.get_span_context()

        assert [
            ("timestamp", "2024-12-21T10:00:00.124Z"),
            ("level", "INFO"),
            ("message", "[AUDIT] chat gpt-4o-mini called"),
            ("event_name", "llm.called"),
            ("category", "audit"),
            ("request_id", "req-abc-123"),
            ("trace_id", f"{context.trace_id:032x}"),
            ("span_id", f"{context.span_id:016x}"),
            ("service_name", "taskpilot"),
            ("workflow", "triage"),
            ("agent", "PlannerAgent"),
            ("model", "gpt-4o-mini"),
            ("input_tokens", 150),
            ("output_tokens", 50),
            ("cost_usd", 0.0000525),
            ("latency_ms", 1.5),
            ("outcome", "success"),
        ] == list(bench.line.items())


def test_every_line_has_the_fields_that_are_always_there(bench: Bench) -> None:
    """No line lacks one of them, none has a field that the contract does not name."""
    run_workflow(bench)

    for line in bench.lines:
        assert list(LOG_FIELDS_ALWAYS) == list(line)[: len(LOG_FIELDS_ALWAYS)]
        assert set(line) <= {*LOG_FIELDS_ALWAYS, *LOG_FIELDS_OPTIONAL}


def test_lines_of_a_run_share_request_and_trace(bench: Bench) -> None:
    """One request id and one trace id lead to all lines of a run; span ids tell them apart."""
    run_workflow(bench)

    assert {"req-abc-123"} == {line["request_id"] for line in bench.lines}
    assert 1 == len({line["trace_id"] for line in bench.lines})
    assert 4 == len({line["span_id"] for line in bench.lines})


@pytest.mark.parametrize(
    ("events", "found"),
    [
        (
            ["agent.started", "llm.called", "tool.called", "agent.finished"],
            lambda line: line.get("agent") == "PlannerAgent",
        ),
        (["llm.called", "agent.finished", "workflow.finished"], lambda line: line.get("model") == "gpt-4o-mini"),
        (["llm.called", "agent.finished", "workflow.finished"], lambda line: line.get("cost_usd", 0) > 0.00001),
        (
            ["agent.started", "llm.called", "tool.called", "agent.finished", "workflow.finished"],
            lambda line: line["request_id"] == "req-abc-123",
        ),
    ],
    ids=["agent", "model", "cost_usd", "request_id"],
)  # fmt: skip
def test_the_four_searches_find_their_lines(
    bench: Bench, events: list[str], found: Callable[[dict[str, Any]], bool]
) -> None:
    """What people type into Kibana works on the top level of the parsed line."""
    run_workflow(bench)
    with bench.start(Kind.WORKFLOW, "other"):
        pass

    assert events == [line["event_name"] for line in bench.lines if found(line)]


def test_what_is_unknown_is_left_out(bench: Bench) -> None:
    """A call without usage has neither tokens nor cost, not zeros."""
    with bench.call(model=None):
        pass

    assert {"model", "input_tokens", "output_tokens", "cost_usd", "agent", "workflow"}.isdisjoint(bench.line)
    assert "[AUDIT] chat called" == bench.line["message"]
    assert None not in bench.line.values()


def test_zero_is_written(bench: Bench) -> None:
    """Nought tokens are known to be nought."""
    with bench.call(usage=TokenUsage(7, 0)):
        pass

    assert 0 == bench.line["output_tokens"]


def test_ids_of_no_trace_are_left_out() -> None:
    """Where there is no trace, an id of zeros would join lines that do not belong together."""
    bench = Bench(spans=NoSpans())
    with bench.start(Kind.TOOL, "create_task"):
        pass

    assert {"trace_id", "span_id"}.isdisjoint(bench.line)


@given(st.integers(0, 4_000_000_000_000_000_000))
def test_timestamp_is_utc_with_milliseconds(at_ns: int) -> None:
    """Any moment is written as the calendar has it, cut to milliseconds, in whatever order the moments come."""
    bench = Bench()
    for moment in (at_ns, START_NS):
        bench.time.passed_ns = moment - START_NS
        bench.sink.record_event("e", "audit", "INFO", "m")

    expected = datetime.fromtimestamp(at_ns // 1_000_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    assert f"{expected}.{at_ns // 1_000_000 % 1000:03d}Z" == bench.lines[0]["timestamp"]
    assert "2024-12-21T10:00:00.123Z" == bench.lines[1]["timestamp"]


def test_no_field_shares_its_name_with_an_object_of_ecs() -> None:
    """Elasticsearch accepts the flat profile: `agent` is the one known collision, which the pipeline resolves."""
    assert ECS_OBJECTS.isdisjoint({*LOG_FIELDS_ALWAYS, *LOG_FIELDS_OPTIONAL})


# --- how an operation ended ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "event", "category", "message"),
    [
        (Kind.AGENT, "agent.failed", "error", "[ERROR] x failed: ValueError"),
        (Kind.TOOL, "tool.failed", "error", "[ERROR] x failed: ValueError"),
        (Kind.LLM, "llm.failed", "error", "[ERROR] chat m failed: ValueError"),
        (Kind.WORKFLOW, "workflow.finished", "audit", "[AUDIT] x failed: ValueError"),
    ],
)
def test_failure_is_an_error_line(bench: Bench, kind: Kind, event: str, category: str, message: str) -> None:
    """A failed operation says at level ERROR what failed and why."""
    bench.start(kind, llm=LLMCall("chat", "m") if kind is Kind.LLM else None).finish(ValueError("went wrong"))
    line = next(line for line in bench.lines if line["event_name"] == event)

    assert ("ERROR", category, message) == (line["level"], line["category"], line["message"])
    assert ("error", "ValueError", "went wrong") == (line["outcome"], line["error_type"], line["error_message"])


@pytest.mark.parametrize(
    ("outcome", "error"),
    [("cancelled", asyncio.CancelledError()), ("blocked", BlockedError("not allowed"))],
)
def test_an_end_that_is_no_failure_is_a_warning(bench: Bench, outcome: str, error: BaseException | None) -> None:
    """Cancelled and blocked operations stay in the audit trail, at level WARNING."""
    bench.start(Kind.TOOL, "create_task").finish(error, outcome=Outcome(outcome))

    assert ("WARNING", "audit", "tool.called", outcome) == tuple(
        bench.line[name] for name in ("level", "category", "event_name", "outcome")
    )
    assert f"[AUDIT] create_task {outcome}" == bench.line["message"]


def test_reason_of_a_failed_run_is_written(bench: Bench) -> None:
    """A run that was declared a failure says why, without an exception."""
    operation = bench.start(Kind.WORKFLOW, "triage")
    operation.verdict, operation.reason = Outcome.ERROR, "no answer; token=abc123"
    operation.finish()

    assert ("[AUDIT] triage failed", f"no answer; token={MARKER}") == (bench.line["message"], bench.line["reason"])


@pytest.mark.parametrize("finish_reason", ["length", "max_tokens", "max_output_tokens"])
def test_an_answer_cut_off_at_the_token_limit_gives_a_warning(bench: Bench, finish_reason: str) -> None:
    """A line of its own warns; it repeats neither tokens nor cost, so that a sum over all lines of calls is right."""
    operation = bench.call(usage=TokenUsage(150, 50))
    assert operation.llm is not None
    operation.llm.finish_reasons = ("stop", finish_reason)
    operation.finish()

    warning, called = bench.lines
    assert ("token_limit.exceeded", "llm.called") == (warning["event_name"], called["event_name"])
    assert ("WARNING", "error") == (warning["level"], warning["category"])
    assert "[ERROR] chat gpt-4o-mini stopped at the token limit" == warning["message"]
    assert ("gpt-4o-mini", "finish_length") == (warning["model"], warning["reason"])
    assert {"cost_usd", "input_tokens", "output_tokens"}.isdisjoint(warning)


@pytest.mark.parametrize(
    ("level", "events"),
    [
        ("DEBUG", ["agent.started", "tool.called", "tool.failed", "agent.finished", "token_limit.exceeded"]),
        ("INFO", ["agent.started", "tool.called", "tool.failed", "agent.finished", "token_limit.exceeded"]),
        ("WARNING", ["tool.called", "tool.failed", "token_limit.exceeded"]),
        ("ERROR", ["tool.failed"]),
        ("CRITICAL", []),
    ],
)
def test_lines_below_the_level_are_not_written(level: str, events: list[str]) -> None:
    """The level of the sink holds for every kind of line."""
    bench = Bench(level=level)
    with bench.start(Kind.WORKFLOW), bench.start(Kind.AGENT):
        bench.start(Kind.TOOL).finish(asyncio.CancelledError())
        bench.start(Kind.TOOL).finish(ValueError())
    operation = bench.call()
    assert operation.llm is not None
    operation.llm.finish_reasons = ("length",)
    operation.finish()

    assert events == [
        line["event_name"] for line in bench.lines if line["event_name"] not in {"workflow.finished", "llm.called"}
    ]


# --- other events --------------------------------------------------------------------------------------


def test_an_event_takes_its_ids_from_the_current_operation(bench: Bench) -> None:
    """A decision inside a tool names workflow, agent, tool and request by itself."""
    with bench.start(Kind.WORKFLOW, "triage", request_id="req-1"), bench.start(Kind.AGENT, "PlannerAgent"):
        tool = bench.start(Kind.TOOL, "create_task")
        with tool:
            bench.sink.record_event(
                "policy.decided", "decision", "WARNING", "denied", policy="weekend", decision="deny", reason="Sunday"
            )  # fmt: skip
            line = bench.line

    assert {
        "timestamp": "2024-12-21T10:00:00.123Z",
        "level": "WARNING",
        "message": "[DECISION] denied",
        "event_name": "policy.decided",
        "category": "decision",
        "request_id": "req-1",
        "trace_id": f"{tool.span.get_span_context().trace_id:032x}",
        "span_id": f"{tool.span.get_span_context().span_id:016x}",
        "service_name": "taskpilot",
        "workflow": "triage",
        "agent": "PlannerAgent",
        "tool": "create_task",
        "policy": "weekend",
        "decision": "deny",
        "reason": "Sunday",
    } == line
    order = [*LOG_FIELDS_ALWAYS, *LOG_FIELDS_OPTIONAL]
    assert sorted(line, key=order.index) == list(line)


def test_an_event_writes_known_fields_only(bench: Bench) -> None:
    """What is no field of a log line, or has no value, is left out; what is given comes before what is current."""
    with bench.start(Kind.WORKFLOW, "triage"):
        bench.sink.record_event("e", "audit", "INFO", "m", request_id="req-9", prompt="private", policy=None)

    line = next(line for line in bench.lines if line["event_name"] == "e")
    assert "req-9" == line["request_id"]
    assert {"prompt", "policy"}.isdisjoint(line)


def test_values_of_an_event_are_plain_and_redacted(bench: Bench) -> None:
    """Money becomes a number, objects become text, secrets go, and what is no number in JSON becomes a word."""
    bench.sink.record_event(
        "e", "audit", "INFO", "a token=abc", cost_usd=Decimal("0.25"), reason={"password": "x"}, latency_ms=float("nan")
    )  # fmt: skip

    assert f"[AUDIT] a token={MARKER}" == bench.line["message"]
    assert (0.25, f'{{"password": "{MARKER}"}}', "NaN") == (
        bench.line["cost_usd"],
        bench.line["reason"],
        bench.line["latency_ms"],
    )


def test_an_event_below_the_level_is_not_written() -> None:
    """The level of the sink holds for events too."""
    bench = Bench(level="ERROR")
    bench.sink.record_event("e", "audit", "INFO", "m")

    assert [] == bench.lines
