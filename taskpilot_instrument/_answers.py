"""What the handle answers, from what the metrics and the ledger hold."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from taskpilot_instrument import comparison, golden
from taskpilot_instrument._assembly import Parts
from taskpilot_instrument._backends import price_book
from taskpilot_instrument._collector import finish_orphans
from taskpilot_instrument._fleet import ask
from taskpilot_instrument._waste import Waste
from taskpilot_instrument.comparison import ModelComparison
from taskpilot_instrument.golden import GoldenSignals
from taskpilot_instrument.settings import Settings
from taskpilot_instrument.sinks.metrics import MetricsBackend

if TYPE_CHECKING:
    from taskpilot_instrument._experiment_report import ExperimentReport
    from taskpilot_instrument.budgets import BudgetStatus


class Answers:
    """Questions that can be asked at any time, also after ``uninstrument()``."""

    settings: Settings
    metrics: MetricsBackend
    parts: Parts

    def golden_signals(
        self,
        *,
        window: str | None = None,
        workflow: str | None = None,
        agent: str | None = None,
        model: str | None = None,
        source: str | None = None,
    ) -> GoldenSignals:
        """Compute the five golden signals, of all workers where they share a multiprocess directory.

        :param window: how far back, such as ``15m``, ``1h`` or ``24h``; None means since the start.
        :param workflow: only this workflow's runs.
        :param agent: only this agent's runs.
        :param model: only the calls of this model.
        :param source: URL of a Prometheus, such as ``http://prometheus:9090`` or, for one service,
            ``http://prometheus:9090?job=taskpilot``: asked for the figures of all processes that it scrapes, in place
            of this one's; without a window, of all the time that it keeps.
        :raises ConfigurationError: for a window that cannot be read or is not kept, or a source that is none.
        :raises SourceError: where the source has no answer in time, or none that is whole.
        """
        if source is not None:
            return ask(source, self.settings, window=window, workflow=workflow, agent=agent, model=model)
        finish_orphans()
        return golden.compute(self.metrics, window=window, workflow=workflow, agent=agent, model=model)

    def compare_models(
        self, *, window: str | None = None, agent: str | None = None, reprice: Iterable[str] = ()
    ) -> ModelComparison:
        """Compare the models that were called: success, speed, cost and correctness, with 95 % intervals.

        :param window: how far back, such as ``15m``, ``1h`` or ``24h``; None means since the start.
        :param agent: only this agent's calls and runs.
        :param reprice: say also what the same tokens would have cost at the prices of these models.
        :raises ConfigurationError: for a window that cannot be read or is not kept, or a model without a price.
        """
        finish_orphans()
        return comparison.compare(
            self.metrics, window=window, agent=agent, reprice=reprice, book=price_book(self.settings)
        )

    def experiment_report(
        self, name: str, *, window: str | None = None, margin_points: float = 2.0, margin_percent: float = 5.0
    ) -> "ExperimentReport":
        """Report what the variants of an experiment came to in this process, and whether they differ.

        Look as often as you like: with 95 %, nothing that is said of any figure at any look is wrong. Nothing is
        judged before each variant has 100 runs, of some 40 units or more.

        :param name: of the experiment, of which a run must have ended.
        :param window: how far back, such as ``1h``; None since the experiment began or got other variants or weights.
            Figures of a window are not judged: it moves, and intervals hold at every look only from a fixed beginning.
        :param margin_points: the smallest difference of rates that matters, in percentage points.
        :param margin_percent: that of cost and latency, in percent of the first variant's.
        :raises ConfigurationError: for an experiment that is not known, an argument that is not valid, or where scipy
            (extra ``experiments``) is not installed.
        """
        from taskpilot_instrument._experiment_report import report

        finish_orphans()
        return report(
            self.metrics.trials, name, window=window, margin_points=margin_points, margin_percent=margin_percent
        )

    def experiment_names(self) -> tuple[str, ...]:
        """Return the experiments that :meth:`experiment_report` knows."""
        finish_orphans()
        return tuple(self.metrics.trials.trials)

    def waste(self, *, window: str | None = None) -> dict[str, Waste]:
        """Return what each agent's LLM calls wasted, the most expensive first; see :class:`Waste` for what counts.

        Agents that wasted nothing are left out; ``none`` stands for calls without an agent around them.

        :param window: how far back, such as ``15m``, ``1h`` or ``24h``; None means since the start.
        :raises ConfigurationError: for a window that cannot be read or is not kept.
        """
        finish_orphans()
        return self.metrics.waste(None if window is None else golden.parse_window(window) * 1_000_000_000)

    def budgets(self) -> "tuple[BudgetStatus, ...]":
        """Return how every budget stands in its current window; of one with ``*`` each account that was charged.

        :raises LedgerError: where the ledger cannot be reached.
        """
        finish_orphans()
        return self.parts.spending.status() if self.parts.spending is not None else ()
