"""The golden signals of many processes, asked of the Prometheus that scrapes them."""

from decimal import Decimal
from math import fsum, inf
from typing import Final

from taskpilot_instrument import golden, semconv
from taskpilot_instrument._growth import LATENCY, RUNS, Growth
from taskpilot_instrument._prometheus import Prometheus
from taskpilot_instrument._records import was_sent
from taskpilot_instrument._waste import WasteInMetrics, is_in_vain
from taskpilot_instrument.errors import ConfigurationError
from taskpilot_instrument.golden import GoldenSignals
from taskpilot_instrument.semconv import Kind, Outcome
from taskpilot_instrument.settings import Settings
from taskpilot_instrument.sinks._signals import Sample

#: Without a window: all that Prometheus keeps, which is 15 days where nobody told it otherwise.
_ALL_S: Final = 30 * 86_400
#: A scrape is written under the time at which it began: what is this old has arrived.
_SETTLED_S: Final = 1.0
#: Money is counted in whole pico-dollars; what floats add below that is noise.
_PICO: Final = Decimal("1e-12")


def ask(
    source: str,
    settings: Settings,
    *,
    window: str | None = None,
    workflow: str | None = None,
    agent: str | None = None,
    model: str | None = None,
) -> GoldenSignals:
    """Return the golden signals of all processes that a Prometheus scrapes.

    :param source: its URL; see :class:`Prometheus`.
    :param settings: bearer token and time limit.
    :param window: how far back, such as ``15m``, ``1h`` or ``24h``; None means all that it keeps.
    :raises ConfigurationError: for an argument that is not valid, and for a filter that metrics cannot answer.
    :raises SourceError: where there is no answer in time, or none that is whole.
    """
    seconds = None if window is None else golden.parse_window(window)
    if workflow is not None and not (agent is None and model is None):
        raise ConfigurationError("metrics tell no agent or model within a workflow: with source=, ask for one of them")
    prometheus = Prometheus(source, token=settings.source_token, timeout_s=settings.source_timeout_s)
    sample = _sample(prometheus, seconds, workflow, agent, model)
    return golden.of_sample(sample, seconds, workflow, agent, model, prometheus.address)


def _sample(
    prometheus: Prometheus, seconds: int | None, workflow: str | None, agent: str | None, model: str | None
) -> Sample:
    kind = Kind.LLM if model is not None else Kind.AGENT if agent is not None else Kind.WORKFLOW
    asked = {semconv.WORKFLOW: workflow, semconv.AGENT: agent, semconv.MODEL: model}
    at_ms = round((prometheus.query("time()")[0].points[0][1] - _SETTLED_S) * 1000)
    window_ms = (seconds or _ALL_S) * 1000
    growth = Growth(prometheus, asked, at_ms=at_ms, window_ms=window_ms, is_all=seconds is None)
    counted = growth.of(RUNS[kind], by=semconv.OUTCOME) or {}
    if kind is Kind.LLM:
        counted = _sent(counted)
    timed, p95, bounds = quantile(growth.of(LATENCY[kind], by="le") or {})
    cost, violations = growth.of(semconv.M_LLM_COST), growth.of(semconv.M_POLICY_VIOLATIONS)
    feedback = growth.of(semconv.M_FEEDBACK, by=semconv.L_VERDICT)
    calls = growth.of(semconv.M_LLM_CALLS, by=semconv.OUTCOME)
    unpriced = growth.of(semconv.M_LLM_UNPRICED)
    if unpriced is None:  # it tells no agent, no workflow; where there was none at all, these had none either
        whole = growth.of(semconv.M_LLM_UNPRICED, whole=True)
        unpriced = None if whole is None or _sum(whole) else whole
    known = any((counted, cost, violations, feedback, calls))
    return Sample(
        runs=_sum(counted),
        successes=_number(counted.get(Outcome.SUCCESS, 0.0)),
        p95_ms=p95,
        timed=timed,
        spent_usd=None if cost is None or not known else _usd(cost),
        calls=None if calls is None or not known else round(_sum(_sent(calls))),
        priced=None,
        unpriced=None if unpriced is None or not known else round(_sum(unpriced)),
        violations=None if violations is None or not known else _sum(violations),
        correct=None if feedback is None or not known else _number(feedback.get(semconv.VERDICT_CORRECT, 0.0)),
        incorrect=None if feedback is None or not known else _number(feedback.get(semconv.VERDICT_INCORRECT, 0.0)),
        checked=None,
        check_failed=None,
        wasted=None if calls is None or not known else _waste(growth, calls, unpriced),
        p95_bounds_ms=bounds,
        blocked_calls=None if calls is None or not known else round(_sum(calls) - _sum(_sent(calls))),
    )


def _sent(calls: dict[str, float]) -> dict[str, float]:
    """Return the calls by outcome that were requests to a model."""
    return {outcome: count for outcome, count in calls.items() if was_sent(outcome)}


def _waste(growth: Growth, calls: dict[str, float], unpriced: dict[str, float] | None) -> WasteInMetrics | None:
    """Return what calls wasted; None where the filter cannot be answered.

    :param calls: by outcome.
    """
    retries, tokens = growth.of(semconv.M_LLM_RETRIES), growth.of(semconv.M_LLM_WASTED_TOKENS)
    cost = growth.of(semconv.M_LLM_WASTED_COST)
    if retries is None or tokens is None or cost is None:
        return None
    again = round(_sum(retries))
    return WasteInMetrics(
        attempts=again + round(fsum(count for outcome, count in calls.items() if is_in_vain(outcome))),
        retries=again,
        tokens=round(_sum(tokens)),
        usd=_usd(cost),
        unpriced=None if unpriced is None or _sum(unpriced) else 0,
    )


def quantile(buckets: dict[str, float], share: float = 0.95) -> tuple[int, float | None, tuple[float, float] | None]:
    """Return how many were timed, the quantile in milliseconds as ``histogram_quantile`` has it, and its bounds.

    Which bucket it lies in is certain; where in it, is taken to be in proportion.

    :param buckets: how many took at most so many seconds, by the label ``le``.
    """
    at_most = sorted((float(bound), count) for bound, count in buckets.items())
    total = at_most[-1][1] if at_most else 0.0
    if total <= 0:
        return 0, None, None
    low = below = 0.0
    for bound, count in at_most:
        if count >= share * total:
            break
        low, below = bound, count
    value = low if bound == inf else low + (bound - low) * (share * total - below) / (count - below)
    return round(total), value * 1000, (low * 1000, bound * 1000)


def _usd(amounts: dict[str, float]) -> Decimal:
    return Decimal(repr(fsum(amounts.values()))).quantize(_PICO).normalize()


def _sum(amounts: dict[str, float]) -> float:
    return _number(fsum(amounts.values()))


def _number(amount: float) -> float:
    return int(amount) if amount.is_integer() else amount
