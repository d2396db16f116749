"""Each way in which a stream can end, of both clients: one span, its outcome, the usage that had come, its end.

The stream tells with each chunk what was used so far, as some hosts do, and a second passes before each chunk: so what
a span says of usage and time shows up to which chunk the stream was read.
"""

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import openai
import pytest
from mock_openai import MODEL, async_client, httpx, settled, sync_client

from taskpilot_instrument import _streams
from taskpilot_instrument.testing import Captured, FakeClock, capture

pytestmark = pytest.mark.openai

ASK: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": True}


class Boom(Exception):
    """Raised on purpose."""


# --- what the server says -----------------------------------------------------------------------


class SlowBody(httpx.SyncByteStream, httpx.AsyncByteStream):  # type: ignore[misc] # its module is found at run time
    """A body whose parts come one second after the other, on a clock of the test's; an exception is raised in turn."""

    def __init__(self, parts: list[bytes | Exception | None], clock: FakeClock) -> None:
        self._parts = iter(parts)  # like a connection, it is read once
        self._clock = clock

    def __iter__(self) -> Iterator[bytes]:
        for part in self._parts:
            self._clock.advance(1)
            if isinstance(part, Exception):
                raise part
            if part is not None:
                yield part

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self._parts:
            self._clock.advance(1)
            if isinstance(part, Exception):
                raise part
            if part is None:
                await asyncio.Event().wait()  # for ever
            else:
                yield part


def event(document: dict[str, Any]) -> bytes:
    """Return one server-sent event."""
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def chunk(number: int, reason: str | None = None) -> bytes:
    """Return a chunk that tells what was used so far."""
    usage = {"prompt_tokens": 150, "completion_tokens": number, "total_tokens": 150 + number}
    choices = [{"index": 0, "delta": {"content": "word "}, "finish_reason": reason}]
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    return event({**head, "choices": choices, "usage": usage})


def response(kind: str, **more: Any) -> bytes:
    """Return an event of the Responses API."""
    whole = {"id": "resp_1", "object": "response", "model": MODEL, "output": [], "status": "in_progress", **more}
    return event({"type": f"response.{kind}", "sequence_number": 1, "response": whole})


CHAT: list[bytes | Exception | None] = [chunk(1), chunk(2), chunk(3, "stop"), b"data: [DONE]\n\n"]
EVENTS: list[bytes | Exception | None] = [response("created"), response("in_progress"), response("completed")]


# --- ways to an end, the same for both clients ---------------------------------------------------


async def take(stream: Any) -> Any:
    """Read one chunk; None at the end."""
    return await anext(stream, None) if hasattr(stream, "__anext__") else next(stream, None)


async def drain(stream: Any) -> None:
    """Read all chunks."""
    if hasattr(stream, "__aiter__"):
        async for _ in stream:
            pass
    else:
        for _ in stream:
            pass


@asynccontextmanager
async def entered(manager: Any) -> AsyncIterator[Any]:
    """Enter a block of either kind."""
    if hasattr(manager, "__aenter__"):
        async with manager as inside:
            yield inside
    else:
        with manager as inside:
            yield inside


async def started(client: Any) -> Any:
    """Start a stream."""
    return await settled(client.chat.completions.create(**ASK))


def helper(client: Any) -> Any:
    """Return the helper for streamed chats."""
    return client.chat.completions.stream(model=MODEL, messages=ASK["messages"])


def body_of(client: Any) -> Any:
    """Return the manager of a response whose body the caller reads."""
    return client.chat.completions.with_streaming_response.create(**ASK)


async def to_the_end(client: Any) -> None:
    """Read all of it."""
    await drain(await started(client))


async def step_by_step(client: Any) -> None:
    """Read all of it without a loop."""
    stream = await started(client)
    while await take(stream) is not None:
        pass


async def broken_off(client: Any) -> None:
    """Leave the loop, then close."""
    stream = await started(client)
    if hasattr(stream, "__aiter__"):
        async for _ in stream:
            break
    else:
        for _ in stream:
            break
    await settled(stream.close())
    await settled(stream.close())


async def left_block(client: Any) -> None:
    """Leave the block of a stream."""
    async with entered(await started(client)) as stream:
        await take(stream)


async def left_by_exception(client: Any) -> None:
    """Leave the block of a stream by an exception."""
    with suppress(Boom):
        async with entered(await started(client)) as stream:
            await take(stream)
            raise Boom


async def dropped(client: Any) -> None:
    """Read some, wait, and forget the stream."""
    await take(await started(client))


async def dropped_unread(client: Any) -> None:
    """Forget a stream that was never read."""
    await started(client)


async def failing(client: Any) -> None:
    """Read until it fails."""
    with pytest.raises((openai.APIError, httpx.HTTPError)):
        await drain(await started(client))


async def failing_lines(client: Any) -> None:
    """Read lines until it fails."""
    with pytest.raises((openai.APIError, httpx.HTTPError)):
        async with entered(body_of(client)) as whole:
            await drain(whole.iter_lines())


async def helper_to_the_end(client: Any) -> None:
    """Read all that the helper gives."""
    async with entered(helper(client)) as stream:
        await drain(stream)


async def helper_left(client: Any) -> None:
    """Leave the helper early."""
    async with entered(helper(client)) as stream:
        await take(stream)


async def helper_left_by_exception(client: Any) -> None:
    """Leave the helper by an exception."""
    with suppress(Boom):
        async with entered(helper(client)) as stream:
            await take(stream)
            raise Boom


async def responses_to_the_end(client: Any) -> None:
    """Read all of a response."""
    with suppress(openai.APIError):
        await drain(await settled(client.responses.create(model=MODEL, input="hi", stream=True)))


async def responses_helper_left(client: Any) -> None:
    """Leave the helper for responses early."""
    async with entered(client.responses.stream(model=MODEL, input="hi")) as stream:
        await take(stream)


def reading(how: str) -> Callable[[Any], Awaitable[None]]:
    """Return what reads all of a body, as lines, bytes or text, or parsed."""

    async def read(client: Any) -> None:
        async with entered(body_of(client)) as whole:
            parts = getattr(whole, how)()
            await drain(await settled(parts) if how == "parse" else parts)

    return read


def leaving(how: str) -> Callable[[Any], Awaitable[None]]:
    """Return what leaves such a body early."""

    async def leave(client: Any) -> None:
        async with entered(body_of(client)) as whole:
            parts = getattr(whole, how)()
            await take(await settled(parts) if how == "parse" else parts)

    return leave


async def raw_left(client: Any) -> None:
    """Close the stream of a raw response."""
    raw = await settled(client.chat.completions.with_raw_response.create(**ASK))
    stream = await settled(raw.parse())
    await take(stream)
    await settled(stream.close())


CUT: list[bytes | Exception | None] = [chunk(1), httpx.ReadError("cut")]
TORN: list[bytes | Exception | None] = [chunk(1), httpx.RemoteProtocolError("incomplete chunked read")]
IN_BAND: list[bytes | Exception | None] = [chunk(1), event({"error": {"message": "overloaded", "code": "busy"}})]
IN_BAND_EVENT: list[bytes | Exception | None] = [
    response("created"), event({"type": "error", "code": "busy", "message": "x", "param": None, "sequence_number": 2}),
]  # fmt: skip
FAILED: list[bytes | Exception | None] = [
    response("created"), response("failed", status="failed", error={"code": "busy", "message": "x"}),
]  # fmt: skip

#: Name → how to read what, with which outcome; output tokens and seconds that had come by then.
WAYS: dict[str, tuple[Any, list[bytes | Exception | None], str, int | None, int | None]] = {
    "to the end": (to_the_end, CHAT, "success", 3, 4),
    "step by step": (step_by_step, CHAT, "success", 3, 4),
    "break, close": (broken_off, CHAT, "cancelled", 1, 1),
    "block left": (left_block, CHAT, "cancelled", 1, 1),
    "block left by exception": (left_by_exception, CHAT, "cancelled", 1, 1),
    "collected": (dropped, CHAT, "abandoned", 1, 1),
    "collected unread": (dropped_unread, CHAT, "abandoned", None, None),
    "error in band": (failing, IN_BAND, "error", 1, 2),
    "server breaks off": (failing, TORN, "error", 1, 2),
    "connection cut": (failing, CUT, "error", 1, 2),
    "connection cut, lines": (failing_lines, CUT, "error", 1, 2),
    "helper to the end": (helper_to_the_end, CHAT, "success", 3, 4),
    "helper left": (helper_left, CHAT, "cancelled", 1, 1),
    "helper left by exception": (helper_left_by_exception, CHAT, "cancelled", 1, 1),
    "raw, closed": (raw_left, CHAT, "cancelled", 1, 1),
    "lines to the end": (reading("iter_lines"), CHAT, "success", 3, 4),
    "bytes to the end": (reading("iter_bytes"), CHAT, "success", 3, 4),
    "text to the end": (reading("iter_text"), CHAT, "success", 3, 4),
    "parsed to the end": (reading("parse"), CHAT, "success", 3, 4),
    "lines left": (leaving("iter_lines"), CHAT, "cancelled", 1, 1),
    "bytes left": (leaving("iter_bytes"), CHAT, "cancelled", 1, 1),
    "text left": (leaving("iter_text"), CHAT, "cancelled", 1, 1),
    "parsed left": (leaving("parse"), CHAT, "cancelled", 1, 1),
    "responses to the end": (responses_to_the_end, EVENTS, "success", None, 3),
    "responses, error in band": (responses_to_the_end, IN_BAND_EVENT, "error", None, 2),
    "responses, failed": (responses_to_the_end, FAILED, "error", None, 2),
    "responses, connection cut": (failing, CUT, "error", 1, 2),
    "responses helper left": (responses_helper_left, EVENTS, "cancelled", None, 1),
}


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("name", WAYS)
async def test_each_way_to_an_end(name: str, *, is_async: bool) -> None:
    """One span that says how it ended, what had been used, and when the last chunk came where nobody waited."""
    way, parts, outcome, made, seconds = WAYS[name]
    with capture(fake_clock=True) as captured:
        clock = captured.clock
        assert clock is not None

        def answer(_request: Any) -> Any:
            return httpx.Response(200, stream=SlowBody(parts, clock), headers={"content-type": "text/event-stream"})

        client: Any = async_client(answer) if is_async else sync_client(answer)
        await way(client)
        clock.advance(60 if outcome == "abandoned" else 0)
        gc.collect()
        if is_async:
            await asyncio.sleep(0.01)  # the loop closes what was collected
        await settled(client.close())
        (span,) = captured.spans
        assert set() == _streams._open_watches
    tags = dict(span.attributes or {})
    used = (150, made) if made is not None else (None, None)
    assert (outcome, *used) == (tags["outcome"], tags.get("input_tokens"), tags.get("output_tokens"))
    assert ("error.type" in tags) is (outcome == "error")
    if seconds is not None:
        assert 1000.0 * seconds == tags["latency_ms"]


async def test_a_cancelled_task(captured: Captured) -> None:
    """A task that waits for the next chunk and is cancelled ends the call so, with the usage that had come."""
    clock = FakeClock()
    waits: list[bytes | Exception | None] = [chunk(1), None]
    reading_on = asyncio.Event()

    def answer(_request: Any) -> Any:
        return httpx.Response(200, stream=SlowBody(waits, clock), headers={"content-type": "text/event-stream"})

    async def read() -> None:
        async for _ in await started(client):
            reading_on.set()

    async with async_client(answer) as client:
        task = asyncio.create_task(read())
        await reading_on.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    (span,) = captured.spans
    tags = dict(span.attributes or {})
    assert ("cancelled", 150, 1) == (tags["outcome"], tags["input_tokens"], tags["output_tokens"])
