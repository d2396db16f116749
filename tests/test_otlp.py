"""What a backend receives over OTLP: decoded from the wire, configured through the standard variables alone."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from otlp_receiver import GrpcReceiver, HttpReceiver, Receiver

import taskpilot_instrument as tp
from taskpilot_instrument.embedded import EmbeddedServer, Reply

pytestmark = pytest.mark.openai

MESSAGES: Any = [{"role": "user", "content": "hello there"}]
USAGE = tp.TokenUsage(150, 50)
TREE = ["workflow.run", "  PlannerAgent.execute", "    chat gpt-4o-mini", "    create_task"]
RECEIVERS: dict[str, type[Receiver]] = {"http": HttpReceiver, "grpc": GrpcReceiver}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hide the developer's own variables, and let no failed test stay instrumented."""
    for name in os.environ:
        if name.startswith(("OTEL_", "TASKPILOT_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TASKPILOT_LOGS", "off")
    yield
    tp.uninstrument()


@pytest.fixture(params=RECEIVERS)
def receiver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """A receiver of each kind, which the environment names."""
    with RECEIVERS[request.param]() as running:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", running.origin)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", running.protocol)
        yield running


@pytest.fixture
def http_receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpReceiver]:
    """A receiver where the protocol makes no difference."""
    with HttpReceiver() as running:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", running.origin)
        yield running


@tp.observed_tool
def create_task(title: str) -> str:
    """Stand for any tool."""
    return f"created {title}"


@tp.observed_agent
class PlannerAgent:
    """Call the model, then the tool."""

    def __init__(self, client: openai.OpenAI) -> None:
        self.client = client

    def run(self, goal: str) -> str:
        """Plan and create."""
        reply = self.client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": goal}])
        return create_task(reply.choices[0].message.content or "")


def triage(client: openai.OpenAI) -> str:
    """Run the small workflow of these tests."""
    with tp.workflow("triage", request_id="req-abc-123", session_id="s-1", user_id="u-1"):
        return PlannerAgent(client).run("ship it")


def parents(receiver: Receiver) -> dict[str, str]:
    """Return the name of each span's parent by the name of the span."""
    names = {span.span_id: span.name for span in receiver.spans}
    return {span.name: names.get(span.parent_id, "") for span in receiver.spans}


# --- what arrives -------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_tree_and_tags(
    receiver: Receiver,
    server: EmbeddedServer,
    client: openai.OpenAI,
    monkeypatch: pytest.MonkeyPatch,
    compression: str,
) -> None:
    """A workflow arrives as one tree with the names, kinds and tags of the contract, over each protocol."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", compression)
    server.script(Reply("the plan", usage=USAGE))
    before_ns = time.time_ns()
    with tp.instrument() as handle:
        assert triage(client) == "created the plan"
        assert handle.force_flush() is True
        assert (handle.health().spans_exported, handle.health().spans_dropped) == (4, 0)
    assert receiver.tree() == TREE
    assert parents(receiver) == {
        "workflow.run": "",
        "PlannerAgent.execute": "workflow.run",
        "chat gpt-4o-mini": "PlannerAgent.execute",
        "create_task": "PlannerAgent.execute",
    }
    assert len({span.trace_id for span in receiver.spans}) == 1
    assert {span.name: span.kind for span in receiver.spans} == {
        "workflow.run": "INTERNAL",
        "PlannerAgent.execute": "INTERNAL",
        "chat gpt-4o-mini": "CLIENT",
        "create_task": "INTERNAL",
    }
    for span in receiver.spans:
        assert (span.status, span.events) == ("UNSET", ())
        assert span.scope == ("taskpilot_instrument", tp.__version__)
        assert before_ns <= span.start_ns <= span.end_ns <= time.time_ns()
        assert span.tags.pop("latency_ms") == pytest.approx((span.end_ns - span.start_ns) / 1e6, abs=1e-3)
    llm = receiver.span("chat gpt-4o-mini").tags
    response_id, port = llm["gen_ai.response.id"], int(server.origin.rpartition(":")[2])
    run = {"request_id": "req-abc-123", "session.id": "s-1", "user.id": "u-1", "outcome": "success"}
    tokens = {
        "model": "gpt-4o-mini",
        "input_tokens": 150,
        "output_tokens": 50,
        "cost_usd": 0.0000525,
        "gen_ai.usage.input_tokens": 150,
        "gen_ai.usage.output_tokens": 50,
    }
    assert {span.name: {k: v for k, v in span.tags.items() if k != "latency_ms"} for span in receiver.spans} == {
        "workflow.run": run
        | tokens
        | {
            "workflow": "triage",
            "gen_ai.operation.name": "invoke_workflow",
            "gen_ai.workflow.name": "triage",
        },
        "PlannerAgent.execute": run
        | tokens
        | {
            "agent": "PlannerAgent",
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.name": "PlannerAgent",
        },
        "chat gpt-4o-mini": run
        | tokens
        | {
            "agent": "PlannerAgent",
            "cost_source": llm["cost_source"],
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": "gpt-4o-mini",
            "gen_ai.response.model": "gpt-4o-mini-2024-07-18",
            "gen_ai.response.id": response_id,
            "gen_ai.response.finish_reasons": ["stop"],
            "server.address": "127.0.0.1",
            "server.port": port,
            "http.response.header.x-request-id": ["req_000001"],
        },
        "create_task": run
        | {
            "agent": "PlannerAgent",
            "tool": "create_task",
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": "create_task",
            "gen_ai.tool.type": "function",
            "gen_ai.tool.description": "Stand for any tool.",
        },
    }
    encoding = {export.headers.get("content-encoding", export.headers.get("grpc-encoding")) for export in receiver.exports}
    assert encoding <= ({"gzip"} if compression == "gzip" and receiver.protocol != "grpc" else {None})
