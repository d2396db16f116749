"""``workflow(...)``: the run of a whole task, as a block."""

from types import TracebackType
from typing import Self
from uuid import UUID

from taskpilot_instrument import context
from taskpilot_instrument._guard import swallow
from taskpilot_instrument._operation import Operation
from taskpilot_instrument._recorder import active
from taskpilot_instrument.errors import ConfigurationError
from taskpilot_instrument.semconv import Kind, Outcome


class WorkflowRun:
    """One workflow run: a block for ``with`` or ``async with``; made by :func:`workflow`."""

    def __init__(self, name: str, request_id: object, session_id: object, user_id: object) -> None:
        if not isinstance(name, str) or not name:
            raise ConfigurationError(f"workflow(name=…) takes a non-empty string, not {name!r}")
        self.name = name
        self._request_id = _id_text("request_id", request_id)
        self._session_id = _id_text("session_id", session_id)
        self._user_id = _id_text("user_id", user_id)
        self._entered = False
        self._operation: Operation | None = None
        self._judged: tuple[Outcome, str] | None = None

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
        self._judged = (outcome, str(reason))
        if self._operation is not None:
            self._operation.verdict, self._operation.reason = self._judged

    def __enter__(self) -> Self:
        if self._entered:
            raise ConfigurationError("a workflow run is one run: call workflow(…) again for the next")
        self._entered = True
        recorder = active()
        if recorder is not None:
            try:
                operation = Operation(
                    recorder, Kind.WORKFLOW, self.name,
                    request_id=self._request_id, session_id=self._session_id, user_id=self._user_id,
                )  # fmt: skip
                if self._judged is not None:
                    operation.verdict, operation.reason = self._judged
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


def _id_text(argument: str, value: object) -> str | None:
    """Return an id as text; one that is empty counts as not given, as a header that is missing."""
    if value is None or value == "":
        return None
    if isinstance(value, str | int | UUID) and not isinstance(value, bool):
        return str(value)
    raise ConfigurationError(f"workflow({argument}=…) takes text, a number or a UUID, not {value!r}")


def workflow(
    name: str,
    *,
    request_id: str | int | UUID | None = None,
    session_id: str | int | UUID | None = None,
    user_id: str | int | UUID | None = None,
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
    :raises ConfigurationError: for a name that is no text or empty, and for an id that is none.
    """
    return WorkflowRun(name, request_id, session_id, user_id)
