"""Remember finished runs: the latest here, all of them in the ledger, and hourly figures for reports.

What goes to the ledger is written by a thread of its own, a moment later: an agent waits for no file or network.
"""

import logging
import threading
from bisect import bisect_left
from collections import deque
from decimal import Decimal
from typing import Final, NamedTuple
from uuid import uuid4

from taskpilot_instrument import _forks
from taskpilot_instrument import _hourly as hourly
from taskpilot_instrument._guard import swallow
from taskpilot_instrument._records import Checked, Event, Finished, LLMCall, was_sent
from taskpilot_instrument._waste import Lost, lost_of, waste_of
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


class _Call(NamedTuple):
    """What is counted of an LLM call; without the record, which would keep the application's objects alive."""

    at_ns: int
    agent: str | None
    model: str | None
    outcome: Outcome
    duration_ns: int
    usage: TokenUsage | None
    cost: Decimal | None
    cost_source: str | None
    error_type: str | None
    llm: LLMCall


class _Run(NamedTuple):
    """What is counted and remembered of a run."""

    at_ns: int
    request_id: str
    trace_id: int
    span_id: int
    workflow: str | None
    agent: str | None
    model: str | None
    variants: tuple[tuple[str, str], ...]
    began_ns: int
    outcome: Outcome
    duration_ns: int
    checked: Checked
    #: What it came to, where it did not succeed.
    lost: Lost | None

    def link(self) -> RunLink:
        """Return what feedback has to know of it."""
        return RunLink(
            self.request_id,
            f"{self.trace_id:032x}" if self.trace_id else None,
            f"{self.span_id:016x}" if self.trace_id else None,
            self.workflow,
            self.agent,
            self.model,
            self.variants,
            self.began_ns / 1e9,
        )


#: A named tuple by its name takes twice as long to make.
_new: Final = tuple.__new__


def _hour(at_ns: int) -> int:
    seconds = at_ns // 1_000_000_000
    return seconds - seconds % hourly.HOUR_S


def _run_figures(run: _Run) -> tuple[str, dict[str, int]]:
    """Return under which key a run counts, and its figures."""
    figures = {
        hourly.RUNS: 1,
        f"{hourly.OUTCOME}{run.outcome}": 1,
        hourly.MICROSECONDS: run.duration_ns // 1000,
        f"{hourly.BUCKET}{_BOUNDS[bisect_left(DURATION_BUCKETS, run.duration_ns / 1e9)]}": 1,
    }
    if run.checked is Checked.YES:
        figures[hourly.CHECKED] = 1
    elif run.checked is Checked.FAILED:
        figures[hourly.CHECK_FAILED] = 1
    if run.lost is not None:
        figures[f"{hourly.LOST}{run.outcome}"] = to_pico(run.lost.usd)
        figures[f"{hourly.LOST_UNPRICED}{run.outcome}"] = run.lost.unpriced
    return hourly.of_run(run.workflow), figures


def _call_figures(call: _Call) -> tuple[str, dict[str, int]]:
    """Return under which key an LLM call counts, and its figures."""
    figures = {hourly.CALLS: 1, f"{hourly.OUTCOME}{call.outcome}": 1}
    sent = was_sent(call.outcome)
    if call.duration_ns and sent:  # nobody times what is only told afterwards
        figures |= {hourly.TIMED: 1, hourly.MICROSECONDS: call.duration_ns // 1000}
    usage, lost = call.usage, waste_of(call)
    if usage is not None:
        figures |= {hourly.INPUT: usage.input_tokens or 0, hourly.OUTPUT: usage.output_tokens or 0}
    if call.cost is not None:
        figures[hourly.COST] = to_pico(call.cost)
        figures[hourly.UNPRICED if call.cost_source == COST_PARTIAL else hourly.PRICED] = 1
    elif call.llm.billable or usage is not None:
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
    if call.error_type is not None and sent:
        figures[f"{hourly.ERROR}{hourly.plain(call.error_type)}"] = 1
    return hourly.of_call(call.agent, call.model), figures


class History:
    """A sink that keeps what feedback and reports ask for.

    :param ledger: where it is kept for other processes and later days; None keeps only the latest links, here.
    """

    where = "history"

    def __init__(self, ledger: Ledger | None, clock: Clock) -> None:
        self._ledger = ledger
        self._epoch_ns = clock.epoch_ns
        self._lock = _forks.lock()
        self._writing = _forks.lock()
        self._links: deque[RunLink] = deque(maxlen=_MOST_LINKS)
        self._waiting: deque[RunLink] = deque(maxlen=_MOST_WAITING)
        #: Finished since the last count: counted later, many at once, so that an agent waits for no more than a note.
        self._seen: deque[_Call | _Run] = deque()
        self._figures: dict[tuple[int, str], dict[str, int]] = {}
        #: What is being added to the ledger; the thread that writes has it alone.
        self._batch: tuple[str, list[Rollup]] | None = None
        self._wake = threading.Event()
        self._closed = False
        self._writer: threading.Thread | None = None
        _forks.tell(self)

    @property
    def ledger(self) -> Ledger | None:
        """Where it is kept; None where it is not."""
        return self._ledger

    # --- as a sink --------------------------------------------------------------------------------

    def finished(self, record: Finished, /) -> None:
        """Remember a run, and count a run or call."""
        llm, seen = record.llm, self._seen
        if llm is not None:
            if self._ledger is None:
                return
            seen.append(
                _new(
                    _Call,
                    (
                        self._epoch_ns(), record.agent, record.model, record.outcome, record.duration_ns, record.usage,
                        record.cost, record.cost_source, record.error_type, llm,
                    ),
                )
            )  # fmt: skip
        elif record.kind is Kind.WORKFLOW:
            context, run = record.span.get_span_context(), record.operation
            agent = run.totals.agent if run is not None and run.totals is not None else None
            seen.append(
                _new(
                    _Run,
                    (
                        self._epoch_ns(), record.ids.request_id, context.trace_id, context.span_id, record.workflow,
                        agent, record.model, record.ids.variants, record.started_at_ns, record.outcome,
                        record.duration_ns, record.checked,
                        None if record.outcome is Outcome.SUCCESS else lost_of(record),
                    ),
                )
            )  # fmt: skip
        else:
            return
        if len(seen) >= _MOST_SEEN:
            with self._lock:
                self._count()
        if self._writer is None and self._ledger is not None:
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
            self._add(_hour(self._epoch_ns()), hourly.of_run(workflow), figures)

    def _count(self) -> None:
        """Count what was seen since; the caller holds the lock."""
        while self._seen:
            seen = self._seen.popleft()
            try:
                self._count_one(seen)
            except Exception as error:  # whoever counts may be another run, or a user's vote
                swallow(self.where, error)

    def _count_one(self, seen: _Call | _Run) -> None:
        if isinstance(seen, _Call):
            self._add(_hour(seen.at_ns), *_call_figures(seen))
            return
        link = seen.link()
        self._links.append(link)
        if self._ledger is not None:
            self._waiting.append(link)
            self._add(_hour(seen.at_ns), *_run_figures(seen))

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
            self._count()
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
        self._count()  # votes on the parent's runs are heard here, too
        self._waiting.clear()
        self._figures, self._batch = {}, None

    def _start_writer(self) -> None:
        if self._writer is None and not self._closed:
            with self._lock:
                if self._writer is None:
                    self._writer = threading.Thread(target=self._write_on, name="taskpilot-history", daemon=True)
                    self._writer.start()

    def _write_on(self) -> None:
        while not self._closed:
            self._wake.wait(_PAUSE_S)
            self.flush()

    def flush(self) -> bool:
        """Write what waits; tell whether all of it was written. What cannot be written goes on waiting.

        What another thread is writing is written too when this returns.
        """
        if self._ledger is None:
            return True
        try:
            with self._writing:
                return self._write(self._ledger)
        except Exception as error:
            swallow(self.where, error)
            return False

    def _write(self, ledger: Ledger) -> bool:
        with self._lock:
            self._count()
            links = [self._waiting.popleft() for _ in range(len(self._waiting))]
        try:
            for begin in range(0, len(links), _BATCH):
                ledger.put_runs(links[begin : begin + _BATCH])
            links = []
            while (batch := self._batch or self._next_batch()) is not None:
                ledger.add_rollups(*batch)
                self._batch = None
        except LedgerError:
            with self._lock:
                self._waiting.extendleft(reversed(links))
            return False
        except Exception:
            self._batch = None  # what the ledger cannot take would keep everything after it out
            raise
        return True

    def _next_batch(self) -> tuple[str, list[Rollup]] | None:
        """Return what is to be added next. It may arrive although its answer is lost: it stays as it is until then."""
        with self._lock:
            figures, self._figures = self._figures, {}
        if figures:
            rollups = [Rollup(hour, key, counts) for (hour, key), counts in figures.items()]
            self._batch = uuid4().hex, rollups
        return self._batch

    def close(self) -> None:
        """Write what waits, and stop."""
        self._closed = True
        self._wake.set()
        if self._writer is not None:
            self._writer.join(5)
        if not self.flush():
            _log.warning("taskpilot_instrument: the ledger cannot be reached; the latest runs are not in it")
