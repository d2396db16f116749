"""The tracer provider: the application's, or one of our own that exports over OTLP where asked to."""

import functools
import logging
import os
from collections.abc import Callable, Sequence
from typing import Final

from opentelemetry import trace
from opentelemetry.sdk.environment_variables import (
    OTEL_EXPORTER_OTLP_COMPRESSION,
    OTEL_EXPORTER_OTLP_TRACES_COMPRESSION,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from taskpilot_instrument import _forks
from taskpilot_instrument.errors import ConfigurationError
from taskpilot_instrument.semconv import RESOURCE_SERVICE_NAME
from taskpilot_instrument.settings import Settings

_log = logging.getLogger("taskpilot_instrument")
#: Read by the SDK's distro, which is not there.
_EXPORTER: Final = "OTEL_TRACES_EXPORTER"


class ExportCounts:
    """How many spans ended, and how many of them were delivered, refused, or lost on the way to the exporter."""

    def __init__(self) -> None:
        self._lock = _forks.lock()
        self.after_fork()
        _forks.tell(self)

    def after_fork(self) -> None:
        """Begin at zero."""
        self.ended = 0
        self.exported = 0
        self._failed = 0
        self._lost = 0

    @property
    def dropped(self) -> int:
        """Spans that nobody will receive, as far as is known."""
        return self._failed + self._lost

    def told(self) -> tuple[int, int, int]:
        """Return how many spans were exported, dropped and are pending, all of one moment.

        Read one after the other, a batch that is delivered in between would be missing from every one of them.
        """
        with self._lock:
            return self.exported, self.dropped, max(0, self.ended - self.exported - self.dropped)

    def add(self, *, ended: int = 0, exported: int = 0, failed: int = 0) -> None:
        """Count spans."""
        with self._lock:
            self.ended += ended
            self.exported += exported
            self._failed += failed

    def settle(self, ended: int) -> None:
        """Count what a full queue dropped: of ``ended`` spans all but those never reached the exporter.

        :param ended: spans that had ended before a flush that is now complete.
        """
        with self._lock:
            self._lost = max(self._lost, ended - self.exported - self._failed)


class _EndCounter(SpanProcessor):
    def __init__(self, counts: ExportCounts) -> None:
        self._counts = counts

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is not None and span.context.trace_flags.sampled:  # the others are not meant for export
            self._counts.add(ended=1)


class _CountingExporter(SpanExporter):
    """Count what an exporter delivers; in a forked process it is another one, made when it is needed.

    Over the parent's connections the child would speak in between.
    """

    def __init__(self, make: Callable[[], SpanExporter], counts: ExportCounts) -> None:
        self._make = make
        self._inner: SpanExporter | None = make()
        self._counts = counts
        #: The parent's; not freed, because to close it is not ours to do.
        self._left_behind: list[SpanExporter | None] = []
        _forks.tell(self)

    def after_fork(self) -> None:
        """Leave the parent's exporter alone."""
        self._left_behind.append(self._inner)
        self._inner = None

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            if self._inner is None:
                self._inner = self._make()
            result = self._inner.export(spans)
        except BaseException:
            self._counts.add(failed=len(spans))
            raise
        if result is SpanExportResult.SUCCESS:
            self._counts.add(exported=len(spans))
        else:
            self._counts.add(failed=len(spans))
        return result

    def shutdown(self) -> None:
        if self._inner is not None:
            self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._inner is None or self._inner.force_flush(timeout_millis)


def application_provider() -> "trace.TracerProvider | None":
    """Return the global provider where the application has set a real one."""
    provider = trace.get_tracer_provider()
    return None if isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider) else provider


def build_provider(settings: Settings, counts: ExportCounts) -> TracerProvider:
    """Build a provider; the SDK itself reads ``OTEL_TRACES_SAMPLER`` and ``OTEL_BSP_*``.

    :raises ConfigurationError: where no exporter can be made.
    """
    attributes = {**settings.resource_attributes, RESOURCE_SERVICE_NAME: settings.service_name}
    provider = TracerProvider(resource=Resource.create(attributes))
    _warn_of_exporters(settings)
    if settings.otlp_endpoint is not None:
        exporter = _CountingExporter(functools.partial(make_exporter, settings), counts)
        provider.add_span_processor(_EndCounter(counts))
        provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def _warn_of_exporters(settings: Settings) -> None:
    """Warn where the environment asks for spans that a provider of ours sends nowhere."""
    asked = [word for word in map(str.strip, os.environ.get(_EXPORTER, "").split(",")) if word]
    others = [word for word in asked if word.casefold() not in {"otlp", "none"}]
    if others:
        _log.warning(
            "taskpilot_instrument: spans are sent over OTLP only, not as %s=%s asks; give a tracer_provider= that "
            "does, or run under opentelemetry-instrument",
            _EXPORTER, ",".join(others),
        )  # fmt: skip
    elif asked and settings.otlp_endpoint is None and "none" not in map(str.casefold, asked):
        _log.warning(
            "taskpilot_instrument: %s=%s sends nothing until OTEL_EXPORTER_OTLP_ENDPOINT says where to, such as "
            "http://localhost:4318",
            _EXPORTER, ",".join(asked),
        )  # fmt: skip


def make_exporter(settings: Settings) -> SpanExporter:
    """Make the exporter for the endpoint that is set; it reads further ``OTEL_EXPORTER_OTLP_*`` variables itself.

    :raises ConfigurationError: where it cannot make sense of them.
    """
    # Imported here: each costs tens of milliseconds, and most processes need one of them or none.
    try:
        if settings.otlp_protocol == "grpc":
            return _grpc_exporter(settings)
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter(endpoint=settings.otlp_endpoint)
    except Exception as error:
        raise ConfigurationError(
            f"no OTLP exporter can be made ({type(error).__name__}: {error}); see the OTEL_EXPORTER_OTLP_* variables"
        ) from error


def _grpc_exporter(settings: Settings) -> SpanExporter:
    from grpc import Compression  # type: ignore[import-untyped]  # ships no types
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    given = os.environ.get(OTEL_EXPORTER_OTLP_TRACES_COMPRESSION) or os.environ.get(OTEL_EXPORTER_OTLP_COMPRESSION)
    # The exporter refuses `none`, which is one of the values that the specification lists.
    none = Compression.NoCompression if given is not None and given.strip().lower() == "none" else None
    return OTLPSpanExporter(endpoint=settings.otlp_endpoint, compression=none)
