"""The GenAI metrics of the OpenTelemetry conventions, for applications that have a MeterProvider.

Beside the histograms that dashboards know stand the instruments that replaced them in the conventions v0.1.0. A count
that the provider did not give is left out; the conventions would have a 0, which in a distribution is a wrong answer.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final

from opentelemetry.context import Context
from opentelemetry.metrics import Counter, Histogram, MeterProvider
from opentelemetry.trace import set_span_in_context

from taskpilot_instrument import semconv as names
from taskpilot_instrument._records import Event, Finished, LLMCall, was_sent
from taskpilot_instrument.sinks._families import Labels
from taskpilot_instrument.usage import TokenUsage

_TOKENS: Final = "{token}"
_EMPTY: Final = Context()
_USAGE: Final = {
    names.OTEL_USAGE_INPUT: "Input tokens, cached ones included.",
    names.OTEL_USAGE_OUTPUT: "Output tokens, reasoning ones included.",
    names.OTEL_USAGE_CACHE_READ: "Input tokens that came from the provider's cache.",
    names.OTEL_USAGE_CACHE_WRITE: "Input tokens that were written to the provider's cache.",
    names.OTEL_USAGE_REASONING: "Output tokens that went into reasoning.",
}


class OtelMetricsSink:
    """Record each finished LLM call on the instruments of a meter provider.

    :param provider: the application's; what the instruments keep is its affair.
    :param version: of this library, as the scope's version.
    :param label_cap: distinct models and servers that become attributes; further ones are called ``other``.
    :param overflow: told the attribute whenever a value is replaced.
    """

    where = "otel_metric"

    def __init__(
        self, provider: MeterProvider, version: str, *, label_cap: int, overflow: Callable[[str], None]
    ) -> None:
        meter = provider.get_meter(names.SCOPE_NAME, version)

        def histogram(name: str, unit: str, bounds: tuple[float, ...], description: str) -> Histogram:
            return meter.create_histogram(name, unit, description, explicit_bucket_boundaries_advisory=bounds)

        durations, tokens = names.OTEL_DURATION_BUCKETS, names.OTEL_TOKEN_BUCKETS
        self._labels = Labels(label_cap, overflow)
        self._duration = histogram(names.OTEL_OPERATION_DURATION, "s", durations, "Duration of GenAI operations.")
        self._first_chunk = histogram(
            names.OTEL_TIME_TO_FIRST_CHUNK, "s", durations, "Time from the request to the first chunk of a stream."
        )
        self._usage = histogram(names.OTEL_TOKEN_USAGE, _TOKENS, tokens, "Input and output tokens of each operation.")
        self._input = histogram(names.OTEL_OPERATION_INPUT, _TOKENS, tokens, "Input tokens of each operation.")
        self._output = histogram(names.OTEL_OPERATION_OUTPUT, _TOKENS, tokens, "Output tokens of each operation.")
        self._spent: dict[str, Counter] = {
            name: meter.create_counter(name, _TOKENS, description) for name, description in _USAGE.items()
        }

    def noted(self, event: Event, /) -> None:
        """Do nothing: the conventions have no metric for it."""

    def finished(self, record: Finished, /) -> None:
        """Measure one finished LLM call; other operations are none of a client's, and what was refused was none."""
        call = record.llm
        if call is None or not was_sent(record.outcome):
            return
        attributes = self._attributes(call)
        ended = attributes
        if record.error_type is not None:
            ended = {**attributes, names.ERROR_TYPE: self._labels.admit(names.ERROR_TYPE, record.error_type)}
        # A duration's exemplar is its own span, whichever is current by now. Tokens have none: it doubles their price.
        context = set_span_in_context(record.span, _EMPTY)
        self._duration.record(record.duration_ns / 1e9, ended, context)
        if record.time_to_first_chunk_ns is not None:
            self._first_chunk.record(record.time_to_first_chunk_ns / 1e9, ended, context)
        if record.usage is not None:
            self._distribute(record.usage, attributes, ended)
            self._spend(record.usage, attributes)

    def _attributes(self, call: LLMCall) -> dict[str, Any]:
        """Return the attributes that every metric of a call has; what is not known is left out."""
        attributes: dict[str, Any] = {
            names.GEN_AI_OPERATION_NAME: call.operation,
            names.GEN_AI_PROVIDER_NAME: call.provider,
        }
        for name, value in (
            (names.GEN_AI_REQUEST_MODEL, call.model),
            (names.GEN_AI_RESPONSE_MODEL, call.response_model),
            (names.SERVER_ADDRESS, call.server_address),
        ):
            if value is not None:
                attributes[name] = self._labels.admit(name, value)
        if call.server_port is not None and call.server_address is not None:
            attributes[names.SERVER_PORT] = call.server_port
        return attributes

    def _distribute(self, usage: TokenUsage, attributes: dict[str, Any], ended: dict[str, Any]) -> None:
        for count, kind, of_operation in (
            (usage.input_tokens, names.TokenKind.INPUT, self._input),
            (usage.output_tokens, names.TokenKind.OUTPUT, self._output),
        ):
            if count is not None:
                self._usage.record(count, {**attributes, names.OTEL_TOKEN_TYPE: kind.value}, _EMPTY)
                of_operation.record(count, ended, _EMPTY)

    def _spend(self, usage: TokenUsage, attributes: dict[str, Any]) -> None:
        for name, total, audio, image in (
            (names.OTEL_USAGE_INPUT, usage.input_tokens, usage.input_audio_tokens, usage.input_image_tokens),
            (names.OTEL_USAGE_OUTPUT, usage.output_tokens, usage.output_audio_tokens, usage.output_image_tokens),
            (names.OTEL_USAGE_CACHE_READ, usage.cached_tokens, usage.cached_audio_tokens, usage.cached_image_tokens),
            (names.OTEL_USAGE_CACHE_WRITE, usage.cache_write_tokens, 0, 0),
            (names.OTEL_USAGE_REASONING, usage.reasoning_tokens, 0, 0),
        ):
            for modality, count in _by_modality(total or 0, audio, image):
                self._spent[name].add(count, {**attributes, names.OTEL_TOKEN_MODALITY: modality}, _EMPTY)


def _by_modality(total: int, audio: int, image: int) -> Iterator[tuple[str, int]]:
    """Split a count; the rest is known to be text only where the provider named the other parts."""
    rest = max(0, total - audio - image)
    parts = ((names.MODALITY_TEXT if audio or image else names.MODALITY_UNKNOWN, rest),
             (names.MODALITY_AUDIO, audio), (names.MODALITY_IMAGE, image))  # fmt: skip
    return ((modality, count) for modality, count in parts if count)


def is_real(provider: MeterProvider) -> bool:
    """Tell whether somebody will read the measurements: the API's own providers, proxy and no-op, drop them."""
    return not type(provider).__module__.startswith("opentelemetry.metrics")
