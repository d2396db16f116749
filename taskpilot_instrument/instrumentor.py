"""What ``opentelemetry-instrument python app.py`` loads: observation without a line of code."""

from typing import Any

from taskpilot_instrument import _instrument


class TaskpilotInstrumentor:
    """Switch observation on and off as OpenTelemetry's auto-instrumentation asks for it.

    Settings come from the environment. Name ``taskpilot`` in ``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS`` to leave it off.
    """

    def instrument(self, **given: Any) -> None:
        """Call :func:`taskpilot_instrument.instrument`.

        :param given: ``tracer_provider`` and ``meter_provider`` count; what else the loader says does not concern us.
        :raises ConfigurationError: for an environment variable that is not valid.
        """
        _instrument.instrument(tracer_provider=given.get("tracer_provider"), meter_provider=given.get("meter_provider"))

    def uninstrument(self, **_given: Any) -> None:
        """Call :func:`taskpilot_instrument.uninstrument`."""
        _instrument.uninstrument()
