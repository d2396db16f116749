"""The README's queries, as Prometheus' own engine answers them."""

import re
from pathlib import Path
from typing import Any, Final

import pytest
from promtool import failures

README: Final = Path(__file__).parents[1] / "README.md"

pytestmark = pytest.mark.skipif(not README.exists(), reason="the README is not here")

#: Series, and what each grows by in a minute.
SERIES: Final = {
    'taskpilot_workflow_runs_total{workflow="w",outcome="success"}': 9,
    'taskpilot_workflow_runs_total{workflow="w",outcome="error"}': 1,
    'taskpilot_workflow_duration_seconds_bucket{workflow="w",le="1"}': 9,
    'taskpilot_workflow_duration_seconds_bucket{workflow="w",le="2"}': 10,
    'taskpilot_workflow_duration_seconds_bucket{workflow="w",le="+Inf"}': 10,
    'taskpilot_llm_cost_usd_total{agent="A",model="m"}': 0.5,
    'taskpilot_llm_cost_usd_total{agent="A",model="n"}': 1.5,
    'taskpilot_llm_wasted_cost_usd_total{agent="A",model="m",outcome="abandoned"}': 0.25,
    'taskpilot_llm_wasted_cost_usd_total{agent="A",model="m",outcome="error"}': 0.125,
    'taskpilot_llm_wasted_cost_usd_total{agent="A",model="n",outcome="error"}': 0.5,
    "workflow_success": 9,
    "workflow_runs": 10,
}


def sample(value: float, **labels: str) -> dict[str, Any]:
    """Return one expected sample."""
    named = ",".join(f'{name}="{label}"' for name, label in labels.items())
    return {"labels": f"{{{named}}}" if labels else "{}", "value": value}


#: What each query comes to, in the README's order.
ANSWERS: Final = [
    [sample(0.9)],
    [sample(1.5)],
    [sample(120, agent="A")],
    [sample(15, agent="A", outcome="abandoned"), sample(37.5, agent="A", outcome="error")],
    [sample(0.9)],
]


def test_queries_come_to_what_they_say(tmp_path: Path) -> None:
    """Success rate, p95, cost by agent, wasted spend by agent and outcome, and the alias' rate, from known growth."""
    block = re.search(r"Queries that work as written:\n\n```text\n(.*?)```", README.read_text(), re.DOTALL)
    assert block is not None
    queries = block.group(1).splitlines()
    assert len(ANSWERS) == len(queries)
    series = [{"series": name, "values": f"0+{grows}x120"} for name, grows in SERIES.items()]
    asked = [
        {"expr": query, "eval_time": "120m", "exp_samples": answer}
        for query, answer in zip(queries, ANSWERS, strict=True)
    ]
    assert "" == failures(tmp_path, [{"interval": "1m", "input_series": series, "promql_expr_test": asked}], [])
