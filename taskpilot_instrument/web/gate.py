"""What every request passes: whose host it is, who asks, how often, and how much it brings."""

import hmac
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final

from taskpilot_instrument.web.assets import TYPES
from taskpilot_instrument.web.problems import problem

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

MOST_BYTES: Final = 64 * 1024
_PER_MINUTE: Final = 1_200
_MOST_CLIENTS: Final = 10_000
#: A page of somebody else's that a browser loaded may not ask a loopback server by another name (DNS rebinding).
LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "[::1]", "::1", "testserver"})
#: Served without a token: the empty page asks for it, and probes have none.
_OPEN_PATHS: Final = frozenset({*TYPES, "/healthz"})
_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
)


class Gate:
    """Refuse what may not pass, before it is read.

    :param token: bearer token that is asked for; None asks for none.
    :param hosts: names that a request may ask for; None takes any.
    :param per_minute: requests that one client may make in a minute.
    """

    def __init__(
        self,
        app: Application,
        *,
        token: str | None = None,
        hosts: Iterable[str] | None = None,
        per_minute: int = _PER_MINUTE,
    ) -> None:
        self._app = app
        self._token = token
        self._hosts = None if hosts is None else frozenset(hosts)
        self._per_minute = per_minute
        self._asked: OrderedDict[str, tuple[float, float]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        await self._app(scope, _limited(receive), _with_headers(send))

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes]) -> Any:
        host = headers.get(b"host", b"").decode("latin-1").rsplit(":", 1)[0]
        if self._hosts is not None and host not in self._hosts:
            return problem(421, "this server does not answer to that name")
        if not self._may_ask(scope):
            return problem(429, "too many requests", headers={"Retry-After": "5"})
        # Mounted under a path, what is asked for is what comes after it.
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if self._token is not None and path not in _OPEN_PATHS and not self._is_known(headers):
            return problem(401, "a token is needed", headers={"WWW-Authenticate": "Bearer"})
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > MOST_BYTES:
            return problem(413, f"a request may have {MOST_BYTES} bytes")
        return None

    def _is_known(self, headers: dict[bytes, bytes]) -> bool:
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        expected = (self._token or "").encode()
        return scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), expected)

    def _may_ask(self, scope: Scope) -> bool:
        """Take a token of the client's bucket, which fills up again within a minute."""
        client = (scope.get("client") or ("unknown",))[0]
        now = time.monotonic()
        left, since = self._asked.pop(client, (float(self._per_minute), now))
        left = min(self._per_minute, left + (now - since) * self._per_minute / 60)
        self._asked[client] = (left - 1 if left >= 1 else left, now)
        if len(self._asked) > _MOST_CLIENTS:
            self._asked.popitem(last=False)
        return left >= 1


def _limited(receive: Receive) -> Receive:
    """Stop reading a body that says no length where it grows too long."""
    seen = 0

    async def take() -> Message:
        nonlocal seen
        message = await receive()
        if message["type"] == "http.request":
            seen += len(message.get("body", b""))
            if seen > MOST_BYTES:
                return {"type": "http.disconnect"}
        return message

    return take


def _with_headers(send: Send) -> Send:
    async def give(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
        await send(message)

    return give
