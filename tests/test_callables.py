"""One operation around every kind of callable."""

import asyncio
import contextlib
import copy
import gc
import inspect
import pickle
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace

from taskpilot_instrument import BlockedError, observed_agent, observed_tool
from taskpilot_instrument.testing import Captured, capture

tracer = trace.get_tracer("test")


class Boom(Exception):
    """Raised on purpose."""


@observed_tool
def plain(x: int, *, y: int = 2) -> int:
    """Add two numbers.

    More text.
    """
    return x + y


@observed_tool
async def coroutine(x: int, *, y: int = 2) -> int:
    """Add two numbers."""
    await asyncio.sleep(0.05)
    return x + y


@observed_tool
def generator(n: int) -> Iterator[int]:
    """Count."""
    yield from range(n)


@observed_tool
async def async_generator(n: int) -> AsyncIterator[int]:
    """Count."""
    for i in range(n):
        await asyncio.sleep(0)
        yield i


KINDS = [plain, coroutine, generator, async_generator]


async def finish(kind: Callable[..., Any], *args: Any) -> Any:
    """Run any kind of callable to its end."""
    result = kind(*args)
    if inspect.isawaitable(result):
        return await result
    if hasattr(result, "__aiter__"):
        return [item async for item in result]
    return list(result) if inspect.isgenerator(result) else result


@pytest.mark.parametrize("kind", KINDS)
async def test_each_kind_is_one_span(captured: Captured, kind: Callable[..., Any]) -> None:
    """A call of any kind is one span with the tool's name, outcome success."""
    await finish(kind, 3)
    assert captured.names() == [kind.__name__]
    assert captured.tags(kind.__name__)["outcome"] == "success"


@pytest.mark.parametrize("kind", KINDS)
async def test_each_kind_without_instrumentation(kind: Callable[..., Any]) -> None:
    """Before instrument() a decorated callable behaves as if it were not decorated."""
    expected = {"plain": 5, "coroutine": 5, "generator": [0, 1, 2], "async_generator": [0, 1, 2]}
    assert await finish(kind, 3) == expected[kind.__name__]


@pytest.mark.parametrize("kind", KINDS)
def test_introspection_is_kept(kind: Any) -> None:
    """Name, doc, signature, hints, flags, pickling and deepcopy are those of the original."""
    original = kind.__wrapped__
    assert inspect.signature(kind) == inspect.signature(original)
    assert inspect.get_annotations(kind) == inspect.get_annotations(original)
    assert (kind.__doc__, kind.__module__, kind.__qualname__) == (
        original.__doc__,
        original.__module__,
        original.__qualname__,
    )
    for flag in (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction):
        assert flag(kind) == flag(original)
    assert pickle.loads(pickle.dumps(kind)) is kind
    assert copy.deepcopy(kind) is kind


async def test_async_work_is_measured_whole(captured: Captured) -> None:
    """50 ms of awaited work are 50 ms of latency."""
    await coroutine(1)
    assert captured.tags("coroutine")["latency_ms"] >= 50


@pytest.mark.parametrize("kind", KINDS)
async def test_twice_decorated_is_once(captured: Captured, kind: Callable[..., Any]) -> None:
    """Decorating twice gives one span."""
    await finish(observed_tool(kind), 1)
    assert len(captured.spans) == 1


def failing(error: BaseException) -> dict[str, Callable[[], Any]]:
    """Make one callable of each kind that raises ``error``."""

    @observed_agent(name="a")
    def plain() -> None:
        raise error

    @observed_agent(name="a")
    async def coroutine() -> None:
        raise error

    @observed_agent(name="a")
    def generator() -> Iterator[int]:
        yield 1
        raise error

    @observed_agent(name="a")
    async def async_generator() -> AsyncIterator[int]:
        yield 1
        raise error

    return {"plain": plain, "coroutine": coroutine, "generator": generator, "async_generator": async_generator}


@pytest.mark.parametrize("kind", ["plain", "coroutine", "generator", "async_generator"])
@pytest.mark.parametrize(
    ("error", "outcome"),
    [(Boom("x"), "error"), (asyncio.CancelledError(), "cancelled"), (BlockedError("no"), "blocked")],
)
async def test_exceptions_are_the_same_object(
    captured: Captured, kind: str, error: BaseException, outcome: str
) -> None:
    """The caller sees the very exception that was raised; the outcome says which sort it was."""
    with pytest.raises(type(error)) as seen:
        await finish(failing(error)[kind])
    assert seen.value is error
    assert captured.tags("a.execute")["outcome"] == outcome
    assert captured.tags("workflow.run")["outcome"] == outcome


# --- generators ---------------------------------------------------------------------------------


def test_generator_send_throw_and_return() -> None:
    """send(), throw() and the return value pass through."""

    @observed_tool
    def talk() -> Any:
        got = []
        for _ in range(2):
            try:
                got.append((yield len(got)))
            except Boom:
                got.append("boom")
        return got

    with capture() as captured:
        talking = talk()
        assert next(talking) == 0
        assert talking.send("a") == 1
        with pytest.raises(StopIteration) as stop:
            talking.throw(Boom())
        assert stop.value.value == ["a", "boom"]
        assert captured.tags("talk")["outcome"] == "success"


async def test_async_generator_asend_and_athrow() -> None:
    """asend() and athrow() pass through."""

    @observed_tool
    async def talk() -> Any:
        got: list[Any] = []
        for _ in range(2):
            try:
                got.append((yield list(got)))
            except Boom:
                got.append("boom")
        yield got

    with capture() as captured:
        talking = talk()
        assert await anext(talking) == []
        assert await talking.asend("a") == ["a"]
        assert await talking.athrow(Boom()) == ["a", "boom"]
        assert [item async for item in talking] == []
        assert captured.tags("talk")["outcome"] == "success"


def test_early_break_closes_once(captured: Captured) -> None:
    """A consumer that breaks ends the operation as cancelled, and the generator's finally runs inside it."""
    seen = []

    @observed_agent(name="a")
    def stream() -> Iterator[int]:
        try:
            yield 1
            yield 2
        finally:
            seen.append(trace.get_current_span())

    for _ in stream():
        break
    gc.collect()
    assert captured.tags("a.execute")["outcome"] == "cancelled"
    assert captured.span("a.execute").context == seen[0].get_span_context()


async def test_early_break_of_async_generator(captured: Captured) -> None:
    """aclose() after a break ends the operation as cancelled."""
    stream = async_generator(3)
    async with contextlib.aclosing(stream):  # type: ignore[type-var] # an async generator, typed as an iterator
        async for _ in stream:
            break
    assert captured.tags("async_generator")["outcome"] == "cancelled"


def test_abandoned_async_generator(captured: Captured) -> None:
    """An async generator that its loop never closed still ends, when it is collected."""

    async def start() -> Any:
        running = async_generator(3)
        await anext(running)  # type: ignore[call-overload] # an async generator, typed as an iterator
        return running

    loop = asyncio.new_event_loop()
    running = loop.run_until_complete(start())
    loop.close()
    del running
    gc.collect()
    assert captured.tags("async_generator")["outcome"] in {"abandoned", "cancelled"}


def test_never_started_generator_is_no_run(captured: Captured) -> None:
    """A generator that nobody iterates has not run."""
    generator(3)
    gc.collect()
    assert captured.spans == []


def test_generator_does_not_leak_into_consumer(captured: Captured) -> None:
    """Between steps the consumer has its own context; within a step children find their parent."""

    @observed_agent(name="a")
    def stream() -> Iterator[int]:
        plain(1)
        yield 1
        plain(2)
        yield 2

    for _ in stream():
        assert not trace.get_current_span().get_span_context().is_valid
        plain(3)
    parents = [span.parent and span.parent.span_id for span in captured.spans if span.name == "plain"]
    agent = captured.span("a.execute").context.span_id
    assert parents == [agent, None, agent, None]


async def test_interleaved_async_generators(captured: Captured) -> None:
    """Two generators that take turns in one task never see each other's operation."""

    @observed_agent(name="a")
    async def stream(n: int) -> AsyncIterator[int]:
        for _ in range(3):
            await asyncio.sleep(0)
            plain(n)
            yield n

    one, two = stream(1), stream(2)
    for _ in range(3):
        await anext(one)  # type: ignore[call-overload] # an async generator, typed as an iterator
        await anext(two)  # type: ignore[call-overload]
    assert [x async for x in one] + [x async for x in two] == []
    agents = {span.context.span_id for span in captured.spans if span.name == "a.execute"}
    parents = [span.parent.span_id for span in captured.spans if span.name == "plain"]
    assert set(parents) == agents
    assert parents[0::2] == [parents[0]] * 3


async def test_generator_finished_in_another_task(captured: Captured, caplog: pytest.LogCaptureFixture) -> None:
    """Ending a generator in a task other than the one that began it is quiet, and leaves that task alone."""
    running = async_generator(3)
    await anext(running)  # type: ignore[call-overload] # an async generator, typed as an iterator

    async def rest() -> list[int]:
        before = otel_context.get_current()
        items = [item async for item in running]
        assert otel_context.get_current() == before
        return items

    assert await asyncio.create_task(rest()) == [1, 2]
    assert captured.tags("async_generator")["outcome"] == "success"
    assert caplog.records == []


# --- plain functions whose result still runs ----------------------------------------------------


async def test_function_returning_coroutine(captured: Captured) -> None:
    """The operation goes with a coroutine that a plain function returns, and children find it."""

    @observed_agent(name="a")
    def run() -> Any:
        async def work() -> int:
            await asyncio.sleep(0.02)
            return plain(1)

        return work()

    result = run()
    assert inspect.iscoroutine(result)
    assert captured.spans == []
    assert await result == 3
    assert captured.tree() == ["workflow.run", "  a.execute", "    plain"]
    assert captured.tags("a.execute")["latency_ms"] >= 20


async def test_function_returning_task(captured: Captured) -> None:
    """A task stays the same object; the operation ends with it."""
    made = []

    @observed_agent(name="a")
    def run() -> Any:
        made.append(asyncio.ensure_future(asyncio.sleep(0.01, "done")))
        return made[0]

    task = run()
    assert task is made[0]
    assert await task == "done"
    await asyncio.sleep(0)
    assert captured.tags("a.execute")["outcome"] == "success"


async def test_function_returning_cancelled_task(captured: Captured) -> None:
    """A cancelled task is a cancelled run."""

    @observed_agent(name="a")
    def run() -> Any:
        return asyncio.ensure_future(asyncio.sleep(10))

    task = run()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    assert captured.tags("a.execute")["outcome"] == "cancelled"


async def test_function_returning_async_generator(captured: Captured) -> None:
    """The operation goes with an async generator that a plain function returns."""

    @observed_agent(name="a")
    def run() -> Any:
        return async_generator.__wrapped__(2)  # type: ignore[attr-defined] # functools.wraps sets it

    stream = run()
    assert inspect.isasyncgen(stream)
    assert [item async for item in stream] == [0, 1]
    assert captured.tags("a.execute")["outcome"] == "success"


async def test_function_returning_async_iterator_object(captured: Captured) -> None:
    """An async iterator of a class of its own keeps its attributes and type; the operation ends with it."""

    class Stream:
        label = "mine"

        def __init__(self) -> None:
            self.left = 2

        def __aiter__(self) -> "Stream":
            return self

        async def __anext__(self) -> int:
            if not self.left:
                raise StopAsyncIteration
            self.left -= 1
            return plain(self.left)

    @observed_agent(name="a")
    def run() -> Any:
        return Stream()

    stream = run()
    assert isinstance(stream, Stream)
    assert stream.label == "mine"
    assert [item async for item in stream] == [3, 2]
    assert captured.tree() == ["workflow.run", "  a.execute", "    plain", "    plain"]


async def test_function_returning_awaitable_object(captured: Captured) -> None:
    """An awaitable of a class of its own is awaited within the operation."""

    class Later:
        def __await__(self) -> Any:
            yield from asyncio.sleep(0.01).__await__()
            return plain(1)

    @observed_agent(name="a")
    def run() -> Any:
        return Later()

    later = run()
    assert isinstance(later, Later)
    assert await later == 3
    assert captured.tree() == ["workflow.run", "  a.execute", "    plain"]


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_coroutine_that_nobody_awaits(captured: Captured) -> None:
    """A returned coroutine that is dropped ends its operation as cancelled."""

    @observed_agent(name="a")
    def run() -> Any:
        return coroutine(1)

    run()
    gc.collect()
    assert captured.tags("a.execute")["outcome"] == "cancelled"


async def test_task_exception_is_still_reported(captured: Captured) -> None:
    """Watching a task does not mark its exception as retrieved: asyncio's own report still comes."""
    loop, reports = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda _loop, report: reports.append(report["message"]))

    async def fail() -> None:
        raise Boom

    @observed_agent(name="a")
    def run() -> Any:
        return asyncio.ensure_future(fail())

    run()
    await asyncio.sleep(0.01)
    gc.collect()
    assert reports == ["Task exception was never retrieved"]
    assert captured.tags("a.execute")["outcome"] == "error"


# --- cancellation and context -------------------------------------------------------------------


async def test_timeout_still_works(captured: Captured) -> None:
    """asyncio.timeout reaches into a decorated coroutine and a decorated async generator."""

    @observed_tool
    async def slow() -> AsyncIterator[int]:
        yield 1
        await asyncio.sleep(10)
        yield 2

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            async for _ in slow():
                pass
    assert captured.tags("slow")["outcome"] == "cancelled"


async def test_background_task_outlives_its_agent(captured: Captured) -> None:
    """Work started by an agent and finished after it is a child of its span all the same."""
    tasks = []

    async def later() -> None:
        await asyncio.sleep(0.01)
        plain(1)

    @observed_agent(name="a")
    async def run() -> None:
        tasks.append(asyncio.create_task(later()))

    await run()
    await tasks[0]
    assert captured.tree() == ["workflow.run", "  a.execute", "    plain"]


def test_threads_with_copied_context(captured: Captured) -> None:
    """Whatever carries the context carries the operation: here a thread run in a copy of it."""
    import contextvars

    @observed_agent(name="a")
    def run() -> None:
        thread = threading.Thread(target=contextvars.copy_context().run, args=(plain, 1))
        thread.start()
        thread.join()

    run()
    assert captured.tree() == ["workflow.run", "  a.execute", "    plain"]


async def test_to_thread_and_gather(captured: Captured) -> None:
    """asyncio.to_thread and gather keep children under their agent."""

    @observed_agent(name="a")
    async def run() -> None:
        await asyncio.gather(asyncio.to_thread(plain, 1), coroutine(2))

    await run()
    assert captured.tree() == ["workflow.run", "  a.execute", "    coroutine", "    plain"] or captured.tree() == [
        "workflow.run",
        "  a.execute",
        "    plain",
        "    coroutine",
    ]
