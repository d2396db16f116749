"""What goes wrong at the embedded server goes wrong as asked, and its HTTP holds whatever comes."""

import http.client
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from embedded_calls import ASK, MODEL, chat, chat_chunks
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import (
    ChatCompletionMessageParam,
)

from taskpilot_instrument.embedded import (
    EmbeddedServer,
    Received,
    Reply,
    count_tokens,
)

pytestmark = pytest.mark.openai
#: For the fixtures ``client`` and ``aclient``.
CLIENT = {"max_retries": 0}


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
    assert ("abc", "Bearer sk-test") == (
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
