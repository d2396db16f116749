"""``instrument()``: the one call that wires everything together, and its undo."""

import atexit
import functools
import logging
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import fields
from decimal import Decimal
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from taskpilot_instrument import _guard, comparison, golden, pricing
from taskpilot_instrument._assembly import add_alerts, add_budgets, assemble
from taskpilot_instrument._bills import Bills
from taskpilot_instrument._delivery import Provider, flush_in_time
from taskpilot_instrument._operation import Recorder, activate, active, finish_orphans
from taskpilot_instrument._records import Event
from taskpilot_instrument._streams import abandon_open_streams
from taskpilot_instrument._version import __version__
from taskpilot_instrument._waste import Waste
from taskpilot_instrument.comparison import ModelComparison
from taskpilot_instrument.errors import ConfigurationError, NotInstrumentedError
from taskpilot_instrument.golden import GoldenSignals
from taskpilot_instrument.health import Health, tally
from taskpilot_instrument.pricing import BOOK, MODEL_PRICING, PriceBook
from taskpilot_instrument.redaction import capture_text, redactor
from taskpilot_instrument.semconv import L_LABEL, M_LABEL_OVERFLOW
from taskpilot_instrument.settings import CaptureContent, LogTarget, Settings
from taskpilot_instrument.sinks.logs import LogSink
from taskpilot_instrument.sinks.metrics import MetricsBackend
from taskpilot_instrument.sinks.traces import TraceSink
from taskpilot_instrument.typing import Capture, Clock, Gate, Sink

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

    from taskpilot_instrument._experiment_report import ExperimentReport
    from taskpilot_instrument.alerts import Alert, Callback
    from taskpilot_instrument.budgets import Budget, BudgetStatus
    from taskpilot_instrument.feedback import Feedback, Receipt
    from taskpilot_instrument.integrations._patches import Switch
    from taskpilot_instrument.sinks.ring import Ring
    from taskpilot_instrument.workflow import WorkflowRun

_log = logging.getLogger("taskpilot_instrument")
_lock = threading.RLock()
_instrumentation: "Instrumentation | None" = None
#: Those in force, the latest last: the testing kit's comes on top of the application's.
_running: "list[Instrumentation]" = []


class Instrumentation:
    """What ``instrument()`` set up: the handle to ask, flush and undo it.

    As a context manager it is undone when the block is left.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._clock = settings.clock or Clock(time.perf_counter_ns, time.time_ns)
        self._patches: list[Switch] = []
        self._frameworks = _frameworks(settings)
        self._server: Any = None
        self._votes: Feedback | None = None
        self._ring: Ring | None = None
        self._seen_before, self._swallowed_before = tally.calls_seen(), _guard.swallowed()
        with ExitStack() as opened:  # where a later part cannot be had, the earlier ones are closed again
            self._provider = Provider(settings)
            opened.callback(self._provider.close)
            self.metrics = MetricsBackend(
                _registry(settings), clock=self._clock, label_cap=settings.label_cap, aliases=settings.aliases
            )
            opened.callback(self.metrics.close)
            self.logs = LogSink(
                settings.logs if settings.enabled else "off",
                profile=settings.log_profile,
                service_name=settings.service_name,
                level=settings.log_level,
                clock=self._clock,
                redact=settings.redact,
                content=settings.content_on_events,
            )
            opened.callback(self.logs.close)
            if settings.enabled and settings.metrics_port is not None:
                self._server = _serve_metrics(settings.metrics_port, settings.metrics_address, self.metrics.registry)
                opened.callback(self._server.server_close)
                opened.callback(self._server.shutdown)
            traces = TraceSink(
                self._provider.tracer(),
                content_on_spans=settings.content_on_spans,
                content_on_events=settings.content_on_events,
                redact=settings.redact,
            )
            self._meter_provider = _meter_provider(settings)
            prices = _price_book(settings)
            self.parts = assemble(settings, self._clock, prices, self.metrics, opened)
            sinks: tuple[Sink, ...] = (
                *self.parts.watchers, self.metrics, traces, self.logs, *self._otel_metrics(), *self.parts.sinks,
            )  # fmt: skip
            self._recorder = Recorder(
                traces,
                sinks,
                prices,
                self._clock,
                _capture(settings),
                settings.include_usage,
                frozenset(settings.include_usage_except),
                self.parts.gates,
                self.parts.controls,
                self.parts.listeners,
                Bills(),
            )
            self._opened = opened.pop_all()

    def _otel_metrics(self) -> tuple[Sink, ...]:
        if self._meter_provider is None:
            return ()
        from taskpilot_instrument.sinks.otel_metrics import OtelMetricsSink

        cap, overflow = self.settings.label_cap, self.metrics.families.count_overflow
        return (OtelMetricsSink(self._meter_provider, __version__, label_cap=cap, overflow=overflow),)

    # --- beginning and end ------------------------------------------------------------------------

    def start(self) -> None:
        """Patch, and make this the instrumentation under which new operations start."""
        pricing.warm()  # else the first call would wait for the price table
        with _lock:
            _running.append(self)
            activate(self._recorder)
            self._patches = _apply_patches(self.settings, self._frameworks)
            atexit.register(self._at_exit)

    def uninstrument(self) -> None:
        """Take away everything that ``instrument()`` added: patches, metric families, servers, streams.

        What was recorded can still be read from this handle. Decorated functions then run as if they
        were not decorated.
        """
        with _lock:
            if self in _running:
                self._stop()
            self._opened.close()
            _forget(self)

    def _stop(self) -> None:
        atexit.unregister(self._at_exit)
        for patch in self._patches:
            patch.undo()
        abandon_open_streams(self._recorder)
        finish_orphans()
        _running.remove(self)
        activate(_running[-1]._recorder if _running else None)  # noqa: SLF001 - one of us
        for patch in (patch for other in _running for patch in other._patches if patch.found):  # noqa: SLF001
            patch.apply()  # they had shared ours

    def shutdown(self, timeout_s: float = 30.0) -> bool:
        """Flush, then undo; return whether everything was delivered.

        :param timeout_s: how long the flush may take, in seconds.
        """
        delivered = self.force_flush(timeout_s)
        self.uninstrument()
        return delivered

    def force_flush(self, timeout_s: float = 30.0) -> bool:
        """Send what is waiting; return whether all of it was sent in time.

        :param timeout_s: how long it may take, in seconds.
        """
        finish_orphans()
        if self.parts.alerts is not None:
            self.parts.alerts.flush()
        flush_metrics = getattr(self._meter_provider, "force_flush", None)
        if flush_metrics is None:
            return self._provider.flush(timeout_s)
        deadline = time.monotonic() + timeout_s
        # Both are tried: spans that cannot be delivered are no reason to keep the metrics.
        delivered = self._provider.flush(timeout_s)
        return flush_in_time(flush_metrics, max(0.0, deadline - time.monotonic())) and delivered

    def push_metrics(
        self, gateway: str, *, job: str, grouping_key: Mapping[str, str] | None = None, timeout_s: float = 30.0
    ) -> None:
        """Push the metrics to a Prometheus Pushgateway; for batch jobs, which end before they are scraped.

        Families that the gateway holds under the same job and grouping key are replaced, others stay.

        :param gateway: its URL, such as ``http://127.0.0.1:9091``, with user and password in it where it asks for them.
        :param job: value of the ``job`` label.
        :param grouping_key: further labels that tell this job's metrics from others', such as ``instance``.
        :param timeout_s: how long to wait for the gateway, in seconds.
        :raises ConfigurationError: for an argument that is not valid.
        :raises DeliveryError: where the gateway cannot be reached or refuses.
        """
        from taskpilot_instrument.sinks._pushgateway import push

        finish_orphans()
        push(self.metrics.registry, gateway, job, grouping_key, timeout_s)

    def _at_exit(self) -> None:
        abandon_open_streams(self._recorder)
        finish_orphans()
        if self.parts.spending is not None:
            self.parts.spending.close()
        if self.parts.alerts is not None:
            self.parts.alerts.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shutdown()

    def on_alert(
        self,
        callback: "Callback",
        signal: str,
        *,
        above: float | Decimal | None = None,
        below: float | Decimal | None = None,
        window: str = "5m",
        cooldown_s: float = 300.0,
        min_sample: int = 10,
        name: str | None = None,
    ) -> "Alert":
        """Call a function from now on when a signal is beyond a threshold; see :class:`Alert`, which this makes.

        :raises ConfigurationError: for an argument that is not valid.
        """
        from taskpilot_instrument.alerts import Alert

        alert = Alert(callback, signal, above, below, window, cooldown_s, min_sample, name)
        with _lock:
            if self in _running:
                add_alerts(self.parts, (alert,), self._clock, self.metrics, self._opened)
        return alert

    # --- answers ----------------------------------------------------------------------------------

    @property
    def metrics_url(self) -> str | None:
        """Where ``/metrics`` is served; None where it is not."""
        if self._server is None:
            return None
        address = self.settings.metrics_address
        return f"http://{f'[{address}]' if ':' in address else address}:{self._server.server_port}/metrics"

    @property
    def tracer_provider(self) -> "TracerProvider":
        """The provider that spans go to; give it to ``trace.set_tracer_provider`` to add spans of your own."""
        return self._provider.provider

    def golden_signals(
        self,
        *,
        window: str | None = None,
        workflow: str | None = None,
        agent: str | None = None,
        model: str | None = None,
    ) -> GoldenSignals:
        """Compute the five golden signals.

        :param window: how far back, such as ``15m``, ``1h`` or ``24h``; None means since the start.
        :param workflow: only this workflow's runs.
        :param agent: only this agent's runs.
        :param model: only the calls of this model.
        :raises ConfigurationError: for a window that cannot be read or is not kept.
        """
        finish_orphans()
        return golden.compute(self.metrics, window=window, workflow=workflow, agent=agent, model=model)

    def compare_models(self, *, window: str | None = None, agent: str | None = None) -> ModelComparison:
        """Compare the models that were called: success, speed, cost and correctness, with 95 % intervals.

        :param window: how far back, such as ``15m``, ``1h`` or ``24h``; None means since the start.
        :param agent: only this agent's calls and runs.
        :raises ConfigurationError: for a window that cannot be read or is not kept.
        """
        finish_orphans()
        return comparison.compare(self.metrics, window=window, agent=agent)

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

    def record_feedback(
        self,
        correct: bool,  # noqa: FBT001 - a verdict is a yes or no
        *,
        request_id: str | None = None,
        trace_id: str | None = None,
        user: str | None = None,
        comment: str | None = None,
        score: float | None = None,
        id: str | None = None,  # noqa: A002 - the field's own word
    ) -> "Receipt":
        """Record whether a user found a result correct, also hours later and in another process.

        It counts under the agent and workflow of the run, which is looked up here and in the ledger (set ``ledger`` so
        that processes share it), and appears in the run's trace. A vote with the same id replaces the one before;
        a replay changes nothing. A run that nobody knows is accepted, and counts without an agent.

        :param correct: whether the result was right.
        :param request_id: of the run; or its ``trace_id``, 32 hexadecimal digits.
        :param user: who votes; with the request id the default ``id``, so that each user has one vote on a run.
        :param comment: kept in the ledger; on a span only where content is captured on events.
        :param score: any finite number; kept beside the verdict.
        :param id: names the vote.
        :raises ConfigurationError: for an argument that is not valid.
        :raises LedgerError: where the ledger cannot be reached; nothing was recorded then.
        """
        finish_orphans()
        return self._feedback().record(
            correct, request_id=request_id, trace_id=trace_id, user=user, comment=comment, score=score, id=id
        )

    def _feedback(self) -> "Feedback":
        from taskpilot_instrument._history import History
        from taskpilot_instrument.feedback import Feedback
        from taskpilot_instrument.sinks.ledger import open_ledger

        with _lock:
            if self._votes is None:
                ledger = self.parts.ledger or open_ledger("memory")
                history = self.parts.history or History(None, self._clock)
                self._votes = Feedback(ledger, history, self._clock, self._note)
            return self._votes

    def _note(self, event: Event) -> None:
        self._recorder.note(event)  # the recorder of this moment: it may have got a gate

    def feedback_token(self, run: "WorkflowRun | str", *, lifetime_s: float = 30 * 86_400) -> str:
        """Return a token with which a web page can vote on one run, without any other credential.

        :param run: the run, or its request id.
        :param lifetime_s: seconds until it expires; 30 days by default.
        :raises ConfigurationError: without the setting ``feedback_key``.
        """
        from taskpilot_instrument.feedback import make_token

        request_id = run if isinstance(run, str) else run.request_id
        return make_token(self._feedback_key(), request_id, lifetime_s=lifetime_s)

    def record_token_feedback(self, token: str, correct: bool, **more: Any) -> "Receipt":  # noqa: FBT001 - as above
        """Record the verdict of whoever bears a token; see :meth:`record_feedback`.

        :raises ConfigurationError: for a token that is not ours, was changed or has expired.
        """
        from taskpilot_instrument.feedback import read_token

        return self.record_feedback(correct, request_id=read_token(self._feedback_key(), token), **more)

    def _feedback_key(self) -> str:
        if self.settings.feedback_key is None:
            raise ConfigurationError(
                "feedback tokens need a secret: set feedback_key= or TASKPILOT_FEEDBACK_KEY, the same everywhere"
            )
        return self.settings.feedback_key

    def add_budget(self, budget: "Budget") -> None:
        """Hold further calls against one more budget.

        :raises ConfigurationError: where it is none, or its name is taken.
        :raises LedgerError: where the ledger cannot be opened.
        """
        with _lock:
            if self not in _running:
                return
            if self.parts.spending is None:
                spending = add_budgets(
                    self.parts, self.settings, self._clock, self._recorder.prices, self.metrics, self._opened
                )
                self._extend(gates=(spending,), watchers=(spending,))
            assert self.parts.spending is not None  # noqa: S101 - add_budgets() has put it there
            self.parts.spending.add(budget)

    def _extend(
        self, *, gates: tuple[Gate, ...] = (), watchers: tuple[Sink, ...] = (), sinks: tuple[Sink, ...] = ()
    ) -> None:
        """Have further parts from the next operation on."""
        before = self._recorder
        self._recorder = before._replace(gates=before.gates + gates, sinks=(*watchers, *before.sinks, *sinks))
        if active() is before:
            activate(self._recorder)

    def ring(self) -> "Ring":
        """Return the latest runs and events in memory; they are kept from the first call on."""
        with _lock:
            if self._ring is None:
                from taskpilot_instrument.sinks.ring import Ring

                self._ring = Ring(redactor(self.settings.redact), self._clock.epoch_ns)
                self._extend(sinks=(self._ring,))
            return self._ring

    def budgets(self) -> "tuple[BudgetStatus, ...]":
        """Return how every budget stands in its current window; of one with ``*`` each account that was charged.

        :raises LedgerError: where the ledger cannot be reached.
        """
        finish_orphans()
        return self.parts.spending.status() if self.parts.spending is not None else ()

    def health(self) -> Health:
        """Report how well the instrumentation itself is doing."""
        finish_orphans()
        before = self._swallowed_before
        errors = {where: n - before.get(where, 0) for where, n in _guard.swallowed().items()}
        signals = golden.compute(self.metrics)
        exported, dropped, pending = self._provider.delivery()
        return Health(
            active=self in _running,
            patched=tuple(patch.target for patch in self._patches if patch.found and self in _running),
            missing=tuple(patch.target for patch in self._patches if not patch.found),
            errors_swallowed={where: n for where, n in errors.items() if n},
            calls_seen=tally.calls_seen() - self._seen_before,
            calls_recorded=signals.sample.calls - self.metrics.tracked,
            cost_coverage=signals.cost_coverage,
            label_overflow=_label_overflow(self.metrics),
            spans_go_to=self._provider.destination,
            spans_exported=exported,
            spans_dropped=dropped,
            spans_pending=pending,
        )


def _meter_provider(settings: Settings) -> "MeterProvider | None":
    """Return the meter provider in use; None where there is none that anybody reads."""
    if settings.sdk_disabled or not settings.enabled:
        return None
    from opentelemetry.metrics import get_meter_provider

    from taskpilot_instrument.sinks.otel_metrics import is_real

    provider = settings.meter_provider or get_meter_provider()
    return provider if is_real(provider) else None


def _registry(settings: Settings) -> Any:
    if settings.registry is not None or not settings.enabled:
        return settings.registry if settings.enabled else None
    from prometheus_client import REGISTRY

    return REGISTRY


def _label_overflow(metrics: MetricsBackend) -> dict[str, int]:
    return {
        sample.labels[L_LABEL]: int(sample.value)
        for family in metrics.families.collect()
        for sample in family.samples
        if sample.name == M_LABEL_OVERFLOW
    }


def _price_book(settings: Settings) -> PriceBook:
    if settings.pricing is None and not settings.deployments:
        return BOOK
    prices = None if settings.pricing is None else {**MODEL_PRICING, **settings.pricing}
    return PriceBook(prices, deployments=settings.deployments)


def _capture(settings: Settings) -> Capture | None:
    if not (settings.content_on_spans or settings.content_on_events):
        return None
    return functools.partial(capture_text, limit=settings.content_limit, redact=redactor(settings.redact))


def _serve_metrics(port: int, address: str, registry: Any) -> Any:
    from prometheus_client import start_http_server

    try:
        server, _thread = start_http_server(port, address, registry)
    except OSError as error:
        raise ConfigurationError(
            f"/metrics cannot be served on {address}:{port} ({error}); choose another metrics_port"
        ) from error
    return server


def _apply_patches(settings: Settings, frameworks: "list[Switch]") -> "list[Switch]":
    # Imported here: the library works, and imports fast, where openai is not installed.
    from taskpilot_instrument.patches import openai, threads

    patches: list[Switch] = []
    if settings.patch_openai:
        with suppress(ImportError):
            patches += openai.patches()
    if settings.propagate_threads:
        patches += threads.patches()
    patches += frameworks
    for patch in patches:
        patch.apply()
    return patches


def _frameworks(settings: Settings) -> "list[Switch]":
    if not settings.frameworks or not settings.enabled:
        return []
    from taskpilot_instrument.integrations._frameworks import switches

    return switches(settings.frameworks)


def _forget(instrumentation: Instrumentation) -> None:
    global _instrumentation  # noqa: PLW0603 - see activate(): one process has one
    if _instrumentation is instrumentation:
        _instrumentation = None


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
    with _lock:
        if _instrumentation is None:
            fresh = Instrumentation(resolved)
            if resolved.enabled:
                fresh.start()
            _instrumentation = fresh
        elif any(value is not None for value in given.values()):
            _warn_of_ignored(_instrumentation.settings, resolved)
        return _instrumentation


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
    with _lock:
        return _running[-1] if _running else _instrumentation


def uninstrument() -> None:
    """Undo ``instrument()``; do nothing where it is not in force."""
    found = _instrumentation
    if found is not None:
        found.uninstrument()


def golden_signals(
    *,
    window: str | None = None,
    workflow: str | None = None,
    agent: str | None = None,
    model: str | None = None,
) -> GoldenSignals:
    """Compute the five golden signals; see :meth:`Instrumentation.golden_signals`.

    :raises NotInstrumentedError: before ``instrument()``.
    :raises ConfigurationError: for a window that cannot be read or is not kept.
    """
    return instrumentation().golden_signals(window=window, workflow=workflow, agent=agent, model=model)


def compare_models(*, window: str | None = None, agent: str | None = None) -> ModelComparison:
    """Compare the models that were called; see :meth:`Instrumentation.compare_models`.

    :raises NotInstrumentedError: before ``instrument()``.
    :raises ConfigurationError: for a window that cannot be read or is not kept.
    """
    return instrumentation().compare_models(window=window, agent=agent)


def experiment_report(
    name: str, *, window: str | None = None, margin_points: float = 2.0, margin_percent: float = 5.0
) -> "ExperimentReport":
    """Report whether the variants of an experiment differ; see :meth:`Instrumentation.experiment_report`.

    :raises NotInstrumentedError: before ``instrument()``.
    """
    return instrumentation().experiment_report(
        name, window=window, margin_points=margin_points, margin_percent=margin_percent
    )


def health() -> Health:
    """Report how well the instrumentation itself is doing; also before ``instrument()``."""
    found = _in_force()
    return found.health() if found is not None else Health(active=False)


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
