"""What all who watch are sent: computed once a tick, however many they are."""

import asyncio
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from starlette.concurrency import run_in_threadpool

PAUSE_S: Final = 1.0


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
