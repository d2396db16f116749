"""The embedded server, seen through the real openai client over a real socket."""

import http.client
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionMessageParam,
    ChatCompletionStreamOptionsParam,
)

from taskpilot_instrument.embedded import (
    EmbeddedServer,
    Received,
    Reply,
    ToolCall,
    count_tokens,
)
from taskpilot_instrument.usage import TokenUsage

pytestmark = pytest.mark.openai

ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Create a task"}]
MODEL = "gpt-4o-mini"


@pytest.fixture
def server() -> Iterator[EmbeddedServer]:
    """Give a running server."""
    with EmbeddedServer() as running:
        yield running


@pytest.fixture
def client(server: EmbeddedServer) -> Iterator[openai.OpenAI]:
    """Give a client that does not retry."""
    with openai.OpenAI(api_key="any", base_url=server.url, max_retries=0) as made:
        yield made


@pytest_asyncio.fixture
async def aclient(server: EmbeddedServer) -> AsyncIterator[openai.AsyncOpenAI]:
    """Give an async client that does not retry."""
    async with openai.AsyncOpenAI(api_key="any", base_url=server.url, max_retries=0) as made:
        yield made


def chat(client: openai.OpenAI, **more: Any) -> ChatCompletion:
    """Send one plain chat call."""
    answer: ChatCompletion = client.chat.completions.create(model=MODEL, messages=ASK, **more)
    return answer


def chat_chunks(client: openai.OpenAI, **more: Any) -> list[ChatCompletionChunk]:
    """Send one streamed chat call and read it to its end."""
    return list(client.chat.completions.create(model=MODEL, messages=ASK, stream=True, **more))


# --- chat completions ---------------------------------------------------------------------------


def test_default_reply_is_made_from_the_request(client: openai.OpenAI) -> None:
    """Without a script the reply repeats what was asked and counts its tokens."""
    answer = chat(client)
    assert "You said: Create a task" == answer.choices[0].message.content
    assert "stop" == answer.choices[0].finish_reason
    assert answer.usage is not None
    assert (4, 6, 10) == (
        answer.usage.prompt_tokens,
        answer.usage.completion_tokens,
        answer.usage.total_tokens,
    )


def test_same_request_gets_same_numbers(client: openai.OpenAI) -> None:
    """Nothing but the running number differs between two answers to one request."""
    first, second = chat(client), chat(client)
    assert first.model_dump(exclude={"id"}) == second.model_dump(exclude={"id"})
    assert first.id != second.id


def test_only_replies_can_be_scripted(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """Anything else is refused at once, and the next request is answered as if it had not been tried."""
    wrong: Any = "hello"
    with pytest.raises(TypeError, match=r"script\(\) takes Reply"):
        server.script(wrong)
    assert [] == server.unused
    assert chat(client).choices


def test_scripted_replies_come_in_order(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """Queued replies answer first in first out, then the default takes over."""
    server.script(Reply("one"), Reply("two"))
    said = [chat(client).choices[0].message.content for _ in range(3)]
    assert ["one", "two", "You said: Create a task"] == said
    assert [] == server.unused


def test_model_is_the_dated_one(client: openai.OpenAI) -> None:
    """The answer names the model as OpenAI does, with its date."""
    assert "gpt-4o-mini-2024-07-18" == chat(client).model


def test_everything_a_reply_can_say(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """Usage with its details, tier, model, finish reason and headers arrive as given."""
    usage = TokenUsage(
        150,
        50,
        cached_tokens=100,
        reasoning_tokens=20,
        input_audio_tokens=3,
        output_audio_tokens=2,
    )
    server.script(
        Reply(
            "Hi",
            usage=usage,
            model="my-model",
            service_tier="priority",
            finish_reason="length",
            headers={"X-A": "b"},
        )
    )
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=ASK)
    answer = raw.parse()
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.completion_tokens_details is not None
    assert (150, 50) == (answer.usage.prompt_tokens, answer.usage.completion_tokens)
    assert (100, 3) == (
        answer.usage.prompt_tokens_details.cached_tokens,
        answer.usage.prompt_tokens_details.audio_tokens,
    )
    assert 20 == answer.usage.completion_tokens_details.reasoning_tokens
    assert 2 == answer.usage.completion_tokens_details.audio_tokens
    assert ("my-model", "priority", "length") == (
        answer.model,
        answer.service_tier,
        answer.choices[0].finish_reason,
    )
    assert ("b", "req_000001") == (raw.headers["x-a"], raw.headers["x-request-id"])


def test_reply_without_usage(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """A provider that never tells its usage can be played."""
    server.script(Reply("Hi", send_usage=False))
    assert chat(client).usage is None


def test_tool_calls(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """Tool calls arrive with their arguments, and the text is left out."""
    server.script(
        Reply(
            tool_calls=(
                ToolCall("create_task", {"title": "Tea"}),
                ToolCall("broken", "{no json"),
            )
        )
    )
    choice = chat(client).choices[0]
    assert "tool_calls" == choice.finish_reason
    assert choice.message.content is None
    message: Any = choice.message
    calls = [(call.function.name, call.function.arguments) for call in message.tool_calls or ()]
    assert [("create_task", '{"title": "Tea"}'), ("broken", "{no json")] == calls


def test_refusal(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """A refusal stands in place of the text."""
    server.script(Reply(refusal="I will not"))
    message = chat(client).choices[0].message
    assert (None, "I will not") == (message.content, message.refusal)


def test_n_choices_cost_their_tokens(client: openai.OpenAI) -> None:
    """Three choices are three answers, and their output tokens are counted three times."""
    answer = chat(client, n=3)
    assert [0, 1, 2] == [choice.index for choice in answer.choices]
    assert answer.usage is not None
    assert 18 == answer.usage.completion_tokens


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
@settings(max_examples=50, deadline=None)
def test_streamed_words_add_up_to_the_text(text: str) -> None:
    """Whatever the text, its chunks put together are the text."""
    reply = Reply(text)
    with SHARED as server:
        server.script(reply)
        with openai.OpenAI(api_key="any", base_url=server.url, max_retries=0) as client:
            chunks = chat_chunks(client)
    assert text == "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


class _Shared(EmbeddedServer):
    """A server that hypothesis starts once for all its examples."""

    def __exit__(self, *_: object) -> None:
        """Keep running; the threads are daemons."""


SHARED = _Shared()


def test_stream_has_usage_only_where_asked(client: openai.OpenAI) -> None:
    """The usage chunk comes last, has no choices, and only if include_usage is set."""
    plain = chat_chunks(client)
    asked = chat_chunks(client, stream_options={"include_usage": True})
    assert [None] * len(plain) == [chunk.usage for chunk in plain]
    assert len(plain) + 1 == len(asked)
    assert [] == asked[-1].choices
    assert asked[-1].usage is not None
    assert 10 == asked[-1].usage.total_tokens


def test_streamed_tool_calls(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """The client's own accumulator puts streamed tool calls together."""
    server.script(Reply(tool_calls=(ToolCall("create_task", {"title": "Buy tea", "due": "today"}),)))
    completions: Any = client.chat.completions
    if not hasattr(completions, "stream"):  # in older clients it is still called beta
        completions = client.beta.chat.completions
    with completions.stream(model=MODEL, messages=ASK) as stream:
        final = stream.get_final_completion()
    calls = final.choices[0].message.tool_calls or []
    assert ["create_task"] == [call.function.name for call in calls]
    assert {"title": "Buy tea", "due": "today"} == json.loads(calls[0].function.arguments)


@pytest.mark.asyncio
async def test_async_client_reads_plain_and_streamed(server: EmbeddedServer, aclient: openai.AsyncOpenAI) -> None:
    """The async client understands the same replies."""
    server.script(Reply("plain"), Reply("streamed words here"))
    plain = await aclient.chat.completions.create(model=MODEL, messages=ASK)
    stream = await aclient.chat.completions.create(model=MODEL, messages=ASK, stream=True)
    said = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert ("plain", "streamed words here") == (
        plain.choices[0].message.content,
        "".join(said),
    )


# --- responses ----------------------------------------------------------------------------------


def test_response(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """The Responses API gives text, tool calls, reasoning and usage."""
    usage = TokenUsage(20, 12, cached_tokens=8, reasoning_tokens=5)
    server.script(Reply("Done.", usage=usage, tool_calls=(ToolCall("create_task"),)))
    answer = client.responses.create(model=MODEL, input="Go")
    assert ("completed", "Done.") == (answer.status, answer.output_text)
    assert ["reasoning", "message", "function_call"] == [item.type for item in answer.output]
    said = answer.model_dump()["usage"]
    assert (20, 12, 32) == (said["input_tokens"], said["output_tokens"], said["total_tokens"])
    assert 8 == said["input_tokens_details"]["cached_tokens"]
    assert 5 == said["output_tokens_details"]["reasoning_tokens"]


@pytest.mark.parametrize(
    ("reply", "last"),
    [
        (Reply("All well"), "response.completed"),
        (Reply("Cut sho", finish_reason="length"), "response.incomplete"),
        (Reply(failure="The model broke"), "response.failed"),
        (Reply(refusal="I will not do it"), "response.completed"),
        (
            Reply(tool_calls=(ToolCall("create_task", {"title": "Tea"}),)),
            "response.completed",
        ),
    ],
)
def test_response_stream_ends_as_the_reply_says(
    server: EmbeddedServer, client: openai.OpenAI, reply: Reply, last: str
) -> None:
    """A streamed response opens with created, counts its events, and ends completed, incomplete or failed."""
    server.script(reply)
    events: list[Any] = list(client.responses.create(model=MODEL, input="Go", stream=True))
    assert ["response.created", "response.in_progress"] == [event.type for event in events[:2]]
    assert last == events[-1].type
    assert list(range(len(events))) == [event.sequence_number for event in events]
    assert events[-1].response.usage is not None


def test_plain_response_fails_and_stays_incomplete(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """Without a stream, the status says the same."""
    server.script(Reply(failure="The model broke"), Reply("Cut sho", finish_reason="length"))
    failed, incomplete = (client.responses.create(model=MODEL, input="Go") for _ in range(2))
    assert failed.error is not None
    assert ("failed", "The model broke") == (failed.status, failed.error.message)
    assert incomplete.incomplete_details is not None
    assert ("incomplete", "max_output_tokens") == (
        incomplete.status,
        incomplete.incomplete_details.reason,
    )


def test_response_stream_accumulates(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """The client's own accumulator accepts the events and finds text and tool call."""
    server.script(Reply("Here you are", tool_calls=(ToolCall("create_task", {"title": "Buy tea"}),)))
    with client.responses.stream(model=MODEL, input="Go") as stream:
        final: Any = stream.get_final_response()
    assert "Here you are" == final.output_text
    assert {"title": "Buy tea"} == json.loads(final.output[1].arguments)


def test_background_response_is_retrieved_with_the_same_usage(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """A background response starts queued without usage; each retrieval then tells the same."""
    server.script(Reply("Later", usage=TokenUsage(7, 3)))
    queued = client.responses.create(model=MODEL, input="Go", extra_body={"background": True})
    twice = [client.responses.retrieve(queued.id) for _ in range(2)]
    assert ("queued", None) == (queued.status, queued.usage)
    assert ["completed", "completed"] == [answer.status for answer in twice]
    assert [10, 10] == [answer.usage.total_tokens for answer in twice if answer.usage]


@pytest.mark.asyncio
async def test_async_responses(server: EmbeddedServer, aclient: openai.AsyncOpenAI) -> None:
    """The async client streams responses too."""
    server.script(Reply("Hello from afar"))
    stream = await aclient.responses.create(model=MODEL, input="Go", stream=True)
    deltas = [event.delta async for event in stream if event.type == "response.output_text.delta"]
    assert "Hello from afar" == "".join(deltas)


# --- the other endpoints ------------------------------------------------------------------------


def test_embeddings_say_the_same_in_both_encodings(client: openai.OpenAI) -> None:
    """Floats and base64 hold the same vectors, one for each input."""
    texts = ["tea", "coffee"]
    default = client.embeddings.create(model="text-embedding-3-small", input=texts)
    floats = client.embeddings.create(model="text-embedding-3-small", input=texts, encoding_format="float")
    packed = client.embeddings.create(model="text-embedding-3-small", input=texts, encoding_format="base64")
    assert [item.embedding for item in floats.data] == [list(item.embedding) for item in default.data]
    assert all(isinstance(item.embedding, str) for item in packed.data)
    assert floats.data[0].embedding != floats.data[1].embedding
    assert 3 == floats.usage.prompt_tokens


def test_embedding_of_tokens_is_one_vector(client: openai.OpenAI) -> None:
    """A list of integers is one text of that many tokens; dimensions sets the length."""
    answer = client.embeddings.create(model="text-embedding-3-small", input=[1, 2, 3], dimensions=40)
    assert [40] == [len(item.embedding) for item in answer.data]
    assert 3 == answer.usage.prompt_tokens


def test_legacy_completions(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """Legacy completions answer plain and streamed, with usage where asked."""
    server.script(Reply("once upon a time"), Reply("once upon a time"))
    plain = client.completions.create(model="gpt-3.5-turbo-instruct", prompt="Tell")
    options: ChatCompletionStreamOptionsParam = {"include_usage": True}
    chunks = list(
        client.completions.create(
            model="gpt-3.5-turbo-instruct",
            prompt="Tell",
            stream=True,
            stream_options=options,
        )
    )
    assert "once upon a time" == plain.choices[0].text
    assert "once upon a time" == "".join(choice.text for chunk in chunks for choice in chunk.choices)
    assert plain.usage == chunks[-1].usage


def test_azure_paths(server: EmbeddedServer) -> None:
    """Azure's deployment paths with their api-version reach the same endpoint."""
    with openai.AzureOpenAI(api_key="any", azure_endpoint=server.origin, api_version="2024-10-21") as client:
        answer = client.chat.completions.create(model=MODEL, messages=ASK)
    assert "You said: Create a task" == answer.choices[0].message.content
    assert f"/openai/deployments/{MODEL}/chat/completions?api-version=2024-10-21" == server.requests[0].path
    assert "/chat/completions" == server.requests[0].endpoint


def test_models_are_listed(client: openai.OpenAI) -> None:
    """A call that costs nothing is there as well."""
    assert MODEL in [model.id for model in client.models.list()]


def test_unknown_path_is_404_and_leaves_the_script(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """What the server does not know is a 404 in OpenAI's shape, and takes no scripted reply away."""
    server.script(Reply("for a chat"))
    with pytest.raises(openai.NotFoundError, match="Invalid URL"):
        client.files.list()
    assert [Reply("for a chat")] == server.unused


def test_literal_reply_serves_any_path(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """Raw bytes answer whatever is asked, also endpoints that the server does not know."""
    server.script(Reply.raw(b'{"object": "list", "data": [], "has_more": false}'))
    assert [] == client.files.list().data


# --- what goes wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError),
        (409, openai.ConflictError),
        (422, openai.UnprocessableEntityError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (503, openai.InternalServerError),
    ],
)
def test_errors(
    server: EmbeddedServer,
    client: openai.OpenAI,
    status: int,
    error: type[openai.APIStatusError],
) -> None:
    """Each status becomes the client's own exception, with message, code and headers."""
    server.script(Reply.error(status, "No.", code="some_code", headers={"retry-after": "7"}))
    with pytest.raises(error) as caught:
        chat(client)
    assert ("some_code", "7") == (
        caught.value.code,
        caught.value.response.headers["retry-after"],
    )
    assert "No." in caught.value.message
    assert "req_000001" == caught.value.request_id


def test_client_retries_429(server: EmbeddedServer) -> None:
    """The client's own retry finds the next reply, and the server saw both tries."""
    server.script(Reply.error(429, headers={"retry-after-ms": "1"}), Reply("second try"))
    with openai.OpenAI(api_key="any", base_url=server.url) as client:
        assert "second try" == chat(client).choices[0].message.content
    assert ["0", "1"] == [request.headers["x-stainless-retry-count"] for request in server.requests]


def test_error_event_within_a_stream(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """A stream can end in an error event after some chunks."""
    server.script(Reply("one two three four", error_after=3))
    seen = []
    with pytest.raises(openai.APIError, match="had an error"):
        for chunk in client.chat.completions.create(model=MODEL, messages=ASK, stream=True):
            seen.append(chunk.choices[0].delta.content)
    assert ["", "one", " two"] == seen


def test_connection_cut_within_a_stream(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """A stream can break off after some chunks, as if the provider had died."""
    server.script(Reply("one two three four", cut_after=2))
    seen = []
    with pytest.raises(Exception) as caught:  # noqa: PT011 - its class depends on the client's version
        for chunk in client.chat.completions.create(model=MODEL, messages=ASK, stream=True):
            seen.append(chunk.choices[0].delta.content)
    assert not isinstance(caught.value, openai.APIStatusError)
    assert ["", "one"] == seen


def test_connection_cut_before_the_body(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """A plain answer can break off after its headers; the next call gets a new connection."""
    server.script(Reply("never", cut_after=0), Reply("again"))
    with pytest.raises(openai.APIConnectionError):
        chat(client)
    assert "again" == chat(client).choices[0].message.content


def test_truncated_json(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """A body can end in the middle of its JSON although its length says that it is whole."""
    server.script(Reply("Hello", truncate=20))
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=ASK)
    assert 20 == len(raw.content)
    with pytest.raises(ValueError, match=r"Unterminated|Expecting|column"):
        json.loads(raw.content)


def test_raw_bytes_and_type(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """Exact bytes go out with the type and status that the script gives."""
    server.script(Reply.raw(b"<h1>Bad gateway</h1>", status=502, content_type="text/html"))
    with pytest.raises(openai.InternalServerError) as caught:
        chat(client)
    response = caught.value.response
    assert (502, "text/html", b"<h1>Bad gateway</h1>") == (
        response.status_code,
        response.headers["content-type"],
        response.content,
    )


def test_literal_events(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """A stream of one's own making goes out as it stands."""
    chunk = {
        "id": "c",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [],
    }
    server.script(Reply.events(chunk, {**chunk, "id": "d"}, "[DONE]"))
    assert ["c", "d"] == [chunk.id for chunk in chat_chunks(client)]


def test_delay_lets_the_client_time_out(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """A delayed answer meets the client's timeout, and stopping the server does not wait for it."""
    server.script(Reply("late", delay=3600))
    with pytest.raises(openai.APITimeoutError):
        chat(client, timeout=0.05)
    server.stop()
    assert 1 == len(server.requests)


def test_stop_ends_a_stream_that_waits(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """A stream waiting for its next chunk ends when the server stops."""
    server.script(Reply("one two", part_delay=3600))
    stream = client.chat.completions.create(model=MODEL, messages=ASK, stream=True)
    assert "" == next(stream).choices[0].delta.content
    server.stop()
    with pytest.raises(Exception):  # noqa: B017, PT011 - its class depends on the client's version
        next(stream)


# --- HTTP and life ------------------------------------------------------------------------------


def test_requests_are_recorded(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """Method, path, headers and body of each request can be read afterwards."""
    chat(client, temperature=0.5, extra_headers={"X-Trace": "abc"})
    request = server.requests[0]
    assert ("POST", "/v1/chat/completions", "/chat/completions") == (
        request.method,
        request.path,
        request.endpoint,
    )
    assert ("abc", "Bearer any") == (
        request.headers["x-trace"],
        request.headers["authorization"],
    )
    assert {"model": MODEL, "messages": ASK, "temperature": 0.5} == request.body


def test_remembers_no_more_than_asked() -> None:
    """Old requests and stored responses are forgotten beyond the limit."""
    with (
        EmbeddedServer(keep=2) as server,
        openai.OpenAI(api_key="any", base_url=server.url) as client,
    ):
        answers = [client.responses.create(model=MODEL, input=str(number)) for number in range(4)]
        assert ["2", "3"] == [request.body["input"] for request in server.requests]
        assert answers[3].id == client.responses.retrieve(answers[3].id).id
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(answers[0].id)


def test_responder_answers_by_request() -> None:
    """A function can answer instead of a queue; None from it means the default."""

    def respond(received: Received) -> Reply | None:
        return Reply("a plan") if received.payload["model"] == "planner" else None

    with (
        EmbeddedServer(respond) as server,
        openai.OpenAI(api_key="any", base_url=server.url) as client,
    ):
        said = [
            client.chat.completions.create(model=name, messages=ASK).choices[0].message.content
            for name in ("planner", "other")
        ]
    assert ["a plan", "You said: Create a task"] == said


def test_chunked_upload_is_read_and_connection_kept(server: EmbeddedServer) -> None:
    """A body sent in chunks is understood, and one connection serves many requests."""
    connection = http.client.HTTPConnection("127.0.0.1", int(server.origin.rpartition(":")[2]))
    body = json.dumps({"model": MODEL, "messages": ASK}).encode()
    first = _send(connection, [body[:10], body[10:]])
    socket_before = connection.sock
    second = _send(connection, [body])
    assert [200, 200] == [first, second]
    assert socket_before is connection.sock
    assert [{"model": MODEL, "messages": ASK}] * 2 == [request.body for request in server.requests]
    connection.close()


def _send(connection: http.client.HTTPConnection, pieces: list[bytes]) -> int:
    connection.request("POST", "/v1/chat/completions", body=iter(pieces), encode_chunked=True)
    with connection.getresponse() as response:
        response.read()
        return response.status


def test_body_that_is_no_json_is_a_400(server: EmbeddedServer) -> None:
    """A request that cannot be parsed is refused as OpenAI refuses it."""
    connection = http.client.HTTPConnection("127.0.0.1", int(server.origin.rpartition(":")[2]))
    connection.request("POST", "/v1/chat/completions", body=b"{not json")
    with connection.getresponse() as response:
        error = json.loads(response.read())["error"]
    assert (400, "invalid_request_error") == (response.status, error["type"])
    connection.close()


def test_many_threads_each_get_their_answer(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """Concurrent calls are all answered, and each is recorded once."""

    def ask(number: int) -> str | None:
        message: list[ChatCompletionMessageParam] = [{"role": "user", "content": f"no. {number}"}]
        return client.chat.completions.create(model=MODEL, messages=message).choices[0].message.content

    with ThreadPoolExecutor(16) as pool:
        said = list(pool.map(ask, range(100)))
    assert [f"You said: no. {number}" for number in range(100)] == said
    assert set(range(1, 101)) == {request.number for request in server.requests}


def test_stop_frees_port_and_threads() -> None:
    """A stopped server refuses connections, leaves no thread, and can start again."""
    before = set(threading.enumerate())
    server = EmbeddedServer().start()
    port = int(server.origin.rpartition(":")[2])
    kept_alive = socket.create_connection(("127.0.0.1", port))
    kept_alive.sendall(b"GET /v1/models HTTP/1.1\r\nhost: embedded\r\n\r\n")
    assert b"HTTP/1.1 200" == kept_alive.recv(65536)[:12]
    server.stop()
    assert b"" == kept_alive.recv(1)
    kept_alive.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    with server:
        assert server.url.startswith("http://127.0.0.1:")
    assert before == set(threading.enumerate())


def test_url_of_a_stopped_server_says_what_to_do() -> None:
    """Asking for the address before the start is an error that names the remedy."""
    with pytest.raises(RuntimeError, match=r"start\(\)"):
        _ = EmbeddedServer().url


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_token_count_is_bytes_in_fours(text: str) -> None:
    """A text of n bytes counts as many tokens as fours have been begun."""
    size = len(text.encode())
    assert (size + 3) // 4 == count_tokens(text)
