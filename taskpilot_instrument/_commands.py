"""What the commands of the command line do, beside the demo."""

import json
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.error import HTTPError
from urllib.parse import urlencode, urlsplit
from urllib.request import Request, urlopen

from taskpilot_instrument.errors import TaskpilotError

Made = TypeVar("Made")
OK: Final = 0
BAD: Final = 1
_TOO_MANY: Final = 429
#: Service tiers that providers sell.
_TIERS: Final = ("default", "batch", "flex", "priority")
_SERVERS_FAULT: Final = 500


class CommandError(TaskpilotError):
    """Say why a command cannot be done."""


class AwayError(CommandError):
    """Say why a page does not answer now; it may later."""


def ask(url: str, path: str, token: str | None, **query: str | None) -> Any:
    """Return the JSON that a running page answers with.

    :raises CommandError: where it cannot be reached, or refuses.
    """
    try:
        parts = urlsplit(url)
        right = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        right = False
    if not right:
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
            ours = "" if refused is AwayError else f" to {path}: is it our page? It prints its address when it starts"
            raise refused(f"{url} answered {error.code}{ours}") from None
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise AwayError(
            f"{url} cannot be reached ({reason}). Start the page with serve(), or `taskpilot-instrument demo --serve`."
        ) from None
    except ValueError as error:
        raise CommandError(f"{url} did not answer with JSON: is it our page?") from error


def answered(make: Callable[[Any], Made], answer: Any, url: str) -> Made:
    """Make of a page's answer what it was made of there.

    :raises CommandError: where it is another release's.
    """
    try:
        return make(answer)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise CommandError(f"{url} answered in words of another version, or is no page of ours") from error


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
        told = ("unknown", "") if price is None else (f"${price.usd.normalize():f}", price.source)
        rows.append((name, *told))
    about = {"provider": options.provider, "tier": options.tier}
    narrowed = "".join(f", {name} {value}" for name, value in about.items() if value)
    if all(row[1] == "unknown" for row in rows):
        print(_priced_otherwise(options) or no_price(options.model, narrowed))
        return BAD
    print(f"{options.model}{narrowed}, USD for a million tokens, by {price_table_date()}")
    show_table(("tokens", "price", "source"), rows)
    return OK


def _priced_otherwise(options: Namespace) -> str | None:
    """Say with which provider or tier a model's price is known; None where it has none at all."""
    from taskpilot_instrument._forms import did_you_mean
    from taskpilot_instrument.pricing import BOOK
    from taskpilot_instrument.usage import TokenUsage

    def known(provider: str | None, tier: str | None) -> bool:
        return BOOK.price(TokenUsage(1, 1), options.model, provider=provider, service_tier=tier) is not None

    if options.tier is not None and known(options.provider, None):
        tiers = [tier for tier in _TIERS if known(options.provider, tier)]
        meant = did_you_mean(options.tier, tiers)
        return f"{options.model} has no price for --tier {options.tier}{meant}; tiers with one: {', '.join(tiers)}"
    if options.provider is not None and known(None, options.tier):
        return f"{options.model} has no price for --provider {options.provider}; without --provider it has one"
    return None


def no_price(model: str, narrowed: str = "") -> str:
    """Say that a model's price is not known, and what to do.

    :param narrowed: what the price was asked for beside the model.
    """
    setting = f'MODEL_PRICING["{model}"] = {{"input": …, "output": …}}'
    return f"{model}{narrowed} has no known price: set {setting}, USD per 1M tokens"


def serve(options: Namespace) -> int:
    """Serve the page of a module's instrumentation until interrupted."""
    import importlib

    from taskpilot_instrument._ending import end_on_signals, wait_for_the_end
    from taskpilot_instrument._instrument import instrument
    from taskpilot_instrument.web import serve as start

    if options.module and (options.module.endswith(".py") or os.sep in options.module):
        named = options.module.removesuffix(".py").strip("./").replace(os.sep, ".")
        raise CommandError(f"serve {options.module}: expected the name of a module, such as {named}, not of a file")
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


def is_installed(module: str) -> bool:
    """Tell whether a module can be imported."""
    return find_spec(module) is not None


def show(found: object, styles: Mapping[str, list[str]]) -> None:
    """Print an answer, in colour with rich where it is installed and somebody looks.

    :param styles: words by the style that they are shown in.
    """
    lines = _printable(str(found))
    if not (sys.stdout.isatty() and is_installed("rich")):
        print(lines, flush=True)
        return
    from rich.console import Console
    from rich.text import Text

    text = Text(lines)
    for style, words in styles.items():
        text.highlight_words(words, style)
    Console().print(text, soft_wrap=True)


def show_table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print a table, with rich where it is installed and somebody looks."""
    shown = [[_printable(str(cell)) for cell in row] for row in (head, *rows)]
    if sys.stdout.isatty() and is_installed("rich"):
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False)
        for name in head:
            table.add_column(name, overflow="fold")  # where it is narrow, in lines: nothing is cut
        for row in shown[1:]:
            table.add_row(*map(Text, row))  # as it is: what stands in brackets is no markup
        Console().print(table)
        return
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _printable(text: str) -> str:
    """Return text that does nothing to a terminal: names and errors are others' words, and may hold its commands."""
    return "".join(each if each.isprintable() or each == "\n" else "\N{REPLACEMENT CHARACTER}" for each in text)
