"""Log lines as the sink writes them: real operations go in, parsed lines come out."""

import asyncio
import io
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import INVALID_SPAN, Span

from taskpilot_instrument import _guard
from taskpilot_instrument._operation import Operation, Recorder
from taskpilot_instrument._records import LLMCall
from taskpilot_instrument._token_watch import TokenWatch
from taskpilot_instrument.errors import BlockedError, ConfigurationError
from taskpilot_instrument.pricing import Price
from taskpilot_instrument.redaction import MARKER
from taskpilot_instrument.semconv import (
    ECS_FIELDS,
    LOG_FIELDS_ALWAYS,
    LOG_FIELDS_OPTIONAL,
    Kind,
    Outcome,
)
from taskpilot_instrument.sinks.logs import LogSink, TaskpilotFields, add_taskpilot_fields
from taskpilot_instrument.typing import Clock, Sink
from taskpilot_instrument.usage import TokenUsage

#: Objects that the Elastic Common Schema owns; a flat field of that name would not be accepted into its index.
ECS_OBJECTS: Final = frozenset({"event", "error", "host", "service", "user", "log", "url", "process", "trace", "span"})
START_NS: Final = 1_734_775_200_123_456_789  # 2024-12-21T10:00:00.123456789Z


class Spans:
    """Spans of a real SDK provider."""

    def __init__(self) -> None:
        self.tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")

    def open_span(self, operation: Operation, context: Context, /) -> Span:
        """Start a span beneath the current one."""
        return self.tracer.start_span(operation.name, context=context)


class NoSpans:
    """A source whose spans are not real, as where tracing is switched off."""

    def open_span(self, operation: Operation, context: Context, /) -> Span:
        """Return the span that records nothing."""
        return INVALID_SPAN


class Prices:
    """Every measured call costs the same."""

    def price_call(self, call: LLMCall, /) -> Price | None:
        """Return the price of 150 + 50 tokens of gpt-4o-mini."""
        return Price(Decimal("0.0000525"), "user")

    def most_pico(self, _call: LLMCall, _input_tokens: int, _output_tokens: int, /) -> int | None:
        """Return the same."""
        return 52_500_000


class Time:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.passed_ns = 0

    @property
    def clock(self) -> Clock:
        """The clock that an operation and a sink take."""
        return Clock(lambda: self.passed_ns, lambda: START_NS + self.passed_ns)


class Bench:
    """A sink under test, the recorder that feeds it, and the lines that came out."""

    def __init__(self, target: Any = None, *, spans: Any = None, **arguments: Any) -> None:
        self.time = Time()
        self.stream = io.StringIO()
        self.sink = LogSink(self.stream if target is None else target, clock=self.time.clock, **arguments)
        sink: Sink = self.sink
        self.recorder = Recorder(spans or Spans(), (TokenWatch(), sink), Prices(), self.time.clock)

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The lines so far, parsed."""
        return parsed(self.stream.getvalue())

    @property
    def line(self) -> dict[str, Any]:
        """The last line."""
        return self.lines[-1]

    def start(self, kind: Kind, name: str = "x", **arguments: Any) -> Operation:
        """Start an operation and announce it."""
        operation = Operation(self.recorder, kind, name, **arguments)
        operation.announce()
        return operation

    def call(self, model: str | None = "gpt-4o-mini", usage: TokenUsage | None = None) -> Operation:
        """Start an LLM call."""
        call = LLMCall("chat", model)
        call.usage = usage
        return self.start(Kind.LLM, "chat", llm=call)


def parsed(text: str) -> list[dict[str, Any]]:
    """Parse lines of JSON strictly: no constants outside the standard, no key twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(pairs) == len(dict(pairs))
        return dict(pairs)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return [json.loads(line, object_pairs_hook=once, parse_constant=refuse) for line in text.splitlines()]


@pytest.fixture
def bench() -> Bench:
    """A sink that writes the flat profile into memory."""
    return Bench()


@pytest.fixture
def swallowing() -> Iterator[None]:
    """Let the guard swallow, as in production, and forget what it counted."""
    before, _guard.policy.reraise = _guard.policy.reraise, False
    yield
    _guard.policy.reraise = before
    _guard.reset()


def run_workflow(bench: Bench) -> None:
    """Run a workflow of one agent, with one LLM call and one tool call."""
    with bench.start(Kind.WORKFLOW, "triage", request_id="req-abc-123"), bench.start(Kind.AGENT, "PlannerAgent"):
        with bench.call(usage=TokenUsage(150, 50)):
            bench.time.passed_ns += 1_500_000
        with bench.start(Kind.TOOL, "create_task"):
            pass


# --- lines of operations -----------------------------------------------------------------------------


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


# --- how an operation ended --------------------------------------------------------------------------


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


# --- content and secrets -----------------------------------------------------------------------------


def _with_content(bench: Bench) -> list[str]:
    agent = Operation(bench.recorder, Kind.AGENT, "PlannerAgent")
    agent.input_text, agent.input_length = "Create a task", 13
    agent.announce()
    with agent:
        tool = bench.start(Kind.TOOL, "create_task")
        tool.input_text = '{"title": "x"}'
        tool.finish()
        agent.output_text, agent.output_length = "Done", 4
    return [line["message"] for line in bench.lines if line["event_name"] != "workflow.finished"]


def test_content_is_in_the_message_where_it_is_asked_for() -> None:
    """Captured text follows the colon."""
    assert [
        "[AUDIT] PlannerAgent Input: Create a task",
        '[AUDIT] create_task called: {"title": "x"}',
        "[AUDIT] PlannerAgent Output: Done",
    ] == _with_content(Bench(content=True))


def test_content_captured_for_spans_does_not_reach_the_log(bench: Bench) -> None:
    """Text that only the spans are to carry stays out of every line; lengths are no content."""
    assert ["[AUDIT] PlannerAgent Input", "[AUDIT] create_task called", "[AUDIT] PlannerAgent Output"] == (
        _with_content(bench)
    )
    assert "Create a task" not in bench.stream.getvalue()
    assert (13, 4) == (bench.lines[0]["input_length"], bench.lines[2]["output_length"])


def test_messages_without_captured_text_end_before_the_colon() -> None:
    """Content that nobody captured leaves no trace in the message."""
    bench = Bench(content=True)
    run_workflow(bench)

    assert "[AUDIT] PlannerAgent Input" == bench.lines[0]["message"]


def test_secrets_in_an_error_message_are_not_written(bench: Bench) -> None:
    """A provider that quotes the key in its complaint does not get it into the log."""
    bench.call().finish(ValueError("Incorrect API key provided: sk-proj-abcdefgh12345678. See the docs."))

    assert f"Incorrect API key provided: {MARKER}. See the docs." == bench.line["error_message"]
    assert "abcdefgh12345678" not in bench.stream.getvalue()


def test_a_long_error_message_is_cut() -> None:
    """A message of a hundred thousand characters becomes 512 and a note."""
    bench = Bench()
    bench.call().finish(ValueError("x" * 100_000))

    assert "x" * 512 + "… [cut: 100000 characters in all]" == bench.line["error_message"]


def test_the_redact_hook_sees_error_messages() -> None:
    """What the application's own function takes out is not written."""
    bench = Bench(redact=lambda text: text.replace("Ann", "somebody"))
    bench.call().finish(ValueError("Ann said password=hunter2"))

    assert f"somebody said password={MARKER}" == bench.line["error_message"]


def test_a_broken_hook_loses_the_message_not_the_line(swallowing: None) -> None:
    """Where the application's function raises, the line is written without the text."""

    def broken(text: str) -> str:
        raise RuntimeError(text)

    bench = Bench(redact=broken)
    bench.call().finish(ValueError("private"))

    assert "llm.failed" == bench.line["event_name"]
    assert "private" not in bench.stream.getvalue()


class Unspeakable(Exception):
    """An exception that cannot say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no")


def test_an_exception_that_cannot_be_shown_is_named(bench: Bench) -> None:
    """A broken ``__str__`` costs the message, not the line."""
    bench.call().finish(Unspeakable())

    assert "<unprintable Unspeakable>" == bench.line["error_message"]


@given(st.text(min_size=1))
def test_any_name_stays_on_one_line(name: str) -> None:
    """Line breaks, control characters and letters of any script come back from the parsed line as they were."""
    bench = Bench()
    with bench.start(Kind.TOOL, name):
        pass

    assert 1 == len(bench.stream.getvalue().splitlines())
    assert bench.stream.getvalue().isascii()
    assert (name, f"[AUDIT] {name} called") == (bench.line["tool"], bench.line["message"])


# --- other events ------------------------------------------------------------------------------------


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


# --- profiles ----------------------------------------------------------------------------------------


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


# --- targets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["stderr", "stdout"])
def test_a_standard_stream_is_found_anew_at_each_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that is redirected after the sink was made gets the lines."""
    bench, redirected = Bench(name), io.StringIO()
    monkeypatch.setattr(sys, name, redirected)
    run_workflow(bench)

    assert 5 == len(parsed(redirected.getvalue()))


def test_stderr_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a target lines go to stderr; stdout belongs to the application."""
    LogSink().record_event("e", "audit", "INFO", "m")
    written = capsys.readouterr()

    assert ("", 1) == (written.out, len(parsed(written.err)))


@pytest.mark.parametrize("target", [None, "off"])
def test_off_writes_nothing(target: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    """A sink that is off takes everything and writes nothing."""
    sink = LogSink(target)
    bench = Bench()
    recorder = bench.recorder._replace(sinks=(sink,))
    Operation(recorder, Kind.AGENT, "x").finish(ValueError())
    sink.record_event("e", "error", "CRITICAL", "m")
    sink.close()

    assert ("", "") == capsys.readouterr()


class OneWrite:
    """A stream that keeps what each call of write() brought."""

    def __init__(self) -> None:
        self.writes: list[str] = []

    def write(self, text: str, /) -> None:
        """Keep it."""
        self.writes.append(text)


def test_a_line_is_one_write() -> None:
    """A line and its end reach the stream in one call, and nothing but write() is needed of a stream."""
    stream = OneWrite()
    run_workflow(Bench(stream))

    assert 5 == len(stream.writes)
    assert all(text.endswith("}\n") for text in stream.writes)


def test_any_encoding_of_a_stream_will_do() -> None:
    """A stream that can only write ASCII gets every letter of a name through."""
    raw = io.BytesIO()
    bench = Bench(io.TextIOWrapper(raw, encoding="ascii", errors="strict"))
    with bench.start(Kind.TOOL, "größe_日本_🎉"):
        pass

    assert "größe_日本_🎉" == parsed(raw.getvalue().decode("ascii"))[0]["tool"]


@pytest.mark.parametrize("as_path", [str, Path])
def test_a_file_is_appended_to(tmp_path: Path, as_path: Callable[[Path], str | Path]) -> None:
    """What was in the file stays, and each line is there as soon as it is written."""
    path = tmp_path / "lines.json"
    path.write_text('{"before": true}\n')
    bench = Bench(as_path(path))
    run_workflow(bench)

    assert {"before": True} == parsed(path.read_text())[0]
    assert 6 == len(parsed(path.read_text()))
    bench.sink.close()


@pytest.mark.parametrize("rotate", [lambda path: path.rename(f"{path}.1"), lambda path: path.unlink()])
def test_a_file_that_was_moved_away_is_opened_anew(tmp_path: Path, rotate: Callable[[Path], object]) -> None:
    """After a rotation the lines go to the new file within a second."""
    path = tmp_path / "lines.json"
    bench = Bench(path)
    bench.sink.record_event("before", "audit", "INFO", "m")
    rotate(path)
    bench.time.passed_ns += 1_000_000_000
    bench.sink.record_event("after", "audit", "INFO", "m")

    assert ["after"] == [line["event_name"] for line in parsed(path.read_text())]
    bench.sink.close()


def test_a_line_after_the_close_opens_the_file_again(tmp_path: Path) -> None:
    """A stream that ends after the instrumentation is not lost."""
    path = tmp_path / "lines.json"
    bench = Bench(path)
    bench.sink.close()
    bench.sink.close()
    bench.sink.record_event("late", "audit", "INFO", "m")

    assert ["late"] == [line["event_name"] for line in parsed(path.read_text())]
    bench.sink.close()


def test_a_closed_file_leaves_no_descriptor_open(tmp_path: Path) -> None:
    """Opening and closing sinks does not use up descriptors."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        bench = Bench(tmp_path / "lines.json")
        bench.sink.record_event("e", "audit", "INFO", "m")
        bench.sink.close()

    assert before == len(list(Path("/proc/self/fd").iterdir()))


class Kept(logging.Handler):
    """A handler that keeps its records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.records.append(record)


@pytest.fixture
def logger() -> logging.Logger:
    """A stdlib logger of its own."""
    made = logging.Logger("app", logging.INFO)  # noqa: LOG001 - no other test may see it
    made.addHandler(Kept())
    return made


def records_of(logger: logging.Logger) -> list[logging.LogRecord]:
    """Return what the logger's handler kept."""
    (kept,) = logger.handlers
    assert isinstance(kept, Kept)
    return kept.records


@pytest.mark.parametrize(("profile", "agent"), [("flat", "agent"), ("ecs", "gen_ai.agent.name")])
def test_a_stdlib_logger_gets_line_and_fields(logger: logging.Logger, profile: str, agent: str) -> None:
    """The message is the line; the fields are attributes, for handlers that send those on."""
    bench = Bench(logger, profile=profile)
    bench.start(Kind.AGENT, "100 %s").finish(ValueError("wrong"))
    records = records_of(logger)

    assert ["INFO", "ERROR", "ERROR"] == [record.levelname for record in records]
    for record in records[:2]:
        (line,) = parsed(record.getMessage())
        assert "100 %s" == line[agent] == getattr(record, agent)
        del line["message"]
        assert line.items() <= vars(record).items()


def test_a_stdlib_logger_keeps_its_own_level(logger: logging.Logger) -> None:
    """The logger's level decides, as for its other messages."""
    logger.setLevel(logging.ERROR)
    bench = Bench(logger)
    run_workflow(bench)

    assert [] == records_of(logger)


def _closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


def _broken_pipe() -> io.TextIOWrapper:
    reading, writing = os.pipe()
    os.close(reading)
    return io.TextIOWrapper(io.FileIO(writing, "w"), write_through=True)


@pytest.mark.parametrize("make", [_closed, _broken_pipe])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_broken_stream_does_not_reach_the_caller(make: Callable[[], Any], swallowing: None) -> None:
    """Lines that cannot be written are counted, and the application goes on."""
    bench = Bench(make())
    run_workflow(bench)
    bench.sink.record_event("e", "audit", "INFO", "m")

    assert {"log": 6} == _guard.swallowed()


@pytest.mark.parametrize(
    ("said", "target", "arguments"),
    [
        ("'stderr', 'stdout', 'off'", 42, {}),
        ("existing directory", "/nowhere/at/all/lines.json", {}),
        ("flat, ecs", "off", {"profile": "xml"}),
        ("INFO", "off", {"level": "LOUD"}),
    ],
)
def test_wrong_arguments_say_what_would_be_right(said: str, target: Any, arguments: dict[str, Any]) -> None:
    """Each wrong argument is named with the values that are right."""
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        LogSink(target, **arguments)


@pytest.mark.parametrize("kind", ["file", "stream", "StringIO"])
def test_lines_of_many_threads_do_not_mix(tmp_path: Path, kind: str) -> None:
    """Two threads write ten thousand lines, and each is whole."""
    path = tmp_path / "lines.json"
    stream = io.StringIO()
    with path.open("w") as opened:
        bench = Bench({"file": path, "stream": opened, "StringIO": stream}[kind])

        def write(name: str) -> None:
            for _ in range(5_000):
                Operation(bench.recorder, Kind.TOOL, name * 50).finish()

        threads = [threading.Thread(target=write, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        bench.sink.close()
    lines = parsed(stream.getvalue() or path.read_text())

    assert {"a" * 50: 5_000, "b" * 50: 5_000} == {
        name: sum(line["tool"] == name for line in lines) for name in {line["tool"] for line in lines}
    }


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_writes_while_its_parent_does(tmp_path: Path) -> None:
    """A process forked while another thread was writing does not hang, and shares the file."""
    path = tmp_path / "lines.json"
    bench = Bench(path)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            bench.sink.record_event("parent", "audit", "INFO", "m")

    thread = threading.Thread(target=write)
    thread.start()
    for _ in range(10):
        child = os.fork()
        if child == 0:
            bench.sink.record_event("child", "audit", "INFO", "m")
            os._exit(0)
        assert (child, 0) == os.waitpid(child, 0)
    stop.set()
    thread.join()
    bench.sink.close()

    assert 10 == sum(line["event_name"] == "child" for line in parsed(path.read_text()))


# --- the application's own logging -------------------------------------------------------------------


def test_the_applications_structlog_is_left_alone(bench: Bench) -> None:
    """A configuration that would break any logger neither touches our lines nor is touched by them."""

    def broken(*_: object) -> Any:
        raise AssertionError("the application's processor was asked")

    structlog.configure(processors=[broken], wrapper_class=structlog.BoundLogger, cache_logger_on_first_use=False)
    before = structlog.get_config().copy()
    try:
        run_workflow(bench)
        run_workflow(Bench(profile="ecs"))
        after = structlog.get_config().copy()
    finally:
        structlog.reset_defaults()

    assert before == after
    assert 5 == len(bench.lines)


def test_a_sink_does_not_configure_structlog() -> None:
    """Making a sink and writing through it leaves structlog as if nobody had configured it."""
    structlog.reset_defaults()
    run_workflow(Bench())

    assert not structlog.is_configured()


def test_the_processor_adds_what_is_known(bench: Bench) -> None:
    """A line of the application inside a tool gets our ids and names."""
    bench.sink.service_name = "billing"
    with bench.start(Kind.WORKFLOW, "triage", request_id="req-1"), bench.start(Kind.AGENT, "PlannerAgent"):
        tool = bench.start(Kind.TOOL, "create_task")
        with tool:
            added = add_taskpilot_fields(None, "info", {"event": "hello"})

    context = tool.span.get_span_context()
    assert {
        "event": "hello",
        "request_id": "req-1",
        "trace_id": f"{context.trace_id:032x}",
        "span_id": f"{context.span_id:016x}",
        "workflow": "triage",
        "agent": "PlannerAgent",
        "tool": "create_task",
        "service_name": "billing",
    } == added


def test_the_processor_works_in_a_structlog_configuration(bench: Bench) -> None:
    """An application puts it among its processors."""
    out = io.StringIO()
    log = structlog.wrap_logger(
        structlog.WriteLogger(out), processors=[add_taskpilot_fields, structlog.processors.JSONRenderer()]
    )
    with bench.start(Kind.WORKFLOW, "triage", request_id="req-1"):
        log.info("hello")

    (line,) = parsed(out.getvalue())
    assert ("hello", "req-1", "triage") == (line["event"], line["request_id"], line["workflow"])


def test_the_processor_overrides_nothing(bench: Bench) -> None:
    """What the application set itself stays, None included."""
    with bench.start(Kind.WORKFLOW, "triage", request_id="req-1"):
        added = add_taskpilot_fields(None, "info", {"request_id": "mine", "workflow": None})

    assert ("mine", None) == (added["request_id"], added["workflow"])


def test_the_processor_adds_nothing_outside_of_an_operation() -> None:
    """A line of the application at startup stays as it is."""
    assert {"event": "hello"} == add_taskpilot_fields(None, "info", {"event": "hello"})


def test_an_agent_inside_a_tool_is_out_of_that_tool(bench: Bench) -> None:
    """The tool of a line is the one that its agent called, not the one that called the agent."""
    with bench.start(Kind.TOOL, "delegate"):
        outside = add_taskpilot_fields(None, "info", {})
        with bench.start(Kind.AGENT, "PlannerAgent"):
            inside = add_taskpilot_fields(None, "info", {})

    assert "delegate" == outside["tool"]
    assert "tool" not in inside


class ReadOnly(dict[str, Any]):
    """A dictionary that cannot be added to."""

    def setdefault(self, *_: object) -> Any:
        """Refuse."""
        raise TypeError("read only")


def test_the_processor_never_raises(bench: Bench, swallowing: None) -> None:
    """Whatever goes wrong, the application's line goes on."""
    line = ReadOnly(event="hello")
    with bench.start(Kind.WORKFLOW):
        assert line is add_taskpilot_fields(None, "info", line)
    assert {"log_fields": 1} == _guard.swallowed()


def test_the_filter_adds_fields_to_stdlib_records(bench: Bench, logger: logging.Logger) -> None:
    """A format string may name our fields, inside an operation and outside; what is set stays."""
    (handler,) = logger.handlers
    handler.addFilter(TaskpilotFields())
    handler.setFormatter(logging.Formatter("%(request_id)s|%(workflow)s|%(agent)s|%(message)s"))
    with bench.start(Kind.WORKFLOW, "triage", request_id="req-1"):
        logger.info("inside")
        logger.info("set", extra={"request_id": "mine"})
    logger.info("outside")

    assert ["req-1|triage||inside", "mine|triage||set", "|||outside"] == [
        handler.format(record) for record in records_of(logger)
    ]
