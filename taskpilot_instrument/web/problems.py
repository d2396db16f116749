"""Errors as JSON problems (RFC 9457), each with a hint of what to do."""

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from taskpilot_instrument import _guard
from taskpilot_instrument.errors import ConfigurationError, LedgerError, NotInstrumentedError, SourceError

_HINTS = {
    400: 'send a JSON object such as {"request_id": "req-abc-123", "correct": true}',
    401: "send the header Authorization: Bearer <token>",
    404: "GET /openapi.json lists what there is",
    405: "GET /openapi.json lists the methods of each path",
    413: "send less",
    415: "send JSON, with Content-Type: application/json",
    421: "ask for the server by the name or address that it was told to serve",
    429: "wait a moment, and ask less often",
}


def problem(status: int, title: str, hint: str | None = None, headers: dict[str, str] | None = None) -> Response:
    """Return an error response."""
    body: dict[str, Any] = {"type": "about:blank", "title": title, "status": status}
    said = hint or _HINTS.get(status)
    if said:
        body["hint"] = said
    return JSONResponse(body, status, headers, media_type="application/problem+json")


async def on_http(_request: Request, error: Exception) -> Response:
    """Answer what routing refused."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for these
    return problem(error.status_code, error.detail, headers=dict(error.headers or {}))


async def on_bad_input(_request: Request, error: Exception) -> Response:
    """Answer input that our own API refused."""
    return problem(422, "the request is not valid", str(error))


async def on_unavailable(_request: Request, error: Exception) -> Response:
    """Answer while something behind us is not there."""
    return problem(503, str(error), "try again later", {"Retry-After": "5"})


async def on_bug(_request: Request, error: Exception) -> Response:
    """Answer an error of our own, without its words."""
    _guard.count("web")
    return problem(500, "the server made a mistake", f"{type(error).__name__}; it was counted")


HANDLERS: dict[Any, Any] = {
    HTTPException: on_http,
    ConfigurationError: on_bad_input,
    LedgerError: on_unavailable,
    SourceError: on_unavailable,
    NotInstrumentedError: on_unavailable,
    Exception: on_bug,
}
