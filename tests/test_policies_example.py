"""examples/policies.py: what it shows is what happens."""

import asyncio
import json
import runpy
from pathlib import Path
from typing import Any, Final

import pytest
from prometheus_client import CollectorRegistry

import taskpilot_instrument as tp

pytestmark = pytest.mark.openai

EXAMPLE: Final = Path(__file__).resolve().parent.parent / "examples" / "policies.py"


@pytest.mark.skipif(not EXAMPLE.exists(), reason="the examples are not copied along with the tests")
def test_the_example_shows_every_decision(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A flagged input, a denied and a replaced tool call and a blocked prompt: printed, logged and counted."""
    instrument = tp.instrument

    def apart(**settings: Any) -> tp.Instrumentation:
        return instrument(registry=CollectorRegistry(), **settings)

    monkeypatch.setattr(tp, "instrument", apart)
    asyncio.run(runpy.run_path(str(EXAMPLE))["main"]())
    printed, logged = capsys.readouterr()
    lines = [json.loads(line) for line in logged.splitlines()]
    decided = [
        (line["request_id"], line["event_name"], line["policy"], line["decision"])
        for line in lines
        if line["category"] == "decision" and line["event_name"] != "tool.authorized"
    ]
    assert [
        ("req-2", "policy.decided", "tone", "flag"),
        ("req-3", "tool.denied", "tool_allow_list", "deny"),
        ("req-6", "tool.denied", "arguments", "deny"),
        ("req-7", "tool.denied", "ask_policy_engine", "replace"),
        ("req-8", "guardrail.blocked", "injection", "block"),
    ] == decided
    assert "Delete task 7: refused: tool_allow_list denied a call of delete_task" in printed
    assert "Undelete task 7: I do not know how to do that." in printed
    assert "Refund 30 EUR: a colleague will look into your refund" in printed
    assert "7 of 8 wishes reached the model" in printed
    assert "4 counted, 8 of 8 runs checked" in printed
    assert ["success", "success", "blocked", "success", "success", "blocked", "success", "blocked"] == [
        line["outcome"] for line in lines if line["event_name"] == "workflow.finished"
    ]
