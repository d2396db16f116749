"""Usage is read from every shape that OpenAI and its look-alikes send, and nothing else is made of it."""

import math
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskpilot_instrument.usage import TokenUsage, read_usage, seconds_of, usage_from, usage_from_details

CHAT = {
    "prompt_tokens": 1200,
    "completion_tokens": 340,
    "total_tokens": 1540,
    "prompt_tokens_details": {"cached_tokens": 1024, "audio_tokens": 30, "cache_write_tokens": 100, "image_tokens": 20},
    "completion_tokens_details": {
        "reasoning_tokens": 128,
        "audio_tokens": 40,
        "accepted_prediction_tokens": 7,
        "rejected_prediction_tokens": 3,
    },
}
RESPONSES = {
    "input_tokens": 75,
    "input_tokens_details": {"cached_tokens": 25, "cache_write_tokens": 5},
    "output_tokens": 60,
    "output_tokens_details": {"reasoning_tokens": 45},
    "total_tokens": 135,
}

SHAPES = [
    pytest.param(CHAT, TokenUsage(1200, 340, 1024, 100, 128, 30, 40, 0, 20), id="chat"),
    pytest.param(RESPONSES, TokenUsage(75, 60, 25, 5, 45), id="responses"),
    pytest.param({"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}, TokenUsage(9, 4), id="completions"),
    pytest.param({"prompt_tokens": 8, "total_tokens": 8}, TokenUsage(8, None), id="embeddings"),
    pytest.param(
        {
            "input_tokens": 50,
            "input_tokens_details": {"image_tokens": 40, "text_tokens": 10},
            "output_tokens": 500,
            "output_tokens_details": {"image_tokens": 490, "text_tokens": 10},
        },
        TokenUsage(50, 500, input_image_tokens=40, output_image_tokens=490),
        id="images",
    ),
    pytest.param(
        {
            "type": "tokens",
            "input_tokens": 14,
            "input_token_details": {"audio_tokens": 14, "text_tokens": 0},
            "output_tokens": 45,
        },
        TokenUsage(14, 45, input_audio_tokens=14),
        id="transcription",
    ),
    pytest.param(
        {
            "input_tokens": 132,
            "input_token_details": {
                "text_tokens": 99,
                "audio_tokens": 23,
                "image_tokens": 10,
                "cached_tokens": 64,
                "cached_tokens_details": {"text_tokens": 50, "audio_tokens": 9, "image_tokens": 5},
            },
            "output_tokens": 121,
            "output_token_details": {"text_tokens": 30, "audio_tokens": 91},
        },
        TokenUsage(
            132,
            121,
            64,
            input_audio_tokens=23,
            output_audio_tokens=91,
            cached_audio_tokens=9,
            input_image_tokens=10,
            cached_image_tokens=5,
            cached_text_tokens=50,
        ),
        id="realtime",
    ),
    pytest.param(
        {
            "input_tokens": 90,
            "output_tokens": 2,
            "input_token_details": {
                "cached_tokens": 60,
                "audio_tokens": 50,
                "cached_tokens_details": {"audio_tokens": 40},
            },
        },
        TokenUsage(90, 2, 60, 0, 0, 50, 0, 40),
        id="cached audio",
    ),
    pytest.param(
        {"prompt_tokens": 5, "completion_tokens": 6, "prompt_tokens_details": None, "completion_tokens_details": None},
        TokenUsage(5, 6),
        id="null details",
    ),
    pytest.param(
        {"prompt_tokens": 30, "completion_tokens": 1, "prompt_cache_hit_tokens": 20, "prompt_cache_miss_tokens": 10},
        TokenUsage(30, 1, 20),
        id="cache hits beside the counts",
    ),
    pytest.param(
        {"prompt_tokens": 30, "completion_tokens": 1, "total_tokens": 31, "cached_tokens": 20},
        TokenUsage(30, 1, 20),
        id="cached tokens beside the counts",
    ),
    pytest.param(
        {"input_tokens": 3, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 40, "output_tokens": 9},
        TokenUsage(143, 9, 100, 40),
        id="input that excludes the cache",
    ),
    pytest.param(
        {
            "prompt_tokens": 143,
            "cache_read_input_tokens": 100,
            "cache_creation_input_tokens": 40,
            "completion_tokens": 9,
        },
        TokenUsage(143, 9, 100, 40),
        id="the same through a gateway that added it up",
    ),
    pytest.param(
        {
            "input_tokens": 3,
            "cache_creation_input_tokens": 40,
            "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 30},
            "output_tokens": 9,
        },
        TokenUsage(43, 9, cache_write_tokens=40, long_write_tokens=30),
        id="writes that are kept for an hour",
    ),
    pytest.param(
        {
            "input_tokens": 75,
            "input_tokens_details": {
                "cached_tokens": 0,
                "cache_write_tokens": 50,
                "cache_write_tokens_details": {"ttl_12h_tokens": 20, "ttl_30m_tokens": 30},
            },
            "output_tokens": 60,
        },
        TokenUsage(75, 60, cache_write_tokens=50, long_write_tokens=20),
        id="writes that are kept for twelve hours",
    ),
    pytest.param(
        {"input_tokens": 143, "input_tokens_details": {"cached_tokens": 100}, "cache_read_input_tokens": 100},
        TokenUsage(143, None, 100),
        id="details win over the keys beside them",
    ),
    pytest.param(
        {
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "total_tokens": 95,
            "completion_tokens_details": {"reasoning_tokens": 80},
        },
        TokenUsage(10, 85, reasoning_tokens=80),
        id="reasoning counted beside the output",
    ),
    pytest.param(
        {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 105},
        TokenUsage(9, 96),
        id="thoughts that only the total tells of",
    ),
    pytest.param(
        {
            "prompt_tokens": 10,
            "completion_tokens": 85,
            "total_tokens": 95,
            "completion_tokens_details": {"reasoning_tokens": 80},
        },
        TokenUsage(10, 85, reasoning_tokens=80),
        id="reasoning counted within the output",
    ),
    pytest.param(
        {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 3}, TokenUsage(10, 5), id="a total that is wrong"
    ),
    pytest.param(
        {"prompt_tokens": 57, "completion_tokens": 17, "cost": 7.2e-05, "is_byok": False},
        TokenUsage(57, 17),
        id="a host that adds its own price",
    ),
    pytest.param({"prompt_tokens": 0, "completion_tokens": 0}, TokenUsage(0, 0), id="zero is known"),
    pytest.param({"completion_tokens": 3}, TokenUsage(None, 3), id="output alone"),
    pytest.param({"completion_tokens": 3, "total_tokens": 9}, TokenUsage(None, 3), id="output and a total"),
    pytest.param({"prompt_tokens": None, "input_tokens": 4}, TokenUsage(4, None), id="null beside a count"),
]


@pytest.mark.parametrize(("usage", "expected"), SHAPES)
def test_each_shape_is_read_from_json(usage: dict[str, Any], expected: TokenUsage) -> None:
    """The JSON of a response, of a stream event around a response, and the usage itself say the same."""
    assert expected == usage_from(usage)
    assert expected == read_usage({"id": "x", "usage": usage})
    assert expected == read_usage({"type": "response.completed", "response": {"usage": usage}})


def _namespace(value: object) -> object:
    return SimpleNamespace(**{k: _namespace(v) for k, v in value.items()}) if isinstance(value, dict) else value


@pytest.mark.parametrize(("usage", "expected"), SHAPES)
def test_each_shape_is_read_from_attributes(usage: dict[str, Any], expected: TokenUsage) -> None:
    """Objects that only have attributes say what their JSON says."""
    assert expected == read_usage(_namespace({"usage": usage}))


@pytest.mark.openai
@pytest.mark.parametrize(("usage", "expected"), SHAPES)
def test_each_shape_is_read_from_the_parsed_completion(usage: dict[str, Any], expected: TokenUsage) -> None:
    """The client's own models say what the JSON says, in keys that they do not declare too."""
    types = pytest.importorskip("openai.types.chat")
    whole = types.ChatCompletion.construct(id="x", choices=[], created=1, model="m", usage=usage)
    chunk = types.ChatCompletionChunk.construct(id="x", choices=[], created=1, model="m", usage=usage)

    assert expected == read_usage(whole)
    assert expected == read_usage(chunk)


@pytest.mark.openai
@pytest.mark.parametrize(("usage", "expected"), SHAPES)
def test_each_shape_is_read_from_the_parsed_response_and_its_last_event(
    usage: dict[str, Any], expected: TokenUsage
) -> None:
    """An event of the Responses API carries its usage one level deeper."""
    types = pytest.importorskip("openai.types.responses")
    response = types.Response.construct(id="x", output=[], usage=usage)
    event = types.ResponseCompletedEvent.construct(type="response.completed", sequence_number=1, response=response)

    assert expected == read_usage(response)
    assert expected == read_usage(event)


@pytest.mark.parametrize(
    "response",
    [
        None,
        "plain text",
        b"bytes",
        [],
        {},
        {"usage": None},
        {"usage": {}},
        {"usage": "12"},
        {"usage": [1, 2]},
        {"response": None},
        {"response": {"usage": None}},
        {"usage": {"type": "duration", "seconds": 12.5}},
        {"usage": {"total_tokens": 7}},
        {"usage": {"prompt_tokens_details": {"cached_tokens": 3}}},
        {"usage": {"prompt_tokens": None, "completion_tokens": None, "total_tokens": None}},
        SimpleNamespace(usage=None),
    ],
    ids=repr,
)
def test_no_token_count_is_no_usage(response: object) -> None:
    """What tells neither input nor output tokens is unknown, not zero."""
    assert read_usage(response) is None


@pytest.mark.parametrize("value", [-1, 12.0, 12.5, "12", True, False, float("nan"), [], {}, None, 10**30], ids=repr)
def test_what_is_no_count_is_unknown(value: object) -> None:
    """Floats, strings, booleans, negative numbers and what no call can have are never taken for tokens."""
    usage = {
        "prompt_tokens": value,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": value, "audio_tokens": value, "cached_tokens_details": value},
        "completion_tokens_details": {"reasoning_tokens": value, "audio_tokens": value},
    }

    assert TokenUsage(None, 5) == usage_from(usage)


def test_a_chunk_without_usage_is_told_from_one_with_it() -> None:
    """All but the last chunk of a stream say null."""
    assert [None, TokenUsage(1, 2)] == [
        read_usage({"choices": [], "usage": usage}) for usage in (None, {"prompt_tokens": 1, "completion_tokens": 2})
    ]


def test_an_object_that_answers_anything_is_not_believed() -> None:
    """A stand-in object whose every attribute exists yields only the counts that it was given."""

    class Anything:
        def __getattr__(self, name: str) -> object:
            if name.startswith("__"):
                raise AttributeError(name)
            return Anything()

    usage = Anything()
    usage.prompt_tokens = 11  # type: ignore[attr-defined]
    usage.completion_tokens = 4  # type: ignore[attr-defined]

    assert TokenUsage(11, 4) == read_usage(SimpleNamespace(usage=usage))
    assert read_usage(Anything()) is None


NAMES = st.sampled_from(
    [
        "usage", "response", "prompt_tokens", "completion_tokens", "input_tokens", "output_tokens", "total_tokens",
        "prompt_tokens_details", "completion_tokens_details", "input_tokens_details", "output_tokens_details",
        "cached_tokens", "cache_write_tokens", "audio_tokens", "image_tokens", "reasoning_tokens",
        "cached_tokens_details", "prompt_cache_hit_tokens", "cache_read_input_tokens", "cache_creation_input_tokens",
    ]
)  # fmt: skip
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3))
JSON = st.recursive(
    LEAVES, lambda inner: st.one_of(st.dictionaries(NAMES, inner, max_size=8), st.lists(inner, max_size=2))
)


@given(JSON)
def test_any_json_gives_counts_or_nothing(body: object) -> None:
    """Whatever a host sends, the reader does not raise, and what it returns are counts."""
    for reader in (read_usage, usage_from):
        usage = reader(body)
        if usage is not None:
            known = [count for count in usage if count is not None]
            assert all(type(count) is int and count >= 0 for count in known)
            assert None not in usage[2:]
            assert (None, None) != usage[:2]


COUNT = st.integers(min_value=0, max_value=10**9)


@given(COUNT, COUNT, COUNT, COUNT, st.sampled_from([("prompt", "completion"), ("input", "output")]))
def test_counts_are_reported_as_they_were_sent(
    given_: int, made: int, cached: int, reasoning: int, words: tuple[str, str]
) -> None:
    """Input, output, cached and reasoning tokens are the provider's numbers, whichever API sent them."""
    usage = usage_from(
        {
            f"{words[0]}_tokens": given_,
            f"{words[1]}_tokens": made,
            f"{words[0]}_tokens_details": {"cached_tokens": cached},
            f"{words[1]}_tokens_details": {"reasoning_tokens": reasoning},
            "total_tokens": given_ + made,
        }
    )

    assert TokenUsage(given_, made, cached, reasoning_tokens=reasoning) == usage


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (6.25, "6.25"),
        (7, "7"),
        (0, "0"),
        (-1, None),
        (True, None),
        ("7", None),
        (None, None),
        (math.inf, None),
        (math.nan, None),
    ],
)
def test_seconds_are_a_number_that_is_not_negative(seconds: object, expected: str | None) -> None:
    """Usage by duration tells how long the sound was, exactly as it was written."""
    assert (None if expected is None else Decimal(expected)) == seconds_of({"type": "duration", "seconds": seconds})


# --- an agent framework's -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        (
            {
                "input_token_count": 150,
                "output_token_count": 50,
                "cache_read_input_token_count": 100,
                "cache_creation_input_token_count": 20,
                "reasoning_output_token_count": 30,
            },
            TokenUsage(150, 50, 100, 20, 30),
        ),
        (
            {
                "input_token_count": 30,
                "output_token_count": 50,
                "anthropic.cache_read_input_tokens": 100,
                "cache_read_input_token_count": 100,
                "anthropic.cache_creation_input_tokens": 20,
                "cache_creation_input_token_count": 20,
            },
            TokenUsage(150, 50, 100, 20),
        ),
        ({"input_token_count": 150, "output_token_count": None}, TokenUsage(150, None)),
        ({"input_token_count": 0, "output_token_count": 0}, TokenUsage(0, 0)),
        ({"input_token_count": -1, "output_token_count": True}, None),
        ({"input_token_count": "150", "output_token_count": 1.5}, None),
        ({"total_token_count": 200}, None),
        ({}, None),
        (None, None),
    ],
)
def test_an_agent_frameworks_usage_is_read(details: dict[str, Any] | None, expected: TokenUsage | None) -> None:
    """As mapping or object; what is no count is unknown, and Anthropic's input is completed by what was cached."""
    assert expected == usage_from_details(details)
    assert expected == usage_from_details(None if details is None else SimpleNamespace(**details))
