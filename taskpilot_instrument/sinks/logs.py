"""Write each operation as one line of JSON, through a structlog chain of our own."""

import json
import logging
import math
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Final

from opentelemetry.trace import Span

from taskpilot_instrument import semconv as names
from taskpilot_instrument._guard import swallow
from taskpilot_instrument._operation import Operation
from taskpilot_instrument._records import Event, Finished, LLMCall
from taskpilot_instrument.context import Ids, experiments_of
from taskpilot_instrument.errors import ConfigurationError
from taskpilot_instrument.redaction import capture_text, redactor
from taskpilot_instrument.semconv import Kind, Outcome
from taskpilot_instrument.settings import LogLevel, LogProfile, LogTarget
from taskpilot_instrument.sinks import _log_formats as formats
from taskpilot_instrument.sinks._log_context import (
    TaskpilotFields,
    add_taskpilot_fields,
    current_fields,
    fields_of_operation,
)
from taskpilot_instrument.sinks._log_formats import to_json
from taskpilot_instrument.sinks._log_targets import open_target
from taskpilot_instrument.typing import Clock

__all__ = ["LogSink", "TaskpilotFields", "add_taskpilot_fields"]

_MESSAGE_LIMIT: Final = 512
_OFF: Final = 1000
_NS_PER_S: Final = 1_000_000_000
_NS_PER_MS: Final = 1_000_000
_NS_PER_US: Final = 1_000
_US_PER_MS: Final = 1_000
_LEVELS: Final = logging.getLevelNamesMapping()
_INFO: Final = "INFO"
_WARNING: Final = "WARNING"
_ERROR: Final = "ERROR"
_FIELDS: Final = names.LOG_FIELDS_ALWAYS + names.LOG_FIELDS_OPTIONAL


#: Of each kind: event of the line where all went well, event where it failed, what a successful one did.
_EVENTS: Final = {
    Kind.WORKFLOW: (names.E_WORKFLOW_FINISHED, names.E_WORKFLOW_FINISHED, "finished"),
    Kind.AGENT: (names.E_AGENT_FINISHED, names.E_AGENT_FAILED, "Output"),
    Kind.TOOL: (names.E_TOOL_CALLED, names.E_TOOL_FAILED, "called"),
    Kind.LLM: (names.E_LLM_CALLED, names.E_LLM_FAILED, "called"),
}
#: A cost that is priced as published needs no word; one that is not whole does.
_DOUBTFUL: Final = frozenset({names.COST_UNKNOWN, names.COST_PARTIAL, names.COST_DEFAULT})
_LEVEL_OF: Final = {
    Outcome.SUCCESS: _INFO,
    Outcome.ERROR: _ERROR,
    Outcome.CANCELLED: _WARNING,
    Outcome.BLOCKED: _WARNING,
    Outcome.ABANDONED: _WARNING,
}


class LogSink:
    """Write the log lines of every operation, one JSON object a line.

    User content (what agents and tools were given and gave back) is written only where ``content`` is true *and* it
    was captured. The message of an exception is written always, redacted and cut to 512 characters: without it a
    failure cannot be understood. Where exceptions of the application or the provider may quote prompts and logs must
    not hold them, the ``redact`` function is the place to drop them.

    :param target: ``stderr`` or ``stdout``, found anew at each line; ``off``, or None; the path of a file; an open
        stream; a stdlib logger, which gets the line as message and the fields as ``extra``.
    :param profile: ``flat`` names, or ``ecs`` for those of the Elastic Common Schema.
    :param level: least severe level that is written.
    :param content: let captured text into messages.
    :param redact: what error messages and reasons pass through after our own redaction, before they are written.
    :raises ConfigurationError: for a target, profile or level that is none, or a file that cannot be opened.
    """

    where = "log"

    def __init__(
        self,
        target: LogTarget | None = "stderr",
        *,
        profile: LogProfile = "flat",
        service_name: str = names.SERVICE_NAME,
        level: LogLevel = "INFO",
        clock: Clock = Clock(time.perf_counter_ns, time.time_ns),  # noqa: B008 - immutable
        content: bool = False,
        redact: Callable[[str], str] | None = None,
    ) -> None:
        if level not in _LEVELS:
            raise ConfigurationError(f"log level {level!r}: expected one of {', '.join(_LEVELS)}")
        self.service_name = service_name
        self._clock = clock
        self._content = content
        self._redact = redactor(redact)
        self._target = open_target(target, clock.monotonic_ns)
        self._threshold = _OFF if self._target is None else _LEVELS[level]
        self._profile = _profile(profile)
        self._service = self._profile.keys[names.F_SERVICE_NAME] + to_json(service_name)
        from taskpilot_instrument.sinks._log_chain import chain  # not before lines are wanted: structlog takes its time

        self._write = chain(self._target)
        self._second: tuple[int, str] = (-1, "")

    def close(self) -> None:
        """Close the file, where the sink opened one."""
        if self._target is not None:
            self._target.close()

    # --- operations -----------------------------------------------------------------------------

    def started(self, operation: Operation) -> None:
        """Write the beginning of an agent run; the other operations are written when they end."""
        if operation.kind is not Kind.AGENT or self._threshold > logging.INFO:
            return
        message = self._with_content(f"[AUDIT] {operation.name} Input", operation.input_text)
        keys = self._profile.keys
        pieces = [
            self._head(
                operation.started_at_ns, _INFO, message, names.E_AGENT_STARTED, names.CATEGORY_AUDIT,
                operation.ids, operation.span,
            )
        ]  # fmt: skip
        if operation.workflow_name is not None:
            pieces.append(keys[names.WORKFLOW] + to_json(operation.workflow_name))
        pieces.append(keys[names.AGENT] + to_json(operation.name))
        if operation.input_length is not None:
            pieces.append(f"{keys[names.F_INPUT_LENGTH]}{operation.input_length}")
        if operation.ids.variants:
            self._add_experiments(pieces.append, operation.ids)
        pieces.append(self._profile.end)
        self._write(pieces)

    def finished(self, record: Finished) -> None:
        """Write the end of an operation."""
        level = _LEVEL_OF[record.outcome]
        if self._threshold <= _LEVELS[level]:
            message, event, category = self._words(record)
            self._write(self._line(record, level, message, event, category))

    def _words(self, record: Finished) -> tuple[str, str, str]:
        """Return message, event name and category."""
        kind, outcome, subject = record.kind, record.outcome, _subject(record)
        event, failed_event, done = _EVENTS[kind]
        if outcome is Outcome.SUCCESS:
            text = record.output_text if kind is Kind.AGENT else record.input_text if kind is Kind.TOOL else None
            if record.llm is not None:
                text = record.llm.output_messages
            return self._with_content(f"[AUDIT] {subject} {done}", text), event, names.CATEGORY_AUDIT
        if outcome is not Outcome.ERROR:
            return f"[AUDIT] {subject} {outcome}", event, names.CATEGORY_AUDIT
        category = names.CATEGORY_AUDIT if event == failed_event else names.CATEGORY_ERROR
        cause = f": {record.error_type}" if record.error_type else ""
        if record.llm is not None:
            cause += _transport(record.llm)
        return f"[{category.upper()}] {subject} failed{cause}", failed_event, category

    # --- pieces of a line ------------------------------------------------------------------------

    def _line(self, record: Finished, level: str, message: str, event: str, category: str) -> list[str]:
        """Say what is known of a finished operation; what is not known is left out."""
        keys, _, outcomes, latency, end = self._profile
        ended_at_ns = record.started_at_ns + record.duration_ns
        pieces = [self._head(ended_at_ns, level, message, event, category, record.ids, record.span)]
        add = pieces.append
        if record.workflow is not None:
            add(keys[names.WORKFLOW] + to_json(record.workflow))
        if record.agent is not None:
            add(keys[names.AGENT] + to_json(record.agent))
        if record.kind is Kind.TOOL:
            add(keys[names.TOOL] + to_json(record.name))
        if record.model is not None:
            add(keys[names.MODEL] + to_json(record.model))
        usage = record.usage
        if usage is not None:
            if usage.input_tokens is not None:
                add(f"{keys[names.INPUT_TOKENS]}{usage.input_tokens}")
            if usage.output_tokens is not None:
                add(f"{keys[names.OUTPUT_TOKENS]}{usage.output_tokens}")
        if record.cost is not None:
            add(f"{keys[names.COST_USD]}{float(record.cost)}")
        if record.cost_source in _DOUBTFUL:
            add(keys[names.COST_SOURCE] + to_json(record.cost_source))
        add(latency.format(record.duration_ns // _NS_PER_US / _US_PER_MS, record.duration_ns))
        add(outcomes[record.outcome])
        self._add_lengths(add, record)
        if record.outcome is not Outcome.SUCCESS:
            self._add_failure(add, record)
        if record.ids.variants:
            self._add_experiments(add, record.ids)
        add(end)
        return pieces

    def _head(self, at_ns: int, level: str, message: str, event_name: str, category: str, ids: Ids, span: Span) -> str:
        """Return the fields that every line has."""
        keys, levels, _, _, _ = self._profile
        context, trace = span.get_span_context(), ""
        if context.trace_id:  # an id of zeros would join what does not belong together
            trace = f'{keys[names.F_TRACE_ID]}"{context.trace_id:032x}"{keys[names.F_SPAN_ID]}"{context.span_id:016x}"'
        return (
            f'{keys[names.F_TIMESTAMP]}"{self._timestamp(at_ns)}"{levels[level]}{keys[names.F_MESSAGE]}{to_json(message)}'
            f'{keys[names.F_EVENT_NAME]}"{event_name}"{keys[names.F_CATEGORY]}"{category}"'
            f"{keys[names.REQUEST_ID]}{to_json(f'{ids.request_id}')}{trace}{self._service}"
        )

    def _add_lengths(self, add: Callable[[str], None], record: Finished) -> None:
        keys = self._profile.keys
        if record.input_length is not None:
            add(f"{keys[names.F_INPUT_LENGTH]}{record.input_length}")
        if record.output_length is not None:
            add(f"{keys[names.F_OUTPUT_LENGTH]}{record.output_length}")

    def _add_experiments(self, add: Callable[[str], None], ids: Ids) -> None:
        experiments, variants = experiments_of(ids)
        add(self._profile.keys[names.EXPERIMENT] + to_json(experiments))
        add(self._profile.keys[names.VARIANT] + to_json(variants))

    def _add_failure(self, add: Callable[[str], None], record: Finished) -> None:
        keys = self._profile.keys
        if record.error_type is not None:
            add(keys[names.F_ERROR_TYPE] + to_json(record.error_type))
        message = "" if record.error is None else self._clean(_message_of(record.error))
        if message:
            add(keys[names.F_ERROR_MESSAGE] + to_json(message))
        if record.reason is not None:
            add(keys[names.F_REASON] + to_json(self._clean(record.reason)))

    def _clean(self, text: str) -> str:
        return capture_text(text, _MESSAGE_LIMIT, self._redact)

    def _with_content(self, message: str, text: str | None) -> str:
        return f"{message}: {text}" if self._content and text is not None else message

    def _timestamp(self, at_ns: int) -> str:
        """Return UTC with milliseconds; the part down to the second is kept for the lines of the same second."""
        second, rest = divmod(at_ns, _NS_PER_S)
        cached, text = self._second
        if cached != second:
            text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._second = (second, text)
        return f"{text}.{rest // _NS_PER_MS:03d}Z"

    def noted(self, event: Event, /) -> None:
        """Write a decision, a limit hit, a crossed threshold or feedback."""
        if self._threshold > _LEVELS[event.level]:
            return
        around = fields_of_operation(event.operation) if event.operation is not None else {}
        decided = {names.F_POLICY: event.rule, names.F_DECISION: event.decision, names.F_REASON: event.reason}
        self._write_event(
            event.name, event.category, event.level, event.message, {**around, **decided, **event.details}
        )

    # --- other events ---------------------------------------------------------------------------

    def record_event(self, event_name: str, category: str, level: str, message: str, **fields: object) -> None:
        """Write an event that is no operation, such as a decision or feedback; never raise.

        The ids, workflow and agent of the current operation are filled in where they are not given.

        :param category: ``audit``, ``error`` or ``decision``; the message is prefixed with it.
        :param level: upper case, as in ``INFO``.
        :param fields: only fields of a log line are written, the others are left out.
        """
        try:
            if self._threshold <= _LEVELS[level]:
                self._write_event(event_name, category, level, message, fields)
        except Exception as error:
            swallow(self.where, error)

    def _write_event(self, event_name: str, category: str, level: str, message: str, given: dict[str, object]) -> None:
        known = {
            **current_fields(),
            **given,
            names.F_TIMESTAMP: self._timestamp(self._clock.epoch_ns()),
            names.F_LEVEL: level,
            names.F_MESSAGE: f"[{category.upper()}] {message}",
            names.F_EVENT_NAME: event_name,
            names.F_CATEGORY: category,
            names.F_SERVICE_NAME: self.service_name,
        }
        keys, levels, _, _, end = self._profile
        pieces = [
            levels[level] if name == names.F_LEVEL else f"{keys[name]}{json.dumps(self._plain(known[name]))}"
            for name in _FIELDS
            if known.get(name) is not None
        ]
        self._write([*pieces, end])

    def _plain(self, value: object) -> object:
        """Return a value that JSON has, numbers as they are."""
        if isinstance(value, Decimal):
            value = float(value)
        if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
            return value
        return capture_text(value, _MESSAGE_LIMIT, self._redact)


def _subject(record: Finished) -> str:
    """Return what the message says it was: an LLM call is named by operation and model, as its span is."""
    call = record.llm
    return record.name if call is None else f"{call.operation} {record.model}" if record.model else call.operation


def _transport(call: LLMCall) -> str:
    """Say what the provider's support will ask for."""
    retries = f", {call.retries} retries" if call.retries else ""
    request = f", provider's request id {call.provider_request_id}" if call.provider_request_id else ""
    return retries + request


def _message_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return f"<unprintable {type(error).__name__}>"


def _profile(name: str) -> formats.Profile:
    try:
        return formats.PROFILES[name]
    except KeyError:
        raise ConfigurationError(f"log profile {name!r}: expected one of {', '.join(formats.PROFILES)}") from None
