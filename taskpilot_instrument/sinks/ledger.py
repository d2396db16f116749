"""The ledger: where budgets, feedback and the history of runs live, so that processes share them.

Money is whole pico-dollars (10⁻¹² USD): every published price per token is a whole number of them, and sums of
integers are exact in SQLite, in Redis and in Python.
"""

import os
from pathlib import Path
from typing import cast

from taskpilot_instrument._addresses import LEDGER_PLACES, MEMORY, ledger_place
from taskpilot_instrument.errors import ConfigurationError
from taskpilot_instrument.redaction import redact_address
from taskpilot_instrument.sinks._ledger_circuit import Circuit
from taskpilot_instrument.sinks._ledger_memory import MemoryLedger
from taskpilot_instrument.sinks._ledger_records import (
    PICO_PER_USD,
    Claim,
    Ledger,
    Rollup,
    RunLink,
    Standing,
    Vote,
    to_pico,
    to_usd,
)

__all__ = [
    "PICO_PER_USD", "Claim", "Ledger", "Rollup", "RunLink", "Standing", "Vote", "default_path", "open_ledger",
    "to_pico", "to_usd",
]  # fmt: skip


def open_ledger(where: object = None) -> Ledger:
    """Open a ledger; one that cannot be reached fails at once instead of slowing every call.

    :param where: the path of a SQLite file, or ``sqlite:///`` and an absolute one; ``redis://…`` (``rediss://``,
        ``unix://``); ``memory``; or a ledger of your own. None takes ``taskpilot/ledger.db`` in the user's state folder
        (``$XDG_STATE_HOME``, else ``~/.local/state``). A file has to lie on a disk of this machine; where there is none
        it is made, and its folder, but none above that.
    :raises ConfigurationError: where the package ``redis`` is missing, or the place cannot be read.
    :raises LedgerError: where the file cannot be opened.
    """
    store = open_store(where)
    return store if isinstance(store, Circuit | MemoryLedger) else Circuit(store)


def open_store(where: object = None, *, wait_s: float = 0.05) -> Ledger:
    """Open a ledger without the circuit in front of it, for one who asks once, and may wait for longer.

    :param where: as :func:`open_ledger` takes it.
    :param wait_s: how long to wait for a file or server, in seconds.
    :raises ConfigurationError: as :func:`open_ledger`; so LedgerError.
    """
    place = _place(where)
    if place is None:
        return cast("Ledger", where)
    if place == MEMORY:
        return MemoryLedger()
    if isinstance(place, str):
        from taskpilot_instrument.sinks._ledger_redis import RedisLedger

        return RedisLedger(place, wait_s=wait_s)
    from taskpilot_instrument.sinks._ledger_sqlite import SqliteLedger

    return SqliteLedger(place, wait_s=wait_s, is_default=place == default_path())


def file_of(where: object = None) -> Path | None:
    """Return the file that a ledger is kept in; None for one that is kept elsewhere.

    :param where: as :func:`open_ledger` takes it.
    :raises ConfigurationError: where it is text that names no place.
    """
    place = _place(where)
    return place if isinstance(place, Path) else None


def _place(where: object) -> str | Path | None:
    """Return where a ledger is kept; None for one that is given as an object."""
    if where is None:
        return default_path()
    if isinstance(where, os.PathLike):
        return Path(where).expanduser()
    if not isinstance(where, str):
        return None
    try:
        return ledger_place(where)
    except ValueError:
        raise ConfigurationError(f"ledger={redact_address(where)!r}: expected {LEDGER_PLACES}") from None


def default_path() -> Path:
    """Return where the ledger of a machine is unless another place is named."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "taskpilot" / "ledger.db"
