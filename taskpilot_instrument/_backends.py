"""What the settings say of price table, registry, meter, content and ``/metrics``, as objects."""

import errno
import functools
import logging
from typing import TYPE_CHECKING, Any

from taskpilot_instrument import _forks
from taskpilot_instrument.errors import ConfigurationError
from taskpilot_instrument.pricing import BOOK, MODEL_PRICING, PriceBook
from taskpilot_instrument.redaction import capture_text, redactor
from taskpilot_instrument.settings import Settings
from taskpilot_instrument.sinks.metrics import MetricsBackend
from taskpilot_instrument.typing import Capture

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider

_log = logging.getLogger("taskpilot_instrument")


def meter_provider(settings: Settings) -> "MeterProvider | None":
    """Return the meter provider in use; None where there is none that anybody reads."""
    if settings.sdk_disabled or not settings.enabled:
        return None
    from opentelemetry.metrics import get_meter_provider

    from taskpilot_instrument.sinks.otel_metrics import is_real

    provider = settings.meter_provider or get_meter_provider()
    return provider if is_real(provider) else None


def registry(settings: Settings) -> Any:
    """Return the registry that the families go to: the one that was given, else prometheus_client's own."""
    if settings.registry is not None or not settings.enabled:
        return settings.registry if settings.enabled else None
    from prometheus_client import REGISTRY

    return REGISTRY


def price_book(settings: Settings) -> PriceBook:
    """Return the book of prices: the shared one, unless the settings have prices or deployments of their own."""
    if settings.pricing is None and not settings.deployments:
        return BOOK
    prices = None if settings.pricing is None else {**MODEL_PRICING, **settings.pricing}
    return PriceBook(prices, deployments=settings.deployments)


def capture(settings: Settings) -> Capture | None:
    """Return what makes redacted, cut text of content; None where no content is captured."""
    if not (settings.content_on_spans or settings.content_on_events):
        return None
    return functools.partial(capture_text, limit=settings.content_limit, redact=redactor(settings.redact))


class MetricsServer:
    """Serve ``/metrics`` in a thread.

    :raises ConfigurationError: where the port is taken, and whoever has it does not tell of this process too.
    """

    def __init__(self, port: int, address: str, metrics: MetricsBackend) -> None:
        from prometheus_client import start_http_server

        self._server: Any = None
        try:
            self._server, _ = start_http_server(port, address, metrics.scraped)
        except OSError as error:
            if not metrics.is_shared or error.errno != errno.EADDRINUSE:
                raise ConfigurationError(
                    f"/metrics cannot be served on {address}:{port} ({error}); choose another metrics_port, or let the "
                    "workers of one machine share it: set PROMETHEUS_MULTIPROC_DIR"
                ) from error
            _log.info("taskpilot_instrument: another worker serves /metrics on %s:%d for all of them", address, port)
        _forks.tell(self)

    @property
    def port(self) -> int | None:
        """Where it listens; None where another process does."""
        return None if self._server is None else self._server.server_port

    def close(self) -> None:
        """Stop."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def after_fork(self) -> None:
        """Leave the port to the parent: here is no thread that would answer."""
        if self._server is not None:
            self._server.socket.close()
            self._server = None
