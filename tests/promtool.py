"""Tell promtool a story of one service, minute by minute, and what should fire at the end of it."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from backends import OBSERVABILITY, run

FILES: Final = [
    OBSERVABILITY / "prometheus" / name for name in ("golden-signals-recording.yml", "golden-signals-alerts.yml")
]

RUNS: Final = 'taskpilot_workflow_runs_total{workflow="triage",outcome="%s"}'
COST: Final = 'taskpilot_llm_cost_usd_total{agent="A",model="m"}'
WASTED: Final = 'taskpilot_llm_wasted_cost_usd_total{agent="A",model="m",outcome="error"}'
CALLS: Final = 'taskpilot_llm_calls_total{agent="A",model="m",provider="p",outcome="success",error_type="none"}'
LATENCY: Final = 'taskpilot_workflow_duration_seconds_bucket{workflow="triage",le="%s"}'
VIOLATIONS: Final = 'taskpilot_policy_violations_total{agent="A",policy="p"}'
SPENT: Final = 'taskpilot_budget_spent_usd{budget="team",window="1d"}'
LIMIT: Final = 'taskpilot_budget_limit_usd{budget="team",window="1d"}'
BLOCKED: Final = 'taskpilot_budget_blocked_calls_total{budget="team",window="1d"}'
UNPRICED: Final = 'taskpilot_llm_unpriced_calls_total{model="m"}'
CUT_OFF: Final = 'taskpilot_llm_token_limit_hits_total{model="m",limit="finish_length"}'
ERRORS: Final = 'taskpilot_instrument_errors_total{where="usage"}'
OVERFLOW: Final = 'taskpilot_instrument_label_overflow_total{label="agent"}'

#: What each series of a service that is only just healthy grows by in a minute; gauges stand still.
HEALTHY: Final[dict[str, float]] = {
    RUNS % "success": 9.6, RUNS % "error": 0.4, COST: 0.85, WASTED: 0.15, CALLS: 30, VIOLATIONS: 0.09, UNPRICED: 0,
    CUT_OFF: 1.4, ERRORS: 0, OVERFLOW: 0, LATENCY % "1.0": 9.6, LATENCY % "2.0": 9.6, LATENCY % "5.0": 10,
    LATENCY % "7.5": 10, LATENCY % "+Inf": 10, BLOCKED: 0, SPENT: 0, LIMIT: 0,
}  # fmt: skip
GAUGES: Final = {SPENT: 79.0, LIMIT: 100.0}
#: Counts that are there before anything that a test makes happen.
START: Final = 1000


@dataclass(frozen=True)
class Case:
    """How to make one alert fire.

    :param grows: what series grow by in a minute instead.
    :param gauges: what gauges stand at instead.
    :param up: whether the target answers.
    :param before: minutes of health before that.
    :param minutes: how long it goes on; at least a minute more than the alert needs.
    :param labels: what the alert carries beside job, signal and severity.
    :param with_it: alerts that are expected to fire beside it.
    :param when_idle: alerts that are expected to fire after 40 minutes of silence.
    """

    grows: dict[str, float] = field(default_factory=dict)
    gauges: dict[str, float] = field(default_factory=dict)
    up: int = 1
    before: int = 34
    minutes: int = 40
    labels: tuple[str, ...] = ()
    with_it: tuple[str, ...] = ()
    when_idle: tuple[str, ...] = ()


def failing(share: float) -> dict[str, float]:
    """Return the growth of ten runs a minute of which a share fails."""
    return {RUNS % "success": 10 * (1 - share), RUNS % "error": 10 * share}


def slow(share: float, bound: str) -> dict[str, float]:
    """Return the growth of buckets where a share of ten runs a minute takes longer than a bound, up to 7.5 s."""
    bounds = ["1.0", "2.0", "5.0", "7.5"]
    return {LATENCY % le: 10 * (1 - share) for le in bounds[: bounds.index(bound) + 1]}


# --- series and what fires on them ----------------------------------------------------------------


class Story:
    """Series of one target, told minute by minute: what promtool takes as its input."""

    def __init__(self) -> None:
        self.minute = -1
        self._now = {name: GAUGES.get(name, START) for name in HEALTHY}
        self._told: dict[str, list[str]] = {name: [] for name in HEALTHY}
        self._up: list[str] = []

    def goes_on(self, minutes: int, case: Case | None = None) -> "Story":
        """Go on as healthy, or as the case has it."""
        case = case or Case()
        if not case.up:
            return self.is_gone(minutes)
        for name, growth in HEALTHY.items():
            if name in GAUGES:
                self._tell(name, [case.gauges.get(name, GAUGES[name])] * minutes)
            else:
                step = case.grows.get(name, growth)
                self._tell(name, [self._now[name] + step * minute for minute in range(1, minutes + 1)])
        return self._answers(minutes, "1")

    def is_idle(self, minutes: int) -> "Story":
        """Let nothing happen: every series stays as it is."""
        for name, value in self._now.items():
            self._tell(name, [value] * minutes)
        return self._answers(minutes, "1")

    def restarts(self) -> "Story":
        """Begin to count at zero again."""
        self._now = {name: value if name in GAUGES else 0.0 for name, value in self._now.items()}
        return self

    def is_gone(self, minutes: int) -> "Story":
        """Let the target not answer."""
        for told in self._told.values():
            told.extend(["stale"] + ["_"] * (minutes - 1))
        return self._answers(minutes, "0")

    def series(self) -> list[dict[str, str]]:
        """Return it in promtool's notation."""
        told = {name.replace("{", '{job="taskpilot",instance="a:9464",'): values for name, values in self._told.items()}
        told['up{job="taskpilot",instance="a:9464"}'] = self._up
        return [{"series": name, "values": " ".join(values)} for name, values in told.items()]

    def _tell(self, name: str, values: list[float]) -> None:
        self._told[name] += [f"{value:.6f}" for value in values]
        self._now[name] = values[-1]

    def _answers(self, minutes: int, up: str) -> "Story":
        self._up += [up] * minutes
        self.minute += minutes
        return self


def expect(minute: int, *alerts: str) -> dict[str, Any]:
    """Return the expectation that exactly these alerts fire at a minute."""
    return {
        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
        "eval_time": f"{minute}m",
        "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(alerts)],
    }


def story(told: Story, *expectations: dict[str, Any]) -> dict[str, Any]:
    """Return one test of promtool's."""
    return {"interval": "1m", "input_series": told.series(), "promql_expr_test": list(expectations)}


def failures(folder: Path, tests: list[dict[str, Any]], files: list[Path] = FILES) -> str:
    """Return what promtool finds wrong with these expectations, or nothing.

    Rules are evaluated every other minute, which is often enough for the windows and takes half the time.
    """
    file = folder / "test.yml"
    names = [str(path) for path in files]
    file.write_text(json.dumps({"rule_files": names, "evaluation_interval": "2m", "tests": tests}))
    result = run("promtool", "test", "rules", file)
    return "" if result.returncode == 0 else result.stdout + result.stderr
