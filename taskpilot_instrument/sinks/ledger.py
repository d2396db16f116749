"""The ledger: where budgets, feedback and the history of runs live, so that processes share them.

Money is whole pico-dollars (10⁻¹² USD): every published price per token is a whole number of them, and sums of
integers are exact in SQLite, in Redis and in Python.
"""

import os
from pathlib import Path
from typing import Final, cast

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


_REDIS: Final = ("redis://", "rediss://", "unix://")
#: A path that begins so is a slip of an address.
_SLIPS: Final = (":memory:", "file:", "memory:", "redis:", "rediss:", "sqlite:", "unix:")


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
    if where == "memory":
        return MemoryLedger()
    if isinstance(where, str) and where.startswith(_REDIS):
        from taskpilot_instrument.sinks._ledger_redis import RedisLedger

        return RedisLedger(where, wait_s=wait_s)
    file = file_of(where)
    if file is not None:
        from taskpilot_instrument.sinks._ledger_sqlite import SqliteLedger

        return SqliteLedger(file, wait_s=wait_s, is_default=file == default_path())
    return cast("Ledger", where)


def file_of(where: object = None) -> Path | None:
    """Return the file that a ledger is kept in; None for one that is kept elsewhere.

    :param where: as :func:`open_ledger` takes it.
    :raises ConfigurationError: where it is text that names no place.
    """
    if where is None:
        return default_path()
    if where == "memory" or (isinstance(where, str) and where.startswith(_REDIS)):
        return None
    return _path(os.fspath(where)) if isinstance(where, str | os.PathLike) else None


def _path(where: str) -> Path:
    path = where.removeprefix("sqlite://")
    if not path.strip() or "://" in path or path.casefold().startswith(_SLIPS):
        raise ConfigurationError(
            f"ledger={redact_address(where)!r}: expected the path of a SQLite file, sqlite:///…, redis://… or memory"
        )
    return Path(path).expanduser()


def default_path() -> Path:
    """Return where the ledger of a machine is unless another place is named."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "taskpilot" / "ledger.db"
