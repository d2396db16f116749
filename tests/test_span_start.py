"""Whoever looks at the tags that a span begins with sees them, and whoever does not is spared nothing of them."""

from collections.abc import Callable
from typing import Any, Final

import pytest
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_ON,
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from prometheus_client import CollectorRegistry

import taskpilot_instrument as tp

Tags = dict[str, Any]
Watched = tuple[TracerProvider, list[Tags]]

_BEGINNING: Final[list[Tags]] = [
    {"gen_ai.operation.name": "invoke_workflow", "workflow": "w"},
    {"agent": "Planner", "gen_ai.operation.name": "invoke_agent"},
    {"agent": "Planner", "gen_ai.operation.name": "execute_tool", "tool": "create_task"},
]


class LookingSampler(Sampler):
    """Keep every span, and the tags that it was asked about."""

    def __init__(self) -> None:
        self.seen: list[Tags] = []

    def should_sample(self, *_: Any, attributes: Any = None, **__: Any) -> SamplingResult:
        """Note the tags; the SDK gives them by place."""
        self.seen.append(dict(attributes or _[4]))
        return SamplingResult(Decision.RECORD_AND_SAMPLE, self.seen[-1])

    def get_description(self) -> str:
        """Name it."""
        return "Looking"


class LookingProcessor(SpanProcessor):
    """Keep the tags with which spans begin."""

    def __init__(self) -> None:
        self.seen: list[Tags] = []

    def on_start(self, span: Span, parent_context: object = None) -> None:
        """Note the tags."""
        self.seen.append(dict(span.attributes or {}))


class EndProcessor(SpanProcessor):
    """Look at spans when they end, as all of the SDK's own processors do."""

    def on_end(self, span: ReadableSpan) -> None:
        """Do nothing."""


def provider_with(sampler: Sampler, *processors: SpanProcessor) -> TracerProvider:
    """Return an application's provider."""
    provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    for processor in processors:
        provider.add_span_processor(processor)
    return provider


def looking_sampler() -> Watched:
    """Look as the sampler."""
    sampler = LookingSampler()
    return provider_with(sampler, EndProcessor()), sampler.seen


def sampler_of_roots() -> Watched:
    """Look as the sampler that another one asks about roots; it decides about spans with a parent without asking."""
    sampler = LookingSampler()
    return provider_with(ParentBased(sampler, local_parent_sampled=sampler), EndProcessor()), sampler.seen


def looking_processor() -> Watched:
    """Look as a processor among others."""
    processor = LookingProcessor()
    return provider_with(ALWAYS_ON, EndProcessor(), processor), processor.seen


def run_tool() -> None:
    """Make a run with an agent and a tool."""

    @tp.observed_tool
    def create_task() -> None:
        pass

    @tp.observed_agent(name="Planner")
    def agent() -> None:
        create_task()

    with tp.workflow("w"):
        agent()


def instrumented(provider: TracerProvider) -> tp.Instrumentation:
    """Observe with this provider."""
    return tp.instrument(tracer_provider=provider, registry=CollectorRegistry(), logs="off")


@pytest.mark.parametrize("watch", [looking_sampler, sampler_of_roots, looking_processor])
def test_whoever_looks_sees_the_first_tags(watch: Callable[[], Watched]) -> None:
    """Samplers and processors have the tags that are known before an operation begins."""
    provider, seen = watch()
    with instrumented(provider):
        run_tool()
    assert seen == _BEGINNING


def test_a_processor_that_comes_later_sees_them_too() -> None:
    """Where nobody looked when the first spans began, whoever is added later does."""
    provider, late = provider_with(TraceIdRatioBased(1), EndProcessor()), LookingProcessor()
    with instrumented(provider):
        run_tool()
        provider.add_span_processor(late)
        run_tool()
    assert late.seen == _BEGINNING


@pytest.mark.parametrize("others", [(), (LookingProcessor(),)], ids=["nobody looks", "somebody looks"])
def test_spans_have_them_either_way(others: tuple[SpanProcessor, ...]) -> None:
    """What is exported has the first tags, whether or not anybody looked at the beginning."""
    exporter = InMemorySpanExporter()
    with instrumented(provider_with(ParentBased(ALWAYS_ON), SimpleSpanProcessor(exporter), *others)):
        run_tool()
    spans = exporter.get_finished_spans()[::-1]
    assert [span.name for span in spans] == ["workflow.run", "Planner.execute", "create_task"]
    for span, first in zip(spans, _BEGINNING, strict=True):
        assert first.items() <= dict(span.attributes or {}).items()
