"""``compare_models(...)``: what each model did, how well, how fast and at what cost."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Self

from taskpilot_instrument._display import UNKNOWN, html_table, milliseconds, percent, span, table, usd
from taskpilot_instrument._estimates import LEAST_SAMPLE, Estimate, mean, quantile, rate, ratio
from taskpilot_instrument._repricing import FlatPrice, Repriced, Traffic, prices_of, repriced
from taskpilot_instrument.golden import parse_window
from taskpilot_instrument.pricing import BOOK, PriceBook
from taskpilot_instrument.sinks import _signals
from taskpilot_instrument.sinks._figures import ModelSample, model_samples
from taskpilot_instrument.sinks._sketch import Sketch
from taskpilot_instrument.sinks.metrics import MetricsBackend

_CAUTIONS: Final = (
    "A run counts for the model that it called last.",
    "Models that were given different work cannot be told apart by this; experiment() draws them by lot.",
)
_REPRICED: Final = (
    "What another model would have cost: the same tokens at its prices (≈ where they may not be all); "
    "it may need more or fewer of them."
)


class Standing(StrEnum):
    """What can be said of the models by one figure."""

    BEST = "best"
    UNCLEAR = "no clear difference"
    TOO_FEW = "too few"


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """What one model did; what is unknown has no value.

    :param calls: those that were sent; everything else speaks of these.
    :param blocked_calls: those that were refused before they were sent, by a budget, limit or policy.
    :param problems: calls that did not succeed in percent of all, by type of error, else by outcome.
    :param first_chunk_p50_ms: time from request to first chunk, of streams; so ``first_chunk_p95_ms``.
    :param tokens_per_second: output tokens ÷ the seconds that they took: from the first chunk on of streams, of the
        whole call otherwise; of calls that succeeded. Sums over sums, so that a long answer counts for more than a
        short one.
    :param cost_per_call_usd: of calls whose cost is wholly known.
    :param cost_per_successful_run_usd: what the runs cost that had this model called last, failed ones included, ÷ the
        successful ones among them: workflow runs, or runs of the agent that was asked for.
    :param cached_share_percent: of the input tokens, those that came from the provider's cache.
    :param limit_hits: token limits that were hit, by limit.
    :param repriced: what the same tokens would have cost, by the model that was asked about.
    :param correctness_percent: of users' verdicts on runs that had this model called last.
    """

    model: str
    calls: int
    blocked_calls: int
    success_rate: Estimate
    problems: Mapping[str, Estimate]
    p50_latency_ms: Estimate
    p95_latency_ms: Estimate
    p99_latency_ms: Estimate
    first_chunk_p50_ms: Estimate
    first_chunk_p95_ms: Estimate
    tokens_per_second: Estimate
    input_tokens: int
    output_tokens: int
    cached_share_percent: float | None
    total_cost_usd: float
    unpriced_calls: int
    cost_per_call_usd: Estimate
    cost_per_successful_run_usd: Estimate
    correctness_percent: Estimate
    limit_hits: Mapping[str, int]
    repriced: Mapping[str, Repriced]

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as JSON has it; an estimate is an object with value, low, high and sample."""
        return {name: _plain(getattr(self, name)) for name in self.__slots__}


class Finding(NamedTuple):
    """What can be said by one figure.

    :param best: the model that is best by it, where one is.
    :param compared: the models whose samples are large enough.
    """

    figure: str
    standing: Standing
    best: str | None
    compared: tuple[str, ...]


class _Figure(NamedTuple):
    name: str
    label: str
    show: Callable[[float | None], str]
    more_is_better: bool = False


def _speed(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:,.1f}"


_FIGURES: Final = (
    _Figure("success_rate", "success rate", percent, more_is_better=True),
    _Figure("p50_latency_ms", "p50 latency", milliseconds),
    _Figure("p95_latency_ms", "p95 latency", milliseconds),
    _Figure("p99_latency_ms", "p99 latency", milliseconds),
    _Figure("first_chunk_p50_ms", "first chunk, p50", milliseconds),
    _Figure("first_chunk_p95_ms", "first chunk, p95", milliseconds),
    _Figure("tokens_per_second", "tokens a second", _speed, more_is_better=True),
    _Figure("cost_per_call_usd", "cost per call", usd),
    _Figure("cost_per_successful_run_usd", "cost per successful run", usd),
    _Figure("correctness_percent", "correctness", percent, more_is_better=True),
)


@dataclass(frozen=True, slots=True)
class ModelComparison:
    """The models of one window, the most called first, and what can be said of them.

    A model is best by a figure where its 95 % interval overlaps that of no other. Compared are models with 30
    observations or more behind the figure and both ends of the interval known (for a 95th percentile that takes some 75
    calls, for a 99th some 400); of fewer than two of them nothing is said. Intervals that do not overlap are a stricter
    test than one at 5 %, which makes up for looking at several figures, not for looking every day: for that there
    are experiments.
    """

    models: tuple[ModelFigures, ...]
    findings: tuple[Finding, ...]
    #: Seconds looked back; None since the start.
    window_seconds: int | None = None
    agent: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as JSON has it."""
        return {
            "window_seconds": self.window_seconds,
            "agent": self.agent,
            "models": [each.as_dict() for each in self.models],
            "findings": [
                {**each._asdict(), "standing": str(each.standing), "compared": list(each.compared)}
                for each in self.findings
            ],
            "caution": " ".join(self._cautions()),
        }

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Self:
        """Return what :meth:`as_dict` was asked of, such as from the JSON of another process."""
        return cls(
            tuple(ModelFigures(**{name: _read(value) for name, value in each.items()}) for each in found["models"]),
            tuple(
                Finding(each["figure"], Standing(each["standing"]), each["best"], tuple(each["compared"]))
                for each in found["findings"]
            ),
            found["window_seconds"],
            found["agent"],
        )

    def __str__(self) -> str:
        if not self.models:
            return f"{self._caption()}: no call yet"
        return "\n".join([self._caption(), *table(self._rows()), *self._cautions()])

    def _repr_html_(self) -> str:
        return html_table(f"{self._caption()}. {' '.join(self._cautions())}", self._rows())

    def _cautions(self) -> tuple[str, ...]:
        return (*_CAUTIONS, _REPRICED) if any(each.repriced for each in self.models) else _CAUTIONS

    def _caption(self) -> str:
        window = "since the start" if self.window_seconds is None else f"last {span(self.window_seconds)}"
        return f"Models, {window}{f', agent {self.agent}' if self.agent is not None else ''}"

    def _rows(self) -> list[list[str]]:
        told = {each.figure: each.best or str(each.standing) for each in self.findings}
        rows = [["", *(each.model for each in self.models), "best"]]
        rows.append(["calls", *(f"{each.calls:,}" for each in self.models), ""])
        if any(each.blocked_calls for each in self.models):
            rows.append(["refused before sent", *(f"{each.blocked_calls:,}" for each in self.models), ""])
        for figure in _FIGURES:
            shown = [_shown(getattr(each, figure.name), figure.show) for each in self.models]
            rows.append([figure.label, *shown, told.get(figure.name, "")])
            if figure.name == "success_rate":
                rows += self._problems()
        rows += self._repriced()
        rows.append(["cached input", *(percent(each.cached_share_percent) for each in self.models), ""])
        rows.append(["token limits hit", *(f"{sum(each.limit_hits.values()):,}" for each in self.models), ""])
        return rows

    def _repriced(self) -> list[list[str]]:
        others = list(dict.fromkeys(name for each in self.models for name in each.repriced))
        if not others:
            return []
        spent = [_partly(usd(each.total_cost_usd), least=bool(each.unpriced_calls)) for each in self.models]
        return [
            ["cost", *spent, ""],
            *([f"  at {name}", *(_instead(each, name) for each in self.models), ""] for name in others),
        ]

    def _problems(self) -> list[list[str]]:
        names = dict.fromkeys(name for each in self.models for name in each.problems)
        return [
            [f"  {name}", *(_shown(each.problems.get(name), percent) for each in self.models), ""] for name in names
        ]


def _shown(estimate: Estimate | None, show: Callable[[float | None], str]) -> str:
    if estimate is None or estimate.value is None:
        return UNKNOWN
    if estimate.low is None and estimate.high is None:
        return show(estimate.value)
    return f"{show(estimate.value)} ({show(estimate.low)} … {show(estimate.high)})"


def _partly(shown: str, *, least: bool) -> str:
    return f"≥ {shown}" if least else shown


def _instead(figures: ModelFigures, model: str) -> str:
    """Show what a model's traffic would have cost at the prices of another."""
    found = figures.repriced[model]
    shown = f"{'' if found.is_exact or found.usd is None else '≈ '}{usd(found.usd)}"
    if found.usd is None or figures.unpriced_calls or not figures.total_cost_usd:
        return shown
    return f"{shown} ({(found.usd / figures.total_cost_usd - 1) * 100:+.0f} %)"


def _plain(value: Any) -> Any:
    if isinstance(value, Estimate):
        return value.as_dict()
    if isinstance(value, Repriced):
        return value._asdict()
    return {name: _plain(each) for name, each in value.items()} if isinstance(value, Mapping) else value


def _read(value: Any) -> Any:
    """Return what :func:`_plain` was given."""
    if not isinstance(value, Mapping):
        return value
    if value.keys() == set(Estimate._fields):
        return Estimate(**value)
    if value.keys() == set(Repriced._fields):
        return Repriced(**value)
    return MappingProxyType({name: _read(each) for name, each in value.items()})


# --- computing ----------------------------------------------------------------------------------


def compare(
    backend: MetricsBackend,
    *,
    window: str | None = None,
    agent: str | None = None,
    reprice: Iterable[str] = (),
    book: PriceBook = BOOK,
) -> ModelComparison:
    """Compare the models that were called; see :meth:`Instrumentation.compare_models`.

    :param book: what models cost.
    :raises ConfigurationError: for a window that cannot be read or is not kept, or a model without a price.
    """
    others = prices_of(book, reprice)
    seconds = None if window is None else parse_window(window)
    samples = model_samples(backend.windows.select(None if seconds is None else seconds * 1_000_000_000), agent)
    models = [_figures(model, sample, book, others) for model, sample in samples.items()]
    models = [each for each in models if each.calls or each.blocked_calls or each.correctness_percent.sample]
    models.sort(key=lambda each: (-each.calls, each.model))
    findings = tuple(found for figure in _FIGURES if (found := _finding(figure, models)) is not None)
    return ModelComparison(tuple(models), findings, seconds, agent)


def _figures(model: str, sample: ModelSample, book: PriceBook, others: dict[str, FlatPrice]) -> ModelFigures:
    cell, calls, runs = sample
    first_chunk = calls.first_chunk or Sketch()
    # A vote that was changed is taken back when it is changed: in a window it may be missing below zero.
    correct, incorrect = max(0, calls.correct), max(0, calls.incorrect)
    traffic = Traffic(
        model, cell.input_tokens, cell.output_tokens, calls.cached_tokens, cell.cost,
        is_whole=not cell.unpriced,
    )  # fmt: skip
    problems = {name: rate(count, cell.runs) for name, count in sorted((calls.problems or {}).items())}
    return ModelFigures(
        model=model,
        calls=cell.runs,
        blocked_calls=_signals.blocked(cell.lost or {}).runs,
        success_rate=rate(cell.successes, cell.runs),
        problems=MappingProxyType(problems),
        p50_latency_ms=quantile(cell.latency, 50),
        p95_latency_ms=quantile(cell.latency, 95),
        p99_latency_ms=quantile(cell.latency, 99),
        first_chunk_p50_ms=quantile(first_chunk, 50),
        first_chunk_p95_ms=quantile(first_chunk, 95),
        tokens_per_second=ratio(
            calls.tokens, calls.seconds, calls.tokens_squares, calls.tokens_seconds, calls.seconds_squares,
            calls.outputs,
        ),
        input_tokens=cell.input_tokens,
        output_tokens=cell.output_tokens,
        cached_share_percent=_signals.percent(calls.cached_tokens, cell.input_tokens),
        total_cost_usd=float(cell.cost),
        unpriced_calls=cell.unpriced,
        cost_per_call_usd=mean(float(cell.cost - calls.cost_in_part), calls.cost_squares, cell.priced),
        cost_per_successful_run_usd=ratio(
            float(runs.run_cost), runs.run_successes, runs.run_cost_squares, runs.run_cost_of_successes,
            runs.run_successes, runs.runs,
        ),
        correctness_percent=rate(correct, correct + incorrect),
        limit_hits=MappingProxyType(dict(sorted((calls.limits or {}).items()))),
        repriced=MappingProxyType(repriced(book, traffic, others)),
    )  # fmt: skip


def _finding(figure: _Figure, models: list[ModelFigures]) -> Finding | None:
    """Return what can be said by a figure; None where fewer than two models have it."""
    known = [(each.model, getattr(each, figure.name)) for each in models]
    known = [(model, estimate) for model, estimate in known if estimate.value is not None]
    if len(known) < 2:
        return None
    large = [
        (model, estimate)
        for model, estimate in known
        if estimate.sample >= LEAST_SAMPLE and None not in {estimate.low, estimate.high}
    ]
    names = tuple(model for model, _ in large)
    if len(large) < 2:
        return Finding(figure.name, Standing.TOO_FEW, None, names)
    sign = 1 if figure.more_is_better else -1
    (model, best), *others = sorted(large, key=lambda item: -sign * item[1].value)
    bad, good = ("low", "high") if figure.more_is_better else ("high", "low")
    if all(sign * getattr(best, bad) > sign * getattr(other, good) for _, other in others):
        return Finding(figure.name, Standing.BEST, model, names)
    return Finding(figure.name, Standing.UNCLEAR, None, names)
