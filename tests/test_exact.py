"""Under load every number is exact: counts, tokens and money, on spans, in metrics, and in the golden signals."""

import asyncio
import gc
import json
import logging
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import openai
import pytest
from mock_openai import async_client, chunks, completion, event_response, httpx, json_response, sync_client
from prometheus_client.parser import text_string_to_metric_families

import taskpilot_instrument as tp
from taskpilot_instrument import _streams
from taskpilot_instrument.embedded import EmbeddedServer, Received, Reply
from taskpilot_instrument.testing import Captured, capture

pytestmark = pytest.mark.openai

#: USD per million tokens; no two sums of these can be confused, and none is exact in binary.
PRICES = {
    "model-a": {"input": Decimal("0.15"), "output": Decimal("0.6")},
    "model-b": {"input": Decimal("2.5"), "output": Decimal("10.01")},
    "model-c": {"input": Decimal("0.0375"), "output": Decimal("0.3")},
}
MODELS = (*PRICES, "model-without-price")
AGENTS = ("planner", "reviewer", "executor")
WORKFLOWS = ("triage", "digest")
WATCHDOG_S = 90


class Call(NamedTuple):
    """One call of the load, decided by its number alone."""

    number: int
    workflow: str
    agent: str
    model: str
    input_tokens: int
    output_tokens: int
    refused: bool

    @property
    def request_id(self) -> str:
        """Its run's id."""
        return f"req-load-{self.number}"

    @property
    def cost(self) -> Decimal | None:
        """Exact USD; None where the price is unknown or nothing is billed."""
        if self.refused or self.model not in PRICES:
            return None
        price = PRICES[self.model]
        return (self.input_tokens * price["input"] + self.output_tokens * price["output"]) / 1_000_000

    @property
    def cost_usd(self) -> float | None:
        """What it cost, as a tag says it."""
        return None if self.cost is None else float(self.cost)

    @property
    def ask(self) -> dict[str, Any]:
        """What to ask the client for."""
        return {"model": self.model, "messages": [{"role": "user", "content": str(self.number)}]}


def call(number: int) -> Call:
    """Return the call of a number; numbers share no divisor, so that all combinations come."""
    return Call(
        number,
        WORKFLOWS[number % 2],
        AGENTS[number % 3],
        MODELS[number // 6 % 4],
        1 + number * 7919 % 4001,
        number * 104_729 % 997,
        refused=number % 41 == 0,
    )


def number_in(body: Any) -> int:
    """Return the number of the call that a request belongs to."""
    return int(body["messages"][-1]["content"])


def answer(request: Any) -> Any:
    """Answer as the API would."""
    body = json.loads(request.content)
    made = call(number_in(body))
    if made.refused:
        return json_response(b'{"error": {"message": "no"}}', 400)
    usage = {"prompt_tokens": made.input_tokens, "completion_tokens": made.output_tokens}
    return json_response(completion(made.model, usage))


# --- what must come out -------------------------------------------------------------------------


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Read a Prometheus exposition."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(exposed: dict[tuple[str, frozenset[tuple[str, str]]], float], name: str, **labels: str) -> float:
    """Add up the series of a family that have these labels; of whole numbers this is exact."""
    return sum(
        value for (family, of), value in exposed.items() if family == name and labels.items() <= dict(of).items()
    )


def money(calls: list[Call]) -> Decimal:
    """Add up what calls cost."""
    return sum((made.cost for made in calls if made.cost is not None), Decimal(0))


def assert_exact(captured: Captured, calls: list[Call]) -> None:
    """Assert that every place has the same exact numbers."""
    assert_spans(captured, calls)
    assert_dotted_names(captured, calls)
    assert_exposition(captured, calls)
    assert_signals(captured, calls)


def assert_spans(captured: Captured, calls: list[Call]) -> None:
    """Each call is one span, beneath one agent, beneath one workflow; each carries the call's own numbers."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    spans = captured.spans
    for span in spans:
        tags = dict(span.attributes or {})
        found[str(tags["gen_ai.operation.name"]), str(tags["request_id"])] = tags
    assert 3 * len(calls) == len(spans) == len(found)
    for made in calls:
        for operation in ("invoke_workflow", "invoke_agent", "chat"):
            tags = found[operation, made.request_id]
            numbers: tuple[float | None, ...] = made.input_tokens, made.output_tokens, made.cost_usd
            if made.refused:  # nothing is known of the call itself; the runs above it cost nothing
                numbers = (None, None, None) if operation == "chat" else (0, 0, 0.0)
            assert numbers == (tags.get("input_tokens"), tags.get("output_tokens"), tags.get("cost_usd"))
            assert ("error" if made.refused else "success") == tags["outcome"]


def assert_dotted_names(captured: Captured, calls: list[Call]) -> None:
    """The metrics by dotted name are the sums."""
    get = captured.metrics.get_counter
    billed = [made for made in calls if not made.refused]
    assert float(money(calls)) == get("llm.cost.total")
    assert len(calls) == get("workflow.runs")
    assert len(billed) == get("workflow.success")
    for agent in AGENTS:
        of = [made for made in calls if made.agent == agent]
        assert float(money(of)) == get(f"llm.cost.agent.{agent}")
        assert len(of) == captured.metrics.get_histogram_stats(f"agent.{agent}.latency_ms")["count"]
    for model in MODELS:
        of = [made for made in billed if made.model == model]
        assert float(money(of)) == get(f"llm.cost.model.{model}")
        assert sum(made.input_tokens for made in of) == get(f"llm.tokens.input.{model}")
        assert sum(made.output_tokens for made in of) == get(f"llm.tokens.output.{model}")
    assert sum(made.input_tokens + made.output_tokens for made in billed) == get("llm.tokens.total.all")
    assert len(calls) == captured.metrics.get_histogram_stats("workflow.latency_ms")["count"]


def assert_exposition(captured: Captured, calls: list[Call]) -> None:
    """The Prometheus text has the same, under the canonical names and under the aliases."""
    exposed = samples(captured.prometheus_text)
    for workflow in WORKFLOWS:
        of = [made for made in calls if made.workflow == workflow]
        assert len(of) == total(exposed, "taskpilot_workflow_runs_total", workflow=workflow)
        assert len(of) == total(exposed, "taskpilot_workflow_duration_seconds_count", workflow=workflow)
    for model in MODELS:
        for agent in AGENTS:
            whose = {"agent": agent, "model": model}
            of = [made for made in calls if (made.agent, made.model) == (agent, model)]
            billed = [made for made in of if not made.refused]
            assert len(of) == total(exposed, "taskpilot_llm_calls_total", **whose)
            assert len(billed) == total(exposed, "taskpilot_llm_calls_total", outcome="success", **whose)
            assert float(money(of)) == total(exposed, "taskpilot_llm_cost_usd_total", **whose)
            for kind, field in (("input", "input_tokens"), ("output", "output_tokens")):
                tokens = sum(getattr(made, field) for made in billed)
                assert tokens == total(exposed, "taskpilot_llm_tokens_total", kind=kind, **whose)
    assert len(calls) == total(exposed, "workflow_runs")
    assert float(money(calls)) == total(exposed, "llm_cost_total")
    assert 0 == total(exposed, "taskpilot_instrument_errors_total")


def assert_signals(captured: Captured, calls: list[Call]) -> None:
    """The golden signals and the health report rest on the same numbers."""
    billed = [made for made in calls if not made.refused]
    signals = captured.golden_signals()
    assert (len(calls), len(billed)) == (signals.runs, signals.successes)
    assert money(calls) == signals.sample.spent_usd
    assert float(money(calls)) / len(billed) == signals.cost_per_successful_task_usd
    assert len(billed) / len(calls) * 100 == signals.success_rate
    assert sum(made.cost is not None for made in calls) / len(billed) == signals.cost_coverage
    health = captured.handle.health()
    assert (len(calls), len(calls)) == (health.calls_seen, health.calls_recorded)
    assert {} == health.errors_swallowed
    for agent in AGENTS:
        of = [made for made in calls if made.agent == agent]
        assert money(of) == captured.golden_signals(agent=agent).sample.spent_usd
        assert len(of) == captured.golden_signals(agent=agent).runs


# --- the load -----------------------------------------------------------------------------------


def test_ten_thousand_concurrent_calls() -> None:
    """10,000 calls of one event loop, all open at the same time: every number is exact everywhere."""
    calls = [call(number) for number in range(10_000)]
    all_are_open = asyncio.Event()
    still_to_come = len(calls)

    async def answer_when_all_are_open(request: Any) -> Any:
        nonlocal still_to_come
        still_to_come -= 1
        if not still_to_come:
            all_are_open.set()
        await all_are_open.wait()
        return answer(request)

    client = async_client(answer_when_all_are_open)

    async def ask(made: Call) -> None:
        await client.chat.completions.create(**made.ask)

    agents = {name: tp.observed_agent(name=name)(ask) for name in AGENTS}

    async def run(made: Call) -> None:
        try:
            async with tp.workflow(made.workflow, request_id=made.request_id):
                await agents[made.agent](made)
        except openai.BadRequestError:
            assert made.refused

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for made in calls:
                group.create_task(run(made))

    with capture(pricing=PRICES) as captured:
        asyncio.run(main())
        assert_exact(captured, calls)


def test_thirty_two_threads() -> None:
    """32 threads that share one client, over a socket: every number is exact everywhere."""
    threads, each = 32, 25
    calls = [call(number) for number in range(threads * each)]

    def respond(request: Received) -> Reply:
        made = call(number_in(request.body))
        if made.refused:
            return Reply.error(400)
        return Reply("hi", usage=tp.TokenUsage(made.input_tokens, made.output_tokens), model=made.model)

    def ask(made: Call) -> None:
        client.chat.completions.create(**made.ask)

    agents = {name: tp.observed_agent(name=name)(ask) for name in AGENTS}
    together = threading.Barrier(threads)

    def work(thread: int) -> None:
        together.wait()
        for made in calls[thread * each : (thread + 1) * each]:
            try:
                with tp.workflow(made.workflow, request_id=made.request_id):
                    agents[made.agent](made)
            except openai.BadRequestError:
                assert made.refused

    with (
        EmbeddedServer(respond) as server,
        openai.OpenAI(api_key="sk-test", base_url=server.url, max_retries=0) as client,
        capture(pricing=PRICES) as captured,
    ):
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(threads)))
        assert_exact(captured, calls)


# --- streams that end at random -----------------------------------------------------------------


class Boom(Exception):
    """Raised by a consumer on purpose."""


class Hanging(httpx.AsyncByteStream):  # type: ignore[misc] # its module is found at run time
    """A body whose second part never comes."""

    def __init__(self, first: bytes) -> None:
        self._first = first

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._first
        await asyncio.Event().wait()


def answer_stream(request: Any) -> Any:
    """Answer with a stream that goes the way its request names."""
    body = json.loads(request.content)
    way, number = body["messages"][-1]["content"].split()
    made = call(int(number))
    events = chunks("model-a", {"prompt_tokens": made.input_tokens, "completion_tokens": made.output_tokens})
    if way == "error_event":
        return event_response(events[0], b'data: {"error": {"message": "overloaded"}}\n\n')
    if way == "cut":
        return event_response(events[0], httpx.ReadError("connection lost"))
    if way == "cancelled":
        return httpx.Response(200, stream=Hanging(events[0]), headers={"content-type": "text/event-stream"})
    return event_response(*events)


def ask_stream(way: str, number: int) -> dict[str, Any]:
    """Return what to ask the client for."""
    content = f"{way} {number}"
    return {"model": "model-a", "messages": [{"role": "user", "content": content}], "stream": True}


def read_to_the_end(client: openai.OpenAI, ask: dict[str, Any]) -> None:
    """Read it all."""
    assert 4 == len(list(client.chat.completions.create(**ask)))


def read_lines(client: openai.OpenAI, ask: dict[str, Any]) -> None:
    """Read it all as text."""
    with client.chat.completions.with_streaming_response.create(**ask) as response:
        assert "data: [DONE]" in list(response.iter_lines())


def break_and_close(client: openai.OpenAI, ask: dict[str, Any]) -> None:
    """Read a part and close."""
    stream = client.chat.completions.create(**ask)
    for _ in stream:
        break
    stream.close()


def leave_by_exception(client: openai.OpenAI, ask: dict[str, Any]) -> None:
    """Raise in the block of the stream."""
    with pytest.raises(Boom), client.chat.completions.create(**ask) as stream:
        next(stream)
        raise Boom


def abandon(client: openai.OpenAI, ask: dict[str, Any]) -> None:
    """Read a part and forget the stream."""
    next(client.chat.completions.create(**ask))


def meet_an_error(client: openai.OpenAI, ask: dict[str, Any]) -> None:
    """Read until it fails."""
    with pytest.raises((openai.APIError, httpx.ReadError)):
        list(client.chat.completions.create(**ask))


async def aread_to_the_end(client: openai.AsyncOpenAI, ask: dict[str, Any]) -> None:
    """Read it all."""
    assert 4 == len([chunk async for chunk in await client.chat.completions.create(**ask)])


async def aread_lines(client: openai.AsyncOpenAI, ask: dict[str, Any]) -> None:
    """Read it all as text."""
    async with client.chat.completions.with_streaming_response.create(**ask) as response:
        assert "data: [DONE]" in [line async for line in response.iter_lines()]


async def abreak_and_close(client: openai.AsyncOpenAI, ask: dict[str, Any]) -> None:
    """Read a part and close."""
    stream = await client.chat.completions.create(**ask)
    async for _ in stream:
        break
    await stream.close()


async def aleave_by_exception(client: openai.AsyncOpenAI, ask: dict[str, Any]) -> None:
    """Raise in the block of the stream."""
    with pytest.raises(Boom):
        async with await client.chat.completions.create(**ask) as stream:
            await anext(stream)
            raise Boom


async def aabandon(client: openai.AsyncOpenAI, ask: dict[str, Any]) -> None:
    """Read a part and forget the stream."""
    await anext(await client.chat.completions.create(**ask))


async def ameet_an_error(client: openai.AsyncOpenAI, ask: dict[str, Any]) -> None:
    """Read until it fails."""
    with pytest.raises((openai.APIError, httpx.ReadError)):
        async for _ in await client.chat.completions.create(**ask):
            pass


async def be_cancelled(client: openai.AsyncOpenAI, ask: dict[str, Any]) -> None:
    """Be cancelled while it waits for the second part."""
    got_first = asyncio.Event()

    async def read() -> None:
        async for _ in await client.chat.completions.create(**ask):
            got_first.set()

    task = asyncio.create_task(read())
    await got_first.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


#: Way to end → the outcome that it must have, how a thread goes that way, how a task does.
WAYS: dict[str, tuple[str, Callable[..., None] | None, Callable[..., Any]]] = {
    "end": ("success", read_to_the_end, aread_to_the_end),
    "lines": ("success", read_lines, aread_lines),
    "close": ("cancelled", break_and_close, abreak_and_close),
    "exception": ("cancelled", leave_by_exception, aleave_by_exception),
    "abandoned": ("abandoned", abandon, aabandon),
    "error_event": ("error", meet_an_error, ameet_an_error),
    "cut": ("error", meet_an_error, ameet_an_error),
    "cancelled": ("cancelled", None, be_cancelled),
}


@pytest.mark.parametrize("seed", [1, 2])
def test_streams_that_end_at_random(seed: int) -> None:
    """1,000 streams in threads and tasks end this way and that: each is one span with its outcome, none stays open."""
    rng = random.Random(seed)
    threads, in_threads, in_tasks = 8, 500, 500
    ways = [rng.choice([way for way in WAYS if number >= in_threads or WAYS[way][1]]) for number in range(1000)]
    collect = {number for number in range(1000) if rng.random() < 0.03}
    client, aclient = sync_client(answer_stream), async_client(answer_stream)

    def in_thread(number: int) -> None:
        way = WAYS[ways[number]][1]
        assert way is not None
        with tp.workflow("streams", request_id=call(number).request_id):
            way(client, ask_stream(ways[number], number))
        if number in collect:
            gc.collect()

    async def in_task(number: int) -> None:
        async with tp.workflow("streams", request_id=call(number).request_id):
            await asyncio.sleep(0)
            await WAYS[ways[number]][2](aclient, ask_stream(ways[number], number))
        if number in collect:
            gc.collect()

    async def in_loop() -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(in_threads, in_threads + in_tasks):
                group.create_task(in_task(number))

    with capture(pricing=PRICES) as captured:
        with ThreadPoolExecutor(threads + 1) as pool:
            loop = pool.submit(asyncio.run, in_loop())
            list(pool.map(in_thread, range(in_threads)))
            loop.result()
        gc.collect()
        llm = [dict(span.attributes or {}) for span in captured.spans if span.name == "chat model-a"]
        exposed, health = samples(captured.prometheus_text), captured.handle.health()
    assert 1000 == len(llm) == health.calls_seen == health.calls_recorded
    assert set() == _streams._open_watches
    outcomes = {tags["request_id"]: str(tags["outcome"]) for tags in llm}
    assert {call(number).request_id: WAYS[way][0] for number, way in enumerate(ways)} == outcomes
    for outcome, count in Counter(outcomes.values()).items():
        assert count == total(exposed, "taskpilot_llm_calls_total", outcome=outcome)
    read = [call(number) for number, way in enumerate(ways) if WAYS[way][0] == "success"]
    assert sum(made.input_tokens for made in read) == total(exposed, "taskpilot_llm_tokens_total", kind="input")
    assert sum(made.output_tokens for made in read) == total(exposed, "taskpilot_llm_tokens_total", kind="output")


# --- the garbage collector at the worst moment ---------------------------------------------------


def test_many_streams_collected_while_a_lock_is_held(captured: Captured) -> None:
    """Thousands of runs that the collector ends inside of logging are all finished by the next operation."""

    @tp.observed_tool
    def forever() -> Iterator[int]:
        while True:
            yield 1

    left = []
    for _ in range(3000):
        generator = forever()
        next(generator)
        left.append(generator)
    left.append(left)  # type: ignore[arg-type] # a knot: only the collector frees it
    del generator, left

    collect = gc.collect  # under another name: as if the collector had run by itself

    def collect_now(record: logging.LogRecord) -> bool:
        collect()
        return True

    log = logging.getLogger("application")
    log.addFilter(collect_now)
    try:
        log.error("while this is filtered, logging is on the stack")
    finally:
        log.removeFilter(collect_now)
    assert () == captured._exporter.get_finished_spans()  # asked by the front door, they would be finished first
    with tp.workflow("next"):
        pass
    assert Counter({"forever": 3000, "workflow.run": 1}) == Counter(captured.names())


def test_a_collector_that_runs_at_every_step() -> None:
    """Streams and generators that are collected in the middle of any step, in several threads, block nothing.

    In a process of its own, whose watchdog ends it where it hangs.
    """
    script = Path(__file__).with_name("gc_hazard.py")
    ran = subprocess.run(
        [sys.executable, str(script), str(WATCHDOG_S)],
        capture_output=True,
        text=True,
        timeout=WATCHDOG_S + 30,
        check=False,
    )
    assert (0, "all ended\n") == (ran.returncode, ran.stdout), ran.stderr[-4000:]
