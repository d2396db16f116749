"""Whether anybody looks at the attributes that a span begins with.

The SDK checks and copies each of them, in two passes, which takes longer than anything else that we do for an LLM
call. Where neither the sampler nor a processor looks at them, they may as well be set a moment later, as they are.
"""

from collections.abc import Callable
from typing import Any

from opentelemetry.trace import Tracer


def watched_start(tracer: Tracer) -> Callable[[], bool]:
    """Return what tells whether somebody may look at the attributes with which a tracer's next span begins.

    Processors may be added at any time. Whoever is not known to look away is taken to look.
    """
    if not type(tracer).__module__.startswith("opentelemetry.sdk."):
        return lambda: True
    # Imported here: the SDK takes half of the time that everything of ours takes, and may not be in use.
    from opentelemetry.sdk.trace import SpanProcessor, SynchronousMultiSpanProcessor
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor

    idle = {SpanProcessor.on_start, BatchSpanProcessor.on_start, SimpleSpanProcessor.on_start}
    all_of_them: Any = getattr(tracer, "span_processor", None)
    if type(all_of_them) is not SynchronousMultiSpanProcessor or not _looks_away(getattr(tracer, "sampler", None)):
        return lambda: True
    known: Any = None
    is_watched = True

    def tell() -> bool:
        nonlocal known, is_watched
        processors = getattr(all_of_them, "_span_processors", None)
        if processors is not known:
            is_watched = processors is None or any(type(each).on_start not in idle for each in processors)
            known = processors
        return is_watched

    return tell


def _looks_away(sampler: Any) -> bool:
    """Tell whether a sampler decides without the attributes."""
    from opentelemetry.sdk.trace.sampling import ParentBased, StaticSampler, TraceIdRatioBased

    decide = getattr(type(sampler), "should_sample", None)
    if decide is ParentBased.should_sample:
        return all(_looks_away(each) for each in vars(sampler).values())
    return decide in {StaticSampler.should_sample, TraceIdRatioBased.should_sample}
