"""Runs that go in circles: what counts as one, and how it is flagged or stopped."""

import gc
import threading
from collections.abc import AsyncIterator, Iterator
from contextvars import copy_context
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import openai
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

import taskpilot_instrument as tp
from taskpilot_instrument import Runaway, RunawayError, TokenUsage, _fingerprint, semconv
from taskpilot_instrument._fingerprint import fingerprint
from taskpilot_instrument.embedded import EmbeddedServer, Reply
from taskpilot_instrument.runaway import RunawayDetector
from taskpilot_instrument.testing import Captured, FakeClock, capture

MESSAGES: Any = [{"role": "user", "content": "hello there"}]
ASK: dict[str, Any] = {"model": "gpt-4o-mini", "messages": MESSAGES}


@tp.observed_tool
def search(query: str, *, page: int = 1) -> str:
    """Return what was found."""
    return f"{query} {page}"


def decided(captured: Captured) -> list[tuple[str, str]]:
    """Return event name and decision of each line of the decision log."""
    return [(line["event_name"], line["decision"]) for line in captured.logs if line["category"] == "decision"]


def violations(captured: Captured) -> int:
    """Return how many violations the policy ``runaway`` has, after a look that nothing else has any."""
    found = {
        sample.labels["policy"]: int(sample.value)
        for family in captured.handle.metrics.families.collect()
        for sample in family.samples
        if sample.name == semconv.M_POLICY_VIOLATIONS
    }
    assert set(found) <= {"runaway"}
    return found.get("runaway", 0)


# --- the same tool call -------------------------------------------------------------------------


def test_the_same_call_again_and_again_is_flagged_once_a_run() -> None:
    """With alert the run goes on; line, violation and span event are there once, without the arguments."""
    with capture(runaway=Runaway(same_tool_calls=3)) as captured:
        with tp.workflow("triage"):
            for _ in range(9):
                assert "sorrel 1" == search("sorrel")
        assert [("policy.decided", "flag")] == decided(captured)
        assert 1 == violations(captured)
        (line,) = (line for line in captured.logs if line["category"] == "decision")
        assert "same_tool_calls: search was called 3 times with the same arguments" == line["reason"]
        assert ("runaway", "search", "triage") == (line["policy"], line["tool"], line["workflow"])
        assert "sorrel" not in str(captured.logs)
        third = [span for span in captured.spans if span.name == "search"][2]
        assert ["policy.decided"] == [event.name for event in third.events]


def test_the_call_that_makes_it_a_runaway_is_refused() -> None:
    """With stop the tool does not run, and tool and run end as blocked."""
    ran: list[str] = []

    @tp.observed_tool(name="search")
    def counted(query: str) -> None:
        ran.append(query)

    with capture(runaway=Runaway(same_tool_calls=3, on_detect="stop")) as captured:
        with pytest.raises(RunawayError, match="search was called 3 times with the same arguments"), tp.workflow("w"):
            while True:
                counted("sorrel")
        assert ["sorrel", "sorrel"] == ran
        assert [("tool.denied", "deny")] == decided(captured)
        assert ["success", "success", "blocked"] == [
            span.attributes["outcome"] for span in captured.spans if span.name == "search"
        ]
        assert "blocked" == captured.tags("workflow.run")["outcome"]


@pytest.mark.openai
def test_a_stopped_run_makes_no_further_call(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """An agent that takes the refusal for an answer gets no further: neither other tools nor the model are called."""
    with capture(runaway=Runaway(same_tool_calls=2, on_detect="stop")) as captured:
        with tp.workflow("triage"):
            search("a")
            with pytest.raises(RunawayError):
                search("a")
            with pytest.raises(RunawayError):
                search("b")
            with pytest.raises(RunawayError):
                client.chat.completions.create(**ASK)
        assert [] == server.requests
        assert [("tool.denied", "deny"), ("tool.denied", "deny"), ("policy.decided", "deny")] == decided(captured)
        assert 3 == violations(captured)
        with tp.workflow("triage"):
            client.chat.completions.create(**ASK)  # the next run is another one
        assert 1 == len(server.requests)


def test_other_arguments_other_tools_and_other_runs_are_other_calls() -> None:
    """Only what is the same counts together; by position or by name is the same."""

    @tp.observed_tool
    def fetch(query: str) -> str:
        return query

    with capture(runaway=Runaway(same_tool_calls=2, on_detect="stop")):
        for _ in range(3):
            with tp.workflow("triage"):
                for place in range(5):
                    search("a", page=place)
                fetch("a")
        with tp.workflow("triage"), pytest.raises(RunawayError):
            search("a", page=7)
            search(query="a", page=7)


async def test_tools_of_every_kind_are_stopped() -> None:
    """Coroutines and generators are refused where plain functions are."""

    @tp.observed_tool
    async def coroutine(x: int) -> int:
        return x

    @tp.observed_tool
    def generator(x: int) -> Iterator[int]:
        yield x

    @tp.observed_tool
    async def async_generator(x: int) -> AsyncIterator[int]:
        yield x

    with capture(runaway=Runaway(same_tool_calls=2, on_detect="stop")):
        with tp.workflow("triage"), pytest.raises(RunawayError):
            await coroutine(1)
            await coroutine(1)
        with tp.workflow("triage"), pytest.raises(RunawayError):
            list(generator(1))
            list(generator(1))
        with tp.workflow("triage"), pytest.raises(RunawayError):
            _ = [x async for x in async_generator(1)]
            _ = [x async for x in async_generator(1)]


def test_iterators_are_not_used_up() -> None:
    """An argument that can be read once is read by the tool alone."""

    @tp.observed_tool
    def total(numbers: Iterator[int]) -> int:
        return sum(numbers)

    with capture(runaway=Runaway(same_tool_calls=2, on_detect="stop")), tp.workflow("triage"):
        assert [3, 3] == [total(iter(given)) for given in ([1, 2], [1, 2])]


def test_threads_of_one_run_count_together() -> None:
    """No call is lost between threads."""
    with capture(runaway=Runaway(same_tool_calls=200, on_detect="alert")) as captured:
        with tp.workflow("triage"):

            def calls() -> None:
                for _ in range(25):
                    search("a")

            threads = [threading.Thread(target=copy_context().run, args=(calls,)) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert 1 == violations(captured)


def test_runs_that_were_watched_count_as_checked() -> None:
    """The rate of violations speaks of runs that something was asked about."""
    with capture(runaway=Runaway()) as captured:
        with tp.workflow("triage"):
            search("a")
        with tp.workflow("idle"):
            pass
        assert (1, 1) == (captured.golden_signals().checked_runs, captured.golden_signals().unchecked_runs)


# --- a context that only grows --------------------------------------------------------------------


def contexts(
    server: EmbeddedServer, client: openai.OpenAI, sizes: list[int], detector: Runaway, agent: str = "Planner"
) -> tuple[int, list[tuple[str, str]]]:
    """Make a run whose calls have so many input tokens; return how many were sent and what was decided."""
    server.script(*[Reply("x", usage=TokenUsage(size, 1)) for size in sizes])
    before = len(server.requests)

    @tp.observed_agent(name=agent)
    def run() -> None:
        for _ in sizes:
            client.chat.completions.create(**ASK)

    with capture(runaway=detector) as captured:
        try:
            run()
        except RunawayError:
            assert "blocked" == captured.tags(f"{agent}.execute")["outcome"]
        return len(server.requests) - before, decided(captured)


@pytest.mark.openai
@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([100, 150, 180, 200], True),
        ([100, 150, 180, 199], False),  # not twice as many
        ([100, 150, 150, 200, 300], False),  # the row begins anew at the second 150
        ([100, 150, 90, 150, 180, 200], True),
        ([100, 300], False),
        ([300, 200, 100, 50], False),
    ],
)
def test_growing_context(server: EmbeddedServer, client: openai.OpenAI, sizes: list[int], expected: bool) -> None:
    """Three calls in a row with more input each than the one before, the last with twice that of the first."""
    detector = Runaway(same_tool_calls=None, context_growth_calls=3)
    assert (len(sizes), [("policy.decided", "flag")] * expected) == contexts(server, client, sizes, detector)


@pytest.mark.openai
def test_growing_context_stops_the_run(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """The call after the one that was too much is refused."""
    detector = Runaway(context_growth_calls=2, context_growth_factor=1.5, on_detect="stop")
    assert (3, [("policy.decided", "deny")]) == contexts(server, client, [10, 20, 30, 40, 50], detector)


@pytest.mark.openai
def test_agents_grow_apart(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """Calls of another agent in between neither count nor end a row."""
    sizes = {"Planner": iter([100, 150, 200]), "Writer": iter([1_000, 900, 800])}

    def run(agent: str) -> None:
        server.script(Reply("x", usage=TokenUsage(next(sizes[agent]), 1)))
        tp.observed_agent(name=agent)(lambda: client.chat.completions.create(**ASK))()

    with capture(runaway=Runaway(context_growth_calls=2)) as captured:
        with tp.workflow("triage"):
            for agent in ("Planner", "Writer") * 3:
                run(agent)
        (line,) = (line for line in captured.logs if line["category"] == "decision")
        assert "context_growth: 2 calls in a row with more input each, from 100 to 200 tokens" == line["reason"]
        assert "Planner" == line["agent"]


# --- fast spending --------------------------------------------------------------------------------


@pytest.mark.openai
def test_fast_spending(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """A run may spend so much within a minute, exactly; what is longer ago does not count, nor what others spend."""
    usage = TokenUsage(1_000_000, 0)  # $0.15
    server.script(*[Reply("x", usage=usage) for _ in range(9)])
    detector = Runaway(usd_per_minute=Decimal("0.45"), on_detect="stop")
    with capture(runaway=detector, fake_clock=True) as captured:
        assert captured.clock is not None
        with tp.workflow("slow"):
            for _ in range(3):
                client.chat.completions.create(**ASK)
            captured.clock.advance(62)
            client.chat.completions.create(**ASK)
        with tp.workflow("fast"):
            for _ in range(4):
                client.chat.completions.create(**ASK)
            with pytest.raises(RunawayError, match=r"usd_per_minute: the run spent \$0\.6000 within a minute"):
                client.chat.completions.create(**ASK)
        assert 8 == len(server.requests)
        assert 1 == violations(captured)


@pytest.mark.openai
def test_a_detector_that_only_alerts_is_no_gate(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """It looks at what calls have used, and asks nothing before."""
    server.script(Reply("x", usage=TokenUsage(1_000_000, 0)))
    with capture(runaway=Runaway(usd_per_minute=0.1)) as captured:
        client.chat.completions.create(**ASK)
        assert () == captured.handle.parts.gates
        assert [("policy.decided", "flag")] == decided(captured)


def test_two_detectors_may_differ() -> None:
    """A flag comes early, and a stop later."""
    both = [Runaway(same_tool_calls=2), Runaway(same_tool_calls=3, on_detect="stop")]
    with capture(runaway=both) as captured, tp.workflow("triage"):
        search("a")
        search("a")
        with pytest.raises(RunawayError):
            search("a")
        assert [("policy.decided", "flag"), ("tool.denied", "deny")] == decided(captured)


# --- what is remembered ---------------------------------------------------------------------------


def test_what_is_remembered_goes_with_the_run() -> None:
    """Nothing is left of runs that are over."""
    detector = RunawayDetector(Runaway(), FakeClock().clock)
    with capture() as captured:
        for place in range(50):
            with tp.workflow("triage"):
                current = tp._operation.current()
                assert current is not None
                detector.saw_tool_call(current, "search", {"query": place})
            del current
        assert 50 == len(captured.spans)
    gc.collect()
    assert 0 == len(detector._runs)


def test_what_is_remembered_of_a_run_is_bounded() -> None:
    """A run of very many different calls keeps the latest 512 hashes; one that comes again and again stays."""
    detector = RunawayDetector(Runaway(same_tool_calls=20), FakeClock().clock)
    with capture() as captured, tp.workflow("triage"):
        current = tp._operation.current()
        assert current is not None
        for place in range(10_000):
            detector.saw_tool_call(current, "search", {"query": place})
            if place % 500 == 0:
                detector.saw_tool_call(current, "search", {"query": "again"})
        (run,) = detector._runs.values()
        assert 512 == len(run.calls)
        assert 1 == violations(captured)
        del run, current


# --- the same arguments ---------------------------------------------------------------------------


class Model(pydantic.BaseModel):
    """Arguments as a pydantic model."""

    query: str


@dataclass
class Data:
    """Arguments as a dataclass."""

    query: str


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


def same(one: Any, other: Any) -> bool:
    """Tell whether two values read the same: as Python has it, but with 1, 1.0 and True apart."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and repr(one) == repr(other)


@given(JSON, JSON)
def test_equal_arguments_and_no_others_have_the_same_hash(one: Any, other: Any) -> None:
    """Whatever JSON can say."""
    assert same(one, other) == (fingerprint("t", one) == fingerprint("t", other))
    assert fingerprint("t", one) != fingerprint("u", one)


@given(st.dictionaries(st.text(max_size=5), JSON, min_size=2, max_size=5))
def test_order_of_names_does_not_count(arguments: dict[str, Any]) -> None:
    """A model names its arguments in any order."""
    assert fingerprint("t", arguments) == fingerprint("t", dict(reversed(arguments.items())))


@pytest.mark.parametrize("kind", [Model, Data])
def test_objects_are_their_fields(kind: Any) -> None:
    """Two objects with equal fields are the same argument, with others they are not."""
    one, equal, other = (fingerprint("t", {"q": kind(query=query)}) for query in ("a", "a", "b"))
    assert one == equal
    assert one != other


def test_what_has_no_value_is_equal_to_itself_alone() -> None:
    """Two connections are two, and one is one; nor is one that is gone the one that took its place in memory."""

    class Connection:
        pass

    before = len(_fingerprint._known)
    one, other = Connection(), Connection()
    assert fingerprint("t", one) == fingerprint("t", one)
    assert fingerprint("t", one) != fingerprint("t", other)
    assert 20 == len({fingerprint("t", Connection()) for _ in range(20)})
    assert 20 == len({fingerprint("t", iter([1, 2])) for _ in range(20)})
    del one, other
    gc.collect()
    assert before == len(_fingerprint._known)


def test_knots_and_large_arguments_are_taken() -> None:
    """What holds itself, and what is very large, costs a bounded time; a difference early on or in size shows."""
    knot: list[Any] = []
    knot.append(knot)
    assert 16 == len(fingerprint("t", knot))
    large = "x" * 10_000_000
    assert fingerprint("t", large) == fingerprint("t", "x" * 10_000_000)
    assert fingerprint("t", large) != fingerprint("t", large + "x")
    assert fingerprint("t", large) != fingerprint("t", "y" + large[1:])
    assert fingerprint("t", list(range(50_000))) != fingerprint("t", list(range(50_001)))


# --- definitions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"same_tool_calls": 1}, "same_tool_calls=1"),
        ({"context_growth_calls": 0}, "context_growth_calls=0"),
        ({"context_growth_calls": 3, "context_growth_factor": 1}, "context_growth_factor=1"),
        ({"usd_per_minute": 0}, "usd_per_minute=0"),
        ({"usd_per_minute": "1"}, "usd_per_minute='1'"),
        ({"usd_per_minute": float("nan")}, "usd_per_minute=nan"),
        ({"on_detect": "halt"}, "on_detect='halt'.*alert, stop"),
        ({"same_tool_calls": None}, "one of same_tool_calls, context_growth_calls and usd_per_minute"),
    ],
)
def test_wrong_definitions_are_refused(fields: dict[str, Any], named: str) -> None:
    """The message names the field and says what would be right."""
    with pytest.raises(tp.ConfigurationError, match=f"Runaway: {named}"):
        Runaway(**fields)


def test_wrong_settings_are_refused() -> None:
    """What is no detector is refused when the application starts."""
    with pytest.raises(tp.ConfigurationError, match=r"runaway: expected a list of Runaway\(…\)"):
        tp.Instrumentation(tp.Settings.resolve({"runaway": 5}, {}))
