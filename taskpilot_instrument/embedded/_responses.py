"""The Responses API: its body and its stream of typed events."""

from collections.abc import Iterator
from typing import Any, Final

from taskpilot_instrument.embedded._chat import CREATED, words
from taskpilot_instrument.embedded._reply import Received, Reply, ToolCall
from taskpilot_instrument.embedded._tokens import model_of, text_of, usage_of
from taskpilot_instrument.usage import TokenUsage

#: Why a reply is incomplete, by the finish reason that chat completions would give.
_INCOMPLETE: Final = {"length": "max_output_tokens", "content_filter": "content_filter"}


def response_body(received: Received, reply: Reply) -> dict[str, Any]:
    """Return a finished response: completed, failed or incomplete."""
    body = _unfinished(received, reply)
    reason = _INCOMPLETE.get(reply.finish_reason or "")
    body["output"] = _output(received, reply)
    body["usage"] = _usage(usage_of(received, reply)) if reply.send_usage else None
    if reply.failure is not None:
        body["status"] = "failed"
        body["error"] = {"code": reply.error_code or "server_error", "message": reply.failure}
    elif reason is not None:
        body["status"] = "incomplete"
        body["incomplete_details"] = {"reason": reason}
    else:
        body["status"] = "completed"
    return body


def queued_body(received: Received, reply: Reply) -> dict[str, Any]:
    """Return what a background request is answered with before the model has run."""
    return {**_unfinished(received, reply), "status": "queued"}


def response_events(received: Received, reply: Reply) -> list[dict[str, Any]]:
    """Return the events of a streamed response."""
    start, end = _unfinished(received, reply), response_body(received, reply)
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": start},
        {"type": "response.in_progress", "response": start},
    ]
    for index, item in enumerate(end["output"]):
        events += _item_events(index, item)
    events.append({"type": f"response.{end['status']}", "response": end})
    return [{**event, "sequence_number": number} for number, event in enumerate(events)]


def _unfinished(received: Received, reply: Reply) -> dict[str, Any]:
    asked = received.payload
    return {
        "id": f"resp_{received.number:06d}",
        "object": "response",
        "created_at": CREATED,
        "status": "in_progress",
        "background": bool(asked.get("background")),
        "error": None,
        "incomplete_details": None,
        "instructions": asked.get("instructions"),
        "max_output_tokens": asked.get("max_output_tokens"),
        "metadata": asked.get("metadata") or {},
        "model": model_of(received, reply),
        "output": [],
        "parallel_tool_calls": True,
        "previous_response_id": asked.get("previous_response_id"),
        "service_tier": reply.service_tier or "default",
        "temperature": asked.get("temperature", 1.0),
        "text": asked.get("text") or {"format": {"type": "text"}},
        "tool_choice": asked.get("tool_choice") or "auto",
        "tools": asked.get("tools") or [],
        "top_p": asked.get("top_p", 1.0),
        "truncation": "disabled",
        "usage": None,
    }


def _output(received: Received, reply: Reply) -> list[dict[str, Any]]:
    output: list[dict[str, Any]] = []
    if reply.usage is not None and reply.usage.reasoning_tokens:
        output.append({"id": f"rs_{received.number:06d}", "type": "reasoning", "summary": []})
    text = text_of(received, reply)
    content: list[dict[str, Any]] = []
    if reply.refusal is not None:
        content.append({"type": "refusal", "refusal": reply.refusal})
    if text:
        content.append({"type": "output_text", "annotations": [], "logprobs": [], "text": text})
    if content:
        output.append(
            {
                "id": f"msg_{received.number:06d}",
                "type": "message",
                "status": "completed",
                "role": "assistant",
                "content": content,
            }
        )
    return output + [_function_call(received, at, call) for at, call in enumerate(reply.tool_calls)]


def _function_call(received: Received, at: int, call: ToolCall) -> dict[str, Any]:
    return {
        "id": f"fc_{received.number:06d}_{at}",
        "type": "function_call",
        "status": "completed",
        "call_id": f"call_{received.number:06d}_{at}",
        "name": call.name,
        "arguments": call.arguments_text,
    }


def _item_events(index: int, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield an output item's events: added empty, filled piece by piece, done."""
    where = {"item_id": item["id"], "output_index": index}
    empty = {**item, **({"status": "in_progress"} if "status" in item else {})}
    if item["type"] == "function_call":
        yield {"type": "response.output_item.added", "output_index": index, "item": {**empty, "arguments": ""}}
        for piece in words(item["arguments"]):
            yield {"type": "response.function_call_arguments.delta", **where, "delta": piece}
        done = {"name": item["name"], "arguments": item["arguments"]}
        yield {"type": "response.function_call_arguments.done", **where, **done}
    elif item["type"] == "message":
        yield {"type": "response.output_item.added", "output_index": index, "item": {**empty, "content": []}}
        for at, part in enumerate(item["content"]):
            yield from _part_events({**where, "content_index": at}, part)
    else:
        yield {"type": "response.output_item.added", "output_index": index, "item": empty}
    yield {"type": "response.output_item.done", "output_index": index, "item": item}


def _part_events(where: dict[str, Any], part: dict[str, Any]) -> Iterator[dict[str, Any]]:
    key = "refusal" if part["type"] == "refusal" else "text"
    logprobs: dict[str, Any] = {} if key == "refusal" else {"logprobs": []}
    yield {"type": "response.content_part.added", **where, "part": {**part, key: ""}}
    for word in words(part[key]):
        yield {"type": f"response.{part['type']}.delta", **where, **logprobs, "delta": word}
    yield {"type": f"response.{part['type']}.done", **where, **logprobs, key: part[key]}
    yield {"type": "response.content_part.done", **where, "part": part}


def _usage(usage: TokenUsage) -> dict[str, Any]:
    into, out = usage.input_tokens or 0, usage.output_tokens or 0
    return {
        "input_tokens": into,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
        },
        "output_tokens": out,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": into + out,
    }
