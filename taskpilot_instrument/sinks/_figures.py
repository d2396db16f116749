"""Read figures out of buckets: by dotted name, or as the sample behind the golden signals."""

from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import NamedTuple

from taskpilot_instrument import semconv
from taskpilot_instrument._money import ZERO, add
from taskpilot_instrument._waste import NO_WASTE, Waste
from taskpilot_instrument.semconv import NONE, Kind, Outcome, TokenKind
from taskpilot_instrument.sinks._calls import Calls
from taskpilot_instrument.sinks._names import DIMENSIONS, Node
from taskpilot_instrument.sinks._said import Said, worth
from taskpilot_instrument.sinks._signals import Sample, blocked
from taskpilot_instrument.sinks._sketch import Sketch, merged
from taskpilot_instrument.sinks._windows import Bucket, Cell, CellKey


class Figures(NamedTuple):
    """Every figure that has a dotted name.

    :param recorded: what operations and the ``record_…`` methods told.
    :param said: what was written directly by name.
    """

    recorded: dict[Node, Decimal]
    said: Said

    def value(self, node: Node) -> float:
        """Return what was recorded plus what the direct writes are worth."""
        return float(add(self.recorded.get(node, ZERO), worth(self.said, node)))

    def values_of(self, label: str) -> list[str]:
        """Return the values of a label that any figure has, in the order of their first appearance."""
        found = (
            node.at[place]
            for node in (*self.recorded, *self.said)
            for place, dimension in enumerate(DIMENSIONS[node.family])
            if dimension == label
        )
        return list(dict.fromkeys(value for value in found if value is not None))


def said_in(buckets: Iterable[Bucket]) -> dict[Node, Decimal]:
    """Add up what was written directly in several buckets."""
    whole = Bucket()
    for bucket in buckets:
        for node, amount in bucket.said.items():
            whole.say(node, amount)
    return whole.said


def figures(buckets: list[Bucket]) -> Figures:
    """Add up every figure of several buckets."""
    recorded: dict[Node, Decimal] = {}
    for bucket in buckets:
        for key, cell in bucket.cells.items():
            for node, amount in _contributions(key, cell):
                recorded[node] = add(recorded.get(node, ZERO), Decimal(amount))
    return Figures(recorded, said_in(buckets))


def _contributions(key: CellKey, cell: Cell) -> Iterator[tuple[Node, Decimal | int]]:
    if key.kind is Kind.WORKFLOW:
        yield Node(semconv.M_WORKFLOW_RUNS, (None,)), cell.runs
        yield Node(semconv.M_WORKFLOW_RUNS, (Outcome.SUCCESS.value,)), cell.successes
        return
    if key.kind is Kind.LLM:
        for at in ((None, None), (key.agent, None), (None, key.model)):
            yield Node(semconv.M_LLM_COST, at), cell.cost
        for model in (None, key.model):
            yield Node(semconv.M_LLM_TOKENS, (model, TokenKind.INPUT.value)), cell.input_tokens
            yield Node(semconv.M_LLM_TOKENS, (model, TokenKind.OUTPUT.value)), cell.output_tokens
            yield Node(semconv.M_LLM_TOKENS, (model, None)), cell.input_tokens + cell.output_tokens
        return
    for agent in (None, key.agent):
        yield Node(semconv.M_POLICY_VIOLATIONS, (agent,)), cell.violations
    yield Node(semconv.M_GUARDRAIL_BLOCKS, (key.agent, semconv.DIRECTION_INPUT)), cell.blocked_input
    yield Node(semconv.M_GUARDRAIL_BLOCKS, (key.agent, semconv.DIRECTION_OUTPUT)), cell.blocked_output
    yield Node(semconv.M_FEEDBACK, (semconv.VERDICT_CORRECT,)), cell.correct
    yield Node(semconv.M_FEEDBACK, (semconv.VERDICT_INCORRECT,)), cell.incorrect


def latency(buckets: list[Bucket], node: Node) -> Sketch:
    """Return the latencies of all workflow runs, or of one agent's runs, in milliseconds."""
    kind = Kind.WORKFLOW if node.family == semconv.M_WORKFLOW_DURATION else Kind.AGENT
    return merged(
        cell.latency
        for bucket in buckets
        for key, cell in bucket.cells.items()
        if key.kind is kind and (not node.at or key.agent == node.at[0])
    )


def golden_sample(buckets: list[Bucket], workflow: str | None, agent: str | None, model: str | None) -> Sample:
    """Return the sample behind the golden signals.

    The runs are those of workflows, of ``agent`` where one is given, or the LLM calls of ``model``. What was
    written directly by name carries no workflow, so a filter by workflow leaves it out, and violations are not known
    where such are all that there are; feedback and violations carry no model.
    """
    kind = Kind.LLM if model is not None else Kind.AGENT if agent is not None else Kind.WORKFLOW
    runs, spend, verdicts = Cell(), Cell(), Cell()
    for bucket in buckets:
        for key, cell in bucket.cells.items():
            if (
                (workflow is None or key.workflow == workflow)
                and (agent is None or key.agent == agent)
                and (model is None or key.model == model)
            ):
                if key.kind is kind:
                    runs.merge(cell)
                if key.kind is Kind.LLM:
                    spend.merge_sums(cell)
                elif key.kind is Kind.AGENT:
                    verdicts.merge_sums(cell)
    everywhere = said_in(buckets)
    said = everywhere if workflow is None else {}

    def direct(family: str, *at: str | None) -> float:
        return _number(worth(said, Node(family, at)))

    violations = verdicts.violations + direct(semconv.M_POLICY_VIOLATIONS, agent)
    untold = not violations and worth(everywhere, Node(semconv.M_POLICY_VIOLATIONS, (agent,)))

    named_runs = kind is Kind.WORKFLOW
    anyone = agent is None and model is None
    return Sample(
        runs=runs.runs + (direct(semconv.M_WORKFLOW_RUNS, None) if named_runs else 0),
        successes=runs.successes + (direct(semconv.M_WORKFLOW_RUNS, Outcome.SUCCESS.value) if named_runs else 0),
        p95_ms=runs.latency.quantile(95),
        timed=runs.latency.count,
        spent_usd=add(spend.cost, worth(said, Node(semconv.M_LLM_COST, (agent, model)))),
        calls=spend.runs,
        priced=spend.priced,
        unpriced=spend.unpriced,
        violations=None if model is not None or untold else violations,
        correct=_verdicts(
            verdicts.correct, model, direct(semconv.M_FEEDBACK, semconv.VERDICT_CORRECT) if anyone else 0
        ),
        incorrect=_verdicts(
            verdicts.incorrect, model, direct(semconv.M_FEEDBACK, semconv.VERDICT_INCORRECT) if anyone else 0
        ),
        checked=runs.checked,
        check_failed=runs.check_failed,
        wasted=spend.wasted,
        lost=None if model is not None else runs.lost or {},
        blocked_calls=blocked(spend.lost or {}).runs,
    )


class ModelSample(NamedTuple):
    """What is known of one model.

    :param cell: its calls, by the agents that were asked for.
    :param calls: what the cell knows of calls alone.
    :param runs: what ended with the model: runs of that agent, or of workflows where none was asked for.
    """

    cell: Cell
    calls: Calls
    runs: Calls


def model_samples(buckets: Iterable[Bucket], agent: str | None) -> dict[str, ModelSample]:
    """Return what is known of each model that was called, of one agent's calls where one is given."""
    found: dict[str, ModelSample] = {}
    for bucket in buckets:
        for key, cell in bucket.cells.items():
            if key.kind is Kind.LLM and agent in {None, key.agent}:
                if key.model not in found:
                    whole = Cell()
                    found[key.model] = ModelSample(whole, whole.of_calls(), Calls())
                found[key.model].cell.merge(cell)
                if cell.calls is not None and key.agent == (agent or NONE):
                    found[key.model].runs.merge(cell.calls)
    return found


def waste_by_agent(buckets: Iterable[Bucket]) -> dict[str, Waste]:
    """Return what each agent's LLM calls wasted, the most expensive first; those that wasted nothing are left out."""
    found: dict[str, Waste] = {}
    for bucket in buckets:
        for key, cell in bucket.cells.items():
            if cell.wasted is not NO_WASTE:
                found[key.agent] = found.get(key.agent, NO_WASTE).plus(cell.wasted)
    return dict(sorted(found.items(), key=lambda each: (-each[1].usd, -each[1].attempts, each[0])))


def _verdicts(recorded: int, model: str | None, direct: float) -> float | None:
    return None if model is not None else recorded + direct


def _number(amount: Decimal) -> float:
    return int(amount) if amount == amount.to_integral_value() else float(amount)
