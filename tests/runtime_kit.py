"""What tests of ``instrument()`` share: an application's provider, a tool, and what may be left behind."""

import threading
from typing import Any

import prometheus_client
from openai._base_client import AsyncAPIClient, SyncAPIClient
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

import taskpilot_instrument as tp

MESSAGES: Any = [{"role": "user", "content": "hello there"}]
ASK: dict[str, Any] = {"model": "gpt-4o-mini", "messages": MESSAGES}
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


class Memory:
    """An application's tracer provider that keeps its spans."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    @property
    def spans(self) -> list[ReadableSpan]:
        """Finished spans."""
        return list(self._exporter.get_finished_spans())

    @property
    def names(self) -> list[str]:
        """Names of the finished spans."""
        return [span.name for span in self.spans]

    @property
    def outcomes(self) -> list[Any]:
        """Outcomes of the finished spans."""
        return [(span.attributes or {})["outcome"] for span in self.spans]


@tp.observed_tool
def create_task(title: str) -> str:
    """Stand for any tool."""
    return f"created {title}"


def families(registry: CollectorRegistry = prometheus_client.REGISTRY) -> set[str]:
    """Return the names of everything on a registry."""
    return {metric.name for metric in registry.collect()}


def footprint() -> tuple[Any, ...]:
    """Return what an instrumentation in force would change."""
    methods = [
        vars(owner)[name] for owner in (SyncAPIClient, AsyncAPIClient) for name in ("request", "_process_response")
    ]
    threads = sorted(thread.name for thread in threading.enumerate() if "embedded-server" not in thread.name)
    return methods, families(), threads
