"""Metrics by push: OTLP decoded from the wire, and a real Pushgateway."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from threading import Thread
from typing import Any, NamedTuple, Self
from urllib.request import urlopen

import grpc  # type: ignore[import-untyped]  # ships no types
import openai
import pytest
from backends import free_port, pushgateway
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricExporter, PeriodicExportingMetricReader
from otlp_receiver import _tags
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

import taskpilot_instrument as tp
from taskpilot_instrument import semconv
from taskpilot_instrument.embedded import EmbeddedServer, Reply
from taskpilot_instrument.testing import Captured, capture

pytestmark = pytest.mark.openai

USAGE = tp.TokenUsage(1240, 64, cached_tokens=1024, reasoning_tokens=32)
Ask = dict[str, Any]
ASK: Ask = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}


# --- OTLP ---------------------------------------------------------------------------------------


class MetricsReceiver:
    """Keep every export of metrics; base of both kinds."""

    def __init__(self) -> None:
        self.exports: list[ExportMetricsServiceRequest] = []

    def points(self, name: str) -> list[Any]:
        """Return the data points of a metric's last export."""
        found = [metric for metric in self.metrics() if metric.name == name]
        return list(getattr(found[-1], found[-1].WhichOneof("data")).data_points) if found else []

    def metrics(self) -> Iterator[Any]:
        """Yield every metric of every export."""
        for export in self.exports:
            for resource in export.resource_metrics:
                for scope in resource.scope_metrics:
                    assert (semconv.SCOPE_NAME, tp.__version__) == (scope.scope.name, scope.scope.version)
                    yield from scope.metrics


class HttpMetrics(MetricsReceiver):
    """Receive metrics as protobuf over HTTP."""

    def __enter__(self) -> Self:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers["content-encoding"] == "gzip":
                    body = gzip.decompress(body)
                receiver.exports.append(ExportMetricsServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def exporter(self) -> MetricExporter:
        """Return the SDK's exporter to here."""
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

        return OTLPMetricExporter(endpoint=f"http://127.0.0.1:{self._server.server_port}/v1/metrics")


class GrpcMetrics(MetricsReceiver):
    """Receive metrics over gRPC."""

    def __enter__(self) -> Self:
        receiver = self

        class Service(metrics_service_pb2_grpc.MetricsServiceServicer):
            def Export(self, request: ExportMetricsServiceRequest, context: Any) -> ExportMetricsServiceResponse:  # noqa: N802 - the protocol's name
                receiver.exports.append(request)
                return ExportMetricsServiceResponse()

        self._pool = ThreadPoolExecutor(2)
        self._server = grpc.server(self._pool)
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(Service(), self._server)  # type: ignore[no-untyped-call]
        self._port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(grace=None).wait()
        self._pool.shutdown()

    def exporter(self) -> MetricExporter:
        """Return the SDK's exporter to here."""
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter

        return OTLPMetricExporter(endpoint=f"http://127.0.0.1:{self._port}", insecure=True)


@pytest.fixture(params=[HttpMetrics, GrpcMetrics], ids=["http", "grpc"])
def receiver(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A receiver of each kind."""
    with request.param() as running:
        yield running


def test_metrics_over_otlp(receiver: Any, server: EmbeddedServer, client: openai.OpenAI) -> None:
    """A call arrives as the conventions' metrics, with their bounds, units and attributes; force_flush() sends them."""
    server.script(Reply("the plan", usage=USAGE))
    provider = MeterProvider([PeriodicExportingMetricReader(receiver.exporter(), 1e9)], shutdown_on_exit=False)
    with tp.instrument(meter_provider=provider, logs="off", registry=CollectorRegistry()) as handle:
        client.chat.completions.create(**ASK)
        assert handle.force_flush() is True
    provider.shutdown()
    port = int(server.url.split(":")[2].split("/")[0])
    common = {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt-4o-mini",
        "gen_ai.response.model": "gpt-4o-mini-2024-07-18", "server.address": "127.0.0.1", "server.port": port,
    }  # fmt: skip
    (duration,) = receiver.points("gen_ai.client.operation.duration")
    assert semconv.OTEL_DURATION_BUCKETS == tuple(duration.explicit_bounds)
    assert (common, 1) == (_tags(duration.attributes), duration.count)
    assert 0 < duration.sum < 60
    usage = receiver.points("gen_ai.client.token.usage")
    assert [(common | {"gen_ai.token.type": kind}, total) for kind, total in (("input", 1240), ("output", 64))] == [
        (_tags(point.attributes), point.sum) for point in usage
    ]
    assert {semconv.OTEL_TOKEN_BUCKETS} == {tuple(point.explicit_bounds) for point in usage}
    for kind, total in (("input", 1240), ("output", 64)):
        (point,) = receiver.points(f"gen_ai.client.inference.operation.{kind}_tokens")
        assert (common, total) == (_tags(point.attributes), point.sum)
        assert semconv.OTEL_TOKEN_BUCKETS == tuple(point.explicit_bounds)
    for kind, total in {
        "input_tokens": 1240, "output_tokens": 64, "cache_read.input_tokens": 1024, "reasoning.output_tokens": 32,
    }.items():  # fmt: skip
        (point,) = receiver.points(f"gen_ai.client.inference.usage.{kind}")
        assert (common | {"gen_ai.token.modality": "unknown"}, total) == (_tags(point.attributes), point.as_int)
    assert [] == receiver.points("gen_ai.client.inference.usage.cache_write.input_tokens")
    assert {"s", "{token}"} == {metric.unit for metric in receiver.metrics()}


class Measured(NamedTuple):
    """Instrumentation with a meter provider whose measurements can be read."""

    captured: Captured
    reader: InMemoryMetricReader

    def sums(self, name: str, *keys: str) -> dict[tuple[object, ...], float]:
        """Return the sum of a metric by the values of some attributes."""
        found: dict[tuple[object, ...], float] = {}
        for point in self.points(name):
            key = tuple(point.attributes.get(each) for each in keys)
            found[key] = found.get(key, 0) + (point.value if hasattr(point, "value") else point.sum)
        return found

    def points(self, name: str) -> list[Any]:
        """Return the data points of a metric."""
        data = self.reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]


@pytest.fixture
def measured() -> Iterator[Measured]:
    """Record spans and measurements in memory."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    with capture(meter_provider=provider) as captured:
        yield Measured(captured, reader)
    provider.shutdown()


def test_failed_call(measured: Measured, server: EmbeddedServer, client: openai.OpenAI) -> None:
    """A failed call is timed under its error type; tokens that nobody counted are left out, not zero."""
    server.script(Reply.error(404, "gone"))
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**ASK)
    (point,) = measured.points(semconv.OTEL_OPERATION_DURATION)
    assert ("NotFoundError", 1) == (point.attributes["error.type"], point.count)
    for name in (semconv.OTEL_TOKEN_USAGE, semconv.OTEL_OPERATION_INPUT, semconv.OTEL_USAGE_INPUT):
        assert [] == measured.points(name)


def test_stream(measured: Measured, server: EmbeddedServer, client: openai.OpenAI) -> None:
    """A streamed call has a time to first chunk, within its duration; one that is not streamed has none."""
    server.script(Reply("one"), Reply("two", usage=USAGE))
    client.chat.completions.create(**ASK)
    assert [] == measured.points(semconv.OTEL_TIME_TO_FIRST_CHUNK)
    for _ in client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True}):
        pass
    (first,) = measured.points(semconv.OTEL_TIME_TO_FIRST_CHUNK)
    (whole,) = measured.points(semconv.OTEL_OPERATION_DURATION)
    assert (1, 2) == (first.count, whole.count)
    assert 0 < first.sum <= whole.sum


def test_exemplar(measured: Measured, server: EmbeddedServer, client: openai.OpenAI) -> None:
    """The exemplar of a duration is the call's own span."""
    server.script(Reply("x", usage=USAGE))
    client.chat.completions.create(**ASK)
    ((exemplar,),) = [point.exemplars for point in measured.points(semconv.OTEL_OPERATION_DURATION)]
    context = measured.captured.span("chat gpt-4o-mini").context
    assert context is not None
    assert (context.trace_id, context.span_id) == (exemplar.trace_id, exemplar.span_id)


def test_only_calls_are_measured(measured: Measured) -> None:
    """Workflows, agents and tools are no operations of a GenAI client."""
    tp.observed_agent(name="A")(tp.observed_tool(name="t")(lambda: None))()
    assert measured.captured.names()
    assert [] == measured.points(semconv.OTEL_OPERATION_DURATION)


COUNTS = st.integers(min_value=0, max_value=10_000)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(COUNTS, COUNTS, COUNTS), min_size=1, max_size=3))
def test_counters_add_up(usages: list[tuple[int, int, int]]) -> None:
    """Over its modalities a counter comes to what the providers counted; the rest is text where parts are named."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    replies = [
        Reply("x", usage=tp.TokenUsage(text + audio, output, input_audio_tokens=audio))
        for text, audio, output in usages
    ]
    with (
        EmbeddedServer() as server,
        capture(meter_provider=provider) as captured,
        openai.OpenAI(api_key="none", base_url=server.url) as client,
    ):
        server.script(*replies)
        for _ in replies:
            client.chat.completions.create(**ASK)
        measured = Measured(captured, reader)
        counted = measured.sums(semconv.OTEL_USAGE_INPUT, semconv.OTEL_TOKEN_MODALITY)
        distributed = measured.sums(semconv.OTEL_TOKEN_USAGE, semconv.OTEL_TOKEN_TYPE)
    provider.shutdown()
    expected = {
        ("text",): sum(text for text, audio, _ in usages if audio),
        ("audio",): sum(audio for _, audio, _ in usages),
        ("unknown",): sum(text for text, audio, _ in usages if not audio),
    }
    assert {key: total for key, total in expected.items() if total} == counted
    assert {
        ("input",): sum(text + audio for text, audio, _ in usages),
        ("output",): sum(output for _, _, output in usages),
    } == distributed


def test_label_cap(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """Beyond the cap a model is called other, and the overflow is counted under the attribute's name."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    with capture(meter_provider=provider, label_cap=2) as captured:
        for model in ("m1", "m2", "m3"):
            client.chat.completions.create(**{**ASK, "model": model})
        models = Measured(captured, reader).sums(semconv.OTEL_OPERATION_DURATION, semconv.GEN_AI_REQUEST_MODEL)
        overflow = captured.handle.health().label_overflow
    provider.shutdown()
    assert {("m1",), ("m2",), ("other",)} == set(models)
    assert overflow is not None
    assert 1 == overflow[semconv.GEN_AI_REQUEST_MODEL]


@pytest.mark.parametrize("given_settings", [{}, {"meter_provider": NoOpMeterProvider()}, {"sdk_disabled": True}])
def test_without_a_meter_provider(given_settings: dict[str, Any]) -> None:
    """Where nobody reads measurements, or OpenTelemetry is off, there is no sink that makes them."""
    if "sdk_disabled" in given_settings:
        given_settings = {**given_settings, "meter_provider": MeterProvider(shutdown_on_exit=False)}
    with tp.instrument(logs="off", registry=CollectorRegistry(), **given_settings) as handle:
        assert "otel_metric" not in [sink.where for sink in handle._recorder.sinks]
        assert handle.force_flush() is True


def test_the_global_meter_provider(server: EmbeddedServer) -> None:
    """The provider that the application has set is used without being asked for; it is never shut down."""
    script = """
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
import openai
import taskpilot_instrument as tp

reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))
with tp.instrument():
    openai.OpenAI().chat.completions.create(model="m", messages=[])
metrics.get_meter("theirs").create_counter("still.alive").add(1)
found = reader.get_metrics_data().resource_metrics[0].scope_metrics
print(*(metric.name for scope in found for metric in scope.metrics if "usage" not in metric.name))
"""
    environ = {**os.environ, "OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "none", "TASKPILOT_LOGS": "off"}
    ended = subprocess.run(
        [sys.executable, "-c", script], env=environ, capture_output=True, text=True, timeout=60, check=True
    )
    assert "gen_ai.client.operation.duration" in ended.stdout
    assert ended.stdout.strip().endswith("still.alive")


# --- Pushgateway --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a real Pushgateway; return its URL."""
    with pushgateway(tmp_path_factory.mktemp("gateway")) as url:
        yield url


Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(text: str) -> Samples:
    """Return the samples of an exposition by name and labels; the gateway writes the bound 1.0 as 1."""
    return {
        (
            sample.name,
            frozenset((name, str(float(value)) if name == "le" else value) for name, value in sample.labels.items()),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def pushed(gateway: str, job: str) -> Samples:
    """Return what the gateway offers of a job, beside when it was pushed."""
    with urlopen(f"{gateway}/metrics", timeout=5) as answer:
        found = samples(answer.read().decode())
    return {key: value for key, value in found.items() if ("job", job) in key[1] and not key[0].startswith("push_")}


def work(client: openai.OpenAI) -> None:
    """Run one workflow with one call."""
    with tp.workflow("nightly"):
        client.chat.completions.create(**ASK)


def test_push(gateway: str, captured: Captured, server: EmbeddedServer, client: openai.OpenAI) -> None:
    """Everything that /metrics would serve, aliases included, stands on the gateway under the job, value for value."""
    server.script(Reply("x", usage=tp.TokenUsage(150, 50)))
    work(client)
    captured.handle.push_metrics(gateway, job="whole")
    served = samples(captured.prometheus_text)
    assert {
        (name, labels | {("job", "whole"), ("instance", "")}): value for (name, labels), value in served.items()
    } == (pushed(gateway, "whole"))
    assert 0.0000525 == served["llm_cost_total", frozenset()]


def test_push_carries_waste(gateway: str, captured: Captured, server: EmbeddedServer, client: openai.OpenAI) -> None:
    """A job that only wasted something tells so, by agent, model and outcome."""
    again = Reply.error(429, headers={"retry-after-ms": "1"})
    server.script(again, again, Reply(failure="no", usage=tp.TokenUsage(150, 50)))
    with tp.workflow("nightly"):
        client.responses.create(model="gpt-4o-mini", input="hello")
    captured.handle.push_metrics(gateway, job="wasteful")
    payer = {("job", "wasteful"), ("instance", ""), ("agent", "none"), ("model", "gpt-4o-mini")}
    found = pushed(gateway, "wasteful")
    assert 2 == found[semconv.M_LLM_RETRIES, frozenset(payer)]
    assert 200 == found[semconv.M_LLM_WASTED_TOKENS, frozenset(payer | {("outcome", "error")})]
    assert 0.0000525 == found[semconv.M_LLM_WASTED_COST, frozenset(payer | {("outcome", "error")})]


def test_push_again(gateway: str, captured: Captured, client: openai.OpenAI) -> None:
    """A second push replaces the figures of the first; another instance of the job keeps its own."""
    for instance in ("a", "a", "b"):
        work(client)
        captured.handle.push_metrics(gateway, job="again", grouping_key={"instance": instance})
    found = pushed(gateway, "again")
    for instance, runs in (("a", 2.0), ("b", 3.0)):
        labels = {"job": "again", "instance": instance, "outcome": "success", "workflow": "nightly"}
        assert runs == found[semconv.M_WORKFLOW_RUNS, frozenset(labels.items())]


#: Before 0.26 prometheus_client sends a space as a plus sign, which the gateway keeps as one.
SPACES = tuple(map(int, version("prometheus-client").split(".")[:2])) >= (0, 26)
#: A URL's path takes none that consist of one or two dots.
NAMES = st.text().filter(lambda text: text not in {".", ".."} and (SPACES or " " not in text))


@settings(max_examples=25, deadline=None)
@given(job=NAMES.filter(str.strip), instance=NAMES)
@example(job="a/b c+d%2F" if SPACES else "a/b+c%2F", instance="")
@example(job="..a", instance="...")
@example(job="ü\n", instance="…")
def test_any_job_name(gateway: str, job: str, instance: str) -> None:
    """Whatever characters job and instance consist of, the gateway has them as they are."""
    with capture() as captured:
        captured.handle.push_metrics(gateway, job=job, grouping_key={"instance": instance})
    with urlopen(f"{gateway}/api/v1/metrics", timeout=5) as answer:
        groups = [group["labels"] for group in json.load(answer)["data"]]
    assert {"job": job, "instance": instance} in groups


def test_a_gateway_that_refuses(gateway: str, captured: Captured) -> None:
    """What the gateway says is passed on: here that a label of the grouping key is no label."""
    with pytest.raises(tp.DeliveryError, match=r"refused the metrics: HTTP 400 .*no-label"):
        captured.handle.push_metrics(gateway, job="x", grouping_key={"no-label": "y"})


def test_a_gateway_that_is_not_there(captured: Captured) -> None:
    """The error says where nobody answered, and is a ConnectionError as well."""
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ConnectionError, match=rf"not pushed to {url} \(ConnectionRefusedError") as caught:
        captured.handle.push_metrics(url, job="x")
    assert isinstance(caught.value, tp.DeliveryError)


@pytest.mark.parametrize(
    ("gateway", "job", "timeout_s", "said"),
    [
        ("127.0.0.1:9091", "x", 1, "expected the URL of a Pushgateway"),
        ("", "x", 1, "expected the URL of a Pushgateway"),
        ("ftp://127.0.0.1", "x", 1, "expected the URL of a Pushgateway"),
        ("http://127.0.0.1:port", "x", 1, "expected the URL of a Pushgateway"),
        ("http://", "x", 1, "expected the URL of a Pushgateway"),
        ("http://127.0.0.1:9091/?x=1", "x", 1, "expected the URL of a Pushgateway"),
        ("http://127.0.0.1:9091", " ", 1, "expected the name of the job"),
        ("http://127.0.0.1:9091", "..", 1, "expected a value that is more than dots"),
        ("http://127.0.0.1:9091", "x", 0, "expected seconds, more than 0"),
        ("http://127.0.0.1:9091", "x", float("nan"), "expected seconds, more than 0"),
    ],
)
def test_arguments(captured: Captured, gateway: str, job: str, timeout_s: float, said: str) -> None:
    """An argument that is not valid is said to be so, with what would be right, before anything is sent."""
    with pytest.raises(tp.ConfigurationError, match=said):
        captured.handle.push_metrics(gateway, job=job, timeout_s=timeout_s)


def test_credentials(captured: Captured) -> None:
    """User and password of the URL are sent as basic authentication, and stand in no error."""
    seen: list[tuple[str, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            seen.append((self.path, self.headers["authorization"]))
            self.send_response(401)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        url = f"http://me:hunter%3A2@127.0.0.1:{server.server_port}/behind/a/proxy"
        with pytest.raises(tp.DeliveryError, match="HTTP 401") as caught:
            captured.handle.push_metrics(url, job="x")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert [("/behind/a/proxy/metrics/job/x", "Basic bWU6aHVudGVyOjI=")] == seen
    assert "hunter" not in str(caught.value)
