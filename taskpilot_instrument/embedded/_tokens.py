"""Token numbers without a tokenizer: plausible, and the same every time."""

from collections.abc import Iterator
from typing import Any, Final

from taskpilot_instrument.embedded._reply import Received, Reply
from taskpilot_instrument.usage import TokenUsage

_BYTES_PER_TOKEN: Final = 4
_TEXT_LIMIT: Final = 80

#: OpenAI answers with the dated name of a model; other models answer with their own name.
_DATED: Final = {
    "gpt-4o-mini": "gpt-4o-mini-2024-07-18",
    "gpt-4o": "gpt-4o-2024-08-06",
    "gpt-4.1": "gpt-4.1-2025-04-14",
    "gpt-4.1-mini": "gpt-4.1-mini-2025-04-14",
    "gpt-4.1-nano": "gpt-4.1-nano-2025-04-14",
    "o3-mini": "o3-mini-2025-01-31",
}


def count_tokens(text: str) -> int:
    """Return how many tokens the embedded server counts for a text: one for every four bytes begun."""
    return -(-len(text.encode()) // _BYTES_PER_TOKEN)


def usage_of(received: Received, reply: Reply) -> TokenUsage:
    """Return the usage that the reply gives, or else count it from the request and the reply."""
    if reply.usage is not None:
        return reply.usage
    counted = sum(1 if isinstance(piece, int) else count_tokens(piece) for piece in _pieces(received.payload))
    said = text_of(received, reply) + (reply.refusal or "") + "".join(call.arguments_text for call in reply.tool_calls)
    return TokenUsage(counted, count_tokens(said) * (received.payload.get("n") or 1))


def text_of(received: Received, reply: Reply) -> str:
    """Return what the model says: the scripted text, else one that repeats the request's last text."""
    if reply.text is not None:
        return reply.text
    if reply.tool_calls or reply.refusal is not None:
        return ""
    asked = [piece for piece in _pieces(received.payload) if isinstance(piece, str)]
    return f"You said: {asked[-1][:_TEXT_LIMIT]}" if asked else "Hello!"


def model_of(received: Received, reply: Reply) -> str:
    """Return the model name of the answer."""
    asked = str(received.payload.get("model") or "unknown")
    return reply.model or _DATED.get(asked, asked)


def _pieces(payload: dict[str, Any]) -> Iterator[str | int]:
    """Yield each text that the model reads, and each token where the caller sent tokens."""
    for key in ("instructions", "messages", "input", "prompt"):
        yield from _texts(payload.get(key))


def _texts(value: object) -> Iterator[str | int]:
    if isinstance(value, str | int):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        for key in ("content", "text", "output"):
            yield from _texts(value.get(key))
