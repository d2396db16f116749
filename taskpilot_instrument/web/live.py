"""What all who watch are sent: computed once a tick, however many they are."""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar, cast

from starlette.concurrency import run_in_threadpool

from taskpilot_instrument import _forks

Made = TypeVar("Made")
PAUSE_S: Final = 1.0
#: How many times as long as it took to make, something is good for, and for how long it is kept where nobody asks.
_REST: Final = 20
_KEPT_S: Final = 60.0


class _Seen(NamedTuple):
    at_s: float
    text: str


class Live:
    """Look when somebody asks, and give the same to all who ask within a tick.

    :param look: returns what is to be seen of a window.
    """

    def __init__(self, look: Callable[[str | None], str]) -> None:
        self._look = look
        self._seen: dict[str | None, _Seen] = {}
        self._looking: dict[str | None, asyncio.Task[str]] = {}

    async def text(self, window: str | None) -> str:
        """Return what is to be seen, at most a tick old.

        :raises ConfigurationError: for a window that cannot be read.
        """
        seen = self._seen.get(window)
        if seen is not None and time.monotonic() - seen.at_s < PAUSE_S:
            return seen.text
        looking = self._looking.get(window)
        if looking is None:
            looking = self._looking[window] = asyncio.ensure_future(self._look_once(window))
        return await asyncio.shield(looking)  # who goes away leaves the others their look

    async def _look_once(self, window: str | None) -> str:
        try:
            text = await run_in_threadpool(self._look, window)
            now = time.monotonic()
            self._seen = {other: seen for other, seen in self._seen.items() if now - seen.at_s < PAUSE_S}
            self._seen[window] = _Seen(now, text)
            return text
        finally:
            del self._looking[window]


class _Made(NamedTuple):
    at_s: float
    took_s: float
    value: Any


class Paced:
    """Make again what has become old; what takes long to make becomes old later, so that little time goes into it."""

    def __init__(self) -> None:
        self._lock = _forks.lock()
        self._made: dict[tuple[str, str | None], _Made] = {}

    def get(self, what: str, window: str | None, make: Callable[[], Made]) -> Made:
        """Return what ``make`` returns, or lately returned."""
        began = time.monotonic()
        made = self._made.get((what, window))
        if made is not None and began - made.at_s < _REST * made.took_s:
            return cast("Made", made.value)
        value, now = make(), time.monotonic()
        with self._lock:
            self._made = {key: each for key, each in self._made.items() if now - each.at_s < _KEPT_S}
            self._made[what, window] = _Made(now, now - began, value)
        return value
