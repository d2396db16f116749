"""The hot path: from a finished record to counters, histograms and the window it falls into.

Children are bound once for each combination of labels, so a record costs one dictionary look-up.
"""

import time
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Final, NamedTuple, TypeVar

from prometheus_client.samples import Exemplar

from taskpilot_instrument import semconv
from taskpilot_instrument._money import Spend, add
from taskpilot_instrument._operation import current
from taskpilot_instrument._pace import seconds_of_output
from taskpilot_instrument._records import Checked, Event, Finished, LLMCall, was_sent
from taskpilot_instrument._waste import Lost, Waste, lost_of, waste_of
from taskpilot_instrument.errors import ConfigurationError
from taskpilot_instrument.semconv import COST_PARTIAL, NONE, Kind, Outcome, TokenKind
from taskpilot_instrument.sinks._calls import Calls
from taskpilot_instrument.sinks._families import Families, adder, observer
from taskpilot_instrument.sinks._trials import Trials
from taskpilot_instrument.sinks._windows import Cell, CellKey
from taskpilot_instrument.sinks._workers import open_windows
from taskpilot_instrument.usage import TokenUsage

#: Bound entries kept; beyond that many combinations an entry is bound anew for each record.
_MOST_ENTRIES: Final = 10_000
_LIMITS: Final = (semconv.LIMIT_FINISH_LENGTH, semconv.LIMIT_CONTEXT_WINDOW, semconv.LIMIT_CONFIGURED)
_DIRECTIONS: Final = (semconv.DIRECTION_INPUT, semconv.DIRECTION_OUTPUT)
_RUN_FAMILIES: Final = {
    Kind.WORKFLOW: (semconv.M_WORKFLOW_RUNS, semconv.M_WORKFLOW_DURATION),
    Kind.AGENT: (semconv.M_AGENT_RUNS, semconv.M_AGENT_DURATION),
    Kind.TOOL: (semconv.M_TOOL_CALLS, semconv.M_TOOL_DURATION),
}
_TOKEN_KINDS: Final = tuple(TokenKind)
_POLICY_EVENTS: Final = frozenset({semconv.E_POLICY_DECIDED, semconv.E_TOOL_DENIED})
#: Decisions of a policy that are no violation; it blocks where it could not judge.
_HARMLESS: Final = frozenset({"allow", "fail", "block"})

_ONE: Final = Lost(1)

_Raw = tuple[str | None, ...]
Entry = TypeVar("Entry")


class _Run(NamedTuple):
    """What a workflow, agent or tool record touches, looked up once."""

    cell: CellKey | None
    add: Callable[[float], None]
    observe: Callable[..., None]


class _Call(NamedTuple):
    """What an LLM record touches, looked up once; ``tokens`` in the order of ``TokenKind``."""

    cell: CellKey
    payer: tuple[str, str]
    sent: bool
    #: What went wrong, where it did not succeed.
    problem: str
    add: Callable[[float], None]
    observe: Callable[[float], None]
    observe_first_chunk: Callable[[float], None]
    tokens: tuple[Callable[[float], None], ...]


#: What is counted of a record, without what would keep the application's objects alive: of a run duration, exemplar,
#: outcome, what was checked, model and whole cost, and what was lost; of a call outcome, duration, time to the first
#: chunk, seconds of output, usage, cost, whether that is not (wholly) known, and what was wasted.
_RunFacts = tuple[_Run, int, Exemplar | None, Outcome, Checked, str | None, Decimal | None, Lost | None]
_CallFacts = tuple[
    _Call, Outcome, int | None, int | None, float | None, TokenUsage | None, Decimal | None, bool, Waste | None
]


class Recording:
    """Count, time and price every finished operation, and what is told beside operations.

    :param monotonic_ns: decides which window a record falls into.
    :param label_cap: distinct values per label; further ones count as ``other``.
    """

    where = "metric"

    def __init__(self, monotonic_ns: Callable[[], int], label_cap: int) -> None:
        self.windows = open_windows(monotonic_ns)
        self.families = Families(label_cap, self.windows.said, self.windows.settle)
        self._lock = self.windows.lock
        self.trials = Trials(monotonic_ns, self.families)
        #: Calls that were told by hand: the transport has not seen them.
        self.tracked = 0
        self._runs: dict[_Raw, _Run] = {}
        self._calls: dict[_Raw, _Call] = {}
        self._spends: dict[tuple[str, ...], Spend] = {}

    def after_fork(self) -> None:
        """Begin at zero: what the parent counted is the parent's to tell."""
        self.windows.after_fork()
        self.families.clear()
        self.trials.clear()
        self.tracked = 0
        self._runs, self._calls, self._spends = {}, {}, {}

    # --- finished operations --------------------------------------------------------------------

    def finished(self, record: Finished, /) -> None:
        """Count one finished operation, at the latest before anybody asks."""
        if record.llm is not None:
            self._finished_call(record, record.llm, record.duration_ns)
            return
        kind, outcome = record.kind, record.outcome
        key = (kind, record.workflow, record.agent, record.name, outcome)
        run = self._runs.get(key) or self._bind_run(record, key)
        exemplar = None
        if kind is Kind.WORKFLOW:
            exemplar = _exemplar(record)
            if record.ids.variants:
                self.trials.finished(record)
        known = record.model if record.cost_source != COST_PARTIAL else None
        lost = None if outcome is Outcome.SUCCESS or run.cell is None else lost_of(record)
        facts = (run, record.duration_ns, exemplar, outcome, record.checked, known, record.cost, lost)
        self.windows.wait(self._count_run, facts)

    def _count_run(self, facts: _RunFacts) -> None:
        run, nanoseconds, exemplar, outcome, checked, model, cost, lost = facts
        run.add(1)
        run.observe(nanoseconds / 1e9, exemplar)
        if run.cell is None:
            return
        cell = self.windows.open_cell(run.cell)
        cell.runs += 1
        if outcome is Outcome.SUCCESS:
            cell.successes += 1
        elif lost is not None:
            cell.lose(outcome, lost)
        if checked is Checked.YES:
            cell.checked += 1
        elif checked is Checked.FAILED:
            cell.check_failed += 1
        cell.latency.add(nanoseconds / 1e6)
        if model is not None and cost is not None:
            model = self.families.labels.admit(semconv.MODEL, model)
            ended = self.windows.open_cell(CellKey(Kind.LLM, run.cell.workflow, run.cell.agent, model))
            ended.of_calls().run(cost, won=outcome is Outcome.SUCCESS)

    def record_call(self, record: Finished) -> None:
        """Count an LLM call that nobody timed: its latency is unknown, not zero."""
        if record.llm is not None:
            self._finished_call(record, record.llm, None)
            with self._lock:
                self.tracked += 1

    def _finished_call(self, record: Finished, llm: LLMCall, nanoseconds: int | None) -> None:
        outcome, usage, cost = record.outcome, record.usage, record.cost
        key = (record.workflow, record.agent, record.model, llm.provider, outcome, record.error_type)
        bound = self._calls.get(key) or self._bind_call(key)
        if not bound.sent:
            nanoseconds = None  # how fast we are at refusing says nothing of the model
        # What is known in part is spent, but not known.
        unpriced = (llm.billable or usage is not None) if cost is None else record.cost_source == COST_PARTIAL
        lost = None if outcome is Outcome.SUCCESS and not llm.retries else waste_of(record)
        wrote = None if nanoseconds is None else seconds_of_output(record)
        waited = record.time_to_first_chunk_ns
        facts = (bound, outcome, nanoseconds, waited, wrote, usage, cost, unpriced, lost)
        self.windows.wait(self._count_call, facts)

    def _count_call(self, facts: _CallFacts) -> None:
        bound, outcome, nanoseconds, waited, wrote, usage, cost, unpriced, lost = facts
        cell_key, payer, sent, problem, add_call, observe, observe_first_chunk, tokens = bound
        add_call(1)
        if nanoseconds is not None:
            observe(nanoseconds / 1e9)
        if waited is not None:
            observe_first_chunk(waited / 1e9)
        given = made = cached = 0
        if usage is not None:
            for add_tokens, count in zip(tokens, usage, strict=False):
                if count:
                    add_tokens(count)
            given, made, cached = usage.input_tokens or 0, usage.output_tokens or 0, usage.cached_tokens
        if unpriced:
            self.families.counter(semconv.M_LLM_UNPRICED, cell_key.model).inc()
        cell = self.windows.open_cell(cell_key)
        calls = cell.calls or cell.of_calls()
        cell.runs += sent
        if outcome is Outcome.SUCCESS:
            cell.successes += 1
        else:
            cell.lose(outcome, _ONE)
            if sent:
                calls.fail(problem)
        if lost is not None:
            cell.wasted = cell.wasted.plus(lost)
            self._count_waste(payer, outcome, lost)
        cell.unpriced += unpriced
        if cost is not None:
            cell.priced += not unpriced
            cell.cost = add(cell.cost, cost)
            calls.spend(cost, whole=not unpriced)
            (self._spends.get(payer) or self._bind_spend(semconv.M_LLM_COST, payer)).add(cost)
        cell.input_tokens += given
        cell.output_tokens += made
        calls.cached_tokens += cached
        calls.time(wrote, waited, made)
        if nanoseconds is not None:
            cell.latency.add(nanoseconds / 1e6)

    def _count_waste(self, payer: tuple[str, str], outcome: Outcome, lost: Waste) -> None:
        """Count what a call wasted, in series that there are only where something was; the caller holds the lock."""
        if lost.retries:
            self.families.counter(semconv.M_LLM_RETRIES, *payer).inc(lost.retries)
        if lost.tokens:
            self.families.counter(semconv.M_LLM_WASTED_TOKENS, *payer, outcome).inc(lost.tokens)
        if lost.usd:
            spender = (*payer, outcome)
            (self._spends.get(spender) or self._bind_spend(semconv.M_LLM_WASTED_COST, spender)).add(lost.usd)

    # --- what is told beside operations ---------------------------------------------------------

    def noted(self, event: Event, /) -> None:
        """Count what has a family: violations, blocks, limit hits, refusals, feedback."""
        running, details, rule = event.operation, event.details, event.rule
        agent = details.get(semconv.AGENT) or (running.agent_name if running is not None else None)
        workflow = details.get(semconv.WORKFLOW) or (running.workflow_name if running is not None else None)
        if is_violation(event):
            self.record_policy_violation(agent, rule or NONE, workflow=workflow)
        elif event.name == semconv.E_GUARDRAIL_BLOCKED:
            self.record_guardrail_block(agent, rule or NONE, details[semconv.L_DIRECTION], workflow=workflow)
        elif event.name == semconv.E_TOKEN_LIMIT_EXCEEDED:
            limit = details[semconv.L_LIMIT]
            self.record_token_limit_hit(details.get(semconv.MODEL), limit, agent=agent, workflow=workflow)
        elif event.name == semconv.E_FEEDBACK_RECORDED:
            self._note_feedback(details, agent, workflow)
        elif event.name == semconv.E_BUDGET_BLOCKED:
            self.families.counter(semconv.M_BUDGET_BLOCKED, rule, details[semconv.L_WINDOW]).inc()

    def _note_feedback(self, details: Mapping[str, Any], agent: str | None, workflow: str | None) -> None:
        """Count a verdict, in place of the one that it replaces, also for the run's model and variants."""
        replaced, correct = details.get("replaces"), details[semconv.L_VERDICT] == semconv.VERDICT_CORRECT
        if replaced is not None:
            before = replaced == semconv.VERDICT_CORRECT
            self._take_back(agent, workflow, correct=before)
            self._compare(details, agent, workflow, correct=before, count=-1)
        self.record_feedback(correct, agent, workflow=workflow)
        self._compare(details, agent, workflow, correct=correct, count=1)

    def _compare(
        self, details: Mapping[str, Any], agent: str | None, workflow: str | None, *, correct: bool, count: int
    ) -> None:
        self.trials.voted(details.get("variants") or (), details.get(semconv.REQUEST_ID), correct, count)
        model = details.get(semconv.MODEL)
        if model is not None:
            with self._lock:
                self._calls_of(workflow, agent, model).vote(correct, count)

    def _calls_of(self, workflow: str | None, agent: str | None, model: str | None) -> Calls:
        """Return what is known of the calls of a model in an agent of a workflow; the caller holds the lock."""
        admit = self.families.labels.admit
        key = CellKey(
            Kind.LLM, admit(semconv.WORKFLOW, workflow), admit(semconv.AGENT, agent), admit(semconv.MODEL, model)
        )
        return self.windows.cell(key).of_calls()

    def record_policy_violation(self, agent: str | None, policy: str, *, workflow: str | None = None) -> None:
        """Count one policy violation, in its one family.

        :param agent: None where no agent was running.
        :param workflow: else the one that the calling code runs in.
        """
        agent = self.families.labels.admit(semconv.AGENT, agent)
        self.families.counter(semconv.M_POLICY_VIOLATIONS, agent, policy).inc()
        with self._lock:
            self._verdicts_of(agent, workflow).violations += 1

    def record_guardrail_block(
        self, agent: str | None, guardrail: str, direction: str, *, workflow: str | None = None
    ) -> None:
        """Count one input or output that a guardrail blocked.

        :param direction: ``input`` or ``output``.
        :param workflow: else the one that the calling code runs in.
        :raises ConfigurationError: if it is neither.
        """
        _require("direction", direction, _DIRECTIONS)
        agent = self.families.labels.admit(semconv.AGENT, agent)
        self.families.counter(semconv.M_GUARDRAIL_BLOCKS, agent, guardrail, direction).inc()
        with self._lock:
            cell = self._verdicts_of(agent, workflow)
            if direction == semconv.DIRECTION_INPUT:
                cell.blocked_input += 1
            else:
                cell.blocked_output += 1

    def record_feedback(
        self,
        correct: bool,  # noqa: FBT001 - a verdict is a yes or no
        agent: str | None = None,
        *,
        workflow: str | None = None,
    ) -> None:
        """Count one verdict of a user.

        :param correct: whether the user confirmed the result.
        :param agent: whose result it was, where that is known.
        :param workflow: else the one that the calling code runs in.
        """
        agent = self.families.labels.admit(semconv.AGENT, agent)
        verdict = semconv.VERDICT_CORRECT if correct else semconv.VERDICT_INCORRECT
        self.families.counter(semconv.M_FEEDBACK, verdict, agent).inc()
        with self._lock:
            cell = self._verdicts_of(agent, workflow)
            if correct:
                cell.correct += 1
            else:
                cell.incorrect += 1

    def _take_back(self, agent: str | None, workflow: str | None, *, correct: bool) -> None:
        """Take back a verdict that another one replaces, so that the figures are those of the ledger.

        Prometheus takes a counter that goes down for one that began anew; ratios of the values stay right.
        """
        agent = self.families.labels.admit(semconv.AGENT, agent)
        verdict = semconv.VERDICT_CORRECT if correct else semconv.VERDICT_INCORRECT
        child: Any = self.families.counter(semconv.M_FEEDBACK, verdict, agent)
        getattr(child, "_value", child).inc(-1)
        with self._lock:
            cell = self._verdicts_of(agent, workflow)
            if correct:
                cell.correct -= 1
            else:
                cell.incorrect -= 1

    def record_token_limit_hit(
        self, model: str | None, limit: str, *, agent: str | None = None, workflow: str | None = None
    ) -> None:
        """Count one token limit that was hit.

        :param limit: ``finish_length``, ``context_window`` or ``configured``.
        :param agent: None where no agent was running; so ``workflow``.
        :raises ConfigurationError: if it is none of these.
        """
        _require("limit", limit, _LIMITS)
        self.families.counter(semconv.M_TOKEN_LIMIT_HITS, model, limit).inc()
        with self._lock:
            self._calls_of(workflow, agent, model).hit(limit)

    def _verdicts_of(self, agent: str, workflow: str | None) -> Cell:
        """Return the cell of an admitted agent in a workflow, else the current one; the caller holds the lock."""
        running = current()
        if workflow is None and running is not None:
            workflow = running.workflow_name
        key = CellKey(Kind.AGENT, self.families.labels.admit(semconv.WORKFLOW, workflow), agent, NONE)
        return self.windows.cell(key)

    # --- binding --------------------------------------------------------------------------------

    def _bind_run(self, record: Finished, key: _Raw) -> _Run:
        kind, admit = record.kind, self.families.labels.admit
        name = admit(str(kind), record.name)
        agent = name if kind is Kind.AGENT else admit(semconv.AGENT, record.agent)
        workflow = name if kind is Kind.WORKFLOW else admit(semconv.WORKFLOW, record.workflow)
        labels = (name, agent) if kind is Kind.TOOL else (name,)
        runs, duration = _RUN_FAMILIES[kind]
        cells = {
            Kind.WORKFLOW: CellKey(kind, workflow, NONE, NONE),
            Kind.AGENT: CellKey(kind, workflow, agent, NONE),
        }
        run = _Run(
            cells.get(kind),
            adder(self.families.counter(runs, *labels, str(record.outcome))),
            observer(self.families.histogram(duration, *labels)),
        )
        return _keep(self._runs, key, run, (record.name, name), (record.agent, agent), (record.workflow, workflow))

    def _bind_call(self, key: _Raw) -> _Call:
        names = (semconv.WORKFLOW, *semconv.METRIC_LABELS[semconv.M_LLM_CALLS])
        labels = tuple(self.families.labels.admit(name, value) for name, value in zip(names, key, strict=True))
        workflow, agent, model, provider, outcome, error_type = labels
        call = _Call(
            CellKey(Kind.LLM, workflow, agent, model),
            (agent, model),
            was_sent(str(key[4])),  # not its label, which may be "other"
            outcome if error_type == NONE else error_type,
            adder(self.families.counter(semconv.M_LLM_CALLS, *labels[1:])),
            observer(self.families.histogram(semconv.M_LLM_DURATION, model, provider)),
            observer(self.families.histogram(semconv.M_LLM_TIME_TO_FIRST_CHUNK, model, provider)),
            tuple(
                adder(self.families.counter(semconv.M_LLM_TOKENS, agent, model, token_kind))
                for token_kind in _TOKEN_KINDS
            ),
        )
        return _keep(self._calls, key, call, *zip(key, labels, strict=True))

    def _bind_spend(self, family: str, payer: tuple[str, ...]) -> Spend:
        """Return the spend of a payer; made with the first known cost, so that an unpriced model has no cost of 0.

        :param payer: the labels of the family; by how many they are, those of several families are told apart.
        """
        labels = self.families.resolve(family, *payer)
        if labels not in self._spends:
            self._spends[labels] = Spend(adder(self.families.counter(family, *labels)))
        return self._spends[labels]


def is_violation(event: Event) -> bool:
    """Tell whether an event is a policy violation."""
    return event.name in _POLICY_EVENTS and event.decision not in _HARMLESS


def _keep(kept: dict[_Raw, Entry], key: _Raw, entry: Entry, *labels: tuple[str | None, str]) -> Entry:
    """Keep a bound entry, unless a label was replaced: then the overflow counts each time, and keys stay few."""
    if len(kept) < _MOST_ENTRIES and all(raw in {None, admitted} for raw, admitted in labels):
        kept[key] = entry
    return entry


def _exemplar(record: Finished) -> Exemplar | None:
    """Return the trace to look at, where there will be one."""
    context = record.span.get_span_context()
    if not context.trace_flags.sampled:
        return None
    return Exemplar({"trace_id": f"{context.trace_id:032x}"}, record.duration_ns / 1e9, time.time())


def _require(what: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigurationError(f"{what} must be one of {', '.join(allowed)}, not {value!r}")
