"""The decision log: a line and a span event for each decision, with who, what, why, which rule and what was done."""

from collections.abc import Callable
from typing import Any

import pytest
from openai import OpenAI

import taskpilot_instrument as tp
from taskpilot_instrument.testing import Captured, capture

SECRET = "my secret plan"
WHO = ("workflow", "agent", "tool", "request_id")
WHAT = ("event_name", "level", "policy", "decision", "reason", "message")


@tp.observed_tool
def delete_task(title: str) -> str:
    """Delete a task."""
    return f"deleted {title}"


@tp.observed_agent
class PlannerAgent:
    """An agent that calls one tool."""

    def run(self, goal: str) -> str:
        """Call it."""
        return delete_task(goal)


def run(**settings: Any) -> Captured:
    """Let the agent run once under some settings, and return what was recorded."""
    with capture(**settings) as captured:
        try:
            with tp.workflow("triage", request_id="req-abc-123"):
                PlannerAgent().run(SECRET)
        except tp.BlockedError:
            pass
        return captured


def decisions(captured: Captured) -> list[dict[str, Any]]:
    """Return the lines of the decision log."""
    return [line for line in captured.logs if line["category"] == "decision"]


def fails(_: object) -> bool:
    """Fail."""
    raise ValueError(SECRET)


def policy(moment: Any, answer: Any, **more: Any) -> dict[str, Any]:
    """Return the settings of one policy."""
    return {"policies": [tp.Policy(lambda _: answer, "p", moments=[moment], **more)]}


def failing(moment: Any, **more: Any) -> dict[str, Any]:
    """Return the settings of one policy that fails."""
    return {"policies": [tp.Policy(fails, "p", moments=[moment], **more)]}


def guardrail(**more: Any) -> dict[str, Any]:
    """Return the settings of one guardrail."""
    return {"guardrails": [tp.Guardrail("g", **more)]}


def refuses(_: str) -> dict[str, object]:
    """Allow nothing."""
    return {"allowed": False, "reason": "[r-1] why"}


AGENT = ("triage", "PlannerAgent", None, "req-abc-123")
TOOL = ("triage", "PlannerAgent", "delete_task", "req-abc-123")
ODD = tp.Deny("why", "r-1")
KINDS = [
    (policy("agent_input", tp.Flag("why", "r-1")), AGENT, "PlannerAgent.execute",
     ("policy.decided", "WARNING", "p", "flag", "[r-1] why", "p flagged the input of PlannerAgent")),
    (policy("agent_input", ODD), AGENT, "PlannerAgent.execute",
     ("policy.decided", "WARNING", "p", "deny", "[r-1] why", "p denied the input of PlannerAgent")),
    (policy("agent_output", ODD, on_deny="replace"), AGENT, "PlannerAgent.execute",
     ("policy.decided", "WARNING", "p", "replace", "[r-1] why",
      "p denied the output of PlannerAgent and replaced the result")),
    (policy("tool_call", ODD), TOOL, "delete_task",
     ("tool.denied", "WARNING", "p", "deny", "[r-1] why", "p denied a call of delete_task")),
    (policy("tool_call", tp.Allow("why", "r-1")), TOOL, "delete_task",
     ("tool.authorized", "INFO", "p", "allow", "[r-1] why", "p authorised a call of delete_task")),
    (policy("tool_call", tp.Flag("why")), TOOL, "delete_task",
     ("policy.decided", "WARNING", "p", "flag", "why", "p flagged a call of delete_task")),
    (guardrail(check_input=refuses), AGENT, "PlannerAgent.execute",
     ("guardrail.blocked", "WARNING", "g", "block", "[r-1] why", "g blocked the input of PlannerAgent")),
    (guardrail(check_output=refuses, on_block="replace"), AGENT, "PlannerAgent.execute",
     ("guardrail.blocked", "WARNING", "g", "replace", "[r-1] why",
      "g blocked the output of PlannerAgent and replaced the result")),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "who", "span", "what"), KINDS)
def test_a_decision_is_one_line_and_one_span_event(
    settings: dict[str, Any], who: tuple[str | None, ...], span: str, what: tuple[str, ...]
) -> None:
    """A decision says who, what, why, which rule and what was done; its line leads to the span that has its event."""
    captured = run(**settings)
    (line,) = decisions(captured)
    found = captured.span(span)
    (event,) = [event for event in found.events if event.name == what[0]]
    assert found.context is not None
    assert who == tuple(line.get(name) for name in WHO)
    assert (*what[:5], f"[DECISION] {what[5]}") == tuple(line[name] for name in WHAT)
    assert (f"{found.context.trace_id:032x}", f"{found.context.span_id:016x}") == (line["trace_id"], line["span_id"])
    assert what[2:5] == tuple((event.attributes or {})[name] for name in ("policy", "decision", "reason"))


@pytest.mark.parametrize(
    ("settings", "decision"),
    [
        (failing("agent_input"), "fail"),
        (failing("tool_call"), "fail"),
        (failing("tool_call", fail_closed=True), "block"),
        (guardrail(check_input=fails), "fail"),
        (guardrail(check_output=fails, on_error="block"), "block"),
    ],
)
def test_a_failed_check_is_a_decision_too(settings: dict[str, Any], decision: str) -> None:
    """What could not be judged is in the log, with what was done then, and without the words of the error."""
    (line,) = decisions(run(**settings))
    assert (decision, True) == (line["decision"], line["reason"].startswith("[check_failed] ValueError in test_decis"))


@pytest.mark.parametrize("answer", [None, True, "", tp.Allow(), tp.Allow(rule="r-1")])
@pytest.mark.parametrize("moment", ["agent_input", "tool_call", "agent_output"])
def test_silent_consent_is_not_logged(moment: str, answer: object) -> None:
    """What nobody minds is no line; nor is what an agent may do anyway."""
    assert [] == decisions(run(**policy(moment, answer)))
    assert [] == decisions(run(**policy("agent_input", tp.Allow("because"))))


ALL: list[dict[str, Any]] = [each[0] for each in KINDS] + [
    failing("agent_input"),
    failing("tool_call", fail_closed=True),
]


@pytest.mark.parametrize("settings", ALL)
@pytest.mark.parametrize("content", ["no_content", "span_only"])
def test_what_was_said_stays_out(settings: dict[str, Any], content: str) -> None:
    """Without content in events no line and no span event holds what was said."""
    captured = run(**settings, capture_content=content)
    assert "secret" not in str(captured.logs)
    assert "secret" not in str([event.attributes for span in captured.spans for event in span.events])


@pytest.mark.parametrize("settings", ALL)
@pytest.mark.parametrize("content", ["event_only", "span_and_event"])
def test_what_was_said_where_it_is_captured(settings: dict[str, Any], content: str) -> None:
    """With content in events, line and event say what was judged, redacted."""
    captured = run(**settings, capture_content=content, redact=lambda text: text.replace("plan", "***"))
    (line,) = decisions(captured)
    (event,) = [event for span in captured.spans for event in span.events if event.name == line["event_name"]]
    names = ("gen_ai.input.messages", "gen_ai.tool.call.arguments", "gen_ai.output.messages")
    (said,) = [value for name, value in (event.attributes or {}).items() if name in names]
    assert "my secret ***" in str(said)
    assert f": {said}" in line["message"]


def test_a_denial_is_told_apart_from_the_line_of_the_run() -> None:
    """The denied run has its own line; a secret that a denial's error could carry is in neither."""
    captured = run(**policy("tool_call", ODD))
    assert ["agent.started", "tool.denied", "tool.called", "agent.finished", "workflow.finished"] == [
        line["event_name"] for line in captured.logs
    ]
    assert ["blocked"] * 3 == [line["outcome"] for line in captured.logs if "outcome" in line]


def test_a_refused_budget_is_a_decision(client: OpenAI) -> None:
    """What a budget refuses stands in the same log."""

    @tp.observed_agent
    def ask(text: str) -> object:
        return client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": text}])

    budget = tp.Budget("tiny", 0.0000001, on_exceed="block")
    with capture(budgets=[budget], ledger="memory") as captured, pytest.raises(tp.BudgetExceededError):
        ask(SECRET)
    (line,) = decisions(captured)
    assert ("budget.blocked", "ask", "tiny", "block") == tuple(
        line[name] for name in ("event_name", "agent", "policy", "decision")
    )
    assert "secret" not in str(captured.logs)


@pytest.mark.parametrize("profile", ["flat", "ecs"])
def test_every_decision_is_json_in_both_profiles(profile: Any) -> None:
    """The Elastic profile has the same decisions under its own names."""
    names: dict[str, Callable[[dict[str, Any]], Any]] = {
        "flat": lambda line: (line["policy"], line["decision"], line["reason"]),
        "ecs": lambda line: (
            line.get("labels.policy") or line["labels"]["policy"],
            line.get("labels.decision") or line["labels"]["decision"],
            line.get("event.reason") or line["event"]["reason"],
        ),
    }
    captured = run(**policy("tool_call", ODD), log_profile=profile)
    (line,) = [line for line in captured.logs if "DECISION" in line["message"]]
    assert ("p", "deny", "[r-1] why") == names[profile](line)
