"""Names in ``observability/`` are the library's own: what nobody writes cannot be asked for."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from backends import OBSERVABILITY, needs_folder

from taskpilot_instrument import semconv
from taskpilot_instrument.semconv import METRIC_LABELS

pytestmark = needs_folder

HISTOGRAM_SUFFIXES: Final = ("_bucket", "_sum", "_count")
METRICS: Final = {
    name + suffix
    for name in METRIC_LABELS
    for suffix in (HISTOGRAM_SUFFIXES if name.endswith("_seconds") else ("",))
}  # fmt: skip
#: What Prometheus itself knows of every target.
OF_PROMETHEUS: Final = {"up"}
LABELS: Final = {label for labels in METRIC_LABELS.values() for label in labels} | {"job", "instance", "le"}
#: Words of PromQL that the files use; another one is added here, after a look that it is none of ours misspelt.
WORDS: Final = {
    "absent", "and", "avg", "by", "group", "histogram_quantile", "increase", "last_over_time", "max", "max_over_time",
    "min_over_time", "offset", "on", "or", "rate", "sum", "unless", "vector",
}  # fmt: skip
#: Every string that is a constant of the table, or stands in one of its tuples: tags, attributes, log fields, events.
NAMES: Final = {
    each
    for value in vars(semconv).values()
    for each in ([value] if isinstance(value, str) else value if isinstance(value, tuple) else [])
    if isinstance(each, str)
}
#: Names with our prefix that are none of a metric: the Python package, and what belongs to it.
NOT_METRICS: Final = {"taskpilot_instrument", "taskpilot_workflow"}


# --- where names stand ----------------------------------------------------------------------------


def rules() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every rule with what it is called."""
    for file in sorted((OBSERVABILITY / "prometheus").glob("golden-signals-*.yml")):
        for group in yaml.safe_load(file.read_text())["groups"]:
            for rule in group["rules"]:
                yield rule.get("alert") or rule["record"], rule


def dashboard() -> dict[str, Any]:
    """Return the dashboard."""
    made: dict[str, Any] = json.loads((OBSERVABILITY / "grafana" / "golden-signals-dashboard.json").read_text())
    return made


def targets() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every query of the dashboard with the title of its panel."""
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target


def expressions() -> Iterator[tuple[str, str]]:
    """Yield every PromQL expression with where it stands."""
    for name, rule in rules():
        yield name, rule["expr"]
    for title, target in targets():
        yield title, target["expr"]
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            asked = variable["query"] if isinstance(variable["query"], str) else variable["query"]["query"]
            yield f"${variable['name']}", re.sub(r"^label_values\((.*), (\w+)\)$", r"sum by (\2) (\1)", asked)


def identifiers(expr: str) -> set[str]:
    """Return the words of an expression: without strings, durations, numbers and Grafana's variables."""
    plain = re.sub(r'"[^"]*"', "", expr)
    plain = re.sub(r"\$\w+|\[\w*\]|\boffset \w+", lambda found: "offset" if "offset" in found[0] else "", plain)
    return set(re.findall(r"[A-Za-z_:][\w:]*", plain))


EXPRESSIONS: Final = list(expressions()) if OBSERVABILITY.exists() else []
RECORDED: Final = {rule["record"] for _, rule in rules() if "record" in rule}


# --- metrics and labels ---------------------------------------------------------------------------


@pytest.mark.parametrize(("where", "expr"), EXPRESSIONS, ids=[where for where, _ in EXPRESSIONS])
def test_expression_knows_its_words(where: str, expr: str) -> None:
    """Each word is PromQL's, a metric or a label of the table, or what a rule records."""
    assert set() == identifiers(expr) - WORDS - METRICS - OF_PROMETHEUS - LABELS - RECORDED


@pytest.mark.parametrize(("where", "expr"), EXPRESSIONS, ids=[where for where, _ in EXPRESSIONS])
def test_selector_knows_its_labels(where: str, expr: str) -> None:
    """A matcher asks a family only for labels that it has."""
    for metric, matchers in re.findall(r"(taskpilot_\w+)\{([^}]*)\}", expr):
        if f":{metric}" in expr:  # part of a recorded name
            continue
        family = next(name for name in METRIC_LABELS if metric in {name, *(name + each for each in HISTOGRAM_SUFFIXES)})
        asked = set(re.findall(r"(\w+)\s*[=!]", re.sub(r'"[^"]*"', "", matchers)))
        assert asked <= {*METRIC_LABELS[family], "job", "instance", "le"}


def test_a_misspelt_name_is_seen() -> None:
    """The tests above would notice a metric or label that nobody writes."""
    known = WORDS | METRICS | OF_PROMETHEUS | LABELS | RECORDED
    wrong = 'sum by (agnet) (rate(taskpilot_llm_cost_total{model="m"}[5m]) offset 1h)'
    assert {"agnet", "taskpilot_llm_cost_total"} == identifiers(wrong) - known


def test_each_family_is_on_a_panel() -> None:
    """No family is recorded that nobody sees."""
    shown = {word for _, target in targets() for word in identifiers(target["expr"])}
    seen = {name for name in METRIC_LABELS if shown & {name, *(name + suffix for suffix in HISTOGRAM_SUFFIXES)}}
    assert set(METRIC_LABELS) == seen


def test_legends_and_annotations_know_their_labels() -> None:
    """What is put between braces is a label that the expression keeps."""
    for title, target in targets():
        for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
            assert re.search(rf"by \([^)]*\b{label}\b", target["expr"]), title
    for name, rule in rules():
        for label in re.findall(r"\$labels\.(\w+)", json.dumps(rule.get("annotations", {}))):
            assert label in LABELS, name


def test_label_values_are_words_of_the_table() -> None:
    """A literal that an expression compares with is one that the library writes."""
    literals = {
        (label, value)
        for _, expr in EXPRESSIONS
        for label, values in re.findall(r'(\w+)\s*[=!]=?~?\s*"([^"$]*)"', expr)
        for value in values.split("|")
    }
    written = {*semconv.Outcome, *semconv.TokenKind, semconv.VERDICT_CORRECT, semconv.VERDICT_INCORRECT}
    assert {("job", semconv.SERVICE_NAME)} == {(label, value) for label, value in literals if value not in written}


# --- every other file -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file",
    [
        file
        for file in sorted(OBSERVABILITY.rglob("*"))
        if file.is_file() and file.suffix in {".md", ".yml", ".yaml", ".json", ".ndjson", ".py"}
    ],
    ids=lambda file: str(file.relative_to(OBSERVABILITY)),
)
def test_file_knows_its_metrics(file: Path) -> None:
    """Whatever looks like a metric of ours in any file, prose and comments included, is one."""
    found = set(re.findall(r"(?<![\w:/.-])taskpilot_\w*[a-z]\b(?![*(/])", file.read_text()))
    assert set() == found - METRICS - set(METRIC_LABELS) - NOT_METRICS


def test_sampling_knows_its_tags() -> None:
    """The collector decides by tags that spans have."""
    text = (OBSERVABILITY / "otel-collector" / "config.yaml").read_text()
    asked = set(re.findall(r'attributes\["([^"]+)"\]', text)) | set(re.findall(r"\bkey: (\S+)", text))
    assert asked
    assert asked <= NAMES


def test_mappings_know_their_fields() -> None:
    """Each field that Elasticsearch keeps is one of a log line, or Elastic's own."""
    mappings = json.loads((OBSERVABILITY / "kibana" / "index-template.json").read_text())["template"]["mappings"]
    of_a_line = {*semconv.LOG_FIELDS_ALWAYS, *semconv.LOG_FIELDS_OPTIONAL}
    assert of_a_line <= set(mappings["properties"])
    assert {"@timestamp", "tags", "host", "log"} >= set(mappings["properties"]) - of_a_line


def test_saved_objects_know_their_fields() -> None:
    """Each column, query and chart of Kibana asks for a field of a log line."""
    known = {*semconv.LOG_FIELDS_ALWAYS, *semconv.LOG_FIELDS_OPTIONAL, "@timestamp", "___records___"}
    text = (OBSERVABILITY / "kibana" / "saved-objects.ndjson").read_text()
    asked = set(re.findall(r'\\?"sourceField\\?": \\?"([^"\\]+)', text))
    for line in text.splitlines():
        asked |= set(json.loads(line)["attributes"].get("columns", ()))
    assert asked
    assert asked <= known
