"""Look after alerts in a thread of their own: no callback ever runs in the thread of an agent."""

import inspect
import threading
import time
from collections.abc import Iterator
from contextvars import Context
from datetime import UTC, datetime
from typing import Final

from taskpilot_instrument import _forks, golden, semconv
from taskpilot_instrument._guard import swallow
from taskpilot_instrument._rates import SECOND_NS, Sliding
from taskpilot_instrument._records import Event
from taskpilot_instrument.alerts import Alert, AlertFired
from taskpilot_instrument.golden import GoldenSignals
from taskpilot_instrument.runaway import RULE as RUNAWAY
from taskpilot_instrument.semconv import Kind
from taskpilot_instrument.sinks._recording import is_violation
from taskpilot_instrument.sinks.metrics import MetricsBackend
from taskpilot_instrument.typing import Clock

#: How often measured signals are looked at.
_EVERY_S: Final = 5.0
#: How long the end waits for a callback that runs.
_LAST_S: Final = 2.0
_SIGNAL_OF: Final = {
    semconv.E_TOKEN_LIMIT_EXCEEDED: "token_limit",
    semconv.E_COST_THRESHOLD_EXCEEDED: "budget",
    semconv.E_BUDGET_BLOCKED: "budget",
    semconv.E_GUARDRAIL_BLOCKED: "guardrail",
}


class _Watched:
    """One alert, and what is known of it."""

    __slots__ = ("alert", "fired_ns", "happened", "is_due", "last", "window_s")

    def __init__(self, alert: Alert) -> None:
        self.alert = alert
        self.window_s = golden.parse_window(alert.window)
        self.fired_ns: int | None = None
        #: Of a counted signal: the events of the window, and what the latest said.
        self.happened = Sliding(self.window_s * SECOND_NS)
        self.last = ""
        #: True where one has happened since it was last looked at.
        self.is_due = False


class Alerts:
    """Hear of events, look at the metrics, and call back.

    The thread begins with the first alert and ends with :meth:`close`; a forked process has one of its own.

    :param metrics: where measured signals are read.
    :param clock: measures windows and cool-downs.
    """

    def __init__(self, metrics: MetricsBackend, clock: Clock) -> None:
        self._metrics = metrics
        self._clock = clock
        self._watched: list[_Watched] = []
        self._closed = False
        self._begin()
        _forks.tell(self)

    def _begin(self) -> None:
        """Make what a thread and its callers share; anew in a forked process, where nobody holds the old."""
        self._changed = threading.Condition()  # its lock is re-entrant: a signal handler may note something here
        self._thread: threading.Thread | None = None
        self._asked = 0
        self._answered = 0

    def add(self, alert: Alert) -> None:
        """Look after one more alert."""
        with self._changed:
            self._watched.append(_Watched(alert))
        self._start()

    # --- from the threads of agents ---------------------------------------------------------------

    def noted(self, event: Event, /) -> None:
        """Count an event for the alerts that it concerns."""
        if is_violation(event):
            signals = {"policy", "runaway"} if event.rule == RUNAWAY else {"policy"}
        elif event.name in _SIGNAL_OF:
            signals = {_SIGNAL_OF[event.name]}
        else:
            return
        # The message of a decision quotes what was said where content is captured.
        is_decision = event.category == semconv.CATEGORY_DECISION
        said = f"{event.rule}, {event.decision}" if is_decision else event.message
        now_ns = self._clock.monotonic_ns()
        with self._changed:
            for watched in self._watched:
                if watched.alert.signal in signals:
                    watched.happened.add(now_ns, 1)
                    watched.last = said
                    watched.is_due = True
            self._changed.notify_all()

    # --- beginning and end ------------------------------------------------------------------------

    def _start(self) -> None:
        with self._changed:
            if self._closed or (self._thread is not None and self._thread.is_alive()):
                self._changed.notify_all()
                return
            self._thread = threading.Thread(target=self._work, name="taskpilot-alerts", daemon=True)
            # In no context: it must not belong to the operation that happens to run here.
            Context().run(self._thread.start)

    def flush(self, timeout_s: float = _LAST_S) -> bool:
        """Look at every alert now; return whether all callbacks that this called have returned in time.

        :param timeout_s: how long to wait, in seconds.
        """
        thread = self._thread
        if thread is None or thread is threading.current_thread() or self._closed:
            return True
        with self._changed:
            self._asked += 1
            ticket = self._asked
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._answered >= ticket or self._closed, timeout_s)

    def close(self) -> None:
        """Stop; a callback that runs may come to its end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(_LAST_S)

    def after_fork(self) -> None:
        """Go on in a forked process, with a thread of its own and nothing that happened in the parent."""
        running = self._thread is not None and not self._closed
        self._begin()
        self._watched = [_Watched(one.alert) for one in self._watched]
        if running:
            self._start()

    # --- the thread -------------------------------------------------------------------------------

    def _work(self) -> None:
        look_at = time.monotonic() + _EVERY_S
        while True:
            with self._changed:
                self._changed.wait_for(self._is_wanted, max(0.0, look_at - time.monotonic()))
                if self._closed:
                    return
                ticket = self._asked
                look = ticket > self._answered or time.monotonic() >= look_at
                watched = [one for one in self._watched if (one.is_due if one.alert.is_counted else look)]
                for one in watched:
                    one.is_due = False
            if look:
                look_at = time.monotonic() + _EVERY_S
            try:
                for alert, fired in self._beyond(watched):
                    self._call(alert, fired)
            except Exception as error:
                swallow("alert", error)
            finally:
                with self._changed:
                    self._answered = ticket
                    self._changed.notify_all()

    def _is_wanted(self) -> bool:
        return self._closed or self._asked > self._answered or any(one.is_due for one in self._watched)

    def _call(self, alert: Alert, fired: AlertFired) -> None:
        try:
            result = alert.callback(fired)
            if inspect.iscoroutine(result):
                import asyncio

                asyncio.run(result)
        except BaseException as error:  # the thread goes on, whatever the callback may raise
            swallow("alert_callback", error if isinstance(error, Exception) else RuntimeError(type(error).__name__))

    def _beyond(self, watched: list[_Watched]) -> Iterator[tuple[Alert, AlertFired]]:
        """Yield the alerts that fire now."""
        signals: dict[int, GoldenSignals] = {}
        for one in watched:
            alert, now_ns = one.alert, self._clock.monotonic_ns()
            if one.fired_ns is not None and now_ns - one.fired_ns < alert.cooldown_s * SECOND_NS:
                continue
            value = self._counted(one, now_ns) if alert.is_counted else self._measured(one, signals)
            if value is None or not alert.is_beyond(value):
                continue
            one.fired_ns = now_ns
            at = datetime.fromtimestamp(self._clock.epoch_ns() / SECOND_NS, UTC)
            said = f"{alert.signal} is {value:g} in {alert.window}, {alert.bound}"
            message = f"{said}: {one.last}" if alert.is_counted else said
            yield alert, AlertFired(alert.name or "", alert.signal, value, alert.threshold, alert.window, at, message)

    def _counted(self, one: _Watched, now_ns: int) -> float:
        with self._changed:
            return one.happened.total(now_ns)

    def _measured(self, one: _Watched, signals: dict[int, GoldenSignals]) -> float | None:
        """Return a measured signal; None where it is unknown, or the window has too little to judge by."""
        alert, window_s = one.alert, one.window_s
        if alert.signal == "tokens_per_minute":
            return _tokens(self._metrics, window_s) * 60 / window_s
        found = signals.get(window_s)
        if found is None:
            found = signals[window_s] = golden.compute(self._metrics, window=alert.window, own=True)
        if alert.signal == "spend_usd_per_minute":
            return float(found.sample.spent_usd or 0) * 60 / window_s
        basis = found.feedback if alert.signal == semconv.G_USER_CORRECTNESS else found.runs
        value: float | None = getattr(found, alert.signal)
        return value if (basis or 0) >= alert.min_sample else None


def _tokens(metrics: MetricsBackend, window_s: int) -> int:
    """Return the input and output tokens of a window."""
    return sum(
        cell.input_tokens + cell.output_tokens
        for bucket in metrics.windows.own(window_s * SECOND_NS)
        for key, cell in bucket.cells.items()
        if key.kind is Kind.LLM
    )
