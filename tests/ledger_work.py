"""Work that several threads and processes do with one ledger."""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any, Final, TypeVar

from taskpilot_instrument.errors import LedgerError
from taskpilot_instrument.sinks.ledger import Claim, Ledger, open_ledger

NOW: Final = 1_764_000_000.0
_NAMES: Final = count()
_T = TypeVar("_T")


def new(what: str) -> str:
    """Return a name that nothing had before: all tests share one Redis."""
    return f"{what}-{os.getpid()}-{next(_NAMES)}"


def at_once(works: list[Callable[[], Any]]) -> list[Any]:
    """Do all of them at the same time, each in a thread of its own; return what they returned."""
    ready = threading.Barrier(len(works))

    def begin(work: Callable[[], Any]) -> Any:
        ready.wait()
        return work()

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(begin, works))


def spend(ledger: Ledger, account: str, limit: int, times: int) -> int:
    """Reserve 5 and settle 3, so many times; return what was spent."""
    spent = 0
    for _ in range(times):
        name = new("r")
        claims = [Claim(account, "p", 5, limit)]
        if until_it_answers(lambda name=name, claims=claims: ledger.reserve(name, claims, 60.0, NOW)) is None:
            until_it_answers(lambda name=name: ledger.settle(name, [Claim(account, "p", 3)], NOW))
            spent += 3
    return spent


def until_it_answers(ask: Callable[[], _T]) -> _T:
    """Ask again where no answer came in time, as it may under many processes on a small machine."""
    while True:
        try:
            return ask()
        except LedgerError:
            time.sleep(0.05)


def in_threads(where: str, account: str, threads: int, times: int) -> int:
    """Open the ledger and spend in so many threads; run by a process."""
    ledger = open_ledger(where)
    try:
        return sum(at_once([lambda: spend(ledger, account, 2_001, times)] * threads))
    finally:
        ledger.close()
