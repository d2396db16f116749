"""What is known of one LLM call while it runs, and of any operation once it has finished."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from opentelemetry.trace import Span

from taskpilot_instrument.context import Ids
from taskpilot_instrument.semconv import Kind, Outcome
from taskpilot_instrument.usage import Beside, TokenUsage

if TYPE_CHECKING:
    from taskpilot_instrument._operation import Operation


class Checked(Enum):
    """Say whether anything was asked about a run: a rate of violations speaks only of runs that were checked."""

    NO = "unchecked"
    YES = "checked"
    FAILED = "check_failed"


#: What :attr:`Most.continues` begins with where it is a conversation, which grows and keeps its name.
CONVERSATION: Final = "conversation "


class Most(NamedTuple):
    """The most that a request may use, estimated from above.

    :param input_tokens: of what the request carries; None where that cannot be told, as of an uploaded recording.
    :param output_tokens: of all its answers together; None where it sets no limit.
    :param answers: how many it asks for.
    :param continues: names the response or conversation, kept by the provider, whose content is input too.
    :param has_media: whether sound or pictures go in or out, which have rates of their own.
    :param service_tier: the tier that is asked for.
    """

    input_tokens: int | None
    output_tokens: int | None = None
    answers: int = 1
    continues: str | None = None
    has_media: bool = False
    service_tier: str | None = None


class LLMCall:
    """What a patch learns about one LLM call while it runs; nobody writes to it after the finish.

    Times are monotonic nanoseconds. ``request`` holds span attributes read off the request, and off the headers of
    its response.
    """

    __slots__ = (
        "base_url", "beside", "billable", "finish_reasons", "first_chunk_ns", "input_messages", "is_fetched", "model",
        "most", "operation", "output_messages", "provider", "provider_request_id", "request", "reserved", "response_id",
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
        #: What is billed beside the tokens: hosted tools, characters, seconds.
        self.beside: Beside | None = None
        #: True where the provider may bill the call: it answered, or nobody waited for its answer.
        self.billable = False
        #: True where the result was made earlier, and this call only fetched it: how long that took says little.
        self.is_fetched = False
        self.first_chunk_ns: int | None = None
        self.retries = 0
        self.provider_request_id: str | None = None
        self.input_messages: str | None = None
        self.output_messages: str | None = None
        self.system_instructions: str | None = None
        #: The most that the request may use; known where there is a gate to ask.
        self.most: Most | None = None
        #: What the budgets hold for this call until it is settled.
        self.reserved: Any = None


def was_sent(outcome: str) -> bool:
    """Tell whether an LLM call that ended so was a request to the model: what we refused was none.

    A refusal tells nothing of the model: it counts as a call of that outcome, and in none of the model's own figures.
    """
    return outcome != Outcome.BLOCKED


class Event(NamedTuple):
    """Something that happened beside operations: a decision, a limit hit, a threshold crossed, feedback.

    Sinks tell from ``name`` (an ``E_…`` of the names) what to count; what is None does not apply.

    :param level: upper case, as in ``WARNING``.
    :param message: one sentence without its category and without user content.
    :param operation: where it happened; None for what comes from outside, such as feedback.
    :param rule: the name of the policy, guardrail, budget or limit that spoke.
    :param decision: what was done: ``allow``, ``flag``, ``deny``, ``replace``, ``block``, ``warn``, ``fail``.
    :param reason: why, with the rule's own id first where it has one.
    :param details: further fields of the log line, or labels of the metric, by name.
    """

    name: str
    category: str
    level: str
    message: str
    operation: "Operation | None" = None
    rule: str | None = None
    decision: str | None = None
    reason: str | None = None
    details: Mapping[str, Any] = MappingProxyType({})


@dataclass(slots=True, eq=False)
class Finished:
    """The record of one operation: all that a sink may know, and nobody writes to.

    It is not frozen, for that would take as long to make as two sinks take to read it.

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
    #: Of runs: whether policies or guardrails were asked about them, and whether one of these checks failed.
    checked: Checked = Checked.NO
    #: What finished, for events about it; None on a record that was made by hand.
    operation: "Operation | None" = None
