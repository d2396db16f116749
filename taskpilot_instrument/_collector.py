"""What the garbage collector ends, and when that may be told.

It ends streams, generators and coroutines that nobody ended, in the middle of any allocation: also while this thread
holds a lock that the sinks need, where to finish would be to wait for oneself. So their ends wait here.
"""

import gc
import sys
from collections import deque
from collections.abc import Callable
from threading import get_ident
from types import FrameType
from typing import Final

#: The thread in which the collector is at work; 0 where it is not.
thread = 0
#: Ends that wait; each is called once, from a place where no lock is held.
orphans: Final[deque[Callable[[], None]]] = deque()


def watch(*, on: bool) -> None:
    """Begin to note when the collector is at work, or stop it."""
    global thread  # noqa: PLW0603 - there is one collector
    if _note in gc.callbacks:
        gc.callbacks.remove(_note)
        thread = 0
    if on:
        gc.callbacks.append(_note)


def is_watched() -> bool:
    """Tell whether it is noted when the collector is at work."""
    return _note in gc.callbacks


def after_fork() -> None:
    """Forget where the parent's collector was at work."""
    global thread  # noqa: PLW0603 - there is one collector
    thread = 0


def _note(phase: str, _info: dict[str, int]) -> None:
    global thread  # noqa: PLW0603 - there is one collector
    thread = get_ident() if phase == "start" else 0
    if phase == "stop" and orphans:
        interrupted = sys._getframe().f_back  # noqa: SLF001 - the only way to know whom the collector interrupted
        if interrupted is not None and _was_asked_for(interrupted):
            finish_orphans()


def _was_asked_for(frame: FrameType) -> bool:
    """Tell whether the interrupted code called ``gc.collect()`` itself: nothing is half done there."""
    return "collect" in frame.f_code.co_names and "gc" in frame.f_code.co_names


def is_collecting() -> bool:
    """Tell whether the calling code runs because the garbage collector does."""
    return thread != 0 and thread == get_ident()


def finish_orphans() -> None:
    """Tell of the ends that wait, from a place where no lock is held."""
    while orphans:
        try:
            end = orphans.popleft()
        except IndexError:  # another thread took it
            return
        end()
