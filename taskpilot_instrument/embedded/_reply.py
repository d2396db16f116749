"""What a test asks the embedded server to answer, and what the server received."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Self

from taskpilot_instrument.usage import TokenUsage

#: OpenAI, OpenAI under a prefix, and Azure's deployments all end in the same endpoint.
_PREFIX: Final = re.compile(r"^(/openai)?(/v1)?(/deployments/[^/]+)?")

#: Error type and code that OpenAI sends with a status.
_ERRORS: Final[dict[int, tuple[str, str | None]]] = {
    400: ("invalid_request_error", None),
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("invalid_request_error", "unsupported_country_region_territory"),
    404: ("invalid_request_error", "model_not_found"),
    409: ("invalid_request_error", "conflict"),
    422: ("invalid_request_error", None),
    429: ("requests", "rate_limit_exceeded"),
    503: ("service_unavailable_error", None),
}


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it arrived.

    :param number: 1 for the first request to this server.
    :param path: as sent, with the query.
    :param headers: names in lower case.
    :param body: the parsed JSON; None where there was none, or it was none.
    """

    number: int
    method: str
    path: str
    headers: dict[str, str]
    body: Any

    @property
    def endpoint(self) -> str:
        """The path below the API's root, such as ``/chat/completions``, for OpenAI and Azure alike."""
        return _PREFIX.sub("", self.path.partition("?")[0])

    @property
    def payload(self) -> dict[str, Any]:
        """The body where it is a JSON object, else an empty one."""
        return self.body if isinstance(self.body, dict) else {}


class ToolCall(NamedTuple):
    """A function that the model wants called.

    :param arguments: an object, or the exact text to send (it need not be JSON).
    """

    name: str
    arguments: Mapping[str, Any] | str = "{}"

    @property
    def arguments_text(self) -> str:
        """The arguments as the API sends them."""
        return self.arguments if isinstance(self.arguments, str) else json.dumps(self.arguments)


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer, for whichever endpoint asks: plain or streamed as the request says.

    What the answer says:

    :param text: the message; None for a text made from the request.
    :param tool_calls: functions to call; then there is no text unless one is given.
    :param refusal: a refusal in place of a text.
    :param finish_reason: as chat completions name it; ``length`` and ``content_filter`` make a Responses
        API reply ``incomplete``.
    :param failure: message of a Responses API reply whose status is ``failed``.
    :param usage: token numbers; None to count them from request and text.
    :param send_usage: False for a provider that never tells its usage.
    :param model: None for the dated name that OpenAI answers with.
    :param service_tier: such as ``default`` or ``priority``.
    :param headers: sent beside the usual ones, or in place of them.

    How it goes wrong. A *part* is one event of a stream, or the one body of a plain answer:

    :param delay: seconds before the first byte.
    :param part_delay: seconds before each part but the first.
    :param error_after: parts of a stream after which an error event ends it.
    :param cut_after: parts after which the connection is closed without a proper end.
    :param truncate: bytes of the plain body to send, as if that were all.

    What is sent as it stands, on any path (see :meth:`error`, :meth:`raw` and :meth:`events`):

    :param status: HTTP status; an error body is made from ``error_*`` where it is 400 or more.
    :param body: exact bytes.
    :param parts: events of a stream.
    """

    text: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    refusal: str | None = None
    finish_reason: str | None = None
    failure: str | None = None
    usage: TokenUsage | None = None
    send_usage: bool = True
    model: str | None = None
    service_tier: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    delay: float = 0.0
    part_delay: float = 0.0
    error_after: int | None = None
    cut_after: int | None = None
    truncate: int | None = None

    status: int = 200
    error_message: str | None = None
    error_type: str | None = None
    error_code: str | None = None
    error_param: str | None = None
    body: bytes | None = None
    parts: tuple[Mapping[str, Any] | str, ...] | None = None
    content_type: str = "application/json"

    @classmethod
    def error(
        cls,
        status: int,
        message: str | None = None,
        *,
        type: str | None = None,  # noqa: A002 - the API's own word
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        delay: float = 0.0,
    ) -> Self:
        """Answer with an HTTP error in OpenAI's shape.

        :param status: 400 or more; type and code default to what OpenAI sends with it.
        :param headers: such as ``retry-after-ms`` or ``x-should-retry``.
        :param delay: seconds before the first byte.
        """
        usual_type, usual_code = _ERRORS.get(status, ("server_error", None))
        return cls(
            status=status,
            error_message=message or f"The embedded server was asked to answer {status}.",
            error_type=type or usual_type,
            error_code=code or usual_code,
            error_param=param,
            headers=headers or {},
            delay=delay,
        )

    @classmethod
    def raw(
        cls,
        body: bytes,
        *,
        status: int = 200,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> Self:
        """Answer with exactly these bytes, on any path."""
        return cls(body=body, status=status, content_type=content_type, headers=headers or {})

    @classmethod
    def events(cls, *events: Mapping[str, Any] | str, part_delay: float = 0.0, cut_after: int | None = None) -> Self:
        """Answer with exactly these server-sent events, on any path.

        :param events: an object is sent as JSON, a string as it stands (``[DONE]`` is not added).
        """
        return cls(parts=events, part_delay=part_delay, cut_after=cut_after)

    @property
    def is_literal(self) -> bool:
        """True where no endpoint is needed to make the answer."""
        return self.body is not None or self.parts is not None or self.error_message is not None

    @property
    def error_object(self) -> dict[str, Any]:
        """The ``error`` object of an error body or of an error event within a stream."""
        return {
            "message": self.error_message or "The server had an error while processing your request.",
            "type": self.error_type or "server_error",
            "param": self.error_param,
            "code": self.error_code,
        }
