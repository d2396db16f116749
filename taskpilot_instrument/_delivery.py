"""Where spans go, and whether they got there."""

import threading
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from opentelemetry.trace import NoOpTracerProvider, Tracer

from taskpilot_instrument import _guard
from taskpilot_instrument._version import __version__
from taskpilot_instrument.redaction import redact
from taskpilot_instrument.semconv import SCOPE_NAME
from taskpilot_instrument.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider


class Provider:
    """The tracer provider in use, and whether it is ours to flush and shut down."""

    def __init__(self, settings: Settings) -> None:
        self._counts: Any = None
        self._is_ours = False
        if settings.sdk_disabled or not settings.enabled:
            self.provider: TracerProvider = NoOpTracerProvider()
            self.destination = "nowhere (switched off)"
            return
        # The SDK is imported only here: half of what `import taskpilot_instrument` would cost otherwise.
        from taskpilot_instrument._provider import ExportCounts, application_provider, build_provider

        found = settings.tracer_provider or application_provider()
        self._counts = ExportCounts()
        if found is not None:
            self.provider, self.destination = found, "the application's tracer provider"
            return
        self._is_ours = True
        self.provider = build_provider(settings, self._counts)
        self.destination = redact(settings.otlp_endpoint or "nowhere (set OTEL_EXPORTER_OTLP_ENDPOINT)")

    def tracer(self) -> Tracer:
        """Return the tracer that our spans are made by."""
        with warnings.catch_warnings():  # the SDK puts a filter of its own before the application's
            return self.provider.get_tracer(SCOPE_NAME, __version__)

    def flush(self, timeout_s: float) -> bool:
        """Send what is waiting; tell whether all of it was sent in time."""
        flush = getattr(self.provider, "force_flush", None)
        if flush is None:
            return True
        ended, dropped = self._counts.ended, self._counts.dropped
        if not flush_in_time(flush, timeout_s):
            return False
        self._counts.settle(ended)
        return bool(self._counts.dropped == dropped)

    def close(self) -> None:
        """Shut the provider down, where it is ours."""
        if self._is_ours:
            self.provider.shutdown()  # type: ignore[attr-defined] # ours is the SDK's

    def delivery(self) -> tuple[int, int, int]:
        """Return how many spans were exported, dropped and are pending."""
        told: tuple[int, int, int] = (0, 0, 0) if self._counts is None else self._counts.told()
        return told


def flush_in_time(flush: Callable[[float], object], timeout_s: float) -> bool:
    """Call a provider's ``force_flush``; tell whether it did its work in time."""
    finished: list[bool] = []

    def work() -> None:
        try:
            finished.append(bool(flush(int(timeout_s * 1000))))
        except Exception as error:
            _guard.swallow("flush", error)

    # In a thread, because the SDK's processors wait for their exporter however long that takes.
    worker = threading.Thread(target=work, name="taskpilot-flush", daemon=True)
    worker.start()
    worker.join(timeout_s)
    return finished == [True]
