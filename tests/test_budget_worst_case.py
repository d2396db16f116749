"""What is reserved for a call is the most that it may cost, whatever the request asks for."""

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

import taskpilot_instrument as tp
from taskpilot_instrument._records import LLMCall, Most
from taskpilot_instrument._unit_prices import Rates
from taskpilot_instrument._worst_case import WorstCase
from taskpilot_instrument.embedded import EmbeddedServer, Reply
from taskpilot_instrument.patches._openai_most import most_of, text_tokens
from taskpilot_instrument.pricing import PriceBook
from taskpilot_instrument.semconv import OPERATION_CHAT, OPERATION_COMPLETION, OPERATION_EMBEDDINGS, OPERATION_IMAGE
from taskpilot_instrument.testing import capture
from taskpilot_instrument.usage import TokenUsage

HELLO: Any = [{"role": "user", "content": "hello"}]


def chat(**body: Any) -> Most:
    """Return what a chat completion may use at most."""
    return most_of({"model": "gpt-4o", "messages": HELLO} | body, OPERATION_CHAT)


def tokens(**body: Any) -> int:
    """Return the input tokens of a chat completion."""
    found = chat(**body).input_tokens
    assert found is not None
    return found


# --- input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "counted"),
    [
        # Counted by OpenAI's o200k_base, which the library does not have.
        ("The quick brown fox jumps over the lazy dog near the river bank.", 14),
        ('{"name":"create_task","arguments":{"title":"Ship it","due":"2026-11-25T10:00:00Z"}}', 29),
        ("今天天气很好，我们去公园散步，然后一起吃饭。", 15),
        ("Сегодня хорошая погода, мы идём гулять в парк.", 14),
        ("def f(x: int) -> int:\n    return x * 2  # twice\n", 19),
        ("SGVsbG8gd29ybGQsIHRoaXMgaXMgYmFzZTY0IGVuY29kZWQgdGV4dC4=", 37),
    ],
)
def test_text_is_estimated_from_above(text: str, counted: int) -> None:
    """Prose, JSON, code and encoded text have no more tokens than estimated, and not a fourth of it either."""
    assert counted <= text_tokens(text) <= 4 * counted


@pytest.mark.parametrize(
    ("text", "counted"),
    [
        ("3f2b8c1e-9d47-4a6b-8e15-0c7d2f9a4b63", 33),
        ("ዛሬ አየሩ ጥሩ ነው ወደ መናፈሻ እንሂድ", 44),
        ("😀🦊🥝🚲🧩🪐🧬🫠", 20),
        ("xqzvk wjfhp bqrtn zkvxw pqjdf", 18),
    ],
)
def test_what_tokenizers_know_badly_is_not_far_off(text: str, counted: int) -> None:
    """The estimate of ids, rare scripts and letters in no order is above half of their tokens."""
    assert counted <= 2 * text_tokens(text)


@given(st.text(max_size=300), st.text(max_size=300))
def test_more_text_is_never_less(text: str, more: str) -> None:
    """A longer text is estimated at least as high."""
    assert text_tokens(text) <= text_tokens(text + more) + 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abcde", min_size=1), inner, max_size=4),
)


@given(JSON, st.integers(0, 300))
def test_what_is_deep_inside_counts(value: Any, depth: int) -> None:
    """Content is not estimated lower because it is nested, however deeply."""
    flat = tokens(messages=[value, "x" * 3000])
    for _ in range(depth):
        value = {"content": [value]}
    assert flat <= tokens(messages=[value, "x" * 3000])


def test_every_part_of_the_request_counts() -> None:
    """Names of members, definitions of tools and formats are input too."""
    schema = {"type": "object", "properties": {f"a_long_name_of_a_field_{n}": {"type": "string"} for n in range(50)}}
    base = tokens()
    for more in (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}]},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}},
    ):
        assert tokens(**more) - base > len(json.dumps(schema)) / 5


def test_a_field_called_image_is_no_picture() -> None:
    """In the definition of a tool the names are the application's."""
    schema = {"type": "object", "properties": {"image": {"type": "string"}, "file_id": {"type": "string"}}}
    assert tokens(tools=[{"type": "function", "function": {"name": "f", "parameters": schema}}]) < 200
    assert chat(tools=[{"type": "function", "function": {"name": "f", "parameters": schema}}]).has_media is False


@pytest.mark.parametrize(("model", "at_least"), [("gpt-4o", 1_445), ("gpt-4o-mini-2024-07-18", 48_169)])
def test_pictures_cost_what_the_largest_does(model: str, at_least: int) -> None:
    """A picture is estimated by its model's count, not by the text that it travels as."""
    parts = [{"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 1_000_000}}]
    found = chat(model=model, messages=[{"role": "user", "content": parts}])
    assert found.input_tokens is not None
    assert at_least <= found.input_tokens < 60_000
    assert found.has_media


def test_sound_is_counted_by_its_length() -> None:
    """A minute of the poorest recording has 600 tokens; sound has rates of its own, in and out."""
    minute = [{"type": "input_audio", "input_audio": {"data": "A" * 80_000, "format": "mp3"}}]
    found = chat(messages=[{"role": "user", "content": minute}])
    assert found.input_tokens is not None
    assert 600 <= found.input_tokens < 1_000
    assert found.has_media
    assert chat(modalities=["text", "audio"]).has_media


def test_what_the_provider_looks_up_counts() -> None:
    """Files and searches of the provider's put content in that the request does not show."""
    assert tokens(messages=[{"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}]) > 10_000
    assert tokens(tools=[{"type": "file_search", "vector_store_ids": ["v"]}]) > 10_000


def test_what_cannot_be_read_twice_is_unknown() -> None:
    """An iterator is left to the client; the limit beside it is read all the same."""
    messages: Iterator[Any] = iter(HELLO)
    assert (None, 7) == chat(messages=messages, max_tokens=7)[:2]
    assert HELLO == list(messages)
    deep: Any = []
    for _ in range(5_000):
        deep = [deep]
    assert chat(messages=deep).input_tokens is None


# --- output -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "operation", "most"),
    [
        ({"messages": HELLO, "max_tokens": 50, "n": 3}, OPERATION_CHAT, 150),
        ({"messages": HELLO, "max_completion_tokens": 60, "max_tokens": 50}, OPERATION_CHAT, 60),
        ({"input": "x", "max_output_tokens": 70}, OPERATION_CHAT, 70),
        ({"messages": HELLO}, OPERATION_CHAT, None),
        ({"prompt": ["a", "b"], "max_tokens": 10, "best_of": 2}, OPERATION_COMPLETION, 40),
        ({"prompt": [1, 2, 3], "max_tokens": 10}, OPERATION_COMPLETION, 10),
        ({"input": ["a", "b"]}, OPERATION_EMBEDDINGS, 0),
        ({"prompt": "a cat", "n": 2}, OPERATION_IMAGE, 2 * 6_540),
    ],
)
def test_output_is_what_the_request_allows(body: dict[str, Any], operation: str, most: int | None) -> None:
    """All answers together count; embeddings have none, and None means that nothing limits them."""
    assert most == most_of(body, operation).output_tokens


def test_speech_is_as_long_as_its_text() -> None:
    """Sound that is made is limited by what is read out; how long a recording is, only the provider finds out."""
    spoken = most_of({"input": "x" * 100, "voice": "alloy"}, OPERATION_IMAGE, url="/audio/speech")
    heard = most_of({"model": "gpt-4o-transcribe"}, OPERATION_IMAGE, url="/audio/transcriptions", uploads=1)
    assert (200, True) == (spoken.output_tokens, spoken.has_media)
    assert (None, None) == heard[:2]


# --- money --------------------------------------------------------------------------------------

RATE = st.decimals(0, 200, places=4)
MEDIA = ("input_audio", "output_audio", "input_image", "output_image")


@given(
    st.fixed_dictionaries(
        {"input": RATE, "output": RATE},
        optional=dict.fromkeys(("cache_read", "cache_write", *MEDIA, "output_reasoning"), RATE),
    ),
    st.lists(st.tuples(st.integers(1, 500), RATE, RATE), max_size=3),
    st.lists(st.integers(0, 1000), min_size=8, max_size=8),
)
def test_no_usage_costs_more(
    rates: dict[str, Decimal], tiers: list[tuple[int, Decimal, Decimal]], counts: list[int]
) -> None:
    """Whatever the tokens turn out to be, they cost no more than so many tokens may at most."""
    tiers = sorted(tiers)
    book = Rates(rates, tiers=[(start, rates | {"input": a, "output": b}) for start, a, b in tiers])
    given_tokens, made, cached, written, reasoning, heard, spoken, seen = counts
    usage = TokenUsage(
        given_tokens, made, cached_tokens=cached, cache_write_tokens=written, reasoning_tokens=reasoning,
        input_audio_tokens=heard, output_audio_tokens=spoken, input_image_tokens=seen,
    )  # fmt: skip
    cost, most = book.cost(usage), book.most_pico(given_tokens, made, has_media=True)
    assert most is not None
    assert cost is None or cost <= Decimal(most).scaleb(-12)
    text = TokenUsage(given_tokens, made, cached, written, reasoning)
    cost, most = book.cost(text), book.most_pico(given_tokens, made, has_media=False)
    assert most is not None
    assert cost is None or cost <= Decimal(most).scaleb(-12)


def test_a_dearer_tier_is_reserved_where_it_is_asked_for() -> None:
    """``service_tier`` decides the price before the call as after it."""
    worst = WorstCase(PriceBook({}))
    costs = []
    for tier in ("auto", "priority"):
        llm = LLMCall("chat", "gpt-4o-mini", base_url="https://api.openai.com/v1/")
        llm.most = chat(model="gpt-4o-mini", max_tokens=50, service_tier=tier)
        costs.append(worst.pico(llm, 1))
    assert costs[0] is not None
    assert costs[1] is not None
    assert costs[0] < costs[1]


def test_embeddings_have_a_price(client: openai.OpenAI, server: EmbeddedServer) -> None:
    """A model that makes no output is not taken for one without a price."""
    budget = tp.Budget("b", "0.01", on_exceed="block", on_unpriced="block")
    with capture(budgets=[budget], ledger="memory") as captured:
        client.embeddings.create(model="text-embedding-3-small", input="hello")
        (status,) = captured.handle.budgets()
    assert len(server.requests) == 1
    assert 0 < status.spent_usd < Decimal("0.000001")


def test_what_is_free_is_let_through(client: openai.OpenAI, server: EmbeddedServer) -> None:
    """A moderation costs nothing and is held against no budget, though its model has no price."""
    server.script(Reply.raw(json.dumps({"id": "m", "model": "omni-moderation-latest", "results": []}).encode()))
    budget = tp.Budget("b", "0.000000001", on_exceed="block", on_unpriced="block")
    with capture(budgets=[budget], ledger="memory") as captured:
        client.moderations.create(input="hello")
        (status,) = captured.handle.budgets()
    assert (1, Decimal(0)) == (len(server.requests), status.spent_usd)


# --- what goes on -------------------------------------------------------------------------------


def reserved_for(worst: WorstCase, **body: Any) -> int:
    """Return what a request to the Responses API may cost, in pico-dollars."""
    llm = LLMCall("chat", "gpt-4o-mini", base_url="https://api.openai.com/v1/")
    llm.most = most_of({"model": "gpt-4o-mini", "input": "hi", "max_output_tokens": 1} | body, OPERATION_CHAT)
    found = worst.pico(llm, 1)
    assert found is not None
    return found


def test_an_earlier_response_is_input_too() -> None:
    """A request that goes on has the tokens of the response before; where that is unknown, a whole context window."""
    worst = WorstCase(PriceBook({}))
    earlier = LLMCall("chat", "gpt-4o-mini")
    earlier.response_id, earlier.usage = "resp_1", TokenUsage(1_000, 200)
    alone = reserved_for(worst)
    assert alone < 10_000_000
    assert reserved_for(worst, previous_response_id="resp_1") > 128_000 * 150_000
    worst.note(earlier)
    assert alone + 1_200 * 150_000 == reserved_for(worst, previous_response_id="resp_1")
    assert reserved_for(worst, prompt={"id": "pmpt_1"}) > 128_000 * 150_000


def test_a_conversation_grows_and_keeps_its_name() -> None:
    """Of a conversation its latest length counts."""
    worst = WorstCase(PriceBook({}))
    alone = reserved_for(worst)
    for length in (100, 5_000):
        call = LLMCall("chat", "gpt-4o-mini")
        call.most = most_of({"input": "hi", "conversation": {"id": "conv_1"}}, OPERATION_CHAT)
        call.response_id, call.usage = f"resp_{length}", TokenUsage(length, 0)
        worst.note(call)
        assert alone + length * 150_000 == reserved_for(worst, conversation="conv_1")


def test_what_is_remembered_is_bounded() -> None:
    """A process that makes responses without end does not keep them all."""
    worst = WorstCase(PriceBook({}))
    call = LLMCall("chat", "gpt-4o-mini")
    call.usage = TokenUsage(1, 1)
    for number in range(25_000):
        call.response_id = str(number)
        worst.note(call)
    assert 1 <= len(worst._kept) <= 10_000
