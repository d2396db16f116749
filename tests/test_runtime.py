"""``instrument()`` and its undo: what it sets up, what it leaves alone, and what it leaves behind (nothing)."""

import functools
import io
import json
import os
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import prometheus_client
import pytest
import wrapt
from openai._base_client import AsyncAPIClient, SyncAPIClient
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_classic

import taskpilot_instrument as tp
from taskpilot_instrument import _guard, semconv
from taskpilot_instrument.embedded import EmbeddedServer, Reply
from taskpilot_instrument.patches._patching import Patch
from taskpilot_instrument.testing import capture

pytestmark = pytest.mark.openai

MESSAGES: Any = [{"role": "user", "content": "hello there"}]
ASK: dict[str, Any] = {"model": "gpt-4o-mini", "messages": MESSAGES}
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hide the developer's own variables, and let no failed test stay instrumented."""
    for name in os.environ:
        if name.startswith(("OTEL_", "TASKPILOT_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TASKPILOT_LOGS", "off")
    yield
    tp.uninstrument()
    _guard.reset()


class Memory:
    """An application's tracer provider that keeps its spans."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    @property
    def spans(self) -> list[ReadableSpan]:
        """Finished spans."""
        return list(self._exporter.get_finished_spans())

    @property
    def names(self) -> list[str]:
        """Names of the finished spans."""
        return [span.name for span in self.spans]

    @property
    def outcomes(self) -> list[Any]:
        """Outcomes of the finished spans."""
        return [(span.attributes or {})["outcome"] for span in self.spans]


@pytest.fixture
def memory() -> Iterator[Memory]:
    """A tracer provider of the application."""
    made = Memory()
    yield made
    made.provider.shutdown()


@tp.observed_tool
def create_task(title: str) -> str:
    """Stand for any tool."""
    return f"created {title}"


def families(registry: CollectorRegistry = prometheus_client.REGISTRY) -> set[str]:
    """Return the names of everything on a registry."""
    return {metric.name for metric in registry.collect()}


def footprint() -> tuple[Any, ...]:
    """Return what an instrumentation in force would change."""
    methods = [
        vars(owner)[name] for owner in (SyncAPIClient, AsyncAPIClient) for name in ("request", "_process_response")
    ]
    threads = sorted(thread.name for thread in threading.enumerate() if "embedded-server" not in thread.name)
    return methods, families(), threads


# --- instrument() -------------------------------------------------------------------------------


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


# --- metrics ------------------------------------------------------------------------------------


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


# --- undo ---------------------------------------------------------------------------------------


def test_context_manager(memory: Memory) -> None:
    """Leaving the block undoes everything, by an exception too, which passes through."""
    before = footprint()
    boom = KeyError("boom")
    with pytest.raises(KeyError) as caught, tp.instrument(tracer_provider=memory.provider) as handle:
        assert before != footprint()
        assert handle.health().active
        raise boom
    assert caught.value is boom
    assert before == footprint()
    assert not handle.health().active


def test_uninstrument_twice(memory: Memory, client: openai.OpenAI) -> None:
    """Undoing twice is harmless, and the handle of one that is over does not touch the next."""
    before = footprint()
    first = tp.instrument(tracer_provider=memory.provider)
    first.uninstrument()
    first.uninstrument()
    tp.uninstrument()
    assert before == footprint()
    second = tp.instrument(tracer_provider=memory.provider)
    assert second is not first
    assert first.shutdown() is True
    client.chat.completions.create(**ASK)
    assert memory.names == ["chat gpt-4o-mini"]
    assert second.health().active
    second.uninstrument()
    assert before == footprint()


def test_uninstrument_inside_a_workflow(memory: Memory) -> None:
    """A run that is under way finishes into the instrumentation that it began under; what begins later is not seen."""
    handle = tp.instrument(tracer_provider=memory.provider)
    with tp.workflow("w"):
        handle.uninstrument()
        assert create_task("x") == "created x"
    assert memory.names == ["workflow.run"]
    assert handle.golden_signals().sample.runs == 1


Theirs = Callable[[Callable[..., Any], list[str]], Callable[..., Any]]


def with_wrapt(original: Callable[..., Any], calls: list[str]) -> Callable[..., Any]:
    """Patch as most instrumentations do."""

    def wrapper(wrapped: Callable[..., Any], instance: Any, args: Any, kwargs: Any) -> Any:
        calls.append("theirs")
        return wrapped(*args, **kwargs)

    return wrapt.FunctionWrapper(original, wrapper)


def with_functools(original: Callable[..., Any], calls: list[str]) -> Callable[..., Any]:
    """Patch as most applications do."""

    @functools.wraps(original)
    def request(*args: Any, **kwargs: Any) -> Any:
        calls.append("theirs")
        return original(*args, **kwargs)

    return request


def with_a_closure(original: Callable[..., Any], calls: list[str]) -> Callable[..., Any]:
    """Patch so that nobody can tell what is beneath."""

    def request(*args: Any, **kwargs: Any) -> Any:
        calls.append("theirs")
        return original(*args, **kwargs)

    return request


@pytest.mark.parametrize("theirs", [with_wrapt, with_functools, with_a_closure])
@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_under_somebody_elses_patch(
    memory: Memory,
    client: openai.OpenAI,
    aclient: openai.AsyncOpenAI,
    monkeypatch: pytest.MonkeyPatch,
    theirs: Theirs,
    mode: str,
) -> None:
    """From under another patch ours is gone or inert, theirs stays and works, and ours again sees each call once."""
    owner: Any = SyncAPIClient if mode == "sync" else AsyncAPIClient
    calls: list[str] = []

    async def call() -> str | None:
        pending: Any = (client if mode == "sync" else aclient).chat.completions.create(**ASK)
        reply = pending if mode == "sync" else await pending
        return str(reply.choices[0].message.content)

    bare = await call()
    with monkeypatch.context() as undone:
        undone.setattr(owner, "request", vars(owner)["request"])  # put back at the end
        handle = tp.instrument(tracer_provider=memory.provider)
        owner.request = patched = theirs(owner.request, calls)
        assert await call() == bare
        assert (len(memory.spans), len(calls)) == (1, 1)

        handle.uninstrument()
        assert vars(owner)["request"] is patched
        assert await call() == bare
        assert (len(memory.spans), len(calls)) == (1, 2)

        for spans in (2, 3):
            with tp.instrument(tracer_provider=memory.provider) as handle:
                assert await call() == bare
                assert handle.health().calls_recorded == 1
                assert handle.health().errors_swallowed == {}
            assert (len(memory.spans), len(calls)) == (spans, spans + 1)

        assert vars(owner)["request"] is patched
        assert await call() == bare
        assert (len(memory.spans), len(calls)) == (3, 5)


def test_wrapt_patch_is_freed_of_ours(memory: Memory, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beneath another wrapt patch our layer is taken out: what theirs wraps afterwards is the original."""
    original = vars(SyncAPIClient)["request"]
    with monkeypatch.context() as undone:
        undone.setattr(SyncAPIClient, "request", original)
        with tp.instrument(tracer_provider=memory.provider):
            patched: Any = with_wrapt(vars(SyncAPIClient)["request"], [])
            SyncAPIClient.request = patched  # type: ignore[method-assign]
            client.chat.completions.create(**ASK)
        assert patched.__wrapped__ is original
        client.chat.completions.create(**ASK)
    assert len(memory.spans) == 1


@pytest.mark.parametrize("theirs", [with_wrapt, with_functools, with_a_closure])
def test_on_top_of_somebody_elses_patch(
    memory: Memory, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch, theirs: Theirs
) -> None:
    """On top of another patch both see the call, and theirs is back as it was; if they take theirs away, so be it."""
    original = vars(SyncAPIClient)["request"]
    calls: list[str] = []
    with monkeypatch.context() as undone:
        patched = theirs(original, calls)
        undone.setattr(SyncAPIClient, "request", patched)
        with tp.instrument(tracer_provider=memory.provider):
            client.chat.completions.create(**ASK)
        assert vars(SyncAPIClient)["request"] is patched
        assert (len(memory.spans), len(calls)) == (1, 1)
        with tp.instrument(tracer_provider=memory.provider):
            SyncAPIClient.request = original  # type: ignore[method-assign]
        assert vars(SyncAPIClient)["request"] is original


def test_uninstrument_in_mid_stream(memory: Memory, server: EmbeddedServer, client: openai.OpenAI) -> None:
    """A stream that is open when all is undone finishes once, as abandoned, and its reader reads on to the end."""
    server.script(Reply("one two three four"), Reply("one two three four"))
    bare = [chunk.choices[0].delta.content for chunk in client.chat.completions.create(**ASK, stream=True)]
    handle = tp.instrument(tracer_provider=memory.provider)
    stream = client.chat.completions.create(**ASK, stream=True)
    seen = [next(stream).choices[0].delta.content]
    handle.uninstrument()
    assert memory.outcomes == ["abandoned"]
    seen += [chunk.choices[0].delta.content for chunk in stream]
    stream.close()
    assert bare == seen
    assert memory.outcomes == ["abandoned"]
    state = handle.health()
    assert (state.calls_seen, state.calls_recorded) == (1, 1)


async def test_uninstrument_in_mid_async_stream(
    memory: Memory, server: EmbeddedServer, aclient: openai.AsyncOpenAI
) -> None:
    """The same for an async stream that is closed early."""
    server.script(Reply("one two three four"))
    handle = tp.instrument(tracer_provider=memory.provider)
    stream = await aclient.chat.completions.create(**ASK, stream=True)
    first = await anext(stream)
    handle.uninstrument()
    rest = [chunk async for chunk in stream]
    await stream.close()
    assert "one two three four" == "".join(chunk.choices[0].delta.content or "" for chunk in [first, *rest])
    assert memory.outcomes == ["abandoned"]


# --- beside the testing kit ---------------------------------------------------------------------


def test_capture_inside_an_instrumented_application(memory: Memory, client: openai.OpenAI) -> None:
    """capture() takes over inside its block, and the application's instrumentation sees again afterwards."""
    with tp.instrument(tracer_provider=memory.provider):
        with capture() as captured:
            client.chat.completions.create(**ASK)
        assert (captured.names(), memory.names) == (["chat gpt-4o-mini"], [])
        client.chat.completions.create(**ASK)
    assert (captured.names(), memory.names) == (["chat gpt-4o-mini"], ["chat gpt-4o-mini"])


def test_capture_leaves_open_streams_alone(memory: Memory, client: openai.OpenAI) -> None:
    """The end of a capture ends no stream that the application opened before it."""
    with tp.instrument(tracer_provider=memory.provider):
        stream = client.chat.completions.create(**ASK, stream=True)
        next(stream)
        with capture():
            pass
        assert memory.spans == []
        list(stream)
    assert memory.outcomes == ["success"]


def test_instrumented_inside_capture(memory: Memory, client: openai.OpenAI) -> None:
    """An application that is instrumented inside a capture, and stays so, still sees its calls when that ends."""
    before = footprint()
    with capture():
        handle = tp.instrument(tracer_provider=memory.provider)
    client.chat.completions.create(**ASK)
    create_task("x")
    assert memory.names == ["chat gpt-4o-mini", "create_task"]
    handle.uninstrument()
    assert before == footprint()


def test_uninstrumented_inside_capture(memory: Memory, client: openai.OpenAI) -> None:
    """An application that undoes its own instrumentation inside a capture does not stop that, nor come back."""
    before = footprint()
    handle = tp.instrument(tracer_provider=memory.provider)
    with capture() as captured:
        handle.uninstrument()
        client.chat.completions.create(**ASK)
        create_task("x")
    create_task("y")
    assert captured.names() == ["chat gpt-4o-mini", "create_task"]
    assert memory.names == []
    assert before == footprint()


# --- answers ------------------------------------------------------------------------------------


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


# --- health -------------------------------------------------------------------------------------


def test_health_of_a_fresh_start(memory: Memory) -> None:
    """A fresh instrumentation is well: all targets found, nothing missing, swallowed, dropped or unpriced."""
    with tp.instrument(tracer_provider=memory.provider):
        state = tp.health()
    assert state.ok
    assert str(state).splitlines() == [
        "instrumentation   active",
        "patched           openai.SyncAPIClient.request, openai.AsyncAPIClient.request, "
        "openai.SyncAPIClient._process_response, openai.AsyncAPIClient._process_response",
        "missing           nothing",
        "errors swallowed  none",
        "LLM calls         0 seen at the transport, 0 recorded, 0 open",
        "cost coverage     no calls yet",
        "label overflow    none",
        "spans             to the application's tracer provider; 0 exported, 0 pending, 0 dropped",
    ]


@pytest.mark.parametrize("name", ["request", "_process_response"])
def test_missing_target(
    memory: Memory,
    client: openai.OpenAI,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    """A method that a release of openai lacks is reported, warned of if calls go unseen, and stops no other patch."""
    with monkeypatch.context() as renamed:
        renamed.delattr(AsyncAPIClient, name)
        with tp.instrument(tracer_provider=memory.provider) as handle:
            client.chat.completions.create(**ASK)
            state = handle.health()
    target = f"openai.AsyncAPIClient.{name}"
    assert state.missing == (target,)
    assert len(state.patched) == 3
    assert not state.ok
    assert f"missing           {target}" in str(state).splitlines()
    assert memory.names == ["chat gpt-4o-mini"]
    assert [target in record.getMessage() for record in caplog.records] == ([True] if name == "request" else [])


def test_patch_on_a_class_without_the_method() -> None:
    """A single patch tells whether its method was there, and undoing one that was not does nothing."""

    class Library:
        """Stands for somebody else's class."""

        limit = 3

        def call(self) -> str:
            return "called"

    patches = {
        name: Patch(Library, name, lambda wrapped, _self, args, kwargs: wrapped(*args, **kwargs).upper())
        for name in ("call", "gone", "limit")
    }
    assert {name: patch.apply() for name, patch in patches.items()} == {"call": True, "gone": False, "limit": False}
    assert Library().call() == "CALLED"
    for patch in patches.values():
        patch.undo()
    assert (Library().call(), Library.limit, hasattr(Library, "gone")) == ("called", 3, False)


class BrokenStream(io.StringIO):
    """A log stream on a disk that is full."""

    def write(self, text: str, /) -> int:
        """Fail."""
        raise OSError(28, "No space left on device")


def test_errors_swallowed(memory: Memory, caplog: pytest.LogCaptureFixture) -> None:
    """Internal errors are counted by place, warned of once, seen in health() and metrics, and start anew next time."""
    with tp.instrument(tracer_provider=memory.provider, logs=BrokenStream()) as handle:
        assert create_task("x") == create_task("x") == "created x"
        state = handle.health()
        counted = prometheus_client.REGISTRY.get_sample_value(semconv.M_INSTRUMENT_ERRORS, {"where": "log"})
    assert (state.errors_swallowed, counted, state.ok) == ({"log": 2}, 2, False)
    assert "errors swallowed  log: 2" in str(state).splitlines()
    assert len(caplog.records) <= 1
    assert memory.names == ["create_task"] * 2
    with tp.instrument(tracer_provider=memory.provider) as handle:
        assert handle.health().errors_swallowed == {}


def test_calls_seen_and_recorded(memory: Memory, client: openai.OpenAI) -> None:
    """Calls seen at the transport and calls recorded differ by the streams that are open."""

    def calls() -> tuple[int, int]:
        state = tp.health()
        return state.calls_seen, state.calls_recorded

    with tp.instrument(tracer_provider=memory.provider):
        client.models.list()
        assert calls() == (0, 0)
        client.chat.completions.create(**ASK)
        assert calls() == (1, 1)
        stream = client.chat.completions.create(**ASK, stream=True)
        assert calls() == (2, 1)
        next(stream)
        assert "2 seen at the transport, 1 recorded" in str(tp.health())
        stream.close()
        assert calls() == (2, 2)


def test_cost_coverage(memory: Memory, server: EmbeddedServer, client: openai.OpenAI) -> None:
    """Cost coverage is the share of billable calls with a price, unknown before the first."""
    server.script(Reply("x", model="house-model-1"), Reply("x"), Reply("x"))
    with tp.instrument(tracer_provider=memory.provider):
        coverages = [tp.health().cost_coverage]
        for model in ("house-model-1", "gpt-4o-mini", "gpt-4o-mini"):
            client.chat.completions.create(model=model, messages=MESSAGES)
            coverages.append(tp.health().cost_coverage)
        assert "cost coverage     66.7% of billable calls" in str(tp.health()).splitlines()
    assert coverages == [None, 0.0, 0.5, pytest.approx(2 / 3)]


def test_label_overflow(memory: Memory) -> None:
    """Values beyond a label's cap are reported by label."""
    with tp.instrument(tracer_provider=memory.provider, label_cap=2):
        assert tp.health().label_overflow == {}
        for number in range(5):
            with tp.workflow(f"w{number}"):
                pass
        overflow = tp.health().label_overflow
        assert overflow is not None
        assert set(overflow) == {"workflow"}
        assert overflow["workflow"] >= 3
        assert f"label overflow    workflow: {overflow['workflow']}" in str(tp.health()).splitlines()


# --- what is not ours ---------------------------------------------------------------------------

#: Defines ``state()``: the objects that an application may have set up for itself.
STATE = """
import asyncio, gc, json, logging, os, signal, socket, sys, threading, warnings

def state():
    found = {
        "root handlers": list(logging.root.handlers), "root filters": list(logging.root.filters),
        "root level": logging.root.level, "logger class": logging.getLoggerClass(),
        "record factory": logging.getLogRecordFactory(), "logging disabled": logging.root.manager.disable,
        "warning filters": list(warnings.filters), "showwarning": warnings.showwarning,
        "excepthook": sys.excepthook, "unraisablehook": sys.unraisablehook, "thread excepthook": threading.excepthook,
        "stdout": sys.stdout, "stderr": sys.stderr, "trace": sys.gettrace(), "profile": sys.getprofile(),
        "gc threshold": gc.get_threshold(), "environment": dict(os.environ),
        "recursion limit": sys.getrecursionlimit(), "timeout": socket.getdefaulttimeout(), "path": list(sys.path),
        "threads": sorted(thread.name for thread in threading.enumerate()),
    }
    for number in signal.valid_signals():
        found[f"signal {number}"] = signal.getsignal(number)
    if "structlog" in sys.modules:
        import structlog
        found["structlog configured"] = structlog.is_configured()
        config = structlog.get_config()
        found |= {f"structlog {name}": value for name, value in config.items() if name != "processors"}
        found["structlog processors"] = list(config["processors"])
    if "opentelemetry.propagate" in sys.modules:
        from opentelemetry import context, metrics, propagate, trace
        found["tracer provider"] = trace.get_tracer_provider()
        found["meter provider"] = metrics.get_meter_provider()
        found["propagator"] = propagate.get_global_textmap()
        found["context"] = context.get_current()
    return found

def same(a, b):
    if isinstance(a, list):
        return len(a) == len(b) and all(x is y for x, y in zip(a, b))
    return a is b or (isinstance(a, (int, str, tuple, dict, float, list)) and a == b)

def changed(before, now):
    return sorted(name for name, value in before.items() if not same(value, now[name]))
"""

CONFIGURED = """
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry import propagate
import structlog
structlog.configure(processors=[structlog.processors.JSONRenderer()], logger_factory=structlog.PrintLoggerFactory())
logging.basicConfig(level=logging.ERROR)
logging.root.addFilter(lambda record: True)
warnings.simplefilter("error", UserWarning)
sys.excepthook = lambda *error: sys.__excepthook__(*error)
threading.excepthook = lambda args: None
signal.signal(signal.SIGTERM, lambda *_: None)
signal.signal(signal.SIGINT, signal.SIG_IGN)
trace.set_tracer_provider(TracerProvider())
metrics.set_meter_provider(MeterProvider())
"""

WORK = """
import opentelemetry.propagate, structlog
from opentelemetry import metrics, trace
{setup}
import openai, prometheus_client
import taskpilot_instrument as tp

client = openai.OpenAI(max_retries=0)

def work():
    with tp.workflow("w"):
        client.chat.completions.create(model="gpt-4o-mini", messages=[{{"role": "user", "content": "x"}}])
    usage = {{"include_usage": True}}
    list(client.chat.completions.create(model="gpt-4o-mini", messages=[], stream=True, stream_options=usage))

work()
prometheus_client.generate_latest()
before = state()
handle = tp.instrument(logs=open(os.devnull, "w"), capture_content=True)
instrumented = changed(before, state())
work()
prometheus_client.generate_latest()
handle.force_flush()
worked = changed(before, state())
handle.uninstrument()
print(json.dumps([instrumented, worked, changed(before, state()), handle.health().calls_recorded]))
"""


def run(script: str, **environ: str) -> Any:
    """Run a script in a process of its own, and return the JSON that it prints last."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "TASKPILOT_"))}
    ended = subprocess.run(
        [sys.executable, "-c", script], env=inherited | environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return json.loads(ended.stdout)


@pytest.mark.parametrize("setup", ["", CONFIGURED], ids=["bare", "configured"])
def test_global_state_is_not_ours(server: EmbeddedServer, setup: str) -> None:
    """Logging, structlog, warnings, hooks, signals, providers: the same objects before, while and after."""
    found = run(STATE + WORK.format(setup=setup), OPENAI_BASE_URL=server.url, OPENAI_API_KEY="sk-test")
    assert found == [[], [], [], 2]


def test_import_alone() -> None:
    """Importing touches no global state, no network and no thread, and imports neither openai nor the SDK."""
    script = """
events = []
sys.addaudithook(lambda event, args: events.append(event) if event.startswith(watched) else None)
watched = ("socket.", "_thread.start", "subprocess.", "os.fork", "os.posix_spawn", "signal.")
before = state()
import taskpilot_instrument
after = state()
from opentelemetry import metrics, trace
import prometheus_client, structlog
heavy = ("openai", "opentelemetry.sdk", "grpc", "requests", "httpx", "starlette", "redis", "scipy")
print(json.dumps([
    events,
    changed(before, after),
    [name for name in heavy if name in sys.modules],
    [type(trace.get_tracer_provider()).__name__, type(metrics.get_meter_provider()).__name__],
    structlog.is_configured(),
    [metric.name for metric in prometheus_client.REGISTRY.collect() if "taskpilot" in metric.name],
]))
"""
    assert run(STATE + script) == [[], [], [], ["ProxyTracerProvider", "_ProxyMeterProvider"], False, []]


def test_application_provider() -> None:
    """The application's global provider is used: its processors see our spans, under its own; it is never shut down."""
    script = """
import json
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
import taskpilot_instrument as tp

class Processor(SpanProcessor):
    ended, flushed, closed = [], 0, 0
    def on_end(self, span):
        self.ended.append([span.name, span.parent and span.parent.span_id])
    def force_flush(self, timeout_millis=30000):
        Processor.flushed += 1
        return True
    def shutdown(self):
        Processor.closed += 1

provider = TracerProvider(shutdown_on_exit=False)
provider.add_span_processor(Processor())
trace.set_tracer_provider(provider)
with tp.instrument(logs="off", service_name="ignored") as handle:
    with trace.get_tracer("application").start_as_current_span("request") as span:
        with tp.workflow("w"):
            with trace.get_tracer("application").start_as_current_span("query"):
                pass
    names = [name for name, _ in Processor.ended]
    under = Processor.ended[1][1] == span.get_span_context().span_id
    where, is_theirs = handle.health().spans_go_to, handle.tracer_provider is provider
with trace.get_tracer("application").start_as_current_span("afterwards"):
    pass
print(json.dumps([names, under, where, is_theirs, Processor.flushed, Processor.closed, Processor.ended[-1][0]]))
"""
    assert run(script, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9") == [
        ["query", "workflow.run", "request"],
        True,
        "the application's tracer provider",
        True,
        1,
        0,
        "afterwards",
    ]
