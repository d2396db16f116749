"""What a request asks for, and what its response's headers tell, as span attributes of the conventions.

Nothing in it is what a user wrote: of tools only types and names, of a prompt template only its id and version.
Only lists are looked into, never iterators: those belong to the client.
"""

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

from taskpilot_instrument import semconv

Found = dict[str, Any]

#: Doubles in the conventions: written as an int now and then, a store that goes by types would refuse the others.
_DOUBLES: Final = {
    "temperature": semconv.GEN_AI_REQUEST_TEMPERATURE,
    "top_p": semconv.GEN_AI_REQUEST_TOP_P,
    "frequency_penalty": semconv.GEN_AI_REQUEST_FREQUENCY_PENALTY,
    "presence_penalty": semconv.GEN_AI_REQUEST_PRESENCE_PENALTY,
}
_COUNTS: Final = {
    "top_k": semconv.GEN_AI_REQUEST_TOP_K,
    "max_tokens": semconv.GEN_AI_REQUEST_MAX_TOKENS,
    "max_completion_tokens": semconv.GEN_AI_REQUEST_MAX_TOKENS,
    "max_output_tokens": semconv.GEN_AI_REQUEST_MAX_TOKENS,
    "seed": semconv.GEN_AI_REQUEST_SEED,
    "dimensions": semconv.GEN_AI_EMBEDDINGS_DIMENSION_COUNT,
}
_WORDS: Final = {
    "conversation": semconv.GEN_AI_CONVERSATION_ID,
    "previous_response_id": semconv.GEN_AI_REQUEST_PREVIOUS_RESPONSE_ID,
    "reasoning_effort": semconv.GEN_AI_REQUEST_REASONING_LEVEL,
}
#: Attributes that are lists, where the request may also say one word.
_WORD_LISTS: Final = {
    "encoding_format": semconv.GEN_AI_REQUEST_ENCODING_FORMATS,
    "stop": semconv.GEN_AI_REQUEST_STOP_SEQUENCES,
}
#: ``gen_ai.output.type`` by the format that chat and responses name in an object, the others in a word.
_OUTPUT_TYPES: Final = {
    "text": "text", "json_object": "json", "json_schema": "json",
    "json": "json", "verbose_json": "json", "diarized_json": "json", "srt": "text", "vtt": "text",
    "url": "image", "b64_json": "image",
    "mp3": "speech", "opus": "speech", "aac": "speech", "flac": "speech", "wav": "speech", "pcm": "speech",
}  # fmt: skip
#: An id or a name is shorter; whatever else stands in its place is cut.
_MOST_CHARACTERS: Final = 256
#: The API takes no more tools than that.
_MOST_TOOLS: Final = 128


def request_attributes(body: dict[str, Any], *, streamed: bool) -> Found:
    """Return what a request asks for as span attributes.

    The conventions have none for the choice of a tool and the verbosity.
    """
    found: Found = {semconv.GEN_AI_REQUEST_STREAM: True} if streamed else {}
    for key, value in body.items():
        kind = type(value)
        if kind is int or kind is float:
            if (name := _DOUBLES.get(key)) is not None:
                found[name] = float(value)
            elif (name := _COUNTS.get(key)) is not None:
                found[name] = value
            elif key == "n" and value != 1:
                found[semconv.GEN_AI_REQUEST_CHOICE_COUNT] = value
        elif kind is str:
            _read_word(found, key, value)
        elif (kind is dict or kind is list) and (read := _STRUCTURED.get(key)) is not None:
            read(found, value)
    return found


def _read_word(found: Found, key: str, value: str) -> None:
    name = _WORDS.get(key)
    if name is not None:
        found[name] = _cut(value)
    elif (name := _WORD_LISTS.get(key)) is not None:
        found[name] = (_cut(value),)
    elif key == "service_tier" and value != "auto":
        found[semconv.OPENAI_REQUEST_SERVICE_TIER] = _cut(value)
    elif key == "response_format" and value in _OUTPUT_TYPES:
        found[semconv.GEN_AI_OUTPUT_TYPE] = _OUTPUT_TYPES[value]


def _cut(value: str) -> str:
    return value if len(value) <= _MOST_CHARACTERS else value[: _MOST_CHARACTERS - 1] + "…"


# --- members that have members ------------------------------------------------------------------


def _word_in(holder: Any, key: str) -> str | None:
    value = holder.get(key) if isinstance(holder, dict) else None
    return _cut(value) if isinstance(value, str) and value else None


def _read_stop(found: Found, value: Any) -> None:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        found[semconv.GEN_AI_REQUEST_STOP_SEQUENCES] = tuple(_cut(item) for item in value)


def _read_format(found: Found, value: Any) -> None:
    output_type = _OUTPUT_TYPES.get(_word_in(value, "type") or "")
    if output_type is not None:
        found[semconv.GEN_AI_OUTPUT_TYPE] = output_type


def _read_text(found: Found, value: Any) -> None:
    if isinstance(value, dict):
        _read_format(found, value.get("format"))


def _read_modalities(found: Found, value: Any) -> None:
    if "audio" in value:
        found[semconv.GEN_AI_OUTPUT_TYPE] = "speech"


def _read_conversation(found: Found, value: Any) -> None:
    if (conversation := _word_in(value, "id")) is not None:
        found[semconv.GEN_AI_CONVERSATION_ID] = conversation


def _read_reasoning(found: Found, value: Any) -> None:
    if (effort := _word_in(value, "effort")) is not None:
        found[semconv.GEN_AI_REQUEST_REASONING_LEVEL] = effort


def _read_prompt(found: Found, value: Any) -> None:
    """Read the reference to a prompt template; the variables are content, and so are the prompts of completions."""
    name = _word_in(value, "id")
    if name is None:
        return
    found[semconv.GEN_AI_PROMPT_NAME] = name
    if (version := _word_in(value, "version")) is not None:
        found[semconv.GEN_AI_PROMPT_VERSION] = version


def _read_tools(found: Found, value: Any) -> None:
    if isinstance(value, list) and (offered := tuple(_tool(tool) for tool in value[:_MOST_TOOLS])):
        found[semconv.GEN_AI_TOOL_DEFINITIONS] = _definitions(offered)


def _tool(tool: Any) -> tuple[str, str]:
    """Return type and name, which the conventions require; a hosted tool goes by its type."""
    kind = _word_in(tool, "type") or "function"
    inner = tool.get(kind) if isinstance(tool, dict) else None
    return kind, _word_in(tool, "name") or _word_in(inner, "name") or _word_in(tool, "server_label") or kind


@lru_cache(maxsize=64)  # an agent offers the same tools with each call
def _definitions(offered: tuple[tuple[str, str], ...]) -> str:
    return json.dumps([{"type": kind, "name": name} for kind, name in offered], ensure_ascii=False)


_STRUCTURED: Final[dict[str, Callable[[Found, Any], None]]] = {
    "stop": _read_stop,
    "response_format": _read_format,
    "text": _read_text,
    "modalities": _read_modalities,
    "conversation": _read_conversation,
    "reasoning": _read_reasoning,
    "prompt": _read_prompt,
    "tools": _read_tools,
    "functions": _read_tools,
}


# --- headers ------------------------------------------------------------------------------------

_RATE_LIMITS: Final = {name.rpartition(".")[2].encode(): name for name in semconv.HTTP_RESPONSE_RATE_LIMITS}


def rate_limits(headers: Any) -> Found:
    """Return how much of its limits the provider leaves, as the conventions write headers: lists of text.

    :param headers: of the HTTP library that the client is built on.
    """
    # One walk over the raw ones: each look-up by name would be a walk of its own.
    return {
        _RATE_LIMITS[key]: (value.decode("latin-1")[:_MOST_CHARACTERS],)
        for raw, value in headers.raw
        if (key := raw.lower()) in _RATE_LIMITS
    }
