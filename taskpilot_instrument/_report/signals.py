"""The figures of a report, each defined once over what happened; the golden ones as everywhere else."""

from collections.abc import Callable, Mapping
from decimal import Decimal
from itertools import accumulate
from typing import Final, NamedTuple

from taskpilot_instrument import _hourly as hourly
from taskpilot_instrument._fleet import quantile
from taskpilot_instrument._money import total
from taskpilot_instrument._records import was_sent
from taskpilot_instrument._report.figures import Counts, Figures, named
from taskpilot_instrument._waste import NOTHING_LOST, Lost, Waste, WasteInMetrics
from taskpilot_instrument.golden import GoldenSignals, of_sample
from taskpilot_instrument.semconv import (
    DURATION_BUCKETS,
    G_COST_PER_TASK,
    G_P95_LATENCY_MS,
    G_SUCCESS_RATE,
    G_USER_CORRECTNESS,
    G_VIOLATION_RATE,
    Outcome,
)
from taskpilot_instrument.sinks import _signals
from taskpilot_instrument.sinks._signals import Sample
from taskpilot_instrument.sinks.ledger import to_usd

Value = float | Decimal | None
#: Units: each says how a value is shown.
PERCENT: Final = "percent"
MS: Final = "ms"
USD: Final = "usd"
COUNT: Final = "count"
_OUTCOMES: Final = frozenset(map(str, Outcome))
_SUCCESS: Final = f"{hourly.OUTCOME}{Outcome.SUCCESS}"


class Facts(NamedTuple):
    """What happened, all together; what the signals are computed from."""

    runs: Counts
    calls: Counts
    sample: Sample
    golden: GoldenSignals
    lacks: frozenset[str]


class Definition(NamedTuple):
    """One figure.

    :param of: its value; None where it is unknown.
    :param basis: how many runs, calls or votes it rests on; None where it is a count itself.
    :param better: 1 where more is better, -1 where less is, 0 where neither is.
    :param needs: the figure of the source that it cannot do without.
    """

    key: str
    label: str
    unit: str
    of: Callable[[Facts], Value]
    basis: Callable[[Facts], float] | None = None
    better: int = 0
    needs: str | None = None


def _runs(facts: Facts) -> float:
    return facts.sample.runs


def _calls(facts: Facts) -> float:
    return sent(facts.calls)


def _votes(facts: Facts) -> float:
    return _signals.feedback(facts.sample) or 0


def _golden(key: str) -> Callable[[Facts], Value]:
    return lambda facts: facts.golden.values[key]


def _of_runs(name: str) -> Callable[[Facts], Value]:
    return lambda facts: facts.runs.get(name, 0)


def _of_calls(name: str) -> Callable[[Facts], Value]:
    return lambda facts: facts.calls.get(name, 0)


def cost(counts: Mapping[str, float]) -> Decimal | None:
    """Return what calls cost, exactly; None where some used tokens or may be billed, and no cost is known."""
    if hourly.COST not in counts and (counts.get(hourly.UNPRICED) or tokens(counts)):
        return None
    return to_usd(int(counts.get(hourly.COST, 0)))


def mean_ms(counts: Mapping[str, float], of: str) -> float | None:
    """Return the mean duration of runs or calls, in milliseconds; None where nothing was timed."""
    return counts[hourly.MICROSECONDS] / counts[of] / 1e3 if counts.get(of) and hourly.MICROSECONDS in counts else None


def success(counts: Mapping[str, float], of: float) -> float | None:
    """Return the successful runs or calls in percent of so many."""
    return _signals.percent(counts.get(_SUCCESS, 0), of)


def refused(counts: Mapping[str, float]) -> float:
    """Return the calls that were refused before they were sent."""
    return sum(count for outcome, count in named(counts, hourly.OUTCOME) if not was_sent(outcome))


def sent(counts: Mapping[str, float]) -> float:
    """Return the calls that were requests to a model."""
    return counts.get(hourly.CALLS, 0) - refused(counts)


def p95(counts: Mapping[str, float]) -> tuple[int, float | None, tuple[float, float] | None]:
    """Return how many durations are in buckets, their 95th percentile in milliseconds, and between which it lies."""
    buckets = dict(named(counts, hourly.BUCKET))
    bounds = [*(f"{bound:g}" for bound in DURATION_BUCKETS), "+Inf"]
    return quantile(dict(zip(bounds, accumulate(buckets.get(bound, 0) for bound in bounds), strict=True)))


def p95_ms(counts: Mapping[str, float]) -> float | None:
    """Return the 95th percentile of durations, in milliseconds; None where nothing was timed."""
    return p95(counts)[1]


def tokens(counts: Mapping[str, float]) -> float:
    """Return the tokens of calls, input and output."""
    return counts.get(hourly.INPUT, 0) + counts.get(hourly.OUTPUT, 0)


def _tokens_per_run(facts: Facts) -> Value:
    return tokens(facts.calls) / facts.sample.runs if facts.sample.runs else None


def _failed(facts: Facts) -> Value:
    return facts.sample.runs - facts.sample.successes


def _checked(facts: Facts) -> Value:
    return _signals.percent(facts.sample.checked, facts.sample.runs)


def _coverage(facts: Facts) -> Value:
    share = _signals.cost_coverage(facts.sample)
    return None if share is None else 100 * share


def _lost(facts: Facts) -> Value:
    lost = facts.sample.lost
    return None if lost is None else total(each.usd for each in lost.values())


def _wasted(facts: Facts) -> Value:
    return None if facts.sample.wasted is None else facts.sample.wasted.usd


DEFINITIONS: Final = {
    each.key: each
    for each in (
        Definition(G_SUCCESS_RATE, "success rate", PERCENT, _golden(G_SUCCESS_RATE), _runs, 1),
        Definition(G_P95_LATENCY_MS, "p95 latency", MS, _golden(G_P95_LATENCY_MS), _runs, -1),
        Definition(G_COST_PER_TASK, "cost per successful task", USD, _golden(G_COST_PER_TASK), _runs, -1),
        Definition(G_USER_CORRECTNESS, "user correctness", PERCENT, _golden(G_USER_CORRECTNESS), _votes, 1),
        Definition(G_VIOLATION_RATE, "policy violations per 100 runs", PERCENT, _golden(G_VIOLATION_RATE), _runs, -1),
        Definition("total_cost_usd", "total cost", USD, lambda facts: cost(facts.calls)),
        Definition("runs", "runs", COUNT, _of_runs(hourly.RUNS)),
        Definition("failed_runs", "runs without success", COUNT, _failed),
        Definition("mean_latency_ms", "mean latency", MS, lambda facts: mean_ms(facts.runs, hourly.RUNS), _runs, -1),
        Definition("llm_calls", "LLM calls", COUNT, _calls),
        Definition(
            "llm_success_rate", "LLM calls that succeed", PERCENT, lambda f: success(f.calls, sent(f.calls)), _calls, 1
        ),
        Definition("blocked_calls", "LLM calls refused before they were sent", COUNT, lambda f: refused(f.calls)),
        Definition("input_tokens", "input tokens", COUNT, _of_calls(hourly.INPUT)),
        Definition("output_tokens", "output tokens", COUNT, _of_calls(hourly.OUTPUT)),
        Definition("tokens_per_run", "tokens per run", COUNT, _tokens_per_run, _runs, -1),
        Definition("policy_violations", "policy violations", COUNT, _of_runs(hourly.VIOLATIONS)),
        Definition("guardrail_blocks", "guardrail blocks", COUNT, _of_runs(hourly.GUARDRAIL_BLOCKS)),
        Definition("checked_runs_percent", "runs that were checked", PERCENT, _checked, _runs, 1, hourly.CHECKED),
        Definition("feedback", "verdicts of users", COUNT, _votes),
        Definition(
            "feedback_per_100_runs", "verdicts per 100 runs", PERCENT,
            lambda facts: _signals.percent(_votes(facts), facts.sample.runs), _runs, 1,
        ),
        Definition("wasted_cost_usd", "wasted cost", USD, _wasted, None, 0, hourly.WASTED),
        Definition(
            "waste_percent", "wasted share of the cost", PERCENT, lambda f: _signals.waste(f.sample), _calls, -1,
            hourly.WASTED,
        ),
        Definition("lost_cost_usd", "spent in runs without success", USD, _lost, None, 0, hourly.LOST),
        Definition("retries", "retried requests", COUNT, _of_calls(hourly.RETRIES), None, 0, hourly.RETRIES),
        Definition("unpriced_calls", "calls of unknown cost", COUNT, _of_calls(hourly.UNPRICED)),
        Definition(
            "cost_coverage_percent", "calls of known cost", PERCENT, _coverage, _calls, 1, hourly.PRICED,
        ),
    )
}  # fmt: skip
#: Lower bounds where the cost of some calls is not known.
OF_COST: Final = frozenset({G_COST_PER_TASK, "total_cost_usd", "lost_cost_usd"})


def facts_of(figures: Figures) -> Facts | None:
    """Return what happened all together; None where nothing was recorded."""
    if figures.is_empty:
        return None
    runs, calls, lacks = figures.of_runs(), figures.of_calls(), figures.lacks
    timed, latency, bounds = p95(runs)

    def count(counts: Counts, name: str) -> int | None:
        return None if name in lacks else round(counts.get(name, 0))

    whole = Sample(
        runs=runs.get(hourly.RUNS, 0),
        successes=runs.get(_SUCCESS, 0),
        p95_ms=latency,
        timed=timed,
        spent_usd=to_usd(int(calls.get(hourly.COST, 0))),
        calls=round(sent(calls)),
        priced=count(calls, hourly.PRICED),
        unpriced=round(calls.get(hourly.UNPRICED, 0)),
        violations=runs.get(hourly.VIOLATIONS, 0),
        correct=figures.correct,
        incorrect=figures.incorrect,
        checked=count(runs, hourly.CHECKED),
        check_failed=count(runs, hourly.CHECK_FAILED),
        wasted=None if hourly.WASTED in lacks else _waste(calls, lacks),
        p95_bounds_ms=bounds,
        lost=None if hourly.LOST in lacks else _lost_by_outcome(runs),
        blocked_calls=round(refused(calls)),
    )
    return Facts(runs, calls, whole, of_sample(whole, None, None, None, None), lacks)


def value_of(definition: Definition, facts: Facts | None) -> Value:
    """Return a figure; None where it is unknown."""
    if facts is None or definition.needs in facts.lacks:
        return None
    return definition.of(facts)


def _lost_by_outcome(runs: Counts) -> dict[Outcome, Lost]:
    found: dict[Outcome, Lost] = {}
    for name, pico in named(runs, hourly.LOST):
        count, unpriced = (round(runs.get(f"{of}{name}", 0)) for of in (hourly.OUTCOME, hourly.LOST_UNPRICED))
        outcome = Outcome(name) if name in _OUTCOMES else Outcome.ERROR  # beyond a number of names they share one
        found[outcome] = found.get(outcome, NOTHING_LOST).plus(Lost(count, to_usd(round(pico)), unpriced))
    return found


def _waste(calls: Counts, lacks: frozenset[str]) -> Waste | WasteInMetrics:
    attempts, retries, tokens_ = (
        round(calls.get(name, 0)) for name in (hourly.WASTED_ATTEMPTS, hourly.RETRIES, hourly.WASTED_TOKENS)
    )
    spent = to_usd(int(calls.get(hourly.WASTED, 0)))
    if hourly.WASTED_CALLS in lacks:
        return WasteInMetrics(attempts, retries, tokens_, spent, None if calls.get(hourly.UNPRICED) else 0)
    wasted, unpriced = (round(calls.get(name, 0)) for name in (hourly.WASTED_CALLS, hourly.WASTED_UNPRICED))
    return Waste(attempts, retries, wasted, tokens_, spent, unpriced)
