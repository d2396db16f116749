"""What the commands of the command line do, beside the demo."""

import json
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final
from urllib.error import HTTPError
from urllib.parse import urlencode, urlsplit
from urllib.request import Request, urlopen

from taskpilot_instrument.errors import SourceError, TaskpilotError

OK: Final = 0
BAD: Final = 1
WRONG_USE: Final = 2
_TOO_MANY: Final = 429
_SERVERS_FAULT: Final = 500
#: Worst verdicts first; ``--fail-on`` names the mildest that fails.
_ORDER: Final = ("critical", "warning", "healthy", "unknown")


class CommandError(Exception):
    """Say why a command cannot be done."""


class AwayError(CommandError):
    """Say why a page does not answer now; it may later."""


def ask(url: str, path: str, token: str | None, **query: str | None) -> Any:
    """Return the JSON that a running page answers with.

    :raises CommandError: where it cannot be reached, or refuses.
    """
    if urlsplit(url).scheme not in {"http", "https"}:
        raise CommandError(f"--url={url}: expected an address such as http://127.0.0.1:8080")
    given = urlencode({name: value for name, value in query.items() if value is not None})
    request = Request(f"{url.rstrip('/')}{path}{f'?{given}' if given else ''}")  # noqa: S310 - http, as checked above
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urlopen(request, timeout=10) as answer:  # noqa: S310 - as above
            return json.load(answer)
    except HTTPError as error:
        refused = AwayError if error.code == _TOO_MANY or error.code >= _SERVERS_FAULT else CommandError
        try:
            said = json.load(error)
            raise refused(f"{url}: {said['title']}; {said.get('hint', '')}") from None
        except (OSError, HTTPException, ValueError, LookupError, TypeError, AttributeError):
            raise refused(f"{url} answered {error.code}") from None
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise AwayError(
            f"{url} cannot be reached ({reason}). Start the page with serve(), or `taskpilot-instrument demo --serve`."
        ) from None
    except ValueError as error:
        raise CommandError(f"{url} did not answer with JSON: is it our page?") from error


def signals(options: Namespace) -> int:
    """Show the golden signals; with ``--fail-on`` the exit status says whether they are good enough."""
    failing = _ORDER[: _ORDER.index(options.fail_on) + 1] if options.fail_on else ()
    if not options.watch:
        return BAD if _look(options) in failing else OK
    told = ""
    while True:
        try:
            verdict, told = _look(options), ""
        except (AwayError, SourceError) as error:  # who watches waits for it, and is told once
            if str(error) != told:
                print(f"taskpilot-instrument: {error} Waiting for it.", file=sys.stderr, flush=True)
            told = str(error)
        else:
            if verdict in failing:
                return BAD
        time.sleep(options.watch)


def _look(options: Namespace) -> str:
    """Show the golden signals once, and return their verdict."""
    asked = {name: getattr(options, name) for name in ("window", "workflow", "agent", "model")}
    if options.source:
        found, shown = _of_source(options.source, asked)
    else:
        found, shown = ask(options.url, "/signals", options.token, **asked), None
    if options.format == "json":
        print(json.dumps(found, indent=None if options.watch else 2), flush=True)
    elif shown is not None:
        print(shown, flush=True)
    else:
        from taskpilot_instrument.golden import NO_THRESHOLD

        print(f"Golden signals: {found['verdict']} ({found['runs']} runs)")
        rows = [
            (name.replace("_", " "), _shown(signal["value"]), signal["verdict"] if signal["healthy"] else NO_THRESHOLD)
            for name, signal in found["signals"].items()
        ]
        show_table(("signal", "value", "verdict"), rows)
        sys.stdout.flush()
    verdict: str = found["verdict"]
    return verdict


def _of_source(source: str, asked: dict[str, str | None]) -> tuple[dict[str, Any], str]:
    from taskpilot_instrument._instrument import golden_signals
    from taskpilot_instrument.web import state

    found = golden_signals(source=source, **asked)
    return state.clean(state.signals(found)), str(found)


def budgets(options: Namespace) -> int:
    """Show how every budget stands; the exit status says whether one is spent."""
    found = ask(options.url, "/budgets", options.token)
    if options.format == "json":
        print(json.dumps(found, indent=2))
    elif not found:
        print("No budget is set: instrument(budgets=[Budget(…)])")
    else:
        show_table(
            ("budget", "account", "window", "spent", "limit", "used", "resets"),
            [
                (one["name"], one["account"] or "–", one["window"], f"${float(one['spent_usd']):.6f}",
                 f"${one['limit_usd']}", f"{one['ratio']:.0%}", one["resets_at"] or "never")
                for one in found
            ],
        )  # fmt: skip
    return BAD if any(one["ratio"] >= 1 for one in found) else OK


def prices(options: Namespace) -> int:
    """Show what a model costs, as it would be priced now."""
    from taskpilot_instrument.pricing import BOOK, price_table_date
    from taskpilot_instrument.usage import TokenUsage

    million = 1_000_000
    parts = {
        "input": TokenUsage(million, 0),
        "cached input": TokenUsage(million, 0, cached_tokens=million),
        "output": TokenUsage(0, million),
    }
    rows = []
    for name, usage in parts.items():
        price = BOOK.price(usage, options.model, provider=options.provider, service_tier=options.tier)
        rows.append(
            (name, "unknown" if price is None else f"${price.usd.normalize():f}", "" if price is None else price.source)
        )
    known = any(row[1] != "unknown" for row in rows)
    print(f"{options.model}, USD for a million tokens, by {price_table_date()}")
    show_table(("tokens", "price", "source"), rows)
    if not known:
        print('Nobody knows its price: set MODEL_PRICING[model] = {"input": …, "output": …}')
    return OK if known else BAD


def serve(options: Namespace) -> int:
    """Serve the page of a module's instrumentation until interrupted."""
    import importlib

    from taskpilot_instrument._ending import end_on_signals, wait_for_the_end
    from taskpilot_instrument._instrument import instrument
    from taskpilot_instrument.web import serve as start

    end_on_signals()
    sys.path.insert(0, str(Path.cwd()))
    instrument()
    if options.module:
        try:
            importlib.import_module(options.module)
        except ModuleNotFoundError as error:
            if f"{options.module}.".startswith(f"{error.name}."):  # else it is one that the module itself needs
                raise CommandError(f"serve {options.module}: there is no such module here") from None
            raise
    with start(options.port, host=options.host, token=options.token, source=options.source) as server:
        print(f"The page is at {server.url} (Ctrl+C stops it)", flush=True)
        wait_for_the_end()
    return OK


def run(command: Callable[[Namespace], int], options: Namespace) -> int:
    """Run a command, and say on stderr why it cannot be done."""
    try:
        return command(options)
    except (CommandError, TaskpilotError) as error:
        print(f"taskpilot-instrument: {error}", file=sys.stderr)
        return WRONG_USE
    except KeyboardInterrupt:
        return 130


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:,.4f}".rstrip("0").rstrip(".")


def is_installed(module: str) -> bool:
    """Tell whether a module can be imported."""
    return find_spec(module) is not None


def show_table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print a table, with rich where it is installed and somebody looks."""
    if sys.stdout.isatty() and is_installed("rich"):
        from rich.console import Console
        from rich.table import Table

        table = Table(*head, box=None, pad_edge=False)
        for row in rows:
            table.add_row(*map(str, row))
        Console().print(table)
        return
    widths = [max(len(str(row[column])) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        print("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
