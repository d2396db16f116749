"""The log sink's structlog chain."""

from collections.abc import Callable

import structlog

from taskpilot_instrument.sinks import _log_formats as formats
from taskpilot_instrument.sinks._log_targets import LoggerTarget


class _Lines(structlog.BoundLoggerBase):
    """The logger that the chain hangs on: it has one method, and its event is the pieces of a line."""

    def write(self, pieces: list[str]) -> None:
        self._proxy_to_logger("emit", pieces)  # type: ignore[arg-type]  # the renderer joins them


def chain(target: object) -> Callable[[list[str]], None]:
    """Build the structlog logger, every argument given, so that the application's configuration has no say in it.

    :param target: what has ``emit()``.
    """
    lines: _Lines = structlog.wrap_logger(
        target,
        processors=[formats.to_record if isinstance(target, LoggerTarget) else formats.to_line],
        wrapper_class=_Lines,
        context_class=dict,
        cache_logger_on_first_use=True,
        logger_factory_args=(),
    ).bind()
    return lines.write
