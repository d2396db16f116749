"""Every way a stream can end: one span, the right outcome, the usage if it had come."""

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import openai
import pytest
from mock_openai import async_client, chunks, event_response, sync_client

import taskpilot_instrument as tp
from taskpilot_instrument.embedded import EmbeddedServer, Reply
from taskpilot_instrument.testing import Captured, capture

pytestmark = pytest.mark.openai

MESSAGES: Any = [{"role": "user", "content": "hello there"}]
USAGE = tp.TokenUsage(150, 50, cached_tokens=100)
REPLY = Reply("one two three four", usage=USAGE, part_delay=0.001)
ASK: dict[str, Any] = {
    "model": "gpt-4o-mini",
    "messages": MESSAGES,
    "stream": True,
    "stream_options": {"include_usage": True},
}


class Boom(Exception):
    """Raised on purpose."""


def ended(captured: Captured, name: str = "chat gpt-4o-mini") -> tuple[str, Any, Any]:
    """Return outcome, input tokens and output tokens of the one span."""
    gc.collect()
    tags = captured.tags(name)
    return tags["outcome"], tags.get("input_tokens"), tags.get("output_tokens")


# --- sync ---------------------------------------------------------------------------------------


def read_all(client: openai.OpenAI) -> None:
    """Read a stream: read all."""
    list(client.chat.completions.create(**ASK))


def read_by_next(client: openai.OpenAI) -> None:
    """Read a stream: read by next."""
    stream = client.chat.completions.create(**ASK)
    while next(stream, None) is not None:
        pass


def read_responses(client: openai.OpenAI) -> None:
    """Read a stream: read responses."""
    list(client.responses.create(model="gpt-4o-mini", input="hi", stream=True))


def chat_helper(client: openai.OpenAI) -> None:
    """Read a stream: chat helper."""
    with client.chat.completions.stream(
        model="gpt-4o-mini", messages=MESSAGES, stream_options={"include_usage": True}
    ) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.content == "one two three four"


def responses_helper(client: openai.OpenAI) -> None:
    """Read a stream: responses helper."""
    with client.responses.stream(model="gpt-4o-mini", input="hi") as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == "one two three four"


def raw_parse(client: openai.OpenAI) -> None:
    """Read a stream: raw parse."""
    raw = client.chat.completions.with_raw_response.create(**ASK)
    assert raw.headers["x-request-id"]
    list(raw.parse())


def streaming_response_parse(client: openai.OpenAI) -> None:
    """Read a stream: streaming response parse."""
    with client.chat.completions.with_streaming_response.create(**ASK) as response:
        assert len(list(response.parse())) > 3


def streaming_response_lines(client: openai.OpenAI) -> None:
    """Read a stream: streaming response lines."""
    with client.chat.completions.with_streaming_response.create(**ASK) as response:
        assert any("three" in line for line in list(response.iter_lines()))


def streaming_response_bytes(client: openai.OpenAI) -> None:
    """Read a stream: streaming response bytes."""
    with client.chat.completions.with_streaming_response.create(**ASK) as response:
        assert b"[DONE]" in b"".join(response.iter_bytes(chunk_size=7))


def streaming_response_whole(client: openai.OpenAI) -> None:
    """Read a stream: streaming response whole."""
    with client.chat.completions.with_streaming_response.create(model="gpt-4o-mini", messages=MESSAGES) as response:
        assert response.parse().usage.total_tokens == 200


def closed_after_the_end(client: openai.OpenAI) -> None:
    """Read a stream: closed after the end."""
    with client.chat.completions.create(**ASK) as stream:
        for _ in stream:
            pass


@pytest.mark.parametrize(
    "way",
    [
        read_all, read_by_next, read_responses, chat_helper, responses_helper, raw_parse, streaming_response_parse,
        streaming_response_lines, streaming_response_bytes, streaming_response_whole, closed_after_the_end,
    ],
)  # fmt: skip
def test_read_to_the_end(
    captured: Captured, server: EmbeddedServer, client: openai.OpenAI, way: Callable[[openai.OpenAI], None]
) -> None:
    """A stream read to its end, whichever way, is a success with the provider's usage."""
    server.script(REPLY)
    way(client)
    assert ended(captured) == ("success", 150, 50)
    assert captured.tags("chat gpt-4o-mini")["cached_tokens"] == 100


def test_time_to_first_chunk(captured: Captured, server: EmbeddedServer, client: openai.OpenAI) -> None:
    """The time to the first chunk is measured where a call streams."""
    server.script(Reply("a b c", delay=0.05, part_delay=0.02))
    list(client.chat.completions.create(**ASK))
    tags = captured.tags("chat gpt-4o-mini")
    assert 50 <= tags["time_to_first_chunk_ms"] < tags["latency_ms"]


def test_break_and_close(captured: Captured, server: EmbeddedServer, client: openai.OpenAI) -> None:
    """Breaking out of the loop and closing the stream is a cancelled call, without usage."""
    server.script(REPLY)
    stream = client.chat.completions.create(**ASK)
    for _ in stream:
        break
    assert captured.spans == []
    stream.close()
    assert ended(captured) == ("cancelled", None, None)


def test_break_and_read_on(captured: Captured, server: EmbeddedServer, client: openai.OpenAI) -> None:
    """A stream that is left and taken up again is one call, read to its end."""
    server.script(REPLY)
    stream = client.chat.completions.create(**ASK)
    for _ in stream:
        break
    rest = list(stream)
    assert len(rest) > 2
    assert ended(captured) == ("success", 150, 50)


def test_closed_after_the_finish_reason(captured: Captured, server: EmbeddedServer, client: openai.OpenAI) -> None:
    """A consumer that stops at the finish reason has the whole answer: a success, of unknown usage."""
    server.script(REPLY)
    with client.chat.completions.create(**ASK) as stream:
        for chunk in stream:
            if chunk.choices[0].finish_reason:
                break
    assert ended(captured) == ("success", None, None)


def test_with_left_by_exception(captured: Captured, server: EmbeddedServer, client: openai.OpenAI) -> None:
    """An exception of the consumer's ends the call as cancelled and is the same object outside."""
    server.script(REPLY)
    error = Boom()
    with pytest.raises(Boom) as seen, client.chat.completions.create(**ASK) as stream:
        next(stream)
        raise error
    assert seen.value is error
    assert ended(captured) == ("cancelled", None, None)


def test_abandoned(captured: Captured, server: EmbeddedServer, client: openai.OpenAI) -> None:
    """A stream that is dropped ends when it is collected, at the time of its last chunk."""
    server.script(REPLY)
    stream = client.chat.completions.create(**ASK)
    next(stream)
    before = captured.handle._clock.epoch_ns()
    import time

    time.sleep(0.05)
    del stream
    assert ended(captured) == ("abandoned", None, None)
    assert captured.span("chat gpt-4o-mini").end_time <= before + 5_000_000


def test_helper_left_early(captured: Captured, server: EmbeddedServer, client: openai.OpenAI) -> None:
    """A stream helper whose block is left early closes the call."""
    server.script(REPLY)
    with client.chat.completions.stream(model="gpt-4o-mini", messages=MESSAGES) as stream:
        next(iter(stream))
    assert ended(captured) == ("cancelled", None, None)


def test_lines_left_early(captured: Captured, server: EmbeddedServer, client: openai.OpenAI) -> None:
    """with_streaming_response left in the middle of its lines is cancelled."""
    server.script(REPLY)
    with client.chat.completions.with_streaming_response.create(**ASK) as response:
        next(iter(response.iter_lines()))
    assert ended(captured) == ("cancelled", None, None)


def test_error_event(captured: Captured, server: EmbeddedServer, client: openai.OpenAI) -> None:
    """An error event within the stream raises what it always raised, and is an error."""
    server.script(Reply("a b c d", error_after=2, error_message="overloaded"))
    with pytest.raises(openai.APIError, match="overloaded"):
        list(client.chat.completions.create(**ASK))
    assert ended(captured) == ("error", None, None)
    assert captured.tags("chat gpt-4o-mini")["error.type"] == "APIError"


@pytest.mark.parametrize("way", [read_all, streaming_response_lines])
def test_connection_cut(
    captured: Captured, server: EmbeddedServer, client: openai.OpenAI, way: Callable[[openai.OpenAI], None]
) -> None:
    """A connection that breaks in mid-stream is an error."""
    server.script(Reply("a b c d", cut_after=2))
    with pytest.raises(Exception, match=r"."):
        way(client)
    assert ended(captured) == ("error", None, None)
    assert captured.tags("chat gpt-4o-mini")["error.type"]


def test_failed_response_event(captured: Captured, server: EmbeddedServer, client: openai.OpenAI) -> None:
    """response.failed is an error even where nothing is raised."""
    server.script(Reply("x", failure="it broke"))
    list(client.responses.create(model="gpt-4o-mini", input="hi", stream=True))
    assert ended(captured)[0] == "error"


def test_caller_keeps_its_stream(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """Type, isinstance, attributes and chunks are the same with and without us."""

    def look() -> Any:
        server.script(REPLY)
        with client.chat.completions.create(**ASK) as stream:
            facts = (
                isinstance(stream, openai.Stream),
                type(stream).__name__,
                type(stream).__module__,
                stream.response.status_code,
                stream.response.headers["content-type"],
                hasattr(stream, "close"),
            )
            return facts, [chunk.model_dump(exclude={"id", "created"}) for chunk in stream]

    bare = look()
    with capture():
        observed = look()
    assert observed == bare


def test_no_hook_stays_on_the_response(captured: Captured, server: EmbeddedServer, client: openai.OpenAI) -> None:
    """Once the call has ended, its HTTP response is as the client made it."""
    server.script(REPLY)
    stream = client.chat.completions.create(**ASK)
    list(stream)
    assert [name for name in vars(stream.response) if name in {"close", "iter_bytes"} or "taskpilot" in name] == []


# --- async --------------------------------------------------------------------------------------


async def aread_all(client: openai.AsyncOpenAI) -> None:
    """Read a stream: aread all."""
    async for _ in await client.chat.completions.create(**ASK):
        pass


async def aread_by_anext(client: openai.AsyncOpenAI) -> None:
    """Read a stream: aread by anext."""
    stream = await client.chat.completions.create(**ASK)
    while await anext(stream, None) is not None:
        pass


async def aread_responses(client: openai.AsyncOpenAI) -> None:
    """Read a stream: aread responses."""
    async for _ in await client.responses.create(model="gpt-4o-mini", input="hi", stream=True):
        pass


async def achat_helper(client: openai.AsyncOpenAI) -> None:
    """Read a stream: achat helper."""
    async with client.chat.completions.stream(
        model="gpt-4o-mini", messages=MESSAGES, stream_options={"include_usage": True}
    ) as stream:
        async for _ in stream:
            pass


async def araw_parse(client: openai.AsyncOpenAI) -> None:
    """Read a stream: araw parse."""
    raw = await client.chat.completions.with_raw_response.create(**ASK)
    async for _ in raw.parse():
        pass


async def astreaming_response_lines(client: openai.AsyncOpenAI) -> None:
    """Read a stream: astreaming response lines."""
    async with client.chat.completions.with_streaming_response.create(**ASK) as response:
        async for _ in response.iter_lines():
            pass


async def astreaming_response_whole(client: openai.AsyncOpenAI) -> None:
    """Read a stream: astreaming response whole."""
    async with client.chat.completions.with_streaming_response.create(
        model="gpt-4o-mini", messages=MESSAGES
    ) as response:
        assert (await response.parse()).usage.total_tokens == 200


@pytest.mark.parametrize(
    "way",
    [
        aread_all, aread_by_anext, aread_responses, achat_helper, araw_parse,
        astreaming_response_lines, astreaming_response_whole,
    ],
)  # fmt: skip
async def test_async_read_to_the_end(
    captured: Captured, server: EmbeddedServer, aclient: openai.AsyncOpenAI, way: Callable[[Any], Any]
) -> None:
    """An async stream read to its end, whichever way, is a success with the provider's usage."""
    server.script(REPLY)
    await way(aclient)
    assert ended(captured) == ("success", 150, 50)


async def test_async_close(captured: Captured, server: EmbeddedServer, aclient: openai.AsyncOpenAI) -> None:
    """Leaving an async stream's block early is a cancelled call."""
    server.script(REPLY)
    async with await aclient.chat.completions.create(**ASK) as stream:
        async for _ in stream:
            break
    assert ended(captured) == ("cancelled", None, None)


async def test_async_cancelled(captured: Captured, server: EmbeddedServer, aclient: openai.AsyncOpenAI) -> None:
    """A task cancelled in mid-stream is a cancelled call, and the timeout takes effect at once."""
    server.script(Reply("a b c d", part_delay=5))
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await aread_all(aclient)
    assert loop.time() - began < 2
    assert ended(captured) == ("cancelled", None, None)


async def test_async_error_event(captured: Captured, server: EmbeddedServer, aclient: openai.AsyncOpenAI) -> None:
    """An error event within an async stream is an error."""
    server.script(Reply("a b c d", error_after=2))
    with pytest.raises(openai.APIError):
        await aread_all(aclient)
    assert ended(captured)[0] == "error"


async def test_async_connection_cut(captured: Captured, server: EmbeddedServer, aclient: openai.AsyncOpenAI) -> None:
    """A connection that breaks in an async stream is an error."""
    server.script(Reply("a b c d", cut_after=2))
    with pytest.raises(Exception, match=r"."):
        await aread_all(aclient)
    assert ended(captured)[0] == "error"


async def test_async_abandoned(captured: Captured, server: EmbeddedServer, aclient: openai.AsyncOpenAI) -> None:
    """An async stream that is dropped ends when it is collected."""
    server.script(REPLY)
    stream = await aclient.chat.completions.create(**ASK)
    await anext(stream)
    del stream
    gc.collect()
    await asyncio.sleep(0.05)
    assert ended(captured)[0] == "abandoned"


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_event_loop_closed(captured: Captured, server: EmbeddedServer) -> None:
    """A stream whose event loop is closed around it still ends, once."""
    server.script(REPLY)

    async def start() -> Any:
        client = openai.AsyncOpenAI(api_key="k", base_url=server.url)
        stream = await client.chat.completions.create(**ASK)
        await anext(stream)
        return stream

    loop = asyncio.new_event_loop()
    stream = loop.run_until_complete(start())
    loop.close()
    del stream
    assert ended(captured)[0] in {"abandoned", "cancelled"}


# --- streams that an agent gives to its caller ----------------------------------------------------


def test_agent_that_returns_its_stream(captured: Captured, server: EmbeddedServer, client: openai.OpenAI) -> None:
    """An agent that returns the SDK's stream runs until that ends, and gets its tokens."""

    @tp.observed_agent(name="a")
    def run() -> Any:
        return client.chat.completions.create(**ASK)

    server.script(REPLY)
    stream = run()
    assert isinstance(stream, openai.Stream)
    assert captured.spans == []
    list(stream)
    assert captured.tree() == ["workflow.run", "  a.execute", "    chat gpt-4o-mini"]
    for name in ("a.execute", "workflow.run"):
        assert ended(captured, name) == ("success", 150, 50)


async def test_async_agent_that_returns_its_stream(
    captured: Captured, server: EmbeddedServer, aclient: openai.AsyncOpenAI
) -> None:
    """The same for an async agent, closed early."""

    @tp.observed_agent(name="a")
    async def run() -> Any:
        return await aclient.chat.completions.create(**ASK)

    server.script(REPLY)
    async with await run() as stream:
        assert isinstance(stream, openai.AsyncStream)
        async for _ in stream:
            break
    assert ended(captured, "a.execute") == ("cancelled", None, None)
    assert ended(captured, "workflow.run") == ("cancelled", None, None)


def test_unknown_is_unknown_around_an_open_stream(
    captured: Captured, server: EmbeddedServer, client: openai.OpenAI
) -> None:
    """A run that ends before a stream beneath it has told its usage does not say that it cost nothing."""
    server.script(REPLY, Reply("x", usage=tp.TokenUsage(150, 50)))
    with tp.workflow("w"):
        stream = client.chat.completions.create(**ASK)
        client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
    tags = captured.tags("workflow.run")
    assert (tags["cost_usd"], tags["cost_source"]) == (0.0000525, "partial")
    with tp.workflow("w") as run:
        run.fail("left early")
        server.script(REPLY)
        other = client.chat.completions.create(**ASK)
    tags = dict(captured.spans[-1].attributes)
    assert ("cost_usd" in tags, "input_tokens" in tags, tags["cost_source"]) == (False, False, "unknown")
    stream.close()
    other.close()
    assert captured.golden_signals().cost_coverage == pytest.approx(1 / 3)


# --- usage that was not asked for -----------------------------------------------------------------


def parts(chunks: Any) -> list[Any]:
    """Return what differs between chunks."""
    return [chunk.model_dump(exclude={"id", "created"}) for chunk in chunks]


def test_usage_is_asked_for_and_the_extra_chunk_hidden(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """include_usage brings the usage, and the caller's chunks are the same as without."""
    plain = {name: value for name, value in ASK.items() if name != "stream_options"}
    server.script(REPLY, REPLY, REPLY)
    bare = parts(client.chat.completions.create(**plain))
    with capture(include_usage=True) as captured:
        observed = parts(client.chat.completions.create(**plain))
        stream = client.chat.completions.create(**plain)
        stepped = parts(iter(lambda: next(stream, None), None))
    for shown in (bare, observed, stepped):
        for chunk in shown:
            chunk.pop("usage", None)
    assert bare == observed == stepped
    assert [span.attributes["input_tokens"] for span in captured.spans] == [150, 150]
    assert server.requests[1].payload["stream_options"] == {"include_usage": True}


async def test_usage_is_asked_for_async(server: EmbeddedServer, aclient: openai.AsyncOpenAI) -> None:
    """The same for async streams, by iteration and by steps."""
    plain = {name: value for name, value in ASK.items() if name != "stream_options"}
    server.script(REPLY, REPLY)
    with capture(include_usage=True) as captured:
        assert all([chunk.choices async for chunk in await aclient.chat.completions.create(**plain)])
        stream = await aclient.chat.completions.create(**plain)
        while (chunk := await anext(stream, None)) is not None:
            assert chunk.choices
    assert [span.attributes["input_tokens"] for span in captured.spans] == [150, 150]


async def test_any_number_of_usage_chunks_is_hidden() -> None:
    """However often a host repeats the usage by itself, who steps through the stream meets its end and no error."""
    usage = {"prompt_tokens": 150, "completion_tokens": 50, "total_tokens": 200}
    *_, last, done = chunks(usage=usage)
    plain = {name: value for name, value in ASK.items() if name != "stream_options"}
    client, aclient = (make(lambda _: event_response(*[last] * 3_000, done)) for make in (sync_client, async_client))
    with capture(include_usage=True) as captured:
        assert next(client.chat.completions.create(**plain), None) is None
        assert await anext(await aclient.chat.completions.create(**plain), None) is None
    assert [span.attributes["input_tokens"] for span in captured.spans] == [150, 150]


def test_usage_that_was_asked_for_is_not_hidden(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """Who asked for the usage gets its chunk; who said no is not overruled; excepted hosts are not asked."""
    server.script(REPLY, REPLY, REPLY)
    with capture(include_usage=True):
        assert list(client.chat.completions.create(**ASK))[-1].usage.total_tokens == 200
        list(client.chat.completions.create(**{**ASK, "stream_options": {"include_usage": False}}))
    with capture(include_usage=True, include_usage_except=["127.0.0.1"]):
        list(client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, stream=True))
    asked = [request.payload.get("stream_options") for request in server.requests]
    assert asked == [{"include_usage": True}, {"include_usage": False}, None]


REFUSALS = {
    "message": Reply.error(400, "Unrecognized request argument supplied: stream_options"),
    "param": Reply.error(400, "Unrecognized request argument supplied", param="stream_options"),
    "validation": Reply.raw(b'{"detail":[{"loc":["body","stream_options"],"msg":"extra"}]}', status=422),
    "text": Reply.raw(b"stream_options is not supported", status=400, content_type="text/plain"),
    "list": Reply.raw(b'[{"error":{"message":"Invalid JSON: stream_options"}}]', status=400),
}


@pytest.mark.parametrize("shape", REFUSALS)
def test_a_host_that_refuses_is_asked_without(
    server: EmbeddedServer, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch, shape: str
) -> None:
    """A host that refuses stream_options gets the caller's own request at once, and is not asked again."""
    monkeypatch.setattr("taskpilot_instrument.patches._openai_usage._refused", set())
    plain = {name: value for name, value in ASK.items() if name != "stream_options"}
    server.script(REFUSALS[shape], REPLY, REPLY)
    with capture(include_usage=True) as captured:
        for _ in range(2):
            assert len(list(client.chat.completions.create(**plain))) > 3
    asked = [request.payload.get("stream_options") for request in server.requests]
    assert asked == [{"include_usage": True}, None, None]
    assert [span.attributes["outcome"] for span in captured.spans] == ["success", "success"]


def test_a_refusal_for_another_reason_is_not_remembered(
    server: EmbeddedServer, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that is refused without our part too raises what it always raised, and the host is asked again."""
    monkeypatch.setattr("taskpilot_instrument.patches._openai_usage._refused", set())
    plain = {name: value for name, value in ASK.items() if name != "stream_options"}
    echo = Reply.error(400, "messages is empty, in {'messages': [], 'stream_options': {}}")
    server.script(echo, echo, REPLY)
    with capture(include_usage=True) as captured:
        with pytest.raises(openai.BadRequestError, match="messages is empty"):
            client.chat.completions.create(**plain)
        list(client.chat.completions.create(**plain))
    assert server.requests[-1].payload["stream_options"] == {"include_usage": True}
    assert [span.attributes["outcome"] for span in captured.spans] == ["error", "success"]


def test_raw_callers_are_not_asked_for(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """Where the caller gets at the body itself no chunk could be hidden, so nothing is asked."""
    plain = {name: value for name, value in ASK.items() if name != "stream_options"}
    server.script(REPLY)
    with capture(include_usage=True):
        list(client.chat.completions.with_raw_response.create(**plain).parse())
    assert "stream_options" not in server.requests[0].payload


def test_stopping_at_the_finish_reason_and_forgetting(
    captured: Captured, server: EmbeddedServer, client: openai.OpenAI
) -> None:
    """A consumer that has the whole answer and drops the stream has succeeded."""
    server.script(REPLY)
    for chunk in client.chat.completions.create(**ASK):
        if chunk.choices[0].finish_reason:
            break
    assert ended(captured) == ("success", None, None)


def test_azure_stream_whose_first_chunk_names_no_model(
    captured: Captured, server: EmbeddedServer, client: openai.OpenAI
) -> None:
    """The chunk that tells of Azure's content filter is not taken for the one that says who answers."""
    head = {"id": "", "object": "chat.completion.chunk", "created": 0, "model": "", "choices": []}
    rest = {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o-mini-2024-07-18"}
    words = {"choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}]}
    usage = {"choices": [], "usage": {"prompt_tokens": 150, "completion_tokens": 50, "total_tokens": 200}}
    server.script(Reply.events(head, {**rest, **words}, {**rest, **usage}, "[DONE]"))
    list(client.chat.completions.create(**{**ASK, "model": "my-deployment"}))
    tags = captured.tags("chat my-deployment")
    assert (tags["gen_ai.response.model"], tags["cost_usd"]) == ("gpt-4o-mini-2024-07-18", 0.0000525)


def test_an_agent_that_keeps_the_stream_it_returns_is_let_go(
    captured: Captured, server: EmbeddedServer, client: openai.OpenAI
) -> None:
    """An agent, its stream and its run end together when all of them are dropped."""

    @tp.observed_agent
    class Keeper:
        def run(self) -> Any:
            self.stream = client.chat.completions.create(**ASK)
            return self.stream

    server.script(REPLY)
    next(Keeper().run())
    gc.collect()
    assert captured.tags("chat gpt-4o-mini")["outcome"] == "abandoned"
    assert captured.tags("Keeper.execute")["outcome"] == "cancelled"


def test_a_body_that_a_hook_has_read(captured: Captured, server: EmbeddedServer) -> None:
    """A stream whose body an event hook of the HTTP client has read already keeps its usage."""
    server.script(REPLY)
    with openai.DefaultHttpxClient(event_hooks={"response": [lambda response: response.read()]}) as http:
        client = openai.OpenAI(api_key="k", base_url=server.url, http_client=http)
        list(client.chat.completions.create(**ASK))
    assert ended(captured) == ("success", 150, 50)
