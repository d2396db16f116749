"""A ``ResponseStream`` of agent-framework that ends the run which made it, and tokens that only the framework tells."""

import functools
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, Span

from taskpilot_instrument._callables import _end, _touch, _Ward
from taskpilot_instrument._guard import swallow
from taskpilot_instrument._operation import Operation, current
from taskpilot_instrument._recorder import Recorder, active
from taskpilot_instrument._records import LLMCall
from taskpilot_instrument._totals import Totals
from taskpilot_instrument.semconv import OPERATION_CHAT, Kind, Outcome
from taskpilot_instrument.typing import Clock
from taskpilot_instrument.usage import usage_from_details

_WARD: Final = "_taskpilot_ward"


# --- streams --------------------------------------------------------------------------------------


def follow_stream(stream: Any, run: Operation, hear: Callable[[Any], None] | None = None) -> None:
    """Let a run end when its stream does, and be the current operation in each step of it.

    The caller keeps its own object, whose class becomes a subclass of what it was: it is held weakly by the framework,
    and wrapped in further streams, so that no other object could stand for it.

    :param hear: hears the final response; returns nothing, which leaves the response as it is.
    """
    try:
        if hear is not None:
            stream.with_result_hook(hear)
        base: Any = type(stream)
        stream.__class__ = _followed(base)
        vars(stream)[_WARD] = _Ward(run)
        run.handed_over = True
    except Exception as error:
        swallow("stream", error)


@contextmanager
def inside(run: Operation) -> Iterator[None]:
    """Make a run current in a block, unless it is already, or is over."""
    if run.is_finished or current() is run:
        yield
        return
    run.enter()
    try:
        yield
    finally:
        run.leave()


class _Steps:
    """The methods of a followed stream; they stand in its class itself: no object changes to one with more bases."""

    #: The class that the stream had.
    _taskpilot_base: Any

    async def __anext__(self) -> Any:
        run, base = _run_of(self), self._taskpilot_base
        if run.is_finished:
            return await base.__anext__(self)
        try:
            with inside(run):
                item = await base.__anext__(self)
        except StopAsyncIteration:
            run.finish()
            raise
        except BaseException as error:
            _end(run, error)
            raise
        _touch(run)
        return item

    async def get_final_response(self) -> Any:
        run, base = _run_of(self), self._taskpilot_base
        if run.is_finished or current() is run:
            return await base.get_final_response(self)
        try:
            with inside(run):
                response = await base.get_final_response(self)
        except BaseException as error:
            _end(run, error)
            raise
        run.finish()
        return response

    async def close(self, *args: Any, **kwargs: Any) -> None:
        run, base = _run_of(self), self._taskpilot_base
        try:
            with inside(run):
                await base.close(self, *args, **kwargs)
        finally:
            if current() is not run:  # else the framework closes it on its way to an error
                run.finish(outcome=Outcome.CANCELLED, end_ns=run.last_ns)

    def __await__(self) -> Generator[Any, Any, Any]:
        return _begin(self).__await__()


def _run_of(stream: Any) -> Operation:
    run: Operation = vars(stream)[_WARD].operation
    return run


async def _begin(stream: Any) -> Any:
    run, base = _run_of(stream), type(stream)._taskpilot_base  # noqa: SLF001 - our own
    begun: Awaitable[Any] = _Begun(base.__await__(stream))
    if run.is_finished:
        return await begun
    try:
        with inside(run):
            return await begun
    except BaseException as error:
        _end(run, error)
        raise


class _Begun:
    """An awaitable of what somebody's ``__await__`` returned."""

    def __init__(self, steps: Generator[Any, Any, Any]) -> None:
        self._steps = steps

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._steps


@functools.lru_cache(64)
def _followed(base: Any) -> Any:
    """Return the subclass of a stream class whose instances end their run; it answers to the names of the original."""
    body = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    body |= {name: step for name, step in vars(_Steps).items() if callable(step) and hasattr(base, name)}
    return type(base)(base.__name__, (base,), body | {"_taskpilot_base": base})


# --- tokens that only the framework tells ---------------------------------------------------------


class _NoSpans:
    """Opens no span: the one around stays current."""

    def open_span(self, _operation: Operation, _context: Context, /) -> Span:
        return INVALID_SPAN


class ChatCall(Operation):
    """A chat call of the framework: silent where the provider's client beneath it is observed, which tells all of it.

    :param client: the framework's chat client.
    """

    __slots__ = ("_client", "_model", "_streamed", "_told", "response")

    def __init__(self, recorder: Recorder, client: Any, model: str | None, *, streamed: bool) -> None:
        silent = replace(recorder, spans=_NoSpans(), sinks=(), gates=(), controls=None)
        super().__init__(silent, Kind.LLM, OPERATION_CHAT)
        self._told = recorder
        self._client = client
        self._model = model
        self._streamed = streamed
        self.totals = Totals()
        #: What the framework made of the answer.
        self.response: Any = None

    def keep(self, response: Any) -> None:
        """Keep what the framework made of the answer."""
        self.response = response

    def finish(
        self,
        error: BaseException | None = None,
        *,
        outcome: Outcome | None = None,
        error_type: str | None = None,
        end_ns: int | None = None,
    ) -> None:
        """Finish; write the LLM call where nobody else has."""
        try:
            if not self.is_finished and error is None and self.response is not None:
                tell_usage(
                    self, self._told, self._client, self.response, model=self._model, streamed=self._streamed
                )  # fmt: skip
        except Exception as problem:
            swallow("usage", problem)
        self.response = None
        super().finish(error, outcome=outcome, error_type=error_type, end_ns=end_ns)


def begin_chat(client: Any, options: Any, *, streamed: bool) -> ChatCall | None:
    """Begin a chat call; None where nothing is observed, or our own code fails."""
    recorder = active()
    if recorder is None:
        return None
    try:
        asked = options.get("model") if isinstance(options, Mapping) else None
        return ChatCall(recorder, client, asked or getattr(client, "model", None), streamed=streamed)
    except Exception as error:
        swallow("start", error)
        return None


def tell_usage(
    run: Operation, recorder: Recorder, client: Any, response: Any, *, model: str | None = None, streamed: bool = False
) -> None:
    """Write one LLM call beneath a run from the usage in its response, unless calls were seen beneath it already.

    :param run: the chat call or agent run that the response is of.
    :param recorder: under which the call is written.
    """
    totals = run.totals
    if totals is None or totals.begun:
        return
    usage = usage_from_details(getattr(response, "usage_details", None))
    if usage is None:
        return
    provider = getattr(client, "otel_provider_name", None) or getattr(client, "OTEL_PROVIDER_NAME", None)
    answered = _text(getattr(response, "model", None)) or _text(getattr(response, "model_id", None))
    llm = LLMCall(
        OPERATION_CHAT, _text(model) or answered, provider=_text(provider) or "unknown", streamed=streamed
    )  # fmt: skip
    llm.response_model, llm.response_id = answered, _text(getattr(response, "response_id", None))
    reason = _text(getattr(response, "finish_reason", None))
    llm.finish_reasons = (reason,) if reason else ()
    llm.usage, llm.billable = usage, True
    # It began with the run that it is all of.
    began = Clock(lambda: run.started_ns, lambda: run.started_at_ns)
    with inside(run):
        call = Operation(replace(recorder, clock=began), Kind.LLM, OPERATION_CHAT, llm=llm)
    call.announce()
    call.finish(end_ns=recorder.clock.monotonic_ns())


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
