"""Alertmanager's configuration: who gets which alert, and what a critical one silences."""

from typing import Any, Final

import pytest
import yaml
from backends import OBSERVABILITY, needs_folder, run

pytestmark = needs_folder

CONFIG: Final = OBSERVABILITY / "alertmanager" / "alertmanager.yml"
RULES: Final = OBSERVABILITY / "prometheus" / "golden-signals-alerts.yml"
ALERTS: Final[list[dict[str, Any]]] = (
    [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]] if RULES.exists() else []
)
RECEIVERS: Final = {"critical": "critical", "warning": "warnings"}


def test_amtool_accepts_the_configuration() -> None:
    """Amtool finds nothing wrong with it."""
    result = run("amtool", "check-config", CONFIG)
    assert 0 == result.returncode, result.stdout + result.stderr


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_route_of_each_alert(alert: dict[str, Any]) -> None:
    """Each alert that ships goes to the one receiver of its severity."""
    labels = {"alertname": alert["alert"], "job": "taskpilot", **alert["labels"]}
    wanted = RECEIVERS[alert["labels"]["severity"]]
    told = [f"{name}={value}" for name, value in labels.items()]
    result = run("amtool", "config", "routes", "test", f"--config.file={CONFIG}", f"--verify.receivers={wanted}", *told)
    assert 0 == result.returncode, result.stdout + result.stderr


def test_route_of_an_unknown_severity() -> None:
    """An alert of someone else's, without a severity, is delivered too."""
    result = run("amtool", "config", "routes", "test", f"--config.file={CONFIG}", "alertname=Other")
    assert "warnings" == result.stdout.strip()


def test_groups_are_told_apart_by_what_they_are_about() -> None:
    """One notification speaks of one service and one signal, and inhibition compares the same two labels."""
    config = yaml.safe_load(CONFIG.read_text())
    assert ["job", "signal"] == config["route"]["group_by"]
    assert [["job", "signal"]] == [rule["equal"] for rule in config["inhibit_rules"]]


def test_each_threshold_has_a_warning_below_it() -> None:
    """The four golden signals with thresholds, the success budget and telemetry have both severities to silence."""
    severities: dict[str, set[str]] = {}
    for alert in ALERTS:
        severities.setdefault(alert["labels"]["signal"], set()).add(alert["labels"]["severity"])
    assert {
        "success_rate", "latency", "cost_per_task", "policy_violations", "success_budget", "budget", "telemetry",
    } == {signal for signal, found in severities.items() if found == {"critical", "warning"}}  # fmt: skip
