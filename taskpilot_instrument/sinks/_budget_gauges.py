"""The budgets as Prometheus gauges, asked of the ledger at scrape time."""

from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Final, Protocol

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from taskpilot_instrument import semconv
from taskpilot_instrument.errors import LedgerError

_SPENT_HELP: Final = (
    "Spent in the current window, in USD; of a budget with an account for each value, the one that has spent most."
)
_LIMIT_HELP: Final = "What may be spent in each window, in USD."


class _Limit(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def window(self) -> str: ...
    @property
    def limit_usd(self) -> Decimal | float | str: ...


class _Standing(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def window(self) -> str: ...
    @property
    def spent_usd(self) -> Decimal: ...


class _Budgets(Protocol):
    def limits(self) -> Iterable[_Limit]: ...
    def status(self) -> Iterable[_Standing]: ...


class BudgetGauges(Collector):
    """Serve what is spent and what may be.

    :param budgets: tells both.
    """

    def __init__(self, budgets: _Budgets) -> None:
        self._budgets = budgets

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Yield the families without samples."""
        for name, text in ((semconv.M_BUDGET_SPENT, _SPENT_HELP), (semconv.M_BUDGET_LIMIT, _LIMIT_HELP)):
            yield GaugeMetricFamily(name, text, labels=semconv.METRIC_LABELS[name])

    def collect(self) -> Iterator[Metric]:
        """Yield both families; nothing is said to be spent while the ledger cannot be reached: it is not known."""
        spent, limit = self.describe()
        most: dict[tuple[str, str], float] = {}
        for budget in self._budgets.limits():
            limit.add_metric([budget.name, budget.window], float(budget.limit_usd))
            most[budget.name, budget.window] = 0.0
        try:
            for account in self._budgets.status():
                key = (account.name, account.window)
                most[key] = max(most.get(key, 0.0), float(account.spent_usd))
        except LedgerError:
            most = {}
        for labels, amount in most.items():
            spent.add_metric(list(labels), amount)
        yield from (spent, limit)
