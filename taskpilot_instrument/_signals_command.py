"""``taskpilot-instrument signals``: the golden signals of a page or a fleet, and whether they are good enough."""

import json
import sys
import time
from argparse import Namespace
from typing import Final

from taskpilot_instrument._commands import BAD, OK, AwayError, answered, ask, show
from taskpilot_instrument._instrument import golden_signals
from taskpilot_instrument._signals_json import from_json, to_json
from taskpilot_instrument.errors import SourceError
from taskpilot_instrument.golden import GoldenSignals, Verdict

#: Worst verdicts first; ``--fail-on`` names the mildest that fails.
_ORDER: Final = (Verdict.CRITICAL, Verdict.WARNING)
_STYLES: Final = {"bold green": ["healthy"], "bold red": ["critical"], "yellow": ["warning"], "dim": ["unknown"]}
#: What may be asked for alone, as the command line names it.
_FILTERS: Final = ("workflow", "agent", "model")


def signals(options: Namespace) -> int:
    """Show the golden signals; with ``--fail-on`` the exit status says whether they are good enough."""
    if not options.watch:
        return _judged(_look(options), options.fail_on)
    told = ""
    while True:
        try:
            status, told = _judged(_look(options), options.fail_on), ""
        except (AwayError, SourceError) as error:  # who watches waits for it, and is told once
            if str(error) != told:
                print(f"taskpilot-instrument: {error} Waiting for it.", file=sys.stderr, flush=True)
            told = str(error)
        else:
            if status == BAD:
                return BAD
        time.sleep(options.watch)


def _look(options: Namespace) -> GoldenSignals:
    """Show the golden signals once, and return them."""
    asked = {name: getattr(options, name) for name in ("window", *_FILTERS)}
    if options.source:
        found = golden_signals(source=options.source, **asked)
        told = to_json(found)
    else:
        told = ask(options.url, "/signals", options.token, **asked)
        found = answered(from_json, told, options.url)
    if options.format == "json":
        print(json.dumps(told, indent=None if options.watch else 2), flush=True)
    else:
        show(found, _STYLES)
    return found


def _judged(found: GoldenSignals, fail_on: str | None) -> int:
    """Return the exit status of a gate.

    :raises AwayError: where nothing ran that it could judge: it has not passed.
    """
    if fail_on is None:
        return OK
    if found.verdict is Verdict.UNKNOWN:
        raise AwayError(_nothing_ran(found))
    return BAD if found.verdict in _ORDER[: _ORDER.index(Verdict(fail_on)) + 1] else OK


def _nothing_ran(found: GoldenSignals) -> str:
    named = [f"{name} {asked}" for name in _FILTERS if (asked := getattr(found, name)) is not None]
    when = "" if found.window_seconds is None else f" in the last {found.window_seconds:,} s"
    if not named:
        return f"nothing ran{when}, so there is nothing for --fail-on to judge."
    return (
        f"nothing is known of {', '.join(named)}{when}, so there is nothing for --fail-on to judge: is the name right?"
    )
