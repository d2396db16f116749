"""The ASGI application over a real socket: what it answers, what it refuses, and that nothing breaks it."""

import asyncio
import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import httpx
import openai
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.routing import Mount

import taskpilot_instrument as tp
from taskpilot_instrument.budgets import Budget
from taskpilot_instrument.testing import Captured, capture
from taskpilot_instrument.web import Server, serve
from taskpilot_instrument.web.app import create_app

TOKEN = "a-secret-of-enough-characters"


@tp.observed_agent
class PlannerAgent:
    """Asks a model."""

    def run(self, client: openai.OpenAI) -> str:
        """Run."""
        client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "x"}])
        return "done"


@pytest.fixture
def shown() -> Iterator[tuple[Captured, Server]]:
    """Instrumentation and a server that shows it."""
    settings: dict[str, Any] = {"budgets": [Budget("daily", 1)], "ledger": "memory", "feedback_key": "k" * 16}
    with capture(**settings) as captured, serve(0, handle=captured.handle) as server:
        yield captured, server


@pytest.fixture
def api(shown: tuple[Captured, Server]) -> Iterator[httpx.Client]:
    """A client of that server."""
    with httpx.Client(base_url=shown[1].url) as client:
        yield client


def one_run(client: openai.OpenAI, request_id: str = "req-a") -> None:
    """Run the agent once."""
    with tp.workflow("triage", request_id=request_id):
        PlannerAgent().run(client)


# --- answers ------------------------------------------------------------------------------------


def test_signals(shown: tuple[Captured, Server], api: httpx.Client, client: openai.OpenAI) -> None:
    """The signals are those of the library, filtered as asked, with verdict and threshold each."""
    one_run(client)
    found = api.get("/signals").json()
    assert 1 == found["runs"]
    assert {"value": 100.0, "verdict": "healthy", "healthy": 95, "warning": 90} == found["signals"]["success_rate"]
    assert 0 == api.get("/signals", params={"window": "15m", "agent": "nobody"}).json()["runs"]
    assert None is api.get("/signals", params={"agent": "nobody"}).json()["signals"]["success_rate"]["value"]


def test_metrics_in_the_format_that_is_asked_for(
    shown: tuple[Captured, Server], api: httpx.Client, client: openai.OpenAI
) -> None:
    """Prometheus gets OpenMetrics where it asks for it, and text otherwise."""
    one_run(client)
    plain = api.get("/metrics")
    opened = api.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert plain.headers["content-type"].startswith("text/plain")
    assert opened.headers["content-type"].startswith("application/openmetrics-text")
    assert opened.text.endswith("# EOF\n")
    for text in (plain.text, opened.text):
        assert 'taskpilot_workflow_runs_total{outcome="success",workflow="triage"} 1.0' in text


def test_budgets(shown: tuple[Captured, Server], api: httpx.Client, client: openai.OpenAI) -> None:
    """Budgets come with exact money as text."""
    one_run(client)
    (budget,) = api.get("/budgets").json()
    assert ("daily", "day", "1") == (budget["name"], budget["window"], budget["limit_usd"])
    assert shown[0].handle.budgets()[0].spent_usd == Decimal(budget["spent_usd"])


def test_runs_as_trees(shown: tuple[Captured, Server], api: httpx.Client, client: openai.OpenAI) -> None:
    """The latest runs come newest first, each with its spans, parents before children."""
    one_run(client, "req-1")
    one_run(client, "req-2")
    runs = api.get("/runs").json()
    assert ["req-2", "req-1"] == [run["request_id"] for run in runs]
    assert [("triage", 0), ("PlannerAgent", 1), ("chat gpt-4o-mini", 2)] == [
        (span["name"], span["depth"]) for span in runs[0]["spans"]
    ]


def test_runs_of_one_outcome(shown: tuple[Captured, Server], api: httpx.Client, client: openai.OpenAI) -> None:
    """``outcome`` leaves those that ended in one way; a word that is none is refused with those that are."""
    one_run(client, "req-1")
    with tp.workflow("triage", request_id="req-2") as run:
        run.fail("no")
    for outcome, expected in (("success", ["req-1"]), ("error", ["req-2"]), ("blocked", [])):
        assert expected == [run["request_id"] for run in api.get("/runs", params={"outcome": outcome}).json()]
    for word, said in (
        ("zz", "expected one of success, error, cancelled, blocked"),
        ("sucess", "did you mean 'success'?"),
    ):
        refused = api.get("/runs", params={"outcome": word})
        assert 422 == refused.status_code
        assert said in problem_of(refused)["hint"]


@pytest.mark.parametrize("path", ["/signals", "/budgets", "/runs", "/models", "/experiments", "/state", "/live"])
def test_a_parameter_that_is_none_is_refused(path: str, api: httpx.Client) -> None:
    """A misspelt filter would filter nothing: it is told, with those that there are."""
    refused = api.get(path, params={"agnet": "PlannerAgent"})
    assert 422 == refused.status_code
    assert "unknown parameter 'agnet'" in problem_of(refused)["hint"]
    assert ("did you mean 'agent'" in problem_of(refused)["hint"]) == (path in {"/signals", "/models"})


def test_many_runs_stay_apart(shown: tuple[Captured, Server], api: httpx.Client, client: openai.OpenAI) -> None:
    """However often the memory of a finished call is given to the next one, each run has its own spans."""
    for number in range(60):
        with tp.workflow("triage", request_id=f"req-{number}"):
            for _ in range(3):
                client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "x"}])
                PlannerAgent().run(client)
    depths = [0, 1, 1, 2, 1, 1, 2, 1, 1, 2]
    assert [depths] * 60 == [[span["depth"] for span in run["spans"]] for run in api.get("/runs").json()]


def test_content_is_shown_only_where_captured(client: openai.OpenAI) -> None:
    """Without content capture no prompt or answer is in what the page shows."""
    for capturing in (False, True):
        with capture(capture_content=capturing) as captured, serve(0, handle=captured.handle) as server:
            with tp.workflow("w"):
                client.chat.completions.create(model="m", messages=[{"role": "user", "content": "a-secret-plan"}])
            assert capturing == ("a-secret-plan" in httpx.get(server.url + "state").text)


def test_feedback(shown: tuple[Captured, Server], api: httpx.Client, client: openai.OpenAI) -> None:
    """A vote by JSON is recorded, by request id and by token, and changes the signal."""
    one_run(client)
    answer = api.post("/feedback", json={"request_id": "req-a", "correct": True, "user": "ann"})
    assert (201, True, False) == (answer.status_code, answer.json()["linked"], answer.json()["replaced"])
    token = shown[0].handle.feedback_token("req-a")
    assert 201 == api.post("/feedback", json={"token": token, "correct": False, "user": "bob"}).status_code
    assert 50.0 == api.get("/signals").json()["signals"]["user_confirmed_correctness_percent"]["value"]


def test_live_sends_what_changes(shown: tuple[Captured, Server], api: httpx.Client, client: openai.OpenAI) -> None:
    """The stream begins with the state, and sends it again once a run has ended."""
    with api.stream("GET", "/live") as stream:
        states = (json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: "))
        assert 0 == next(states)["signals"]["runs"]
        one_run(client)
        assert 1 == next(states)["signals"]["runs"]


def test_health_and_description(api: httpx.Client) -> None:
    """Probes get an answer; programs get an OpenAPI document that lists every path."""
    assert "ok" == api.get("/healthz").json()["status"]
    document = api.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    assert {"/metrics", "/signals", "/feedback", "/budgets", "/healthz"} <= document["paths"].keys()


def test_it_mounts_in_another_application(captured: Captured, client: openai.OpenAI) -> None:
    """Mounted under a path the page finds its files and its API there."""
    import threading

    import uvicorn

    app = Starlette(routes=[Mount("/observe", create_app(captured.handle))])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.01)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/observe"
    try:
        one_run(client)
        assert 1 == httpx.get(f"{url}/signals").json()["runs"]
        assert 'src="/observe/page.js"' in httpx.get(f"{url}/").text
        assert 200 == httpx.get(f"{url}/page.js").status_code
    finally:
        server.should_exit = True
        thread.join()


# --- refusals -----------------------------------------------------------------------------------


def problem_of(answer: httpx.Response) -> dict[str, Any]:
    """Return the problem that a response holds."""
    assert "application/problem+json" == answer.headers["content-type"]
    found: dict[str, Any] = answer.json()
    assert answer.status_code == found["status"]
    assert found["hint"]
    return found


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"{", 400, "no JSON"),
        (b"[1]", 400, "no JSON object"),
        (b'{"correct": true}', 422, "not valid"),
        (b'{"correct": "yes", "request_id": "r"}', 422, "not valid"),
        (b'{"correct": true, "request_id": "r", "colour": 1}', 422, "unknown field"),
        (b'{"correct": true, "token": "x"}', 422, "not valid"),
        (b'{"correct": true, "token": "x", "request_id": "r"}', 422, "not valid"),
        (b"[" * 60_000, 400, "no JSON"),
        (b" " * 70_000, 413, "65536"),
    ],
)
def test_bad_feedback_is_a_problem_with_a_hint(api: httpx.Client, body: bytes, status: int, said: str) -> None:
    """What cannot be a vote is refused with what would be right."""
    answer = api.post("/feedback", content=body, headers={"Content-Type": "application/json"})
    assert status == answer.status_code
    assert said in problem_of(answer)["title"]


def test_other_refusals_are_problems_too(api: httpx.Client) -> None:
    """Unknown paths, wrong methods, wrong windows and forms get the same shape of answer."""
    assert 404 == problem_of(api.get("/nothing"))["status"]
    assert 405 == problem_of(api.post("/signals"))["status"]
    assert 422 == problem_of(api.get("/signals", params={"window": "yesterday"}))["status"]
    assert 415 == problem_of(api.post("/feedback", data={"correct": "true"}))["status"]


def test_a_body_without_a_length_is_limited_too(api: httpx.Client) -> None:
    """A body that is sent in pieces is not read beyond the limit."""
    pieces = (b" " * 10_000 for _ in range(20))
    answer = api.post("/feedback", content=pieces, headers={"Content-Type": "application/json"})
    assert 413 == answer.status_code


def test_another_name_is_not_answered(api: httpx.Client) -> None:
    """A page of somebody else's cannot reach a loopback server under its own name."""
    assert 421 == problem_of(api.get("/state", headers={"Host": "evil.example"}))["status"]


def test_no_origin_may_ask_unless_listed(captured: Captured) -> None:
    """CORS is off; a listed origin is let in."""
    origin = {"Origin": "https://support.example"}
    with serve(0, handle=captured.handle) as server:
        assert "access-control-allow-origin" not in httpx.get(server.url + "signals", headers=origin).headers
    with serve(0, handle=captured.handle, cors_origins=["https://support.example"]) as server:
        answer = httpx.get(server.url + "signals", headers=origin)
        assert "https://support.example" == answer.headers["access-control-allow-origin"]


def test_an_open_address_needs_a_token(captured: Captured) -> None:
    """Binding to another address than this machine's is refused without a token, and a short token is too."""
    with pytest.raises(tp.ConfigurationError, match="give a token="):
        serve(0, host="0.0.0.0", handle=captured.handle)
    with pytest.raises(tp.ConfigurationError, match="16 characters"):
        serve(0, token="short", handle=captured.handle)


def test_a_token_is_asked_for(captured: Captured) -> None:
    """With a token only the empty page, its files and the probe are served without it."""
    with serve(0, token=TOKEN, handle=captured.handle) as server, httpx.Client(base_url=server.url) as client:
        assert [200, 200, 200] == [client.get(path).status_code for path in ("/", "/page.js", "/healthz")]
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
            assert 401 == client.get("/signals", headers=header).status_code
        assert 200 == client.get("/signals", headers={"Authorization": f"Bearer {TOKEN}"}).status_code


def test_a_port_that_is_taken_is_told(shown: tuple[Captured, Server]) -> None:
    """The second server on a port says so."""
    port = int(shown[1].url.rstrip("/").rpartition(":")[2])
    with pytest.raises(tp.ConfigurationError, match="choose another port"):
        serve(port, handle=shown[0].handle)


def test_too_many_requests_are_slowed_down(captured: Captured) -> None:
    """One client's requests are limited; the answer says when to come again."""
    app = create_app(captured.handle)
    app._per_minute = 5
    answers = []

    async def ask() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://testserver") as client:
            answers.extend([await client.get("/healthz") for _ in range(7)])

    asyncio.run(ask())
    assert [200] * 5 + [429] * 2 == [answer.status_code for answer in answers]
    assert "5" == answers[-1].headers["retry-after"]


def test_the_ledger_is_away(client: openai.OpenAI) -> None:
    """While the ledger cannot be reached the page is still drawn, and /budgets says 503."""
    away = capture(budgets=[Budget("b", 1)], ledger="redis://127.0.0.1:1/0")
    with away as captured, serve(0, handle=captured.handle) as server:
        assert 503 == problem_of(httpx.get(server.url + "budgets"))["status"]
        assert httpx.get(server.url + "state").json()["problems"]


# --- anything at all ----------------------------------------------------------------------------


FIELDS = ["correct", "request_id", "trace_id", "user", "score", "comment", "id", "token", "x"]
LEAVES = st.none() | st.booleans() | st.floats() | st.text(max_size=20)
JSON: Any = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=5),
    max_leaves=8,
)


@given(JSON)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_vote_breaks_the_server(api: httpx.Client, vote: Any) -> None:
    """Whatever JSON is sent as a vote, the answer is 201 or 4xx."""
    answer = api.post("/feedback", content=json.dumps(vote), headers={"Content-Type": "application/json"})
    assert answer.status_code == 201 or 400 <= answer.status_code < 500


def test_fuzzed_by_its_own_description(captured: Captured) -> None:
    """Requests made up from the OpenAPI document, right and wrong ones, never get a 5xx."""
    with serve(0, handle=captured.handle) as server:
        schema = schemathesis.openapi.from_url(server.url + "openapi.json")
        tried = 0
        for found in schema.get_all_operations():
            operation = found.ok()

            @given(case=operation.as_strategy())
            @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
            def ask(case: Any) -> None:
                nonlocal tried
                tried += 1
                assert case.call(base_url=server.url).status_code < 500

            ask()
        assert tried > 25


def test_what_is_refused_hides_no_failure(client: openai.OpenAI) -> None:
    """However many calls a budget refuses, the run that failed before and its error stay on the page."""
    budgets = [Budget("none", "0.000001", on_exceed="block")]
    with capture(budgets=budgets, ledger="memory") as captured, serve(0, handle=captured.handle) as server:
        with pytest.raises(ValueError, match="ill"), tp.workflow("w", request_id="req-ill"):
            raise ValueError("ill")
        for _ in range(250):
            with pytest.raises(tp.BudgetExceededError), tp.workflow("w"):
                client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "x"}])
        state = httpx.get(server.url + "state").json()
    assert ["req-ill"] == [run["request_id"] for run in state["older_failures"] if run["outcome"] == "error"]
    assert ["req-ill"] == [event["request_id"] for event in state["events"] if event["event"] == "error"]
    assert {25, 50} == {len(state["runs"]), sum(event["event"] == "budget.blocked" for event in state["events"])}
