"""Patch the OpenAI client at its transport.

``SyncAPIClient.request`` and ``AsyncAPIClient.request`` see every call: of clients and bound methods
made before patching, of ``with_raw_response``, ``parse``, ``stream``, ``client.post`` and Azure. Three
zones: before the call, the call, after it. The outer two are guarded and never touch the result.
"""

from collections.abc import Callable
from typing import Any

from taskpilot_instrument._guard import swallow
from taskpilot_instrument._operation import Operation, current
from taskpilot_instrument._recorder import active
from taskpilot_instrument.health import tally
from taskpilot_instrument.patches._openai_attributes import rate_limits
from taskpilot_instrument.patches._openai_call import Call
from taskpilot_instrument.patches._openai_late import Retrieval
from taskpilot_instrument.patches._openai_request import body_of, llm_call, server_of
from taskpilot_instrument.patches._openai_surfaces import surface_of
from taskpilot_instrument.patches._patching import Patch
from taskpilot_instrument.semconv import Kind


def patches() -> list[Patch]:
    """Return the patches for the installed openai package.

    :raises ImportError: where it is not installed.
    """
    from openai._base_client import AsyncAPIClient, SyncAPIClient

    return [
        Patch(SyncAPIClient, "request", _request),
        Patch(AsyncAPIClient, "request", _async_request),
        # Private, so optional: adds retries and the provider's request id to plain results.
        Patch(SyncAPIClient, "_process_response", _process_response, optional=True),
        Patch(AsyncAPIClient, "_process_response", _async_process_response, optional=True),
    ]


def _request(wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    call = _before(client, args, kwargs)
    if call is None:
        return wrapped(*args, **kwargs)
    try:
        call.begin(is_async=False)
        refused = False
        try:
            result = wrapped(*call.args, **call.kwargs)
        except Exception as error:
            refused = call.takes_back(error)
            if not refused:
                raise
        if refused:
            result = wrapped(*call.args, **call.kwargs)
            call.was_taken_without()
    except BaseException as error:
        call.operation.leave()
        call.failed(error)
        raise
    call.operation.leave()
    call.returned(result)
    return result


async def _async_request(
    wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    call = _before(client, args, kwargs)
    if call is None:
        return await wrapped(*args, **kwargs)
    try:
        call.begin(is_async=True)
        refused = False
        try:
            result = await wrapped(*call.args, **call.kwargs)
        except Exception as error:
            refused = call.takes_back(error)
            if not refused:
                raise
        if refused:
            result = await wrapped(*call.args, **call.kwargs)
            call.was_taken_without()
    except BaseException as error:
        call.operation.leave()
        call.failed(error)
        raise
    call.operation.leave()
    call.returned(result)
    return result


def _process_response(wrapped: Callable[..., Any], _client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    _note_transport(kwargs)
    return wrapped(*args, **kwargs)


async def _async_process_response(
    wrapped: Callable[..., Any], _client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    _note_transport(kwargs)
    return await wrapped(*args, **kwargs)


def _note_transport(kwargs: dict[str, Any]) -> None:
    try:
        operation = current()
        if operation is not None and operation.llm is not None and operation.subject is not None:
            headers = kwargs["response"].headers
            operation.llm.retries = kwargs.get("retries_taken") or 0
            operation.llm.provider_request_id = headers.get("x-request-id")
            if operation.span.is_recording():
                operation.llm.request.update(rate_limits(headers))
    except Exception as error:
        swallow("transport", error)


# --- before the call ----------------------------------------------------------------------------


def _before(client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    """Make the operation of a call that is billed or tells a bill; None for any other, and where our own code fails."""
    recorder = active()
    if recorder is None:
        return None
    try:
        options = kwargs["options"] if "options" in kwargs else args[1]
        surface = surface_of(options.method, options.url)
        if surface is None:
            return None
        around = current()
        if around is not None and around.subject is options:
            return None  # somebody's layer calls ours twice for one request
        streamed = bool(kwargs.get("stream"))
        if surface.is_late:
            return Retrieval(recorder, server_of(client), surface, options, args, kwargs)
        tally.seen()
        body = body_of(options)
        llm = llm_call(surface, body, server_of(client), streamed=streamed)
        if surface.beside is not None:
            llm.beside = surface.beside(body)
        operation = Operation(recorder, Kind.LLM, llm.operation, subject=options, llm=llm)
        return Call(operation, llm, surface, options, args, kwargs)
    except Exception as error:
        swallow("before", error)
        return None
