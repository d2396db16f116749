"""Serve the application by itself: in a thread beside a script, or as a program."""

import socket
import threading
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from taskpilot_instrument._instrument import instrumentation
from taskpilot_instrument.errors import ConfigurationError
from taskpilot_instrument.runtime import Instrumentation

_LAST_PORT = 65_535
_LOCAL_ADDRESSES = frozenset({"127.0.0.1", "::1", "localhost"})


class Server:
    """A running server; ``with serve(port=8080): …`` stops it at the end of the block."""

    def __init__(self, server: Any, host: str, bound: socket.socket) -> None:
        self._server = server
        self._host = host
        self._bound = bound
        self._thread = threading.Thread(target=self._run, name="taskpilot-web", daemon=True)

    def _run(self) -> None:
        # uvicorn leaves the process where it cannot start; start() tells our caller.
        with suppress(SystemExit):
            self._server.run(sockets=[self._bound])

    def start(self) -> Self:
        """Start it, and wait until it answers.

        :raises ConfigurationError: where it cannot be started.
        """
        self._thread.start()
        while not self._server.started:
            self._thread.join(0.01)
            if not self._thread.is_alive():
                raise ConfigurationError(f"the page cannot be served on {self._host}: its server ended at once")
        return self

    @property
    def url(self) -> str:
        """Where the page is."""
        port = self._bound.getsockname()[1]
        return f"http://{f'[{self._host}]' if ':' in self._host else self._host}:{port}/"

    def stop(self) -> None:
        """Stop it; pages that watch are let go, what is being answered is given two seconds."""
        self._server.should_exit = True
        self._thread.join(2)
        self._server.force_exit = True
        self._thread.join(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def serve(
    port: int = 8080,
    *,
    host: str = "127.0.0.1",
    token: str | None = None,
    cors_origins: Iterable[str] = (),
    handle: Instrumentation | None = None,
    source: str | None = None,
) -> Server:
    """Serve the page and the API in a thread beside the application.

    :param port: 0 picks a free one; see :attr:`Server.url`.
    :param host: address to bind to; any other than this machine's own needs a token.
    :param token: bearer token that requests have to bring.
    :param cors_origins: origins whose pages may ask.
    :param handle: what is shown; the instrumentation in force by default.
    :param source: Prometheus whose golden signals are shown, those of all processes; else the setting ``source``.
    :raises ConfigurationError: for an open address without a token, a port that is taken or none, or without the
        extra ``web``.
    :raises NotInstrumentedError: before ``instrument()``.
    """
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= _LAST_PORT:
        raise ConfigurationError(f"port={port!r}: expected a whole number from 0 to {_LAST_PORT}")
    if host not in _LOCAL_ADDRESSES and not token:
        raise ConfigurationError(
            f"host={host!r} can be reached from elsewhere: give a token=, such as secrets.token_urlsafe()"
        )
    try:
        import uvicorn

        from taskpilot_instrument.web.app import create_app
        from taskpilot_instrument.web.gate import LOOPBACK
    except ImportError as error:
        raise ConfigurationError("the page needs: pip install 'taskpilot-instrument[web]'") from error
    shown = handle or instrumentation()
    hosts = LOOPBACK if host in _LOCAL_ADDRESSES else None
    running: list[uvicorn.Server] = []
    app = create_app(
        shown,
        token=token,
        hosts=hosts,
        cors_origins=cors_origins,
        is_stopping=lambda: running[0].should_exit,
        source=source,
    )
    config = uvicorn.Config(app, host=host, port=port, log_level="error", access_log=False, lifespan="off")
    running.append(uvicorn.Server(config))
    return Server(running[0], host, _bind(host, port)).start()


def _bind(host: str, port: int) -> socket.socket:
    """Take the port; here rather than in uvicorn, which logs why it could not, and ends the process.

    :raises ConfigurationError: where it cannot be had.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        why = (error.strerror or str(error)).partition(" (")[0]
        raise ConfigurationError(
            f"the page cannot be served on {host}:{port} ({why}): choose another port (--port), or 0, which picks a "
            f"free one"
        ) from error
