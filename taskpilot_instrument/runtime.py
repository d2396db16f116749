"""The handle: what ``instrument()`` wires together, and its undo."""

import atexit
import logging
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from decimal import Decimal
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from taskpilot_instrument import _forks, _guard, golden, pricing
from taskpilot_instrument._answers import Answers
from taskpilot_instrument._assembly import add_alerts, add_budgets, assemble
from taskpilot_instrument._backends import MetricsServer, capture, meter_provider, price_book, registry
from taskpilot_instrument._bills import Bills
from taskpilot_instrument._collector import finish_orphans
from taskpilot_instrument._delivery import Provider, flush_in_time
from taskpilot_instrument._operation import leave_home
from taskpilot_instrument._recorder import Home, Recorder, activate, active
from taskpilot_instrument._streams import abandon_open_streams
from taskpilot_instrument._version import __version__
from taskpilot_instrument._voting import Voting
from taskpilot_instrument.health import Health, tally
from taskpilot_instrument.redaction import redactor
from taskpilot_instrument.semconv import L_LABEL, M_LABEL_OVERFLOW
from taskpilot_instrument.settings import Settings
from taskpilot_instrument.sinks.logs import LogSink
from taskpilot_instrument.sinks.metrics import MetricsBackend
from taskpilot_instrument.sinks.traces import TraceSink
from taskpilot_instrument.typing import Clock, Gate, Sink

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

    from taskpilot_instrument.alerts import Alert, Callback
    from taskpilot_instrument.budgets import Budget
    from taskpilot_instrument.integrations._patches import Switch
    from taskpilot_instrument.sinks.ring import Ring

_log = logging.getLogger("taskpilot_instrument")
#: How long the end of a child process waits for its spans.
_LAST_S: Final = 5.0
#: Held while observation is switched on or off.
lock = _forks.rlock()
#: Those in force, the latest last: the testing kit's comes on top of the application's.
_running: "list[Instrumentation]" = []


class Instrumentation(Answers, Voting):
    """What ``instrument()`` set up: the handle to ask, flush and undo it.

    As a context manager it is undone when the block is left.
    """

    def __init__(self, settings: Settings, *, when_undone: Callable[[], None] = lambda: None) -> None:
        self.settings = settings
        self._clock = settings.clock or Clock(time.perf_counter_ns, time.time_ns)
        self._patches: list[Switch] = []
        self._frameworks = _frameworks(settings)
        self._server: MetricsServer | None = None
        Voting.__init__(self)
        self._ring: Ring | None = None
        self._seen_before, self._swallowed_before = tally.calls_seen(), _guard.swallowed()
        with ExitStack() as opened:  # where a later part cannot be had, the earlier ones are closed again
            opened.callback(when_undone)  # last of all, and once
            self._provider = Provider(settings)
            opened.callback(self._provider.close)
            self.metrics = MetricsBackend(
                registry(settings), clock=self._clock, label_cap=settings.label_cap, aliases=settings.aliases
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
                self._server = MetricsServer(settings.metrics_port, settings.metrics_address, self.metrics)
                opened.callback(self._server.close)
            traces = TraceSink(
                self._provider.tracer(),
                content_on_spans=settings.content_on_spans,
                content_on_events=settings.content_on_events,
                redact=settings.redact,
            )
            self._meter_provider = meter_provider(settings)
            prices = price_book(settings)
            self.parts = assemble(settings, self._clock, prices, self.metrics, opened)
            sinks: tuple[Sink, ...] = (
                *self.parts.watchers, self.metrics, traces, self.logs, *self._otel_metrics(), *self.parts.sinks,
            )  # fmt: skip
            self._recorder = Recorder(
                traces,
                sinks,
                prices,
                self._clock,
                capture(settings),
                settings.include_usage,
                frozenset(settings.include_usage_except),
                self.parts.gates,
                self.parts.controls,
                self.parts.listeners,
                Bills(),
                Home(),
            )
            self._opened = opened.pop_all()
        _forks.tell(self)

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
        with lock:
            _running.append(self)
            activate(self._recorder)
            self._patches = _apply_patches(self.settings, self._frameworks)
            atexit.register(self._at_exit)
        process: Any = sys.modules.get("multiprocessing.process")
        if process is not None and process.parent_process() is not None:
            _deliver_at_end(self)

    def after_fork(self) -> None:
        """Go on in a forked process: what is under way or counted here is the parent's."""
        before = self._recorder
        before.home.is_left = True
        self._recorder = replace(before, home=Home())
        if active() is before:
            activate(self._recorder)
        leave_home()
        self._seen_before, self._swallowed_before = tally.calls_seen(), _guard.swallowed()
        util: Any = sys.modules.get("multiprocessing.util")
        if util is not None:  # it forgets what is to be done at the end, and then asks here again
            util.register_after_fork(self, _deliver_at_end)

    def uninstrument(self) -> None:
        """Take away everything that ``instrument()`` added: patches, metric families, servers, streams.

        What was recorded can still be read from this handle. Decorated functions then run as if they
        were not decorated.
        """
        with lock:
            if self in _running:
                self._stop()
            self._opened.close()

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
        """Send what is waiting, and write to the ledger what is to be in it; return whether all of it went in time.

        :param timeout_s: how long it may take, in seconds.
        """
        finish_orphans()
        if self.parts.alerts is not None:
            self.parts.alerts.flush()
        deadline = time.monotonic() + timeout_s
        # Each is tried: what cannot be delivered is no reason to keep the rest.
        written = self.parts.history is None or self.parts.history.flush()
        delivered = self._provider.flush(timeout_s)
        flush_metrics = getattr(self._meter_provider, "force_flush", None)
        measured = flush_metrics is None or flush_in_time(flush_metrics, max(0.0, deadline - time.monotonic()))
        return written and delivered and measured

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
        push(self.metrics.scraped, gateway, job, grouping_key, timeout_s)

    def _at_exit(self) -> None:
        abandon_open_streams(self._recorder)
        finish_orphans()
        if self.parts.spending is not None:
            self.parts.spending.close()
        if self.parts.alerts is not None:
            self.parts.alerts.flush()
        if self.parts.history is not None:
            self.parts.history.flush()

    def deliver(self) -> None:
        """Send what is waiting at the end of a process of ``multiprocessing``, which runs no ``atexit`` functions."""
        self._at_exit()
        self._provider.flush(_LAST_S)

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
        with lock:
            if self in _running:
                add_alerts(self.parts, (alert,), self._clock, self.metrics, self._opened)
        return alert

    # --- answers ----------------------------------------------------------------------------------

    @property
    def metrics_url(self) -> str | None:
        """Where ``/metrics`` is served; None where it is not."""
        port = self._server.port if self._server is not None else None
        if port is None:
            return None
        address = self.settings.metrics_address
        return f"http://{f'[{address}]' if ':' in address else address}:{port}/metrics"

    @property
    def tracer_provider(self) -> "TracerProvider":
        """The provider that spans go to; give it to ``trace.set_tracer_provider`` to add spans of your own."""
        return self._provider.provider

    def add_budget(self, budget: "Budget") -> None:
        """Hold further calls against one more budget.

        :raises ConfigurationError: where it is none, or its name is taken.
        :raises LedgerError: where the ledger cannot be opened.
        """
        with lock:
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
        self._recorder = replace(before, gates=before.gates + gates, sinks=(*watchers, *before.sinks, *sinks))
        if active() is before:
            activate(self._recorder)

    def ring(self) -> "Ring":
        """Return the latest runs and events in memory; they are kept from the first call on."""
        with lock:
            if self._ring is None:
                from taskpilot_instrument.sinks.ring import Ring

                self._ring = Ring(redactor(self.settings.redact), self._clock.epoch_ns)
                self._extend(sinks=(self._ring,))
            return self._ring

    def health(self) -> Health:
        """Report how well the instrumentation itself is doing."""
        finish_orphans()
        before = self._swallowed_before
        errors = {where: n - before.get(where, 0) for where, n in _guard.swallowed().items()}
        signals = golden.compute(self.metrics, own=True)
        # A call is seen before it is asked whether it may go.
        refused = signals.sample.blocked_calls or 0
        exported, dropped, pending = self._provider.delivery()
        return Health(
            active=self in _running,
            patched=tuple(patch.target for patch in self._patches if patch.found and self in _running),
            missing=tuple(patch.target for patch in self._patches if not patch.found),
            errors_swallowed={where: n for where, n in errors.items() if n},
            calls_seen=tally.calls_seen() - self._seen_before - refused,
            calls_recorded=(signals.sample.calls or 0) - self.metrics.tracked,
            calls_blocked=refused,
            cost_coverage=signals.cost_coverage,
            label_overflow=_label_overflow(self.metrics),
            spans_go_to=self._provider.destination,
            spans_exported=exported,
            spans_dropped=dropped,
            spans_pending=pending,
        )


def _deliver_at_end(handle: Instrumentation) -> None:
    """Have a process of ``multiprocessing`` deliver at its end."""
    from multiprocessing.util import Finalize

    Finalize(None, handle.deliver, exitpriority=10)


def _label_overflow(metrics: MetricsBackend) -> dict[str, int]:
    return {
        sample.labels[L_LABEL]: int(sample.value)
        for family in metrics.families.collect()
        for sample in family.samples
        if sample.name == M_LABEL_OVERFLOW
    }


def running() -> Instrumentation | None:
    """Return the innermost that runs."""
    with lock:
        return _running[-1] if _running else None


def _apply_patches(settings: Settings, frameworks: "list[Switch]") -> "list[Switch]":
    # Imported here: the library works, and imports fast, where openai is not installed.
    from taskpilot_instrument.patches import _openai_sockets, openai, threads

    patches: list[Switch] = []
    if settings.patch_openai:
        with suppress(ImportError):
            patches += openai.patches()
            if settings.observe_sockets:
                patches += _openai_sockets.patches()
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
