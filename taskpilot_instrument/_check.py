"""``taskpilot-instrument check``: whether everything is in place."""

import json
import logging
import os
import re
import socket
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

from taskpilot_instrument._commands import BAD, OK, no_price, show_table
from taskpilot_instrument.errors import TaskpilotError

if TYPE_CHECKING:
    from taskpilot_instrument._prometheus import Rule

_WRONG: Final = "wrong"
#: Seconds that the answers of a Prometheus may take here, where somebody waits for them.
_TIMEOUT_S: Final = 10
#: What else may be installed, by the extra that brings it.
_EXTRAS: Final = {"web": "starlette", "cli": "rich", "redis": "redis", "experiments": "scipy"}
#: Frameworks that can be observed, by what is imported of them.
_FRAMEWORKS: Final = {
    "agent_framework": "agent_framework", "openai_agents": "agents", "langchain": "langchain_core",
    "pydantic_ai": "pydantic_ai",
}  # fmt: skip
_OURS: Final = re.compile(r"\btaskpilot_\w+|\bjob:taskpilot_[\w:]+")


class Row(NamedTuple):
    """One part, its state (``ok``, ``off``, ``wrong``) and what there is to say."""

    part: str
    state: str
    detail: str


def check(options: Namespace) -> int:
    """Verify an installation; the exit status says whether anything is wrong."""
    rows = list(_rows(options))
    if options.format == "json":
        print(json.dumps([row._asdict() for row in rows], indent=2))
    else:
        show_table(Row._fields, rows)
    return BAD if any(row.state == _WRONG for row in rows) else OK


def _rows(options: Namespace) -> Iterator[Row]:
    from taskpilot_instrument.settings import Settings

    try:
        settings = Settings()
    except TaskpilotError as error:
        yield Row("settings", _WRONG, str(error))
        return
    yield Row("settings", "ok", f"service {settings.service_name}")
    yield from _patches(settings)
    yield Row("spans", *_spans(settings))
    yield Row("prices", *_prices(options.model))
    yield Row("ledger", *_ledger(settings))
    if options.prometheus is not None:
        yield from _prometheus(options.prometheus, settings)
    else:
        yield Row("rules", "off", "not looked for: give --prometheus URL")
    for extra, module in _EXTRAS.items():
        installed = find_spec(module) is not None
        yield Row(extra, "ok" if installed else "off", f"{module} is {'' if installed else 'not '}installed")


# --- what is observed ---------------------------------------------------------------------------


def _patches(settings: Any) -> Iterator[Row]:
    from taskpilot_instrument._instrument import instrument

    try:
        # The ledger has a row of its own; to check is not to make one.
        with instrument(settings=settings, logs="off", metrics_port=None, ledger="memory") as handle:
            health = handle.health()
    except TaskpilotError as error:
        yield Row("instrument()", _WRONG, str(error))
        return
    if health.missing:
        yield Row("patches", _WRONG, f"not found: {', '.join(health.missing)}")
    elif health.patched:
        yield Row("patches", "ok", ", ".join(health.patched))
    else:
        yield Row("patches", "off", "none: openai is not installed, or observing it is switched off")
    idle = [name for name, module in _FRAMEWORKS.items() if name not in settings.frameworks and find_spec(module)]
    observed = ", ".join(settings.frameworks) or "none observed"
    hint = f"; installed too: {', '.join(idle)} (set TASKPILOT_FRAMEWORKS)" if idle else ""
    yield Row("frameworks", "ok" if settings.frameworks else "off", f"{observed}{hint}")


# --- where spans go -----------------------------------------------------------------------------


def _spans(settings: Any) -> tuple[str, str]:
    """Knock at the receiver, then send it an export without a span, which tells a wrong path and wrong credentials."""
    from opentelemetry.sdk.trace.export import SpanExportResult

    from taskpilot_instrument._provider import make_exporter

    if settings.otlp_endpoint is None:
        return "off", "set OTEL_EXPORTER_OTLP_ENDPOINT to send them somewhere"
    endpoint = settings.otlp_endpoint
    parts = urlsplit(endpoint if "://" in endpoint else f"http://{endpoint}")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    shown = f"{parts.hostname}:{port}"
    try:
        socket.create_connection((parts.hostname or "", port), timeout=3).close()
    except OSError as error:
        return _WRONG, f"{shown} cannot be reached: {error}"
    try:
        exporter = make_exporter(settings)
    except TaskpilotError as error:
        return _WRONG, str(error)
    with _said() as said:
        taken = exporter.export([]) is SpanExportResult.SUCCESS
        exporter.shutdown()
    if taken:
        return "ok", f"{shown} takes spans ({settings.otlp_protocol})"
    return _WRONG, f"{shown} takes no spans ({settings.otlp_protocol}): {said[-1] if said else 'it did not say why'}"


@contextmanager
def _said() -> Iterator[list[str]]:
    """Collect what the exporter logs, which tells nobody else why it failed."""
    from taskpilot_instrument.redaction import redact

    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(redact(record.getMessage())[:300])  # type: ignore[method-assign]
    logger = logging.getLogger("opentelemetry.exporter.otlp")
    logger.addHandler(handler)
    before, logger.propagate = logger.propagate, False
    try:
        yield lines
    finally:
        logger.propagate = before
        logger.removeHandler(handler)


# --- prices and ledger --------------------------------------------------------------------------


def _prices(model: str | None) -> tuple[str, str]:
    from taskpilot_instrument.pricing import BOOK, price_table_date
    from taskpilot_instrument.usage import TokenUsage

    name = model or "gpt-4o-mini"
    price = BOOK.price(TokenUsage(1, 1), name)
    if price is None:
        return _WRONG, no_price(name)
    return "ok", f"{name} by {price_table_date() if price.source != 'user' else 'a price of your own'}"


def _ledger(settings: Any) -> tuple[str, str]:
    from taskpilot_instrument.redaction import redact
    from taskpilot_instrument.sinks.ledger import default_path, file_of, open_ledger

    if settings.ledger is None:
        return "off", f"opened at {default_path()} once budgets need it"
    try:
        file = file_of(settings.ledger)
        if file is not None and not file.exists():
            return _new_ledger(file)
        ledger = open_ledger(settings.ledger)
        ledger.standings([("check", "total")], time.time())
        ledger.close()
    except TaskpilotError as error:
        return _WRONG, str(error)
    return "ok", redact(str(settings.ledger))


def _new_ledger(file: Path) -> tuple[str, str]:
    """Say what becomes of the path of a file that is not there; to check is not to make it."""
    folder = file.parent if file.parent.exists() else file.parent.parent
    if not folder.is_dir():
        return _WRONG, f"there is no ledger at {file}, and no folder {folder} to make one in: is the path right?"
    if not os.access(folder, os.W_OK | os.X_OK):
        return _WRONG, f"there is no ledger at {file}, and {folder} may not be written to"
    return "ok", f"there is none at {file} yet: the first start makes it, and budgets begin at zero"


# --- Prometheus ---------------------------------------------------------------------------------


def _prometheus(url: str, settings: Any) -> Iterator[Row]:
    from taskpilot_instrument._growth import quoted
    from taskpilot_instrument._prometheus import Prometheus

    timeout_s = min(_TIMEOUT_S, settings.source_timeout_s)
    try:
        asked = Prometheus(url, token=settings.source_token, timeout_s=timeout_s, given_as="--prometheus")
        labels = asked.matchers or {"job": settings.service_name}
        selector = ",".join(f"{name}={quoted(value)}" for name, value in labels.items())
        rules, targets = asked.rules(), asked.query(f"up{{{selector}}}")
    except TaskpilotError as error:
        yield Row("rules", _WRONG, str(error))
        return
    yield Row("rules", *_rules(rules))
    up = sum(target.points[-1][1] for target in targets)
    if targets:
        yield Row("scraping", "ok" if up == len(targets) else _WRONG, f"{up:.0f} of {len(targets)} targets answer")
    else:
        whose = "" if asked.matchers else ", the name of the service"
        yield Row("scraping", _WRONG, f"no target has {selector}{whose}")


def _rules(rules: "Sequence[Rule]") -> tuple[str, str]:
    """Say whether rules about our metrics are loaded, work, and have every series that they ask for."""
    ours = [rule for rule in rules if _OURS.search(rule.query)]
    alerts = [rule for rule in ours if rule.type == "alerting"]
    if not alerts:
        return _WRONG, "no alert speaks of taskpilot_ metrics: load observability/prometheus/golden-signals-*.yml"
    failing = [rule for rule in ours if rule.problem is not None]
    if failing:
        return _WRONG, f"{failing[0].name} cannot be evaluated: {(failing[0].problem or '')[:200]}"
    recorded = {rule.name for rule in rules if rule.type == "recording"}
    asked = {name for rule in ours for name in _OURS.findall(rule.query) if name.startswith("job:")}
    if asked - recorded:
        return _WRONG, f"nothing records {min(asked - recorded)}: load golden-signals-recording.yml too"
    firing = sorted(rule.name for rule in alerts if rule.is_firing)
    return (
        "ok",
        f"{len(alerts)} alerts, {len(ours) - len(alerts)} recording rules; firing: {', '.join(firing) or 'none'}",
    )
