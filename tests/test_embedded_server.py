"""The embedded server, seen through the real openai client over a real socket."""

import json
from typing import Any

import openai
import pytest
from embedded_calls import ASK, MODEL, chat, chat_chunks
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import (
    ChatCompletionStreamOptionsParam,
)

from taskpilot_instrument.embedded import (
    EmbeddedServer,
    Reply,
    ToolCall,
)
from taskpilot_instrument.usage import TokenUsage

pytestmark = pytest.mark.openai
#: For the fixtures ``client`` and ``aclient``.
CLIENT = {"max_retries": 0}


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
