"""Where log lines go: a stream, a file, a stdlib logger.

Each target takes one whole line at a time. One lock serves them all; it is held across a fork, so that the child
neither inherits it locked nor gets half a line in a stream's buffer. It is reentrant, because a signal handler may
log while the line that it interrupted is being written.
"""

import logging
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from taskpilot_instrument.errors import ConfigurationError
from taskpilot_instrument.settings import LogTarget, SupportsWrite

_lock: Final = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)

_ROTATION_CHECK_NS: Final = 1_000_000_000


class StreamTarget:
    """Write lines to a stream that somebody else opened and will close.

    :param stream: asked at each line, so that a redirected ``sys.stderr`` is found.
    """

    __slots__ = ("_stream",)

    def __init__(self, stream: Callable[[], SupportsWrite]) -> None:
        self._stream = stream

    def emit(self, line: str) -> None:
        """Write one line and flush it."""
        stream = self._stream()
        with _lock:
            stream.write(line)
            flush = getattr(stream, "flush", None)
            if flush is not None:
                flush()

    def close(self) -> None:
        """Leave the stream as it is."""


class FileTarget:
    """Append lines to a file, one system call each, so that many processes can share it.

    Where the file was moved away or removed, a new one is opened within a second.

    :param monotonic_ns: nanoseconds from an arbitrary start.
    :raises ConfigurationError: where the file cannot be opened.
    """

    def __init__(self, path: Path, monotonic_ns: Callable[[], int]) -> None:
        self._path = path
        self._now = monotonic_ns
        self._fd: int | None = None
        try:
            self._open()
        except OSError as error:
            raise ConfigurationError(
                f"logs={str(path)!r}: cannot be opened for appending ({error.strerror}); "
                "expected the path of a file in an existing directory, 'stderr', 'stdout' or 'off'"
            ) from error

    def emit(self, line: str) -> None:
        """Append one line."""
        with _lock:
            if self._fd is None or (self._now() >= self._next_check and self._is_elsewhere()):
                self._open()
            rest = line.encode()
            while rest:
                rest = rest[os.write(self._fd, rest) :]  # type: ignore[arg-type]  # _open() sets it or raises

    def close(self) -> None:
        """Close the file; a line that comes later opens it again."""
        with _lock:
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None

    def _open(self) -> None:
        self.close()
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        self._next_check = self._now() + _ROTATION_CHECK_NS

    def _is_elsewhere(self) -> bool:
        self._next_check = self._now() + _ROTATION_CHECK_NS
        try:
            return self._fd is None or not os.path.samestat(self._path.stat(), os.fstat(self._fd))
        except FileNotFoundError:
            return True


class LoggerTarget:
    """Hand lines to a stdlib logger, whose handlers write them."""

    __slots__ = ("_log",)

    def __init__(self, logger: logging.Logger) -> None:
        self._log = logger.log

    def emit(self, level: int, line: str, *, extra: dict[str, Any]) -> None:
        """Log one line."""
        self._log(level, line, extra=extra)

    def close(self) -> None:
        """Leave the logger as it is."""


def open_target(
    target: LogTarget | None, monotonic_ns: Callable[[], int]
) -> StreamTarget | FileTarget | LoggerTarget | None:
    """Return where the lines go; None for nowhere.

    :param monotonic_ns: nanoseconds from an arbitrary start.
    :raises ConfigurationError: for what is no target, or a file that cannot be opened.
    """
    if target is None or target == "off":
        return None
    if target in ("stderr", "stdout"):
        return StreamTarget(lambda: getattr(sys, target))
    if isinstance(target, logging.Logger):
        return LoggerTarget(target)
    if isinstance(target, str | Path):
        return FileTarget(Path(target), monotonic_ns)
    if callable(getattr(target, "write", None)):
        return StreamTarget(lambda: target)
    raise ConfigurationError(
        f"logs={target!r}: expected 'stderr', 'stdout', 'off', the path of a file, a stream with write(), "
        "or a logging.Logger"
    )
