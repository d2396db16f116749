"""See the responses that go over the client's WebSockets: realtime sessions, and those of the Responses API.

The client's connection stays as it is. Hooked is the socket beneath, on which every way through the client ends: what
is sent, queued or put on a lane, what is received one by one, iterated over or dispatched, and what reconnects. Two
hooks on one object stand for a dozen methods of eight classes.
"""

import functools
import importlib
import weakref
from collections.abc import Awaitable, Callable
from typing import Any, Final

from taskpilot_instrument._guard import swallow
from taskpilot_instrument._recorder import active
from taskpilot_instrument._streams import Watch
from taskpilot_instrument.patches._openai_messages import place_of
from taskpilot_instrument.patches._openai_session import Session
from taskpilot_instrument.patches._patching import Patch, Wrapper

#: Where connections are made, newest first; which of them there are depends on the client's version.
_MODULES: Final = {
    "openai.resources.realtime.realtime": ("RealtimeConnection", "AsyncRealtimeConnection"),
    "openai.resources.responses.responses": ("ResponsesConnection", "AsyncResponsesConnection"),
    "openai.resources.beta.realtime.realtime": ("RealtimeConnection", "AsyncRealtimeConnection"),
    "openai.resources.beta.responses.responses": ("ResponsesConnection", "AsyncResponsesConnection"),
}


def patches() -> list[Patch]:
    """Return the patches for the connections that the installed openai package has."""
    found = []
    for module, names in _MODULES.items():
        try:
            made = importlib.import_module(module)
        except ImportError:
            continue
        classes = [each for name in names if (each := getattr(made, name, None)) is not None]
        found += [Patch(each, "__init__", _wrapper(each.__name__)) for each in classes]
    return found


def _wrapper(name: str) -> Wrapper:
    hook = _hook_async if name.startswith("Async") else _hook
    is_realtime = "Realtime" in name

    def init(wrapped: Callable[..., Any], connection: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        wrapped(*args, **kwargs)
        if active() is None:
            return
        try:
            session = Session(is_realtime=is_realtime)
            hook(session, connection._connection)  # noqa: SLF001 - the same name in every version
            _hook_the_rest(session, connection, hook)
        except Exception as error:
            swallow("socket", error)

    return init


def _hook_the_rest(session: Session, connection: Any, hook: Callable[[Session, Any], None]) -> None:
    """Hook what newer clients have beside the socket, and hear when the connection is collected."""
    make = getattr(connection, "_make_ws", None)
    if make is not None:
        remake = _remake if hook is _hook else _remake_async
        connection._make_ws = functools.partial(remake, session, make)  # noqa: SLF001 - what reconnects
    queue = getattr(connection, "_send_queue", None)
    if queue is not None:
        queue.enqueue = functools.partial(_enqueue, session, queue.enqueue)
    # The socket lives on where nobody closes it: its reader holds it.
    weakref.finalize(connection, _end, session, Watch.abandoned).atexit = False


def _end(session: Session, how: Callable[[Watch], None]) -> None:
    """End what is open."""
    try:
        session.ended(how)
    except Exception as error:
        swallow("socket", error)


def _remake(session: Session, make: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    socket = make(*args, **kwargs)
    _try_to_hook(_hook, session, socket)
    return socket


async def _remake_async(session: Session, make: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
    socket = await make(*args, **kwargs)
    _try_to_hook(_hook_async, session, socket)
    return socket


def _try_to_hook(hook: Callable[[Session, Any], None], session: Session, socket: Any) -> None:
    try:
        hook(session, socket)
    except Exception as error:
        swallow("socket", error)


def _enqueue(session: Session, original: Callable[..., Any], data: Any, *args: Any, **kwargs: Any) -> Any:
    """Keep what was refused out of the queue in which version 2 keeps what it could not send, to send it later."""
    if data is session.refused:
        session.refused = None
        return None
    return original(data, *args, **kwargs)


# --- the socket ---------------------------------------------------------------------------------


class _Hooks:
    """What the hooks of one socket share.

    :param socket: of the ``websockets`` library.
    """

    def __init__(self, session: Session, socket: Any) -> None:
        from websockets.exceptions import ConnectionClosed

        session.opened(place_of(socket))
        self.session = session
        self.send, self.recv, self.close = socket.send, socket.recv, socket.close
        self._closed: type[BaseException] = ConnectionClosed
        #: True once the application has closed it.
        self.is_closing = False

    def heard(self, message: Any) -> None:
        """Take note of a message of the server's."""
        try:
            self.session.heard(message)
        except Exception as error:
            swallow("socket", error)

    def broke(self, error: BaseException) -> None:
        """Take note that nothing was received; waiting may have been given up, and go on later."""
        if isinstance(error, self._closed):
            _end(self.session, Watch.closed if self.is_closing else lambda watch: watch.failed(error))

    def not_sent(self, asked: Any, error: Exception) -> None:
        """Take note that a message could not be sent; one whose sender was cancelled may have been."""
        try:
            if asked is not None:
                self.session.not_sent(asked, error)
        except Exception as problem:
            swallow("socket", problem)


def _hook(session: Session, socket: Any) -> None:
    hooks = _Hooks(session, socket)
    original_send, original_recv, original_close = hooks.send, hooks.recv, hooks.close

    @functools.wraps(original_send)
    def send(message: Any, *args: Any, **kwargs: Any) -> Any:
        asked = session.sending(message)
        try:
            return original_send(message, *args, **kwargs)
        except Exception as error:
            hooks.not_sent(asked, error)
            raise

    @functools.wraps(original_recv)
    def recv(*args: Any, **kwargs: Any) -> Any:
        try:
            message = original_recv(*args, **kwargs)
        except BaseException as error:
            hooks.broke(error)
            raise
        hooks.heard(message)
        return message

    @functools.wraps(original_close)
    def close(*args: Any, **kwargs: Any) -> Any:
        hooks.is_closing = True
        try:
            return original_close(*args, **kwargs)
        finally:
            _end(session, Watch.closed)

    socket.send, socket.recv, socket.close = send, recv, close


def _hook_async(session: Session, socket: Any) -> None:
    hooks = _Hooks(session, socket)
    original_send, original_recv, original_close = hooks.send, hooks.recv, hooks.close

    @functools.wraps(original_send)
    async def send(message: Any, *args: Any, **kwargs: Any) -> Any:
        asked = session.sending(message)
        try:
            return await original_send(message, *args, **kwargs)
        except Exception as error:
            hooks.not_sent(asked, error)
            raise

    @functools.wraps(original_recv)
    async def recv(*args: Any, **kwargs: Any) -> Any:
        try:
            message = await original_recv(*args, **kwargs)
        except BaseException as error:
            hooks.broke(error)
            raise
        hooks.heard(message)
        return message

    @functools.wraps(original_close)
    async def close(*args: Any, **kwargs: Any) -> Any:
        hooks.is_closing = True
        try:
            return await original_close(*args, **kwargs)
        finally:
            _end(session, Watch.closed)

    socket.send, socket.recv, socket.close = send, recv, close
