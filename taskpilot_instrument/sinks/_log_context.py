"""Our fields in the application's own log lines: a structlog processor and a stdlib filter."""

import logging
from collections.abc import MutableMapping
from typing import Any, Final

from opentelemetry.trace import format_span_id, format_trace_id, get_current_span

from taskpilot_instrument import _operation
from taskpilot_instrument import semconv as names
from taskpilot_instrument._guard import swallow
from taskpilot_instrument.context import experiments_of
from taskpilot_instrument.semconv import Kind

_WHERE: Final = "log_fields"
_ADDED: Final = (
    names.REQUEST_ID, names.F_TRACE_ID, names.F_SPAN_ID, names.WORKFLOW, names.AGENT, names.TOOL, names.F_SERVICE_NAME,
)  # fmt: skip


def current_fields() -> dict[str, str]:
    """Return what is known of the operation that the calling code runs in; nothing outside of one."""
    found: dict[str, str] = {}
    span = get_current_span().get_span_context()
    if span.is_valid:
        found[names.F_TRACE_ID] = format_trace_id(span.trace_id)
        found[names.F_SPAN_ID] = format_span_id(span.span_id)
    operation = _operation.current()
    return found if operation is None else fields_of_operation(operation) | found


def fields_of_operation(operation: _operation.Operation) -> dict[str, str]:
    """Return what is known of an operation that runs."""
    found: dict[str, str] = {}
    span = operation.span.get_span_context()
    if span.is_valid:
        found[names.F_TRACE_ID] = format_trace_id(span.trace_id)
        found[names.F_SPAN_ID] = format_span_id(span.span_id)
    found[names.REQUEST_ID] = operation.ids.request_id
    if operation.workflow_name is not None:
        found[names.WORKFLOW] = operation.workflow_name
    if operation.agent_name is not None:
        found[names.AGENT] = operation.agent_name
    tool = _innermost_tool(operation)
    if tool is not None:
        found[names.TOOL] = tool
    if operation.ids.variants:
        found[names.EXPERIMENT], found[names.VARIANT] = experiments_of(operation.ids)
    for sink in operation.recorder.sinks:
        service_name = getattr(sink, names.F_SERVICE_NAME, None)
        if service_name is not None:
            found[names.F_SERVICE_NAME] = service_name
            break
    return found


def _innermost_tool(operation: _operation.Operation) -> str | None:
    """Return the tool that the operation runs in; an agent inside a tool is out of that tool."""
    around: _operation.Operation | None = operation
    while around is not None and around.kind is not Kind.AGENT:
        if around.kind is Kind.TOOL:
            return around.name
        around = around.parent
    return None


def add_taskpilot_fields(
    _logger: object, _method_name: str, event_dict: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Add request, trace, workflow, agent and tool to the application's own log lines.

    A processor for the application's structlog configuration. What the application set itself stays as it is::

        structlog.configure(processors=[add_taskpilot_fields, structlog.processors.JSONRenderer()])
    """
    try:
        for name, value in current_fields().items():
            event_dict.setdefault(name, value)
    except Exception as error:
        swallow(_WHERE, error)
    return event_dict


class TaskpilotFields(logging.Filter):
    """Add request, trace, workflow, agent and tool to the records of the application's own stdlib logging.

    Give it to a handler, not to a logger, whose filters do not see the records of the loggers beneath it. Every field
    is set on every record, empty where there is nothing to say, so that a format string may name it. What the
    application set itself stays as it is.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields; let every record through."""
        try:
            found = current_fields()
            for name in _ADDED:
                record.__dict__.setdefault(name, found.get(name, ""))
        except Exception as error:
            swallow(_WHERE, error)
        return True
