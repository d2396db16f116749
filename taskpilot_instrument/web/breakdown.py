"""Whose runs fail, are slow, cost and break policies: what a signal is made of, by agent and by workflow."""

from collections.abc import Iterable
from typing import Any, Final

from taskpilot_instrument.semconv import M_POLICY_VIOLATIONS, NONE, Kind
from taskpilot_instrument.sinks import _signals
from taskpilot_instrument.sinks._figures import said_in
from taskpilot_instrument.sinks._names import Node
from taskpilot_instrument.sinks._said import Said, worth
from taskpilot_instrument.sinks._signals import percent
from taskpilot_instrument.sinks._windows import Bucket, Cell, CellKey

_MOST_ROWS: Final = 20


def by_agent(buckets: list[Bucket]) -> list[dict[str, Any]]:
    """Return the figures of each agent, those with failures first; spend and calls outside of agents are ``none``'s."""
    said = said_in(buckets)
    rows = [
        {"agent": name} | _row(runs, calls) | _verdicts(name, runs, said)
        for name, (runs, calls) in _cells(buckets, Kind.AGENT, "agent").items()
    ]
    return _first(
        row for row in rows if row["agent"] != NONE or row["calls"] or row["blocked_calls"] or row["violations"]
    )


def by_workflow(buckets: list[Bucket]) -> list[dict[str, Any]]:
    """Return the figures of each workflow, those with failures first; calls and their cost are the innermost one's."""
    rows = [
        {"workflow": name} | _row(runs, calls)
        for name, (runs, calls) in _cells(buckets, Kind.WORKFLOW, "workflow").items()
    ]
    return _first(row for row in rows if row["runs"])


def _cells(buckets: list[Bucket], kind: Kind, by: str) -> dict[str, tuple[Cell, Cell]]:
    """Return by name what runs came to, and what their calls."""
    name = CellKey._fields.index(by)
    found: dict[str, tuple[Cell, Cell]] = {}
    for bucket in buckets:
        for key, cell in bucket.cells.items():
            if key.kind is kind:
                found.setdefault(key[name], (Cell(), Cell()))[0].merge(cell)
            elif key.kind is Kind.LLM:
                found.setdefault(key[name], (Cell(), Cell()))[1].merge_sums(cell)
    return found


def _first(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    def order(row: dict[str, Any]) -> tuple[Any, ...]:
        return -row["failed"], -row["blocked_runs"], -row["cost_usd"], *list(row.values())[:1]

    return sorted(rows, key=order)[:_MOST_ROWS]


def _row(runs: Cell, calls: Cell) -> dict[str, Any]:
    failed, blocked = _signals.failed(runs.lost or {}), _signals.blocked(runs.lost or {})
    failed_calls, blocked_calls = _signals.failed(calls.lost or {}), _signals.blocked(calls.lost or {})
    return {
        "runs": runs.runs,
        "failed": failed.runs,
        "failed_cost_usd": float(failed.usd),
        "failed_unpriced": failed.unpriced,
        "blocked_runs": blocked.runs,
        "blocked_runs_cost_usd": float(blocked.usd),
        "blocked_runs_unpriced": blocked.unpriced,
        "success_rate": percent(runs.successes, runs.runs),
        "p95_latency_ms": runs.latency.quantile(95),
        "calls": calls.runs,
        "failed_calls": failed_calls.runs,
        "blocked_calls": blocked_calls.runs,
        "cost_usd": float(calls.cost),
        "unpriced_calls": calls.unpriced,
    }


def _verdicts(name: str, runs: Cell, said: Said) -> dict[str, Any]:
    """Return what policies, guardrails and users said of an agent."""
    correct, incorrect = max(0, runs.correct), max(0, runs.incorrect)
    return {
        "violations": runs.violations + int(worth(said, Node(M_POLICY_VIOLATIONS, (name,)))),
        "guardrail_blocks": runs.blocked_input + runs.blocked_output,
        "feedback": correct + incorrect,
        "correctness_percent": percent(correct, correct + incorrect),
    }
