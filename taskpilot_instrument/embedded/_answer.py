"""From a request and a reply to what goes over the wire."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from taskpilot_instrument.embedded._chat import (
    chat_body,
    chat_events,
    completion_body,
    completion_events,
)
from taskpilot_instrument.embedded._embeddings import embeddings_body
from taskpilot_instrument.embedded._reply import Received, Reply
from taskpilot_instrument.embedded._responses import response_body, response_events

_JSON: Final = "application/json"
_EVENTS: Final = "text/event-stream; charset=utf-8"
DONE: Final = "[DONE]"


class Answer(NamedTuple):
    """Status, type and parts; more than the one body of a plain answer makes a stream."""

    status: int
    content_type: str
    parts: Sequence[bytes]
    streamed: bool


class Endpoint(NamedTuple):
    """How an endpoint says things: at once, and event by event where it can.

    :param last: what follows the last event of a stream.
    """

    body: Callable[[Received, Reply], dict[str, Any]]
    events: Callable[[Received, Reply], list[dict[str, Any]]] | None = None
    last: tuple[str, ...] = ()


ENDPOINTS: Final[Mapping[str, Endpoint]] = {
    "/chat/completions": Endpoint(chat_body, chat_events, (DONE,)),
    "/completions": Endpoint(completion_body, completion_events, (DONE,)),
    "/responses": Endpoint(response_body, response_events),
    "/embeddings": Endpoint(embeddings_body),
}


def json_answer(body: object, status: int = 200) -> Answer:
    """Answer with one JSON body."""
    return Answer(status, _JSON, (_dump(body),), streamed=False)


def answer(received: Received, reply: Reply) -> Answer:
    """Say a reply in the words of the endpoint that was asked.

    :raises KeyError: where the endpoint is unknown and the reply is no literal one.
    """
    if reply.parts is not None:
        return _stream(reply, list(reply.parts))
    if reply.body is not None:
        return Answer(reply.status, reply.content_type, (reply.body[: reply.truncate],), streamed=False)
    if reply.error_message is not None and reply.status >= 400:
        return json_answer({"error": reply.error_object}, reply.status)
    endpoint = ENDPOINTS[received.endpoint]
    if endpoint.events is not None and received.payload.get("stream"):
        return _stream(reply, [*endpoint.events(received, reply), *endpoint.last])
    body = _dump(endpoint.body(received, reply))
    return Answer(reply.status, _JSON, (body[: reply.truncate],), streamed=False)


def _stream(reply: Reply, events: list[Mapping[str, Any] | str]) -> Answer:
    if reply.error_after is not None:
        events = [*events[: reply.error_after], {"error": reply.error_object}]
    return Answer(reply.status, _EVENTS, [_frame(event) for event in events], streamed=True)


def _frame(event: Mapping[str, Any] | str) -> bytes:
    """Frame a server-sent event; typed ones carry their type as its name, as the Responses API does."""
    if isinstance(event, str):
        return f"data: {event}\n\n".encode()
    name = f"event: {event['type']}\n".encode() if "type" in event else b""
    return name + b"data: " + _dump(event) + b"\n\n"


def _dump(body: object) -> bytes:
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
