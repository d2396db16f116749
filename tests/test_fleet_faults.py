"""Asking a Prometheus that is slow, wrong, closed or not there: always our own error, in time, without secrets."""

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs

import httpx
import pytest
import yaml
from backends import OBSERVABILITY, free_port, needs_folder, prometheus, wait_for
from metrics_records import agent_run, llm_call, workflow_run
from prometheus_client import start_http_server

import taskpilot_instrument as tp
from taskpilot_instrument import _fleet, semconv
from taskpilot_instrument._waste import WasteInMetrics
from taskpilot_instrument.cli import main
from taskpilot_instrument.errors import ConfigurationError, SourceError
from taskpilot_instrument.semconv import Outcome
from taskpilot_instrument.sinks.metrics import MetricsBackend
from taskpilot_instrument.testing import capture
from taskpilot_instrument.web import serve

EMPTY: Final = {"status": "success", "data": {"resultType": "vector", "result": []}}
SECRET: Final = "s3cr3t-w0rd"


class Asked(BaseHTTPRequestHandler):
    """Answer as the test says."""

    def do_POST(self) -> None:
        """Take a query."""
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.server.seen.append((self.path, dict(self.headers), form))  # type: ignore[attr-defined]
        self.server.answer(self, form["query"][0])  # type: ignore[attr-defined]

    def send(self, body: object, status: int = 200, **headers: str) -> None:
        """Send JSON, or bytes as they are."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def standing_in(answer: Callable[[Asked, str], None]) -> Iterator[ThreadingHTTPServer]:
    """Stand in for a Prometheus with a fault that the real one will not show on request."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Asked)
    server.answer, server.seen = answer, []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def well(asked: Asked, query: str) -> None:
    """Answer that there is nothing."""
    scalar = {"status": "success", "data": {"resultType": "scalar", "result": [1e9, "1e9"]}}
    asked.send(scalar if query == "time()" else EMPTY)


def drip(asked: Asked, _query: str) -> None:
    """Send a byte now and then, and never end."""
    asked.send_response(200)
    asked.end_headers()
    try:
        for _ in range(200):
            asked.wfile.write(b" ")
            time.sleep(0.05)
    except OSError:
        pass


def elsewhere(asked: Asked, _query: str) -> None:
    """Send the client to another address."""
    asked.send(b"", 307, Location="http://127.0.0.1:1/api/v1/query")


FAULTS: Final[dict[str, tuple[Callable[[Asked, str], None], str]]] = {
    "hangs": (lambda asked, _: time.sleep(3), "took longer than 1 s"),
    "drips": (drip, "took longer than 1 s"),
    "no JSON": (lambda asked, _: asked.send(b"<html>"), "did not answer as a Prometheus does"),
    "another JSON": (lambda asked, _: asked.send([1]), "did not answer as a Prometheus does"),
    "half of it": (lambda asked, _: asked.send(b'{"status"', **{"Content-Length": "99"}), "did not answer as"),
    "no series": (
        lambda asked, _: asked.send({"status": "success", "data": {"resultType": "vector", "result": [{}]}}),
        "did not answer as",
    ),
    "a part": (lambda asked, _: asked.send({**EMPTY, "warnings": ["store gone"]}), "no whole answer: store gone"),
    "says why": (
        lambda asked, _: asked.send({"status": "error", "error": f"bad password={SECRET}"}, 422),
        r"HTTP 422: bad password=\[redacted\]",
    ),
    "fails": (lambda asked, _: asked.send(b"oops", 502), "HTTP 502: Bad Gateway"),
    "closed": (lambda asked, _: asked.send(b"", 401), "refused the credentials"),
    "redirects": (elsewhere, "HTTP 307"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_told(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is ours, comes in time, says what is wrong and where, and shows no credentials."""
    monkeypatch.setenv("TASKPILOT_SOURCE_TIMEOUT_S", "1")
    answer, message = FAULTS[fault]
    with standing_in(answer) as server:
        begun = time.monotonic()
        with pytest.raises(SourceError, match=message) as raised:
            tp.golden_signals(source=f"http://user:{SECRET}@127.0.0.1:{server.server_port}?job={SECRET}")
        assert time.monotonic() - begun < 10
        assert f"http://127.0.0.1:{server.server_port} " in str(raised.value)
        assert SECRET not in str(raised.value)
        assert None is raised.value.__cause__


def test_nobody_there() -> None:
    """Where nothing listens, the error says so, and asks whether that is a Prometheus."""
    with pytest.raises(SourceError, match=r"ConnectionRefusedError.* is a Prometheus there"):
        tp.golden_signals(source=f"http://127.0.0.1:{free_port()}")


@pytest.mark.parametrize(
    "source",
    ["", "prometheus:9090", "ftp://p", "http://", "http://p:port", "http://p/#x", "http://p?job", "http://p?a-b=c", 1],
)
def test_address_that_is_none(source: Any) -> None:
    """It is refused before anything is asked, with what would be right."""
    with pytest.raises(ConfigurationError, match="such as http://prometheus:9090"):
        tp.golden_signals(source=source)


@pytest.mark.parametrize("source", [f"http://user:{SECRET}@p?job", f"user:{SECRET}@p:9090"])
def test_address_is_refused_without_its_password(source: str) -> None:
    """A mistake in the rest of the address, such as a scheme that is missing, does not show the password."""
    with pytest.raises(ConfigurationError) as raised:
        tp.golden_signals(source=source)
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize(
    "source", ["prom", f"user:{SECRET}@prom:9090", f"ftp://user:{SECRET}@prom", f"http://u:{SECRET}@p?job"]
)
def test_setting_that_is_no_address(source: str) -> None:
    """The page's source is looked at when it is set, and not when somebody first looks at the page."""
    with pytest.raises(
        ConfigurationError, match=r"source=.*expected the URL of a Prometheus, such as http://prometheus:9090"
    ) as raised:
        tp.instrument(source=source)
    assert SECRET not in str(raised.value)


def test_filters_that_metrics_cannot_tell() -> None:
    """No metric knows which agent ran in which workflow: that is said rather than answered with something else."""
    with pytest.raises(ConfigurationError, match="no agent or model within a workflow"):
        tp.golden_signals(source="http://p", workflow="w", agent="a")


@pytest.mark.parametrize(
    ("user", "token", "header"),
    [
        ("", None, None),
        ("", "t0ken", "Bearer t0ken"),
        ("us%40er:pass%3Aword@", None, "Basic dXNAZXI6cGFzczp3b3Jk"),
    ],
)
def test_credentials(user: str, token: str | None, header: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """User and password of the address, or the token of the settings, go along with each question."""
    if token is not None:
        monkeypatch.setenv("TASKPILOT_SOURCE_TOKEN", token)
    with standing_in(well) as server:
        tp.golden_signals(source=f"http://{user}127.0.0.1:{server.server_port}/prom/")
        assert {header} == {headers.get("Authorization") for _, headers, _ in server.seen}  # type: ignore[attr-defined]
        assert {"/prom/api/v1/query"} == {path for path, _, _ in server.seen}  # type: ignore[attr-defined]


@pytest.mark.parametrize("token", ["two words", "broken\nline", "schlüssel"])
def test_token_that_is_none(token: str) -> None:
    """It is refused at start, and not shown; so are two credentials at once."""
    with pytest.raises(ConfigurationError, match=r"source_token=.*expected letters and digits") as raised:
        tp.instrument(source_token=token)
    assert token not in str(raised.value)
    with capture(source_token="t0ken"), pytest.raises(ConfigurationError, match="leave one of them out"):
        tp.golden_signals(source="http://user:pass@p")


def test_values_are_quoted() -> None:
    """Names with quotes, backslashes and line breaks are asked for as they are, and break out of nothing."""
    with standing_in(well) as server:
        tp.golden_signals(source=f"http://127.0.0.1:{server.server_port}?job=%22%7D", agent='a"\\\n{}ä')
        queries = [form["query"][0] for _, _, form in server.seen]  # type: ignore[attr-defined]
    assert all('job="\\"}"' in query for query in queries[1:])
    assert any('agent="a\\"\\\\\\n{}ä"' in query for query in queries)


# --- one definition ---------------------------------------------------------------------------------


@needs_folder
def test_rules_ask_for_the_same_families() -> None:
    """What the recording rules add up is what is asked for here."""
    groups = yaml.safe_load((OBSERVABILITY / "prometheus" / "golden-signals-recording.yml").read_text())["groups"]
    rules = [rule["expr"] for group in groups[:2] for rule in group["rules"]]
    added_up = {family for expr in rules for family in re.findall(r"(taskpilot_\w+)(?:\{[^}]*\})?\[", expr)}
    asked = {
        _fleet.RUNS[semconv.Kind.WORKFLOW], _fleet.LATENCY[semconv.Kind.WORKFLOW], semconv.M_LLM_COST,
        semconv.M_POLICY_VIOLATIONS, semconv.M_FEEDBACK,
    }  # fmt: skip
    assert asked == added_up
    assert any(f'{semconv.OUTCOME}="{Outcome.SUCCESS}"' in expr for expr in rules)


# --- a vote that is changed, the page, the command line -----------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Iterator[tuple[str, MetricsBackend]]:
    """A real Prometheus, and what it scrapes."""
    backend = MetricsBackend()
    server, _ = start_http_server(0, "127.0.0.1", backend.registry)
    config = {
        "global": {"scrape_interval": "200ms"},
        "scrape_configs": [
            {"job_name": "taskpilot", "static_configs": [{"targets": [f"127.0.0.1:{server.server_port}"]}]}
        ],
    }
    for outcome, ms in ((Outcome.SUCCESS, 100), (Outcome.SUCCESS, 120), (Outcome.ERROR, 4_000_000)):
        backend.finished(workflow_run(outcome=outcome, ms=ms))
    backend.finished(agent_run())
    for outcome in (Outcome.SUCCESS, Outcome.ERROR):
        backend.finished(llm_call(outcome=outcome))
    for correct in (True, True, False):
        backend.record_feedback(correct, "PlannerAgent")
    with prometheus(tmp_path, config) as running:
        wait_for("scrape", lambda: running.value("sum(taskpilot_feedback_total)"))
        backend._take_back("PlannerAgent", None, correct=True)
        wait_for("scrape", lambda: running.value("sum(taskpilot_feedback_total)") == 2)
        time.sleep(1.1)  # what is younger than a second is not asked for
        yield running.url, backend
    server.shutdown()
    server.server_close()
    backend.close()


def test_page_and_command_line(source: tuple[str, MetricsBackend], capsys: pytest.CaptureFixture[str]) -> None:
    """Both show what Prometheus knows, not this process; a vote that was taken back is no restart."""
    url, backend = source
    found = tp.golden_signals(source=url, window="5m")
    assert (1, 1) == (found.sample.correct, found.sample.incorrect)
    assert backend.golden_sample().spent_usd == found.sample.spent_usd
    assert WasteInMetrics(1, 0, 200, Decimal("0.0000525"), 0) == found.sample.wasted
    assert "$0.000105 spent, 0 calls without a price, $0.0000525 wasted\n" in str(found)
    assert "3 timed, beyond 3,600,000 ms" in str(found)

    assert 1 == main(["signals", "--source", url, "--window", "5m", "--fail-on", "critical"])
    assert str(found) == capsys.readouterr().out.strip()
    assert 0 == main(["signals", "--source", url, "--agent", "PlannerAgent", "--format", "json"])
    told = json.loads(capsys.readouterr().out)
    assert (1, url, 100.0) == (told["runs"], told["source"], told["signals"]["success_rate"]["value"])
    assert 2 == main(["signals", "--source", f"http://127.0.0.1:{free_port()}"])
    assert "is a Prometheus there?" in capsys.readouterr().err

    with capture() as captured, serve(0, handle=captured.handle, source=url) as server:
        answer = httpx.get(f"{server.url}signals", params={"window": "5m"}).json()
        assert (3, 2, url) == (answer["runs"], answer["successes"], answer["source"])
        assert 0.0000525 == answer["wasted_cost_usd"]
        assert [3_600_000, None] == answer["p95_bounds_ms"]
        state = httpx.get(f"{server.url}state").json()
        assert (3, url, 0) == (state["signals"]["runs"], state["source"], sum(state["series"]["points"]["runs"]))


def test_page_without_its_source() -> None:
    """The API says 503; the page goes on with what it has, and says what is missing."""
    url = f"http://127.0.0.1:{free_port()}"
    with capture(source=url) as captured, serve(0, handle=captured.handle) as server:
        answer = httpx.get(f"{server.url}signals")
        assert (503, True) == (answer.status_code, url in answer.json()["title"])
        state = httpx.get(f"{server.url}state").json()
        assert ("unknown", None) == (state["signals"]["verdict"], state["signals"]["total_cost_usd"])
        assert url in state["problems"][0]
        assert url == state["source"]


def test_serve_takes_a_source() -> None:
    """``serve --source`` shows that Prometheus's figures, or says that it is not there."""
    url = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "taskpilot_instrument.cli", "serve", "--port", "0", "--source", url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        page = re.search(r"http://\S+", process.stdout.readline())
        assert page is not None
        answer = httpx.get(f"{page[0]}signals")
        assert (503, True) == (answer.status_code, answer.json()["title"].startswith(url))
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)


def test_page_asks_once_for_all_who_watch() -> None:
    """Two looks within a few seconds are one question."""
    with standing_in(well) as server, capture() as captured:
        with serve(0, handle=captured.handle, source=f"http://127.0.0.1:{server.server_port}") as page:
            httpx.get(f"{page.url}state")
            before = len(server.seen)  # type: ignore[attr-defined]
            httpx.get(f"{page.url}state")
        assert 0 < before == len(server.seen)  # type: ignore[attr-defined]


def test_page_refuses_an_address_that_is_none() -> None:
    """Already when it is made."""
    with capture() as captured, pytest.raises(ConfigurationError, match="expected the URL of a Prometheus"):
        serve(0, handle=captured.handle, source="prometheus:9090")
