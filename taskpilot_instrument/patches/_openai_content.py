"""Message content of OpenAI requests and responses in the GenAI conventions' shape.

Used only where content capture was asked for. Parts are text, tool calls and tool results; binary
content is named, not stored.
"""

from typing import Any

from taskpilot_instrument._records import LLMCall
from taskpilot_instrument.typing import Capture


def capture_input(call: LLMCall, body: dict[str, Any], capture: Capture) -> None:
    """Write the request's messages and instructions to the call.

    Lists are read, never iterators: those belong to the client.
    """
    instructions = body.get("instructions")
    if isinstance(instructions, str):
        call.system_instructions = capture([{"type": "text", "content": instructions}])
    source = next((body[key] for key in ("messages", "input", "prompt") if key in body), None)
    if isinstance(source, str):
        call.input_messages = capture([{"role": "user", "parts": [{"type": "text", "content": source}]}])
    elif isinstance(source, list):
        call.input_messages = capture([_message(item) for item in source])


def _message(item: Any) -> dict[str, Any]:
    if not isinstance(item, dict):
        return {"role": "user", "parts": [{"type": "text", "content": str(item)}]}
    kind = item.get("type")
    if kind == "function_call":
        return {
            "role": "assistant",
            "parts": [_call_part(item.get("call_id"), item.get("name"), item.get("arguments"))],
        }
    if kind == "function_call_output" or item.get("role") == "tool":
        call_id = item.get("call_id") or item.get("tool_call_id")
        result = item.get("output", item.get("content"))
        return {"role": "tool", "parts": [{"type": "tool_call_response", "id": call_id, "response": result}]}
    parts = _parts(item.get("content"))
    for tool_call in item.get("tool_calls") or ():
        function = tool_call.get("function") or {}
        parts.append(_call_part(tool_call.get("id"), function.get("name"), function.get("arguments")))
    return {"role": item.get("role") or "user", "parts": parts}


def _call_part(call_id: Any, name: Any, arguments: Any) -> dict[str, Any]:
    return {"type": "tool_call", "id": call_id, "name": name, "arguments": arguments}


def _parts(content: Any) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "content": content}]
    parts = []
    for part in content if isinstance(content, list) else ():
        text = part.get("text") if isinstance(part, dict) else None
        kind = part.get("type", "unknown") if isinstance(part, dict) else "unknown"
        parts.append({"type": "text", "content": text} if isinstance(text, str) else {"type": kind})
    return parts


def output_messages(response: Any, capture: Capture) -> str | None:
    """Return a whole response's messages as text, None where it has none (embeddings)."""
    messages = [_choice_message(choice) for choice in getattr(response, "choices", None) or ()]
    messages += [_item_message(item) for item in getattr(response, "output", None) or ()]
    return capture(messages) if messages else None


def _choice_message(choice: Any) -> dict[str, Any]:
    message = getattr(choice, "message", None)
    text = getattr(message, "content", None) if message is not None else getattr(choice, "text", None)
    parts = [{"type": "text", "content": text}] if isinstance(text, str) else []
    for tool_call in getattr(message, "tool_calls", None) or ():
        function = getattr(tool_call, "function", None)
        parts.append(
            _call_part(
                getattr(tool_call, "id", None), getattr(function, "name", None), getattr(function, "arguments", None)
            )
        )
    return {"role": "assistant", "parts": parts, "finish_reason": getattr(choice, "finish_reason", None)}


def _item_message(item: Any) -> dict[str, Any]:
    kind = getattr(item, "type", None)
    if kind == "function_call":
        return {"role": "assistant", "parts": [_call_part(item.call_id, item.name, item.arguments)]}
    content = getattr(item, "content", None)
    texts = [text for part in content or () if isinstance(text := _said(part), str)]
    parts = [{"type": "text", "content": text} for text in texts] or [{"type": str(kind)}]
    return {"role": "assistant", "parts": parts}


def _said(part: Any) -> Any:
    """Return the text of a part, or that of its sound."""
    text = getattr(part, "text", None)
    return text if isinstance(text, str) else getattr(part, "transcript", None)


class OutputText:
    """Put together the text of a streamed answer, choice by choice."""

    #: More than this is not kept: what is captured is cut to a far lower length anyway.
    MAX_CHARACTERS = 200_000

    def __init__(self) -> None:
        self._texts: dict[int, list[str]] = {}
        self._size = 0

    def add(self, chunk: Any) -> None:
        """Keep one chunk's text and tool-call arguments."""
        for choice in getattr(chunk, "choices", None) or ():
            delta = getattr(choice, "delta", None)
            text = getattr(delta, "content", None) if delta is not None else getattr(choice, "text", None)
            pieces = [text] if isinstance(text, str) else []
            for tool_call in getattr(delta, "tool_calls", None) or ():
                function = getattr(tool_call, "function", None)
                pieces += [
                    piece
                    for piece in (getattr(function, "name", None), getattr(function, "arguments", None))
                    if isinstance(piece, str)
                ]
            for piece in pieces:
                self._size += len(piece)
                if self._size <= self.MAX_CHARACTERS:
                    self._texts.setdefault(getattr(choice, "index", 0), []).append(piece)

    def messages(self, capture: Capture) -> str | None:
        """Return the answer as text, None where nothing came."""
        messages = [
            {"role": "assistant", "parts": [{"type": "text", "content": "".join(pieces)}]}
            for _, pieces in sorted(self._texts.items())
        ]
        return capture(messages) if messages else None
