"""What begins anew in a forked process.

A child has one thread, and a copy of everything else: a lock that another thread held would stay locked for good, and
what the parent has counted and not sent yet would be counted and sent twice. So locks made here are free in a child,
and whoever joined is told to begin anew. What a child must not get in the midst of a change is paused before.
"""

import concurrent.futures.thread  # noqa: F401 - see below
import os
import threading
from itertools import count
from typing import Any, Final, Protocol
from weakref import WeakSet, WeakValueDictionary

# A pool's lock is held across a fork, and freed in the child where this module was imported before the hooks that use
# pools were set: a tracer provider of OpenTelemetry's has such a hook, and its child would hang in it for good.


class Forked(Protocol):
    """What begins anew."""

    def after_fork(self) -> None:
        """Forget what is the parent's; every lock of ours is free by now."""


class Paused(Forked, Protocol):
    """What finishes what it is doing before a fork."""

    def before_fork(self) -> None:
        """Finish what is being done, and begin nothing."""

    def go_on(self) -> None:
        """Go on in the parent."""


_locks: Final[WeakSet[Any]] = WeakSet()
#: In the order in which they joined: what is built on others is told after them.
_told: Final[WeakValueDictionary[int, Forked]] = WeakValueDictionary()
_numbers: Final = count()
_paused: Final[WeakSet[Paused]] = WeakSet()
#: Two threads that fork at once would wait for what the other has stopped.
_forking: Final = threading.RLock()


def lock() -> threading.Lock:
    """Return a lock that is free in a forked process."""
    made = threading.Lock()
    _locks.add(made)
    return made


def rlock() -> Any:
    """Return a re-entrant lock that is free in a forked process."""
    made = threading.RLock()
    _locks.add(made)
    return made


def free(held: Any) -> None:
    """Free a lock that somebody may have held when this process was forked; it stays the same object."""
    renew = getattr(held, "_at_fork_reinit", None)  # what the standard library's own locks are freed by
    if renew is not None:
        renew()


def tell(one: Forked) -> None:
    """Tell an object in every forked process, for as long as it lives."""
    _told[next(_numbers)] = one


def pause(one: Paused) -> None:
    """Have an object finish what it is doing before every fork, and tell it in the child as :func:`tell` does."""
    tell(one)
    _paused.add(one)


def _before() -> None:
    _forking.acquire()
    for one in list(_paused):
        one.before_fork()


def _after_in_parent() -> None:
    for one in list(_paused):
        one.go_on()
    _forking.release()


def _after_in_child() -> None:
    free(_forking)
    for each in list(_locks):
        free(each)
    for one in list(_told.values()):
        try:
            one.after_fork()
        except Exception as error:
            from taskpilot_instrument._guard import swallow  # which has a lock of ours itself

            swallow("fork", error)


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
