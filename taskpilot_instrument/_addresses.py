"""What an address may be: that of a ledger and that of a Prometheus are told from slips in one place.

What is none is a ValueError; who asked says what would be right, and keeps the password out of it.
"""

from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, parse_qsl, urlsplit

#: The ledger that is kept nowhere.
MEMORY: Final = "memory"
#: The end of "expected …" for a ledger's address.
LEDGER_PLACES: Final = "the path of a SQLite file (with a / or a suffix), sqlite:///…, redis://… or memory"
#: The same for a Prometheus's.
PROMETHEUS_URL: Final = (
    "the URL of a Prometheus, such as http://prometheus:9090 or http://prometheus:9090?job=taskpilot"
)
_REDIS: Final = ("redis://", "rediss://", "unix://")
#: A path that begins so is a slip of an address.
_SLIPS: Final = (":memory:", "file:", "memory:", "redis:", "rediss:", "sqlite:", "unix:")


def ledger_place(given: str) -> str | Path:
    """Return the file that a ledger is kept in, the URL of its Redis, or the word memory.

    A path is told from a misspelt word by a separator or a suffix.
    """
    if given.strip().casefold() == MEMORY:
        return MEMORY
    if given.startswith(_REDIS):
        return given
    path = given.removeprefix("sqlite://")
    if not path.strip() or "://" in path or path.casefold().startswith(_SLIPS):
        raise ValueError(given)
    place = Path(path).expanduser()
    if place.name == given and not place.suffix:
        raise ValueError(given)
    return place


def prometheus_address(given: str) -> tuple[SplitResult, dict[str, str]]:
    """Return the parts of a Prometheus's URL, and the labels that its query narrows questions down to."""
    parts = urlsplit(given)
    pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.port == 0 or parts.fragment:
        raise ValueError(given)
    if not all(name.isidentifier() and name.isascii() for name, _ in pairs):
        raise ValueError(given)
    return parts, dict(pairs)
