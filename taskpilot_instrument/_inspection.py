"""Put checks around one run of a callable of any kind: function, coroutine, generator, async generator."""

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextvars import ContextVar
from types import AsyncGeneratorType, CoroutineType, FunctionType, GeneratorType
from typing import Any, Final, NamedTuple, Protocol

from taskpilot_instrument._decisions import Flow, Replacement, Side, begin
from taskpilot_instrument._guard import swallow
from taskpilot_instrument._operation import Operation
from taskpilot_instrument._subject import Moment, Subject, Tape
from taskpilot_instrument._waiting import Job, wait, wait_async
from taskpilot_instrument.errors import BlockedError

#: True in what is run by a check: it is not checked itself, or a judge would be judged without end.
asking: Final[ContextVar[bool]] = ContextVar("taskpilot-asking", default=False)
_WHERE: Final = "checks"
_LATER: Final = (CoroutineType, GeneratorType, AsyncGeneratorType)
_KINDS: Final = inspect.CO_COROUTINE | inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


class ToolWatch(Protocol):
    """Hear of each tool call before the policies do; may refuse it."""

    #: Short fixed word that names it where its errors are counted.
    where: str

    def saw_tool_call(self, operation: Operation, tool: str, arguments: object) -> None:
        """Let a tool call go, or raise a :class:`BlockedError`."""


class Plan(NamedTuple):
    """Who is asked about one agent or tool.

    :param content: let captured text into the decision log.
    """

    moment: Moment
    before: Side | None
    after: Side | None
    watches: tuple[ToolWatch, ...]
    content: bool


# --- driving --------------------------------------------------------------------------------------


def run(judge: Callable[..., Flow | None], *given: Any) -> Replacement | None:
    """Have something judged, waiting in this thread."""
    token = asking.set(True)
    try:
        flow = judge(*given)
        if flow is not None:
            _answered(flow, _wait_here).send(None)
    except StopIteration as stop:
        replaced: Replacement | None = stop.value
        return replaced
    except BlockedError:
        raise
    except Exception as error:
        swallow(_WHERE, error)
    finally:
        asking.reset(token)
    return None


async def run_async(judge: Callable[..., Flow | None], *given: Any) -> Replacement | None:
    """Have something judged without holding up the event loop."""
    token = asking.set(True)
    try:
        flow = judge(*given)
        if flow is not None:
            return await _answered(flow, wait_async)
    except BlockedError:
        raise
    except Exception as error:
        swallow(_WHERE, error)
    finally:
        asking.reset(token)
    return None


async def _answered(flow: Flow, waiting: Callable[[Job], Awaitable[Any]]) -> Replacement | None:
    """Have everything answered that is to be waited for, until it is decided."""
    try:
        job = next(flow)
        while True:
            try:
                answer = await waiting(job)
            except Exception as error:
                job = flow.throw(error)
            else:
                job = flow.send(answer)
    except StopIteration as stop:
        replaced: Replacement | None = stop.value
        return replaced
    finally:
        flow.close()


async def _wait_here(job: Job) -> Any:
    """Wait in this thread: a coroutine only by its form, it never hands control back."""
    return wait(job)


# --- shells ---------------------------------------------------------------------------------------


class Inspection:
    """The checks around one run.

    :param fn: what is run.
    :param arguments: returns what it is given, by name.
    """

    __slots__ = ("_arguments", "_fn", "_operation", "_plan")

    def __init__(self, plan: Plan, operation: Operation, fn: Callable[..., Any], arguments: Callable[[], Any]) -> None:
        self._plan = plan
        self._operation = operation
        self._fn = fn
        self._arguments = arguments

    def body(self) -> Callable[..., Any]:
        """Return what to call in place of the callable, of the same kind."""
        fn = self._fn
        if type(fn) is FunctionType and not fn.__code__.co_flags & _KINDS and not hasattr(fn, "_is_coroutine_mark"):
            return self._call  # the most frequent, without the questions
        if inspect.iscoroutinefunction(fn):
            return self._acall
        if inspect.isasyncgenfunction(fn):
            return self._agenerate
        return self._generate if inspect.isgeneratorfunction(fn) else self._call

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        # It runs now. The two would keep each other alive, and what still runs when it has returned is not its body.
        self._operation.body = None
        replaced = run(self._before)
        if replaced is not None:
            return replaced.value
        result = self._fn(*args, **kwargs)
        if self._plan.after is None:
            return result
        kind = type(result)
        if kind is not str:
            if kind in _LATER:
                return self._later(result, kind)
            if _still_runs(kind):
                return result
        replaced = run(self._after, result)
        return result if replaced is None else replaced.value

    async def _acall(self, *args: Any, **kwargs: Any) -> Any:
        self._operation.body = None
        replaced = await run_async(self._before)
        if replaced is not None:
            return replaced.value
        return await self._awaited(self._fn(*args, **kwargs))

    def _generate(self, *args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        self._operation.body = None
        replaced = run(self._before)
        if replaced is not None:
            yield replaced.value
            return None
        return (yield from self._taped(self._fn(*args, **kwargs)))

    def _agenerate(self, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        self._operation.body = None
        return self._astream(lambda: self._fn(*args, **kwargs), ask_first=True)

    # --- judging ----------------------------------------------------------------------------------

    def _before(self) -> Flow | None:
        """Judge what the run is given."""
        plan, operation = self._plan, self._operation
        for watch in plan.watches:
            try:
                watch.saw_tool_call(operation, operation.name, self._arguments())
            except BlockedError:
                raise
            except Exception as error:
                swallow(watch.where, error)
        if plan.before is None:
            return None
        return begin(plan.before, operation, Subject(plan.moment, operation, self._arguments), content=plan.content)

    def _after(self, result: Any, whole: bool = True) -> Flow | None:  # noqa: FBT001, FBT002 - given by place
        """Judge what came of the run.

        :param whole: False where it is not everything.
        """
        plan = self._plan
        if plan.after is None:
            return None
        subject = Subject("agent_output", self._operation, None, result, whole)
        return begin(plan.after, self._operation, subject, content=plan.content)

    # --- results that still run -------------------------------------------------------------------

    def _later(self, result: Any, kind: type) -> Any:
        """Return what is judged once the result has run."""
        if kind is CoroutineType:
            awaited: Any = self._awaited(result)
            awaited.__name__, awaited.__qualname__ = result.__name__, result.__qualname__
            return awaited
        return self._taped(result) if kind is GeneratorType else self._astream(lambda: result, ask_first=False)

    async def _awaited(self, awaitable: Any) -> Any:
        result = await awaitable
        kind = type(result)
        if self._plan.after is None:
            return result
        if kind in _LATER:
            return self._later(result, kind)
        if _still_runs(kind):
            return result
        replaced = await run_async(self._after, result)
        return result if replaced is None else replaced.value

    def _taped(self, generator: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """Yield what ``generator`` yields, keep it, and judge it at the end."""
        if self._plan.after is None:
            return (yield from generator)
        tape = Tape()
        step: Callable[[Any], Any] = generator.send
        value: Any = None
        while True:
            try:
                item = step(value)
            except StopIteration as stop:
                result = stop.value
                break
            tape.keep(item)
            try:
                value = yield item
                step = generator.send
            except GeneratorExit:
                generator.close()
                raise
            except BaseException as error:
                step, value = generator.throw, error
        if result is not None:
            tape.keep(result)
        replaced = run(self._after, tape.value, tape.whole)
        if replaced is not None:
            yield replaced.value
            return replaced.value
        return result

    async def _astream(
        self, start: Callable[[], AsyncGenerator[Any, Any]], *, ask_first: bool
    ) -> AsyncGenerator[Any, Any]:
        """Yield what an async generator yields, keep it, and judge it at the end.

        There is no ``yield from`` for async generators, so one loop serves the judged and the unjudged.
        """
        replaced = await run_async(self._before) if ask_first else None
        if replaced is not None:
            yield replaced.value
            return
        tape, generator = Tape() if self._plan.after is not None else None, start()
        step: Callable[[Any], Any] = generator.asend
        value: Any = None
        while True:
            try:
                item = await step(value)
            except StopAsyncIteration:
                break
            if tape is not None:
                tape.keep(item)
            try:
                value = yield item
                step = generator.asend
            except GeneratorExit:
                await generator.aclose()
                raise
            except BaseException as error:
                step, value = generator.athrow, error
        replaced = await run_async(self._after, tape.value, tape.whole) if tape is not None else None
        if replaced is not None:
            yield replaced.value


def _still_runs(kind: type) -> bool:
    """Tell whether a result is passed on as it is, unchecked: an SDK's stream, a future, an iterator."""
    return hasattr(kind, "__next__") or hasattr(kind, "__anext__") or hasattr(kind, "__await__")
