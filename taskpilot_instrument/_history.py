"""Remember finished runs: the latest here, all of them in the ledger, and hourly figures for reports.

What goes to the ledger is written by a thread of its own, a moment later: an agent waits for no file or network.
"""

import logging
import threading
from bisect import bisect_left
from collections import deque
from typing import Final

from taskpilot_instrument import _forks, semconv
from taskpilot_instrument._guard import swallow
from taskpilot_instrument._operation import Operation
from taskpilot_instrument._records import Event, Finished
from taskpilot_instrument._waste import waste_of
from taskpilot_instrument.errors import LedgerError
from taskpilot_instrument.semconv import DURATION_BUCKETS, NONE, Kind
from taskpilot_instrument.sinks._recording import is_violation
from taskpilot_instrument.sinks.ledger import Ledger, Rollup, RunLink, to_pico
from taskpilot_instrument.typing import Clock

_log = logging.getLogger("taskpilot_instrument")

_MOST_LINKS: Final = 1_000
_MOST_WAITING: Final = 50_000
_MOST_KEYS: Final = 5_000
_BATCH: Final = 500
_PAUSE_S: Final = 1.0
_HOUR: Final = 3600

# Names of the hourly figures; money in pico-dollars, time in microseconds.
RUNS: Final = "runs"
CALLS: Final = "calls"
COST: Final = "cost"
#: Of LLM calls that did not succeed; attempts also of those that did, where the client made some again.
WASTED: Final = "wasted"
WASTED_TOKENS: Final = "wasted_tokens"
WASTED_ATTEMPTS: Final = "wasted_attempts"
RETRIES: Final = "retries"
UNPRICED: Final = "unpriced"
INPUT: Final = "input_tokens"
OUTPUT: Final = "output_tokens"
MICROSECONDS: Final = "us"
VIOLATIONS: Final = "violations"
BUCKET: Final = "le:"
#: After it comes the outcome, or the type of an error.
OUTCOME: Final = "outcome:"
ERROR: Final = "error:"


class History:
    """A sink that keeps what feedback and reports ask for.

    :param ledger: where it is kept for other processes and later days; None keeps only the latest links, here.
    """

    where = "history"

    def __init__(self, ledger: Ledger | None, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock
        self._lock = _forks.lock()
        self._links: deque[RunLink] = deque(maxlen=_MOST_LINKS)
        self._waiting: deque[RunLink] = deque(maxlen=_MOST_WAITING)
        self._figures: dict[tuple[int, str], dict[str, int]] = {}
        self._wake = threading.Event()
        self._closed = False
        self._writer: threading.Thread | None = None
        _forks.tell(self)

    # --- as a sink --------------------------------------------------------------------------------

    def started(self, operation: Operation, /) -> None:
        """Do nothing: only what is finished is history."""

    def finished(self, record: Finished, /) -> None:
        """Remember a run, and count a run or call."""
        if record.kind is Kind.WORKFLOW:
            self._remember(record)
        elif record.llm is None:
            return
        if self._ledger is None:
            return
        with self._lock:
            self._count(record)
        self._start_writer()

    def noted(self, event: Event, /) -> None:
        """Count a violation."""
        if self._ledger is None or not is_violation(event):
            return
        workflow = event.operation.workflow_name if event.operation is not None else None
        with self._lock:
            self._add(self._hour(), f"workflow={workflow or NONE}", {VIOLATIONS: 1})

    def _remember(self, record: Finished) -> None:
        context, run = record.span.get_span_context(), record.operation
        link = RunLink(
            record.ids.request_id,
            f"{context.trace_id:032x}" if context.is_valid else None,
            f"{context.span_id:016x}" if context.is_valid else None,
            record.workflow,
            run.totals.agent if run is not None and run.totals is not None else None,
            record.model,
            record.ids.variants,
            record.started_at_ns / 1e9,
        )
        with self._lock:
            self._links.append(link)
            if self._ledger is not None:
                self._waiting.append(link)

    def _count(self, record: Finished) -> None:
        hour, llm = self._hour(), record.llm
        if llm is None:
            seconds = record.duration_ns / 1e9
            place = bisect_left(DURATION_BUCKETS, seconds)
            bound = f"{DURATION_BUCKETS[place]:g}" if place < len(DURATION_BUCKETS) else "+Inf"
            figures = {RUNS: 1, f"{OUTCOME}{record.outcome}": 1, MICROSECONDS: record.duration_ns // 1000}
            self._add(hour, f"workflow={record.workflow or NONE}", {**figures, f"{BUCKET}{bound}": 1})
            return
        figures = {CALLS: 1, f"{OUTCOME}{record.outcome}": 1, MICROSECONDS: record.duration_ns // 1000}
        usage = record.usage
        if usage is not None:
            figures |= {INPUT: usage.input_tokens or 0, OUTPUT: usage.output_tokens or 0}
        if record.cost is not None:
            figures[COST] = to_pico(record.cost)
        elif llm.billable or usage is not None:
            figures[UNPRICED] = 1
        lost = waste_of(record)
        if lost is not None:
            figures |= {
                WASTED: to_pico(lost.usd),
                WASTED_TOKENS: lost.tokens,
                WASTED_ATTEMPTS: lost.attempts,
                RETRIES: lost.retries,
            }
        if record.error_type is not None:
            figures[f"{ERROR}{record.error_type}"] = 1
        self._add(hour, f"agent={record.agent or NONE}|model={record.model or NONE}", figures)

    def _hour(self) -> int:
        seconds = self._clock.epoch_ns() // 1_000_000_000
        return seconds - seconds % _HOUR

    def _add(self, hour: int, key: str, figures: dict[str, int]) -> None:
        known = self._figures.get((hour, key))
        if known is None:
            if len(self._figures) >= _MOST_KEYS:
                key = semconv.OTHER
            known = self._figures.setdefault((hour, key), {})
        for name, amount in figures.items():
            known[name] = known.get(name, 0) + amount

    # --- answers ----------------------------------------------------------------------------------

    def find(self, *, request_id: str | None, trace_id: str | None) -> RunLink | None:
        """Return the latest run with one of these ids, here or in the ledger.

        :raises LedgerError: where it is not here, and the ledger cannot be reached.
        """
        with self._lock:
            for link in reversed(self._links):
                if link.request_id == request_id if request_id is not None else link.trace_id == trace_id:
                    return link
        if self._ledger is None:
            return None
        return self._ledger.find_run(request_id=request_id, trace_id=None if request_id is not None else trace_id)

    # --- writing ----------------------------------------------------------------------------------

    def after_fork(self) -> None:
        """Leave to the parent what it has not written yet."""
        self._writer, self._wake = None, threading.Event()
        self._waiting.clear()
        self._figures = {}

    def _start_writer(self) -> None:
        if self._writer is None and not self._closed:
            with self._lock:
                if self._writer is None:
                    self._writer = threading.Thread(target=self._write_on, name="taskpilot-history", daemon=True)
                    self._writer.start()

    def _write_on(self) -> None:
        while not self._closed:
            self._wake.wait(_PAUSE_S)
            try:
                self.flush()
            except Exception as error:
                swallow(self.where, error)

    def flush(self) -> bool:
        """Write what waits; tell whether all of it was written. What cannot be written goes on waiting."""
        if self._ledger is None:
            return True
        with self._lock:
            figures, self._figures = self._figures, {}
            links = [self._waiting.popleft() for _ in range(len(self._waiting))]
        try:
            for begin in range(0, len(links), _BATCH):
                self._ledger.put_runs(links[begin : begin + _BATCH])
            links = []
            if figures:
                self._ledger.add_rollups([Rollup(hour, key, counts) for (hour, key), counts in figures.items()])
        except LedgerError:
            with self._lock:
                self._waiting.extendleft(reversed(links))
                for (hour, key), counts in figures.items():
                    self._add(hour, key, counts)
            return False
        return True

    def close(self) -> None:
        """Write what waits, and stop."""
        self._closed = True
        self._wake.set()
        if self._writer is not None:
            self._writer.join(5)
        if not self.flush():
            _log.warning("taskpilot_instrument: the ledger cannot be reached; the latest runs are not in it")
