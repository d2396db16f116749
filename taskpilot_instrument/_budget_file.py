"""Budgets from a TOML file of ``[[budget]]`` tables."""

import logging
import tomllib
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from taskpilot_instrument._forms import did_you_mean
from taskpilot_instrument.budgets import Budget
from taskpilot_instrument.errors import ConfigurationError

_log = logging.getLogger("taskpilot_instrument")
_TABLE: Final = "budget"
_FIELDS: Final = tuple(each.name for each in fields(Budget))


def budgets_from(given: object) -> tuple[Budget, ...]:
    """Return the budgets of a list, or of a TOML file.

    .. code-block:: toml

        [[budget]]
        name = "planner"
        limit_usd = "5.00"
        window = "day"
        timezone = "Europe/Berlin"
        scope = {agent = "PlannerAgent"}
        on_exceed = "block"

    :raises ConfigurationError: for a file that cannot be read, and a definition that is not valid, naming the field.
    """
    if isinstance(given, Path):
        return tuple(_read(given))
    if isinstance(given, Iterable) and not isinstance(given, str | bytes):
        return tuple(given)
    raise ConfigurationError(f"budgets= takes a list of Budget(…) or the path of a TOML file, not {given!r}")


def _read(path: Path) -> Iterable[Budget]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"), parse_float=str)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the budgets of {path} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path} is no TOML: {error}") from error
    for name in document:
        if name != _TABLE:
            raise ConfigurationError(f"{path}: unknown key {name!r}; budgets are [[{_TABLE}]] tables")
    tables = document.get(_TABLE, [])
    if not isinstance(tables, list):
        raise ConfigurationError(f"{path}: write [[{_TABLE}]] with two brackets: there can be several")
    if not tables:
        _log.warning("taskpilot_instrument: %s holds no [[%s]] table, so no budget is set", path, _TABLE)
    for number, table in enumerate(tables, start=1):
        yield _budget(f"{path}, [[{_TABLE}]] {number}", table)


def _budget(where: str, table: dict[str, Any]) -> Budget:
    for key in table:
        if key not in _FIELDS:
            known = ", ".join(_FIELDS)
            raise ConfigurationError(f"{where}: unknown key {key!r}{did_you_mean(key, _FIELDS)}; keys are {known}")
    for key in ("name", "limit_usd"):
        if key not in table:
            raise ConfigurationError(f"{where}: {key} is missing")
    ratio = table.get("soft_ratio")
    try:
        if isinstance(ratio, str):
            table = {**table, "soft_ratio": float(ratio)}  # floats are read as text, so that 0.1 stays 0.1
        return Budget(**table)
    except ValueError as error:
        raise ConfigurationError(f"{where}: {error}") from error
