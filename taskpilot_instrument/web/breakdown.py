"""Whose runs fail, are slow, cost and break policies: what a signal is made of, by agent and by workflow."""

from typing import Any, Final

from taskpilot_instrument.semconv import M_POLICY_VIOLATIONS, NONE, Kind
from taskpilot_instrument.sinks._figures import said_in
from taskpilot_instrument.sinks._names import Node
from taskpilot_instrument.sinks._said import Said, worth
from taskpilot_instrument.sinks._signals import percent
from taskpilot_instrument.sinks._windows import Bucket, Cell

_MOST_ROWS: Final = 20


def by_agent(buckets: list[Bucket]) -> list[dict[str, Any]]:
    """Return the figures of each agent, those with failures first; spend and calls outside of agents are ``none``'s."""
    runs: dict[str, Cell] = {}
    spend: dict[str, Cell] = {}
    for bucket in buckets:
        for key, cell in bucket.cells.items():
            if key.kind is Kind.AGENT:
                runs.setdefault(key.agent, Cell()).merge(cell)
            elif key.kind is Kind.LLM:
                spend.setdefault(key.agent, Cell()).merge_sums(cell)
    said = said_in(buckets)
    rows = [
        _row(name, runs.get(name, Cell()), spend.get(name, Cell()), said) for name in dict.fromkeys((*runs, *spend))
    ]
    rows = [row for row in rows if row["agent"] != NONE or row["calls"] or row["violations"]]
    return sorted(rows, key=lambda row: (-row["failed"], -row["cost_usd"], row["agent"]))[:_MOST_ROWS]


def _row(name: str, runs: Cell, spend: Cell, said: Said) -> dict[str, Any]:
    correct, incorrect = max(0, runs.correct), max(0, runs.incorrect)
    return {
        "agent": name,
        "runs": runs.runs,
        "failed": runs.runs - runs.successes,
        "success_rate": percent(runs.successes, runs.runs),
        "p95_latency_ms": runs.latency.quantile(95),
        "calls": spend.runs,
        "failed_calls": spend.runs - spend.successes,
        "cost_usd": float(spend.cost),
        "unpriced_calls": spend.unpriced,
        "violations": runs.violations + int(worth(said, Node(M_POLICY_VIOLATIONS, (name,)))),
        "blocked": runs.blocked_input + runs.blocked_output,
        "feedback": correct + incorrect,
        "correctness_percent": percent(correct, correct + incorrect),
    }
