"""From a run to a notification: real Prometheus, real Alertmanager, the rules that ship with shorter times."""

import re
import subprocess
import sys
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from backends import OBSERVABILITY, Prometheus, alertmanager, get, needs_folder, prometheus, wait_for
from workload import Workload, workload

import taskpilot_instrument as tp
from taskpilot_instrument.golden import GoldenSignals
from taskpilot_instrument.semconv import DURATION_BUCKETS

pytestmark = needs_folder

#: The times of the rules and what stands for them here, so that minutes pass in seconds.
SHORTER: Final = {"1h": "60s", "30m": "8s", "5m": "1s"}

#: Every alias query of the contract, as people type it, and the figure that it stands for in Python.
ALIASES: Final = {
    "workflow_runs": "workflow.runs",
    "workflow_success": "workflow.success",
    "workflow_latency_ms_count": "workflow.latency_ms",
    "agent_planneragent_latency_ms_count": "agent.PlannerAgent.latency_ms",
    "llm_cost_total": "llm.cost.total",
    "llm_cost_agent_planneragent": "llm.cost.agent.PlannerAgent",
    "llm_cost_model_gpt_4o_mini": "llm.cost.model.gpt-4o-mini",
    "llm_tokens_input_gpt_4o_mini": "llm.tokens.input.gpt-4o-mini",
    "llm_tokens_output_gpt_4o_mini": "llm.tokens.output.gpt-4o-mini",
    "llm_tokens_total_gpt_4o_mini": "llm.tokens.total.gpt-4o-mini",
    "llm_tokens_input_total": "llm.tokens.input.total",
    "llm_tokens_output_total": "llm.tokens.output.total",
    "llm_tokens_total_all": "llm.tokens.total.all",
    "llm_quality_user_confirmed_correct": "llm.quality.user_confirmed_correct",
    "llm_quality_user_confirmed_incorrect": "llm.quality.user_confirmed_incorrect",
    "policy_violations_total": "policy.violations.total",
    "agent_revieweragent_policy_violations": "agent.ReviewerAgent.policy.violations",
    "agent_planneragent_guardrails_blocked": "agent.PlannerAgent.guardrails.blocked",
    "agent_planneragent_guardrails_output_blocked": "agent.PlannerAgent.guardrails.output_blocked",
}

#: The golden signals since the process started, in PromQL.
GOLDEN: Final = {
    "success_rate": '100 * sum(taskpilot_workflow_runs_total{outcome="success"}) / sum(taskpilot_workflow_runs_total)',
    "cost_per_successful_task_usd":
        'sum(taskpilot_llm_cost_usd_total) / sum(taskpilot_workflow_runs_total{outcome="success"})',
    "user_confirmed_correctness_percent":
        '100 * sum(taskpilot_feedback_total{verdict="correct"}) / sum(taskpilot_feedback_total)',
    "policy_violation_rate_percent":
        "100 * sum(taskpilot_policy_violations_total) / sum(taskpilot_workflow_runs_total)",
}  # fmt: skip
P95: Final = "histogram_quantile(0.95, sum by (le) (taskpilot_workflow_duration_seconds_bucket))"
#: The same signals as the rules record them over a window, and what they are to be multiplied by.
RECORDED: Final = {
    "success_rate": ("job:taskpilot_success:ratio30m", 100),
    "cost_per_successful_task_usd": ("job:taskpilot_cost_per_task_usd:ratio30m", 1),
    "user_confirmed_correctness_percent": ("job:taskpilot_user_correctness:ratio30m", 100),
    "policy_violation_rate_percent": ("job:taskpilot_policy_violations:ratio30m", 100),
}


# --- what runs ------------------------------------------------------------------------------------


class Webhook:
    """The receiver that ships, and what was delivered to it."""

    def __init__(self, url: str, log: Path) -> None:
        self.url = url
        self._log = log

    def delivered(self, status: str, name: str) -> list[str]:
        """Return the lines that it printed for an alert."""
        return [line for line in self._log.read_text().splitlines() if re.search(rf" {status} \w+ {name}: ", line)]


@contextmanager
def webhook(folder: Path) -> Iterator[Webhook]:
    """Run the receiver until the block is left."""
    log = folder / "webhook.log"
    with log.open("wb") as output:
        script = OBSERVABILITY / "alertmanager" / "webhook.py"
        process = subprocess.Popen([sys.executable, str(script), "127.0.0.1", "0"], stdout=output)
    try:
        found = wait_for("webhook", lambda: re.search(r"listening on (\S+)", log.read_text()))
        yield Webhook(found[1], log)
    finally:
        process.terminate()
        process.wait(timeout=10)


def shortened(folder: Path) -> list[str]:
    """Copy the rules with shorter windows and waits, and return where to."""
    copies = []
    for name in ("golden-signals-recording.yml", "golden-signals-alerts.yml"):
        text = (OBSERVABILITY / "prometheus" / name).read_text()
        for time_, shorter in SHORTER.items():
            text = re.sub(rf"(\[|offset |for: ){time_}\b", rf"\g<1>{shorter}", text)
        (folder / name).write_text(text)
        copies.append(str(folder / name))
    return copies


def notifying(webhook_url: str) -> dict[str, Any]:
    """Return the Alertmanager configuration that ships, with shorter waits and another address."""
    text = (OBSERVABILITY / "alertmanager" / "alertmanager.yml").read_text()
    text = re.sub(r"(group_wait|group_interval): \w+", r"\1: 1s", text).replace("http://webhook:8080", webhook_url)
    config: dict[str, Any] = yaml.safe_load(text)
    return config


@contextmanager
def watched(folder: Path, run: Workload) -> Iterator[tuple[Prometheus, str, Webhook]]:
    """Run the three backends, one folder each, and wait until the run is scraped."""
    places = [folder / name for name in ("prometheus", "alertmanager", "webhook")]
    for place in places:
        place.mkdir()
    with webhook(places[2]) as hook, alertmanager(places[1], notifying(hook.url)) as alerts:
        config = {
            "global": {"scrape_interval": "250ms", "evaluation_interval": "250ms"},
            "rule_files": shortened(places[0]),
            "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alerts.removeprefix("http://")]}]}]},
            "scrape_configs": [{"job_name": "taskpilot", "static_configs": [{"targets": [run.target]}]}],
        }
        with prometheus(places[0], config) as running:
            wait_for("target", lambda: running.value("up == 1"))
            yield running, alerts, hook


# --- what must hold -------------------------------------------------------------------------------


def test_costly_run_reaches_the_webhook(tmp_path: Path) -> None:
    """The demo's figures come out of Prometheus as they went in; a run made too costly is alerted, and told of."""
    with workload() as run, watched(tmp_path, run) as (running, alerts, hook):
        run.work_off()
        run.handle.metrics.record_guardrail_block("PlannerAgent", "jailbreak", "input")
        run.handle.metrics.record_guardrail_block("PlannerAgent", "toxicity", "output")
        wait_for("scrape", lambda: running.value("agent_planneragent_guardrails_output_blocked"))
        signals = run.handle.golden_signals()
        _aliases_are_answered(running, run)
        _golden_signals_agree(running, signals)
        run.waste()
        for query in _readme_queries():
            wait_for(f"answer to {query}", partial(running.query, query), 5)
        assert running.alert("HighCostPerTask") is None

        run.work_off(costly=True)
        wait_for("firing alert", lambda: running.alert("HighCostPerTask") == "firing")
        wait_for("record of it", lambda: _states(running, "HighCostPerTask") == ["pending", "firing"], 5)
        (line,) = wait_for("notification", lambda: hook.delivered("firing", "HighCostPerTask"))[:1]
        assert "critical HighCostPerTask: taskpilot: successful tasks cost too much – A successful task" in line
        assert "(observability/README.md#highcostpertask)" in line
        assert "firing" == running.alert("ElevatedCostPerTask")
        _warning_is_silenced(alerts, "ElevatedCostPerTask")
        assert [] == hook.delivered("firing", "ElevatedCostPerTask")

        wait_for("end of the alert", lambda: hook.delivered("resolved", "HighCostPerTask"), 40)


def _aliases_are_answered(running: Prometheus, run: Workload) -> None:
    known = run.handle.metrics.get_all_metrics()
    for query, name in ALIASES.items():
        stats = known["histograms"].get(name)
        figure = stats["count"] if isinstance(stats, dict) else known["counters"][name]
        assert (query, figure) == (query, running.value(query))
    for histogram in ("workflow_latency_ms", "agent_planneragent_latency_ms"):
        p95 = running.value(f"histogram_quantile(0.95, {histogram}_bucket)")
        sum_ = running.value(f"{histogram}_sum")
        assert p95
        assert sum_


def _readme_queries() -> list[str]:
    """Return what the README tells its readers to type."""
    blocks = re.findall(r"```promql\n(.*?)```", (OBSERVABILITY / "README.md").read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def _golden_signals_agree(running: Prometheus, signals: GoldenSignals) -> None:
    """Since the start exactly; over a window, which Prometheus extrapolates, as near as that comes."""
    for key, query in GOLDEN.items():
        assert (key, getattr(signals, key)) == (key, running.value(query))
    wait_for("the same by source", lambda: tp.golden_signals(source=running.url).runs == signals.runs)
    asked = tp.golden_signals(source=running.url)
    assert {key: getattr(signals, key) for key in GOLDEN} == {key: getattr(asked, key) for key in GOLDEN}
    p95 = running.value(P95)
    assert p95 == pytest.approx((asked.p95_latency_ms or 0) / 1000)
    assert p95 is not None
    assert signals.p95_latency_ms is not None
    assert bisect_left(DURATION_BUCKETS, p95) == bisect_left(DURATION_BUCKETS, signals.p95_latency_ms / 1000)
    for key, (record, factor) in RECORDED.items():
        expected = pytest.approx(getattr(signals, key) / factor, rel=0.2)
        wait_for(f"{record} near {expected}", partial(_is_near, running, record, expected), 6)


def _is_near(running: Prometheus, query: str, expected: object) -> bool:
    return bool(expected == running.value(query))


def _states(running: Prometheus, name: str) -> list[str]:
    """Return the states that an alert was in, in the order in which Prometheus recorded them."""
    series = running.query(f'ALERTS{{alertname="{name}"}}[1m]')
    return [each["metric"]["alertstate"] for each in sorted(series, key=lambda each: each["values"][0][0])]


def _warning_is_silenced(alerts: str, name: str) -> None:
    """Alertmanager has the warning, and keeps it back because of the critical alert."""

    def inhibited() -> bool:
        found = get(f"{alerts}/api/v2/alerts", filter=f'alertname="{name}"')
        return bool(found) and bool(found[0]["status"]["inhibitedBy"])

    wait_for(f"{name} kept back", inhibited)
