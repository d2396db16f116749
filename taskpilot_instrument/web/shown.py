"""Whose golden signals are shown: this process's, or all processes' by a Prometheus that is asked now and then."""

import time
from typing import Any, Final

from taskpilot_instrument import _forks
from taskpilot_instrument._prometheus import Prometheus
from taskpilot_instrument.errors import SourceError
from taskpilot_instrument.golden import GoldenSignals, of_sample
from taskpilot_instrument.runtime import Instrumentation
from taskpilot_instrument.sinks._signals import Sample

#: However many pages watch, a question is put to Prometheus once in so many seconds; it scrapes less often than that.
_FRESH_S: Final = 5.0
_MOST_KEPT: Final = 64
#: What is shown where it does not answer.
UNKNOWN: Final = of_sample(
    Sample(0, 0, None, 0, None, None, None, None, None, None, None, None, None, None), None, None, None, None
)


class Shown:
    """Golden signals for the page and its API.

    :param source: URL of a Prometheus; None takes the handle's setting.
    :raises ConfigurationError: for a URL that is none.
    """

    def __init__(self, source: str | None) -> None:
        if source is not None:
            Prometheus(source)
        self._source = source
        self._kept: dict[tuple[Any, ...], tuple[float, GoldenSignals | SourceError]] = {}
        self._lock = _forks.lock()

    def address(self, handle: Instrumentation) -> str | None:
        """Return where the signals are from, without credentials; None where they are this process's."""
        source = self._source or handle.settings.source
        return None if source is None else Prometheus(source).address

    def signals(self, handle: Instrumentation, **asked: str | None) -> GoldenSignals:
        """Return the signals of a window and filter.

        :raises SourceError: where the Prometheus does not answer.
        """
        source = self._source or handle.settings.source
        if source is None:
            return handle.golden_signals(**asked)
        key = (source, *sorted(asked.items()))
        with self._lock:  # those who ask meanwhile wait for the same answer
            until, found = self._kept.get(key, (0.0, UNKNOWN))
            if time.monotonic() >= until:
                found = self._ask(handle, source, asked)
                if len(self._kept) >= _MOST_KEPT:
                    self._kept.clear()
                self._kept[key] = time.monotonic() + _FRESH_S, found
        if isinstance(found, SourceError):
            raise SourceError(*found.args)
        return found

    def _ask(self, handle: Instrumentation, source: str, asked: dict[str, str | None]) -> GoldenSignals | SourceError:
        try:
            return handle.golden_signals(source=source, **asked)
        except SourceError as error:
            return error
