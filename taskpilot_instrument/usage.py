"""Token usage as the provider reported it.

Readers are pure: they take what the OpenAI client parsed, or the JSON it parsed it from, and never
trust a value: a count is an ``int`` that is not negative, anything else is unknown.
"""

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final, NamedTuple, Protocol

#: What is billed otherwise than by the token, in the words of the price table.
WEB_SEARCHES: Final = "web_searches"
STORAGE_SEARCHES: Final = "storage_searches"
CODE_CALLS: Final = "code_calls"
IMAGE_GENERATIONS: Final = "image_generations"
INPUT_CHARACTERS: Final = "input_characters"
AUDIO_SECONDS: Final = "audio_seconds"


class TokenUsage(NamedTuple):
    """Token counts of one response, as the provider gave them.

    ``input_tokens`` includes the cached ones, ``output_tokens`` the reasoning ones, also where the provider counts them
    beside. None means that the
    provider did not say; the details default to zero because providers leave them out when they are.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    input_audio_tokens: int = 0
    output_audio_tokens: int = 0
    cached_audio_tokens: int = 0
    input_image_tokens: int = 0
    output_image_tokens: int = 0
    cached_image_tokens: int = 0
    #: What of the cached tokens is text, where the provider says so: it then knows what the others are, too.
    cached_text_tokens: int = 0
    #: What of the tokens written to the cache is kept longer than usual there, which costs more: an hour, or twelve.
    long_write_tokens: int = 0


class Beside:
    """What the provider bills beside a call's own tokens, or in place of them.

    :param units: how many of what, by the names above.
    :param models: other models that worked for the call, each with its tokens, such as the one that draws a picture.
    """

    __slots__ = ("models", "units", "usd")

    def __init__(
        self, units: Mapping[str, int | Decimal], models: tuple[tuple[str | None, TokenUsage], ...] = ()
    ) -> None:
        self.units = units
        self.models = models
        #: What of it has a price, once the call was priced.
        self.usd: Decimal | None = None


class Fields(Protocol):
    """What answers for a value by name, with None for an absent one; a dictionary does."""

    def get(self, name: str, /) -> object:
        """Return the value, None where there is none."""


_NO_PYDANTIC: Final = object()
#: No count of tokens, also of a batch of many calls, is beyond it; a host's slip could be, and no ledger would take it.
_MOST: Final = 10**11
_READ_BESIDE: Final = ("cache_read_input_tokens", "prompt_cache_hit_tokens", "cached_tokens")
#: Beside these keys, agent-framework's client of Anthropic leaves out of the input what the cache had part in.
_LEFT_OUT: Final = ("anthropic.cache_read_input_tokens", "anthropic.cache_creation_input_tokens")


def read_usage(response: object) -> TokenUsage | None:
    """Read the usage of a response, a chunk or an event, parsed or as plain JSON.

    :param response: what carries ``usage``, or a ``response`` that does (events of the Responses API).
    :return: None where it carries none, or none that is measured in tokens.
    """
    return usage_in(fields_of(answer_in(response)))


def answer_in(given: Any) -> Any:
    """Return what carries the usage: what is given, or the ``response`` in it, as events of the Responses API have."""
    fields = fields_of(given)
    if not fields.get("usage"):
        inner = fields.get("response")
        if inner is not None and fields_of(inner).get("usage"):
            return inner
    return given


def usage_in(fields: Fields) -> TokenUsage | None:
    """Read the usage of an answer of which the fields are known."""
    usage = fields.get("usage")
    return usage_from(usage) if usage else None


def usage_from(usage: object) -> TokenUsage | None:
    """Read a ``usage`` object itself.

    Chat completions, legacy completions and embeddings say prompt and completion; the Responses API,
    images and transcriptions say input and output.

    :param usage: the object, or the dictionary of the JSON.
    :return: None where neither input nor output tokens are known (as in usage by duration).
    """
    fields = fields_of(usage)
    given = _count(fields.get("prompt_tokens"))
    says_prompt = given is not None
    if not says_prompt:
        given = _count(fields.get("input_tokens"))
    made = _count(fields.get("completion_tokens"))
    if made is None:
        made = _count(fields.get("output_tokens"))
    if given is None and made is None:
        return None

    details = fields.get("prompt_tokens_details")
    if details is None and (details := fields.get("input_tokens_details")) is None:
        details = fields.get("input_token_details")  # transcriptions and realtime sessions spell it so
    if details is None:
        cached, written, written_long = _cache_beside_details(fields)
        audio_in = audio_cached = image_in = image_cached = text_cached = 0
        if given is not None and not says_prompt:
            # Anthropic's own shape: input_tokens leaves out what the cache took part in. Gateways that say
            # prompt_tokens beside the same keys have added it up already.
            given += cached + written
    else:
        cached, written, written_long, audio_in, audio_cached, image_in, image_cached, text_cached = _input_details(
            fields_of(details)
        )

    details = fields.get("completion_tokens_details")
    if details is None and (details := fields.get("output_tokens_details")) is None:
        details = fields.get("output_token_details")  # realtime sessions spell it so
    reasoning, audio_out, image_out = (0, 0, 0) if details is None else _output_details(fields_of(details))
    if given is not None and made is not None:
        total = _count(fields.get("total_tokens"))
        if total is not None and total > given + made:
            # x.ai counts reasoning beside the output, and Gemini, in the shape of OpenAI, tells of it only here.
            made = total - given
    return TokenUsage._make(
        (
            given, made, cached, written, reasoning, audio_in, audio_out, audio_cached, image_in, image_out,
            image_cached, text_cached, written_long,
        )
    )  # fmt: skip


def usage_from_details(details: object) -> TokenUsage | None:
    """Read the ``usage_details`` of Microsoft's agent-framework.

    :return: None where neither input nor output tokens are known.
    """
    if not details:
        return None
    fields = fields_of(details)
    given, made = _count(fields.get("input_token_count")), _count(fields.get("output_token_count"))
    if given is None and made is None:
        return None
    cached = _detail(fields.get("cache_read_input_token_count"))
    written = _detail(fields.get("cache_creation_input_token_count"))
    if given is not None and any(fields.get(key) is not None for key in _LEFT_OUT):
        given += cached + written
    reasoning = _detail(fields.get("reasoning_output_token_count"))
    return TokenUsage(given, made, cached, written, reasoning)


def seconds_of(usage: object) -> Decimal | None:
    """Return the length of the audio where that is what the usage tells; None where it is not."""
    seconds = fields_of(usage).get("seconds")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
        return None
    return Decimal(repr(seconds))


def _input_details(fields: Fields) -> tuple[int, int, int, int, int, int, int, int]:
    """Return cached, cache write, long write, audio, cached audio, image, cached image and cached text tokens."""
    cached = written = written_long = audio = audio_cached = image = image_cached = text_cached = 0
    # Nearly always absent or zero, and then not worth a call.
    if value := fields.get("cached_tokens"):
        cached = _detail(value)
        if value := fields.get("cached_tokens_details"):
            inner = fields_of(value)
            audio_cached = _detail(inner.get("audio_tokens"))
            image_cached = _detail(inner.get("image_tokens"))
            text_cached = _detail(inner.get("text_tokens"))
    if value := fields.get("cache_write_tokens"):
        written = _detail(value)
        if value := fields.get("cache_write_tokens_details"):
            written_long = _detail(fields_of(value).get("ttl_12h_tokens"))
    if value := fields.get("audio_tokens"):
        audio = _detail(value)
    if value := fields.get("image_tokens"):
        image = _detail(value)
    return cached, written, written_long, audio, audio_cached, image, image_cached, text_cached


def _output_details(fields: Fields) -> tuple[int, int, int]:
    """Return reasoning, audio and image tokens."""
    reasoning = audio = image = 0
    if value := fields.get("reasoning_tokens"):
        reasoning = _detail(value)
    if value := fields.get("audio_tokens"):
        audio = _detail(value)
    if value := fields.get("image_tokens"):
        image = _detail(value)
    return reasoning, audio, image


def _cache_beside_details(fields: Fields) -> tuple[int, int, int]:
    """Return cache reads, writes and long writes where there are no details.

    So do Anthropic and gateways to it, older DeepSeek, and OpenAI's evaluations and Moonshot.
    """
    read = written = written_long = 0
    # Nearly always absent, too.
    for name in _READ_BESIDE:
        if not read and (value := fields.get(name)):
            read = _detail(value)
    if value := fields.get("cache_creation_input_tokens"):
        written = _detail(value)
        if value := fields.get("cache_creation"):
            written_long = _detail(fields_of(value).get("ephemeral_1h_input_tokens"))
    return read, written, written_long


def _count(value: object) -> int | None:
    # type() and not isinstance(): True is an int too, but nobody's count.
    return value if type(value) is int and 0 <= value <= _MOST else None


def _detail(value: object) -> int:
    return value if type(value) is int and 0 < value <= _MOST else 0


class _Attributes:
    """The fields of an object that is neither a dictionary nor a pydantic model."""

    __slots__ = ("_holder",)

    def __init__(self, holder: object) -> None:
        self._holder = holder

    def get(self, name: str, /) -> object:
        return getattr(self._holder, name, None)


def fields_of(holder: Any) -> Fields:
    """Return what answers for the fields of a response or a part of it.

    A pydantic model answers for an absent name only after a slow search, so its two dictionaries are asked
    directly: the fields, and what the host sent beyond them.
    """
    if isinstance(holder, dict):
        return holder
    extra = getattr(holder, "__pydantic_extra__", _NO_PYDANTIC)
    if not extra:
        return holder.__dict__  # type: ignore[no-any-return]
    if isinstance(extra, dict):
        return {**extra, **holder.__dict__}
    return holder if isinstance(holder, Mapping) else _Attributes(holder)
