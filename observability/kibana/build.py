"""Write saved-objects.ndjson: what Kibana shows of the log lines.

.venv/bin/python observability/kibana/build.py
"""

import json
from pathlib import Path
from typing import Any, Final

from taskpilot_instrument import semconv as names

TARGET: Final = Path(__file__).with_name("saved-objects.ndjson")
#: Where the field `trace_id` leads to.
JAEGER: Final = "http://localhost:16686"

Json = dict[str, Any]
_DATA_VIEW: Final = "taskpilot-logs"
_TIME: Final = "@timestamp"
_LAYER: Final = "calls"
#: The shapes are those that Kibana 8.9 wrote; a newer one brings them up to date as it imports them.
_WRITTEN_BY: Final = {"index-pattern": "8.0.0", "search": "7.9.3", "lens": "8.9.0", "dashboard": "8.9.0"}

_RUNS: Final = f'{names.F_EVENT_NAME}: "{names.E_WORKFLOW_FINISHED}"'
# Agents and workflows carry the cost of everything beneath them, so that only calls may be added up.
_CALLS: Final = f'{names.F_EVENT_NAME}: ("{names.E_LLM_CALLED}" or "{names.E_LLM_FAILED}")'


def _object(kind: str, name: str, attributes: Json, references: list[Json]) -> Json:
    return {
        "type": kind,
        "id": name,
        "attributes": attributes,
        "references": references,
        "coreMigrationVersion": "8.8.0",
        "typeMigrationVersion": _WRITTEN_BY[kind],
    }


def _data_view() -> Json:
    formats = {
        names.COST_USD: {"id": "number", "params": {"pattern": "$0,0.000000"}},
        names.F_TRACE_ID: {"id": "url", "params": {"urlTemplate": f"{JAEGER}/trace/{{{{value}}}}"}},
    }
    attributes = {
        "title": "logs-taskpilot-*",
        "name": "TaskPilot logs",
        "timeFieldName": _TIME,
        "fieldFormatMap": json.dumps(formats),
    }
    return _object("index-pattern", _DATA_VIEW, attributes, [])


def _search(name: str, title: str, query: str, *columns: str, language: str = "kuery") -> Json:
    place = "kibanaSavedObjectMeta.searchSourceJSON.index"
    source = {"query": {"query": query, "language": language}, "filter": [], "indexRefName": place}
    attributes = {
        "title": title,
        "columns": list(columns),
        "sort": [[_TIME, "desc"]],
        "kibanaSavedObjectMeta": {"searchSourceJSON": json.dumps(source)},
    }
    return _object("search", name, attributes, [{"name": place, "type": "index-pattern", "id": _DATA_VIEW}])


# --- columns of a chart -------------------------------------------------------------------------


def _over_time() -> Json:
    return {
        "label": _TIME, "operationType": "date_histogram", "sourceField": _TIME, "dataType": "date",
        "isBucketed": True, "scale": "interval", "params": {"interval": "auto", "includeEmptyRows": True},
    }  # fmt: skip


def _by(field: str) -> Json:
    params = {"size": 10, "orderBy": {"type": "column", "columnId": "value"}, "orderDirection": "desc"}
    return {
        "label": field, "operationType": "terms", "sourceField": field, "dataType": "string",
        "isBucketed": True, "scale": "ordinal", "params": {**params, "otherBucket": True, "missingBucket": True},
    }  # fmt: skip


def _figure(label: str, operation: str, field: str, **params: Any) -> Json:
    return {
        "label": label, "customLabel": True, "operationType": operation, "sourceField": field, "dataType": "number",
        "isBucketed": False, "scale": "ratio", "params": params,
    }  # fmt: skip


def _count(label: str) -> Json:
    return _figure(label, "count", "___records___", emptyAsNull=True)


def _sum(label: str, field: str) -> Json:
    return _figure(label, "sum", field, emptyAsNull=True)


# --- charts -------------------------------------------------------------------------------------


def _chart(name: str, title: str, query: str, kind: str, look: Json, **columns: Json) -> Json:
    layer = {"columnOrder": list(columns), "columns": columns, "incompleteColumns": {}}
    state = {
        "datasourceStates": {"formBased": {"layers": {_LAYER: layer}}},
        "visualization": look,
        "query": {"query": query, "language": "kuery"},
        "filters": [],
    }
    reference = {"name": f"indexpattern-datasource-layer-{_LAYER}", "type": "index-pattern", "id": _DATA_VIEW}
    return _object("lens", name, {"title": title, "visualizationType": kind, "state": state}, [reference])


def _number(name: str, title: str, query: str, value: Json) -> Json:
    look = {"layerId": _LAYER, "layerType": "data", "metricAccessor": "value"}
    return _chart(name, title, query, "lnsMetric", look, value=value)


def _bars(name: str, title: str, query: str, field: str, value: Json) -> Json:
    layer = {
        "layerId": _LAYER, "layerType": "data", "seriesType": "bar_stacked", "xAccessor": "time",
        "splitAccessor": "split", "accessors": ["value"],
    }  # fmt: skip
    look = {
        "preferredSeriesType": "bar_stacked", "legend": {"isVisible": True, "position": "right"}, "layers": [layer],
    }  # fmt: skip
    return _chart(name, title, query, "lnsXY", look, split=_by(field), time=_over_time(), value=value)


def _table(name: str, title: str, query: str, **columns: Json) -> Json:
    look = {"layerId": _LAYER, "layerType": "data", "columns": [{"columnId": column} for column in columns]}
    return _chart(name, title, query, "lnsDatatable", look, **columns)


def _dashboard(name: str, title: str, *rows: tuple[int, tuple[Json, ...]]) -> Json:
    """Lay charts out in rows of equal widths.

    :param rows: height and charts of each; the grid is 48 wide.
    """
    panels: list[Json] = []
    references: list[Json] = []
    y = 0
    for height, charts in rows:
        width = 48 // len(charts)
        for place, chart in enumerate(charts):
            index = str(len(panels) + 1)
            grid = {"x": place * width, "y": y, "w": width, "h": height, "i": index}
            panel = {"type": chart["type"], "panelIndex": index, "gridData": grid, "panelRefName": f"panel_{index}"}
            panels.append({**panel, "embeddableConfig": {"enhancements": {}}})
            references.append({"name": f"{index}:panel_{index}", "type": chart["type"], "id": chart["id"]})
        y += height
    source = {"query": {"query": "", "language": "kuery"}, "filter": []}
    attributes = {
        "title": title,
        "panelsJSON": json.dumps(panels),
        "optionsJSON": json.dumps({"useMargins": True, "hidePanelTitles": False}),
        "timeRestore": True,
        "timeFrom": "now-24h",
        "timeTo": "now",
        "kibanaSavedObjectMeta": {"searchSourceJSON": json.dumps(source)},
    }
    return _object("dashboard", name, attributes, references)


# --- what there is ------------------------------------------------------------------------------


def saved_objects() -> list[Json]:
    """Return every object, what is referred to before what refers to it."""
    message, cost, latency = names.F_MESSAGE, names.COST_USD, names.LATENCY_MS
    who = (names.WORKFLOW, names.AGENT, names.REQUEST_ID, names.F_TRACE_ID)
    errors = _search(
        "taskpilot-errors", "TaskPilot: errors", f'{names.F_CATEGORY}: "{names.CATEGORY_ERROR}"',
        message, names.F_EVENT_NAME, names.F_ERROR_TYPE, names.F_ERROR_MESSAGE, *who,
    )  # fmt: skip
    searches = [
        _search(
            "taskpilot-audit", "TaskPilot: audit", f'{names.F_CATEGORY}: "{names.CATEGORY_AUDIT}"',
            message, names.F_EVENT_NAME, names.OUTCOME, *who,
        ),
        errors,
        _search(
            "taskpilot-decisions", "TaskPilot: decisions", f'{names.F_CATEGORY}: "{names.CATEGORY_DECISION}"',
            message, names.F_EVENT_NAME, names.F_POLICY, names.F_DECISION, names.F_REASON, *who,
        ),
        # With a colon before `>` it is Lucene's syntax. In KQL the same is `cost_usd > 0.10`.
        _search(
            "taskpilot-costly", "TaskPilot: costly runs and calls", f"{cost}: >0.10",
            message, cost, names.MODEL, latency, *who, language="lucene",
        ),
    ]  # fmt: skip
    numbers = (
        _number("taskpilot-runs", "Runs", _RUNS, _count("runs")),
        _number(
            "taskpilot-p95", "95th percentile of run latency, ms", _RUNS,
            _figure("p95", "percentile", latency, percentile=95),
        ),
        _number("taskpilot-cost", "Cost of calls", _CALLS, _sum("cost", cost)),
    )  # fmt: skip
    charts = (
        _bars("taskpilot-outcomes", "Runs by outcome", _RUNS, names.OUTCOME, _count("runs")),
        _bars("taskpilot-cost-by-agent", "Cost by agent", _CALLS, names.AGENT, _sum("cost", cost)),
    )
    tables = (
        _table(
            "taskpilot-models", "Calls, tokens and cost by model", _CALLS,
            split=_by(names.MODEL), value=_count("calls"), input=_sum("input tokens", names.INPUT_TOKENS),
            output=_sum("output tokens", names.OUTPUT_TOKENS), cost=_sum("cost", cost),
        ),
        _table(
            "taskpilot-failures", "Failures by type", f'{names.F_CATEGORY}: "{names.CATEGORY_ERROR}"',
            split=_by(names.F_ERROR_TYPE), value=_count("failures"),
        ),
        _table(
            "taskpilot-verdicts", "Decisions by policy", f'{names.F_CATEGORY}: "{names.CATEGORY_DECISION}"',
            policy=_by(names.F_POLICY), decision=_by(names.F_DECISION), value=_count("decisions"),
        ),
    )  # fmt: skip
    dashboard = _dashboard(
        "taskpilot-overview", "TaskPilot: logs", (6, numbers), (12, charts), (12, tables), (16, (errors,))
    )
    return [_data_view(), *searches, *numbers, *charts, *tables, dashboard]


def text() -> str:
    """Return the file: one object a line."""
    return "".join(json.dumps(each, sort_keys=True) + "\n" for each in saved_objects())


if __name__ == "__main__":
    TARGET.write_text(text())
