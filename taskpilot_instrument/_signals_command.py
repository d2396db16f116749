"""``taskpilot-instrument signals``: the golden signals of a page or a fleet, and whether they are good enough."""

import json
import sys
import time
from argparse import Namespace
from datetime import UTC, datetime
from typing import Final

from taskpilot_instrument._commands import BAD, OK, AwayError, answered, ask, show
from taskpilot_instrument._display import span
from taskpilot_instrument._instrument import golden_signals
from taskpilot_instrument._signals_json import from_json, to_json
from taskpilot_instrument._verdicts import Verdict
from taskpilot_instrument.errors import SourceError
from taskpilot_instrument.golden import GoldenSignals

#: Worst verdicts first; ``--fail-on`` names the mildest that fails.
_ORDER: Final = (Verdict.CRITICAL, Verdict.WARNING)
_STYLES: Final = {"bold green": ["healthy"], "bold red": ["critical"], "yellow": ["warning"], "dim": ["unknown"]}
#: What may be asked for alone, as the command line names it.
_FILTERS: Final = ("workflow", "agent", "model")


def signals(options: Namespace) -> int:
    """Show the golden signals; with ``--fail-on`` the exit status says whether they are good enough."""
    if not options.watch:
        return _look(options)
    told = ""
    while True:
        try:
            status, told = _look(options), ""
        except (AwayError, SourceError) as error:  # who watches waits for it, and is told once
            if str(error) != told:
                print(f"taskpilot-instrument: {error} Waiting for it.", file=sys.stderr, flush=True)
            told = str(error)
        else:
            if status == BAD:
                return BAD
        time.sleep(options.watch)


def _look(options: Namespace) -> int:
    """Show the golden signals once, and return the exit status.

    :raises AwayError: where nothing ran that a gate could judge: it has not passed.
    """
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
        show(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {found}" if options.watch else found, _STYLES)
    if options.fail_on is None:
        return OK
    if found.verdict is Verdict.UNKNOWN:
        raise AwayError(f"{_nothing_ran(found, told.get('known') or {})}, so there is nothing for --fail-on to judge.")
    return BAD if found.verdict in _ORDER[: _ORDER.index(Verdict(options.fail_on)) + 1] else OK


def _nothing_ran(found: GoldenSignals, known: dict[str, list[str]]) -> str:
    """Say what did not run, and whether that may be the name's fault.

    :param known: the names that there are, by the filter that they belong to, as far as the page told.
    """
    when = "" if found.window_seconds is None else f" in the last {span(found.window_seconds)}"
    asked = {label: name for label in _FILTERS if (name := getattr(found, label)) is not None}
    if not asked:
        return f"nothing ran{when}"
    what = found.counted.rpartition(" ")[2]
    said = f"there is no {what} of {', '.join(f'{label} {name}' for label, name in asked.items())}{when}"
    for label, name in asked.items():
        if name not in known.get(label, [name]):
            said += f" ({label}s are {', '.join(known[label])})"
    return said
