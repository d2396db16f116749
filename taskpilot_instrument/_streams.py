"""Watch an SDK stream so that its operation finishes exactly once, however the stream ends.

The caller keeps its own stream: a cached subclass of the SDK's class that looks at each chunk, and a
hook on the ``close`` of the HTTP response, because helpers close the response and not the stream. The
body is closed before an error reaches the iterator, so the hook defers while the iterator is inside a
step. A stream that nobody ends is noticed when it is collected.
"""

import functools
import logging
import types
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Final, Generic

from taskpilot_instrument._bodies import Body
from taskpilot_instrument._collector import is_collecting
from taskpilot_instrument._guard import swallow
from taskpilot_instrument._operation import Operation, abandon
from taskpilot_instrument._recorder import Recorder
from taskpilot_instrument.semconv import Outcome
from taskpilot_instrument.typing import ChunkReader

_log = logging.getLogger("taskpilot_instrument")
_WATCH: Final = "_taskpilot_watch"
#: The SDK has a handful of stream classes; an application that makes its own must not fill the memory.
_MOST_CLASSES: Final = 128

#: Strong, because a WeakSet may not be walked while other threads add to it; every way to an end takes it out.
_open_watches: "set[Watch]" = set()


class Watch:
    """Follow one stream of chunks from its first to its last.

    :param operation: the LLM call that the stream belongs to.
    :param reader: reads chunks; told about the end before the operation finishes.
    :param hides_usage: keep the chunk that only brings the usage from the caller, who did not ask for it.
    """

    __slots__ = (
        "_body", "_finalizers", "_followers", "_hooked", "clock", "first_is_due", "hides_usage", "inside", "operation",
        "reader", "typed",
    )  # fmt: skip

    def __init__(self, operation: Operation, reader: ChunkReader, *, hides_usage: bool = False) -> None:
        assert operation.llm is not None  # noqa: S101 - only LLM calls stream
        self.operation = operation
        self.reader = reader
        self.hides_usage = hides_usage
        self.clock = operation.recorder.clock.monotonic_ns
        self.first_is_due = operation.llm.streamed
        #: True while the SDK's iterator runs: what closes the response then is not the consumer.
        self.inside = False
        #: True once parsed chunks are seen; the bytes beneath need no reading then.
        self.typed = False
        self._hooked: Any = None
        self._body: Body | None = None
        self._finalizers: list[Any] = []
        self._followers: list[Operation] = []

    # --- what happens on the stream ---------------------------------------------------------------

    def saw(self, chunk: Any) -> None:
        """Note one chunk."""
        try:
            self.operation.last_ns = now = self.clock()
            if self.first_is_due:
                self.first_came(now)
            self.reader.read_chunk(chunk)
        except Exception as error:
            swallow("usage", error)

    def first_came(self, now_ns: int) -> None:
        """Note when the first chunk came."""
        self.first_is_due = False
        if self.operation.llm is not None:
            self.operation.llm.first_chunk_ns = now_ns

    def passed(self, part: bytes) -> None:
        """Note some bytes of the body."""
        if self._body is not None:
            self._body.feed(part)

    def ended(self) -> None:
        """Finish: the stream was read to its end."""
        self._finish()

    def failed(self, error: BaseException) -> None:
        """Finish: reading raised ``error``."""
        self._finish(error)

    def closed(self) -> None:
        """Finish, unless the SDK itself closed the response on its way to an end or an error."""
        if not self.inside:
            self._finish(was_closed=True)

    def _finish(self, error: BaseException | None = None, *, was_closed: bool = False) -> None:
        outcome: Outcome | None = None
        error_type: str | None = None
        try:
            if not self.operation.is_finished:
                if self._body is not None and not self.typed:
                    self._body.end()
                self.reader.read_end()
                if was_closed:
                    left = Outcome.ABANDONED if is_collecting() else Outcome.CANCELLED
                    outcome = Outcome.SUCCESS if self.reader.complete else left
                if self.reader.failure is not None and error is None:
                    outcome, error_type = self.reader.failure
                if self.reader.complete and self._knows_no_usage():
                    _warn_of_missing_usage()
        except Exception as problem:
            swallow("usage", problem)
        finally:
            end_ns = self.operation.last_ns if outcome is Outcome.ABANDONED else None
            self.operation.finish(error, outcome=outcome, error_type=error_type, end_ns=end_ns)
            self.end_followers(error, outcome)
            self.unhook()

    def _knows_no_usage(self) -> bool:
        llm = self.operation.llm
        return llm is not None and llm.streamed and llm.usage is None

    def end_followers(self, error: BaseException | None = None, outcome: Outcome | None = None) -> None:
        """Finish the runs that gave this stream to their callers: they end with it, innermost first."""
        followers, self._followers = self._followers, []
        for run in followers:
            run.finish(error, outcome=outcome, end_ns=self.operation.last_ns if outcome is Outcome.ABANDONED else None)

    def abandoned(self) -> None:
        """Finish, at the time of the last chunk: nobody will read the rest."""
        _collected(self)

    # --- hooks ------------------------------------------------------------------------------------

    def keep(self) -> None:
        """Be among those that end with the process: for what has no response to hook."""
        _open_watches.add(self)

    def hook(self, response: Any, body: Body) -> None:
        """Hear of the response's close and end; the hooks are gone again once the operation finished.

        :param body: shown the bytes as they pass, for callers who never parse them.
        """
        self._hooked = weakref.ref(response)
        self._body = body
        try:
            setattr(response, _WATCH, self)
            response.close = functools.partial(_close, self, response.close)
            response.aclose = functools.partial(_aclose, self, response.aclose)
            response.iter_bytes = functools.partial(_iter_bytes, self, response.iter_bytes)
            response.aiter_bytes = functools.partial(_aiter_bytes, self, response.aiter_bytes)
            self.notice_the_end_of(response)
            _open_watches.add(self)
        except BaseException:
            self.unhook()  # all of it or nothing
            raise

    def notice_the_end_of(self, holder: Any) -> None:
        """End the call when ``holder`` is collected: the response, or the stream, which may be younger."""
        finalizer = weakref.finalize(holder, _collected, self)
        finalizer.atexit = False
        self._finalizers.append(finalizer)

    def unhook(self) -> None:
        """Leave the response as the SDK made it."""
        _open_watches.discard(self)
        finalizers, self._finalizers = self._finalizers, []
        for finalizer in finalizers:
            finalizer.detach()  # else it keeps us, and all that we know, as long as the response
        response = self._hooked() if self._hooked is not None else None
        for name in ("close", "aclose", "iter_bytes", "aiter_bytes", _WATCH):
            if response is not None:
                response.__dict__.pop(name, None)


@functools.cache  # once is enough
def _warn_of_missing_usage() -> None:
    _log.warning(
        "taskpilot_instrument: a stream ended without telling its usage; its tokens and cost are unknown. Ask for it "
        'with stream_options={"include_usage": True}, or let instrument(include_usage=True) ask. Said once.'
    )


def abandon_open_streams(recorder: Recorder) -> None:
    """Finish every stream that is still open under a recorder, as a process does before it exits."""
    for watch in list(_open_watches):
        if watch.operation.recorder.spans is recorder.spans:  # it may have got a gate since
            _collected(watch)


def _collected(watch: Watch) -> None:
    _open_watches.discard(watch)
    if watch.operation.is_finished:
        return
    try:
        try:
            watch.reader.read_end()
        finally:
            if watch.reader.complete and watch.reader.failure is None:
                # Whoever stopped at the finish reason had the whole answer.
                watch.operation.finish(outcome=Outcome.SUCCESS, end_ns=watch.operation.last_ns)
                watch.end_followers(outcome=Outcome.SUCCESS)
            else:
                abandon(watch.operation)
                watch.end_followers(outcome=Outcome.ABANDONED)
            watch.unhook()
    except Exception as error:
        try:
            swallow("abandon", error)
        finally:
            watch.operation.finish(outcome=Outcome.ABANDONED, end_ns=watch.operation.last_ns)


def _close(watch: Watch, original: Callable[[], None]) -> None:
    try:
        original()
    finally:
        watch.closed()


async def _aclose(watch: Watch, original: Callable[[], Awaitable[None]]) -> None:
    try:
        await original()
    finally:
        watch.closed()


def follow(stream: Any, run: Operation) -> bool:
    """Let a run end when the stream that it returned does; False where that is no stream which we watch."""
    watch: Watch | None = getattr(getattr(stream, "response", None), _WATCH, None)
    if watch is None or watch.operation.is_finished:
        return False
    run.subject = None  # its own code is done; an agent that keeps its stream must be let go
    watch._followers.append(run)  # noqa: SLF001 - this file's own
    return True


# --- parsed streams -----------------------------------------------------------------------------


def watch_of(stream: Any) -> Watch | None:
    """Return the watch on a stream's response, None where there is none or it has finished."""
    watch: Watch | None = getattr(stream.response, _WATCH, None)
    if watch is not None and not watch.typed:
        watch.typed = True
        watch.notice_the_end_of(stream)
    return watch


class _WatchedSync:
    """Goes before an SDK's sync stream class in the subclass that :func:`watched_class` makes."""

    @property
    def _sdk(self) -> Any:
        return super()

    def __next__(self) -> Any:
        watch = watch_of(self)
        return self._sdk.__next__() if watch is None else _next(watch, self._sdk.__next__)

    def __iter__(self) -> Any:
        watch = watch_of(self)
        if watch is None:
            return self._sdk.__iter__()
        return _iterate(watch, self._sdk.__iter__(), watch.reader.read_chunk, watch.clock, self)


class _WatchedAsync:
    """Goes before an SDK's async stream class in the subclass that :func:`watched_class` makes."""

    @property
    def _sdk(self) -> Any:
        return super()

    async def __anext__(self) -> Any:
        watch = watch_of(self)
        return await (self._sdk.__anext__() if watch is None else _anext(watch, self._sdk.__anext__))

    def __aiter__(self) -> Any:
        watch = watch_of(self)
        if watch is None:
            return self._sdk.__aiter__()
        return _aiterate(watch, self._sdk.__aiter__(), watch.reader.read_chunk, watch.clock, self)


@functools.lru_cache(_MOST_CLASSES)
def watched_class(base: Any, *, is_async: bool) -> Any:
    """Return the subclass of an SDK's stream class that shows each chunk to the watch on its response.

    It answers to the names of the original, and takes the same type arguments.
    """
    mixin = _WatchedAsync if is_async else _WatchedSync
    parameters: tuple[Any, ...] = getattr(base, "__parameters__", ())
    generic: Any = Generic
    bases = (mixin, base[parameters], generic[parameters]) if parameters else (mixin, base)
    names = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    watched: Any = types.new_class(base.__name__, bases, exec_body=lambda body: body.update(names))
    if parameters:
        # Where the SDK looks up the type of a chunk it expects generic bases only, and its own class among them.
        watched.__orig_bases__ = (bases[1], *base.__orig_bases__)
    return watched


def _next(watch: Watch, step: Callable[[], Any]) -> Any:
    while True:  # a host may send any number of chunks that only bring the usage
        watch.inside = True
        try:
            item = step()
        except StopIteration:
            watch.ended()
            raise
        except BaseException as error:
            watch.failed(error)
            raise
        finally:
            watch.inside = False
        watch.saw(item)
        if not (watch.hides_usage and watch.reader.is_only_usage(item)):
            return item


async def _anext(watch: Watch, step: Callable[[], Awaitable[Any]]) -> Any:
    while True:  # a host may send any number of chunks that only bring the usage
        watch.inside = True
        try:
            item = await step()
        except StopAsyncIteration:
            watch.ended()
            raise
        except BaseException as error:
            watch.failed(error)
            raise
        finally:
            watch.inside = False
        watch.saw(item)
        if not (watch.hides_usage and watch.reader.is_only_usage(item)):
            return item


def _iterate(
    watch: Watch, source: Iterator[Any], read: Callable[[Any], None], clock: Callable[[], int] | None, _keep: object
) -> Iterator[Any]:
    """Pass on what a source yields.

    :param clock: of chunks, whose times count; they are not left to ``saw()``, for there are a thousand in a stream.
    """
    # Holding the stream: else it would be gone, and the call abandoned, between its last chunk and its end.
    operation, hides = watch.operation, watch.hides_usage
    watch.inside = True
    try:
        for item in source:
            try:
                if clock is not None:
                    operation.last_ns = now = clock()
                    if watch.first_is_due:
                        watch.first_came(now)
                read(item)
            except Exception as error:
                swallow("usage", error)
            if hides and watch.reader.is_only_usage(item):
                continue
            watch.inside = False
            yield item
            watch.inside = True
    except GeneratorExit:
        # The loop was left, not the stream: it may be closed, read on, or forgotten.
        raise
    except BaseException as error:
        watch.failed(error)
        raise
    else:
        watch.ended()
    finally:
        watch.inside = False


async def _aiterate(
    watch: Watch,
    source: AsyncIterator[Any],
    read: Callable[[Any], None],
    clock: Callable[[], int] | None,
    _keep: object,
) -> AsyncIterator[Any]:
    operation, hides = watch.operation, watch.hides_usage
    watch.inside = True
    try:
        async for item in source:
            try:
                if clock is not None:
                    operation.last_ns = now = clock()
                    if watch.first_is_due:
                        watch.first_came(now)
                read(item)
            except Exception as error:
                swallow("usage", error)
            if hides and watch.reader.is_only_usage(item):
                continue
            watch.inside = False
            yield item
            watch.inside = True
    except GeneratorExit:
        raise  # as above
    except BaseException as error:
        watch.failed(error)
        raise
    else:
        watch.ended()
    finally:
        watch.inside = False


# --- bytes --------------------------------------------------------------------------------------


def _iter_bytes(watch: Watch, original: Callable[..., Iterator[bytes]], *args: Any, **kwargs: Any) -> Iterator[bytes]:
    source = original(*args, **kwargs)
    return source if watch.typed else _iterate(watch, source, watch.passed, None, source)


def _aiter_bytes(
    watch: Watch, original: Callable[..., AsyncIterator[bytes]], *args: Any, **kwargs: Any
) -> AsyncIterator[bytes]:
    source = original(*args, **kwargs)
    return source if watch.typed else _aiterate(watch, source, watch.passed, None, source)
