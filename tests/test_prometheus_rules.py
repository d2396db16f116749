"""The rules, as promtool evaluates them: each alert fires when it should, and at no other time."""

import json
import re
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from backends import OBSERVABILITY, needs_folder, run
from promtool import (
    BLOCKED,
    COST,
    CUT_OFF,
    ERRORS,
    FILES,
    LATENCY,
    OVERFLOW,
    RUNS,
    SPENT,
    UNPRICED,
    VIOLATIONS,
    WASTED,
    Case,
    Story,
    expect,
    failing,
    failures,
    slow,
    story,
)

pytestmark = needs_folder

FOLDER: Final = OBSERVABILITY / "prometheus"
RULES: Final = [
    rule
    for file in FILES
    if file.exists()
    for group in yaml.safe_load(file.read_text())["groups"]
    for rule in group["rules"]
]
ALERTS: Final = {rule["alert"]: rule for rule in RULES if "alert" in rule}

LOW: Final = ("LowSuccessRate", "ReducedSuccessRate")
SLOWLY: Final = "SuccessBudgetBurnsSlowly"
BUDGET: Final = ("budget", "window")
MISSING: Final = ("TelemetryMissing", "TelemetryPartlyMissing")

CASES: Final[dict[str, Case]] = {
    "LowSuccessRate": Case(failing(0.105), with_it=("ReducedSuccessRate",), when_idle=(SLOWLY,)),
    "ReducedSuccessRate": Case(failing(0.095), when_idle=(SLOWLY,)),
    "HighLatency": Case(slow(0.051, "5.0"), with_it=("ElevatedLatency",)),
    "ElevatedLatency": Case(slow(0.051, "2.0")),
    "HighCostPerTask": Case({COST: 4.9}, with_it=("ElevatedCostPerTask",)),
    "ElevatedCostPerTask": Case({COST: 4.7}),
    "HighPolicyViolations": Case({VIOLATIONS: 0.21}, with_it=("ElevatedPolicyViolations",)),
    "ElevatedPolicyViolations": Case({VIOLATIONS: 0.19}),
    "SuccessBudgetBurnsFast": Case(
        failing(1.0), minutes=70, with_it=("SuccessBudgetBurns", SLOWLY, *LOW), when_idle=(SLOWLY,)
    ),
    "SuccessBudgetBurns": Case(
        failing(0.40), minutes=150, with_it=(SLOWLY, "ElevatedCostPerTask", *LOW), when_idle=(SLOWLY,)
    ),
    SLOWLY: Case(failing(0.055), minutes=200, with_it=("ReducedSuccessRate",), when_idle=(SLOWLY,)),
    "CostSpike": Case({COST: 2.2}, before=320, minutes=62, with_it=("ElevatedCostPerTask",)),
    "HighWaste": Case({WASTED: 0.18}),
    "BudgetNearlySpent": Case(gauges={SPENT: 81.0}, labels=BUDGET, when_idle=("BudgetNearlySpent",)),
    "BudgetBlocked": Case({BLOCKED: 1}, labels=BUDGET),
    "UnpricedModel": Case({UNPRICED: 1}, labels=("model",)),
    "TokenLimitHits": Case({CUT_OFF: 1.6}, labels=("model",)),
    "TelemetryMissing": Case(up=0, with_it=("TelemetryPartlyMissing",), when_idle=MISSING),
    "TelemetryPartlyMissing": Case(up=0, labels=("instance",), with_it=("TelemetryMissing",), when_idle=MISSING),
    "InstrumentationErrors": Case({ERRORS: 1}, labels=("where",)),
    "LabelOverflow": Case({OVERFLOW: 1}, labels=("label",)),
}


# --- form -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_promtool_accepts_the_rules(file: Path) -> None:
    """Promtool finds nothing wrong, duplicates included."""
    result = run("promtool", "check", "rules", "--lint=all", "--lint-fatal", file)
    assert 0 == result.returncode, result.stdout + result.stderr


def test_promtool_accepts_the_configuration() -> None:
    """Promtool finds nothing wrong with it, nor with the rule files that it names."""
    result = run("promtool", "check", "config", "--lint=all", "--lint-fatal", FOLDER / "prometheus.yml")
    assert 0 == result.returncode, result.stdout + result.stderr
    assert {file.name for file in FILES} == set(yaml.safe_load((FOLDER / "prometheus.yml").read_text())["rule_files"])


def test_each_alert_has_a_case() -> None:
    """An alert that nobody made fire does not ship."""
    assert set(ALERTS) == set(CASES)


@pytest.mark.parametrize("name", ALERTS)
def test_alert_says_what_an_operator_needs(name: str) -> None:
    """There are ``for``, severity, signal, summary, description, and a runbook section that exists."""
    alert = ALERTS[name]
    assert alert["for"]
    assert alert["labels"]["severity"] in {"critical", "warning"}
    assert {"severity", "signal"} == set(alert["labels"])
    assert {"summary", "description", "runbook_url"} == set(alert["annotations"])
    path, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    assert "observability/README.md" == path
    headings = re.findall(r"^#+ (.*)$", (OBSERVABILITY / "README.md").read_text(), re.MULTILINE)
    assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_counters_are_read_over_a_window(rule: dict[str, Any]) -> None:
    """No rule looks at a counter's value since the start, and none forgets ``le`` where it asks for a quantile."""
    for found in re.finditer(r"taskpilot_\w+(?:_total|_bucket)(\{[^}]*\})?(\[\w+\])?", rule["expr"]):
        if "group by (job) (" + found[0] in rule["expr"]:  # only asks whether the series is there
            continue
        assert found[2], f"{found[0]} without a window"
    if "histogram_quantile" in rule["expr"]:
        assert re.search(r"by \((\w+, )*le\)", rule["expr"])


# --- thresholds that can be reached -----------------------------------------------------------------


def burn_factors(expr: str) -> list[tuple[float, float]]:
    """Return the burn rate and the objective of each ``RATE * (1 - OBJECTIVE)``."""
    found = re.findall(r"> ([\d.]+) \* \(1 - ([\d.]+)\)", expr)
    return [(float(rate), float(objective)) for rate, objective in found]


def test_burn_rates_can_be_exceeded() -> None:
    """With everything failing the share is 1: no limit of a burn-rate alert reaches that."""
    burning = {name: burn_factors(alert["expr"]) for name, alert in ALERTS.items() if "Burns" in name}
    assert {"SuccessBudgetBurnsFast", "SuccessBudgetBurns", "SuccessBudgetBurnsSlowly"} == set(burning)
    for name, factors in burning.items():
        assert 2 == len(factors), f"{name} has a long and a short window"
        assert 1 == len(set(factors)), f"{name} has one limit for both"
        for rate, objective in factors:
            assert 0.95 == objective
            assert rate * (1 - objective) < 1, f"{name}: not even a total failure burns {rate} times too fast"


def test_impossible_burn_rate_is_caught(tmp_path: Path) -> None:
    """A burn rate above 20 never fires, and the case of a total failure says so."""
    impossible = tmp_path / "alerts.yml"
    impossible.write_text(FILES[1].read_text().replace("14.4 *", "20.1 *"))
    case = CASES["SuccessBudgetBurnsFast"]
    told = Story().goes_on(case.before).goes_on(case.minutes, case)
    wanted = story(told, expect(told.minute, "SuccessBudgetBurnsFast", *case.with_it))
    assert "" == failures(tmp_path, [wanted])
    assert "SuccessBudgetBurnsFast" in failures(tmp_path, [wanted], [FILES[0], impossible])


# --- each alert -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_alert(name: str, tmp_path: Path) -> None:
    """It fires on its trouble with the labels it should have, not on health, and no longer when nothing runs."""
    case = CASES[name]
    told = Story().goes_on(case.before)
    healthy = told.minute
    trouble = told.goes_on(case.minutes, case).minute
    labels = {"job": "taskpilot", **ALERTS[name]["labels"], **dict.fromkeys(case.labels, ".+")}
    matchers = ",".join(f'{label}=~"{value}"' for label, value in labels.items())
    carries = {
        "expr": f'count(ALERTS{{alertname="{name}",alertstate="firing",{matchers}}})',
        "eval_time": f"{trouble}m",
        "exp_samples": [{"labels": "{}", "value": 1}],
    }
    if case.up:
        told.is_idle(40)
    else:
        told.is_gone(40)
    expected = [expect(healthy), expect(trouble, name, *case.with_it), carries, expect(told.minute, *case.when_idle)]
    assert "" == failures(tmp_path, [story(told, *expected)])


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Case(slow(0.9, "2.0"), with_it=("ElevatedLatency",)), id="p95 of 4.8 s"),
        pytest.param(Case({COST: 0.92}, before=320, minutes=100), id="an hour 1.08 times as costly"),
        pytest.param(Case({COST: 1.6}, before=320, minutes=100, with_it=("ElevatedCostPerTask",)), id="1.9 times"),
        pytest.param(Case({COST: 2.2}, before=200, minutes=62, with_it=("ElevatedCostPerTask",)), id="a young service"),
        pytest.param(Case({WASTED: 0.165}), id="19 % wasted"),
        pytest.param(Case({COST: 0.03, WASTED: 0.02}, minutes=70), id="most of a dollar wasted"),
        pytest.param(
            Case(failing(0.70), minutes=70, with_it=("ElevatedCostPerTask", "SuccessBudgetBurns", SLOWLY, *LOW)),
            id="70 % fail",
        ),
    ],
)
def test_alert_waits_for_its_threshold(case: Case, tmp_path: Path) -> None:
    """Trouble that is a little less than critical makes the warnings fire, and only those."""
    told = Story().goes_on(case.before).goes_on(case.minutes, case)
    assert "" == failures(tmp_path, [story(told, expect(told.minute, *case.with_it))])


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.up])
def test_alert_outlives_a_restart(name: str, tmp_path: Path) -> None:
    """It fires where the process restarts amid the trouble; where the target then goes missing, that is what fires."""
    case = CASES[name]
    told = Story().goes_on(case.before).goes_on(case.minutes // 2, case).restarts()
    trouble = told.goes_on(case.minutes - case.minutes // 2, case).minute
    told.is_gone(40)
    alerts = {name, *case.with_it}
    gone = {*MISSING, *({SLOWLY} if SLOWLY in case.when_idle else ())}
    assert "" == failures(tmp_path, [story(told, expect(trouble, *alerts), expect(told.minute, *gone))])


def test_health_is_silent(tmp_path: Path) -> None:
    """Nothing fires while all is well, just after a restart, while nothing runs, or before anything ever ran."""
    told = Story().goes_on(40)
    moments = [told.minute]
    for minutes in (2, 4, 34):
        moments.append((told.restarts() if minutes == 2 else told).goes_on(minutes).minute)
    moments.append(told.is_idle(60).minute)
    moments.append(told.goes_on(6).minute)
    up = [{"series": 'up{job="taskpilot",instance="a:9464"}', "values": "1x60"}]
    fresh = {"interval": "1m", "input_series": up, "promql_expr_test": [expect(60)]}
    assert "" == failures(tmp_path, [story(told, *map(expect, moments)), fresh])


def test_missing_target(tmp_path: Path) -> None:
    """Of a target that goes missing and one that never came only the telemetry alerts speak; push needs no target."""
    told = Story().goes_on(40).is_gone(60)
    other = [{"series": 'up{job="other",instance="b:1"}', "values": "1x60"}]
    never = {"interval": "1m", "input_series": other, "promql_expr_test": [expect(60, "TelemetryMissing")]}
    runs = '{job="nightly",workflow="w",outcome="success"}'
    pushed = [
        {"series": 'up{job="taskpilot",instance="a:9464"}', "values": "1x60"},
        {"series": f"taskpilot_workflow_runs_total{runs}", "values": "5x60"},
    ]
    by_push = {"interval": "1m", "input_series": pushed, "promql_expr_test": [expect(60)]}
    assert "" == failures(tmp_path, [story(told, expect(told.minute, *MISSING)), never, by_push])


def test_little_traffic_is_silent(tmp_path: Path) -> None:
    """Below ten runs in half an hour a share says little: nobody is woken by half of nine failing."""
    few: list[dict[str, str]] = [{"series": 'up{job="taskpilot",instance="a:9464"}', "values": "1x60"}]
    for name, values in {
        RUNS % "success": "0+0.15x30", RUNS % "error": "0+0.15x30", COST: "0+2x30", VIOLATIONS: "0+0.05x30",
    }.items():  # fmt: skip
        few.append({"series": name.replace("{", '{job="taskpilot",instance="a:9464",'), "values": values})
    test = {"interval": "1m", "input_series": few, "promql_expr_test": [expect(30)]}
    assert "" == failures(tmp_path, [test])


def test_first_event_counts(tmp_path: Path) -> None:
    """A series that is born with a value has grown by it: the first refusal, error or violation of a kind is seen."""
    born = ["_"] * 40 + ["1"] * 10
    told = Story().goes_on(50)
    series = [
        {**each, "values": " ".join(born)} if each["series"].startswith(kinds) else each
        for each in told.series()
        for kinds in [tuple(name.partition("{")[0] for name in (BLOCKED, ERRORS, UNPRICED))]
    ]
    test = {
        "interval": "1m",
        "input_series": series,
        "promql_expr_test": [
            expect(38),
            expect(told.minute, "BudgetBlocked", "InstrumentationErrors", "UnpricedModel"),
        ],
    }
    assert "" == failures(tmp_path, [test])


def test_services_are_kept_apart(tmp_path: Path) -> None:
    """What one service does wrong is said of that service, and does not count for another one."""
    sick = Story().goes_on(34).goes_on(40, CASES["HighCostPerTask"])
    well = [
        {**each, "series": each["series"].replace('job="taskpilot"', 'job="other"')}
        for each in Story().goes_on(34).goes_on(40).series()
    ]
    whose = {
        "expr": 'count by (job) (ALERTS{alertstate="firing"})',
        "eval_time": f"{sick.minute}m",
        "exp_samples": [{"labels": '{job="taskpilot"}', "value": 2}],
    }
    test = {"interval": "1m", "input_series": sick.series() + well, "promql_expr_test": [whose]}
    assert "" == failures(tmp_path, [test])


# --- the recorded golden signals, and what people read --------------------------------------------------


def test_recorded_golden_signals(tmp_path: Path) -> None:
    """The five signals of a known half hour, each by its definition."""
    per_minute = {
        RUNS % "success": 9, RUNS % "error": 1, COST: 0.9, VIOLATIONS: 0.2, **slow(0.10, "2.0"),
        'taskpilot_feedback_total{verdict="correct",agent="A"}': 3,
        'taskpilot_feedback_total{verdict="incorrect",agent="A"}': 1,
        LATENCY % "5.0": 10, LATENCY % "7.5": 10, LATENCY % "+Inf": 10,
    }  # fmt: skip
    series = [
        {"series": name.replace("{", '{job="taskpilot",instance="a:9464",'), "values": f"0+{growth}x60"}
        for name, growth in per_minute.items()
    ]
    expected = {
        "job:taskpilot_success:ratio30m": 0.9,
        "job:taskpilot_latency_seconds:p95_30m": 3.5,
        "job:taskpilot_cost_per_task_usd:ratio30m": 0.1,
        "job:taskpilot_user_correctness:ratio30m": 0.75,
        "job:taskpilot_policy_violations:ratio30m": 0.02,
    }
    checks = [
        {
            "expr": f"round({name}, 0.000001)",
            "eval_time": "60m",
            "exp_samples": [{"labels": '{job="taskpilot"}', "value": value}],
        }
        for name, value in expected.items()
    ]
    assert set(expected) == {rule["record"] for rule in RULES if _is_golden(rule)}
    assert "" == failures(tmp_path, [{"interval": "1m", "input_series": series, "promql_expr_test": checks}])


def _is_golden(rule: dict[str, Any]) -> bool:
    return re.search(r":(ratio30m|p95_30m)$", rule.get("record", "")) is not None and "failures" not in rule["record"]


def test_what_an_alert_says(tmp_path: Path) -> None:
    """Summary and description carry the service and the figure, readable."""
    case = CASES["HighCostPerTask"]
    told = Story().goes_on(case.before).goes_on(case.minutes, case)
    alert = {
        "eval_time": f"{told.minute}m",
        "alertname": "HighCostPerTask",
        "exp_alerts": [
            {
                "exp_labels": {"job": "taskpilot", "severity": "critical", "signal": "cost_per_task"},
                "exp_annotations": {
                    "summary": "taskpilot: successful tasks cost too much",
                    "description": "A successful task of the last 30 minutes cost $0.5104, failed runs included; "
                    "beyond $0.50 is critical.",
                    "runbook_url": "observability/README.md#highcostpertask",
                },
            }
        ],
    }
    test = {"interval": "1m", "input_series": told.series(), "alert_rule_test": [alert]}
    assert "" == failures(tmp_path, [test])


def test_annotations_name_only_labels_that_are_there() -> None:
    """A template that asks for a label which the alert does not have would print nothing."""
    for name, alert in ALERTS.items():
        asked = set(re.findall(r"\$labels\.(\w+)", json.dumps(alert["annotations"])))
        assert asked <= {"job", *CASES[name].labels}, name
