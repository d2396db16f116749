"""``instrument()``: what it sets up, what it refuses, and what the handle answers."""

import socket
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import prometheus_client
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_classic
from runtime_kit import ASK, OPENMETRICS, Memory, create_task, families, footprint

import taskpilot_instrument as tp
from taskpilot_instrument import semconv
from taskpilot_instrument.embedded import EmbeddedServer, Reply

pytestmark = [pytest.mark.openai, pytest.mark.usefixtures("clean_environment")]


# --- instrument() ---------------------------------------------------------------------------------


def test_keyword_only() -> None:
    """Arguments have names."""
    with pytest.raises(TypeError):
        tp.instrument("taskpilot")  # type: ignore[call-arg]


def test_idempotent(memory: Memory, client: openai.OpenAI) -> None:
    """A second call returns the same handle, changes nothing and observes nothing twice."""
    handle = tp.instrument(tracer_provider=memory.provider, service_name="first")
    assert tp.instrument(service_name="second", aliases=False) is handle
    assert handle.settings.service_name == "first"
    client.chat.completions.create(**ASK)
    assert memory.names == ["chat gpt-4o-mini"]
    handle.uninstrument()
    client.chat.completions.create(**ASK)
    assert len(memory.spans) == 1


def test_thread_safe(memory: Memory, client: openai.OpenAI) -> None:
    """32 threads that call at once get one handle and one set of patches."""
    before, barrier, handles = footprint(), threading.Barrier(32), []

    def call() -> None:
        barrier.wait()
        handles.append(tp.instrument(tracer_provider=memory.provider))

    threads = [threading.Thread(target=call) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(handles) == 32
    assert len({id(handle) for handle in handles}) == 1
    client.chat.completions.create(**ASK)
    assert memory.names == ["chat gpt-4o-mini"]
    handles[0].uninstrument()
    assert before == footprint()


def test_instrument_and_uninstrument_at_once(memory: Memory) -> None:
    """Threads that switch on and off at the same time leave nothing behind."""
    before, barrier = footprint(), threading.Barrier(8)

    def call() -> None:
        barrier.wait()
        for _ in range(5):
            tp.instrument(tracer_provider=memory.provider)
            create_task("x")
            tp.uninstrument()

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tp.uninstrument()
    assert before == footprint()


@pytest.mark.parametrize("name", ["metric_port", "nonsense"])
def test_unknown_setting(name: str) -> None:
    """An unknown setting is refused with the valid ones, and nothing was touched."""
    before = footprint()
    with pytest.raises(tp.ConfigurationError) as caught:
        tp.instrument(**{name: 1})  # type: ignore[arg-type]
    assert name in str(caught.value)
    for valid in ("metrics_port", "service_name", "capture_content", "label_cap"):
        assert valid in str(caught.value)
    assert before == footprint()


def broken_settings(tmp_path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield settings that cannot be met, each noticed at another point, with what the message has to say."""
    yield "metrics_port", {"metrics_port": 1, "metrics_address": "203.0.113.1"}
    yield "log.jsonl", {"logs": str(tmp_path / "missing" / "log.jsonl")}
    taken = CollectorRegistry()
    prometheus_client.Counter("taskpilot_tool_calls", "the application's own", registry=taken)
    yield "CollectorRegistry", {"registry": taken, "metrics_port": 0}
    yield "gpt-x", {"pricing": {"gpt-x": {"input": "cheap", "output": 1}}, "metrics_port": 0}


@pytest.mark.parametrize("number", range(4))
def test_whatever_cannot_be_had_leaves_nothing(
    tmp_path: Path, memory: Memory, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Where a part cannot be had, the error says which, the parts before it are gone, and the next try works."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")  # a thread is started for its batches
    before = footprint()
    said, settings = list(broken_settings(tmp_path))[number]
    with pytest.raises(tp.ConfigurationError, match=said):
        tp.instrument(**settings)
    assert before == footprint()
    with pytest.raises(tp.NotInstrumentedError):
        tp.golden_signals()
    with tp.instrument(tracer_provider=memory.provider):
        create_task("x")
    assert memory.names == ["create_task"]
    assert before == footprint()


def test_port_in_use(memory: Memory) -> None:
    """A port that is taken is a clear error; nothing is patched or registered, and another port works."""
    before = footprint()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(tp.ConfigurationError, match=f"127.0.0.1:{port} .*choose another metrics_port"):
            tp.instrument(metrics_port=port)
        assert before == footprint()
        with tp.instrument(metrics_port=0, tracer_provider=memory.provider) as handle:
            assert handle.metrics_url is not None
    assert before == footprint()


def test_disabled(tmp_path: Path, memory: Memory, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    """enabled=False patches, registers, serves, opens and records nothing; the same code runs as it is."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    before, log, registry = footprint(), tmp_path / "log.jsonl", CollectorRegistry()
    handle = tp.instrument(
        enabled=False, metrics_port=0, logs=str(log), registry=registry, tracer_provider=memory.provider
    )
    with tp.workflow("w") as run:
        assert create_task("x") == "created x"
        client.chat.completions.create(**ASK)
        assert run.trace_id is None
    assert tp.golden_signals().as_dict() == tp.MetricsBackend().get_golden_signals()
    assert (tp.health().active, handle.metrics_url, memory.spans, families(registry)) == (False, None, [], set())
    assert not log.exists()
    assert handle.force_flush() is True
    assert before == footprint()
    tp.uninstrument()
    with pytest.raises(tp.NotInstrumentedError):
        tp.golden_signals()
    with tp.instrument(tracer_provider=memory.provider):
        create_task("x")
    assert memory.names == ["create_task"]


def test_settings_as_a_base() -> None:
    """Settings given as a whole stand in for the environment, and arguments go before them."""
    base = tp.Settings(service_name="base", label_cap=7, patch_openai=False)
    with tp.instrument(settings=base, service_name="argument") as handle:
        assert (handle.settings.service_name, handle.settings.label_cap) == ("argument", 7)
        assert handle.health().patched == ()


# --- metrics --------------------------------------------------------------------------------------


def fetch(url: str, accept: str) -> tuple[str, str]:
    """Return content type and text."""
    with urllib.request.urlopen(urllib.request.Request(url, headers={"accept": accept}), timeout=5) as response:
        return response.headers["content-type"], response.read().decode()


def test_metrics_over_http(client: openai.OpenAI, server: EmbeddedServer) -> None:
    """metrics_port=0 serves both formats on a free port of 127.0.0.1, until it is undone."""
    server.script(Reply("hi", usage=tp.TokenUsage(150, 50)))
    with tp.instrument(metrics_port=0) as handle:
        with tp.workflow("triage"):
            client.chat.completions.create(**ASK)
        url = handle.metrics_url
        assert url is not None
        kind, classic = fetch(url, "text/plain")
        assert kind.startswith("text/plain")
        open_kind, openmetrics = fetch(url, OPENMETRICS)
        assert open_kind.startswith("application/openmetrics-text")
        port = int(url.removesuffix("/metrics").rpartition(":")[2])
        assert url == f"http://127.0.0.1:{port}/metrics"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port), timeout=5)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    for families_of, text in ((parse_classic, classic), (parse_openmetrics, openmetrics)):
        samples = {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for family in families_of(text)
            for sample in family.samples
        }
        assert samples["taskpilot_workflow_runs_total", ("outcome", "success"), ("workflow", "triage")] == 1
        assert samples["taskpilot_llm_cost_usd_total", ("agent", "none"), ("model", "gpt-4o-mini")] == 0.0000525
        assert samples["workflow_runs",] == 1
        assert samples["llm_tokens_input_gpt_4o_mini",] == 150


def test_default_registry() -> None:
    """Without a port the families are on the application's registry, beside its own, and gone afterwards."""
    before = families()
    with tp.instrument():
        create_task("x")
        during = families()
        assert prometheus_client.REGISTRY.get_sample_value(
            semconv.M_TOOL_CALLS, {"tool": "create_task", "agent": "none", "outcome": "success"}
        )
        assert before < during
        assert {name for name in during - before if name.startswith("taskpilot_")} == {
            name.removesuffix("_total")
            for name in semconv.METRIC_LABELS
            if not name.startswith(("taskpilot_budget_spent", "taskpilot_budget_limit"))  # theirs come with their parts
        }
    assert before == families()


def test_counts_start_anew() -> None:
    """Each instrumentation counts its own; the figures of one that is over can still be read."""
    handles = []
    for number in (1, 2, 3):
        with tp.instrument() as handle:
            for _ in range(number):
                with tp.workflow("w"):
                    pass
            handles.append(handle)
    assert [handle.golden_signals().sample.runs for handle in handles] == [1, 2, 3]


# --- answers --------------------------------------------------------------------------------------


def test_before_instrument() -> None:
    """Golden signals before instrument() are an error that says what to call; health() just says so."""
    with pytest.raises(tp.NotInstrumentedError, match=r"instrument\(\)"):
        tp.golden_signals()
    state = tp.health()
    assert (state.active, state.ok) == (False, False)
    assert "not active: call instrument()" in str(state)


def test_golden_signals_of_the_handle(memory: Memory) -> None:
    """The module's function and the handle's method are the same answer, filters included."""
    with tp.instrument(tracer_provider=memory.provider) as handle:
        for name in ("a", "a", "b"):
            with tp.workflow(name):
                pass
        assert tp.golden_signals().sample.runs == handle.golden_signals().sample.runs == 3
        assert tp.golden_signals(workflow="a", window="1h").sample.runs == 2
        with pytest.raises(tp.ConfigurationError, match="window"):
            tp.golden_signals(window="soon")
