"""``workflow(...)``: the run of a whole task, as a block."""

from types import TracebackType
from typing import Self

from taskpilot_instrument import context
from taskpilot_instrument._guard import swallow
from taskpilot_instrument._operation import Operation, active
from taskpilot_instrument.errors import ConfigurationError
from taskpilot_instrument.semconv import Kind, Outcome


class WorkflowRun:
    """One workflow run: a block for ``with`` or ``async with``; made by :func:`workflow`."""

    def __init__(self, name: str, request_id: str | None, session_id: str | None, user_id: str | None) -> None:
        for argument, value in (
            ("name", name),
            ("request_id", request_id),
            ("session_id", session_id),
            ("user_id", user_id),
        ):
            if (value is None and argument == "name") or (
                value is not None and (not isinstance(value, str) or not value)
            ):
                raise ConfigurationError(f"workflow({argument}=…) takes a non-empty string, not {value!r}")
        self.name = name
        self._given = (request_id, session_id, user_id)
        self._request_id = request_id
        self._entered = False
        self._operation: Operation | None = None

    @property
    def request_id(self) -> str:
        """The run's id on every span and log line; made when first asked for where none was given."""
        if self._operation is not None:
            return self._operation.ids.request_id
        if self._request_id is None:
            self._request_id = context.request_id_factory()
        return self._request_id

    @property
    def trace_id(self) -> str | None:
        """The trace id, 32 hexadecimal digits; None before the block, and where no spans are made."""
        span_context = self._operation.span.get_span_context() if self._operation is not None else None
        return format(span_context.trace_id, "032x") if span_context is not None and span_context.is_valid else None

    def fail(self, reason: str) -> None:
        """Give the run the outcome ``error`` although no exception leaves the block.

        :param reason: why, for span and log line.
        """
        self._judge(Outcome.ERROR, reason)

    def block(self, reason: str) -> None:
        """Give the run the outcome ``blocked`` although no exception leaves the block.

        :param reason: why, for span and log line.
        """
        self._judge(Outcome.BLOCKED, reason)

    def _judge(self, outcome: Outcome, reason: str) -> None:
        if self._operation is not None:
            self._operation.verdict, self._operation.reason = outcome, str(reason)

    def __enter__(self) -> Self:
        if self._entered:
            raise ConfigurationError("a workflow run is one run: call workflow(…) again for the next")
        self._entered = True
        recorder = active()
        if recorder is not None:
            _, session_id, user_id = self._given
            try:
                operation = Operation(
                    recorder, Kind.WORKFLOW, self.name,
                    request_id=self._request_id, session_id=session_id, user_id=user_id,
                )  # fmt: skip
                operation.announce()
                operation.enter()
                self._operation = operation
            except Exception as error:
                swallow("start", error)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._operation is not None:
            self._operation.__exit__(exc_type, exc, traceback)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(exc_type, exc, traceback)


def workflow(
    name: str, *, request_id: str | None = None, session_id: str | None = None, user_id: str | None = None
) -> WorkflowRun:
    """Open the run of a whole task around a block.

    .. code-block:: python

        with workflow("triage", request_id="req-abc-123") as run: ...

    The outcome is ``success`` unless an exception leaves the block or ``run.fail(…)`` says otherwise.

    :param name: the workflow's name, a label of its metrics: not an id.
    :param request_id: id on every span and log line; else that of the run around it, else the
        ``request_id`` bound in structlog's contextvars, else a new ``req-…``.
    :param session_id: ``session.id`` on the spans.
    :param user_id: ``user.id`` on the spans.
    :raises ConfigurationError: for an argument that is no string, or is empty.
    """
    return WorkflowRun(name, request_id, session_id, user_id)
