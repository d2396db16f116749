"""What log tests share: a sink under test, what feeds it, and its lines, parsed."""

import io
import json
import logging
from decimal import Decimal
from typing import Any, Final

from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import INVALID_SPAN, Span

from taskpilot_instrument._operation import Operation
from taskpilot_instrument._recorder import Recorder
from taskpilot_instrument._records import LLMCall
from taskpilot_instrument._token_watch import TokenWatch
from taskpilot_instrument.pricing import Price
from taskpilot_instrument.semconv import (
    Kind,
)
from taskpilot_instrument.sinks.logs import LogSink
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


def run_workflow(bench: Bench) -> None:
    """Run a workflow of one agent, with one LLM call and one tool call."""
    with bench.start(Kind.WORKFLOW, "triage", request_id="req-abc-123"), bench.start(Kind.AGENT, "PlannerAgent"):
        with bench.call(usage=TokenUsage(150, 50)):
            bench.time.passed_ns += 1_500_000
        with bench.start(Kind.TOOL, "create_task"):
            pass


class Kept(logging.Handler):
    """A handler that keeps its records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.records.append(record)


def records_of(logger: logging.Logger) -> list[logging.LogRecord]:
    """Return what the logger's handler kept."""
    (kept,) = logger.handlers
    assert isinstance(kept, Kept)
    return kept.records
