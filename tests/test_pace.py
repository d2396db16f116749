"""Tokens a second: a tag of answers whose speed is known, by the definition that models are compared by."""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final

import openai
import pytest
from mock_openai import MODEL, async_client, chunks, completion, httpx, json_response, settled, sync_client

import taskpilot_instrument as tp
from taskpilot_instrument.embedded import EmbeddedServer, Reply
from taskpilot_instrument.testing import Captured, FakeClock, capture

pytestmark = pytest.mark.openai

ASK: Final[dict[str, Any]] = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
TAG: Final = "tokens_per_second"
#: 50 of them are output.
TOLD: Final[Any] = {"prompt_tokens": 150, "completion_tokens": 50, "total_tokens": 200}


def tags(captured: Captured) -> list[dict[str, Any]]:
    """Return the tags of every LLM call."""
    return [dict(span.attributes or {}) for span in captured.spans if "latency_ms" in (span.attributes or {})]


class Slow(httpx.SyncByteStream, httpx.AsyncByteStream):  # type: ignore[misc] # its module is found at run time
    """A body between whose parts time passes."""

    def __init__(self, clock: FakeClock, *parts: bytes | Exception | float) -> None:
        self._clock = clock
        self._parts = iter(parts)  # the client reads what is left of a stream in a second go

    def __iter__(self) -> Iterator[bytes]:
        for part in self._parts:
            if isinstance(part, float):
                self._clock.advance(part)
            elif isinstance(part, Exception):
                raise part
            else:
                yield part

    async def __aiter__(self) -> Any:
        for part in self:
            yield part


async def ask(mode: str, answer: Callable[[Any], Any], *, stream: bool = False, **more: Any) -> None:
    """Make a call, read all of a stream, and take it as it comes."""
    with suppress(openai.APIError, httpx.TransportError):
        if mode == "sync":
            result: Any = sync_client(answer).chat.completions.create(**ASK, stream=stream, **more)
            if stream:
                list(result)
            return
        result = await async_client(answer).chat.completions.create(**ASK, stream=stream, **more)
        if stream:
            _ = [chunk async for chunk in result]


def streamed(clock: FakeClock, *parts: bytes | Exception | float) -> Any:
    """Return an event stream."""
    return httpx.Response(200, stream=Slow(clock, *parts), headers={"content-type": "text/event-stream"})


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_a_whole_answer_took_the_whole_call(mode: str) -> None:
    """Output tokens ÷ the time of the call, where the answer came at once."""
    with capture(fake_clock=True) as captured:
        assert captured.clock is not None
        clock = captured.clock

        def answer(_request: Any) -> Any:
            clock.advance(2)
            return json_response(completion(usage=TOLD))

        await ask(mode, answer)
        assert 25.0 == tags(captured)[0][TAG]


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_a_stream_is_written_from_its_first_chunk_on(mode: str) -> None:
    """The wait for the first chunk is the provider's queue and the prompt, not the writing."""
    with capture(fake_clock=True) as captured:
        assert captured.clock is not None
        first, *rest = chunks()
        await ask(mode, lambda _: streamed(captured.clock, 3.0, first, 2.0, *rest), stream=True)  # type: ignore[arg-type]
        found = tags(captured)[0]
    assert (3000.0, 25.0) == (found["time_to_first_chunk_ms"], found[TAG])


UNKNOWN: Final[dict[str, Callable[[FakeClock], Any]]] = {
    "usage untold": lambda clock: streamed(clock, 1.0, *chunks()[:3], 1.0, chunks()[-1]),
    "cut off after its usage": lambda clock: streamed(clock, 1.0, *chunks()[:4], 1.0, httpx.ReadError("lost")),
    "no time": lambda clock: streamed(clock, *chunks()),
    "refused": lambda clock: json_response(b"{}", 400),
}


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("way", UNKNOWN)
async def test_where_the_speed_is_not_known_there_is_no_tag(way: str, mode: str) -> None:
    """Unknown is left out, never zero or endless; so it is in the comparison."""
    with capture(fake_clock=True) as captured:
        assert captured.clock is not None
        await ask(mode, lambda _: UNKNOWN[way](captured.clock), stream=way != "refused")  # type: ignore[arg-type]
        assert [False] == [TAG in found for found in tags(captured)]
        (model,) = captured.handle.compare_models().models
    assert (None, 0) == (model.tokens_per_second.value, model.tokens_per_second.sample)


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_nothing_generated_has_no_speed(
    captured: Captured, client: openai.OpenAI, aclient: openai.AsyncOpenAI, server: EmbeddedServer, mode: str
) -> None:
    """Embeddings generate nothing, nor does an answer without a token."""
    made: Any = client if mode == "sync" else aclient
    server.script(Reply(), Reply("", usage=tp.TokenUsage(150, 0)))
    await settled(made.embeddings.create(model="text-embedding-3-small", input="hello"))
    await settled(made.chat.completions.create(**ASK))
    assert [False, False] == [TAG in found for found in tags(captured)]


def test_what_is_only_fetched_has_no_speed(captured: Captured) -> None:
    """How long it took to fetch a response or a batch says nothing of how fast it was made."""
    usage = {"input_tokens": 150, "output_tokens": 5_000_000, "total_tokens": 5_000_150}
    response = {
        "id": "resp_1", "object": "response", "created_at": 1, "model": MODEL, "status": "completed", "output": [],
        "background": True, "usage": usage,
    }  # fmt: skip
    batch = {
        "id": "batch_1", "object": "batch", "status": "completed", "created_at": 1, "model": MODEL, "usage": usage,
        "completion_window": "24h", "endpoint": "/v1/responses", "input_file_id": "file-1",
    }  # fmt: skip

    def answer(request: Any) -> Any:
        return json_response(json.dumps(batch if "batches" in request.url.path else response).encode())

    with sync_client(answer) as client:
        client.responses.retrieve("resp_1")
        client.batches.retrieve("batch_1")
    assert [5_000_000] * 2 == [found["output_tokens"] for found in tags(captured)]
    assert [False, False] == [TAG in found for found in tags(captured)]
    assert {None} == {model.tokens_per_second.value for model in captured.handle.compare_models().models}


def test_only_calls_have_a_speed(captured: Captured, client: openai.OpenAI) -> None:
    """Runs around a call do other things too."""

    @tp.observed_agent(name="PlannerAgent")
    def plan() -> None:
        client.chat.completions.create(**ASK)

    plan()
    assert [f"chat {MODEL}"] == [span.name for span in captured.spans if TAG in (span.attributes or {})]


def test_the_comparison_is_the_sum_of_the_tags(
    captured: Captured, server: EmbeddedServer, client: openai.OpenAI
) -> None:
    """Tokens ÷ seconds over all calls that have the tag is the figure that models are compared by."""
    for number in range(30):
        reply = Reply("a b c", usage=tp.TokenUsage(9, number * 7), part_delay=0.001)
        server.script(reply if number % 5 else Reply(failure="no"))
        stream: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}} if number % 2 else {}
        if number % 5:
            result = client.chat.completions.create(**ASK, **stream)
            if stream:
                list(result)
        else:
            client.responses.create(model=MODEL, input="hello")
    known = [(found["output_tokens"], found[TAG]) for found in tags(captured) if TAG in found]
    assert 24 == len(known)
    (model,) = captured.handle.compare_models().models
    expected = sum(tokens for tokens, _ in known) / sum(tokens / speed for tokens, speed in known)
    assert expected == pytest.approx(model.tokens_per_second.value)
    assert 24 == model.tokens_per_second.sample
