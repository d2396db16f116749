"""The real OpenAI clients over a transport without a socket, for tests that make very many calls."""

import inspect
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import openai
from openai import _base_client

#: The HTTP library that the installed client is built on.
httpx: Any = vars(_base_client).get("httpx2") or vars(_base_client)["httpx"]

MODEL = "gpt-4o-mini"
USAGE = {"prompt_tokens": 150, "completion_tokens": 50, "total_tokens": 200}


def completion(model: str = MODEL, usage: dict[str, Any] | None = None, text: str = "hi") -> bytes:
    """Return a chat completion as JSON."""
    message = {"role": "assistant", "content": text}
    return json.dumps({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": model,
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": usage or USAGE,
    }).encode()  # fmt: skip


def chunks(model: str = MODEL, usage: dict[str, Any] | None = None) -> list[bytes]:
    """Return the events of a streamed chat completion: three words, the usage, the end."""
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": model}
    parts: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": {"content": "one "}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {"content": "two "}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {"content": "three"}, "finish_reason": "stop"}]},
        {"choices": [], "usage": usage or USAGE},
    ]
    return [b"data: " + json.dumps(head | part).encode() + b"\n\n" for part in parts] + [b"data: [DONE]\n\n"]


class Body(httpx.SyncByteStream, httpx.AsyncByteStream):  # type: ignore[misc] # its module is found at run time
    """A response body that comes in parts; an exception among them is raised when its turn comes."""

    def __init__(self, *parts: bytes | Exception) -> None:
        self._parts = parts

    def __iter__(self) -> Iterator[bytes]:
        for part in self._parts:
            if isinstance(part, Exception):
                raise part
            yield part

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self:
            yield part


def json_response(body: bytes, status: int = 200) -> Any:
    """Return an HTTP response with a JSON document."""
    headers = {"content-type": "application/json", "x-request-id": "req_1"}
    return httpx.Response(status, stream=Body(body), headers=headers)


def event_response(*parts: bytes | Exception) -> Any:
    """Return an HTTP response with an event stream."""
    return httpx.Response(200, stream=Body(*parts), headers={"content-type": "text/event-stream"})


def sync_client(answer: Callable[[Any], Any]) -> openai.OpenAI:
    """Return a real client whose requests ``answer`` answers."""
    http_client = httpx.Client(transport=httpx.MockTransport(answer))
    return openai.OpenAI(api_key="sk-test", base_url="http://127.0.0.1/v1", http_client=http_client, max_retries=0)


def async_client(answer: Callable[[Any], Any]) -> openai.AsyncOpenAI:
    """Return a real async client whose requests ``answer`` answers."""
    http_client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    return openai.AsyncOpenAI(api_key="sk-test", base_url="http://127.0.0.1/v1", http_client=http_client, max_retries=0)


async def settled(result: Any) -> Any:
    """Return what a call of either client comes to."""
    return await result if inspect.isawaitable(result) else result
