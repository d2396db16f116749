"""What a call asked for, and what its response's headers and refusals tell, under the conventions' names."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mock_openai import async_client, completion, httpx, sync_client

from taskpilot_instrument.embedded import EmbeddedServer, Reply
from taskpilot_instrument.patches._openai_attributes import request_attributes
from taskpilot_instrument.testing import Captured, capture

pytestmark = pytest.mark.openai

MESSAGES: Any = [{"role": "user", "content": "hello there"}]
WEATHER: Any = {
    "type": "function",
    "function": {"name": "get_weather", "description": "It says much.", "parameters": {"type": "object"}},
}
SCHEMA: Any = {"type": "json_schema", "name": "answer", "schema": {"type": "object"}}
#: What users and developers wrote must not be seen where content is not captured.
CONTENT = ("hello there", "It says much.", "Ada")

CHAT: dict[str, Any] = {
    "model": "gpt-4o-mini", "messages": MESSAGES, "temperature": 0, "top_p": 1, "max_completion_tokens": 7, "seed": 3,
    "frequency_penalty": 1, "presence_penalty": 0.5, "n": 2, "stop": ["a", "b"], "reasoning_effort": "low",
    "tools": [WEATHER, {"type": "custom", "custom": {"name": "shell", "description": "It says much."}}],
    "tool_choice": "auto", "response_format": {"type": "json_object"}, "service_tier": "flex",
}  # fmt: skip
CHAT_TAGS: dict[str, Any] = {
    "gen_ai.request.temperature": 0.0,
    "gen_ai.request.top_p": 1.0,
    "gen_ai.request.max_tokens": 7,
    "gen_ai.request.seed": 3,
    "gen_ai.request.frequency_penalty": 1.0,
    "gen_ai.request.presence_penalty": 0.5,
    "gen_ai.request.choice.count": 2,
    "gen_ai.request.stop_sequences": ("a", "b"),
    "gen_ai.request.reasoning.level": "low",
    "gen_ai.tool.definitions": '[{"type": "function", "name": "get_weather"}, {"type": "custom", "name": "shell"}]',
    "gen_ai.output.type": "json",
    "openai.request.service_tier": "flex",
}

RESPONSES: dict[str, Any] = {
    "model": "gpt-4o-mini", "input": "hello there", "temperature": 0.25, "top_p": 0.5, "max_output_tokens": 9,
    "reasoning": {"effort": "high", "summary": "auto"}, "text": {"format": SCHEMA, "verbosity": "low"},
    "previous_response_id": "resp_1", "extra_body": {"conversation": {"id": "conv_1"}},  # older clients do not know it
    "prompt": {"id": "pmpt_1", "version": "2", "variables": {"user": "Ada"}},
    "tools": [
        {"type": "function", "name": "get_weather", "parameters": {}, "strict": True},
        {"type": "web_search"},
        {"type": "mcp", "server_label": "wiki", "server_url": "https://mcp.example/?key=Ada"},
    ],
}  # fmt: skip
RESPONSES_TAGS: dict[str, Any] = {
    "gen_ai.request.temperature": 0.25,
    "gen_ai.request.top_p": 0.5,
    "gen_ai.request.max_tokens": 9,
    "gen_ai.request.reasoning.level": "high",
    "gen_ai.output.type": "json",
    "gen_ai.request.previous_response.id": "resp_1",
    "gen_ai.conversation.id": "conv_1",
    "gen_ai.prompt.name": "pmpt_1",
    "gen_ai.prompt.version": "2",
    "gen_ai.tool.definitions": (
        '[{"type": "function", "name": "get_weather"}, {"type": "web_search", "name": "web_search"}, '
        '{"type": "mcp", "name": "wiki"}]'
    ),
}

SHORT = {"chat": {"model": "gpt-4o-mini", "messages": MESSAGES}, "responses": {"model": "gpt-4o-mini", "input": "hi"}}
ASKED = {"chat": (CHAT, CHAT_TAGS), "responses": (RESPONSES, RESPONSES_TAGS)}
WAYS = ("plain", "raw", "stream", "streaming response")


def requested(tags: dict[str, Any]) -> dict[str, Any]:
    """Return the tags that speak of the request."""
    others = ("gen_ai.request.model", "gen_ai.request.stream")
    return {
        name: value
        for name, value in tags.items()
        if name.startswith(("gen_ai.request.", "gen_ai.prompt.", "gen_ai.tool.", "gen_ai.output.", "openai.request."))
        or name == "gen_ai.conversation.id"
        if name not in others
    }


def resource(client: Any, surface: str) -> Any:
    """Return what has create() on a surface."""
    return client.chat.completions if surface == "chat" else client.responses


def ask(client: openai.OpenAI, surface: str, way: str, asked: dict[str, Any]) -> None:
    """Make the call and read its answer to the end."""
    api = resource(client, surface)
    if way == "plain":
        api.create(**asked)
    elif way == "raw":
        api.with_raw_response.create(**asked).parse()
    elif way == "stream":
        list(api.create(**asked, stream=True))
    else:
        with api.with_streaming_response.create(**asked) as response:
            list(response.iter_bytes())


async def aask(client: openai.AsyncOpenAI, surface: str, way: str, asked: dict[str, Any]) -> None:
    """Make the call and read its answer to the end."""
    api = resource(client, surface)
    if way == "plain":
        await api.create(**asked)
    elif way == "raw":
        (await api.with_raw_response.create(**asked)).parse()
    elif way == "stream":
        _ = [chunk async for chunk in await api.create(**asked, stream=True)]
    else:
        async with api.with_streaming_response.create(**asked) as response:
            _ = [part async for part in response.iter_bytes()]


async def make(clients: tuple[openai.OpenAI, openai.AsyncOpenAI], mode: str, *what: Any) -> None:
    """Make the call with the sync or the async client."""
    if mode == "sync":
        ask(clients[0], *what)
    else:
        await aask(clients[1], *what)


@pytest.fixture
def clients(client: openai.OpenAI, aclient: openai.AsyncOpenAI) -> tuple[openai.OpenAI, openai.AsyncOpenAI]:
    """Both clients."""
    return client, aclient


# --- the request --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("surface", ASKED)
async def test_what_is_asked_for_is_on_the_span(
    captured: Captured, clients: tuple[openai.OpenAI, openai.AsyncOpenAI], surface: str, way: str, mode: str
) -> None:
    """Every way to make the same call gives the same tags of the request, and none of its content."""
    asked, expected = ASKED[surface]
    await make(clients, mode, surface, way, asked)
    tags = captured.tags("chat gpt-4o-mini")
    assert expected == requested(tags)
    assert (True if way == "stream" else None) == tags.get("gen_ai.request.stream")
    assert [] == [text for text in CONTENT if text in json.dumps(tags)]


def test_fractions_are_doubles_and_counts_are_ints() -> None:
    """A store that goes by the first value's type takes all the later ones."""
    found = request_attributes({"temperature": 1, "top_p": 0, "max_tokens": 5, "top_k": 40}, streamed=False)
    assert [float, float, int, int] == [type(value) for value in found.values()]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"tools": []}, {}),
        ({"tools": iter([WEATHER])}, {}),
        ({"functions": [{"name": "f"}]}, {"gen_ai.tool.definitions": '[{"type": "function", "name": "f"}]'}),
        ({"prompt": "Ada"}, {}),
        ({"prompt": ["Ada"]}, {}),
        ({"prompt": {"version": "2"}}, {}),
        ({"reasoning": {"summary": "auto"}}, {}),
        ({"reasoning": None, "temperature": None}, {}),
        ({"conversation": "conv_2"}, {"gen_ai.conversation.id": "conv_2"}),
        ({"stop": "x"}, {"gen_ai.request.stop_sequences": ("x",)}),
        ({"stop": [1]}, {}),
        ({"n": 1}, {}),
        ({"service_tier": "auto"}, {}),
        ({"modalities": ["text", "audio"]}, {"gen_ai.output.type": "speech"}),
        ({"modalities": ["text"]}, {}),
        ({"text": {"verbosity": "low"}}, {}),
        ({"response_format": "verbose_json"}, {"gen_ai.output.type": "json"}),
        ({"response_format": "b64_json"}, {"gen_ai.output.type": "image"}),
        ({"response_format": "mp3"}, {"gen_ai.output.type": "speech"}),
        ({"response_format": "hologram"}, {}),
        ({"dimensions": 256}, {"gen_ai.embeddings.dimension.count": 256}),
        ({"encoding_format": "float"}, {"gen_ai.request.encoding_formats": ("float",)}),
        ({"tool_choice": "required", "verbosity": "low"}, {}),
    ],
)
def test_only_what_is_meant_is_read(body: dict[str, Any], expected: dict[str, Any]) -> None:
    """Absent, empty and foreign values give no tag; nor does what the conventions have no name for."""
    assert expected == request_attributes(body, streamed=False)


def test_an_iterator_of_tools_is_not_touched() -> None:
    """It belongs to the client, which sends what it yields."""
    tools: Iterator[Any] = iter([WEATHER])
    request_attributes({"tools": tools}, streamed=False)
    assert [WEATHER] == list(tools)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=400),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["id", "type", "name"]), inner),
    max_leaves=8,
)
_MEMBERS = st.sampled_from(
    sorted({*CHAT, *RESPONSES, "conversation", "functions", "modalities"} - {"model", "extra_body"})
)


@given(st.dictionaries(_MEMBERS, _JSON), st.booleans())
def test_any_body_gives_plain_values_of_bounded_length(body: dict[str, Any], streamed: bool) -> None:
    """Whatever stands in a request, reading it raises nothing, and what is kept is short and what a span can hold."""
    for value in request_attributes(body, streamed=streamed).values():
        parts = value if isinstance(value, tuple) else (value,)
        assert all(type(part) in {str, int, float, bool} for part in parts)
        assert all(len(part) <= 128 * 600 for part in parts if isinstance(part, str))


def test_the_hundreds_of_tools_of_a_wild_request_are_cut() -> None:
    """The API takes 128 tools; of names as long as a novel only the beginning is kept."""
    tools = [{"type": "function", "function": {"name": "x" * 10_000}} for _ in range(1_000)]
    found = json.loads(request_attributes({"tools": tools}, streamed=False)["gen_ai.tool.definitions"])
    assert (128, 256) == (len(found), len(found[0]["name"]))


# --- the headers --------------------------------------------------------------------------------

LIMITS = {
    "x-ratelimit-limit-requests": "10000", "x-ratelimit-limit-tokens": "200000",
    "x-ratelimit-remaining-requests": "9999", "x-ratelimit-remaining-tokens": "199985",
}  # fmt: skip
LIMIT_TAGS = {f"http.response.header.{name}": (value,) for name, value in LIMITS.items()}


def limits(tags: dict[str, Any]) -> dict[str, Any]:
    """Return the tags that speak of rate limits."""
    return {name: value for name, value in tags.items() if "ratelimit" in name}


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("surface", ASKED)
async def test_what_the_provider_still_takes(
    captured: Captured,
    server: EmbeddedServer,
    clients: tuple[openai.OpenAI, openai.AsyncOpenAI],
    surface: str,
    way: str,
    mode: str,
) -> None:
    """The headers that say how much is left are tags, as lists of text; no other header is."""
    server.script(Reply("hi", headers={**LIMITS, "x-ratelimit-reset-tokens": "6ms", "set-cookie": "secret=1"}))
    await make(clients, mode, surface, way, SHORT[surface])
    tags = captured.tags("chat gpt-4o-mini")
    assert LIMIT_TAGS == limits(tags)
    assert "secret" not in json.dumps(tags)


def test_a_host_without_limits_has_no_such_tag(captured: Captured, client: openai.OpenAI) -> None:
    """What is not said is not there."""
    client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
    assert {} == limits(captured.tags("chat gpt-4o-mini"))


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_a_refused_call_says_what_was_left(captured: Captured, mode: str) -> None:
    """The limits that a 429 tells are on the span of the call that failed, with its retries and request id."""
    headers = {**LIMITS, "x-ratelimit-remaining-requests": "0", "x-request-id": "req_9", "content-type": "text/plain"}

    def answer(_request: Any) -> Any:
        return httpx.Response(429, headers=headers, content=b"slow down")

    asked: Any = {"model": "gpt-4o-mini", "messages": MESSAGES}
    with pytest.raises(openai.RateLimitError):
        if mode == "sync":
            sync_client(answer).chat.completions.create(**asked)
        else:
            await async_client(answer).chat.completions.create(**asked)
    tags = captured.tags("chat gpt-4o-mini")
    assert {**LIMIT_TAGS, "http.response.header.x-ratelimit-remaining-requests": ("0",)} == limits(tags)
    assert ("req_9",) == tags["http.response.header.x-request-id"]


def test_headers_in_any_case_and_of_any_length(captured: Captured) -> None:
    """Their names are found in any case; a value that is no number of a sane length is cut."""

    def answer(_request: Any) -> Any:
        headers = {"X-RateLimit-Remaining-Requests": "7", "x-ratelimit-limit-tokens": "9" * 1000}
        return httpx.Response(200, headers=headers | {"content-type": "application/json"}, content=completion())

    sync_client(answer).chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
    tags = limits(captured.tags("chat gpt-4o-mini"))
    assert ("7",) == tags["http.response.header.x-ratelimit-remaining-requests"]
    assert 256 == len(tags["http.response.header.x-ratelimit-limit-tokens"][0])


# --- refusals and speed -------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("surface", ASKED)
async def test_a_refusal_is_a_finish_reason(
    captured: Captured,
    server: EmbeddedServer,
    clients: tuple[openai.OpenAI, openai.AsyncOpenAI],
    surface: str,
    way: str,
    mode: str,
) -> None:
    """That the model refused is told by the finish reason, in every way to read the answer; the words are not."""
    for reply in (Reply(refusal="I would rather not"), Reply("Gladly")):
        server.script(reply)
        await make(clients, mode, surface, way, SHORT[surface])
    spans = [dict(span.attributes or {}) for span in captured.spans]
    assert [("refusal",), ("stop",)] == [tags["gen_ai.response.finish_reasons"] for tags in spans]
    assert ["success", "success"] == [tags["outcome"] for tags in spans]
    assert "rather" not in json.dumps(spans)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_each_choice_refuses_for_itself(captured: Captured, order: tuple[int, ...]) -> None:
    """Where chunks of several choices come mixed, only the choice that refused says so."""
    deltas = [
        *({"index": i, "delta": {"role": "assistant", "content": "", "refusal": None}} for i in order),
        *({"index": i, "delta": {"refusal": "No"} if i else {"content": "Yes"}} for i in order),
        *({"index": i, "delta": {}, "finish_reason": "stop"} for i in order),
    ]
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o-mini"}
    events = "".join(f"data: {json.dumps(head | {'choices': [delta]})}\n\n" for delta in deltas) + "data: [DONE]\n\n"

    def answer(_request: Any) -> Any:
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=events.encode())

    list(sync_client(answer).chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, n=2, stream=True))
    reasons = captured.tags("chat gpt-4o-mini")["gen_ai.response.finish_reasons"]
    assert tuple("refusal" if i else "stop" for i in order) == reasons


def test_a_cut_refusal_stays_cut(captured: Captured, server: EmbeddedServer, client: openai.OpenAI) -> None:
    """A reason that says more than stop is not replaced."""
    server.script(Reply(refusal="I would rather", finish_reason="length"))
    client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
    assert ("length",) == captured.tags("chat gpt-4o-mini")["gen_ai.response.finish_reasons"]


def test_time_to_first_chunk_in_both_units(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """The tag in milliseconds and the conventions' attribute in seconds tell the same; plain calls have neither."""
    names = ("time_to_first_chunk_ms", "gen_ai.response.time_to_first_chunk")
    server.script(Reply("hi", delay=0.01), Reply("hi"))
    with capture() as captured:
        list(client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, stream=True))
        client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
        streamed, plain = (dict(span.attributes or {}) for span in captured.spans)
    assert streamed[names[0]] / 1000 == pytest.approx(streamed[names[1]])
    assert 10 <= streamed[names[0]] <= streamed["latency_ms"]
    assert [] == [name for name in names if name in plain]
