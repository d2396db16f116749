"""Test what an instrumented application records: spans, log lines and metrics in memory.

.. code-block:: python

    with capture() as captured:
        MyAgent().run("hello")
    assert captured.names() == ["MyAgent.execute", "workflow.run"]
"""

import io
import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import Sampler
from prometheus_client import CollectorRegistry, generate_latest

from taskpilot_instrument import _guard, context
from taskpilot_instrument._collector import finish_orphans
from taskpilot_instrument.golden import GoldenSignals
from taskpilot_instrument.runtime import Instrumentation
from taskpilot_instrument.semconv import RESOURCE_SERVICE_NAME
from taskpilot_instrument.settings import Settings
from taskpilot_instrument.sinks.metrics import MetricsBackend
from taskpilot_instrument.typing import Clock


class CountingIds(IdGenerator):
    """Make trace and span ids 1, 2, 3, …, so that a whole trace can be one snapshot."""

    def __init__(self) -> None:
        self._traces = itertools.count(1)
        self._spans = itertools.count(1)

    def generate_trace_id(self) -> int:
        """Return the next trace id."""
        return next(self._traces)

    def generate_span_id(self) -> int:
        """Return the next span id."""
        return next(self._spans)


class FakeClock:
    """A clock that moves only when told.

    :param start_s: seconds since 1970 at which it starts.
    """

    def __init__(self, start_s: float = 1_700_000_000.0) -> None:
        self._start_ns = int(start_s * 1e9)
        self._passed_ns = 0

    def advance(self, seconds: float) -> None:
        """Let time pass.

        :param seconds: how much.
        """
        self._passed_ns += round(seconds * 1e9)

    @property
    def clock(self) -> Clock:
        """What ``instrument(clock=…)`` takes."""
        return Clock(lambda: self._passed_ns, lambda: self._start_ns + self._passed_ns)


class Captured:
    """What was recorded so far."""

    def __init__(
        self, handle: Instrumentation, exporter: InMemorySpanExporter, log: io.StringIO, clock: FakeClock | None
    ) -> None:
        self.handle = handle
        self.clock = clock
        self._exporter = exporter
        self._log = log

    @property
    def spans(self) -> list[ReadableSpan]:
        """Finished spans in the order in which they ended."""
        finish_orphans()
        return list(self._exporter.get_finished_spans())

    @property
    def logs(self) -> list[dict[str, Any]]:
        """Log lines, parsed."""
        finish_orphans()
        return [json.loads(line) for line in self._log.getvalue().splitlines()]

    @property
    def metrics(self) -> MetricsBackend:
        """Metrics by their dotted names."""
        finish_orphans()
        return self.handle.metrics

    @property
    def prometheus_text(self) -> str:
        """What ``/metrics`` would serve."""
        finish_orphans()
        return generate_latest(self.handle.metrics.scraped).decode()

    def golden_signals(self, **filters: Any) -> GoldenSignals:
        """Compute the golden signals of what was recorded."""
        return self.handle.golden_signals(**filters)

    def names(self) -> list[str]:
        """Return the names of the finished spans in the order in which they ended."""
        return [span.name for span in self.spans]

    def span(self, name: str) -> ReadableSpan:
        """Return the one finished span of that name.

        :raises AssertionError: where there is none, or more than one.
        """
        found = [span for span in self.spans if span.name == name]
        if len(found) != 1:
            raise AssertionError(f"{len(found)} spans are called {name!r}; all: {self.names()}")
        return found[0]

    def tags(self, name: str) -> dict[str, Any]:
        """Return the tags of the one finished span of that name."""
        return dict(self.span(name).attributes or {})

    def tree(self) -> list[str]:
        """Return the finished spans as indented lines, children in the order in which they started."""
        spans = self.spans
        ids = {span.context.span_id for span in spans if span.context is not None}

        def below(parent: int | None, depth: int) -> Iterator[str]:
            for span in sorted(spans, key=lambda each: each.start_time or 0):
                above = span.parent.span_id if span.parent is not None and span.parent.span_id in ids else None
                if above == parent and span.context is not None:
                    yield "  " * depth + span.name
                    yield from below(span.context.span_id, depth + 1)

        return list(below(None, 0))

    def clear(self) -> Self:
        """Forget spans and log lines; metrics go on counting."""
        self._exporter.clear()
        self._log.truncate(0)
        self._log.seek(0)
        return self


@contextmanager
def capture(
    *,
    fake_clock: bool = False,
    counting_ids: bool = True,
    reraise: bool = True,
    sampler: Sampler | None = None,
    **settings: Any,
) -> Iterator[Captured]:
    """Record everything in memory inside the block, beside whatever instrumentation is in force.

    :param fake_clock: time stands still until ``captured.clock.advance(seconds)``.
    :param counting_ids: trace, span and request ids are 1, 2, 3, ….
    :param reraise: raise errors of the instrumentation itself instead of swallowing them.
    :param sampler: of the spans; all are kept by default.
    :param settings: any setting of :class:`Settings`.
    """
    exporter, log, clock = InMemorySpanExporter(), io.StringIO(), FakeClock() if fake_clock else None
    provider = TracerProvider(
        resource=Resource({RESOURCE_SERVICE_NAME: str(settings.get("service_name", "test"))}),
        id_generator=CountingIds() if counting_ids else None,
        sampler=sampler,
        shutdown_on_exit=False,
    )
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    given: dict[str, Any] = {
        "tracer_provider": provider, "meter_provider": NoOpMeterProvider(), "logs": log,
        "registry": CollectorRegistry(), **settings,
    }  # fmt: skip
    if clock is not None:
        given["clock"] = clock.clock
    numbers = itertools.count(1)
    factory, policy = context.request_id_factory, _guard.policy.reraise
    handle = Instrumentation(Settings.resolve(given, {}))
    try:
        handle.start()
        _guard.policy.reraise = reraise
        if counting_ids:
            context.request_id_factory = lambda: f"req-{next(numbers)}"
        yield Captured(handle, exporter, log, clock)
    finally:
        handle.uninstrument()
        context.request_id_factory = factory
        _guard.policy.reraise = policy
        provider.shutdown()
