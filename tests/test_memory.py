"""Everything held in memory is bounded, however long the application runs and whatever comes in."""

import functools
import gc
import importlib
import inspect
import json
import pkgutil
import tracemalloc
import weakref
from collections import deque
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import openai
import pytest
from mock_openai import chunks, completion, event_response, json_response, sync_client
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry, generate_latest

import taskpilot_instrument as tp
from taskpilot_instrument import _streams
from taskpilot_instrument.testing import Captured, FakeClock

pytestmark = pytest.mark.openai

LABEL_CAP = 20
WARM_UP = 1100
#: The cache of prices starts anew after 1,024 names: over as many calls it ends as full as it began.
CALLS = 1024
#: Bytes that a call may leave behind on average; the smallest object that could be kept for each call takes more.
CEILING = 50


def answer(request: Any) -> Any:
    """Answer as the API would, in the model's name."""
    body = json.loads(request.content)
    return event_response(*chunks(body["model"])) if body.get("stream") else json_response(completion(body["model"]))


CLIENT = sync_client(answer)


class Silence:
    """Take log lines and keep none."""

    def write(self, text: str) -> None:
        """Take a line."""


@pytest.fixture
def handle() -> Iterator[tp.Instrumentation]:
    """Instrumentation whose spans and log lines go nowhere; time stands still, so that no bucket of time is closed."""
    with tp.instrument(
        tracer_provider=TracerProvider(shutdown_on_exit=False), registry=CollectorRegistry(), logs=Silence(),
        label_cap=LABEL_CAP, clock=FakeClock().clock,
    ) as made:  # fmt: skip
        yield made


@tp.observed_tool
def shout(text: str) -> str:
    """Return a text in capitals."""
    return text.upper()


def run_once(number: int) -> None:
    """Make a run in which every name is new."""

    @tp.observed_agent(name=f"agent-{number}")
    def agent(goal: str) -> str:
        ask: dict[str, Any] = {"model": f"model-{number}", "messages": [{"role": "user", "content": goal}]}
        if number % 8:
            CLIENT.chat.completions.create(**ask)
        else:
            list(CLIENT.chat.completions.create(**ask, stream=True))
        return shout(goal)

    with tp.workflow(f"workflow-{number}", request_id=f"req-{number}", session_id=f"s-{number}", user_id=f"u-{number}"):
        agent(f"goal {number}")


def held(handle: tp.Instrumentation) -> int:
    """Return how many bytes are in use once everything was counted: the last few operations wait for that."""
    handle.health()
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def modules() -> list[ModuleType]:
    """Return every module of the package that is or can be imported here."""
    names = [info.name for info in pkgutil.walk_packages(tp.__path__, "taskpilot_instrument.")]
    return [tp, *(importlib.import_module(name) for name in names if not name.endswith(("__main__", "._demo")))]


# --- growth -------------------------------------------------------------------------------------


def test_calls_leave_nothing_behind(handle: tp.Instrumentation) -> None:
    """After a warm-up, a thousand runs with ever new names and ids leave less than CEILING bytes each."""
    tracemalloc.start()
    try:
        for number in range(WARM_UP):
            run_once(number)
        before = held(handle)
        for number in range(WARM_UP, WARM_UP + CALLS):
            run_once(number)
        after = held(handle)
    finally:
        tracemalloc.stop()
    assert handle.health().calls_recorded == WARM_UP + CALLS
    assert (after - before) / CALLS < CEILING


def test_nothing_at_module_level_grows(handle: tp.Instrumentation) -> None:
    """No list, set or dictionary of any module has one entry more after many runs."""

    def sizes() -> dict[str, int]:
        return {
            f"{module.__name__}.{name}": len(value)
            for module in modules()
            for name, value in vars(module).items()
            if isinstance(value, dict | list | set | deque) and not name.startswith("__")
        }

    run_once(0)
    run_once(1)
    before = sizes()
    for number in range(2, 300):
        run_once(number)
    gc.collect()
    assert before == sizes()


def test_series_are_as_many_as_the_cap_allows(handle: tp.Instrumentation) -> None:
    """Names beyond the cap of their label make no further series; they count as other, and that is counted too."""

    def series() -> int:
        return len(generate_latest(handle.metrics.registry).splitlines())

    for number in range(LABEL_CAP + 1):
        run_once(number)
    before = series()
    for number in range(LABEL_CAP + 1, 150):
        run_once(number)
    assert before == series()
    assert handle.metrics.registry.get_sample_value(
        "taskpilot_agent_runs_total", {"agent": "other", "outcome": "success"}
    ) == (150 - LABEL_CAP)
    overflow = handle.health().label_overflow
    assert overflow is not None
    assert overflow.keys() >= {"agent", "model", "workflow"}


# --- caches -------------------------------------------------------------------------------------


def caches() -> "dict[str, functools._lru_cache_wrapper[Any]]":
    """Return every cached function of the package."""
    return {
        f"{module.__name__}.{name}": value
        for module in modules()
        for name, value in vars(module).items()
        if isinstance(value, functools._lru_cache_wrapper)
    }


def test_every_cache_has_a_ceiling() -> None:
    """Each cached function says how much it keeps, unless it takes no arguments."""
    assert caches()
    assert [] == [
        name
        for name, cached in caches().items()
        if cached.cache_parameters()["maxsize"] is None and inspect.signature(cached).parameters
    ]


def test_stream_classes_of_the_application_are_let_go(captured: Captured) -> None:
    """Stream classes that an application makes as it runs do not pile up."""

    def stream_class() -> "weakref.ref[type]":
        class Mine(openai.Stream[Any]):
            pass

        body = {"model": "gpt-4o-mini", "messages": [], "stream": True}
        stream = CLIENT.post("/chat/completions", cast_to=object, body=body, stream=True, stream_cls=Mine)
        assert 4 == len(list(stream))
        assert isinstance(stream, Mine)
        return weakref.ref(Mine)

    made = [stream_class() for _ in range(400)]
    gc.collect()
    alive = [ref for ref in made if ref() is not None]
    assert len(alive) <= max(cached.cache_parameters()["maxsize"] or 0 for cached in caches().values())


def test_a_client_goes_with_what_is_known_of_it(captured: Captured) -> None:
    """A client that is dropped is freed; where it sent its requests is not kept."""

    def use() -> "weakref.ref[openai.OpenAI]":
        client = sync_client(answer)
        client.chat.completions.create(model="gpt-4o-mini", messages=[])
        client.close()
        return weakref.ref(client)

    clients = [use() for _ in range(20)]
    gc.collect()
    assert [None] * 20 == [ref() for ref in clients]


# --- objects of the application -----------------------------------------------------------------


def test_decorated_classes_and_functions_are_let_go(captured: Captured) -> None:
    """Classes, subclasses and functions that are decorated as the application runs are freed when it drops them."""

    def make() -> "list[weakref.ref[Any]]":
        @tp.observed_agent
        class Agent:
            def run(self, goal: str) -> str:
                return tool(goal)

        class Special(Agent):
            def run(self, goal: str) -> str:
                return super().run(goal)

        @tp.observed_tool
        def tool(text: str) -> str:
            return text

        agent = Special()
        agent.run("x")
        return [weakref.ref(made) for made in (Agent, Special, tool, agent)]

    made = [ref for _ in range(10) for ref in make()]
    gc.collect()
    assert [None] * 40 == [ref() for ref in made]


def test_an_agent_that_keeps_its_stream_is_let_go(captured: Captured) -> None:
    """An agent that holds an unfinished stream is freed together with it, and the call is abandoned."""

    @tp.observed_agent
    class Agent:
        def run(self) -> None:
            self.stream = CLIENT.chat.completions.create(model="gpt-4o-mini", messages=[], stream=True)
            next(self.stream)

    def use() -> "weakref.ref[Agent]":
        agent = Agent()
        agent.run()
        return weakref.ref(agent)

    agent = use()
    gc.collect()
    assert agent() is None
    assert captured.tags("chat gpt-4o-mini")["outcome"] == "abandoned"


def test_a_stream_that_was_read_keeps_nothing_of_ours(captured: Captured) -> None:
    """A stream object that the application keeps after its end does not keep the recorded call alive."""
    stream = CLIENT.chat.completions.create(model="gpt-4o-mini", messages=[], stream=True)
    next(stream)
    (watch,) = _streams._open_watches
    operation = weakref.ref(watch.operation)
    del watch
    list(stream)
    gc.collect()
    assert operation() is None


def test_instrumentation_that_was_undone_is_let_go() -> None:
    """instrument() and uninstrument(), again and again, leave no handle behind."""

    def use(number: int) -> "weakref.ref[tp.Instrumentation]":
        with tp.instrument(
            tracer_provider=TracerProvider(shutdown_on_exit=False), registry=CollectorRegistry(), logs="off"
        ) as handle:
            run_once(number)
        return weakref.ref(handle)

    handles = [use(number) for number in range(5)]
    gc.collect()
    assert [None] * 5 == [ref() for ref in handles]
