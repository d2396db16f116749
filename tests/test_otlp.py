"""What a backend receives over OTLP: decoded from the wire, configured through the standard variables alone."""

import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Decision, Sampler, SamplingResult
from otlp_receiver import GrpcReceiver, HttpReceiver, Receiver

import taskpilot_instrument as tp
from taskpilot_instrument._provider import ExportCounts, build_provider
from taskpilot_instrument.embedded import EmbeddedServer, Reply

pytestmark = [pytest.mark.openai, pytest.mark.usefixtures("clean_environment")]

MESSAGES: Any = [{"role": "user", "content": "hello there"}]
USAGE = tp.TokenUsage(150, 50)
TREE = ["workflow.run", "  PlannerAgent.execute", "    chat gpt-4o-mini", "    create_task"]
RECEIVERS: dict[str, type[Receiver]] = {"http": HttpReceiver, "grpc": GrpcReceiver}


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
    call = receiver.span("chat gpt-4o-mini")
    llm = call.tags
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
        | {name: value for name, value in tokens.items() if name in {"input_tokens", "output_tokens", "cost_usd"}}
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
            "tokens_per_second": pytest.approx(50e9 / (call.end_ns - call.start_ns)),
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


@pytest.mark.parametrize(("variable", "sent"), [("gzip", "gzip"), ("none", None), (None, None)])
def test_compression_over_http(
    http_receiver: HttpReceiver, monkeypatch: pytest.MonkeyPatch, variable: str | None, sent: str | None
) -> None:
    """Exports are compressed where OTEL_EXPORTER_OTLP_COMPRESSION says so."""
    if variable is not None:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", variable)
    with tp.instrument():
        create_task("x")
    assert [export.headers.get("content-encoding") for export in http_receiver.exports] == [sent]
    assert http_receiver.tree() == ["create_task"]


@pytest.mark.parametrize("variable", ["OTEL_EXPORTER_OTLP_COMPRESSION", "OTEL_EXPORTER_OTLP_TIMEOUT"])
def test_what_the_exporter_refuses(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """A variable that makes the exporter fail is a ConfigurationError that quotes it; nothing is left behind."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    monkeypatch.setenv(variable, "nonsense")
    threads = threading.active_count()
    with pytest.raises(tp.ConfigurationError, match=r"OTLP exporter.*nonsense"):
        tp.instrument()
    assert threads == threading.active_count()
    with pytest.raises(tp.NotInstrumentedError):
        tp.golden_signals()


def test_failures(receiver: Receiver, server: EmbeddedServer, client: openai.OpenAI) -> None:
    """A failed call arrives as status ERROR with its type, message and exception event, up to the root."""
    server.script(Reply.error(404, "no such model"))
    with tp.instrument(), pytest.raises(openai.NotFoundError):
        triage(client)
    assert receiver.tree() == TREE[:3]
    for span in receiver.spans:
        assert (span.status, span.tags["outcome"], span.tags["error.type"]) == ("ERROR", "error", "NotFoundError")
        assert "no such model" in span.message
        assert [event.name for event in span.events] == ["exception"]
        assert span.events[0].tags["exception.type"] == "NotFoundError"
        assert "no such model" in span.events[0].tags["exception.message"]
    # A refused call costs nothing, and nothing else was spent.
    assert [span.tags.get("cost_usd") for span in receiver.spans if span.kind != "CLIENT"] == [0.0, 0.0]
    assert [span.tags.get("cost_usd") for span in receiver.spans if span.kind == "CLIENT"] == [None]


def test_refusals_and_verdicts(http_receiver: HttpReceiver) -> None:
    """A blocked run and a run that was failed by hand arrive as ERROR with the reason, and without an exception."""
    with tp.instrument():
        with tp.workflow("blocked") as run:
            run.block("over budget")
        with tp.workflow("failed") as run:
            run.fail("no plan")
    assert [(span.status, span.message, span.tags["outcome"], span.events) for span in http_receiver.spans] == [
        ("ERROR", "over budget", "blocked", ()),
        ("ERROR", "no plan", "error", ()),
    ]


# --- where to, and under which name -------------------------------------------------------------


def test_default_resource(receiver: Receiver) -> None:
    """Without any name given the service is called taskpilot, and the SDK's own attributes are there."""
    with tp.instrument():
        create_task("x")
    resource = receiver.span("create_task").resource
    assert resource["service.name"] == "taskpilot"
    assert resource["telemetry.sdk.language"] == "python"


def test_resource_from_the_environment(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """OTEL_SERVICE_NAME goes before service.name of OTEL_RESOURCE_ATTRIBUTES; the other attributes are decoded."""
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=other,deployment.environment=pre%20prod,team=a%3Db")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "planner")
    with tp.instrument():
        create_task("x")
    resource = receiver.span("create_task").resource
    assert {
        "service.name": "planner",
        "deployment.environment": "pre prod",
        "team": "a=b",
    } == {name: resource[name] for name in ("service.name", "deployment.environment", "team")}


@pytest.mark.parametrize(
    ("environ", "arguments", "expected"),
    [
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=from-attributes"}, {}, "from-attributes"),
        ({"OTEL_SERVICE_NAME": "otel", "TASKPILOT_SERVICE_NAME": "ours"}, {}, "ours"),
        ({"OTEL_SERVICE_NAME": "otel"}, {"service_name": "argument"}, "argument"),
    ],
)
def test_service_name(
    http_receiver: HttpReceiver,
    monkeypatch: pytest.MonkeyPatch,
    environ: dict[str, str],
    arguments: dict[str, str],
    expected: str,
) -> None:
    """An argument goes before TASKPILOT_SERVICE_NAME, that before OpenTelemetry's variables."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with tp.instrument(**arguments):  # type: ignore[arg-type]
        create_task("x")
    assert http_receiver.span("create_task").resource["service.name"] == expected


def test_paths(http_receiver: HttpReceiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The general endpoint is a base to which the signal's path is added; the one for traces is used as it is."""
    with tp.instrument() as handle:
        create_task("x")
        assert handle.health().spans_go_to == f"{http_receiver.origin}/v1/traces"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{http_receiver.origin}/elsewhere")
    with tp.instrument():
        create_task("x")
    assert [export.path for export in http_receiver.exports] == ["/v1/traces", "/elsewhere"]


def test_traces_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    """Endpoint and protocol for traces go before the general ones."""
    with GrpcReceiver() as running:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", running.origin)
        with tp.instrument():
            create_task("x")
    assert running.tree() == ["create_task"]


def test_grpc_without_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over gRPC an endpoint may be host:port, and OTEL_EXPORTER_OTLP_INSECURE says that it has no certificate."""
    with GrpcReceiver() as running:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", running.origin.removeprefix("http://"))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_INSECURE", "true")
        with tp.instrument():
            create_task("x")
    assert running.tree() == ["create_task"]


def test_headers(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """OTEL_EXPORTER_OTLP_HEADERS is sent with each export, decoded."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=blue,authorization=Bearer%20abc")
    with tp.instrument():
        create_task("x")
    (export,) = receiver.exports
    assert (export.headers["x-tenant"], export.headers["authorization"]) == ("blue", "Bearer abc")


def test_secrets_of_the_endpoint(http_receiver: HttpReceiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A password in the endpoint's URL is used, and not shown by health()."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", http_receiver.origin.replace("//", "//me:hunter2@"))
    with tp.instrument() as handle:
        create_task("x")
        assert "hunter2" not in str(handle.health())
    assert http_receiver.tree() == ["create_task"]


def test_exporter_none(http_receiver: HttpReceiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """OTEL_TRACES_EXPORTER=none sends nothing although an endpoint is there; spans and signals go on."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    with tp.instrument() as handle, tp.workflow("w") as run:
        create_task("x")
        assert handle.force_flush() is True
        assert run.trace_id is not None
    assert handle.golden_signals().sample.runs == 1
    assert http_receiver.exports == []


@pytest.mark.parametrize(
    ("asked", "endpoint", "said"),
    [
        ("console", None, "not as OTEL_TRACES_EXPORTER=console asks"),
        ("otlp, Console", "http://127.0.0.1:1", "not as OTEL_TRACES_EXPORTER=Console asks"),
        ("otlp", None, "OTEL_TRACES_EXPORTER=otlp sends nothing until OTEL_EXPORTER_OTLP_ENDPOINT says where to"),
        ("otlp", "http://127.0.0.1:1", None),
        ("none", None, None),
    ],
)
def test_exporter_that_sends_nothing(
    asked: str,
    endpoint: str | None,
    said: str | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whoever asks for an exporter that sends nothing is told so at start; an application's provider is its own."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", asked)
    if endpoint is not None:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    with tp.instrument(tracer_provider=TracerProvider()):
        pass
    assert [] == caplog.messages
    with tp.instrument(logs="off"):
        pass
    assert (said is not None) == any("OTEL_TRACES_EXPORTER" in message for message in caplog.messages)
    assert said is None or said in caplog.text


# --- when the receiver fails --------------------------------------------------------------------


@pytest.mark.parametrize("kind", RECEIVERS)
@pytest.mark.parametrize("fault", ["down", "refuses"])
def test_receiver_fails(
    server: EmbeddedServer, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch, kind: str, fault: str
) -> None:
    """A receiver that is down or refuses costs spans, which health() counts, and nothing else."""
    server.script(Reply("the plan", usage=USAGE))
    with RECEIVERS[kind](answer=False) as running:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", running.origin if fault == "refuses" else free_origin())
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", running.protocol)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.3")
        handle = tp.instrument()
        assert triage(client) == "created the plan"
        assert handle.health().spans_dropped == 0
        assert handle.force_flush() is False
        state = handle.health()
        assert (state.spans_exported, state.spans_dropped, state.errors_swallowed, state.ok) == (0, 4, {}, False)
        assert "0 exported, 0 pending, 4 dropped" in str(state)
        assert handle.golden_signals().as_dict()["success_rate"] == 100.0
        assert handle.force_flush() is True  # what is lost is lost: nothing waits any more
        handle.uninstrument()
    assert running.exports == []


def test_full_queue(http_receiver: HttpReceiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans that a full queue dropped are counted: every span is exported or dropped."""
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "10")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "5")
    http_receiver.may_answer.clear()
    with tp.instrument() as handle:
        for number in range(100):
            create_task(str(number))
        http_receiver.may_answer.set()
        assert handle.force_flush() is False
        state = handle.health()
    assert state.spans_exported == len(http_receiver.spans)
    assert state.spans_exported + state.spans_dropped == 100
    assert state.spans_dropped >= 80
    assert handle.golden_signals().sample.runs == 0


def test_flush_keeps_its_time(http_receiver: HttpReceiver) -> None:
    """force_flush() returns in time although the receiver does not answer, and says that it was in vain."""
    http_receiver.may_answer.clear()
    with tp.instrument() as handle:
        create_task("x")
        assert handle.force_flush(timeout_s=0.05) is False
        assert http_receiver.spans == []
        http_receiver.may_answer.set()
        assert handle.force_flush() is True
    assert http_receiver.tree() == ["create_task"]


# --- sampled out, switched off ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "argument"),
    [
        ("always_off", None),
        ("traceidratio", "0.0"),
        ("parentbased_always_off", None),
        ("parentbased_traceidratio", "0"),
    ],
)
def test_sampled_out(
    http_receiver: HttpReceiver,
    server: EmbeddedServer,
    client: openai.OpenAI,
    monkeypatch: pytest.MonkeyPatch,
    sampler: str,
    argument: str | None,
) -> None:
    """Where no span is sampled none is sent, and metrics, cost and golden signals are exact all the same."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    if argument is not None:
        monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", argument)
    server.script(*[Reply("the plan", usage=USAGE)] * 3, Reply.error(404, "gone"))
    with tp.instrument() as handle:
        for _ in range(3):
            triage(client)
        with pytest.raises(openai.NotFoundError):
            triage(client)
        assert handle.force_flush() is True
        check_signals(handle)
        state = handle.health()
        assert (state.spans_exported, state.spans_dropped) == (0, 0)
    assert http_receiver.exports == []


def test_sampled_by_ratio(http_receiver: HttpReceiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ratio keeps whole traces and drops whole traces; what is counted does not depend on it."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.5")
    with tp.instrument() as handle:
        for _ in range(200):
            with tp.workflow("w"):
                create_task("x")
        assert handle.force_flush() is True
        assert handle.golden_signals().sample.runs == 200
        assert (handle.health().spans_exported, handle.health().spans_dropped) == (len(http_receiver.spans), 0)
    lines = http_receiver.tree()
    kept = lines.count("workflow.run")
    assert lines == ["workflow.run", "  create_task"] * kept
    assert 50 < kept < 150  # outside of it once in 10¹² runs


class RecordOnly(Sampler):
    """Keep spans for the processors of this process, and export none."""

    def should_sample(self, *_: Any, **__: Any) -> SamplingResult:
        """Record."""
        return SamplingResult(Decision.RECORD_ONLY)

    def get_description(self) -> str:
        """Name it."""
        return "RecordOnly"


def test_recorded_but_not_sampled(http_receiver: HttpReceiver) -> None:
    """A span that a sampler of the application's records without sampling is not one that was dropped."""
    counts = ExportCounts()
    provider = build_provider(tp.Settings(), counts)
    for sampler, ended in ((RecordOnly(), 0), (ALWAYS_ON, 1)):
        provider.sampler = sampler
        provider.get_tracer(sampler.get_description()).start_span("x").end()
        provider.force_flush()
        counts.settle(counts.ended)
        assert (counts.ended, counts.exported, counts.dropped) == (ended, ended, 0)
    provider.shutdown()
    assert http_receiver.tree() == ["x"]


def test_delivery_is_told_of_one_moment(http_receiver: HttpReceiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often health is asked while spans are sent, each ended span is delivered, dropped or pending."""
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")
    before = sys.getswitchinterval()
    with tp.instrument(logs="off") as handle:
        for _ in range(500):
            with tp.workflow("w"):
                pass
        sys.setswitchinterval(1e-6)  # the exporter's thread may count between any two reads
        try:
            told = []
            while not told or told[-1].spans_pending:
                told.append(handle.health())
        finally:
            sys.setswitchinterval(before)
        sums = {each.spans_exported + each.spans_dropped + each.spans_pending for each in told}
    assert (sums, len(http_receiver.spans)) == ({500}, 500), len(told)


def test_sdk_disabled(
    http_receiver: HttpReceiver, server: EmbeddedServer, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OTEL_SDK_DISABLED=true makes no spans; metrics, golden signals and log lines go on."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    server.script(*[Reply("the plan", usage=USAGE)] * 3, Reply.error(404, "gone"))
    log = io.StringIO()
    with tp.instrument(logs=log) as handle:
        for _ in range(3):
            triage(client)
        with pytest.raises(openai.NotFoundError):
            triage(client)
        assert handle.force_flush() is True
        check_signals(handle)
        assert handle.health().spans_go_to == "nowhere (switched off)"
        with tp.workflow("w") as run:
            assert run.trace_id is None
    events = [json.loads(line)["event_name"] for line in log.getvalue().splitlines()]
    assert events[:5] == ["agent.started", "llm.called", "tool.called", "agent.finished", "workflow.finished"]
    assert http_receiver.exports == []


def check_signals(handle: tp.Instrumentation) -> None:
    """Assert the exact figures of three workflows that went well and one that failed."""
    signals = handle.golden_signals()
    assert (signals.sample.runs, signals.sample.successes, signals.sample.calls) == (4, 3, 4)
    assert signals.success_rate == 75.0
    assert handle.metrics.get_counter("llm.cost.total") == 3 * 0.0000525
    assert handle.metrics.get_counter("llm.tokens.total.all") == 600
    assert handle.metrics.get_histogram_stats("workflow.latency_ms")["count"] == 4
    state = handle.health()
    assert (state.calls_seen, state.calls_recorded) == (4, 4)


# --- processes that just end --------------------------------------------------------------------

APPLICATION = """
import openai
import taskpilot_instrument as tp

tp.instrument()
client = openai.OpenAI(max_retries=0)
ask = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello there"}]}

@tp.observed_agent
def planner():
    client.chat.completions.create(**ask)
    return client.chat.completions.create(**ask, stream=True)

stream = planner()
print(next(stream).object)
"""


def run(script: str, receiver: Receiver, server: EmbeddedServer) -> subprocess.CompletedProcess[str]:
    """Run an application in a process of its own, told by its environment alone where to send what."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "TASKPILOT_"))}
    environ = {
        "OPENAI_BASE_URL": server.url,
        "OPENAI_API_KEY": "sk-test",
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.origin,
        "OTEL_EXPORTER_OTLP_PROTOCOL": receiver.protocol,
        "OTEL_SERVICE_NAME": "batch-job",
        "TASKPILOT_LOGS": "off",
    }
    return subprocess.run(
        [sys.executable, "-c", script], env=inherited | environ, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("kind", "ending", "code", "last_words"),
    [
        ("http", "", 0, []),
        ("http", "raise SystemExit(3)", 3, []),
        ("http", "raise ValueError('boom')", 1, ["ValueError: boom"]),
        ("grpc", "", 0, []),
    ],
)
def test_process_that_just_ends(
    server: EmbeddedServer, kind: str, ending: str, code: int, last_words: list[str]
) -> None:
    """A process that calls no shutdown has exported its spans, that of a stream still open included."""
    with RECEIVERS[kind]() as receiver:
        ended = run(APPLICATION + ending, receiver, server)
    assert (ended.stdout, ended.returncode) == ("chat.completion.chunk\n", code)
    assert ended.stderr.splitlines()[-1:] == last_words
    assert receiver.tree() == ["workflow.run", "  planner.execute", "    chat gpt-4o-mini", "    chat gpt-4o-mini"]
    calls = sorted((span for span in receiver.spans if span.kind == "CLIENT"), key=lambda span: span.start_ns)
    assert [span.tags["outcome"] for span in calls] == ["success", "abandoned"]
    assert {span.resource["service.name"] for span in receiver.spans} == {"batch-job"}


def free_origin() -> str:
    """Return a URL at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"
