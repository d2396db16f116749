"""``report(...)``, without what makes one: that is imported with the first report."""

from datetime import date, datetime
from typing import TYPE_CHECKING

from taskpilot_instrument._collector import finish_orphans
from taskpilot_instrument._instrument import instrumentation
from taskpilot_instrument.errors import LedgerError, NotInstrumentedError

if TYPE_CHECKING:
    from taskpilot_instrument._report.report import Report


def report(
    period: str = "day",
    *,
    end: date | None = None,
    timezone: str = "UTC",
    ledger: object = None,
    prometheus: str | None = None,
    now: datetime | None = None,
) -> "Report":
    """Report on a day, week or month, beside the one before.

    A period that is not over is reported on as far as it has come, in whole hours, and compared with the equal part of
    the one before.

    :param period: ``day``, ``week`` (from Monday on) or ``month``.
    :param end: a day of the period, in the time zone; today where it is not given.
    :param timezone: the periods' zone, such as ``Europe/Berlin``.
    :param ledger: whose hourly figures are taken: as ``instrument(ledger=…)`` takes it. Without it, that of the
        instrumentation in force, else ``TASKPILOT_LEDGER``, else the one in the user's state folder.
    :param prometheus: the URL of a Prometheus to take the figures from instead; ``?job=taskpilot`` at its end narrows
        it down to one service. A bearer token comes from ``TASKPILOT_SOURCE_TOKEN``.
    :param now: when the report is made, with its time zone; the present where it is not given.
    :raises ConfigurationError: where the period has not begun, or an argument is none of these.
    :raises LedgerError: where the ledger cannot be read, or there is none.
    :raises SourceError: where Prometheus cannot be asked.
    """
    from taskpilot_instrument._report.report import make

    if ledger is None and prometheus is None:
        ledger = _ledger_in_force()
    return make(period, end=end, timezone=timezone, ledger=ledger, prometheus=prometheus, now=now)


def _ledger_in_force() -> object:
    """Return where the ledger of the instrumentation in force is, with everything written to it; None without one.

    :raises LedgerError: where something could not be written.
    """
    try:
        handle = instrumentation()
    except NotInstrumentedError:
        return None
    history, place = handle.parts.history, handle.settings.ledger
    if history is None or history.ledger is None:
        return None
    finish_orphans()
    if not history.flush():
        raise LedgerError("the ledger cannot be reached: what was recorded last is not in it")
    # Elsewhere than in memory a report has a connection of its own, which may wait for longer than those of calls.
    return history.ledger if place == "memory" else place
