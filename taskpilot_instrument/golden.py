"""The five golden signals: success, latency, cost, user correctness and policy violations, each with a verdict."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from taskpilot_instrument import _signals_words
from taskpilot_instrument._display import span
from taskpilot_instrument._verdicts import Verdict, judge
from taskpilot_instrument._waste import Lost
from taskpilot_instrument.errors import ConfigurationError
from taskpilot_instrument.semconv import (
    G_COST_PER_TASK,
    G_P95_LATENCY_MS,
    G_SUCCESS_RATE,
    G_USER_CORRECTNESS,
    G_VIOLATION_RATE,
)
from taskpilot_instrument.sinks import _signals
from taskpilot_instrument.sinks._signals import Sample
from taskpilot_instrument.sinks.metrics import MetricsBackend

_SECONDS: Final = {"s": 1, "m": 60, "h": 3600}
_SHORTEST: Final = 60
_LONGEST: Final = 24 * 3600


@dataclass(frozen=True, slots=True)
class GoldenSignals:
    """The golden signals of one window and filter, unrounded, with what they rest on.

    A signal is None where it is unknown: nothing ran, nobody gave feedback, no price is known. Where only some calls
    could be priced (``cost_coverage`` below 1), the cost is a lower bound. Where a ``source`` was asked, what its
    metrics do not tell is None too: which runs were checked, and how many calls were wasted, though not what they cost.
    """

    success_rate: float | None
    p95_latency_ms: float | None
    cost_per_successful_task_usd: float | None
    user_confirmed_correctness_percent: float | None
    policy_violation_rate_percent: float | None
    #: What the signals were computed from.
    sample: Sample
    #: Seconds looked back; None since the start.
    window_seconds: int | None = None
    workflow: str | None = None
    agent: str | None = None
    model: str | None = None
    #: Address of the Prometheus that was asked; None where these are the figures of this process.
    source: str | None = None
    #: When the counting began, where nothing shorter was asked for; None where that is not known.
    since: datetime | None = None

    @property
    def runs(self) -> float:
        """Workflow runs; runs of the agent, or calls of the model, that was asked for."""
        return self.sample.runs

    @property
    def counted(self) -> str:
        """What :attr:`runs` counts: a ``run`` of a workflow, an ``agent run``, or a ``call`` of a model."""
        return "call" if self.model is not None else "agent run" if self.agent is not None else "run"

    @property
    def successes(self) -> float:
        """Runs that ended well."""
        return self.sample.successes

    @property
    def feedback(self) -> float | None:
        """Verdicts that users gave."""
        return _signals.feedback(self.sample)

    @property
    def violations(self) -> float | None:
        """Policy violations."""
        return self.sample.violations

    @property
    def checked_runs(self) -> int | None:
        """Runs that policies or guardrails were asked about."""
        return self.sample.checked

    @property
    def check_failed_runs(self) -> int | None:
        """Runs in which a policy or guardrail could not be asked."""
        return self.sample.check_failed

    @property
    def unchecked_runs(self) -> float | None:
        """Runs about which nothing was asked: their violations, if any, are not known."""
        if self.sample.checked is None or self.sample.check_failed is None:
            return None
        return self.sample.runs - self.sample.checked - self.sample.check_failed

    @property
    def policy_violation_rate_of_checked_percent(self) -> float | None:
        """Violations in percent of the runs that were checked; None where none was.

        :attr:`policy_violation_rate_percent` takes all runs, also those about which nobody asked. Violations that were
        found in other runs, or told by hand, count here too: it errs on the high side.
        """
        return _signals.violation_rate_of_checked(self.sample)

    @property
    def wasted_cost_usd(self) -> float | None:
        """Known spend on LLM calls that failed, were cancelled or abandoned; a part of :attr:`total_cost_usd`.

        Where :attr:`wasted_unpriced_calls` is not zero it is a lower bound, or may be one.
        """
        return None if self.sample.wasted is None else float(self.sample.wasted.usd)

    @property
    def wasted_tokens(self) -> int | None:
        """Tokens of these calls, input and output."""
        return None if self.sample.wasted is None else self.sample.wasted.tokens

    @property
    def wasted_calls(self) -> int | None:
        """How many such calls there were, of those that may have cost something."""
        return None if self.sample.wasted is None else self.sample.wasted.calls

    @property
    def wasted_unpriced_calls(self) -> int | None:
        """Of these, the calls whose cost is not known: a stream that was left seldom tells its usage."""
        return None if self.sample.wasted is None else self.sample.wasted.unpriced

    @property
    def wasted_attempts(self) -> int | None:
        """Requests that brought no answer to build on: of all calls that did not succeed, and :attr:`retries`."""
        return None if self.sample.wasted is None else self.sample.wasted.attempts

    @property
    def retries(self) -> int | None:
        """Attempts that the client made again, beyond the first of each call."""
        return None if self.sample.wasted is None else self.sample.wasted.retries

    @property
    def waste_percent(self) -> float | None:
        """Wasted spend in percent of all known spend; None where nothing was spent."""
        return _signals.waste(self.sample)

    @property
    def failed(self) -> Lost | None:
        """Runs that ended in an error, or were cancelled: ``runs``, and in ``usd`` all that was spent in them.

        That includes calls that succeeded. The money of a run inside another one is that of the run around it; where
        ``unpriced`` is not zero, it is a lower bound.
        """
        return None if self.sample.lost is None else _signals.failed(self.sample.lost)

    @property
    def blocked(self) -> Lost | None:
        """Runs that a policy, guardrail, budget or limit ended, likewise."""
        return None if self.sample.lost is None else _signals.blocked(self.sample.lost)

    @property
    def total_cost_usd(self) -> float | None:
        """All spend whose price is known, that of failed runs included."""
        return None if self.sample.spent_usd is None else float(self.sample.spent_usd)

    @property
    def blocked_calls(self) -> int | None:
        """LLM calls that were refused before they were sent: no runs of a model, and in none of its figures."""
        return self.sample.blocked_calls

    @property
    def cost_coverage(self) -> float | None:
        """Share of billable calls whose price is known, 0 to 1; None where there were none."""
        return _signals.cost_coverage(self.sample)

    @property
    def values(self) -> dict[str, float | None]:
        """The five signals by their keys, unrounded; None where one is unknown."""
        return {
            G_SUCCESS_RATE: self.success_rate,
            G_P95_LATENCY_MS: self.p95_latency_ms,
            G_COST_PER_TASK: self.cost_per_successful_task_usd,
            G_USER_CORRECTNESS: self.user_confirmed_correctness_percent,
            G_VIOLATION_RATE: self.policy_violation_rate_percent,
        }

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """A verdict for each signal, by its key."""
        verdicts = {key: judge(key, value) for key, value in self.values.items()}
        if self.sample.unpriced != 0 and verdicts[G_COST_PER_TASK] is Verdict.HEALTHY:
            verdicts[G_COST_PER_TASK] = Verdict.UNKNOWN  # what is not known may be the larger part
        at_most = judge(G_VIOLATION_RATE, _signals.violation_rate_at_most(self.sample))
        if verdicts[G_VIOLATION_RATE] is Verdict.HEALTHY and at_most in {Verdict.WARNING, Verdict.CRITICAL}:
            verdicts[G_VIOLATION_RATE] = Verdict.WARNING  # a run that could not be checked may hide a violation
        return verdicts

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of those that are known."""
        found = set(self.verdicts.values())
        order = (Verdict.CRITICAL, Verdict.WARNING, Verdict.HEALTHY)
        return next((verdict for verdict in order if verdict in found), Verdict.UNKNOWN)

    def as_dict(self) -> dict[str, float | None]:
        """Return the five keys, rounded to 2 decimals (cost: 4), 0.0 where nothing ran."""
        return _signals.dictionary(self.sample)

    def __str__(self) -> str:
        return _signals_words.text(self)

    def _repr_html_(self) -> str:
        return _signals_words.html(self)


def compute(
    backend: MetricsBackend,
    *,
    window: str | None = None,
    workflow: str | None = None,
    agent: str | None = None,
    model: str | None = None,
    own: bool = False,
) -> GoldenSignals:
    """Compute the golden signals from what a metrics backend holds.

    Without ``agent`` and ``model`` the runs are workflow runs, nested ones included; with ``agent`` they are that
    agent's runs, with ``model`` the LLM calls of that model. Latency, spend and violations are filtered likewise.
    Violations and feedback carry no model, so with ``model`` they are unknown. What was written directly by name
    carries no workflow, so with ``workflow`` it is left out; violations are unknown then, unless others are known.

    :param window: how far to look back, such as ``90s``, ``15m`` or ``24h``; None since the start.
    :param own: only what this process did, where the workers of a machine share their metrics.
    :raises ConfigurationError: if the window is not of this form, or not between one minute and 24 hours.
    """
    seconds = None if window is None else parse_window(window)
    window_ns = None if seconds is None else seconds * 1_000_000_000
    sample = backend.golden_sample(window_ns, workflow=workflow, agent=agent, model=model, own=own)
    began_s = backend.began_at_s if window is None else None
    since = None if began_s is None else datetime.fromtimestamp(began_s, UTC)
    return of_sample(sample, seconds, workflow, agent, model, since=since)


def of_sample(
    sample: Sample,
    seconds: int | None,
    workflow: str | None,
    agent: str | None,
    model: str | None,
    source: str | None = None,
    since: datetime | None = None,
) -> GoldenSignals:
    """Return the golden signals that a sample comes to, wherever it is from."""
    return GoldenSignals(
        _signals.success_rate(sample),
        sample.p95_ms,
        _signals.cost_per_task(sample),
        _signals.correctness(sample),
        _signals.violation_rate(sample),
        sample,
        seconds,
        workflow,
        agent,
        model,
        source,
        since,
    )


def parse_window(window: str) -> int:
    """Return the seconds of a window such as ``90s``, ``15m`` or ``1h``.

    :raises ConfigurationError: if it is not of this form, or not between one minute and 24 hours.
    """
    found = re.fullmatch(r"([0-9]{1,6})([smh])", window) if isinstance(window, str) else None
    seconds = int(found[1]) * _SECONDS[found[2]] if found is not None else 0
    if not _SHORTEST <= seconds <= _LONGEST:
        raise ConfigurationError(
            f"window={window!r:.80}: expected text, a number with s, m or h behind it, between one minute and "
            f"24 hours, such as '90s', '15m' or '1h'{_meant(window)}"
        )
    return seconds


def _meant(window: object) -> str:
    """Suggest what a number without its unit, or days, may have meant; as text, for it comes over HTTP, too."""
    found = re.fullmatch(r"([0-9]{1,6})(d?)", str(window))
    seconds = 0 if found is None else int(found[1]) * (86_400 if found[2] else 1)
    return f" (did you mean {span(seconds)!r}?)" if _SHORTEST <= seconds <= _LONGEST else ""
