"""Run one operation around a callable of any kind: function, coroutine, generator, async generator.

Four shells around one context manager. A generator makes its operation current only during each
step: held across a ``yield`` it would leak into the consumer. A plain function may return work that
is still to be done (a coroutine, a generator, an async iterator); the operation then goes with it.
"""

import functools
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator
from types import AsyncGeneratorType, CoroutineType, GeneratorType, NoneType
from typing import TYPE_CHECKING, Any, Final, Self

import wrapt

from taskpilot_instrument._guard import swallow
from taskpilot_instrument._operation import Operation, abandon
from taskpilot_instrument._streams import follow
from taskpilot_instrument.semconv import Outcome

#: Starts the operation of one call, or returns None where the call is not to be observed.
Begin = Callable[[tuple[Any, ...], dict[str, Any]], Operation | None]

if TYPE_CHECKING:
    import asyncio

    _Proxy = wrapt.ObjectProxy[Any]
else:
    _Proxy = wrapt.ObjectProxy

_PLAIN: Final = frozenset({NoneType, str, bytes, int, float, bool, dict, list, tuple, set})


def observe(fn: Callable[..., Any], begin: Begin) -> Callable[..., Any]:
    """Return ``fn`` wrapped so that each call is one operation; signature, flags and pickling stay."""
    if inspect.iscoroutinefunction(fn):
        return _coroutine_shell(fn, begin)
    if inspect.isasyncgenfunction(fn):
        return _async_generator_shell(fn, begin)
    if inspect.isgeneratorfunction(fn):
        return _generator_shell(fn, begin)
    return _function_shell(fn, begin)


def _function_shell(fn: Callable[..., Any], begin: Begin) -> Callable[..., Any]:
    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        operation = begin(args, kwargs)
        if operation is None:
            return fn(*args, **kwargs)
        with operation:
            return deliver(operation, (operation.body or fn)(*args, **kwargs))

    return call


def _coroutine_shell(fn: Callable[..., Any], begin: Begin) -> Callable[..., Any]:
    @functools.wraps(fn)
    async def call(*args: Any, **kwargs: Any) -> Any:
        operation = begin(args, kwargs)
        if operation is None:
            return await fn(*args, **kwargs)
        with operation:
            return deliver(operation, await (operation.body or fn)(*args, **kwargs))

    return call


def _generator_shell(fn: Callable[..., Any], begin: Begin) -> Callable[..., Any]:
    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        operation = begin(args, kwargs)
        if operation is None:
            return (yield from fn(*args, **kwargs))
        return (yield from _drive(_Ward(operation), (operation.body or fn)(*args, **kwargs)))

    return call


def _async_generator_shell(fn: Callable[..., Any], begin: Begin) -> Callable[..., Any]:
    @functools.wraps(fn)
    async def call(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        # There is no ``yield from`` for async generators: one loop serves the observed and the unobserved call.
        operation = begin(args, kwargs)
        generator = ((operation.body if operation is not None else None) or fn)(*args, **kwargs)
        ward = None if operation is None else _Ward(operation)  # noqa: F841 - dies with this frame
        step, value = generator.asend, None
        try:
            while True:
                item = await (step(value) if operation is None else _step(operation, step, value))
                if operation is not None:
                    _touch(operation)
                try:
                    value = yield item
                    step = generator.asend
                except GeneratorExit:
                    await (generator.aclose() if operation is None else _step(operation, generator.aclose))
                    raise
                except BaseException as error:
                    step, value = generator.athrow, error
        except StopAsyncIteration:
            if operation is not None:
                operation.finish()
        except BaseException as error:
            if operation is not None:
                _end(operation, error)
            raise

    return call


class _Ward:
    """Hold the operation of a generator; when the generator is collected unfinished, so is the ward."""

    __slots__ = ("operation",)

    def __init__(self, operation: Operation) -> None:
        self.operation = operation

    def __del__(self) -> None:
        if not self.operation.is_finished:
            try:
                abandon(self.operation)
            except Exception as error:
                swallow("abandon", error)


def _touch(operation: Operation) -> None:
    try:
        operation.last_ns = operation.recorder.clock.monotonic_ns()
    except Exception as error:
        swallow("clock", error)


def _end(operation: Operation, error: BaseException | None = None) -> None:
    if isinstance(error, GeneratorExit):
        # The consumer left early, after the last item: the time since then is not the operation's.
        operation.finish(outcome=Outcome.CANCELLED, end_ns=operation.last_ns)
    else:
        operation.finish(error)


async def _step(operation: Operation, step: Callable[..., Awaitable[Any]], *value: Any) -> Any:
    """Make one step of an async generator with its operation current."""
    operation.enter()
    try:
        return await step(*value)
    finally:
        operation.leave()


def _drive(ward: _Ward, generator: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """Yield what ``generator`` yields, passing send, throw and close through."""
    operation = ward.operation
    step: Callable[[Any], Any] = generator.send
    value: Any = None
    try:
        while True:
            operation.enter()
            try:
                item = step(value)
            finally:
                operation.leave()
            _touch(operation)
            try:
                value = yield item
                step = generator.send
            except GeneratorExit as leaving:
                operation.enter()
                try:
                    result = generator.close()  # type: ignore[func-returns-value] # from 3.13 on it returns one
                finally:
                    operation.leave()
                _end(operation, leaving)
                return result
            except BaseException as error:
                step, value = generator.throw, error
    except StopIteration as stop:
        operation.finish()
        return stop.value
    except BaseException as error:
        operation.finish(error)
        raise


# --- results that still run ---------------------------------------------------------------------


def deliver(operation: Operation, result: Any) -> Any:
    """Note the result of a call, and hand the operation over to it where it still has to run."""
    kind = type(result)
    if kind in _PLAIN:
        note_result(operation, result)
        return result
    try:
        running = _running(operation, result, kind)
    except Exception as error:
        swallow("result", error)
        running = None
    if running is None:
        note_result(operation, result)
        return result
    operation.handed_over = True
    return running


def _running(operation: Operation, result: Any, kind: type) -> Any:  # noqa: PLR0911 - one for each sort of result
    """Return what to give the caller for a result that still runs; None for any other result."""
    if kind is CoroutineType:
        awaited: Any = _await(_Ward(operation), result)
        awaited.__name__, awaited.__qualname__ = result.__name__, result.__qualname__
        return awaited
    if kind is GeneratorType:
        return _drive(_Ward(operation), result)
    if kind is AsyncGeneratorType:
        return _adrive(_Ward(operation), result)
    # Asked of its type: a lazy object may answer isinstance() with an error.
    if hasattr(kind, "_asyncio_future_blocking"):  # a future, as asyncio knows it: runs already, and must stay as it is
        result.add_done_callback(functools.partial(_future_done, operation))
        return result
    if (hasattr(kind, "__anext__") or hasattr(kind, "__next__")) and follow(result, operation):
        return result  # an SDK's stream tells when it ends, and stays the caller's own object
    if hasattr(kind, "__anext__"):
        return ObservedAsyncIterator(result, _Ward(operation))
    if hasattr(kind, "__await__"):
        return _ObservedAwaitable(result, _Ward(operation))
    return None


def note_result(operation: Operation, result: Any) -> None:
    """Note length and, where content is captured, text of a result."""
    if type(result) is str:
        operation.output_length = len(result)
    capture = operation.recorder.capture
    if capture is not None:
        try:
            operation.output_text = capture(result)
        except Exception as error:
            swallow("capture", error)


async def _await(ward: _Ward, awaitable: Awaitable[Any]) -> Any:
    # Named by its caller after the coroutine that it stands for.
    with ward.operation as operation:
        operation.handed_over = False
        return deliver(operation, await awaitable)


def _adrive(ward: _Ward, generator: AsyncGenerator[Any, Any]) -> Any:
    # The shell's closure keeps the ward, so a generator that nobody ever starts is noticed too.
    return _async_generator_shell(lambda: generator, lambda _args, _kwargs: ward.operation)()


def _future_done(operation: Operation, future: "asyncio.Future[Any]") -> None:
    if future.cancelled():
        operation.finish(outcome=Outcome.CANCELLED)
    else:
        # ``exception()`` would mark the error as retrieved and silence asyncio's own report of it.
        operation.finish(getattr(future, "_exception", None))


class _ObservedAwaitable(_Proxy):
    """An awaitable of a type of its own; awaiting it runs in the operation and finishes it."""

    def __init__(self, wrapped: Awaitable[Any], ward: _Ward) -> None:
        super().__init__(wrapped)
        self._self_ward = ward

    def __await__(self) -> Generator[Any, Any, Any]:
        return _await(self._self_ward, self.__wrapped__).__await__()


class ObservedAsyncIterator(_Proxy):
    """An async iterator of a type of its own; the operation ends with the iteration."""

    def __init__(self, wrapped: AsyncIterator[Any], ward: _Ward) -> None:
        super().__init__(wrapped)
        self._self_ward = ward

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        operation = self._self_ward.operation
        try:
            item = await _step(operation, self.__wrapped__.__anext__)
        except StopAsyncIteration:
            operation.finish()
            raise
        except BaseException as error:
            _end(operation, error)
            raise
        _touch(operation)
        return item
