"""Spans: open one when an operation starts, write its tags and end it when it finishes."""

import traceback
from collections.abc import Callable
from typing import Any, Final

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context import Context
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    set_span_in_context,
)

from taskpilot_instrument import semconv as names
from taskpilot_instrument._operation import Operation
from taskpilot_instrument._pace import tokens_per_second
from taskpilot_instrument._records import Event, Finished, LLMCall
from taskpilot_instrument.context import experiments_of
from taskpilot_instrument.redaction import capture_text, redactor
from taskpilot_instrument.semconv import Kind, Outcome
from taskpilot_instrument.sinks._span_start import watched_start
from taskpilot_instrument.usage import Beside, TokenUsage

_MESSAGE_LIMIT: Final = 512
_STACK_LIMIT: Final = 8192
_FEEDBACK_TAGS: Final = (names.REQUEST_ID, names.WORKFLOW, names.AGENT, names.MODEL)
_OPERATION_NAMES: Final = {
    Kind.WORKFLOW: names.OPERATION_WORKFLOW,
    Kind.AGENT: names.OPERATION_AGENT,
    Kind.TOOL: names.OPERATION_TOOL,
}


class TraceSink:
    """Write operations to an OpenTelemetry tracer.

    :param tracer: where spans are opened.
    :param content_on_spans: write captured content as span attributes.
    :param content_on_events: write the content of an LLM call as an event of its span.
    :param redact: what messages of failures pass through after our own redaction.
    """

    where = "span"

    def __init__(
        self,
        tracer: Tracer,
        *,
        content_on_spans: bool = False,
        content_on_events: bool = False,
        redact: Callable[[str], str] | None = None,
    ) -> None:
        self._tracer = tracer
        self._content = content_on_spans
        self._events = content_on_events
        self._redact = redactor(redact)
        self._is_watched = watched_start(tracer)

    def open_span(self, operation: Operation, context: Context, /) -> Span:
        """Return the started span of an operation, with the tags that a sampler may want."""
        is_watched = self._is_watched()
        span = self._tracer.start_span(
            _name_of(operation),
            context,
            SpanKind.INTERNAL if operation.llm is None else SpanKind.CLIENT,
            _first_tags(operation) if is_watched else None,
            start_time=operation.started_at_ns,
        )
        if not is_watched and span.is_recording():
            set_tags(span, _first_tags(operation))
        return span

    def finished(self, record: Finished, /) -> None:
        """Write the tags of a finished operation and end its span."""
        span = record.span
        try:
            if span.is_recording():
                set_tags(span, self._tags(record))
                if record.llm is not None and record.llm.beside is not None:
                    _other_usage(span, record, record.llm.beside)
                if self._events and record.llm is not None:
                    _content_event(span, record, record.llm)
                if record.error is not None or record.outcome in _FAILED:
                    self._write_failure(span, record)
        finally:
            span.end(record.started_at_ns + record.duration_ns)

    def noted(self, event: Event, /) -> None:
        """Write an event of the span that it belongs to."""
        if event.name == names.E_FEEDBACK_RECORDED:
            self._write_feedback(event)
        if event.operation is None or not event.operation.span.is_recording():
            return
        given = {**event.details, names.F_POLICY: event.rule, names.F_DECISION: event.decision}
        attributes = {name: value for name, value in given.items() if isinstance(value, str | bool | int | float)}
        if event.reason is not None:
            attributes[names.F_REASON] = self._clean(event.reason, _MESSAGE_LIMIT)
        event.operation.span.add_event(event.name, attributes)

    def _write_feedback(self, event: Event) -> None:
        """Write a span of no length into the trace of the run that a user judged, however long ago that was."""
        details = event.details
        trace_id, span_id = details.get(names.F_TRACE_ID), details.get(names.F_SPAN_ID)
        if trace_id is None:
            return
        # Whether that trace was kept is not known here; a collector that dropped it drops this too.
        parent = SpanContext(
            int(trace_id, 16), int(span_id or "1", 16), is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED)
        )
        tags = {name: details[name] for name in _FEEDBACK_TAGS if details.get(name) is not None}
        verdict, score = details[names.L_VERDICT], details["score"]
        result: dict[str, Any] = {
            names.GEN_AI_EVALUATION_NAME: names.SPAN_FEEDBACK,
            names.GEN_AI_EVALUATION_SCORE_LABEL: verdict,
            names.GEN_AI_EVALUATION_SCORE_VALUE: float(verdict == names.VERDICT_CORRECT) if score is None else score,
        }
        if self._events and details["comment"] is not None:
            result[names.GEN_AI_EVALUATION_EXPLANATION] = self._clean(details["comment"], _MESSAGE_LIMIT)
        span = self._tracer.start_span(
            names.SPAN_FEEDBACK, set_span_in_context(NonRecordingSpan(parent), Context()), attributes=tags
        )
        span.add_event(names.EVENT_EVALUATION, result)
        span.end()

    def _tags(self, record: Finished) -> dict[str, Any]:
        usage, llm = record.usage, record.llm
        request_id, session_id, user_id, variants = record.ids
        tags: dict[str, Any] = {
            names.REQUEST_ID: request_id,
            names.LATENCY_MS: record.duration_ns / 1e6,
            names.OUTCOME: str(record.outcome),
        }
        if session_id is not None:
            tags[names.SESSION_ID] = session_id
        if user_id is not None:
            tags[names.USER_ID] = user_id
        if variants:
            tags[names.EXPERIMENT], tags[names.VARIANT] = experiments_of(record.ids)
        if usage is not None:
            _usage_tags(tags, usage, record.kind)
        if record.cost is not None:
            tags[names.COST_USD] = float(record.cost)
        if record.cost_source is not None:
            tags[names.COST_SOURCE] = record.cost_source
        if record.model is not None and record.kind is not Kind.WORKFLOW:
            tags[names.MODEL] = record.model
        if record.error_type is not None:
            tags[names.ERROR_TYPE] = record.error_type
        if llm is not None:
            _llm_result_tags(tags, record, llm)
        else:
            _run_tags(tags, record)
        if self._content:
            _content_tags(tags, record)
        return tags

    def _write_failure(self, span: Span, record: Finished) -> None:
        """Set the status and, for an exception, the event that tracing tools show; both without secrets."""
        error, reason = record.error, record.reason
        message = "" if error is None else self._clean(error, _MESSAGE_LIMIT)
        if record.outcome in _FAILED:
            description = self._clean(reason, _MESSAGE_LIMIT) if reason is not None else message or record.error_type
            span.set_status(Status(StatusCode.ERROR, description))
        if error is not None and record.outcome is Outcome.ERROR:
            span.add_event(
                names.EVENT_EXCEPTION,
                {
                    names.EXCEPTION_TYPE: type(error).__qualname__,
                    names.EXCEPTION_MESSAGE: message,
                    names.EXCEPTION_STACKTRACE: self._clean(_stack_of(error), _STACK_LIMIT),
                },
                record.started_at_ns + record.duration_ns,
            )

    def _clean(self, text: object, limit: int) -> str:
        try:
            plain = str(text)
        except Exception:
            plain = f"<unprintable {type(text).__name__}>"
        return capture_text(plain, limit, self._redact)


def _stack_of(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except Exception:  # an exception group or notes of the application's that cannot be shown
        return "".join(traceback.format_tb(error.__traceback__))


def _usage_tags(tags: dict[str, Any], usage: TokenUsage, kind: Kind) -> None:
    # The conventions have usage on calls and agents; once more, and it is billed again.
    told_twice = kind is not Kind.WORKFLOW
    given, made = usage.input_tokens, usage.output_tokens
    if given is not None:
        tags[names.INPUT_TOKENS] = given
        if told_twice:
            tags[names.GEN_AI_USAGE_INPUT_TOKENS] = given
    if made is not None:
        tags[names.OUTPUT_TOKENS] = made
        if told_twice:
            tags[names.GEN_AI_USAGE_OUTPUT_TOKENS] = made


def set_tags(span: Span, tags: dict[str, Any]) -> None:
    """Write many tags at once.

    ``set_attributes`` checks and copies each value, at half a microsecond apiece; ours are plain by
    construction, so where the SDK's own container is found as expected they go in as they are.
    """
    attributes = getattr(span, "_attributes", None)
    if _CONTAINER_IS_KNOWN and type(attributes) is BoundedAttributes and attributes.max_value_len is None:
        held, most = attributes._dict, attributes.maxlen  # noqa: SLF001 - see above
        if most is None or len(held) + len(tags) <= most:
            with attributes._lock:  # noqa: SLF001
                held.update(tags)
            return
    span.set_attributes(tags)


def _container_is_known() -> bool:
    """Tell whether the SDK's attribute container still works as ``set_tags`` believes."""
    try:
        probe = BoundedAttributes(immutable=False)
        with probe._lock:  # noqa: SLF001 - what is to be found out
            probe._dict["a"] = 1  # noqa: SLF001
        return dict(probe) == {"a": 1} and probe.maxlen is None and probe.max_value_len is None
    except Exception:
        return False


_CONTAINER_IS_KNOWN: Final = _container_is_known()
_FAILED: Final = frozenset({Outcome.ERROR, Outcome.BLOCKED})


def _name_of(operation: Operation) -> str:
    call, kind = operation.llm, operation.kind
    if call is not None:
        return call.operation if call.model is None else f"{call.operation} {call.model}"
    if kind is Kind.WORKFLOW:
        return names.SPAN_WORKFLOW
    return operation.name + names.SPAN_AGENT_SUFFIX if kind is Kind.AGENT else operation.name


def _first_tags(operation: Operation) -> dict[str, Any]:
    """Return the tags that are known before an operation has begun."""
    call, kind = operation.llm, operation.kind
    tags: dict[str, Any] = {names.AGENT: operation.agent_name} if operation.agent_name is not None else {}
    if call is None:
        tags[names.GEN_AI_OPERATION_NAME] = _OPERATION_NAMES[kind]
        if kind is not Kind.AGENT:
            tags[names.WORKFLOW if kind is Kind.WORKFLOW else names.TOOL] = operation.name
        return tags
    tags[names.GEN_AI_OPERATION_NAME] = call.operation
    tags[names.GEN_AI_PROVIDER_NAME] = call.provider
    if call.server_address is not None:
        tags[names.SERVER_ADDRESS] = call.server_address
    if call.model is not None:
        tags[names.GEN_AI_REQUEST_MODEL] = call.model
    return tags


def _run_tags(tags: dict[str, Any], record: Finished) -> None:
    """Add the conventions' names of a workflow, agent or tool, and what its decorator knew of it."""
    if record.kind is Kind.WORKFLOW:
        tags[names.GEN_AI_WORKFLOW_NAME] = record.name
    elif record.kind is Kind.AGENT:
        tags[names.GEN_AI_AGENT_NAME] = record.name
    else:
        tags[names.GEN_AI_TOOL_NAME] = record.name
        tags[names.GEN_AI_TOOL_TYPE] = "function"
    if record.attributes is not None:
        tags.update(record.attributes)


def _llm_result_tags(tags: dict[str, Any], record: Finished, call: LLMCall) -> None:
    tags.update(call.request)
    if call.server_port is not None:
        tags[names.SERVER_PORT] = call.server_port
    if record.usage is not None and any(record.usage[2:]):
        _detail_tags(tags, record.usage)
    if call.response_model is not None:
        tags[names.GEN_AI_RESPONSE_MODEL] = call.response_model
    if call.response_id is not None:
        tags[names.GEN_AI_RESPONSE_ID] = call.response_id
    if call.finish_reasons:
        tags[names.GEN_AI_RESPONSE_FINISH_REASONS] = call.finish_reasons
    if call.service_tier is not None:
        tags[names.OPENAI_RESPONSE_SERVICE_TIER] = call.service_tier
    if record.time_to_first_chunk_ns is not None:
        tags[names.TIME_TO_FIRST_CHUNK_MS] = record.time_to_first_chunk_ns / 1e6
        tags[names.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK] = record.time_to_first_chunk_ns / 1e9
    pace = tokens_per_second(record)
    if pace is not None:
        tags[names.TOKENS_PER_SECOND] = pace
    if call.retries:
        tags[names.HTTP_RESEND_COUNT] = call.retries
    if call.provider_request_id is not None:
        tags[names.HTTP_RESPONSE_REQUEST_ID] = (call.provider_request_id,)


def _detail_tags(tags: dict[str, Any], usage: TokenUsage) -> None:
    if usage.cached_tokens:
        tags[names.CACHED_TOKENS] = tags[names.GEN_AI_USAGE_CACHE_READ] = usage.cached_tokens
    if usage.cache_write_tokens:
        tags[names.GEN_AI_USAGE_CACHE_WRITE] = usage.cache_write_tokens
    if usage.reasoning_tokens:
        tags[names.REASONING_TOKENS] = tags[names.GEN_AI_USAGE_REASONING] = usage.reasoning_tokens


def _other_usage(span: Span, record: Finished, beside: Beside) -> None:
    """Write what was billed beside the tokens, and what it came to where that is known."""
    tags: dict[str, Any] = {unit: float(count) for unit, count in beside.units.items()}
    if beside.models:
        tags[names.MODEL] = tuple(model or names.NONE for model, _ in beside.models)
    if beside.usd:
        tags[names.COST_USD] = float(beside.usd)
    span.add_event(names.EVENT_OTHER_USAGE, tags, record.started_at_ns + record.duration_ns)


def _content_tags(tags: dict[str, Any], record: Finished) -> None:
    call = record.llm
    if call is None:
        is_tool = record.kind is Kind.TOOL
        found = {
            names.GEN_AI_TOOL_CALL_ARGUMENTS if is_tool else names.GEN_AI_INPUT_MESSAGES: record.input_text,
            names.GEN_AI_TOOL_CALL_RESULT if is_tool else names.GEN_AI_OUTPUT_MESSAGES: record.output_text,
        }
    else:
        found = llm_content(call)
    tags.update({name: text for name, text in found.items() if text is not None})


def _content_event(span: Span, record: Finished, call: LLMCall) -> None:
    found = {name: text for name, text in llm_content(call).items() if text is not None}
    if found:
        span.add_event(names.EVENT_INFERENCE_DETAILS, found, record.started_at_ns + record.duration_ns)


def llm_content(call: LLMCall) -> dict[str, str | None]:
    """Return the captured content of an LLM call under the conventions' names."""
    return {
        names.GEN_AI_SYSTEM_INSTRUCTIONS: call.system_instructions,
        names.GEN_AI_INPUT_MESSAGES: call.input_messages,
        names.GEN_AI_OUTPUT_MESSAGES: call.output_messages,
    }
