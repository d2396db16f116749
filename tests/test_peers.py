"""What users of other instrumentations suffer, and the tests that hold it off here.

=====  ==========================================  =========================================================
Line   What went wrong elsewhere                   What holds it here
=====  ==========================================  =========================================================
1      a fault inside broke the billed call        test_guard.py::test_a_hook_that_fails_is_not_noticed
                                                   test_guard.py::test_any_function_behind_the_gates_may_fail
                                                   test_guard.py::test_an_order_to_stop_gets_through
2      iterator arguments arrived empty            test_peers.py::test_iterator_arguments_arrive_whole
                                                   test_redaction.py::test_iterators_are_not_consumed
3      headers were changed, traceparent sent      test_peers.py::test_headers_are_the_callers_own
                                                   test_openai.py::test_request_is_not_touched
4      raw responses and streams lost parts        test_peers.py::test_raw_responses_are_whole
                                                   test_peers.py::test_helpers_take_what_is_omitted
                                                   test_openai.py::test_surfaces
                                                   test_openai_streams.py::test_caller_keeps_its_stream
5      asyncio.timeout had no effect               test_peers.py::test_a_step_makes_no_task
                                                   test_callables.py::test_timeout_still_works
                                                   test_openai.py::test_cancelled_call
                                                   test_openai_streams.py::test_async_cancelled
6      "created in a different Context"            test_peers.py::test_another_task_may_read_on
                                                   test_callables.py::test_generator_finished_in_another_task
                                                   test_workflow.py::test_exit_in_another_task
7      no pickling, no hints, 0.2 ms for 50 ms     test_callables.py::test_introspection_is_kept
                                                   test_callables.py::test_async_work_is_measured_whole
                                                   test_callables.py::test_generator_does_not_leak_into_consumer
                                                   test_classes.py::test_identity_pickling_and_copies
8      uninstrument did nothing, or too much       test_peers.py::test_instrumented_twice_is_seen_once
                                                   test_uninstrument.py::test_under_somebody_elses_patch
                                                   test_uninstrument.py::test_on_top_of_somebody_elses_patch
9      one renamed method switched off others      test_health.py::test_missing_target
10     failed streams were successes               test_openai_streams.py::test_error_event
                                                   test_openai_streams.py::test_connection_cut
                                                   test_openai_streams.py::test_async_connection_cut
                                                   test_openai_streams.py::test_abandoned
                                                   test_openai_streams.py::test_async_cancelled
                                                   test_exact.py::test_streams_that_end_at_random
11     asking for usage broke ``choices[0]``       test_peers.py::test_usage_is_not_asked_for_behind_the_callers_back
                                                   test_openai_streams.py::test_usage_is_asked_for_and_the_extra_chunk_hidden
                                                   test_openai_streams.py::test_usage_that_was_asked_for_is_not_hidden
12     estimates passed for measurements           test_peers.py::test_an_estimate_says_so
13     unknown models were free, sums rounded      test_openai.py::test_unknown_model_is_unknown
                                                   test_openai.py::test_details
                                                   test_pricing.py::test_a_made_up_model_has_no_price
                                                   test_pricing.py::test_cached_tokens_are_never_billed_twice
                                                   test_pricing.py::test_a_million_calls_of_one_token_add_up_to_the_cent
                                                   test_exact.py::test_ten_thousand_concurrent_calls
14     prices were fetched at import               test_peers.py::test_nothing_needs_a_network
=====  ==========================================  =========================================================
"""

import ast
import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from mock_openai import async_client, chunks, event_response
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry

import taskpilot_instrument as tp
from taskpilot_instrument.embedded import EmbeddedServer, Reply
from taskpilot_instrument.testing import Captured, capture

pytestmark = pytest.mark.openai

MESSAGES: Any = [{"role": "user", "content": "hello"}, {"role": "user", "content": "there"}]
ASK: dict[str, Any] = {"model": "gpt-4o-mini", "messages": MESSAGES}
USAGE = tp.TokenUsage(150, 50)


def test_every_line_has_its_tests() -> None:
    """The table names at least one test for each line, and the tests that it names are there."""
    table = __doc__ or ""
    lines = re.findall(r"^(\d+) ", table, re.MULTILINE)
    assert [str(number) for number in range(1, 15)] == lines
    for row in re.split(r"^(?=\d+ )", table, flags=re.MULTILINE)[1:]:
        named = re.findall(r"(\w+\.py)::(\w+)", row)
        assert named, row
        for file, test in named:
            tree = ast.parse(Path(__file__).with_name(file).read_text(encoding="utf-8"))
            tests = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
            assert test in tests, f"{file} has no {test}"


# --- 2: iterator arguments ----------------------------------------------------------------------


@pytest.mark.parametrize("content", [False, True])
async def test_iterator_arguments_arrive_whole(
    server: EmbeddedServer, client: openai.OpenAI, aclient: openai.AsyncOpenAI, content: bool
) -> None:
    """Messages and tool arguments that can be read only once are read by the one they are meant for."""

    def once() -> Iterator[Any]:
        yield from MESSAGES

    @tp.observed_tool
    def tool(items: Iterator[int], *, more: Iterator[int]) -> list[int]:
        return [*items, *more]

    with capture(capture_content=content) as captured:
        client.chat.completions.create(model="gpt-4o-mini", messages=once())
        await aclient.chat.completions.create(model="gpt-4o-mini", messages=once())
        list(client.chat.completions.create(model="gpt-4o-mini", messages=once(), stream=True))
        assert [1, 2, 3, 4] == tool(iter([1, 2]), more=iter([3, 4]))
        assert 4 == len(captured.spans)
    assert [MESSAGES] * 3 == [request.payload["messages"] for request in server.requests]


# --- 3: headers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_headers_are_the_callers_own(server: EmbeddedServer, stream: bool) -> None:
    """Inside a run, the same headers are sent as without us: nothing of ours, no trace context, no object changed."""
    extra = {"x-mine": "1"}
    settings: dict[str, Any] = {"api_key": "k", "base_url": server.url, "default_headers": {"x-default": "2"}}

    async def send() -> list[dict[str, str]]:
        server.clear()
        with openai.OpenAI(**settings) as client:
            list(client.chat.completions.create(**ASK, stream=stream, extra_headers=extra))
        async with openai.AsyncOpenAI(**settings) as aclient:
            result: Any = await aclient.chat.completions.create(**ASK, stream=stream, extra_headers=extra)
            if stream:
                assert [chunk async for chunk in result]
        return [request.headers for request in server.requests]

    bare = await send()
    with capture(), tp.workflow("w"):
        observed = await send()
    assert bare == observed
    assert {"x-mine": "1"} == extra
    assert all("traceparent" not in headers and "baggage" not in headers for headers in observed)


# --- 4: raw responses ---------------------------------------------------------------------------


def test_raw_responses_are_whole(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """with_raw_response and with_streaming_response have the types, headers, text and results that they had."""

    def look() -> list[Any]:
        server.clear()
        server.script(*[Reply("hi", usage=USAGE)] * 3)
        raw = client.chat.completions.with_raw_response.create(**ASK)
        streamed = client.chat.completions.with_raw_response.create(**ASK, stream=True)
        stream = streamed.parse()
        with client.chat.completions.with_streaming_response.create(**ASK) as response:
            facts = [type(response), response.status_code, response.headers["content-type"], len(response.read())]
        return [
            *facts,
            (type(raw), raw.status_code, raw.headers["content-type"], raw.http_response.is_closed, raw.retries_taken),
            (type(raw.parse()), raw.parse().choices[0].message.content, len(raw.text)),
            (
                type(streamed),
                streamed.headers["content-type"],
                isinstance(stream, openai.Stream),
                hasattr(stream, "close"),
            ),
            [chunk.choices[0].delta.content for chunk in stream if chunk.choices],
        ]

    bare = look()
    with capture() as captured:
        assert bare == look()
        assert 3 == len(captured.spans)


async def test_helpers_take_what_is_omitted(
    captured: Captured, server: EmbeddedServer, client: openai.OpenAI, aclient: openai.AsyncOpenAI
) -> None:
    """The stream helpers, which hand on the client's own marks for what was left out, work and are recorded."""
    server.script(Reply("one two", usage=USAGE), Reply("one two", usage=USAGE), Reply("one two", usage=USAGE))
    left_out: Any = getattr(openai, "omit", openai.NOT_GIVEN)
    with client.chat.completions.stream(**ASK, temperature=left_out, tools=left_out) as stream:
        assert "one two" == stream.get_final_completion().choices[0].message.content
    async with aclient.chat.completions.stream(**ASK, temperature=left_out, stop=left_out) as astream:
        assert "one two" == (await astream.get_final_completion()).choices[0].message.content
    plain: dict[str, Any] = {**ASK, "temperature": left_out, "max_tokens": openai.NOT_GIVEN}
    client.chat.completions.create(**plain)
    assert ["success"] * 3 == [dict(span.attributes or {})["outcome"] for span in captured.spans]


# --- 5 and 6: tasks -----------------------------------------------------------------------------


@tp.observed_tool
async def numbers(count: int) -> AsyncIterator[int]:
    """Count."""
    for number in range(count):
        await asyncio.sleep(0)
        yield number


async def test_a_step_makes_no_task(captured: Captured) -> None:
    """Whatever is awaited through us runs in the caller's own task, where its timeouts and cancellations arrive."""
    loop, made = asyncio.get_running_loop(), []

    def note(loop: asyncio.AbstractEventLoop, coroutine: Any, **more: Any) -> Any:
        made.append(coroutine)
        return asyncio.Task(coroutine, loop=loop, **more)

    async with async_client(lambda request: event_response(*chunks())) as client:
        loop.set_task_factory(note)
        try:
            async with asyncio.timeout(30), tp.workflow("w"):
                assert [0, 1, 2] == [number async for number in numbers(3)]
                assert 4 == len([chunk async for chunk in await client.chat.completions.create(**ASK, stream=True)])
        finally:
            loop.set_task_factory(None)
    assert [] == made
    assert ["numbers", "chat gpt-4o-mini", "workflow.run"] == captured.names()


async def test_another_task_may_read_on(
    captured: Captured, server: EmbeddedServer, aclient: openai.AsyncOpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    """A stream and a run that one task begins and another ends are quiet, and what is current stays in its task."""
    server.script(Reply("a b c d", usage=USAGE))
    run = tp.workflow("w")
    await asyncio.create_task(run.__aenter__())
    stream = await aclient.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True})
    await anext(stream)

    async def read_on() -> int:
        return len([chunk async for chunk in stream])

    assert 6 == await asyncio.create_task(read_on())
    await asyncio.create_task(run.__aexit__(None, None, None))
    assert ["chat gpt-4o-mini", "workflow.run"] == captured.names()
    assert ["success"] * 2 == [dict(span.attributes or {})["outcome"] for span in captured.spans]
    assert [] == caplog.records


# --- 8: twice -----------------------------------------------------------------------------------


def test_instrumented_twice_is_seen_once(client: openai.OpenAI) -> None:
    """instrument() twice makes one span, one count and one patch, and one uninstrument() takes all of it away."""
    owner = openai._base_client.SyncAPIClient
    original = vars(owner)["request"]
    settings: dict[str, Any] = {"tracer_provider": TracerProvider(shutdown_on_exit=False), "logs": "off"}
    first = tp.instrument(registry=CollectorRegistry(), **settings)
    second = tp.instrument(registry=CollectorRegistry(), **settings)
    try:
        assert first is second
        assert vars(owner)["request"].__wrapped__ is original
        with capture() as inside:
            client.chat.completions.create(**ASK)
            assert ["chat gpt-4o-mini"] == inside.names()
            assert (1, 1) == (inside.handle.health().calls_seen, inside.handle.health().calls_recorded)
        client.chat.completions.create(**ASK)
        assert 1 == first.health().calls_recorded
    finally:
        tp.uninstrument()
    assert vars(owner)["request"] is original
    client.chat.completions.create(**ASK)
    assert 1 == first.health().calls_recorded


# --- 11 and 12: usage and cost that nobody measured -----------------------------------------------


def test_usage_is_not_asked_for_behind_the_callers_back(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """Unless asked, a stream has no chunk more than it had; usage that did not come is unknown, not zero."""

    def read() -> tuple[Any, list[str | None]]:
        server.script(Reply("a b c d", usage=USAGE))
        texts = [chunk.choices[0].delta.content for chunk in client.chat.completions.create(**ASK, stream=True)]
        return server.requests[-1].body, texts

    bare = read()
    with capture() as captured:
        assert bare == read()
        tags = captured.tags("chat gpt-4o-mini")
        assert {"input_tokens", "output_tokens", "cost_usd"}.isdisjoint(tags)
        assert ("success", "unknown") == (tags["outcome"], tags["cost_source"])
        assert 0.0 == captured.golden_signals().cost_coverage
    assert "stream_options" not in bare[0]


def test_an_estimate_says_so(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """A cost by the catch-all price is marked, on the call and on every run above it; so is a sum that lacks a part."""
    catch_all = {"default": {"input": 1, "output": 1}}

    def sources(models: list[str], pricing: Any) -> list[Any]:
        server.script(*[Reply("hi", usage=USAGE, model=model) for model in models])
        with capture(pricing=pricing) as captured:
            with tp.workflow("w"):
                for model in models:
                    client.chat.completions.create(model=model, messages=MESSAGES)
            return [dict(span.attributes or {}).get("cost_source") for span in captured.spans]

    assert ["genai-prices", None] == sources(["gpt-4o-mini"], {})
    assert ["default", "default"] == sources(["house-model"], catch_all)
    assert ["genai-prices", "default", "default"] == sources(["gpt-4o-mini", "house-model"], catch_all)
    assert ["unknown", "unknown"] == sources(["house-model"], {})
    assert ["genai-prices", "unknown", "partial"] == sources(["gpt-4o-mini", "house-model"], {})


# --- 14: no network -----------------------------------------------------------------------------

WITHOUT_A_NETWORK = """
import sys

def forbid(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.bind", "socket.sendto"):
        raise SystemExit(f"{event}{arguments}")

sys.addaudithook(forbid)

import taskpilot_instrument as tp

@tp.observed_agent
def agent() -> str:
    return "done"

with tp.instrument(logs="off") as handle:
    assert tp.calculate_cost(150, 50, "gpt-4o-mini") == 0.0000525
    assert tp.calculate_cost(150, 50, "a-model-that-nobody-knows") is None
    assert agent() == "done"
    assert handle.metrics.get_counter("workflow.runs") == 1
sys.stdout.write("no network was asked for")
"""


def test_nothing_needs_a_network() -> None:
    """Import, instrument(), pricing and a run open no connection and look no host up."""
    clean = {"PATH": "", "PYTHONPATH": ":".join(path for path in sys.path if path)}
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT_A_NETWORK], capture_output=True, text=True, timeout=60, check=False, env=clean
    )
    assert (0, "no network was asked for") == (ran.returncode, ran.stdout), ran.stderr
