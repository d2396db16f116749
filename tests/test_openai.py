"""The patched OpenAI client: each billable call is one LLM span with the provider's own numbers."""

import asyncio
from collections.abc import Callable
from typing import Any

import openai
import pydantic
import pytest
from mock_openai import httpx

import taskpilot_instrument as tp
from taskpilot_instrument.embedded import EmbeddedServer, Reply, ToolCall
from taskpilot_instrument.testing import Captured, capture

pytestmark = pytest.mark.openai

MESSAGES: Any = [{"role": "user", "content": "hello there"}]
USAGE = tp.TokenUsage(150, 50, cached_tokens=100, reasoning_tokens=20)


class Answer(pydantic.BaseModel):
    """What parse() is asked for."""

    ok: bool


def tokens(tags: dict[str, Any]) -> tuple[Any, ...]:
    """Return the four token tags."""
    return tuple(tags.get(name) for name in ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens"))


def test_chat(captured: Captured, server: EmbeddedServer, client: openai.OpenAI) -> None:
    """A chat completion is one CLIENT span with tokens, exact cost, ids, finish reasons and server."""
    server.script(Reply("hi", usage=tp.TokenUsage(150, 50)))
    client.chat.completions.create(
        model="gpt-4o-mini", messages=MESSAGES, temperature=0.2, top_p=0.5, max_tokens=7, seed=1, stop=["a", "b"]
    )
    span = captured.span("chat gpt-4o-mini")
    tags = dict(span.attributes)
    assert span.kind.name == "CLIENT"
    assert tokens(tags) == (150, 50, None, None)
    assert tags["cost_usd"] == 0.0000525
    assert tags["gen_ai.usage.input_tokens"] == 150
    assert tags["gen_ai.provider.name"] == "openai"
    assert tags["gen_ai.request.model"] == tags["model"] == "gpt-4o-mini"
    assert tags["gen_ai.response.model"] == "gpt-4o-mini-2024-07-18"
    assert tags["gen_ai.response.finish_reasons"] == ("stop",)
    assert tags["gen_ai.request.temperature"] == 0.2
    assert tags["gen_ai.request.top_p"] == 0.5
    assert tags["gen_ai.request.max_tokens"] == 7
    assert tags["gen_ai.request.seed"] == 1
    assert tags["gen_ai.request.stop_sequences"] == ("a", "b")
    assert (tags["server.address"], tags["server.port"]) == ("127.0.0.1", int(server.origin.rpartition(":")[2]))
    assert tags["http.response.header.x-request-id"] == ("req_000001",)
    assert "http.request.resend_count" not in tags
    assert "time_to_first_chunk_ms" not in tags


def test_details(captured: Captured, server: EmbeddedServer, client: openai.OpenAI) -> None:
    """Cached tokens are billed once, at their rate; reasoning tokens are part of the output."""
    server.script(Reply("hi", usage=USAGE))
    client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
    tags = captured.tags("chat gpt-4o-mini")
    assert tokens(tags) == (150, 50, 100, 20)
    assert tags["cost_usd"] == pytest.approx((50 * 0.15 + 100 * 0.075 + 50 * 0.6) / 1e6, rel=1e-12)


CALLS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "chat": ("chat gpt-4o-mini", lambda c: c.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)),
    "chat raw": (
        "chat gpt-4o-mini",
        lambda c: c.chat.completions.with_raw_response.create(model="gpt-4o-mini", messages=MESSAGES),
    ),
    "responses": ("chat gpt-4o-mini", lambda c: c.responses.create(model="gpt-4o-mini", input="hi")),
    "responses raw": (
        "chat gpt-4o-mini",
        lambda c: c.responses.with_raw_response.create(model="gpt-4o-mini", input="hi"),
    ),
    "completions": (
        "text_completion gpt-3.5-turbo-instruct",
        lambda c: c.completions.create(model="gpt-3.5-turbo-instruct", prompt="hi"),
    ),
    "post": (
        "chat gpt-4o-mini",
        lambda c: c.post("/chat/completions", cast_to=object, body={"model": "gpt-4o-mini", "messages": MESSAGES}),
    ),
    "post response": (
        "chat gpt-4o-mini",
        lambda c: c.post(
            "/chat/completions", cast_to=httpx.Response, body={"model": "gpt-4o-mini", "messages": MESSAGES}
        ),
    ),
    "post text": (
        "chat gpt-4o-mini",
        lambda c: c.post("chat/completions", cast_to=str, body={"model": "gpt-4o-mini", "messages": MESSAGES}),
    ),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_surfaces(
    captured: Captured, server: EmbeddedServer, client: openai.OpenAI, aclient: openai.AsyncOpenAI, name: str, mode: str
) -> None:
    """Every surface gives one span with the same usage, sync and async, and the type that it always had."""
    server.script(Reply("hi", usage=USAGE), Reply("hi", usage=USAGE))
    span_name, call = CALLS[name]
    result = call(client) if mode == "sync" else await call(aclient)
    assert captured.names() == [span_name]
    assert tokens(captured.tags(span_name)) == (150, 50, 100, 20)
    captured.handle.uninstrument()
    bare = call(client) if mode == "sync" else await call(aclient)
    assert type(result) is type(bare)


async def test_embeddings(captured: Captured, client: openai.OpenAI, aclient: openai.AsyncOpenAI) -> None:
    """Embeddings have input tokens and no output tokens, and the vectors stay what they were."""
    one = client.embeddings.create(model="text-embedding-3-small", input="hello")
    two = await aclient.embeddings.create(model="text-embedding-3-small", input=["hello"])
    assert one.data[0].embedding == two.data[0].embedding
    tags = [dict(span.attributes) for span in captured.spans]
    assert [tag["input_tokens"] for tag in tags] == [one.usage.prompt_tokens] * 2
    assert all("output_tokens" not in tag and tag["cost_usd"] > 0 for tag in tags)
    assert captured.names() == ["embeddings text-embedding-3-small"] * 2


def test_parse(captured: Captured, server: EmbeddedServer, client: openai.OpenAI) -> None:
    """parse() still parses, on chat and on responses."""
    server.script(Reply('{"ok": true}', usage=USAGE), Reply('{"ok": true}', usage=USAGE))
    chat = client.chat.completions.parse(model="gpt-4o-mini", messages=MESSAGES, response_format=Answer)
    response = client.responses.parse(model="gpt-4o-mini", input="hi", text_format=Answer)
    assert chat.choices[0].message.parsed == response.output_parsed == Answer(ok=True)
    assert [tokens(dict(span.attributes)) for span in captured.spans] == [(150, 50, 100, 20)] * 2


def test_tool_calls_and_length(captured: Captured, server: EmbeddedServer, client: openai.OpenAI) -> None:
    """Finish reasons are in one vocabulary for chat and responses."""
    call = ToolCall("create_task", {"title": "x"})
    server.script(
        Reply(tool_calls=(call,)),
        Reply(tool_calls=(call,)),
        Reply("x", finish_reason="length"),
        Reply("x", finish_reason="length"),
    )
    for _ in range(2):
        client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
        client.responses.create(model="gpt-4o-mini", input="hi")
    reasons = [span.attributes["gen_ai.response.finish_reasons"] for span in captured.spans]
    assert reasons == [("tool_calls",), ("tool_calls",), ("length",), ("length",)]


def test_failed_response_is_an_error(captured: Captured, server: EmbeddedServer, client: openai.OpenAI) -> None:
    """A response whose status is failed is an error, though the HTTP call succeeded."""
    server.script(Reply("x", failure="The server had an error"))
    client.responses.create(model="gpt-4o-mini", input="hi")
    span = captured.span("chat gpt-4o-mini")
    assert span.attributes["outcome"] == "error"
    assert span.attributes["error.type"]
    assert not span.status.is_ok


def test_azure(captured: Captured, server: EmbeddedServer) -> None:
    """Azure's client is seen, named as such, and priced by the response's model."""
    server.script(Reply("hi", usage=tp.TokenUsage(150, 50), model="gpt-4o-mini-2024-07-18"))
    with openai.AzureOpenAI(api_key="k", azure_endpoint=server.origin, api_version="2024-10-21") as azure:
        azure.chat.completions.create(model="my-deployment", messages=MESSAGES)
    tags = captured.tags("chat my-deployment")
    assert tags["gen_ai.provider.name"] == "azure.ai.openai"
    assert tags["cost_usd"] == pytest.approx(0.0000525)


def test_bound_method_taken_before_patching(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """Clients and bound methods made before instrument() are seen, and not any more after it."""
    create = client.chat.completions.create
    with capture() as captured:
        create(model="gpt-4o-mini", messages=MESSAGES)
        assert len(captured.spans) == 1
    create(model="gpt-4o-mini", messages=MESSAGES)
    assert len(captured.spans) == 1


def test_retries(captured: Captured, server: EmbeddedServer, client: openai.OpenAI) -> None:
    """A call that was retried is one span that says how often."""
    server.script(Reply.error(429, headers={"retry-after-ms": "1"}), Reply.error(500, headers={"retry-after-ms": "1"}))
    client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
    assert captured.tags("chat gpt-4o-mini")["http.request.resend_count"] == 2
    assert len(server.requests) == 3


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_errors(
    captured: Captured, server: EmbeddedServer, client: openai.OpenAI, aclient: openai.AsyncOpenAI, mode: str
) -> None:
    """A refused call raises what it always raised, and is an error span with type, retries and request id."""
    server.script(Reply.error(404, "no such model"))
    with pytest.raises(openai.NotFoundError, match="no such model"):
        if mode == "sync":
            client.chat.completions.create(model="nope", messages=MESSAGES)
        else:
            await aclient.chat.completions.create(model="nope", messages=MESSAGES)
    span = captured.span("chat nope")
    assert not span.status.is_ok
    assert span.attributes["error.type"] == "NotFoundError"
    assert span.attributes["http.response.header.x-request-id"] == ("req_000001",)
    assert "cost_usd" not in span.attributes


def test_connection_error(captured: Captured) -> None:
    """A server that is not there is an error span."""
    client = openai.OpenAI(api_key="k", base_url="http://127.0.0.1:9/v1", max_retries=0)
    with pytest.raises(openai.APIConnectionError):
        client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
    assert captured.tags("chat gpt-4o-mini")["error.type"] == "APIConnectionError"


async def test_cancelled_call(captured: Captured, server: EmbeddedServer, aclient: openai.AsyncOpenAI) -> None:
    """A call whose task is cancelled is a cancelled span, and asyncio.timeout works."""
    server.script(Reply("late", delay=5))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await aclient.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
    assert captured.tags("chat gpt-4o-mini")["outcome"] == "cancelled"


def test_unknown_model_is_unknown(captured: Captured, server: EmbeddedServer, client: openai.OpenAI) -> None:
    """A model without a price has no cost tag, is counted, and lowers the cost coverage."""
    server.script(Reply("x", model="house-model-1", usage=USAGE))
    client.chat.completions.create(model="house-model-1", messages=MESSAGES)
    tags = captured.tags("chat house-model-1")
    assert "cost_usd" not in tags
    assert tags["cost_source"] == "unknown"
    assert 'taskpilot_llm_unpriced_calls_total{model="house-model-1"} 1.0' in captured.prometheus_text
    assert captured.golden_signals().cost_coverage == 0.0


def test_request_is_not_touched(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """Headers, body and the caller's own objects are the same with and without us; no traceparent is sent."""
    headers, extra = {"x-mine": "1"}, {"top_k": 3}

    def send() -> Any:
        client.chat.completions.create(
            model="gpt-4o-mini",
            messages=(message for message in MESSAGES),  # an iterator is legal, and must arrive whole
            extra_headers=headers,
            extra_body=extra,
        )
        request = server.requests[-1]
        return {k: v for k, v in request.headers.items() if "idempotency" not in k}, request.body

    bare = send()
    with capture(include_usage=True, capture_content=True), tp.workflow("w"):
        observed = send()
    assert observed == bare
    assert bare[1]["messages"] == MESSAGES
    assert (headers, extra) == ({"x-mine": "1"}, {"top_k": 3})
    assert "traceparent" not in observed[0]


def test_rolls_up(captured: Captured, server: EmbeddedServer, client: openai.OpenAI) -> None:
    """Agent and workflow carry the tokens and the exact cost of everything beneath them; metrics count once."""
    server.script(*[Reply("x", usage=tp.TokenUsage(150, 50))] * 3)

    @tp.observed_agent
    def inner() -> None:
        client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)

    @tp.observed_agent
    def outer() -> None:
        client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
        inner()

    with tp.workflow("w"):
        outer()
        client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
    found = {
        name: (tags["input_tokens"], tags["output_tokens"], tags["cost_usd"])
        for name in ("inner.execute", "outer.execute", "workflow.run")
        for tags in [captured.tags(name)]
    }
    assert found == {
        "inner.execute": (150, 50, 0.0000525),
        "outer.execute": (300, 100, 0.000105),
        "workflow.run": (450, 150, 0.0001575),
    }
    assert captured.tags("outer.execute")["model"] == "gpt-4o-mini"
    assert captured.metrics.get_counter("llm.cost.agent.inner") == 0.0000525
    assert captured.metrics.get_counter("llm.cost.agent.outer") == 0.0000525
    assert captured.metrics.get_counter("llm.cost.total") == 0.0001575
    assert captured.metrics.get_counter("llm.tokens.total.all") == 600


def test_content_only_on_request(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """Prompts and answers are nowhere unless asked for; then they are redacted and cut."""
    secret: Any = [{"role": "user", "content": "my key is sk-abcdefghijklmnopqrstuvwxyz123456 " + "x" * 10_000}]
    for content in (False, True):
        server.script(Reply("the answer"))
        with capture(capture_content=content, content_limit=200) as captured:
            client.chat.completions.create(model="gpt-4o-mini", messages=secret)
            written = str([dict(span.attributes) for span in captured.spans]) + str(captured.logs)
        assert "sk-abc" not in written
        assert ("the answer" in written) == content
        assert ("my key is" in written) == content
        assert len(written) < 4000


def test_keys_are_nowhere(captured: Captured, server: EmbeddedServer) -> None:
    """Neither the API key nor headers of the caller appear on spans, logs or metrics."""
    key = "sk-" + "secret" * 4
    server.script(Reply.error(401, f"Incorrect API key provided: {key}"))
    with openai.OpenAI(api_key=key, base_url=server.url) as client, pytest.raises(openai.AuthenticationError):
        client.chat.completions.create(
            model="gpt-4o-mini", messages=MESSAGES, extra_headers={"authorization": "Bearer tok-12345678"}
        )
    span = captured.span("chat gpt-4o-mini")
    written = str(span.to_json()) + str(captured.logs) + captured.prometheus_text
    assert "secretsecret" not in written
    assert "tok-12345678" not in written


def test_other_requests_are_not_ours(captured: Captured, client: openai.OpenAI) -> None:
    """Requests that nobody is billed for make no span."""
    client.models.list()
    with pytest.raises(openai.NotFoundError):
        client.get("/chat/completions", cast_to=object)
    assert captured.spans == []
