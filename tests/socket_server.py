"""A real WebSocket server that speaks as a test tells it to, and connections of both clients driven alike."""

import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import reduce
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import openai
from mock_openai import settled
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

#: What a server says: a message, a code to close with, or CUT.
Said = dict[str, Any] | int
CUT: Final = 0
#: By where the client connects.
SURFACES: Final = ("realtime", "beta.realtime", "responses", "beta.responses")
REALTIME_USAGE: Final = {
    "input_tokens": 132, "output_tokens": 121, "total_tokens": 253,
    "input_token_details": {
        "text_tokens": 119, "audio_tokens": 13, "cached_tokens": 64,
        "cached_tokens_details": {"text_tokens": 64, "audio_tokens": 0, "image_tokens": 0},
    },
    "output_token_details": {"text_tokens": 30, "audio_tokens": 91},
}  # fmt: skip
USAGE: Final = {"input_tokens": 150, "output_tokens": 50, "total_tokens": 200}


class SocketServer:
    """Answer each message of a client's with what ``answer`` says to it; greet with ``hello``."""

    def __init__(self, answer: Callable[[dict[str, Any]], Iterable[Said]], hello: Sequence[Said] = ()) -> None:
        self.received: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self._answer = answer
        self._hello = hello

    def _serve(self, connection: ServerConnection) -> None:
        self.paths.append(connection.request.path if connection.request is not None else "")
        try:
            self._say(connection, self._hello)
            for message in connection:
                document = json.loads(message)
                self.received.append(document)
                self._say(connection, self._answer(document))
        except ConnectionClosed:
            pass

    def _say(self, connection: ServerConnection, messages: Iterable[Said]) -> None:
        for said in messages:
            if isinstance(said, dict):
                connection.send(json.dumps(said))
            elif said == CUT:
                connection.socket.shutdown(socket.SHUT_RDWR)
            else:
                connection.close(said)

    def __enter__(self) -> Self:
        self._server = serve(self._serve, "127.0.0.1", 0)
        self.port = self._server.socket.getsockname()[1]
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()


# --- what it says -------------------------------------------------------------------------------


def configured(model: str = "gpt-realtime", **session: Any) -> dict[str, Any]:
    """Return the message with which a realtime session begins."""
    return {"type": "session.created", "event_id": "e", "session": {"type": "realtime", "model": model, **session}}


def begun(surface: str, name: str = "resp_1", **more: Any) -> dict[str, Any]:
    """Return the message that a response has begun."""
    return _message(surface, "response.created", {"id": name, "status": "in_progress", **more})


def piece(surface: str, name: str = "resp_1") -> dict[str, Any]:
    """Return a piece of a response."""
    kind = "response.output_audio.delta" if "realtime" in surface else "response.output_text.delta"
    return {"type": kind, "response_id": name, "item_id": "item_1", "delta": "AAAA" * 500}


def done(surface: str, name: str = "resp_1", **more: Any) -> dict[str, Any]:
    """Return the message that a response is done."""
    response = {"id": name, "status": "completed", "usage": usage_of(surface), "output": [], **more}
    kind = "response.done" if "realtime" in surface else f"response.{response['status']}"
    return _message(surface, kind, response)


def usage_of(surface: str) -> dict[str, Any]:
    """Return what a response of a surface uses."""
    return REALTIME_USAGE if "realtime" in surface else USAGE


def _message(surface: str, kind: str, response: dict[str, Any]) -> dict[str, Any]:
    if "realtime" in surface:
        whole = {"object": "realtime.response", "conversation_id": "conv_1", **response}
        return {"type": kind, "event_id": "e", "response": whole}
    lane = {} if (name := response.pop("stream_id", None)) is None else {"stream_id": name}
    whole = {"object": "response", "model": "gpt-4o-mini-2024-07-18", **response}
    return {"type": kind, "sequence_number": 1, "response": whole, **lane}


def asking(surface: str, **more: Any) -> dict[str, Any]:
    """Return the message that asks for a response."""
    if "realtime" in surface:
        event = {"event_id": more.pop("event_id")} if "event_id" in more else {}
        return {"type": "response.create", **event, **({"response": more} if more else {})}
    return {"type": "response.create", "model": "gpt-4o-mini", "input": "hello", **more}


# --- the clients --------------------------------------------------------------------------------


class Drive(NamedTuple):
    """Which client connects to which surface."""

    surface: str
    is_async: bool


class Line:
    """A connection of either client."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    async def send(self, event: Any) -> None:
        """Send an event."""
        await settled(self.connection.send(event))

    async def recv(self) -> Any:
        """Receive an event."""
        return await settled(self.connection.recv())

    async def close(self) -> None:
        """Close the connection."""
        await settled(self.connection.close())

    async def events(self) -> AsyncIterator[Any]:
        """Iterate over the connection."""
        if hasattr(self.connection, "__aiter__"):
            async for event in self.connection:
                yield event
        else:
            for event in self.connection:
                yield event

    async def until(self, kind: str) -> Any:
        """Receive events up to one of a kind, and return it."""
        while (event := await self.recv()).type != kind:
            pass
        return event


def client_of(drive: Drive, port: int) -> Any:
    """Return a client that speaks to a server on this machine."""
    kind: Any = openai.AsyncOpenAI if drive.is_async else openai.OpenAI
    address = f"127.0.0.1:{port}/v1"
    return kind(api_key="sk-test", base_url=f"http://{address}", websocket_base_url=f"ws://{address}")


def manager_of(drive: Drive, client: Any, **arguments: Any) -> Any:
    """Return what connects."""
    connect = reduce(getattr, drive.surface.split("."), client).connect
    return connect(**({"model": "gpt-realtime"} if "realtime" in drive.surface else {}), **arguments)


@asynccontextmanager
async def connected(drive: Drive, server: SocketServer, **arguments: Any) -> AsyncIterator[Line]:
    """Connect, and close when the block is left."""
    client = client_of(drive, server.port)
    manager = manager_of(drive, client, **arguments)
    try:
        if drive.is_async:
            async with manager as connection:
                yield Line(connection)
        else:
            with manager as connection:
                yield Line(connection)
    finally:
        await settled(client.close())
