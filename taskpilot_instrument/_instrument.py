"""``instrument()``, the one call, and the functions of the package that ask what it returned."""

import logging
from collections.abc import Iterable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from taskpilot_instrument._fleet import ask
from taskpilot_instrument.comparison import ModelComparison
from taskpilot_instrument.errors import NotInstrumentedError
from taskpilot_instrument.golden import GoldenSignals
from taskpilot_instrument.health import Health
from taskpilot_instrument.runtime import Instrumentation, lock, running
from taskpilot_instrument.settings import CaptureContent, LogTarget, Settings

if TYPE_CHECKING:
    from taskpilot_instrument._experiment_report import ExperimentReport
    from taskpilot_instrument.budgets import Budget, BudgetStatus
    from taskpilot_instrument.feedback import Receipt
    from taskpilot_instrument.workflow import WorkflowRun


_log = logging.getLogger("taskpilot_instrument")
_instrumentation: Instrumentation | None = None


def instrument(
    *,
    service_name: str | None = None,
    capture_content: CaptureContent | bool | None = None,
    metrics_port: int | None = None,
    logs: LogTarget | None = None,
    settings: Settings | None = None,
    **more: Any,
) -> Instrumentation:
    """Observe everything from now on: the one call.

    Calling it again while it is in force returns the same handle and changes nothing; a warning names the
    settings that would have been other ones.

    :param service_name: name of the service on spans and log lines; ``taskpilot`` by default.
    :param capture_content: write message content to spans, events and log lines, redacted and cut.
    :param metrics_port: serve ``/metrics`` on this port of 127.0.0.1.
    :param logs: where JSON log lines go: ``stderr`` (default), ``stdout``, ``off``, a path, a stream, a logger.
    :param settings: settings to build on, in place of the environment.
    :param more: any other setting by its name; :meth:`Settings.table` lists them.
    :raises ConfigurationError: for an unknown setting or a value that is not valid.
    """
    global _instrumentation  # noqa: PLW0603 - see activate(): one process has one
    given = dict(more, service_name=service_name, capture_content=capture_content, metrics_port=metrics_port, logs=logs)
    resolved = Settings.resolve(given, settings=settings)
    with lock:
        if _instrumentation is None:
            fresh = Instrumentation(resolved, when_undone=_forget)
            if resolved.enabled:
                fresh.start()
            _instrumentation = fresh
        elif any(value is not None for value in given.values()):
            _warn_of_ignored(_instrumentation.settings, resolved)
        return _instrumentation


def _forget() -> None:
    global _instrumentation  # noqa: PLW0603 - see activate(): one process has one
    _instrumentation = None


def _warn_of_ignored(in_force: Settings, asked: Settings) -> None:
    ignored = [each.name for each in fields(Settings) if getattr(in_force, each.name) != getattr(asked, each.name)]
    if ignored:
        _log.warning(
            "taskpilot_instrument: instrument() is in force already, so this call changes nothing; ignored: %s. "
            "Call uninstrument() first to begin anew.",
            ", ".join(ignored),
        )


def instrumentation() -> Instrumentation:
    """Return the handle of the instrumentation in force: the innermost, where a test captures inside an application.

    :raises NotInstrumentedError: before ``instrument()`` and after ``uninstrument()``.
    """
    found = _in_force()
    if found is None:
        raise NotInstrumentedError("nothing is observed yet: call taskpilot_instrument.instrument() first")
    return found


def _in_force() -> Instrumentation | None:
    with lock:
        return running() or _instrumentation


def uninstrument() -> None:
    """Undo ``instrument()``; do nothing where it is not in force."""
    found = _instrumentation
    if found is not None:
        found.uninstrument()


def health() -> Health:
    """Report how well the instrumentation itself is doing; also before ``instrument()``."""
    found = _in_force()
    return found.health() if found is not None else Health(active=False)


def golden_signals(
    *,
    window: str | None = None,
    workflow: str | None = None,
    agent: str | None = None,
    model: str | None = None,
    source: str | None = None,
) -> GoldenSignals:
    """Compute the five golden signals; see :meth:`Instrumentation.golden_signals`.

    With ``source`` it needs no ``instrument()``; token and time limit are then those of the environment.

    :raises NotInstrumentedError: before ``instrument()``, without ``source``.
    :raises ConfigurationError: for a window that cannot be read or is not kept, or a source that is none.
    :raises SourceError: where the source has no answer in time, or none that is whole.
    """
    if source is not None and _in_force() is None:
        return ask(source, Settings(), window=window, workflow=workflow, agent=agent, model=model)
    return instrumentation().golden_signals(window=window, workflow=workflow, agent=agent, model=model, source=source)


def compare_models(
    *, window: str | None = None, agent: str | None = None, reprice: Iterable[str] = ()
) -> ModelComparison:
    """Compare the models that were called; see :meth:`Instrumentation.compare_models`.

    :raises NotInstrumentedError: before ``instrument()``.
    :raises ConfigurationError: for a window that cannot be read or is not kept, or a model without a price.
    """
    return instrumentation().compare_models(window=window, agent=agent, reprice=reprice)


def experiment_report(
    name: str, *, window: str | None = None, margin_points: float = 2.0, margin_percent: float = 5.0
) -> "ExperimentReport":
    """Report whether the variants of an experiment differ; see :meth:`Instrumentation.experiment_report`.

    :raises NotInstrumentedError: before ``instrument()``.
    """
    return instrumentation().experiment_report(
        name, window=window, margin_points=margin_points, margin_percent=margin_percent
    )


def record_feedback(correct: bool, **about: Any) -> "Receipt":  # noqa: FBT001 - a verdict is a yes or no
    """Record whether a user found a result correct; see :meth:`Instrumentation.record_feedback`.

    :raises NotInstrumentedError: before ``instrument()``.
    """
    return instrumentation().record_feedback(correct, **about)


def feedback_token(run: "WorkflowRun | str", *, lifetime_s: float = 30 * 86_400) -> str:
    """Return a token with which a web page can vote on one run; see :meth:`Instrumentation.feedback_token`.

    :raises NotInstrumentedError: before ``instrument()``.
    """
    return instrumentation().feedback_token(run, lifetime_s=lifetime_s)


def add_budget(budget: "Budget") -> None:
    """Hold further calls against one more budget; see :meth:`Instrumentation.add_budget`.

    :raises NotInstrumentedError: before ``instrument()``.
    """
    instrumentation().add_budget(budget)


def budget_status() -> "tuple[BudgetStatus, ...]":
    """Return how every budget stands; see :meth:`Instrumentation.budgets`.

    :raises NotInstrumentedError: before ``instrument()``.
    """
    return instrumentation().budgets()
