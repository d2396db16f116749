"""Read response bodies that the caller takes as bytes: JSON documents and server-sent events."""

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Final, Protocol

#: A body larger than this is not kept for reading; its usage is unknown then.
MAX_BODY_BYTES: Final = 32 * 1024 * 1024


def _namespace(members: dict[str, Any]) -> SimpleNamespace:
    namespace = SimpleNamespace()
    namespace.__dict__.update(members)
    return namespace


def parse(body: bytes | str) -> Any:
    """Return a JSON document with attributes in place of keys, so that one reader serves both shapes.

    :raises ValueError: where it is no JSON.
    """
    return json.loads(body, object_hook=_namespace)


def as_object(value: Any) -> Any:
    """Give dictionaries attributes, all the way down; other values are returned as they are."""
    if isinstance(value, dict):
        return _namespace({key: as_object(item) for key, item in value.items()})
    if isinstance(value, list):
        return [as_object(item) for item in value]
    return value


class Body(Protocol):
    """Take a response body in pieces."""

    def feed(self, part: bytes, /) -> None:
        """Take the next bytes."""

    def end(self) -> None:
        """Hear that there are no more."""


class NoBody:
    """Take a body that nobody reads here: a sound, a picture."""

    def feed(self, part: bytes) -> None:
        """Drop the bytes."""

    def end(self) -> None:
        """Do nothing."""


class JsonBody:
    """Collect the bytes of a JSON document and show it once the body ends.

    :param show: called with the parsed document.
    """

    def __init__(self, show: Callable[[Any], None]) -> None:
        self._show = show
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, part: bytes) -> None:
        """Take the next bytes."""
        self._size += len(part)
        if self._size <= MAX_BODY_BYTES:
            self._parts.append(part)

    def end(self) -> None:
        """Parse what was collected; an incomplete document shows nothing."""
        parts, self._parts = self._parts, []
        if not parts or self._size > MAX_BODY_BYTES:
            return
        try:
            document = parse(b"".join(parts))
        except ValueError:
            return
        self._show(document)


class EventBody:
    """Split the bytes of an event stream into events and show each one's data.

    :param show: called with the parsed data of each event, except the final ``[DONE]``.
    """

    def __init__(self, show: Callable[[Any], None]) -> None:
        self._show = show
        self._rest = b""

    def feed(self, part: bytes) -> None:
        """Take the next bytes."""
        *lines, self._rest = (self._rest + part).split(b"\n")
        if len(self._rest) > MAX_BODY_BYTES:
            self._rest = b""
        for line in lines:
            self._line(line)

    def end(self) -> None:
        """Show an event whose line end never came."""
        rest, self._rest = self._rest, b""
        self._line(rest)

    def _line(self, line: bytes) -> None:
        if not line.startswith(b"data:"):
            return
        data = line[5:].strip()
        if not data or data.startswith(b"[DONE]"):
            return
        try:
            event = parse(data)
        except ValueError:
            return
        self._show(event)
