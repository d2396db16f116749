"""Read what ready-made policies are made of."""

import re
from typing import Any, Final, Literal

from taskpilot_instrument.errors import ConfigurationError
from taskpilot_instrument.policy import Deny, Flag

Decision = Literal["deny", "flag"]
_RULINGS: Final[dict[str, type[Deny] | type[Flag]]] = {"deny": Deny, "flag": Flag}
#: Characters that a regular expression is let at.
MOST_PATTERN_INPUT: Final = 100_000


def ruling(decision: str) -> type[Deny] | type[Flag]:
    """Return what a rule answers where it is broken.

    :raises ConfigurationError: for another word than ``deny`` and ``flag``.
    """
    if decision not in _RULINGS:
        raise ConfigurationError(f"decision={decision!r}: expected one of deny, flag")
    return _RULINGS[decision]


def compiled(what: str, pattern: Any, flags: int = re.IGNORECASE) -> re.Pattern[str]:
    """Return a regular expression of text.

    :param what: how the setting is called.
    :raises ConfigurationError: for what is none.
    """
    try:
        found = pattern if isinstance(pattern, re.Pattern) else re.compile(pattern, flags)
    except (re.error, TypeError) as error:
        raise ConfigurationError(f"{what}={pattern!r:.80}: expected a regular expression ({error})") from None
    if isinstance(found.pattern, bytes):
        raise ConfigurationError(f"{what}={pattern!r:.80}: expected a regular expression of text, not of bytes")
    return found


def whole(what: str, given: Any, least: int) -> int:
    """Return a whole number.

    :raises ConfigurationError: for what is none, or less than ``least``.
    """
    if isinstance(given, bool) or not isinstance(given, int) or given < least:
        raise ConfigurationError(f"{what}={given!r:.80}: expected a whole number of {least} or more")
    return given
