"""Figures of a report from the ledger: its hourly roll-ups, and the votes of users."""

from bisect import bisect_right
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Final

from taskpilot_instrument import _hourly as hourly
from taskpilot_instrument._report.figures import Figures
from taskpilot_instrument._report.times import Stretch
from taskpilot_instrument.errors import ConfigurationError, LedgerError
from taskpilot_instrument.redaction import redact
from taskpilot_instrument.semconv import AGENT, MODEL, NONE, WORKFLOW
from taskpilot_instrument.sinks.ledger import Ledger, file_of, open_store

#: A report may wait for longer than a call may.
_WAIT_S: Final = 10.0


class LedgerSource:
    """The ledger as a source of reports.

    :param ledger: where it is kept, as ``instrument(ledger=…)`` takes it, or an open one.
    :raises LedgerError: where it cannot be opened, or is a file that is not there: a report makes none.
    :raises ConfigurationError: where the place cannot be read.
    """

    grain = timedelta(seconds=hourly.HOUR_S)
    notes: tuple[str, ...] = ()

    def __init__(self, ledger: object) -> None:
        if ledger == "memory":
            raise ConfigurationError("a ledger in memory is its process's own: call report() there")
        file = file_of(ledger)
        if file is not None and not file.is_file():
            raise LedgerError(f"there is no ledger at {file}: name the one of the program with ledger= or --ledger")
        self._ledger: Ledger = open_store(ledger, wait_s=_WAIT_S)
        self._is_ours = isinstance(ledger, str) or file is not None
        self.name = "ledger" if not self._is_ours else f"ledger {redact(str(ledger or file))}"

    def read(self, stretch: Stretch, slots: Sequence[Stretch]) -> tuple[Figures, list[Figures]]:
        """Return the figures of a stretch, and of each of its slots; an hour belongs to where it begins."""
        since, until = stretch.since.timestamp(), stretch.until.timestamp()
        starts = [slot.since.timestamp() for slot in slots] or [since]
        parts = [Figures() for _ in starts]
        for hour, key, counts in self._ledger.rollups(since, until):
            part, about = parts[bisect_right(starts, hour) - 1], hourly.dimensions(key)
            if WORKFLOW in about:
                part.add_runs(about[WORKFLOW], counts)
            else:
                part.add_calls(about.get(AGENT, NONE), about.get(MODEL, NONE), counts)
        for vote in self._ledger.votes(since, until):
            part = parts[bisect_right(starts, vote.at_s) - 1]
            part.correct += vote.correct
            part.incorrect += not vote.correct
        whole = Figures()
        for part in parts:
            whole.add(part)
        return whole, parts if slots else []

    def close(self) -> None:
        """Close the ledger, unless it is somebody else's."""
        if self._is_ours:
            with suppress(LedgerError):
                self._ledger.close()
