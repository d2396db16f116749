"""Build what acts beside the sinks from the settings: ledger, budgets, limits, policies, guardrails, alerts."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from taskpilot_instrument._definition import all_of
from taskpilot_instrument._records import Event
from taskpilot_instrument._token_watch import TokenWatch
from taskpilot_instrument.settings import Settings
from taskpilot_instrument.sinks.metrics import MetricsBackend
from taskpilot_instrument.typing import Clock, Controls, Gate, PriceSource, Sink

if TYPE_CHECKING:
    from taskpilot_instrument._alerting import Alerts
    from taskpilot_instrument._history import History
    from taskpilot_instrument._spending import Spending
    from taskpilot_instrument.alerts import Alert
    from taskpilot_instrument.runaway import RunawayDetector
    from taskpilot_instrument.sinks.ledger import Ledger


@dataclass(slots=True)
class Parts:
    """What the settings asked for beyond spans, logs and metrics."""

    gates: tuple[Gate, ...] = ()
    #: Sinks that hear of an end before the others: what they note is on the span while it is open.
    watchers: tuple[Sink, ...] = ()
    sinks: tuple[Sink, ...] = ()
    controls: Controls | None = None
    #: Hear of events and nothing else.
    listeners: list[Callable[[Event], None]] = field(default_factory=list)
    alerts: "Alerts | None" = None
    spending: "Spending | None" = None
    #: Where budgets, feedback and history are kept; opened once.
    ledger: "Ledger | None" = None
    history: "History | None" = None


def assemble(
    settings: Settings, clock: Clock, prices: PriceSource, metrics: MetricsBackend, opened: ExitStack
) -> Parts:
    """Build every part that the settings ask for; nothing is imported for a part that they do not.

    :param opened: closes the parts again, in the opposite order.
    :raises ConfigurationError: for a definition that is not valid, naming the field.
    """
    parts = Parts(watchers=(TokenWatch(),))
    _limit_tokens(parts, settings, clock)
    if settings.enabled:
        from taskpilot_instrument._history import History

        shared = settings.ledger is not None or settings.budgets is not None
        parts.history = History(the_ledger(parts, settings, opened) if shared else None, clock)
        parts.sinks += (parts.history,)
        opened.callback(parts.history.close)
    if settings.budgets is not None and settings.enabled:
        add_budgets(parts, settings, clock, prices, metrics, opened)
    _check_runs(parts, settings, clock)
    if settings.alerts and settings.enabled:
        from taskpilot_instrument.alerts import Alert

        add_alerts(parts, all_of(Alert, "alerts", settings.alerts), clock, metrics, opened)
    return parts


def _check_runs(parts: Parts, settings: Settings, clock: Clock) -> None:
    """Build what agents and tools are checked by."""
    runaway = _watch_runs(parts, settings, clock)
    if settings.policies or settings.guardrails or runaway:
        from taskpilot_instrument._checks import Checks
        from taskpilot_instrument.guardrails import guardrails_of
        from taskpilot_instrument.policy import policies_of

        parts.controls = Checks(
            policies_of(settings.policies),
            guardrails_of(settings.guardrails),
            runaway,
            content=settings.content_on_events,
        )


def _watch_runs(parts: Parts, settings: Settings, clock: Clock) -> "tuple[RunawayDetector, ...]":
    """Build what notices runs that go in circles."""
    if settings.runaway is None:
        return ()
    from taskpilot_instrument.runaway import Runaway, RunawayDetector

    detectors = tuple(RunawayDetector(each, clock) for each in all_of(Runaway, "runaway", settings.runaway))
    parts.watchers += detectors
    # First: a budget need not hold anything for a call that is refused anyway.
    parts.gates = (*(each for each in detectors if each.stops), *parts.gates)
    return detectors


def _limit_tokens(parts: Parts, settings: Settings, clock: Clock) -> None:
    if settings.token_limits is not None:
        from taskpilot_instrument.limits import TokenLimit, TokenLimits

        limits = TokenLimits(all_of(TokenLimit, "token_limits", settings.token_limits), clock)
        parts.watchers += (limits,)
        if limits.blocks:
            parts.gates += (limits,)


def the_ledger(parts: Parts, settings: Settings, opened: ExitStack) -> "Ledger":
    """Return the ledger of the settings, opened when it is first needed."""
    if parts.ledger is None:
        from taskpilot_instrument.sinks.ledger import open_ledger

        parts.ledger = open_ledger(settings.ledger)
        opened.callback(parts.ledger.close)
    return parts.ledger


def add_budgets(
    parts: Parts, settings: Settings, clock: Clock, prices: PriceSource, metrics: MetricsBackend, opened: ExitStack
) -> "Spending":
    """Hold calls against the budgets of the settings."""
    from taskpilot_instrument._budget_file import budgets_from
    from taskpilot_instrument._spending import Spending
    from taskpilot_instrument.sinks._budget_gauges import BudgetGauges

    budgets = budgets_from(settings.budgets or ())
    ledger = the_ledger(parts, settings, opened)
    spending = Spending(budgets, ledger, prices, clock, unavailable=settings.ledger_unavailable)
    opened.callback(spending.close)
    gauges = BudgetGauges(spending)
    for registry in {metrics.registry, metrics.scraped}:
        registry.register(gauges)
        opened.callback(registry.unregister, gauges)
    parts.spending = spending
    parts.gates += (spending,)
    parts.watchers += (spending,)
    return spending


def add_alerts(
    parts: Parts, alerts: "Iterable[Alert]", clock: Clock, metrics: MetricsBackend, opened: ExitStack
) -> None:
    """Look after these alerts too."""
    if parts.alerts is None:
        from taskpilot_instrument._alerting import Alerts

        parts.alerts = Alerts(metrics, clock)
        parts.listeners.append(parts.alerts.noted)
        opened.callback(parts.alerts.close)
    for alert in alerts:
        parts.alerts.add(alert)
