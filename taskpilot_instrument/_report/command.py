"""``taskpilot-instrument report``."""

import argparse
import sys
from argparse import ArgumentParser, Namespace
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Final

from taskpilot_instrument.errors import ConfigurationError

NAME: Final = "report"
_WHAT: Final = "report on a day, week or month, each figure beside that of the period before"
_EXAMPLES: Final = """\
examples:
  taskpilot-instrument report                                  today so far, beside the same hours of yesterday
  taskpilot-instrument report --end yesterday                  all of yesterday, beside the day before
  taskpilot-instrument report --period week --format html --output week.html
  taskpilot-instrument report --period month --end 2026-10-31 --timezone Europe/Berlin
  taskpilot-instrument report --ledger redis://ledger:6379/0   from the ledger of a fleet
  taskpilot-instrument report --prometheus 'http://prometheus:9090?job=taskpilot'
  taskpilot-instrument report --format json | jq '.figures.total_cost_usd.value'

exit status:
  0  the report was made
  2  an argument is wrong, or the ledger or Prometheus is out of reach, or there is no ledger
"""


def add_report(commands: Any) -> None:
    """Add the command to those of the command line."""
    made: ArgumentParser = commands.add_parser(
        NAME,
        help=_WHAT,
        description=f"{_WHAT[0].upper()}{_WHAT[1:]}.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--period", choices=("day", "week", "month"), default="day", help="default: %(default)s")
    made.add_argument("--format", choices=("markdown", "html", "json"), default="markdown", help="default: %(default)s")
    made.add_argument("--output", metavar="FILE", type=Path, help="write it there instead of to standard output")
    made.add_argument(
        "--end", metavar="DATE", type=_day, help="a day of the period: 2026-10-31, or yesterday (default: today)"
    )
    made.add_argument("--timezone", default="UTC", help="of the calendar, such as Europe/Berlin (default: %(default)s)")
    source = made.add_mutually_exclusive_group()
    source.add_argument("--ledger", help="path or redis://… (default: $TASKPILOT_LEDGER, else the user's own)")
    source.add_argument("--prometheus", metavar="URL", help="take the figures from a Prometheus instead")


def report(options: Namespace) -> int:
    """Make a report and write it.

    :raises TaskpilotError: where it cannot be made.
    """
    from taskpilot_instrument._report import entry

    made = entry.report(
        options.period, end=_resolved(options.end, options.timezone), timezone=options.timezone,
        ledger=options.ledger, prometheus=options.prometheus,
    )  # fmt: skip
    text = {"markdown": made.markdown, "html": made.html, "json": made.json}[options.format]()
    if options.output is None:
        sys.stdout.write(text)
        return 0
    try:
        options.output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"--output={options.output}: {error.strerror}") from error
    return 0


def _day(text: str) -> date | str:
    if text in {"today", "yesterday"}:
        return text
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a date such as 2026-10-31, or yesterday, not {text!r}") from None


def _resolved(day: date | str | None, timezone: str) -> date | None:
    if not isinstance(day, str):
        return day
    from taskpilot_instrument._report.report import today

    return today(timezone) - timedelta(days=day == "yesterday")
