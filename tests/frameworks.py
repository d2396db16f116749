"""What the tests of the agent frameworks share."""

import os
from collections.abc import Iterable
from decimal import Decimal
from importlib import import_module
from typing import Any

import pytest

from taskpilot_instrument.embedded import EmbeddedServer, Reply, ToolCall
from taskpilot_instrument.testing import Captured
from taskpilot_instrument.usage import TokenUsage

MODEL = "gpt-4o-mini"
#: 150 and 50 tokens of gpt-4o-mini.
USAGE, COST = TokenUsage(150, 50), Decimal("0.0000525")


def need(*modules: str) -> None:
    """Skip a test module where a framework is not installed; fail where it has to be."""
    for module in modules:
        try:
            import_module(module)
        except ImportError as error:
            message = f"not installed: {module.partition('.')[0]} ({error})"
            if os.environ.get("TASKPILOT_REQUIRE_FRAMEWORKS") == "1":
                raise RuntimeError(message) from error
            pytest.skip(message, allow_module_level=True)


def says(text: str = "done") -> Reply:
    """Return an answer of the model."""
    return Reply(text, usage=USAGE)


def calls(name: str, **arguments: Any) -> Reply:
    """Return an answer of the model that asks for a tool."""
    return Reply(tool_calls=(ToolCall(name, arguments),), usage=USAGE)


def script(server: EmbeddedServer, *replies: Reply) -> None:
    """Tell the server what to answer, one reply a request."""
    server.script(*replies)


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
    assert 150 * calls == captured.metrics.value("llm.tokens.input.total")
    assert 50 * calls == captured.metrics.value("llm.tokens.output.total")
    assert COST * calls == Decimal(str(captured.metrics.value("llm.cost.total"))).quantize(Decimal("1e-10"))
    roots = [span for span in captured.spans if span.parent is None]
    assert ["workflow.run"] * runs == names(roots)
    assert 150 * calls == sum((span.attributes or {})["input_tokens"] for span in roots)


def names(spans: Iterable[Any]) -> list[str]:
    """Return the names of spans."""
    return [span.name for span in spans]
