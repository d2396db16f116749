"""What a report breaks down: workflows, ends of runs, errors, models, agents and policies, beside the period before."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from taskpilot_instrument import _hourly as hourly
from taskpilot_instrument._display import of
from taskpilot_instrument._report.compare import plain
from taskpilot_instrument._report.figures import Counts, Figures, grouped, named, total
from taskpilot_instrument._report.signals import (
    COUNT,
    MS,
    PERCENT,
    USD,
    Value,
    cost,
    mean_ms,
    p95_ms,
    refused,
    sent,
    success,
    tokens,
)

#: Rows of a table; the rest is added up in one more.
_MOST_ROWS: Final = 20


class Column(NamedTuple):
    """A column of figures.

    :param of: its value in a row, from that row's counts and those of all rows together.
    """

    key: str
    label: str
    unit: str
    of: Callable[[Counts, Counts], Value]


@dataclass(frozen=True, slots=True)
class Row:
    """A row: its name, its figures by the keys of the columns, and those of the period before; None is unknown.

    :param note: what else is to be said of it.
    """

    name: str
    values: Mapping[str, Value]
    before: Mapping[str, Value]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A breakdown, the largest first."""

    key: str
    title: str
    head: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    def without_before(self) -> "Table":
        """Return it where nothing is known of the period before, so that nothing was not there either."""
        unknown = {column.key: None for column in self.columns}
        return replace(self, rows=tuple([replace(row, before=unknown) for row in self.rows]))

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "title": self.title,
            "columns": {column.key: {"label": column.label, "unit": column.unit} for column in self.columns},
            "rows": [
                {
                    "name": row.name,
                    "values": {key: plain(value) for key, value in row.values.items()},
                    "before": {key: plain(value) for key, value in row.before.items()},
                    "note": row.note,
                }
                for row in self.rows
            ],
        }


def _count(name: str) -> Callable[[Counts, Counts], Value]:
    return lambda row, _: row.get(name, 0)


def _share(name: str) -> Callable[[Counts, Counts], Value]:
    return lambda row, every: 100 * row.get(name, 0) / every[name] if every.get(name) else None


_N: Final = "n"
_COUNTED: Final = (Column("count", "count", COUNT, _count(_N)), Column("share", "share", PERCENT, _share(_N)))
_COST: Final = (
    Column("cost_usd", "cost", USD, lambda row, _: cost(row)),
    Column("cost_share", "share of the cost", PERCENT, _share(hourly.COST)),
)
_RUNS: Final = (
    Column("runs", "runs", COUNT, _count(hourly.RUNS)),
    Column("success_rate", "success rate", PERCENT, lambda row, _: success(row, row.get(hourly.RUNS, 0))),
    Column("p95_latency_ms", "p95 latency", MS, lambda row, _: p95_ms(row)),
)
_CALLS: Final = (
    Column("calls", "calls", COUNT, lambda row, _: sent(row)),
    Column("success_rate", "success rate", PERCENT, lambda row, _: success(row, sent(row))),
    Column("tokens", "tokens", COUNT, lambda row, _: tokens(row)),
    Column("mean_latency_ms", "mean latency", MS, lambda row, _: mean_ms(row, hourly.TIMED)),
    *_COST,
)


def tables(now: Figures, before: Figures) -> dict[str, Table]:
    """Return every table that has a row, by its key."""
    all_tables = (
        _table("workflows", "Workflows", "workflow", _RUNS, _workflows(now), _workflows(before)),
        _table("outcomes", "How runs ended", "outcome", _COUNTED, _outcomes(now), _outcomes(before)),
        _table("errors", "Errors of LLM calls", "error", _COUNTED, _errors(now), _errors(before), _where(now)),
        _table("models", "Models", "model", _CALLS, _by(now, 1), _by(before, 1), _refused(_by(now, 1))),
        _table("agents", "Agents", "agent", _CALLS, _by(now, 0), _by(before, 0), _refused(_by(now, 0))),
        _table("policies", "Policy violations", "policy", _COUNTED, _policies(now), _policies(before)),
    )
    found = [table for table in all_tables if table.rows]
    return {table.key: table if not before.is_empty else table.without_before() for table in found}


def _workflows(figures: Figures) -> Mapping[str, Counts]:
    return {name: counts for name, counts in figures.runs.items() if counts.get(hourly.RUNS)}


def _by(figures: Figures, place: int) -> dict[str, Counts]:
    named_so = grouped(figures.calls, {key: key[place] for key in figures.calls})
    # Prometheus has figures without an agent, which belong to calls that are counted under one.
    return {name: counts for name, counts in named_so.items() if counts.get(hourly.CALLS) or counts.get(hourly.COST)}


def _counted(pairs: Iterable[tuple[str, float]]) -> dict[str, Counts]:
    return {name: {_N: count} for name, count in pairs if count}


def _outcomes(figures: Figures) -> dict[str, Counts]:
    return _counted(named(figures.of_runs(), hourly.OUTCOME))


def _errors(figures: Figures) -> dict[str, Counts]:
    return _counted(named(figures.of_calls(), hourly.ERROR))


def _policies(figures: Figures) -> dict[str, Counts]:
    return _counted(named(figures.of_runs(), hourly.POLICY))


def _where(figures: Figures) -> dict[str, str]:
    """Return the agent and model that each error came from most often."""
    most: dict[str, tuple[float, str]] = {}
    for (agent, model), counts in sorted(figures.calls.items()):
        for error, count in named(counts, hourly.ERROR):
            if count > most.get(error, (0, ""))[0]:
                most[error] = count, f"mostly {agent}, {model}"
    return {error: text for error, (_, text) in most.items()}


def _refused(calls: Mapping[str, Counts]) -> dict[str, str]:
    """Return of whom calls were refused, and how many: they are none of the calls."""
    counted = {name: round(refused(row)) for name, row in calls.items()}
    return {name: f"{of(count, 'call')} refused before sent" for name, count in counted.items() if count}


def _table(
    key: str,
    title: str,
    head: str,
    columns: tuple[Column, ...],
    now: Mapping[str, Counts],
    before: Mapping[str, Counts],
    notes: Mapping[str, str] | None = None,
) -> Table:
    first, every, every_before = columns[0].of, total(now.values()), total(before.values())

    def size(name: str) -> tuple[float, float, str]:
        return -_amount(first(now.get(name, {}), every)), -_amount(first(before.get(name, {}), every_before)), name

    def row(name: str, names: list[str]) -> Row:
        both = [total([counts[each] for each in names if each in counts]) for counts in (now, before)]
        return Row(
            name,
            {column.key: column.of(both[0], every) for column in columns},
            {column.key: column.of(both[1], every_before) for column in columns},
            (notes or {}).get(name, ""),
        )

    names = sorted({*now, *before}, key=size)
    rows = [row(name, [name]) for name in names[:_MOST_ROWS]]
    rest = names[_MOST_ROWS:]
    if rest:
        rows.append(row(f"{len(rest)} more", rest))
    return Table(key, title, head, columns, tuple(rows))


def _amount(value: Value) -> float:
    return 0.0 if value is None else float(value)
