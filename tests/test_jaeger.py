"""Traces of the demo's workflow, as Jaeger and the collector receive and judge them, decoded from the wire."""

import asyncio
import contextlib
import importlib.util
import re
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from collector import OBSERVABILITY, check_wiring, read, variables
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from otlp_receiver import GrpcReceiver, HttpReceiver, ReceivedSpan, Receiver

import taskpilot_instrument as tp
from taskpilot_instrument.embedded import EmbeddedServer, Reply

pytestmark = pytest.mark.openai

if not OBSERVABILITY.exists():
    pytest.skip("observability/ was not copied along", allow_module_level=True)

CONFIG = OBSERVABILITY / "otel-collector" / "config.yaml"
EXAMPLE = OBSERVABILITY.parent / "examples" / "taskpilot_workflow.py"


def work_off(receiver: Receiver) -> None:
    """Run the demo's workflow, and one run whose only call costs $0.15, with the exporter of the standard variables."""
    spec = importlib.util.spec_from_file_location(EXAMPLE.stem, EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)

    async def work(server: EmbeddedServer, handle: tp.Instrumentation) -> None:
        async with openai.AsyncOpenAI(api_key="none", base_url=server.url) as client:
            await example.work_off(example.GOALS, client, handle.metrics)
            server.script(Reply("…", usage=tp.TokenUsage(1_000_000, 0)))
            with tp.workflow("costly", request_id="req-abc-123"):
                await example.PlannerAgent(client).run("Read everything")

    endpoint = f"{receiver.origin}/v1/traces" if receiver.protocol == "http/protobuf" else receiver.origin
    given: Any = {"logs": "off", "otlp_endpoint": endpoint, "otlp_protocol": receiver.protocol}
    with EmbeddedServer(example.answer) as server, tp.instrument(**given) as handle:
        asyncio.run(work(server, handle))


@pytest.fixture(scope="module", params=[HttpReceiver, GrpcReceiver], ids=["http", "grpc"])
def received(request: pytest.FixtureRequest) -> Iterator[Receiver]:
    """What a receiver of each kind has got."""
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as opened:
        for name in ("OTEL_SDK_DISABLED", "OTEL_TRACES_SAMPLER", "OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"):
            patch.delenv(name, raising=False)
        receiver = opened.enter_context(request.param())
        work_off(receiver)
        yield receiver


def traces(receiver: Receiver) -> list[list[ReceivedSpan]]:
    """Return the spans of each trace."""
    found: dict[str, list[ReceivedSpan]] = {}
    for span in receiver.spans:
        found.setdefault(span.trace_id, []).append(span)
    return list(found.values())


def root(trace: list[ReceivedSpan]) -> ReceivedSpan:
    """Return the only span without a parent."""
    (found,) = [span for span in trace if not span.parent_id]
    return found


# --- what Jaeger shows --------------------------------------------------------------------------


def test_every_trace_is_one_tree_of_one_service(received: Receiver) -> None:
    """Eleven runs are eleven traces, each with its root and no orphan, all of the service taskpilot."""
    assert 11 == len(traces(received))
    for trace in traces(received):
        assert "workflow.run" == root(trace).name
        assert {span.parent_id for span in trace} <= {"", *(span.span_id for span in trace)}
    assert {"taskpilot"} == {span.resource["service.name"] for span in received.spans}


def test_whole_tree(received: Receiver) -> None:
    """A run that goes through arrives as planner, reviewer and executor, each with its call and tools, and its vote."""
    first = min(traces(received), key=lambda trace: root(trace).start_ns)
    by_id = {span.span_id: span.name for span in first}
    assert [
        ("workflow.run", None),
        ("PlannerAgent.execute", "workflow.run"),
        ("chat gpt-4o-mini", "PlannerAgent.execute"),
        ("ReviewerAgent.execute", "workflow.run"),
        ("chat gpt-4o-mini", "ReviewerAgent.execute"),
        ("ExecutorAgent.execute", "workflow.run"),
        ("chat gpt-4o-mini", "ExecutorAgent.execute"),
        ("create_task", "ExecutorAgent.execute"),
        ("notify_external_system", "ExecutorAgent.execute"),
        ("user.feedback", "workflow.run"),
    ] == [(span.name, by_id.get(span.parent_id)) for span in sorted(first, key=lambda span: span.start_ns)]


def test_kinds_on_the_wire(received: Receiver) -> None:
    """Money and times travel as doubles, counts as integers, names as strings: what a sampler or a search compares."""
    kinds: dict[str, set[str | None]] = {}
    for span in raw_spans(received):
        for pair in span.attributes:
            kinds.setdefault(pair.key, set()).add(pair.value.WhichOneof("value"))
    doubles, whole = {"cost_usd", "latency_ms", "time_to_first_chunk_ms"}, {"input_tokens", "output_tokens"}
    assert {name: {"double_value"} for name in doubles} == {name: kinds[name] for name in doubles}
    assert {name: {"int_value"} for name in whole} == {name: kinds[name] for name in whole}
    for name in ("agent", "model", "workflow", "tool", "request_id", "outcome"):
        assert {"string_value"} == kinds[name]


def raw_spans(receiver: Receiver) -> Iterator[Span]:
    """Yield the spans as the protocol has them."""
    for export in receiver.exports:
        for resource in export.body.resource_spans:
            for scope in resource.scope_spans:
                yield from scope.spans


def find(receiver: Receiver, search: str) -> list[list[ReceivedSpan]]:
    """Return the traces that Jaeger's tag search finds: one span must carry every tag, compared as text."""
    wanted = dict(pair.split("=", 1) for pair in search.split())

    def carries(span: ReceivedSpan) -> bool:
        tags = {**span.tags, "error": str(span.status == "ERROR").lower()}
        return all(name in tags and str(tags[name]) == value for name, value in wanted.items())

    return [trace for trace in traces(receiver) if any(map(carries, trace))]


@pytest.mark.parametrize(
    ("search", "count"),
    [
        ("agent=PlannerAgent", 11),
        ("agent=ExecutorAgent", 9),
        ("model=gpt-4o-mini", 11),
        ("agent=PlannerAgent model=gpt-4o-mini", 11),
        ("request_id=req-abc-123", 1),
        ("cost_usd=0.15", 1),
        ("outcome=error", 1),
        ("outcome=blocked", 1),
        ("error=true", 2),
        ("tool=notify_external_system", 9),
        ("agent=NobodyAgent", 0),
    ],
)
def test_searches(received: Receiver, search: str, count: int) -> None:
    """What the README says to type finds the traces that it should."""
    assert count == len(find(received, search))


def test_searches_of_the_readme(received: Receiver) -> None:
    """Each search that stands in the README under Jaeger finds a trace of the demo, or the costly one of this test."""
    section = readme_section("Jaeger")
    searches = re.findall(r"^\| `([\w.]+=[^`]+)` \|", section, re.MULTILINE)
    assert {"agent=PlannerAgent", "model=gpt-4o-mini", "cost_usd=0.15"} <= set(searches)
    assert [] == [search for search in searches if not find(received, search)]


def readme_section(title: str) -> str:
    """Return a section of the operator's README."""
    texts = [path.read_text() for path in sorted(OBSERVABILITY.glob("README*.md"))]
    (found,) = [
        part for text in texts for part in re.split("^## ", text, flags=re.MULTILINE) if part.startswith(f"{title}\n")
    ]
    return found


# --- what the collector keeps -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "section"),
    [
        ("otel-collector/config.yaml", "Jaeger"),
        ("otel-collector/logs.yaml", "Kibana"),
        ("filebeat/filebeat.yml", "Kibana"),
        ("kibana/load.sh", "Kibana"),
    ],
)
def test_variables_are_documented(config: str, section: str) -> None:
    """Each environment variable that a file reads stands in the README's section about it."""
    found = variables(OBSERVABILITY / config)
    assert found
    assert [] == [name for name in found if f"`{name}`" not in readme_section(section)]


def test_wiring() -> None:
    """Every component is defined and used; the pipelines limit memory first and batch last."""
    config = read(CONFIG)
    check_wiring(config)
    for pipeline in config["service"]["pipelines"].values():
        assert "batch" == pipeline["processors"][-1]


def test_it_listens_on_loopback() -> None:
    """Nothing listens beyond this machine unless the environment says so, and no two components share a port."""
    config = read(CONFIG)
    protocols = config["receivers"]["otlp"]["protocols"]
    listening = [protocols[kind]["endpoint"] for kind in ("grpc", "http")] + [
        config["exporters"]["prometheus"]["endpoint"]
    ]
    assert ["127.0.0.1:4317", "127.0.0.1:4318", "127.0.0.1:8889"] == listening
    assert config["exporters"]["otlp/jaeger"]["endpoint"] not in listening
    opened = read(CONFIG, OTLP_LISTEN="0.0.0.0", JAEGER_OTLP="jaeger:4317")
    assert "0.0.0.0:4318" == opened["receivers"]["otlp"]["protocols"]["http"]["endpoint"]
    assert "jaeger:4317" == opened["exporters"]["otlp/jaeger"]["endpoint"]


def kept_by(policy: dict[str, Any], trace: list[ReceivedSpan]) -> bool:
    """Tell whether a policy of the tail sampler keeps a trace; a policy of a kind not known here is a failure."""
    kind = policy["type"]
    rule = policy[kind]
    if kind == "status_code":
        return any(span.status in rule["status_codes"] for span in trace)
    if kind == "latency":
        took_ns = max(span.end_ns for span in trace) - min(span.start_ns for span in trace)
        return bool(took_ns / 1e6 >= rule["threshold_ms"])
    if kind == "probabilistic":
        return False  # the others have to do without it
    assert "ottl_condition" == kind
    (condition,) = rule["span"]
    name, bound = re.fullmatch(r'attributes\["(\w+)"\] > ([\d.]+)', condition).groups()  # type: ignore[union-attr]
    return any(name in span.tags and span.tags[name] > float(bound) for span in trace)


def test_what_is_kept_for_certain(received: Receiver) -> None:
    """Of the runs the failed, the refused and the costly one are kept whatever the percentage; the others share it."""
    sampler = read(CONFIG)["processors"]["tail_sampling"]
    kept = {
        root(trace).tags["outcome"] if policy["name"] == "errors" else root(trace).tags["request_id"]: policy["name"]
        for trace in traces(received)
        for policy in sampler["policies"]
        if kept_by(policy, trace)
    }
    assert {"error": "errors", "blocked": "errors", "req-abc-123": "costly"} == kept
    (share,) = [policy["probabilistic"] for policy in sampler["policies"] if policy["type"] == "probabilistic"]
    assert 0 < share["sampling_percentage"] < 100


def test_no_policy_compares_money_as_whole_numbers() -> None:
    """The policy numeric_attribute reads a double as 0, so none of that kind may look at cost or latency."""
    policies = read(CONFIG)["processors"]["tail_sampling"]["policies"]
    assert not {"numeric_attribute", "and", "composite"} & {policy["type"] for policy in policies}
