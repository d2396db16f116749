"""Keep our own errors from the caller.

Each hook runs in a ``try`` whose ``except Exception`` hands the error to :func:`swallow`: it is
counted by place, logged once per place, and the caller sees what it would have seen without us.
Under the project's own tests :data:`policy` is set to re-raise, so that a bug cannot hide.
"""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from taskpilot_instrument import _forks

_log = logging.getLogger("taskpilot_instrument")


@dataclass
class GuardPolicy:
    """What happens to an internal error: swallowed in production, re-raised under tests."""

    reraise: bool = False
    listeners: list[Callable[[str], None]] = field(default_factory=list)


policy = GuardPolicy()
# Re-entrant: the collector may run here and end a stream whose own hook fails.
_lock = _forks.rlock()
_counts: Counter[str] = Counter()


def swallow(where: str, error: Exception) -> None:
    """Count and log an internal error, then forget it.

    :param where: the place, a short fixed word such as ``usage`` (it becomes a metric label).
    :param error: what was raised there.
    """
    if policy.reraise:
        raise error
    if count(where):
        _report(where, type(error).__name__)


def count(where: str) -> bool:
    """Count something that went wrong at a place; tell whether it was the first time there.

    :param where: as in :func:`swallow`.
    """
    with _lock:
        _counts[where] += 1
        first = _counts[where] == 1
        listeners = tuple(policy.listeners)
    for listener in listeners:
        try:
            listener(where)
        except Exception:
            _log.debug("guard listener failed", exc_info=True)
    return first


def _report(where: str, kind: str) -> None:
    """Log an error by its type only: the message of a foreign exception may quote a prompt or a key."""
    try:
        _log.warning(
            "taskpilot_instrument: internal error in %s (%s); the call was not affected. "
            "Further errors there are counted, not logged.",
            where,
            kind,
        )
    except Exception:  # noqa: S110 - the application's logging is broken, and there is nobody left to tell
        pass


def swallowed() -> dict[str, int]:
    """Return how many internal errors were swallowed, by place."""
    with _lock:
        return dict(_counts)


def reset() -> None:
    """Forget the counts (for tests)."""
    with _lock:
        _counts.clear()
