"""Chat completions and legacy completions: the bodies and the streams of both."""

import re
from typing import Any, Final

from taskpilot_instrument.embedded._reply import Received, Reply, ToolCall
from taskpilot_instrument.embedded._tokens import model_of, text_of, usage_of
from taskpilot_instrument.usage import TokenUsage

#: 2024-12-21T10:00:00Z: answers that hold the time of day would differ from run to run.
CREATED: Final = 1_734_775_200
_FINGERPRINT: Final = "fp_embedded"
_WORD: Final = re.compile(r"\s*\S+|\s+$")


def words(text: str) -> list[str]:
    """Cut a text into the pieces in which it is streamed; together they are the text."""
    return _WORD.findall(text)


def chat_body(received: Received, reply: Reply) -> dict[str, Any]:
    """Return a chat completion."""
    text = text_of(received, reply)
    message: dict[str, Any] = {"role": "assistant", "content": text or None, "refusal": reply.refusal}
    if reply.tool_calls:
        message["tool_calls"] = [
            {"id": _call_id(received, at), "type": "function", "function": _function(call)}
            for at, call in enumerate(reply.tool_calls)
        ]
    choice = {"message": message, "logprobs": None, "finish_reason": _finish_reason(reply)}
    body = _head(received, reply, "chatcmpl", "chat.completion")
    body["choices"] = [{"index": index, **choice} for index in range(_choices(received))]
    if reply.send_usage:
        body["usage"] = _usage(usage_of(received, reply))
    return body


def chat_events(received: Received, reply: Reply) -> list[dict[str, Any]]:
    """Return the chunks of a streamed chat completion."""
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": "", "refusal": None}]
    deltas += [{"content": word} for word in words(text_of(received, reply))]
    deltas += [{"refusal": word} for word in words(reply.refusal or "")]
    for at, call in enumerate(reply.tool_calls):
        opening: dict[str, Any] = {
            "id": _call_id(received, at),
            "type": "function",
            "function": {"name": call.name, "arguments": ""},
        }
        deltas.append({"tool_calls": [{"index": at, **opening}]})
        deltas += [
            {"tool_calls": [{"index": at, "function": {"arguments": word}}]} for word in words(call.arguments_text)
        ]
    choices: list[dict[str, Any]] = [{"delta": delta, "logprobs": None, "finish_reason": None} for delta in deltas]
    choices.append({"delta": {}, "logprobs": None, "finish_reason": _finish_reason(reply)})
    return _chunks(received, reply, _head(received, reply, "chatcmpl", "chat.completion.chunk"), choices)


def completion_body(received: Received, reply: Reply) -> dict[str, Any]:
    """Return a legacy completion."""
    choice = {"text": text_of(received, reply), "logprobs": None, "finish_reason": reply.finish_reason or "stop"}
    body = _head(received, reply, "cmpl", "text_completion")
    body["choices"] = [{"index": index, **choice} for index in range(_choices(received))]
    if reply.send_usage:
        body["usage"] = _usage(usage_of(received, reply))
    return body


def completion_events(received: Received, reply: Reply) -> list[dict[str, Any]]:
    """Return the chunks of a streamed legacy completion."""
    choices: list[dict[str, Any]] = [
        {"text": word, "logprobs": None, "finish_reason": None} for word in words(text_of(received, reply))
    ]
    choices.append({"text": "", "logprobs": None, "finish_reason": reply.finish_reason or "stop"})
    return _chunks(received, reply, _head(received, reply, "cmpl", "text_completion"), choices)


def _chunks(
    received: Received, reply: Reply, head: dict[str, Any], choices: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Put each choice into a chunk, for each of the ``n`` choices; usage comes last, and only if asked for."""
    asked = bool((received.payload.get("stream_options") or {}).get("include_usage")) and reply.send_usage
    no_usage: dict[str, Any] = {"usage": None} if asked else {}
    chunks = [
        {**head, "choices": [{"index": index, **choice}], **no_usage}
        for choice in choices
        for index in range(_choices(received))
    ]
    if asked:
        chunks.append({**head, "choices": [], "usage": _usage(usage_of(received, reply))})
    return chunks


def _head(received: Received, reply: Reply, prefix: str, kind: str) -> dict[str, Any]:
    head: dict[str, Any] = {
        "id": f"{prefix}-{received.number:06d}",
        "object": kind,
        "created": CREATED,
        "model": model_of(received, reply),
        "system_fingerprint": _FINGERPRINT,
    }
    if reply.service_tier is not None:
        head["service_tier"] = reply.service_tier
    return head


def _choices(received: Received) -> int:
    return int(received.payload.get("n") or 1)


def _call_id(received: Received, at: int) -> str:
    return f"call_{received.number:06d}_{at}"


def _function(call: ToolCall) -> dict[str, str]:
    return {"name": call.name, "arguments": call.arguments_text}


def _finish_reason(reply: Reply) -> str:
    return reply.finish_reason or ("tool_calls" if reply.tool_calls else "stop")


def _usage(usage: TokenUsage) -> dict[str, Any]:
    into, out = usage.input_tokens or 0, usage.output_tokens or 0
    return {
        "prompt_tokens": into,
        "completion_tokens": out,
        "total_tokens": into + out,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
            "audio_tokens": usage.input_audio_tokens,
        },
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "audio_tokens": usage.output_audio_tokens,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
