"""The server's life and memory: start, stop, script, and what was asked."""

from collections import OrderedDict, deque
from collections.abc import Callable
from itertools import count
from typing import Any, Final, Self

from taskpilot_instrument import _forks
from taskpilot_instrument.embedded._answer import ENDPOINTS, Answer, answer, json_answer
from taskpilot_instrument.embedded._http import Listener
from taskpilot_instrument.embedded._reply import Received, Reply
from taskpilot_instrument.embedded._responses import queued_body, response_body

_NOT_FOUND: Final = 404
_KEEP: Final = 10_000
_MODELS: Final = ("gpt-4o-mini", "gpt-4o", "text-embedding-3-small")


class EmbeddedServer:
    """Serve OpenAI's API on a free port of 127.0.0.1, in threads of this process.

    Chat completions, responses, completions and embeddings, plain and streamed, below ``/v1`` and below
    Azure's paths; ``GET /responses/{id}`` and ``GET /models``. Anything else is answered 404.

    :param respond: makes the reply to a request for which nothing is scripted; None (or a None from it)
        gives a reply that repeats the request's last text.
    :param keep: how many requests (and stored responses) to remember; older ones are forgotten.
    """

    def __init__(self, respond: Callable[[Received], Reply | None] | None = None, *, keep: int = _KEEP) -> None:
        self._respond = respond
        self._scripted: deque[Reply] = deque()
        self._requests: deque[Received] = deque(maxlen=keep)
        self._stored: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._keep = keep
        self._numbers = count(1)
        self._lock = _forks.lock()
        self._listener: Listener | None = None

    # --- life -----------------------------------------------------------------------------------

    def start(self) -> Self:
        """Begin to listen; a server that runs already is left as it is."""
        if self._listener is None:
            self._listener = Listener(self._handle)
        return self

    def stop(self) -> None:
        """Stop listening, break delays off and close every connection."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def origin(self) -> str:
        """Scheme, host and port: what ``AzureOpenAI(azure_endpoint=…)`` wants.

        :raises RuntimeError: where the server is not running.
        """
        if self._listener is None:
            raise RuntimeError("the embedded server is not running: call start(), or use it in a with block")
        return f"http://127.0.0.1:{self._listener.port}"

    @property
    def url(self) -> str:
        """What ``OpenAI(base_url=…)`` wants: ``http://127.0.0.1:PORT/v1``.

        :raises RuntimeError: where the server is not running.
        """
        return f"{self.origin}/v1"

    # --- script and memory ----------------------------------------------------------------------

    def script(self, *replies: Reply) -> None:
        """Queue replies: each answers one request, first in first out.

        :raises TypeError: for anything but a :class:`Reply`.
        """
        for reply in replies:
            if not isinstance(reply, Reply):
                raise TypeError(f"script() takes Reply(…), not {reply!r}")
        with self._lock:
            self._scripted.extend(replies)

    @property
    def requests(self) -> list[Received]:
        """What was asked, oldest first."""
        with self._lock:
            return list(self._requests)

    @property
    def unused(self) -> list[Reply]:
        """Scripted replies that nobody has asked for."""
        with self._lock:
            return list(self._scripted)

    def clear(self) -> None:
        """Forget scripted replies, requests and stored responses."""
        with self._lock:
            self._scripted.clear()
            self._requests.clear()
            self._stored.clear()

    # --- one request ----------------------------------------------------------------------------

    def _handle(self, method: str, path: str, headers: dict[str, str], body: Any) -> tuple[Reply, Answer, str]:
        """Return the reply, what it looks like on the wire, and the request's id."""
        received = Received(next(self._numbers), method, path, headers, body)
        request_id = f"req_{received.number:06d}"
        known = method == "POST" and received.endpoint in ENDPOINTS
        with self._lock:
            self._requests.append(received)
            literal = bool(self._scripted) and self._scripted[0].is_literal
            reply = self._scripted.popleft() if self._scripted and (known or literal) else None
        if reply is None and not known:
            return Reply(), self._look_up(received), request_id
        if reply is None:
            reply = (self._respond(received) if self._respond is not None else None) or Reply()
        if received.endpoint == "/responses" and not reply.is_literal:
            self._store(response_body(received, reply))
            if received.payload.get("background") and not received.payload.get("stream"):
                return reply, json_answer(queued_body(received, reply)), request_id
        return reply, answer(received, reply), request_id

    def _store(self, response: dict[str, Any]) -> None:
        with self._lock:
            self._stored[response["id"]] = response
            if len(self._stored) > self._keep:
                self._stored.popitem(last=False)

    def _look_up(self, received: Received) -> Answer:
        """Answer a GET of something that is there, or say what is not."""
        endpoint = received.endpoint
        if received.method == "GET" and endpoint == "/models":
            models = [{"id": name, "object": "model", "created": 0, "owned_by": "embedded"} for name in _MODELS]
            return json_answer({"object": "list", "data": models})
        with self._lock:
            stored = self._stored.get(endpoint.removeprefix("/responses/"))
        if received.method == "GET" and stored is not None:
            return json_answer(stored)
        message = f"Invalid URL ({received.method} {received.path})"
        missing = Reply.error(_NOT_FOUND, message, code="unknown_url")
        return json_answer({"error": missing.error_object}, _NOT_FOUND)
