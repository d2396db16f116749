"""What the settings say of price table, registry, meter, content and ``/metrics``, as objects."""

import functools
from typing import TYPE_CHECKING, Any

from taskpilot_instrument.errors import ConfigurationError
from taskpilot_instrument.pricing import BOOK, MODEL_PRICING, PriceBook
from taskpilot_instrument.redaction import capture_text, redactor
from taskpilot_instrument.settings import Settings
from taskpilot_instrument.typing import Capture

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider


def meter_provider(settings: Settings) -> "MeterProvider | None":
    """Return the meter provider in use; None where there is none that anybody reads."""
    if settings.sdk_disabled or not settings.enabled:
        return None
    from opentelemetry.metrics import get_meter_provider

    from taskpilot_instrument.sinks.otel_metrics import is_real

    provider = settings.meter_provider or get_meter_provider()
    return provider if is_real(provider) else None


def registry(settings: Settings) -> Any:
    if settings.registry is not None or not settings.enabled:
        return settings.registry if settings.enabled else None
    from prometheus_client import REGISTRY

    return REGISTRY


def price_book(settings: Settings) -> PriceBook:
    if settings.pricing is None and not settings.deployments:
        return BOOK
    prices = None if settings.pricing is None else {**MODEL_PRICING, **settings.pricing}
    return PriceBook(prices, deployments=settings.deployments)


def capture(settings: Settings) -> Capture | None:
    if not (settings.content_on_spans or settings.content_on_events):
        return None
    return functools.partial(capture_text, limit=settings.content_limit, redact=redactor(settings.redact))


def serve_metrics(port: int, address: str, registry: Any) -> Any:
    from prometheus_client import start_http_server

    try:
        server, _thread = start_http_server(port, address, registry)
    except OSError as error:
        raise ConfigurationError(
            f"/metrics cannot be served on {address}:{port} ({error}); choose another metrics_port"
        ) from error
    return server
