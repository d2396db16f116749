"""The Grafana dashboard: made from the library's names, and each expression answered by a real Prometheus."""

import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import yaml
from backends import OBSERVABILITY, Prometheus, get, needs_folder, prometheus, wait_for
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from workload import workload

from taskpilot_instrument import _verdicts, semconv

pytestmark = needs_folder

FOLDER: Final = OBSERVABILITY / "grafana"
DASHBOARD: Final[dict[str, Any]] = (
    json.loads((FOLDER / "golden-signals-dashboard.json").read_text()) if FOLDER.exists() else {"panels": []}
)
PANELS: Final[list[dict[str, Any]]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TARGETS: Final = [
    pytest.param(target["expr"], id=f"{panel['title']} {target.get('refId', '')}".strip())
    for panel in PANELS
    for target in panel["targets"]
]
#: Families of parts that are still to come; a made-up process serves them, with the labels that they will have.
PLANNED: Final = [name for name in semconv.METRIC_LABELS if name.startswith("taskpilot_experiment_")]
#: What Grafana puts in for the variables of a dashboard in which nothing was chosen.
VARIABLES: Final = {
    "$__rate_interval": "15s", "$__range": "60s", "$service": ".*", "$workflow": ".*", "$agent": ".*", "$model": ".*",
}  # fmt: skip


def filled(expr: str) -> str:
    """Return an expression as Grafana sends it."""
    for name, value in VARIABLES.items():
        expr = expr.replace(name, value)
    assert "$" not in expr
    return expr


# --- a real run, scraped ----------------------------------------------------------------------------


class Scraped(NamedTuple):
    """A Prometheus that scraped a run, and the moment at which it had seen all of it."""

    prometheus: Prometheus
    began: float
    ended: float


class Planned:
    """A process that serves the families to come, with figures made up."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._grow: list[Any] = []
        for name in PLANNED:
            labels = semconv.METRIC_LABELS[name]
            values = ["success" if label == semconv.OUTCOME else f"a-{label}" for label in labels]
            if name.endswith("_total"):
                self._grow.append(Counter(name, name, labels, registry=self.registry).labels(*values).inc)
            elif name.endswith("_seconds"):
                child = Histogram(name, name, labels, registry=self.registry).labels(*values)
                self._grow.append(lambda child=child: child.observe(0.2))
            else:
                self._grow.append(Gauge(name, name, labels, registry=self.registry).labels(*values).inc)

    def happen(self) -> None:
        """Let each of them grow."""
        for grow in self._grow:
            grow()


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    """Scrape a run of the demo and of what it does not do; the instrumentation is gone again when the tests begin."""
    planned = Planned()
    server, thread = start_http_server(0, "127.0.0.1", planned.registry)
    began = time.time()
    with workload() as run:
        config = {
            "global": {"scrape_interval": "250ms"},
            "scrape_configs": [
                {"job_name": "taskpilot", "static_configs": [{"targets": [run.target]}]},
                {"job_name": "planned", "static_configs": [{"targets": [f"127.0.0.1:{server.server_port}"]}]},
            ],
        }
        with prometheus(tmp_path_factory.mktemp("prometheus"), config) as running:
            wait_for("target", lambda: len(running.query("up == 1")) == 2)  # it takes Prometheus five seconds to begin
            for _ in range(2):
                run.work_off()
                run.do_the_rest()
                planned.happen()
                time.sleep(0.6)
            figures = [run.handle.golden_signals().runs, 2]
            expr = ("sum(taskpilot_workflow_runs_total)", "sum(taskpilot_experiment_runs_total)")
            wait_for("scrape", lambda: [running.value(each) for each in expr] == figures)
            ended = time.time()
            run.handle.uninstrument()
            yield Scraped(running, began, ended)
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("expr", TARGETS)
def test_expression_has_data(expr: str, scraped: Scraped) -> None:
    """Each expression of each panel returns at least one number for a service that did something of everything."""
    result = scraped.prometheus.query(filled(expr), scraped.ended)
    assert [sample for sample in result if math.isfinite(float(sample["value"][1]))], expr


def test_choices_have_data(scraped: Scraped) -> None:
    """Each variable offers what there is to choose."""
    queries = {
        each["name"]: each["query"] if isinstance(each["query"], str) else each["query"]["query"]
        for each in DASHBOARD["templating"]["list"]
        if each["type"] == "query"
    }
    offered = {}
    for name, asked in queries.items():
        selector, label = re.fullmatch(r"label_values\((.*), (\w+)\)", filled(asked)).groups()  # type: ignore[union-attr]
        moments = {"start": f"{scraped.began:.0f}", "end": f"{scraped.ended + 1:.0f}"}
        url = f"{scraped.prometheus.url}/api/v1/label/{label}/values"
        offered[name] = set(get(url, **{"match[]": selector}, **moments))
    assert {"taskpilot"} == offered["service"]
    assert {"triage"} == offered["workflow"]
    assert {"PlannerAgent", "ReviewerAgent", "ExecutorAgent"} == offered["agent"]
    assert offered["model"] >= {"gpt-4o-mini", "unknown-model"}


def test_exemplars_open_a_trace(scraped: Scraped) -> None:
    """The queries that show exemplars find some, each with the trace id that the data source makes a link of."""
    source = yaml.safe_load((FOLDER / "provisioning/datasources/datasources.yaml").read_text())["datasources"]
    by_uid = {each["uid"]: each for each in source}
    (link,) = by_uid["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    assert "jaeger" == by_uid[link["datasourceUid"]]["type"]
    asking = [target for panel in PANELS for target in panel["targets"] if target.get("exemplar")]
    assert 2 == len(asking)
    for target in asking:
        moments = {"start": f"{scraped.began:.0f}", "end": f"{scraped.ended + 1:.0f}"}
        found = get(f"{scraped.prometheus.url}/api/v1/query_exemplars", query=filled(target["expr"]), **moments)
        exemplars = [exemplar for series in found for exemplar in series["exemplars"]]
        assert exemplars
        for exemplar in exemplars:
            assert re.fullmatch(r"[0-9a-f]{32}", exemplar["labels"][link["name"]])


# --- the file itself --------------------------------------------------------------------------------


def test_dashboard_is_up_to_date() -> None:
    """The file is what the script makes; run it again where this fails."""
    subprocess.run([sys.executable, str(FOLDER / "build_dashboard.py"), "--check"], check=True, timeout=60)


def test_rows() -> None:
    """Each subject has its row, in the order in which one looks."""
    assert [
        "Golden signals", "Cost", "Tokens", "Latency", "Errors", "Models", "Budgets", "Safety", "Feedback",
        "Experiments", "Instrumentation",
    ] == [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]  # fmt: skip


def test_panels_can_be_told_apart() -> None:
    """Ids are unique, every panel says what it shows, and none lies upon another."""
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    assert [] == [panel["title"] for panel in PANELS if not panel.get("description")]
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for grid in [{"x": 0, "y": 0, **panel["gridPos"]}]
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    ]
    assert len(cells) == len(set(cells))
    assert 24 > max(x for x, _ in cells)


def test_data_source_can_be_chosen() -> None:
    """Every panel and query asks the chosen data source, and every variable in use is defined."""
    defined = {each["name"] for each in DASHBOARD["templating"]["list"]}
    assert {"datasource", "service", "workflow", "agent", "model"} == defined
    for panel in PANELS:
        for where in (panel, *panel["targets"]):
            assert {"type": "prometheus", "uid": "${datasource}"} == where["datasource"]
    used = {name for panel in PANELS for target in panel["targets"] for name in re.findall(r"\$(\w+)", target["expr"])}
    assert used - {"__rate_interval", "__range"} <= defined


@pytest.mark.parametrize(
    ("title", "key", "scale"),
    [
        ("Success rate", semconv.G_SUCCESS_RATE, 1),
        ("p95 latency", semconv.G_P95_LATENCY_MS, 1000),
        ("Cost per task", semconv.G_COST_PER_TASK, 1),
        ("Policy violations", semconv.G_VIOLATION_RATE, 1),
    ],
)
def test_colours_are_the_verdicts(title: str, key: str, scale: float) -> None:
    """A panel is green, yellow or red where the library says healthy, warning or critical, at the bounds too."""
    panel = next(panel for panel in PANELS if panel["title"] == title and panel["type"] == "stat")
    steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    assert steps[0]["value"] is None
    names = {"green": _verdicts.Verdict.HEALTHY, "yellow": _verdicts.Verdict.WARNING, "red": _verdicts.Verdict.CRITICAL}
    bounds = [bound / scale for bound in _verdicts.THRESHOLDS[key][:2]]
    for value in (0.0, *bounds, *(bound * 0.999 for bound in bounds), *(bound * 1.001 for bound in bounds)):
        colour = [step["color"] for step in steps if step["value"] is None or value >= step["value"]][-1]
        assert _verdicts.judge(key, value * scale) is names[colour], value


def test_no_threshold_for_user_correctness() -> None:
    """Where the library gives no verdict, the panel has no colours of its own."""
    (panel,) = [panel for panel in PANELS if panel["title"] == "User correctness"]
    assert "thresholds" not in panel["fieldConfig"]["defaults"]


def test_dashboard_is_provisioned() -> None:
    """Grafana in compose.yaml finds the provisioning, and in the folder that this names, the dashboard."""
    (provider,) = yaml.safe_load((FOLDER / "provisioning/dashboards/dashboards.yaml").read_text())["providers"]
    volumes = yaml.safe_load((OBSERVABILITY / "compose.yaml").read_text())["services"]["grafana"]["volumes"]
    mounted = dict(volume.split(":")[:2] for volume in volumes)
    folder = provider["options"]["path"]
    assert f"{folder}/golden-signals-dashboard.json" == mounted["./grafana/golden-signals-dashboard.json"]
    assert "/etc/grafana/provisioning" == mounted["./grafana/provisioning"]
    for source in mounted:
        assert (OBSERVABILITY / source).exists() or not Path(source).parts[0].endswith("grafana")
