"""A figure beside that of the period before: what changed, and whether that is better or worse."""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Any

from taskpilot_instrument._estimates import LEAST_SAMPLE
from taskpilot_instrument._report.signals import DEFINITIONS, OF_COST, PERCENT, Definition, Facts, Value, value_of
from taskpilot_instrument._verdicts import THRESHOLDS, Verdict, judge


class Trend(StrEnum):
    """Say what a change is: better or worse where one of them can be told, else more or less."""

    BETTER = "better"
    WORSE = "worse"
    MORE = "more"
    LESS = "less"
    SAME = "same"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of a report; None is unknown.

    :param unit: ``percent``, ``ms``, ``usd`` or ``count``.
    :param change: value less before; of percentages in points.
    :param change_percent: the change in percent of what was before; None for percentages, and where nothing was before.
    :param verdict: how it stands against the thresholds of the golden signals; ``unknown`` where it has none.
    :param few: True where a trend rests on fewer than 30 runs, calls or votes in either period: take it for a hint.
    :param is_lower_bound: True where the cost of some calls is not known.
    """

    key: str
    label: str
    unit: str
    value: Value
    before: Value
    change: Value
    change_percent: float | None
    trend: Trend
    verdict: Verdict
    verdict_before: Verdict
    few: bool
    is_lower_bound: bool
    was_lower_bound: bool

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it; exact sums of money are text."""
        return {name: plain(getattr(self, name)) for name in self.__slots__ if name != "key"}


def compare(now: Facts | None, before: Facts | None) -> dict[str, Figure]:
    """Return every figure of a period beside that of the one before, by its key."""
    return {key: _figure(definition, now, before) for key, definition in DEFINITIONS.items()}


def _figure(definition: Definition, now: Facts | None, before: Facts | None) -> Figure:
    key, unit = definition.key, definition.unit
    value, earlier = value_of(definition, now), value_of(definition, before)
    change = None if value is None or earlier is None else difference(value, earlier)
    return Figure(
        key, definition.label, unit, value, earlier, change,
        None if unit == PERCENT else relative(change, earlier), trend(change, definition.better),
        _verdict(key, now, value), _verdict(key, before, earlier),
        few=definition.basis is not None and change is not None and _rests_on_few(definition, now, before),
        is_lower_bound=_is_lower_bound(key, now), was_lower_bound=_is_lower_bound(key, before),
    )  # fmt: skip


def difference(value: float | Decimal, before: float | Decimal) -> float | Decimal:
    """Return what a value is more than another, exactly where both are exact."""
    if isinstance(value, Decimal) and isinstance(before, Decimal):
        return value - before
    return float(value) - float(before)


def relative(change: Value, before: Value) -> float | None:
    """Return a change in percent of what was before; None where nothing was."""
    return None if change is None or not before else 100 * float(change) / abs(float(before))


def trend(change: Value, better: int) -> Trend:
    """Return what a change is.

    :param better: 1 where more is better, -1 where less is, 0 where neither is.
    """
    if change is None:
        return Trend.UNKNOWN
    if not change:
        return Trend.SAME
    if not better:
        return Trend.MORE if change > 0 else Trend.LESS
    return Trend.BETTER if (change > 0) == (better > 0) else Trend.WORSE


def plain(value: object) -> Any:
    """Return a value as JSON has it."""
    if isinstance(value, Decimal):
        return f"{value:f}"
    return str(value) if isinstance(value, StrEnum) else value


def _rests_on_few(definition: Definition, *both: Facts | None) -> bool:
    return any(_basis(definition, facts) < LEAST_SAMPLE for facts in both if facts is not None)


def _basis(definition: Definition, facts: Facts) -> float:
    return LEAST_SAMPLE if definition.basis is None else definition.basis(facts)


def _verdict(key: str, facts: Facts | None, value: Value) -> Verdict:
    if facts is None or value is None or key not in THRESHOLDS:
        return Verdict.UNKNOWN
    return facts.golden.verdicts.get(key, judge(key, float(value)))


def _is_lower_bound(key: str, facts: Facts | None) -> bool:
    return facts is not None and key in OF_COST and facts.sample.unpriced != 0


def worst(figures: Iterable[Figure]) -> Verdict:
    """Return the worst verdict of those that are known."""
    found = {figure.verdict for figure in figures}
    order = (Verdict.CRITICAL, Verdict.WARNING, Verdict.HEALTHY)
    return next((verdict for verdict in order if verdict in found), Verdict.UNKNOWN)
