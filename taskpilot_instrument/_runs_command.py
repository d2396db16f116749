"""``taskpilot-instrument runs``: the latest runs of a running page, and one of them span by span."""

import json
from argparse import Namespace
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from taskpilot_instrument._commands import OK, CommandError, answered, ask, show, show_table
from taskpilot_instrument._display import UNKNOWN, milliseconds, table, usd
from taskpilot_instrument.semconv import Outcome

_HEAD: Final = ("started", "run", "outcome", "latency", "cost", "request id", "why")
_STYLES: Final = {"bold red": ["error"], "yellow": ["blocked", "cancelled", "abandoned"]}
_INDENT: Final = "  "


def runs(options: Namespace) -> int:
    """Show the latest runs, or one of them by its request or trace id."""
    found = ask(options.url, "/runs", options.token, outcome=options.outcome)
    if options.id is not None:
        found = answered(lambda told: _named(told, options.id), found, options.url)
        if not found:
            raise CommandError(
                f"no run {options.id} is among the latest that {options.url} keeps: traces go back further"
            )
        drawn = answered(_one, found, options.url)
    else:
        kept = answered(lambda told: Counter(run["outcome"] for run in told), found, options.url)
        found = found[: options.most]
        rows = answered(_all, found, options.url)
    if options.format == "json":
        print(json.dumps(found, indent=2))
    elif options.id is not None:
        show(drawn, _STYLES)
    elif rows:
        show_table(_HEAD, rows)
        if kept.total() > len(rows):
            outcomes = ", ".join(f"{outcome} {count:,}" for outcome, count in kept.most_common())
            print(f"{len(rows):,} of the {kept.total():,} that are kept ({outcomes}); --most N shows more.")
    else:
        print(
            "No run has ended yet."
            if options.outcome is None
            else f"None of the latest runs ended in {options.outcome}."
        )
    return OK


def _named(told: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    return [run for run in told if name in (run["request_id"], run["trace_id"])]


def _all(found: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    return [
        (
            _time(run["started"]),
            run["name"],
            run["outcome"],
            milliseconds(run["ms"]),
            usd(run["cost_usd"]),
            run["request_id"],
            _why(run["spans"]),
        )
        for run in found
    ]


def _why(spans: Sequence[Mapping[str, Any]]) -> str:
    """Say what went wrong where it began: in the deepest span that did not end well."""
    ill = [span for span in spans if span["error"] is not None]
    if not ill or ill[0] is not spans[0]:
        return ""  # what failed within was made good
    cause = max(ill, key=lambda span: int(span["depth"]))
    return " ".join(f"{'' if cause is spans[0] else cause['name'] + ': '}{cause['error']}".split())


def _one(found: Sequence[Mapping[str, Any]]) -> str:
    """Draw the spans of a run, the innermost indented most."""
    lines = []
    for run in found:
        lines.append(
            f"{run['name']}, {_time(run['started'])}, request {run['request_id']}, trace {run['trace_id'] or UNKNOWN}"
        )
        rows = [("", "tokens in", "tokens out", "cost", "latency"), *map(_span, run["spans"])]
        for line, span in zip(table(rows), [None, *run["spans"]], strict=True):
            ill = span is not None and span["outcome"] != Outcome.SUCCESS
            lines.append(
                f"{line}  {' '.join((span['error'] or span['outcome']).split())}" if span is not None and ill else line
            )
        if run["cut"]:
            lines.append(f"{_INDENT}… more spans than are kept")
    return "\n".join(lines)


def _span(span: Mapping[str, Any]) -> tuple[str, ...]:
    tokens = ("" if span[kind] is None else f"{span[kind]:,}" for kind in ("input_tokens", "output_tokens"))
    cost = "" if span["cost_usd"] is None else usd(span["cost_usd"])
    return f"{_INDENT * span['depth']}{span['name']}", *tokens, cost, milliseconds(span["ms"])


def _time(seconds: float) -> str:
    """Show a moment as the log lines have it, to the second."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"
