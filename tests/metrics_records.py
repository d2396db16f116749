"""Finished records by hand, for the tests of whatever reads them."""

from collections.abc import Sequence
from dataclasses import fields
from decimal import Decimal
from typing import Any

from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, TraceFlags

from taskpilot_instrument._operation import Finished, LLMCall
from taskpilot_instrument.context import Ids
from taskpilot_instrument.semconv import Kind, Outcome
from taskpilot_instrument.typing import Clock
from taskpilot_instrument.usage import TokenUsage

SECOND = 1_000_000_000
TRACE_ID = 0xABC


class ManualClock:
    """A clock that only moves when told."""

    def __init__(self, now_ns: int = 0) -> None:
        self.now_ns = now_ns

    def advance(self, seconds: float) -> None:
        """Move on."""
        self.now_ns += int(seconds * SECOND)

    @property
    def clock(self) -> Clock:
        """The clock as the library takes it."""
        return Clock(lambda: self.now_ns, lambda: self.now_ns)


def span(*, sampled: bool = True) -> Span:
    """Return a span that is or is not sampled."""
    return NonRecordingSpan(SpanContext(TRACE_ID, 1, is_remote=False, trace_flags=TraceFlags(int(sampled))))


def finished(
    kind: Kind,
    name: str,
    *,
    outcome: Outcome = Outcome.SUCCESS,
    workflow: str | None = "triage",
    agent: str | None = None,
    model: str | None = None,
    ms: float = 100.0,
    usage: TokenUsage | None = None,
    cost: Decimal | None = None,
    error_type: str | None = None,
    llm: LLMCall | None = None,
    first_chunk_ms: float | None = None,
    sampled: bool = True,
) -> Finished:
    """Return a record of any kind."""
    known: dict[str, Any] = {
        "kind": kind,
        "name": name,
        "outcome": outcome,
        "span": span(sampled=sampled),
        "ids": Ids("req-1"),
        "workflow": workflow,
        "agent": agent,
        "model": model,
        "duration_ns": int(ms * 1_000_000),
        "usage": usage,
        "cost": cost,
        "error_type": error_type,
        "llm": llm,
        "time_to_first_chunk_ns": None if first_chunk_ms is None else int(first_chunk_ms * 1_000_000),
    }
    return Finished(**dict.fromkeys(each.name for each in fields(Finished)) | known)


def workflow_run(name: str = "triage", **fields: object) -> Finished:
    """Return the record of a workflow run."""
    return finished(Kind.WORKFLOW, name, workflow=name, **fields)  # type: ignore[arg-type]


def agent_run(name: str = "PlannerAgent", **fields: object) -> Finished:
    """Return the record of an agent run."""
    return finished(Kind.AGENT, name, agent=name, **fields)  # type: ignore[arg-type]


def tool_call(name: str = "create_task", agent: str | None = "PlannerAgent", **fields: object) -> Finished:
    """Return the record of a tool call."""
    return finished(Kind.TOOL, name, agent=agent, **fields)  # type: ignore[arg-type]


def llm_call(
    model: str | None = "gpt-4o-mini",
    *,
    agent: str | None = "PlannerAgent",
    usage: TokenUsage | None = TokenUsage(150, 50),  # noqa: B008 - a NamedTuple does not change
    cost: str | None = "0.0000525",
    finish_reasons: Sequence[str] = ("stop",),
    **fields: object,
) -> Finished:
    """Return the record of an LLM call."""
    llm = LLMCall("chat", model)
    llm.finish_reasons = tuple(finish_reasons)
    price = None if cost is None else Decimal(cost)
    return finished(  # type: ignore[arg-type]
        Kind.LLM, f"chat {model}", agent=agent, model=model, usage=usage, cost=price, llm=llm, **fields
    )
