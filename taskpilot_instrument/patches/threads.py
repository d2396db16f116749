"""Carry the current operation into threads and thread pools, which begin with an empty context of their own.

Tasks, ``asyncio.to_thread`` and callbacks carry the context by themselves.
"""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Thread
from typing import Any

from opentelemetry.context import Context, attach, detach, get_current

from taskpilot_instrument._guard import swallow
from taskpilot_instrument.patches._patching import Patch


def patches() -> list[Patch]:
    """Return the patches for the standard library's threads and thread pools."""
    return [Patch(Thread, "start", _start), Patch(ThreadPoolExecutor, "submit", _submit)]


def _start(wrapped: Callable[..., Any], thread: Thread, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    try:
        context = get_current()
        if context:
            # On the instance: a subclass may have a ``run`` of its own.
            run: Any = functools.partial(_run_once, thread, context, thread.run)
            thread.run = run  # type: ignore[method-assign] # see above
    except Exception as error:
        swallow("thread", error)
    return wrapped(*args, **kwargs)


def _run_once(thread: Thread, context: Context, run: Callable[[], None]) -> None:
    thread.__dict__.pop("run", None)  # the thread holds us and we hold it: untie the knot
    _run_in(context, run)


def _submit(
    wrapped: Callable[..., Any], _pool: ThreadPoolExecutor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    context = get_current()
    if not context or not args or not callable(args[0]):
        return wrapped(*args, **kwargs)
    # The thread that the pool may start for it outlives what runs here.
    return _run_in(Context(), wrapped, functools.partial(_run_in, context, args[0]), *args[1:], **kwargs)


def _run_in(context: Context, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    token = attach(context)
    try:
        return fn(*args, **kwargs)
    finally:
        detach(token)
