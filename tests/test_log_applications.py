"""Log lines of the application beside ours: its structlog and its loggers get our fields."""

import io
import logging
from typing import Any

import structlog
from log_bench import Bench, parsed, records_of, run_workflow

from taskpilot_instrument import _guard
from taskpilot_instrument.semconv import (
    Kind,
)
from taskpilot_instrument.sinks.logs import TaskpilotFields, add_taskpilot_fields

# --- the application's own logging ---------------------------------------------------------------------


def test_the_applications_structlog_is_left_alone(bench: Bench) -> None:
    """A configuration that would break any logger neither touches our lines nor is touched by them."""

    def broken(*_: object) -> Any:
        raise AssertionError("the application's processor was asked")

    structlog.configure(processors=[broken], wrapper_class=structlog.BoundLogger, cache_logger_on_first_use=False)
    before = structlog.get_config().copy()
    try:
        run_workflow(bench)
        run_workflow(Bench(profile="ecs"))
        after = structlog.get_config().copy()
    finally:
        structlog.reset_defaults()

    assert before == after
    assert 5 == len(bench.lines)


def test_a_sink_does_not_configure_structlog() -> None:
    """Making a sink and writing through it leaves structlog as if nobody had configured it."""
    structlog.reset_defaults()
    run_workflow(Bench())

    assert not structlog.is_configured()


def test_the_processor_adds_what_is_known(bench: Bench) -> None:
    """A line of the application inside a tool gets our ids and names."""
    bench.sink.service_name = "billing"
    with bench.start(Kind.WORKFLOW, "triage", request_id="req-1"), bench.start(Kind.AGENT, "PlannerAgent"):
        tool = bench.start(Kind.TOOL, "create_task")
        with tool:
            added = add_taskpilot_fields(None, "info", {"event": "hello"})

    context = tool.span.get_span_context()
    assert {
        "event": "hello",
        "request_id": "req-1",
        "trace_id": f"{context.trace_id:032x}",
        "span_id": f"{context.span_id:016x}",
        "workflow": "triage",
        "agent": "PlannerAgent",
        "tool": "create_task",
        "service_name": "billing",
    } == added


def test_the_processor_works_in_a_structlog_configuration(bench: Bench) -> None:
    """An application puts it among its processors."""
    out = io.StringIO()
    log = structlog.wrap_logger(
        structlog.WriteLogger(out), processors=[add_taskpilot_fields, structlog.processors.JSONRenderer()]
    )
    with bench.start(Kind.WORKFLOW, "triage", request_id="req-1"):
        log.info("hello")

    (line,) = parsed(out.getvalue())
    assert ("hello", "req-1", "triage") == (line["event"], line["request_id"], line["workflow"])


def test_the_processor_overrides_nothing(bench: Bench) -> None:
    """What the application set itself stays, None included."""
    with bench.start(Kind.WORKFLOW, "triage", request_id="req-1"):
        added = add_taskpilot_fields(None, "info", {"request_id": "mine", "workflow": None})

    assert ("mine", None) == (added["request_id"], added["workflow"])


def test_the_processor_adds_nothing_outside_of_an_operation() -> None:
    """A line of the application at startup stays as it is."""
    assert {"event": "hello"} == add_taskpilot_fields(None, "info", {"event": "hello"})


def test_an_agent_inside_a_tool_is_out_of_that_tool(bench: Bench) -> None:
    """The tool of a line is the one that its agent called, not the one that called the agent."""
    with bench.start(Kind.TOOL, "delegate"):
        outside = add_taskpilot_fields(None, "info", {})
        with bench.start(Kind.AGENT, "PlannerAgent"):
            inside = add_taskpilot_fields(None, "info", {})

    assert "delegate" == outside["tool"]
    assert "tool" not in inside


class ReadOnly(dict[str, Any]):
    """A dictionary that cannot be added to."""

    def setdefault(self, *_: object) -> Any:
        """Refuse."""
        raise TypeError("read only")


def test_the_processor_never_raises(bench: Bench, swallowing: None) -> None:
    """Whatever goes wrong, the application's line goes on."""
    line = ReadOnly(event="hello")
    with bench.start(Kind.WORKFLOW):
        assert line is add_taskpilot_fields(None, "info", line)
    assert {"log_fields": 1} == _guard.swallowed()


def test_the_filter_adds_fields_to_stdlib_records(bench: Bench, logger: logging.Logger) -> None:
    """A format string may name our fields, inside an operation and outside; what is set stays."""
    (handler,) = logger.handlers
    handler.addFilter(TaskpilotFields())
    handler.setFormatter(logging.Formatter("%(request_id)s|%(workflow)s|%(agent)s|%(message)s"))
    with bench.start(Kind.WORKFLOW, "triage", request_id="req-1"):
        logger.info("inside")
        logger.info("set", extra={"request_id": "mine"})
    logger.info("outside")

    assert ["req-1|triage||inside", "mine|triage||set", "|||outside"] == [
        handler.format(record) for record in records_of(logger)
    ]
