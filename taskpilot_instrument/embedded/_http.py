"""Just enough HTTP/1.1: keep-alive, chunked uploads and streams, delays, and ends that go wrong."""

import json
import socket
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from taskpilot_instrument import _forks
from taskpilot_instrument.embedded._answer import Answer, json_answer
from taskpilot_instrument.embedded._reply import Reply

Handle = Callable[[str, str, dict[str, str], Any], tuple[Reply, Answer, str]]

#: Seconds between looks at whether to stop.
_POLL: Final = 0.02
#: Seconds to wait for a thread that is busy with something other than its connection.
_PATIENCE: Final = 5.0
_THREAD_NAME: Final = "taskpilot-embedded-server"
_BAD_REQUEST: Final = 400


class Listener(ThreadingHTTPServer):
    """Listen on a free port of 127.0.0.1 from the moment it is made.

    :param handle: takes method, path, headers and parsed body of a request; returns what to answer.
    """

    # Ten thousand calls at once are a test like any other.
    request_queue_size = 1024

    def __init__(self, handle: Handle) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.handle = handle
        self.stopping = threading.Event()
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._guard = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, args=(_POLL,), name=_THREAD_NAME, daemon=True)
        self._thread.start()
        self._is_left = False
        _forks.tell(self)

    def after_fork(self) -> None:
        """Leave the port to the parent: here is no thread that would answer."""
        self._is_left = True
        self.socket.close()

    @property
    def port(self) -> int:
        """The port that the system chose."""
        return self.server_port

    def close(self) -> None:
        """Stop listening and end every connection, also one that waits in a delay."""
        self.stopping.set()
        if self._is_left:
            return
        self.shutdown()
        self._thread.join()
        self.server_close()
        with self._guard:
            connections = dict(self._connections)
        for connection in connections:
            _hang_up(connection)
        for thread in connections.values():
            thread.join(_PATIENCE)

    def server_bind(self) -> None:
        """Bind without the look-up of the host's name that HTTPServer makes: it can take seconds."""
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread of its own, and remember both so that ``close`` can end them."""
        thread = threading.Thread(
            target=self.process_request_thread, args=(request, client_address), name=_THREAD_NAME, daemon=True
        )
        with self._guard:
            self._connections[request] = thread
        thread.start()

    def shutdown_request(self, request: Any) -> None:
        """Forget the connection."""
        with self._guard:
            self._connections.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away: tests make them do so on purpose."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Read a request, ask for the answer, write it."""

    server: Listener
    protocol_version = "HTTP/1.1"
    server_version = "taskpilot-embedded"
    sys_version = ""
    # One write per answer: with many small ones, delayed acknowledgements cost 40 ms each.
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        """Answer a request with a body."""
        self._answer()

    do_GET = do_PUT = do_PATCH = do_DELETE = do_POST  # noqa: N815 - the base class looks for these names

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Keep quiet: a line for each request would drown what the test or the demo has to say."""

    def _answer(self) -> None:
        raw = self._read()
        try:
            body = json.loads(raw) if raw else None
        except ValueError:
            self._write(Reply(), json_answer({"error": _not_json().error_object}, _BAD_REQUEST), "req_invalid")
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        self._write(*self.server.handle(self.command, self.path, headers, body))

    # --- reading --------------------------------------------------------------------------------

    def _read(self) -> bytes:
        if "chunked" in self.headers.get("transfer-encoding", "").lower():
            return self._read_chunked()
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def _read_chunked(self) -> bytes:
        body = bytearray()
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return bytes(body)

    # --- writing --------------------------------------------------------------------------------

    def _write(self, reply: Reply, answer: Answer, request_id: str) -> None:
        if self._stopped_in(reply.delay):
            return
        self._write_head(reply, answer, request_id)
        for sent, part in enumerate(answer.parts):
            if sent == reply.cut_after or (sent and self._stopped_in(reply.part_delay)):
                self._cut()
                return
            self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part) if answer.streamed else part)
            if answer.streamed:
                self.wfile.flush()
        if reply.cut_after is not None and reply.cut_after >= len(answer.parts):
            self._cut()
            return
        if answer.streamed:
            self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()

    def _write_head(self, reply: Reply, answer: Answer, request_id: str) -> None:
        headers = {
            "content-type": answer.content_type,
            "x-request-id": request_id,
            "openai-version": "2020-10-01",
            "openai-processing-ms": "1",
            **({"transfer-encoding": "chunked"} if answer.streamed else {"content-length": str(len(answer.parts[0]))}),
            **{name.lower(): value for name, value in reply.headers.items()},
        }
        self.send_response(answer.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _stopped_in(self, seconds: float) -> bool:
        """Wait; True where the server was stopped meanwhile, and the connection with it."""
        if seconds > 0:
            self.wfile.flush()
            if self.server.stopping.wait(seconds):
                self.close_connection = True
                return True
        return False

    def _cut(self) -> None:
        """End the connection where the client expects more."""
        self.wfile.flush()
        self.close_connection = True
        _hang_up(self.connection)


def _not_json() -> Reply:
    return Reply.error(_BAD_REQUEST, "We could not parse the JSON body of your request.")


def _hang_up(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:  # the client was faster
        pass
