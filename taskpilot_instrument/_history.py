"""Remember finished runs: the latest here, all of them in the ledger, and hourly figures for reports.

What goes to the ledger is written by a thread of its own, a moment later: an agent waits for no file or network.
"""

import logging
import threading
from bisect import bisect_left
from collections import deque
from decimal import Decimal
from typing import Final, NamedTuple

from taskpilot_instrument import _forks
from taskpilot_instrument import _hourly as hourly
from taskpilot_instrument._guard import swallow
from taskpilot_instrument._operation import Operation
from taskpilot_instrument._records import Checked, Event, Finished
from taskpilot_instrument._waste import Waste, waste_of
from taskpilot_instrument.errors import LedgerError
from taskpilot_instrument.semconv import COST_PARTIAL, DURATION_BUCKETS, E_GUARDRAIL_BLOCKED, OTHER, Kind, Outcome
from taskpilot_instrument.sinks._recording import is_violation
from taskpilot_instrument.sinks.ledger import Ledger, Rollup, RunLink, to_pico
from taskpilot_instrument.typing import Clock
from taskpilot_instrument.usage import TokenUsage

_log = logging.getLogger("taskpilot_instrument")

_MOST_LINKS: Final = 1_000
_MOST_WAITING: Final = 50_000
_MOST_KEYS: Final = 5_000
_BATCH: Final = 500
#: Runs and calls that are counted at once, unless the writer comes first.
_MOST_SEEN: Final = 200
_PAUSE_S: Final = 1.0
#: Figures under one key: errors have types of the provider's making.
_MOST_NAMES: Final = 200
_BOUNDS: Final = (*(f"{bound:g}" for bound in DURATION_BUCKETS), "+Inf")


class _Seen(NamedTuple):
    """What is counted of a run or call; without the record, which would keep the application's objects alive."""

    hour: int
    is_run: bool
    name: str | None
    model: str | None
    outcome: Outcome
    duration_ns: int
    usage: TokenUsage | None
    cost: Decimal | None
    is_billed: bool
    lost: Waste | None
    error_type: str | None
    #: Of a run whether it was checked, of a call where its cost comes from.
    about: Checked | str | None


_new: Final = tuple.__new__


def _seen(record: Finished, hour: int) -> _Seen:
    llm = record.llm
    if llm is None:
        return _new(
            _Seen,
            (
                hour, True, record.workflow, None, record.outcome, record.duration_ns, None, None, False, None,
                None, record.checked,
            ),
        )  # fmt: skip
    is_billed = llm.billable or record.usage is not None
    return _new(
        _Seen,
        (
            hour, False, record.agent, record.model, record.outcome, record.duration_ns, record.usage, record.cost,
            is_billed, waste_of(record), record.error_type, record.cost_source,
        ),
    )  # fmt: skip


def _run_figures(seen: _Seen) -> tuple[str, dict[str, int]]:
    """Return under which key a run counts, and its figures."""
    figures = {
        hourly.RUNS: 1,
        f"{hourly.OUTCOME}{seen.outcome}": 1,
        hourly.MICROSECONDS: seen.duration_ns // 1000,
        f"{hourly.BUCKET}{_BOUNDS[bisect_left(DURATION_BUCKETS, seen.duration_ns / 1e9)]}": 1,
    }
    if seen.about is Checked.YES:
        figures[hourly.CHECKED] = 1
    elif seen.about is Checked.FAILED:
        figures[hourly.CHECK_FAILED] = 1
    return hourly.of_run(seen.name), figures


def _call_figures(seen: _Seen) -> tuple[str, dict[str, int]]:
    """Return under which key an LLM call counts, and its figures."""
    figures = {
        hourly.CALLS: 1, f"{hourly.OUTCOME}{seen.outcome}": 1, hourly.MICROSECONDS: seen.duration_ns // 1000,
    }  # fmt: skip
    usage, lost = seen.usage, seen.lost
    if usage is not None:
        figures |= {hourly.INPUT: usage.input_tokens or 0, hourly.OUTPUT: usage.output_tokens or 0}
    if seen.cost is not None:
        figures[hourly.COST] = to_pico(seen.cost)
        figures[hourly.UNPRICED if seen.about == COST_PARTIAL else hourly.PRICED] = 1
    elif seen.is_billed:
        figures[hourly.UNPRICED] = 1
    if lost is not None:
        figures |= {
            hourly.WASTED: to_pico(lost.usd),
            hourly.WASTED_TOKENS: lost.tokens,
            hourly.WASTED_CALLS: lost.calls,
            hourly.WASTED_UNPRICED: lost.unpriced,
            hourly.WASTED_ATTEMPTS: lost.attempts,
            hourly.RETRIES: lost.retries,
        }
    if seen.error_type is not None:
        figures[f"{hourly.ERROR}{hourly.plain(seen.error_type)}"] = 1
    return hourly.of_call(seen.name, seen.model), figures


class History:
    """A sink that keeps what feedback and reports ask for.

    :param ledger: where it is kept for other processes and later days; None keeps only the latest links, here.
    """

    where = "history"

    def __init__(self, ledger: Ledger | None, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock
        self._lock = _forks.lock()
        self._writing = _forks.lock()
        self._links: deque[RunLink] = deque(maxlen=_MOST_LINKS)
        self._waiting: deque[RunLink] = deque(maxlen=_MOST_WAITING)
        self._seen: deque[_Seen] = deque()
        self._figures: dict[tuple[int, str], dict[str, int]] = {}
        self._wake = threading.Event()
        self._closed = False
        self._writer: threading.Thread | None = None
        _forks.tell(self)

    @property
    def ledger(self) -> Ledger | None:
        """Where it is kept; None where it is not."""
        return self._ledger

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
        # Counted later, many at once: an agent waits for no more than their being written down.
        self._seen.append(_seen(record, self._hour()))
        if len(self._seen) >= _MOST_SEEN:
            with self._lock:
                self._count()
        if self._writer is None:
            self._start_writer()

    def noted(self, event: Event, /) -> None:
        """Count a violation, or what a guardrail blocked."""
        if self._ledger is None:
            return
        if is_violation(event):
            figures = {hourly.VIOLATIONS: 1, f"{hourly.POLICY}{hourly.plain(event.rule)}": 1}
        elif event.name == E_GUARDRAIL_BLOCKED:
            figures = {hourly.GUARDRAIL_BLOCKS: 1}
        else:
            return
        workflow = event.operation.workflow_name if event.operation is not None else None
        with self._lock:
            self._add(self._hour(), hourly.of_run(workflow), figures)

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

    def _count(self) -> None:
        """Count what was seen since; the caller holds the lock."""
        while self._seen:
            seen = self._seen.popleft()
            self._add(seen.hour, *(_run_figures(seen) if seen.is_run else _call_figures(seen)))

    def _hour(self) -> int:
        seconds = self._clock.epoch_ns() // 1_000_000_000
        return seconds - seconds % hourly.HOUR_S

    def _add(self, hour: int, key: str, figures: dict[str, int]) -> None:
        known = self._figures.get((hour, key))
        if known is None:
            if len(self._figures) >= _MOST_KEYS:
                key = hourly.OTHER_RUNS if key.startswith(hourly.OF_RUNS) else hourly.OTHER_CALLS
            known = self._figures.setdefault((hour, key), {})
        for name, amount in figures.items():
            before = known.get(name)
            if before is None:
                if len(known) >= _MOST_NAMES and ":" in name:
                    name = f"{name.partition(':')[0]}:{OTHER}"  # noqa: PLW2901 - counted all the same
                before = known.get(name, 0)
            known[name] = before + amount

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
        self._seen.clear()
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
        """Write what waits; tell whether all of it was written. What cannot be written goes on waiting.

        What another thread is writing is written too when this returns.
        """
        if self._ledger is None:
            return True
        with self._writing:
            return self._write(self._ledger)

    def _write(self, ledger: Ledger) -> bool:
        with self._lock:
            self._count()
            figures, self._figures = self._figures, {}
            links = [self._waiting.popleft() for _ in range(len(self._waiting))]
        try:
            for begin in range(0, len(links), _BATCH):
                ledger.put_runs(links[begin : begin + _BATCH])
            links = []
            if figures:
                ledger.add_rollups([Rollup(hour, key, counts) for (hour, key), counts in figures.items()])
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
