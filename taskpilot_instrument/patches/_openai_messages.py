"""Read what goes over the client's WebSockets, and leave unread what is only sound or a word more."""

import json
import re
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs

from taskpilot_instrument.patches._openai_request import Server, provider_at

#: The type of a message, where it stands at the front; then the rest, which may be a second of sound, is not parsed.
_KIND: Final = re.compile(
    r'\s*\{\s*(?:"(?:event_id|stream_id|sequence_number)"\s*:\s*(?:"[^"\\]*"|\d+|null)\s*,\s*)*"type"\s*:\s*"([^"\\]+)"'
)
_FRONT: Final = 300
_DEFAULT_PORTS: Final = {True: 443, False: 80}
#: Settings of a realtime session that hold for each of its responses; beside them how older ones were called.
_SETTINGS: Final = {
    "instructions": "instructions",
    "tools": "tools",
    "temperature": "temperature",
    "prompt": "prompt",
    "reasoning": "reasoning",
    "modalities": "modalities",
    "output_modalities": "modalities",
    "max_output_tokens": "max_output_tokens",
    "max_response_output_tokens": "max_output_tokens",
    "input": "input",
}


def kind_of(message: str | bytes) -> str | None:
    """Return the type of a message; None where it does not stand at the front."""
    front = message[:_FRONT]
    found = _KIND.match(front if isinstance(front, str) else front.decode("latin-1"))
    return found[1] if found is not None else None


def document_of(message: str | bytes) -> dict[str, Any]:
    """Return a message as JSON; empty where it is none."""
    try:
        document = json.loads(message)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def inner(document: dict[str, Any], *path: str) -> dict[str, Any]:
    """Return an object inside a document; empty where there is none."""
    for name in path:
        found = document.get(name)
        document = found if isinstance(found, dict) else {}
    return document


def word(document: dict[str, Any], name: str) -> str | None:
    """Return a member that is a text; None where it is none."""
    value = document.get(name)
    return value if isinstance(value, str) and value else None


def settings_of(holder: dict[str, Any]) -> dict[str, Any]:
    """Return what a realtime session, or one response of it, asks for, in the words of the Responses API."""
    return {_SETTINGS[name]: value for name, value in holder.items() if name in _SETTINGS and value is not None}


class Place(NamedTuple):
    """Where a socket leads.

    :param model: that its address names.
    :param call: the call that it listens to, which somebody else speaks in.
    """

    server: Server
    model: str | None
    call: str | None


def place_of(socket: Any) -> Place:
    """Read where a socket of the ``websockets`` library leads."""
    protocol = socket.protocol
    uri = getattr(protocol, "uri", None) or protocol.wsuri  # so until version 14
    query = parse_qs(uri.query)
    port = "" if uri.port == _DEFAULT_PORTS[uri.secure] else f":{uri.port}"
    folder = uri.path.rpartition("/")[0]
    url = f"{'https' if uri.secure else 'http'}://{uri.host}{port}{folder}/"
    server = Server(uri.host, uri.port, url, provider_at(uri.host, is_azure="api-version" in query))
    model, call = ((query.get(name) or [None])[0] for name in ("model", "call_id"))
    return Place(server, model or (query.get("deployment") or [None])[0], call)
