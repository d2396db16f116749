"""What is known of one LLM call while it runs, and of any operation once it has finished."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from opentelemetry.trace import Span

from taskpilot_instrument.context import Ids
from taskpilot_instrument.semconv import Kind, Outcome
from taskpilot_instrument.usage import TokenUsage


class LLMCall:
    """What a patch learns about one LLM call while it runs; nobody writes to it after the finish.

    Times are monotonic nanoseconds. ``request`` holds span attributes read off the request.
    """

    __slots__ = (
        "base_url", "billable", "finish_reasons", "first_chunk_ns", "input_messages", "model",
        "operation", "output_messages", "provider", "provider_request_id", "request", "response_id",
        "response_model", "retries", "server_address", "server_port", "service_tier", "streamed",
        "system_instructions", "usage",
    )  # fmt: skip

    def __init__(
        self,
        operation: str,
        model: str | None,
        *,
        provider: str = "openai",
        request: dict[str, Any] | None = None,
        server_address: str | None = None,
        server_port: int | None = None,
        base_url: str | None = None,
        streamed: bool = False,
    ) -> None:
        self.operation = operation
        self.model = model
        self.provider = provider
        self.request = request or {}
        self.server_address = server_address
        self.server_port = server_port
        self.base_url = base_url
        self.streamed = streamed
        self.response_model: str | None = None
        self.response_id: str | None = None
        self.finish_reasons: tuple[str, ...] = ()
        self.service_tier: str | None = None
        self.usage: TokenUsage | None = None
        #: True where the provider may bill the call: it answered, or nobody waited for its answer.
        self.billable = False
        self.first_chunk_ns: int | None = None
        self.retries = 0
        self.provider_request_id: str | None = None
        self.input_messages: str | None = None
        self.output_messages: str | None = None
        self.system_instructions: str | None = None


class Finished(NamedTuple):
    """The frozen record of one operation: all that a sink may know.

    On workflows and agents, ``usage`` and ``cost`` add up everything beneath them; on LLM calls they
    are the call's own. ``cost`` is exact USD, None where unknown. ``agent`` and ``workflow`` name the
    innermost ones around the operation (or the operation itself).
    """

    kind: Kind
    name: str
    outcome: Outcome
    span: Span
    ids: Ids
    attributes: Mapping[str, Any] | None
    workflow: str | None
    agent: str | None
    model: str | None
    started_at_ns: int
    duration_ns: int
    usage: TokenUsage | None
    cost: Decimal | None
    cost_source: str | None
    error: BaseException | None
    error_type: str | None
    reason: str | None
    llm: LLMCall | None
    input_length: int | None
    output_length: int | None
    input_text: str | None
    output_text: str | None
    time_to_first_chunk_ns: int | None
