"""Our own errors stay ours: whatever fails inside, the caller's results, exceptions and streams are as without us.

A scenario drives a workflow, an agent class, tools and plain, streamed and refused calls through the real client.
It runs once without us; then with one internal function after the other made to fail.
"""

import asyncio
import gc
import json
import logging
import sys
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import openai
import pytest
from mock_openai import async_client, chunks, completion, event_response, json_response, sync_client
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor

import taskpilot_instrument as tp
from taskpilot_instrument import (
    _bodies,
    _callables,
    _collector,
    _guard,
    _operation,
    _recorder,
    _records,
    _streams,
    _totals,
    context,
    decorators,
    pricing,
)
from taskpilot_instrument.patches import _openai_call, _openai_response
from taskpilot_instrument.patches import openai as openai_patch
from taskpilot_instrument.sinks import logs, metrics, traces
from taskpilot_instrument.testing import Captured, capture
from taskpilot_instrument.typing import Clock

pytestmark = pytest.mark.openai

SECRET = "the patient is called Ada"
ASK: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": SECRET}]}
STREAM: dict[str, Any] = {**ASK, "stream": True, "stream_options": {"include_usage": True}}
REFUSED: dict[str, Any] = {**ASK, "model": "nope"}


class Boom(Exception):
    """Raised by the scenario on purpose."""


class Injected(Exception):
    """Raised inside the instrumentation on purpose."""


# --- the scenario -------------------------------------------------------------------------------


def answer(request: Any) -> Any:
    """Answer as the API would."""
    body = json.loads(request.content)
    if body["model"] == "nope":
        return json_response(b'{"error": {"message": "no such model"}}', 404)
    return event_response(*chunks()) if body.get("stream") else json_response(completion())


SYNC_CLIENT = sync_client(answer)
ASYNC_CLIENT = async_client(answer)


@tp.observed_tool
def shout(text: str) -> str:
    """Return a text in capitals."""
    return text.upper()


@tp.observed_tool
def later(text: str) -> Any:
    """Return a coroutine that returns the text."""
    return asyncio.sleep(0, text)


@tp.observed_tool
def wrap(text: str) -> frozenset[str]:
    """Return a set of one."""
    return frozenset({text})


@tp.observed_tool
def count(n: int) -> Iterator[int]:
    """Count."""
    yield from range(n)


@tp.observed_tool
async def acount(n: int) -> AsyncIterator[int]:
    """Count."""
    for i in range(n):
        yield i


@tp.observed_tool
def fail(error: Exception) -> None:
    """Fail."""
    raise error


@tp.observed_agent
class Agent:
    """An agent of the application."""

    def run(self, goal: str) -> None:
        """Do nothing: the scenario's subclasses do."""


def look(stream: Any) -> list[str]:
    """Return what a closed stream's response has of its own."""
    return sorted(vars(stream.response))


def told(error: BaseException) -> tuple[Any, ...]:
    """Return what a caller can see of an exception."""
    return type(error), str(error), type(error.__cause__), type(error.__context__)


def drive_sync() -> list[Any]:
    """Run the scenario; return everything that the application sees."""
    facts: list[Any] = []
    boom = Boom(SECRET)
    create = SYNC_CLIENT.chat.completions.create

    class Planner(Agent):
        def run(self, goal: str) -> None:
            facts.append(create(**ASK).model_dump())
            facts.append((shout(goal), wrap(goal), list(count(3))))
            for _ in count(3):
                break
            whole = create(**STREAM)
            facts.append(([chunk.model_dump() for chunk in whole], look(whole), type(whole).__qualname__))
            part = create(**STREAM)
            facts.append((next(part).model_dump(), part.close(), look(part)))
            with SYNC_CLIENT.chat.completions.with_streaming_response.create(**STREAM) as response:
                facts.append(list(response.iter_lines()))
            with SYNC_CLIENT.chat.completions.with_streaming_response.create(**ASK) as response:
                facts.append(response.parse().model_dump())
            dropped = create(**STREAM)
            facts.append(next(dropped).model_dump())
            del dropped
            gc.collect()
            try:
                create(**REFUSED)
            except openai.NotFoundError as error:
                facts.append(told(error))
            raise boom

    try:
        with tp.workflow("triage"):
            try:
                Planner().run(SECRET)
            except Boom as error:
                facts.append(error is boom)
            fail(boom)
    except Boom as error:
        facts.append(error is boom)
    return facts


async def drive_in_loop() -> list[Any]:
    """Run the scenario with coroutines."""
    facts: list[Any] = []
    boom = Boom(SECRET)
    create = ASYNC_CLIENT.chat.completions.create

    class Planner(Agent):
        async def arun(self, goal: str) -> None:
            facts.append((await create(**ASK)).model_dump())
            facts.append((shout(goal), await later(goal), [item async for item in acount(3)]))
            whole = await create(**STREAM)
            facts.append(([chunk.model_dump() async for chunk in whole], look(whole), type(whole).__qualname__))
            part = await create(**STREAM)
            facts.append(((await anext(part)).model_dump(), await part.close(), look(part)))
            async with ASYNC_CLIENT.chat.completions.with_streaming_response.create(**STREAM) as response:
                facts.append([line async for line in response.iter_lines()])
            async with ASYNC_CLIENT.chat.completions.with_streaming_response.create(**ASK) as response:
                facts.append((await response.parse()).model_dump())
            dropped = await create(**STREAM)
            facts.append((await anext(dropped)).model_dump())
            del dropped
            gc.collect()
            try:
                await create(**REFUSED)
            except openai.NotFoundError as error:
                facts.append(told(error))
            raise boom

    try:
        async with tp.workflow("triage"):
            try:
                await Planner().arun(SECRET)
            except Boom as error:
                facts.append(error is boom)
            fail(boom)
    except Boom as error:
        facts.append(error is boom)
    return facts


DRIVES: dict[str, Callable[[], list[Any]]] = {"sync": drive_sync, "async": lambda: asyncio.run(drive_in_loop())}


@pytest.fixture(scope="module")
def bare() -> Iterator[dict[str, list[Any]]]:
    """What the application sees without us; then a small heap, for the many collections of this module."""
    assert _recorder.active() is None
    seen = {mode: drive() for mode, drive in DRIVES.items()}
    gc.collect()
    gc.freeze()
    yield seen
    gc.unfreeze()


# --- what must hold -----------------------------------------------------------------------------


class OpenSpans(SpanProcessor):
    """Know which spans were started and not ended."""

    def __init__(self) -> None:
        self.names: dict[int, str] = {}

    def on_start(self, span: Span, parent_context: object = None) -> None:
        """Note a span."""
        self.names[span.get_span_context().span_id] = span.name

    def on_end(self, span: ReadableSpan) -> None:
        """Forget a span."""
        assert span.context is not None
        del self.names[span.context.span_id]


class BrokenProcessor(SpanProcessor):
    """A span processor of the application that fails when a span ends."""

    def __init__(self, error: type[BaseException]) -> None:
        self._error = error

    def on_end(self, span: ReadableSpan) -> None:
        """Fail."""
        raise self._error(SECRET)


class BrokenClock:
    """A clock that works, or works for a while and then raises ``error``."""

    def __init__(self) -> None:
        self.error: type[BaseException] | None = None
        self.reads_left = 0
        self._now = 0

    def __call__(self) -> int:
        """Return nanoseconds."""
        self._now += 1_000_000
        self.reads_left -= 1
        if self.error is not None and self.reads_left < 0:
            raise self.error(SECRET)
        return self._now


class Bench(NamedTuple):
    """Instrumentation to break."""

    captured: Captured
    open_spans: OpenSpans
    clock: BrokenClock

    def assert_nothing_is_open(self) -> None:
        """Assert that every span ended, nothing is current and no stream is watched."""
        gc.collect()
        _collector.finish_orphans()
        assert {} == self.open_spans.names
        assert _operation.current() is None
        assert set() == _streams._open_watches


@contextmanager
def production() -> Iterator[Bench]:
    """Instrument as in production: errors are swallowed."""
    clock, open_spans = BrokenClock(), OpenSpans()
    _guard.reset()
    with capture(reraise=False, counting_ids=False, capture_content=True, clock=Clock(clock, clock)) as captured:
        captured.handle.tracer_provider.add_span_processor(open_spans)  # type: ignore[attr-defined] # it is the SDK's
        yield Bench(captured, open_spans, clock)
    _guard.reset()


@pytest.fixture
def bench() -> Iterator[Bench]:
    """Instrumentation to break."""
    with production() as made:
        yield made


# --- faults by name -----------------------------------------------------------------------------

Break = Callable[[Bench, pytest.MonkeyPatch, type[BaseException]], Any]


def method(owner: Any, name: str) -> Break:
    """Break one function: every call of it raises."""

    def install(bench: Bench, patch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
        def broken(*args: Any, **kwargs: Any) -> Any:
            raise error(SECRET)

        assert callable(getattr(owner, name))
        patch.setattr(owner, name, broken)

    return install


def break_span_end(bench: Bench, patch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    """Let the end of each span fail, as a processor of the application can make it."""
    bench.captured.handle.tracer_provider.add_span_processor(BrokenProcessor(error))  # type: ignore[attr-defined]


def break_capture(bench: Bench, patch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    """Let nothing be captured of arguments, results and messages."""

    def broken(value: object) -> str:
        raise error(SECRET)

    recorder = _recorder.active()
    assert recorder is not None
    patch.setattr(_recorder, "_active", replace(recorder, capture=broken))


def break_transport(bench: Bench, patch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    """Let the note on retries and request id fail."""

    def refuse(call: object, value: object) -> None:
        if value is not None:
            raise error(SECRET)

    patch.setattr(_records.LLMCall, "provider_request_id", property(lambda call: None, refuse))


def break_clock(after: int) -> Break:
    """Let the clock fail after so many reads."""

    def install(bench: Bench, patch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
        patch.setattr(bench.clock, "reads_left", after)
        patch.setattr(bench.clock, "error", error)

    return install


class Fault(NamedTuple):
    """One thing that breaks.

    :param where: under which words its errors are counted.
    """

    install: Break
    where: frozenset[str]


def fault(install: Break, *where: str) -> Fault:
    """Return a fault."""
    return Fault(install, frozenset(where))


FAULTS: dict[str, Fault] = {
    # an operation begins
    "workflow start, agent start, call start": fault(method(_operation.Operation, "__init__"), "start", "before"),
    "request id factory": fault(method(context, "request_id_factory"), "start", "before"),
    "span open": fault(method(traces.TraceSink, "open_span"), "span"),
    "log sink started": fault(method(logs.LogSink, "started"), "log"),
    "subclass hook": fault(method(decorators, "_wrap_entry"), "subclass"),
    # a call is read
    "endpoint": fault(method(openai_patch, "surface_of"), "before"),
    "request body": fault(method(openai_patch, "body_of"), "before"),
    "request reader": fault(method(openai_patch, "llm_call"), "before"),
    "request attributes": fault(method(_openai_call, "request_attributes"), "request"),
    "server": fault(method(openai_patch, "server_of"), "before"),
    "content of a request": fault(method(_openai_call, "capture_input"), "request"),
    "content of arguments and results": fault(break_capture, "capture", "request", "usage", "abandon"),
    "retries and request id": fault(break_transport, "transport"),
    # an answer is read
    "answer": fault(method(_openai_call, "read_response"), "usage"),
    "usage": fault(method(_openai_response, "usage_in"), "usage"),
    "stream class": fault(method(_openai_call, "watched_class"), "stream"),
    "watch": fault(method(_openai_call, "Watch"), "usage"),
    "hooks on the response": fault(method(_streams.Watch, "hook"), "usage"),
    "hooks on the response, half done": fault(method(weakref, "finalize"), "usage"),
    "event splitter": fault(method(_bodies.EventBody, "feed"), "usage"),
    "document collector": fault(method(_bodies.JsonBody, "feed"), "usage"),
    "end of the body": fault(method(_bodies.JsonBody, "end"), "usage"),
    "chunk reader": fault(method(_openai_response.ChunkedReader, "read_chunk"), "usage"),
    "end of the chunks": fault(method(_openai_response.ChunkedReader, "read_end"), "usage", "abandon"),
    "abandoned stream": fault(method(_streams, "abandon"), "abandon"),
    "result that still runs": fault(method(_callables, "_running"), "result"),
    # an operation ends
    "price": fault(method(pricing.PriceBook, "price_call"), "price"),
    "sum of tokens and cost": fault(method(_totals.Totals, "add"), "finish"),
    "record": fault(method(_operation.Operation, "_record"), "finish"),
    "span tags": fault(method(traces.TraceSink, "_tags"), "span"),
    "trace sink finished": fault(method(traces.TraceSink, "finished"), "span"),
    "span end": fault(break_span_end, "span"),
    "metrics sink finished": fault(method(metrics.MetricsBackend, "finished"), "metric"),
    "log sink finished": fault(method(logs.LogSink, "finished"), "log"),
    # time
    **{
        f"clock after {reads} reads": fault(
            break_clock(reads), "start", "before", "finish", "metric", "log", "usage", "clock", "abandon"
        )
        for reads in (0, 1, 2, 3, 4, 5, 7, 11, 16, 23, 34, 50)
    },
}


@pytest.mark.parametrize("mode", DRIVES)
@pytest.mark.parametrize("name", FAULTS)
def test_a_hook_that_fails_is_not_noticed(
    bare: dict[str, list[Any]],
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    mode: str,
) -> None:
    """Whichever hook fails: the caller notices nothing, nothing stays open, the error is counted and said once."""
    captured, wrong = bench.captured, FAULTS[name]
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "taskpilot_instrument"):
        wrong.install(bench, patch, Injected)
        seen = DRIVES[mode]()
        bench.assert_nothing_is_open()
    assert bare[mode] == seen
    errors = captured.handle.health().errors_swallowed
    assert errors
    assert wrong.where >= errors.keys()
    for where, times in errors.items():
        assert f'taskpilot_instrument_errors_total{{where="{where}"}} {float(times)}' in captured.prometheus_text
    said = [record.getMessage() for record in caplog.records if "internal error" in record.getMessage()]
    assert sorted(errors) == sorted(text.split()[4] for text in said)
    assert SECRET not in caplog.text


#: What the collector calls cannot raise: Python prints it.
@pytest.mark.parametrize("order", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("name", [name for name in FAULTS if name != "abandoned stream"])
def test_an_order_to_stop_gets_through(
    bare: dict[str, list[Any]],
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    order: type[BaseException],
) -> None:
    """KeyboardInterrupt and SystemExit that arrive inside a hook reach the caller, and nothing stays open."""
    with monkeypatch.context() as patch:
        FAULTS[name].install(bench, patch, order)
        with pytest.raises(order):
            drive_sync()
    bench.assert_nothing_is_open()
    assert _guard.swallowed() == {}


def test_a_listener_and_a_logging_filter_that_fail(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where even counting and logging of the error fail, the caller still notices nothing."""

    def refuse(*args: object) -> bool:
        raise Injected(SECRET)

    log = logging.getLogger("taskpilot_instrument")
    monkeypatch.setattr(metrics.MetricsBackend, "finished", refuse)
    monkeypatch.setattr(_guard.policy, "listeners", [refuse])
    log.addFilter(refuse)
    try:
        assert "ADA" == shout("ada")
    finally:
        log.removeFilter(refuse)
    assert {"metric": 1} == bench.captured.handle.health().errors_swallowed


def test_the_span_around_stays_current_where_none_can_be_opened(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A span that we fail to open does not hide the application's own span from what runs inside."""
    tracer = bench.captured.handle.tracer_provider.get_tracer("application")

    @tp.observed_tool
    def inside() -> Any:
        return trace.get_current_span()

    monkeypatch.setattr(traces.TraceSink, "open_span", None)
    with tracer.start_as_current_span("request") as outer:
        assert inside() is outer
    assert {"span": 1} == bench.captured.handle.health().errors_swallowed


def test_a_lazy_result_is_not_looked_into(bench: Bench) -> None:
    """A result that raises when its class is asked for, as an unbound proxy does, is returned as it is."""

    class Lazy:
        @property  # type: ignore[misc] # unlike any other class
        def __class__(self) -> Any:
            raise Injected(SECRET)

    lazy = Lazy()
    assert tp.observed_tool(lambda: lazy)() is lazy
    assert ["<lambda>"] == bench.captured.names()


# --- any function -------------------------------------------------------------------------------

PACKAGE = Path(tp.__file__).parent
ROOT = str(PACKAGE)
#: What the application calls, and what goes around its calls: there the guards stand, and the faults above pass through
#: each of them. Everything else is behind a guard.
GATES = [
    str(PACKAGE / path)
    for path in (
        "_callables.py", "_collector.py", "_guard.py", "_operation.py", "_recorder.py", "_streams.py", "decorators.py",
        "patches/_openai_call.py", "patches/openai.py", "runtime.py", "testing.py", "workflow.py",
    )
]  # fmt: skip


class Injector:
    """A trace function that notes which functions behind the gates are entered, and lets one of them fail.

    :param target: the function whose first call fails; None only to take notes.
    """

    def __init__(self, target: CodeType | None = None) -> None:
        self.entered: dict[CodeType, str] = {}
        self._target = target

    def __call__(self, frame: FrameType, event: str, arg: object) -> None:
        """Hear that a frame was entered; what is raised here is raised there."""
        code = frame.f_code
        path = code.co_filename
        if path.startswith(ROOT) and path not in GATES:
            self.entered[code] = f"{Path(path).stem}.{code.co_qualname}"
            if code is self._target:
                raise Injected(SECRET)  # and Python stops tracing

    def drive(self, mode: str) -> list[Any]:
        """Run the scenario under this trace function."""
        before = sys.gettrace()
        sys.settrace(self)
        try:
            return DRIVES[mode]()
        finally:
            sys.settrace(before)


@pytest.mark.skipif(sys.gettrace() is not None, reason="a debugger or a coverage tool is tracing")
def test_any_function_behind_the_gates_may_fail(bare: dict[str, list[Any]]) -> None:
    """Not only the hooks: the first call of each single function behind them fails, and nobody notices."""
    with production():
        notes = Injector()
        assert bare["sync"] == notes.drive("sync")
    assert len(notes.entered) > 100
    noticed = []
    for code, name in notes.entered.items():
        with production() as bench:
            try:
                if bare["sync"] != Injector(code).drive("sync"):
                    noticed.append(f"{name} changed what the application saw")
                bench.assert_nothing_is_open()
            except (Injected, AssertionError) as error:
                noticed.append(f"{name}: {error!r:.200}")
    assert [] == noticed
