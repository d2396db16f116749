"""What Elasticsearch and Kibana are given: held against the log lines of a run, without the real ones."""

import asyncio
import contextlib
import importlib.util
import io
import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import kibana
import openai
import pytest
import yaml
from collector import OBSERVABILITY, check_wiring, read
from hypothesis import given
from hypothesis import strategies as st
from kibana import Document, Refused

import taskpilot_instrument as tp
from taskpilot_instrument import semconv
from taskpilot_instrument.embedded import EmbeddedServer, Reply
from taskpilot_instrument.sinks.logs import LogSink
from taskpilot_instrument.testing import capture

if not OBSERVABILITY.exists():
    pytest.skip("observability/ was not copied along", allow_module_level=True)

KIBANA = OBSERVABILITY / "kibana"
PIPELINE = json.loads((KIBANA / "ingest-pipeline.json").read_text())
TEMPLATE = json.loads((KIBANA / "index-template.json").read_text())
MAPPINGS = TEMPLATE["template"]["mappings"]
FIELDS = kibana.fields_of(MAPPINGS)
OBJECTS: list[dict[str, Any]] = [
    json.loads(line) for line in (KIBANA / "saved-objects.ndjson").read_text().splitlines()
]
#: What people type, as it stands in the contract.
SEARCHES = ('agent: "PlannerAgent"', 'model: "gpt-4o-mini"', 'request_id: "req-abc-123"')
COSTLY = "cost_usd: >0.10"


@dataclass(frozen=True)
class Run:
    """The log lines of a run, and what its metrics say."""

    lines: list[str]
    cost_usd: float
    workflow_runs: float


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run the demo's workflow, a call that is costly and cut off, one that fails, and a decision; log to a file."""
    log = tmp_path_factory.mktemp("log") / "taskpilot.jsonl"
    example = load(OBSERVABILITY.parent / "examples" / "taskpilot_workflow.py")
    with EmbeddedServer(example.answer) as server, capture(logs=log, counting_ids=False) as captured:
        metrics = captured.handle.metrics

        async def work() -> None:
            async with openai.AsyncOpenAI(api_key="none", base_url=server.url) as client:
                await example.work_off(example.GOALS, client, metrics)
                too_long = Reply("…", usage=tp.TokenUsage(1_000_000, 16), finish_reason="length")
                server.script(too_long, Reply.error(404, "no such model"))
                with tp.workflow("triage", request_id="req-abc-123"):
                    await example.PlannerAgent(client).run("Read everything")
                    captured.handle.logs.record_event(
                        semconv.E_POLICY_DECIDED, semconv.CATEGORY_DECISION, "WARNING", "no personal data: denied",
                        policy="no personal data", decision="denied", reason="an address in the plan",
                    )  # fmt: skip
                with contextlib.suppress(openai.NotFoundError):
                    await example.PlannerAgent(client).run("Ask nobody")

        asyncio.run(work())
        figures = metrics.get_counter("llm.cost.total"), metrics.get_counter("workflow.runs")
    return Run(log.read_text().splitlines(), *figures)


def load(path: Path) -> ModuleType:
    """Import a script that is in no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shipped(line: str) -> Document:
    """Return the document that Filebeat makes of a line."""
    return {
        "@timestamp": "2024-12-21T10:00:05.000Z",
        "message": line,
        "agent": {"type": "filebeat", "version": "9.2.0", "name": "worker-1", "id": "1", "ephemeral_id": "2"},
        "ecs": {"version": "8.0.0"},
        "input": {"type": "filestream"},
        "host": {"name": "worker-1"},
        "log": {"offset": 0, "file": {"path": "/var/log/taskpilot/1.jsonl", "inode": "7"}},
    }


def indexed(document: Document) -> Document:
    """Return what of a document can be searched, once it went through the pipeline."""
    return kibana.index(MAPPINGS, kibana.run_pipeline(PIPELINE, document))


@pytest.fixture(scope="module")
def documents(run: Run) -> list[Document]:
    """Every line of the run, as Elasticsearch holds it."""
    return [indexed(shipped(line)) for line in run.lines]


# --- mappings and pipeline ----------------------------------------------------------------------


def test_mapped_fields() -> None:
    """The fields of a log line are mapped, each, and beside them only what a shipper adds."""
    shippers = {"@timestamp", "tags", "host.name", "log.file.path"}
    assert {*semconv.LOG_FIELDS_ALWAYS, *semconv.LOG_FIELDS_OPTIONAL} | shippers == set(FIELDS)


def test_types() -> None:
    """Money and time are doubles, counts are longs, ids and names are keywords."""
    kinds: dict[str, set[str]] = {}
    for name, kind in FIELDS.items():
        kinds.setdefault(kind, set()).add(name)
    assert {"cost_usd", "latency_ms"} == kinds["double"]
    assert {"input_tokens", "output_tokens", "input_length", "output_length"} == kinds["long"]
    assert {"@timestamp", "timestamp"} == kinds["date"]
    assert {"message", "error_message", "reason"} == kinds["text"]
    assert {"request_id", "trace_id", "span_id", "agent", "model"} <= kinds["keyword"]


def test_every_line_is_accepted(run: Run, documents: list[Document]) -> None:
    """Each line of the run keeps each of its fields, under its own time."""
    assert {
        "agent.started",
        "llm.called",
        "llm.failed",
        "tool.failed",
        "token_limit.exceeded",
        "workflow.finished",
    } <= {document["event_name"] for document in documents}
    for line, document in zip(run.lines, documents, strict=True):
        fields = json.loads(line)
        assert fields == {name: document[name] for name in fields}
        assert document["@timestamp"] == fields["timestamp"]


def test_the_two_agents(run: Run) -> None:
    """Filebeat's object `agent` would be refused; the pipeline moves it aside, and the line's field takes its place."""
    line = next(line for line in run.lines if "ReviewerAgent" in line)
    with pytest.raises(Refused, match="agent is of the type keyword"):
        kibana.index(MAPPINGS, shipped(line))
    document = kibana.run_pipeline(PIPELINE, shipped(line))
    assert ("ReviewerAgent", "filebeat") == (document["agent"], document["shipper"]["type"])
    assert json.loads(line)["message"] == document["message"]


def test_both_shippers_end_alike(run: Run) -> None:
    """The collector sends the parsed line alone; the same fields can be searched then."""
    for line in run.lines:
        by_filebeat = indexed(shipped(line))
        del by_filebeat["host.name"], by_filebeat["log.file.path"]
        assert by_filebeat == indexed(json.loads(line))


@given(
    st.dictionaries(
        st.sampled_from(["workflow", "agent", "tool", "model", "policy", "decision", "reason", "error_message"]),
        st.text(max_size=2000),
    )
)
def test_any_text_is_accepted(fields: dict[str, str]) -> None:
    """Whatever agents, tools and policies are called, and errors say, the line is accepted and the text kept."""
    log = io.StringIO()
    LogSink(log).record_event(semconv.E_POLICY_DECIDED, semconv.CATEGORY_DECISION, "INFO", "decided", **fields)
    document = indexed(shipped(log.getvalue()))
    written = json.loads(log.getvalue())
    assert written == {name: document[name] for name in written}


@pytest.mark.parametrize("line", ["Traceback (most recent call last):", "", "[1, 2]", '"text"', "{"])
def test_lines_that_are_not_ours(line: str) -> None:
    """A line that is no JSON object is kept as a message, marked, at the time at which it was read."""
    document = indexed(shipped(line))
    assert (line, ["not_a_taskpilot_line"]) == (document["message"], document["tags"])
    assert "2024-12-21T10:00:05.000Z" == document["@timestamp"]


# --- searches -----------------------------------------------------------------------------------


@pytest.mark.parametrize("query", SEARCHES)
@pytest.mark.parametrize("language", [kibana.kql, kibana.lucene], ids=["kql", "lucene"])
def test_searches_of_the_contract(documents: list[Document], query: str, language: Any) -> None:
    """Typed as it stands, in either language, a search finds the lines that carry the value, and no others."""
    field, value = re.fullmatch(r'(\w+): "(.*)"', query).groups()  # type: ignore[union-attr]  # else it fails
    found = list(filter(language(query, FIELDS), documents))
    assert [document for document in documents if document.get(field) == value] == found
    assert 0 < len(found) < len(documents)


@pytest.mark.parametrize(("query", "language"), [(COSTLY, kibana.lucene), ("cost_usd > 0.10", kibana.kql)])
def test_search_by_cost(documents: list[Document], query: str, language: Any) -> None:
    """The costly call is found with its agent and its workflow, in each language by its own spelling."""
    found = list(filter(language(query, FIELDS), documents))
    assert ["llm.called", "agent.finished", "workflow.finished"] == [document["event_name"] for document in found]
    assert {"req-abc-123"} == {document["request_id"] for document in found}


def test_a_colon_before_an_operator_is_no_kql() -> None:
    """`cost_usd: >0.10` is a syntax error in KQL, which is why that saved search is Lucene's."""
    with pytest.raises(Refused):
        kibana.kql(COSTLY, FIELDS)
    assert {"query": COSTLY, "language": "lucene"} == source(named("taskpilot-costly"))["query"]


# --- saved objects ------------------------------------------------------------------------------


def named(name: str) -> dict[str, Any]:
    """Return the saved object of that id."""
    (found,) = [each for each in OBJECTS if each["id"] == name]
    return found


def source(saved: dict[str, Any]) -> Any:
    """Return the search source of a saved object."""
    return json.loads(saved["attributes"]["kibanaSavedObjectMeta"]["searchSourceJSON"])


def of_type(kind: str) -> list[Any]:
    """Return the saved objects of a type, each under its id."""
    return [pytest.param(each, id=each["id"]) for each in OBJECTS if each["type"] == kind]


def test_saved_objects_are_current() -> None:
    """The file is what build.py writes today."""
    assert load(KIBANA / "build.py").text() == (KIBANA / "saved-objects.ndjson").read_text()


def test_references_resolve() -> None:
    """Each object is there once and refers to what stands before it; the data view covers what the template does."""
    known: set[tuple[str, str]] = set()
    for each in OBJECTS:
        assert {(reference["type"], reference["id"]) for reference in each["references"]} <= known, each["id"]
        assert (each["type"], each["id"]) not in known
        known.add((each["type"], each["id"]))
    view = named("taskpilot-logs")["attributes"]
    assert [view["title"]] == TEMPLATE["index_patterns"]
    assert {view["timeFieldName"], *json.loads(view["fieldFormatMap"])} <= set(FIELDS)


@pytest.mark.parametrize("saved", of_type("search"))
def test_saved_searches(documents: list[Document], saved: dict[str, Any]) -> None:
    """A saved search finds lines of the run, and shows fields that there are."""
    asked = source(saved)
    language = {"kuery": kibana.kql, "lucene": kibana.lucene}[asked["query"]["language"]]
    assert list(filter(language(asked["query"]["query"], FIELDS), documents))
    assert {*saved["attributes"]["columns"], *(field for field, _ in saved["attributes"]["sort"])} <= set(FIELDS)
    assert [asked["indexRefName"]] == [reference["name"] for reference in saved["references"]]


@pytest.mark.parametrize("saved", of_type("lens"))
def test_charts(documents: list[Document], saved: dict[str, Any]) -> None:
    """A chart finds lines of the run with its fields, of types that its operations take, and shows each column."""
    state = saved["attributes"]["state"]
    ((layer_id, layer),) = state["datasourceStates"]["formBased"]["layers"].items()
    assert [f"indexpattern-datasource-layer-{layer_id}"] == [each["name"] for each in saved["references"]]
    assert set(layer["columns"]) == set(layer["columnOrder"])
    buckets = [layer["columns"][name]["isBucketed"] for name in layer["columnOrder"]]
    assert sorted(buckets, reverse=True) == buckets  # Lens nests the others in those that come first
    look = json.dumps(state["visualization"])
    found = list(filter(kibana.kql(state["query"]["query"], FIELDS), documents))
    for name, column in layer["columns"].items():
        assert f'"{name}"' in look
        assert column.get("params", {}).get("orderBy", {"columnId": name})["columnId"] in layer["columns"]
        field = column["sourceField"]
        if field != "___records___":
            kinds = {"terms": {"keyword"}, "date_histogram": {"date"}}
            assert FIELDS[field] in kinds.get(column["operationType"], {"double", "long"})
            assert any(field in document for document in found), field
    assert found


def test_panels() -> None:
    """Each panel of the dashboard names its reference, and no two overlap."""
    dashboard = named("taskpilot-overview")
    panels = json.loads(dashboard["attributes"]["panelsJSON"])
    assert [f"{each['panelIndex']}:{each['panelRefName']}" for each in panels] == [
        reference["name"] for reference in dashboard["references"]
    ]
    squares = [
        (x, y)
        for grid in (panel["gridData"] for panel in panels)
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    ]
    assert len(set(squares)) == len(squares)
    assert max(x for x, _ in squares) < 48


def test_figures_agree_with_the_metrics(run: Run, documents: list[Document]) -> None:
    """Added up over the lines that its chart asks for, cost is the metrics' cost, and runs are the metrics' runs."""

    def lines(name: str) -> list[Document]:
        query = named(name)["attributes"]["state"]["query"]["query"]
        return list(filter(kibana.kql(query, FIELDS), documents))

    cost = sum(document.get("cost_usd", 0) for document in lines("taskpilot-cost"))
    assert pytest.approx(run.cost_usd, rel=1e-12) == cost
    assert run.workflow_runs == len(lines("taskpilot-runs"))


# --- shippers and loading -----------------------------------------------------------------------


def test_filebeat() -> None:
    """Filebeat ships whole lines to a data stream of the template, and brings no template of its own."""
    config = yaml.safe_load((OBSERVABILITY / "filebeat" / "filebeat.yml").read_text())
    (shipping,) = config["filebeat.inputs"]
    assert ("filestream", "taskpilot") == (shipping["type"], shipping["id"])
    assert not {"parsers", "processors"} & set(shipping)
    assert (False, False) == (config["setup.template.enabled"], config["setup.ilm.enabled"])
    assert re.fullmatch(TEMPLATE["index_patterns"][0].replace("*", ".+"), config["output.elasticsearch"]["index"])


def test_collector() -> None:
    """The collector parses each line into the body and sends the body as it is, to the same data stream."""
    config = read(OBSERVABILITY / "otel-collector" / "logs.yaml")
    check_wiring(config)
    ((parser,), exporter) = config["receivers"]["filelog"]["operators"], config["exporters"]["elasticsearch"]
    assert ("json_parser", "body", "body") == (parser["type"], parser["parse_from"], parser["parse_to"])
    assert ("bodymap", "logs-taskpilot-default") == (exporter["mapping"]["mode"], exporter["logs_index"])


class Backend:
    """Take what load.sh sends, in place of Elasticsearch and Kibana.

    :param status: of every answer.
    """

    def __init__(self, status: int) -> None:
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        backend = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                body = self.rfile.read(int(headers.get("content-length", 0)))
                backend.requests.append((self.command, self.path, headers, body))
                self.send_response(status)
                self.end_headers()
                self.wfile.write(b"{}")

            do_PUT = do_POST = handle_any  # noqa: N815 - the base class's names

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def load(self, **environ: str) -> int:
        """Run load.sh against this backend; return its exit status."""
        url = f"http://127.0.0.1:{self.server.server_port}"
        environ = {"PATH": os.environ["PATH"], "ELASTICSEARCH_URL": url, "KIBANA_URL": url, **environ}
        return subprocess.run(
            [KIBANA / "load.sh"], env=environ, capture_output=True, timeout=30, check=False
        ).returncode


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """A backend that accepts everything, or answers with the status of the parameter."""
    with Backend(getattr(request, "param", 200)) as running:
        yield running


def test_load(backend: Backend) -> None:
    """load.sh puts the pipeline that the template names, then the template, then imports the objects into Kibana."""
    assert 0 == backend.load()
    assert [
        ("PUT", f"/_ingest/pipeline/{TEMPLATE['template']['settings']['index.default_pipeline']}"),
        ("PUT", "/_index_template/taskpilot-logs"),
        ("POST", "/api/saved_objects/_import?overwrite=true"),
    ] == [request[:2] for request in backend.requests]
    (_, _, _, pipeline), (_, _, _, template), (_, _, headers, upload) = backend.requests
    assert (PIPELINE, TEMPLATE) == (json.loads(pipeline), json.loads(template))
    assert (KIBANA / "saved-objects.ndjson").read_bytes() in upload
    assert "true" == headers["kbn-xsrf"]
    assert {None} == {headers.get("authorization") for _, _, headers, _ in backend.requests}


def test_load_with_a_key(backend: Backend) -> None:
    """With a key in the environment each request carries it."""
    assert 0 == backend.load(ELASTIC_API_KEY="c2VjcmV0")
    assert ["ApiKey c2VjcmV0"] * 3 == [headers["authorization"] for _, _, headers, _ in backend.requests]


@pytest.mark.parametrize("backend", [400], indirect=True)
def test_load_that_is_refused(backend: Backend) -> None:
    """load.sh stops at the first refusal, and says so by its exit status."""
    assert 0 != backend.load()
    assert 1 == len(backend.requests)
