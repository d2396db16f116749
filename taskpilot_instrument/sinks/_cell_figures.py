"""A cell as plain numbers by name, and back: what processes can add up without knowing what it means.

Money is in whole pico-dollars, which the files keep as doubles: exact up to some $9,000 in a cell of a process, and
within a few pico-dollars beyond. Of a sketch there are the bins: its smallest and largest value are those of the bins,
within 1 % as every quantile.
"""

from collections.abc import Iterator, Mapping
from decimal import Decimal
from operator import attrgetter
from typing import Any, Final

from taskpilot_instrument._money import multiply
from taskpilot_instrument._waste import NO_WASTE, Lost, Waste
from taskpilot_instrument.semconv import Outcome
from taskpilot_instrument.sinks._calls import Calls
from taskpilot_instrument.sinks._sketch import Sketch
from taskpilot_instrument.sinks._windows import Cell

_PICO: Final = Decimal(10**12)
_UNIT: Final = Decimal("1e-12")
_COUNTS: Final = (
    "runs", "successes", "priced", "unpriced", "input_tokens", "output_tokens", "violations", "blocked_input",
    "blocked_output", "correct", "incorrect", "checked", "check_failed",
)  # fmt: skip
_WASTED: Final = ("attempts", "retries", "calls", "tokens", "unpriced")
_LOSING: Final = tuple(set(Outcome) - {Outcome.SUCCESS})
_CALLS: Final = (
    "cached_tokens", "outputs", "tokens", "tokens_squares", "tokens_seconds", "seconds", "seconds_squares",
    "cost_squares", "runs", "run_successes", "run_cost_of_successes", "run_cost_squares", "correct", "incorrect",
)  # fmt: skip
_WHOLE: Final = frozenset({*_CALLS}) - {
    "tokens_seconds", "seconds", "seconds_squares", "cost_squares", "run_cost_of_successes", "run_cost_squares",
}  # fmt: skip
_counts_of: Final = attrgetter(*_COUNTS)
_calls_of: Final = attrgetter(*_CALLS)
_CALL_NAMES: Final = tuple(f"calls.{name}" for name in _CALLS)
_CALL_MONEY: Final = ("cost_in_part", "run_cost")


def pico(usd: Decimal) -> int:
    """Return an amount in millionths of a millionth."""
    return round(multiply(usd, _PICO))


def amount_of(number: float) -> Decimal:
    """Return the amount of so many millionths of a millionth."""
    return multiply(Decimal(round(number)), _UNIT)


#: What a figure of a cell is called: a word, or one and what beneath it, such as the bin of a sketch.
Name = str | tuple[str, int]


def written(name: Name) -> str:
    """Return a name as text."""
    return name if isinstance(name, str) else f"{name[0]}:{name[1]}"


def numbers(cell: Cell) -> Iterator[tuple[Name, float]]:
    """Yield everything that a cell holds, but its sketches and zeros; it is asked for with each record."""
    for name, value in zip(_COUNTS, _counts_of(cell), strict=True):
        if value:
            yield name, value
    if cell.cost:
        yield "cost", pico(cell.cost)
    if cell.wasted is not NO_WASTE:
        yield from ((f"wasted.{name}", getattr(cell.wasted, name)) for name in _WASTED)
        yield "wasted.usd", pico(cell.wasted.usd)
    if cell.lost is not None:
        for outcome, lost in cell.lost.items():
            yield f"lost.{outcome}.runs", lost.runs
            yield f"lost.{outcome}.usd", pico(lost.usd)
            yield f"lost.{outcome}.unpriced", lost.unpriced
    if cell.calls is not None:
        yield from _of_calls(cell.calls)


def sketches(cell: Cell) -> Iterator[tuple[str, Sketch]]:
    """Yield the sketches of a cell."""
    yield "ms", cell.latency
    if cell.calls is not None and cell.calls.first_chunk is not None:
        yield "first_ms", cell.calls.first_chunk


def _of_calls(calls: Calls) -> Iterator[tuple[Name, float]]:
    for name, value in zip(_CALL_NAMES, _calls_of(calls), strict=True):
        if value:
            yield name, value
    for name in _CALL_MONEY:
        value = getattr(calls, name)
        if value:
            yield f"calls.{name}", pico(value)
    for name in ("problems", "limits"):
        for what, times in (getattr(calls, name) or {}).items():
            yield f"calls.{name}:{what}", times


def cell_of(given: Mapping[str, float]) -> Cell:
    """Return the cell that these numbers speak of."""
    cell = Cell()
    for name in _COUNTS:
        setattr(cell, name, round(given.get(name, 0)))
    cell.cost = amount_of(given.get("cost", 0))
    if any(name.startswith("wasted.") for name in given):
        wasted: dict[str, Any] = {name: round(given.get(f"wasted.{name}", 0)) for name in _WASTED}
        cell.wasted = Waste(**wasted, usd=amount_of(given.get("wasted.usd", 0)))
    for outcome in _LOSING:
        runs = round(given.get(f"lost.{outcome}.runs", 0))
        if runs:
            usd, unpriced = given.get(f"lost.{outcome}.usd", 0), given.get(f"lost.{outcome}.unpriced", 0)
            cell.lose(outcome, Lost(runs, amount_of(usd), round(unpriced)))
    cell.latency = _sketch("ms", given)
    if any(name.startswith(("calls.", "first_ms")) for name in given):
        cell.calls = _calls(given)
    return cell


def _calls(given: Mapping[str, float]) -> Calls:
    calls = Calls()
    for name in _CALLS:
        value = given.get(f"calls.{name}", 0)
        setattr(calls, name, round(value) if name in _WHOLE else value)
    for name in _CALL_MONEY:
        setattr(calls, name, amount_of(given.get(f"calls.{name}", 0)))
    if "first_ms" in given:
        calls.first_chunk = _sketch("first_ms", given)
    for name in ("problems", "limits"):
        found = {what: round(times) for what, times in _beneath(f"calls.{name}:", given)}
        if found:
            setattr(calls, name, found)
    return calls


def _sketch(name: str, given: Mapping[str, float]) -> Sketch:
    bins = {int(key): round(seen) for key, seen in _beneath(f"{name}:", given)}
    return Sketch.of(bins, given.get(name, 0.0))


def _beneath(prefix: str, given: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    return ((name.removeprefix(prefix), value) for name, value in given.items() if name.startswith(prefix))
