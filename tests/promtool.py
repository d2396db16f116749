"""Tell promtool a story of one service, minute by minute, and what should fire at the end of it."""

import json
from pathlib import Path
from typing import Any, Final

from backends import OBSERVABILITY, run

FILES: Final = [
    OBSERVABILITY / "prometheus" / name for name in ("golden-signals-recording.yml", "golden-signals-alerts.yml")
]

RUNS: Final = 'taskpilot_workflow_runs_total{workflow="triage",outcome="%s"}'
COST: Final = 'taskpilot_llm_cost_usd_total{agent="A",model="m"}'
CALLS: Final = 'taskpilot_llm_calls_total{agent="A",model="m",provider="p",outcome="success",error_type="none"}'
LATENCY: Final = 'taskpilot_workflow_duration_seconds_bucket{workflow="triage",le="%s"}'
VIOLATIONS: Final = 'taskpilot_policy_violations_total{agent="A",policy="p"}'
SPENT: Final = 'taskpilot_budget_spent_usd{budget="team",window="1d"}'
LIMIT: Final = 'taskpilot_budget_limit_usd{budget="team",window="1d"}'
BLOCKED: Final = 'taskpilot_budget_blocked_calls_total{budget="team",window="1d"}'
UNPRICED: Final = 'taskpilot_llm_unpriced_calls_total{model="m"}'
CUT_OFF: Final = 'taskpilot_llm_token_limit_hits_total{model="m",limit="finish_length"}'
ERRORS: Final = 'taskpilot_instrument_errors_total{where="usage"}'
OVERF  # --- series and what fires on them ----------------------------------------------------------------


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
