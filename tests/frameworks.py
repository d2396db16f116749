"""What the tests of the agent frameworks share."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from decimal import Decimal
from typing import Any

import pytest
from backends import package

import taskpilot_instrument as tp
from taskpilot_instrument.embedded import EmbeddedServer, Reply, ToolCall
from taskpilot_instrument.testing import Captured, capture
from taskpilot_instrument.usage import TokenUsage

MODEL = "gpt-4o-mini"
#: 150 and 50 tokens of gpt-4o-mini.
USAGE, COST = TokenUsage(150, 50), Decimal("0.0000525")


def need(*modules: str) -> None:
    """Skip a test module where a package is not installed; fail it in the CI job that is for it."""
    for module in modules:
        package(module, "pip install taskpilot-instrument[frameworks], and the framework's own client of OpenAI")


def says(text: str = "done") -> Reply:
    """Return an answer of the model."""
    return Reply(text, usage=USAGE)


def calls(name: str, **arguments: Any) -> Reply:
    """Return an answer of the model that asks for a tool."""
    return Reply(tool_calls=(ToolCall(name, arguments),), usage=USAGE)


def outcomes(captured: Captured) -> dict[str, Any]:
    """Return the outcome of each finished workflow, agent and tool run, by the name of its span."""
    return {
        span.name: (span.attributes or {})["outcome"] for span in captured.spans if not span.name.startswith("chat ")
    }


def assert_spent(captured: Captured, calls: int, *, runs: int = 1) -> None:
    """Assert that each LLM call was counted once, with the provider's tokens and one price, everywhere."""
    llm = [span for span in captured.spans if span.name.startswith("chat ")]
    assert calls == len(llm)
    assert [(150, 50)] * calls == [
        ((span.attributes or {})["input_tokens"], (span.attributes or {})["output_tokens"]) for span in llm
    ]
    signals = captured.golden_signals()
    assert (runs, calls) == (signals.sample.runs, signals.sample.calls)
    assert 150 * calls == captured.metrics.get_counter("llm.tokens.input.total")
    assert 50 * calls == captured.metrics.get_counter("llm.tokens.output.total")
    assert COST * calls == signals.sample.spent_usd
    roots = [span for span in captured.spans if span.parent is None]
    assert ["workflow.run"] * runs == names(roots)
    assert 150 * calls == sum((span.attributes or {})["input_tokens"] for span in roots)


async def assert_cancelled(captured: Captured, server: EmbeddedServer, run: Coroutine[Any, Any, Any]) -> None:
    """Assert that cancelling the task of a run, while the model is slow to answer, ends the run as cancelled."""
    server.script(Reply("late", delay=5.0))
    task = asyncio.create_task(run)
    await until(lambda: bool(server.requests))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert {"workflow.run": "cancelled", "PlannerAgent.execute": "cancelled"} == outcomes(captured)


async def assert_refused(
    server: EmbeddedServer,
    frameworks: Sequence[Any],
    run: Callable[[], Awaitable[Any]],
    error: type[Exception] = tp.BudgetExceededError,
) -> None:
    """Assert that a budget which refuses the call ends the run as blocked, and that nothing is sent.

    :param error: what the caller gets.
    """
    budget = tp.Budget("all", limit_usd="0.00001", on_exceed="block")
    with capture(frameworks=frameworks, budgets=[budget], ledger="memory") as captured:
        with pytest.raises(error):
            await run()
        assert {"workflow.run": "blocked", "PlannerAgent.execute": "blocked"} == outcomes(captured)
    assert [] == server.requests


async def until(look: Callable[[], bool]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(20):
        while not look():  # noqa: ASYNC110 - what is looked at is in another thread
            await asyncio.sleep(0.01)


def names(spans: Iterable[Any]) -> list[str]:
    """Return the names of spans."""
    return [span.name for span in spans]
