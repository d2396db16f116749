"""Run a check that may be slow: plain functions in a few threads, coroutines in an event loop of our own.

The threads are daemons, so a check that never returns holds up neither the agent beyond its time limit nor the end of
the process. The OpenTelemetry context goes along.
"""

import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextvars import Context, copy_context
from queue import SimpleQueue
from typing import Any, Final, NamedTuple

_MOST_THREADS: Final = 32


class TimedOutError(Exception):
    """Say that a check did not answer in time."""


class Job(NamedTuple):
    """Something to be waited for.

    :param call: does it, or makes something to be awaited.
    :param timeout_s: seconds.
    :param is_async: calling it takes no time, it only makes something to be awaited.
    """

    call: Callable[[], Any]
    timeout_s: float | None = None
    is_async: bool = False


def is_awaitable(value: object) -> bool:
    """Tell whether an answer still has to be awaited; asked of its type, which does not raise."""
    return hasattr(type(value), "__await__")


def wait(job: Job) -> Any:
    """Do a job, in a thread of ours where it has a time limit.

    :raises TimedOutError: where it takes longer.
    """
    began = time.monotonic()
    if job.is_async or job.timeout_s is None:
        result = job.call()
    else:
        result = _result(_threads.submit(job.call), job.timeout_s, job.timeout_s)
    if not is_awaitable(result):
        return result
    left = None if job.timeout_s is None else max(0.0, job.timeout_s - (time.monotonic() - began))
    return _result(_loop.submit(result), left, job.timeout_s)


def _result(future: "Future[Any]", left_s: float | None, timeout_s: float | None) -> Any:
    try:
        return future.result(left_s)
    except TimeoutError:
        if future.done():  # the check's own
            raise
        future.cancel()
        raise TimedOutError(f"no answer within {timeout_s:g} s") from None
    except BaseException:
        future.cancel()
        raise


async def wait_async(job: Job) -> Any:
    """Do a job without holding up the event loop: what is not async runs in a thread of ours.

    :raises TimedOutError: where it takes longer than its time limit.
    """
    if job.is_async and job.timeout_s is None:
        return await job.call()
    limit = asyncio.timeout(job.timeout_s)
    try:
        async with limit:
            result = job.call() if job.is_async else await asyncio.wrap_future(_threads.submit(job.call))
            return await result if is_awaitable(result) else result
    except TimeoutError:
        if limit.expired():
            raise TimedOutError(f"no answer within {job.timeout_s:g} s") from None
        raise


class _Threads:
    """Daemon threads, started while all others are busy, up to a number; what comes then waits for one of them."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[tuple[Future[Any], Context, Callable[[], Any]]] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._started = 0

    def submit(self, call: Callable[[], Any]) -> "Future[Any]":
        """Have a function called in a copy of the current context."""
        future: Future[Any] = Future()
        self._jobs.put((future, copy_context(), call))
        if not self._idle.acquire(blocking=False):
            with self._lock:
                if self._started < _MOST_THREADS:
                    _start(self._work, f"taskpilot-check-{self._started}")
                    self._started += 1
        return future

    def _work(self) -> None:
        while True:
            future, context, call = self._jobs.get()
            if future.set_running_or_notify_cancel():
                try:
                    result = context.run(call)
                except BaseException as error:
                    future.set_exception(error)
                else:
                    future.set_result(result)
                    del result
            del future, context, call  # an idle thread keeps nothing alive
            self._idle.release()


class _Loop:
    """An event loop in a daemon thread, kept from one check to the next, as are the connections opened in it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def submit(self, awaitable: Awaitable[Any]) -> "Future[Any]":
        """Have something awaited in a copy of the current context."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = _start(self._loop.run_forever, "taskpilot-checks")
        if threading.current_thread() is self._thread:
            raise RuntimeError("a check waits for another one in the event loop that would run it")
        return asyncio.run_coroutine_threadsafe(_await(awaitable), self._loop)


async def _await(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _start(work: Callable[[], object], name: str) -> threading.Thread:
    thread = threading.Thread(target=work, name=name, daemon=True)
    Context().run(thread.start)  # in no context: it does not belong to the run that happens to need it first
    return thread


_threads = _Threads()
_loop = _Loop()
#: The loop of the parent process: closing it here is not ours to do.
_left_behind: list[_Loop] = []


def _after_fork() -> None:
    """Begin anew in a child process, which has none of the threads."""
    global _threads, _loop
    _left_behind[:] = [_loop]
    _threads, _loop = _Threads(), _Loop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
