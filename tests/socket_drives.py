"""What the tests of the client's WebSockets share: drives of both surfaces, and what a server says."""

import importlib
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from socket_server import (
    SURFACES,
    Drive,
    Said,
    SocketServer,
    begun,
    configured,
    done,
    piece,
)

from taskpilot_instrument.testing import Captured

#: 55 text, 13 audio and 64 cached text tokens in, 30 text and 91 audio tokens out of gpt-realtime.
REALTIME_USD = (55 * Decimal(4) + 13 * 32 + 64 * Decimal("0.4") + 30 * 16 + 91 * 64) / 1_000_000
CHAT_USD = Decimal("0.0000525")


def _is_there(surface: str) -> bool:
    name = surface.rpartition(".")[2]
    try:
        module = importlib.import_module(f"openai.resources.{surface}.{name}")
    except ImportError:
        return False
    return hasattr(module, f"{name.title()}Connection")


THERE = [surface for surface in SURFACES if _is_there(surface)]
DRIVES = [
    pytest.param(Drive(surface, is_async), id=f"{surface}-{'async' if is_async else 'sync'}")
    for surface in THERE
    for is_async in (False, True)
]
REALTIME = [each for each in DRIVES if "realtime" == each.values[0].surface]  # type: ignore[union-attr]
RESPONSES = [each for each in DRIVES if "responses" == each.values[0].surface]  # type: ignore[union-attr]
BOTH = REALTIME + RESPONSES
every = pytest.mark.parametrize("drive", DRIVES)
both = pytest.mark.parametrize("drive", BOTH)
realtime = pytest.mark.parametrize("drive", REALTIME)
responses = pytest.mark.parametrize("drive", RESPONSES)


def whole(surface: str) -> Callable[[dict[str, Any]], list[Said]]:
    """Answer each request for a response with one, numbered."""
    numbers = iter(range(1, 1_000))

    def answer(message: dict[str, Any]) -> list[Said]:
        if message["type"] != "response.create":
            return []
        name = f"resp_{next(numbers)}"
        return [begun(surface, name), piece(surface, name), piece(surface, name), done(surface, name)]

    return answer


def ending(drive: Drive) -> str:
    """Return the type of the message that ends a response."""
    return "response.done" if "realtime" in drive.surface else "response.completed"


def greeting(drive: Drive) -> list[Said]:
    """Return what a server says first."""
    return [configured()] if "realtime" in drive.surface else []


def serving(drive: Drive, *said: Said) -> SocketServer:
    """Return a server that says this to each request for a response."""
    return SocketServer(lambda message: said if message["type"] == "response.create" else (), greeting(drive))


def tags_of(captured: Captured) -> list[dict[str, Any]]:
    """Return the tags of each LLM call."""
    every = [dict(span.attributes or {}) for span in captured.spans]
    return [tags for tags in every if "gen_ai.request.model" in tags or "cost_source" in tags]
