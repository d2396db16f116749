"""The current run is carried over HTTP into other services, and what comes from outside is not believed blindly."""

import threading
from collections.abc import Iterator, MutableMapping
from typing import Any

import httpx
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import baggage, trace
from opentelemetry.context import Context, attach, detach, get_current
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import taskpilot_instrument as tp
from taskpilot_instrument.propagation import (
    PropagationMiddleware,
    async_httpx_hook,
    extract_headers,
    httpx_hook,
    inject_headers,
)
from taskpilot_instrument.testing import Captured, capture

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:websockets", "ignore::DeprecationWarning:uvicorn")


@tp.observed_tool
def create_task(title: str) -> str:
    """Make a task."""
    return title


async def execute(request: Request) -> JSONResponse:
    """Run an agent in the service."""

    @tp.observed_agent(name="RemoteAgent")
    async def remote() -> str:
        return create_task("y")

    return JSONResponse({"result": await remote(), "given": request.headers.get("x-request-id")})


@pytest.fixture
def service() -> Iterator[str]:
    """A second service, with our middleware, on a real socket."""
    app = PropagationMiddleware(Starlette(routes=[Route("/", execute)]))  # type: ignore[arg-type]
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))  # type: ignore[arg-type]
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = True
    thread.join()


def test_an_agent_elsewhere_joins_the_run(captured: Captured, service: str) -> None:
    """The agent behind HTTP has the trace, the request id and the workflow of its caller, and opens no second run."""
    with httpx.Client(event_hooks={"request": [httpx_hook]}) as client, tp.workflow("triage", request_id="req-7"):
        answer = client.get(service)
    remote, run = captured.span("RemoteAgent.execute"), captured.span("workflow.run")
    assert answer.headers["x-request-id"] == "req-7"
    assert answer.json() == {"result": "y", "given": "req-7"}
    assert run.context.trace_id == remote.context.trace_id
    assert run.context.span_id == remote.parent.span_id
    assert remote.attributes["request_id"] == "req-7"
    assert tp.golden_signals().runs == 1
    assert tp.golden_signals(workflow="triage", agent="RemoteAgent").runs == 1


async def test_the_async_client_joins_too(captured: Captured, service: str) -> None:
    """The hook for async clients does the same."""
    asking = httpx.AsyncClient(event_hooks={"request": [async_httpx_hook]})
    async with asking as client, tp.workflow("triage", request_id="req-8"):
        await client.get(service)
    assert captured.span("RemoteAgent.execute").attributes["request_id"] == "req-8"


def test_a_plain_request_gets_an_id(captured: Captured, service: str) -> None:
    """A request from a stranger gets a request id, said in the response and on the spans, and a run of its own."""
    answer = httpx.get(service)
    assert answer.headers["x-request-id"] == captured.span("workflow.run").attributes["request_id"]
    assert tp.golden_signals().runs == 1


def test_a_request_id_alone_is_taken_over(captured: Captured, service: str) -> None:
    """``X-Request-ID`` from a gateway becomes the request id of what the request starts."""
    answer = httpx.get(service, headers={"X-Request-ID": "edge-1"})
    assert answer.headers["x-request-id"] == "edge-1"
    assert captured.span("workflow.run").attributes["request_id"] == "edge-1"


async def test_headers_that_are_not_trusted_are_not_read(captured: Captured) -> None:
    """``trust`` decides from the scope whether the headers count; without them a request has an id of its own."""
    seen: list[bool] = []
    said: list[str] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        seen.append(trace.get_current_span().get_span_context().is_valid)
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> MutableMapping[str, Any]:
        return {}

    async def send(message: MutableMapping[str, Any]) -> None:
        said.append(dict(message["headers"])[b"x-request-id"].decode())

    headers: dict[str, str] = {}
    with tp.workflow("w", request_id="req-9"):
        inject_headers(headers)
    scope = {"type": "http", "headers": [(name.encode(), value.encode()) for name, value in headers.items()]}
    token = attach(Context())
    try:
        await PropagationMiddleware(app, trust=lambda _: False)(scope, receive, send)
        await PropagationMiddleware(app)(scope, receive, send)
    finally:
        detach(token)
    assert seen == [False, True]
    assert "req-9" != said[0]
    assert "req-9" == said[1]


def test_only_listed_baggage_travels(captured: Captured) -> None:
    """What the application keeps in its baggage stays; baggage in the headers stays too."""
    token = attach(baggage.set_baggage("secret", "s3cr3t"))
    headers = {"baggage": "theirs=1"}
    try:
        with tp.workflow("a b,c", request_id="req-1"):
            inject_headers(headers)
    finally:
        detach(token)
    assert "secret" not in headers["baggage"]
    assert headers["baggage"].startswith("theirs=1,")
    assert baggage.get_all(extract_headers(headers.items())) == {}


def test_outside_of_a_run_nothing_is_written(captured: Captured) -> None:
    """Without a run the headers stay as they are."""
    headers: dict[str, str] = {}
    inject_headers(headers)
    assert headers == {}


@given(st.lists(st.tuples(st.sampled_from(["traceparent", "baggage", "x-request-id", "X"]), st.text(max_size=60))))
def test_any_headers_can_be_read(headers: list[tuple[str, str]]) -> None:
    """Whatever a stranger sends, it is read without an error."""
    assert isinstance(extract_headers(headers), Context)


@given(
    st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=100),
    st.text(st.characters(min_codepoint=0x20, max_codepoint=0x2FFF, exclude_categories=["Cs", "Cc"]), min_size=1),
)
def test_ids_and_names_arrive_as_they_were(request_id: str, name: str) -> None:
    """Any printable request id, and any workflow's name of bounded length, survives the headers."""
    headers: dict[str, str] = {}
    with capture() as captured:
        with tp.workflow(name, request_id=request_id):
            inject_headers(headers)
        token = attach(extract_headers(headers.items()))
        try:
            create_task("z")
        finally:
            detach(token)
    assert captured.span("create_task").attributes["request_id"] == request_id


# --- what comes from outside --------------------------------------------------------------------


def tags_under(headers: list[tuple[str, str]]) -> dict[str, Any]:
    """Return the tags of a tool that runs in the run which headers speak of."""
    with capture() as captured:
        token = attach(extract_headers(headers))
        try:
            create_task("z")
        finally:
            detach(token)
    return dict(captured.span("create_task").attributes)


@pytest.mark.parametrize("wrong", ["a b", "a\nlevel=ERROR", "", "x" * 129, "ü"])
def test_a_request_id_that_is_none_is_not_taken_over(wrong: str) -> None:
    """An id is printable ASCII without spaces, of 128 characters at most; in place of another a new one is made."""
    assert tags_under([("X-Request-ID", wrong)])["request_id"].startswith("req-")
    assert "x" * 128 == tags_under([("X-Request-ID", "x" * 128)])["request_id"]


def test_the_request_id_in_the_baggage_comes_first() -> None:
    """A gateway in between may have put its own into the header."""
    headers: dict[str, str] = {}
    with capture(), tp.workflow("triage", request_id="req-inner"):
        inject_headers(headers)
    assert "req-inner" == tags_under([*headers.items(), ("X-Request-ID", "edge")])["request_id"]


def test_a_header_may_come_twice() -> None:
    """Its values count together: what travels may stand in either."""
    headers: dict[str, str] = {}
    with capture(), tp.workflow("triage", request_id="req-5"):
        inject_headers(headers)
    assert "req-5" == tags_under([("baggage", headers["baggage"]), ("Baggage", "theirs=1")])["request_id"]


def test_only_experiments_of_ours_are_taken_over_and_not_too_many() -> None:
    """The latest eight arrive; other entries of the baggage, and names that are none, do not."""
    headers: dict[str, str] = {}
    with capture(), tp.workflow("triage"):
        drawn = {f"e{number}": tp.experiment(f"e{number}", ["a", "b"], unit="u") for number in range(9)}
        inject_headers(headers)
    key = headers["baggage"].partition("e0=")[0].rpartition(",")[2]
    strange = ",".join(["theirs=1", f"{key}=v", f"{key}e=", f"{key}n={'x' * 129}"])
    tags = tags_under([("baggage", f"{strange},{headers['baggage']}")])
    found = dict(zip(tags["experiment"].split(","), tags["variant"].split(","), strict=True))
    assert {name: variant for name, variant in drawn.items() if name != "e0"} == found


@pytest.mark.parametrize("name", ["X-Request-ID", "x-request-id"])
def test_a_request_id_that_a_request_has_stays(name: str) -> None:
    """The application knows why it has given another one; the header is there once."""
    headers = {name: "theirs"}
    with capture(), tp.workflow("triage", request_id="req-5"):
        inject_headers(headers)
    assert [("x-request-id", "theirs")] == [(each.lower(), value) for each, value in headers.items() if each == name]
    assert 1 == sum(each.lower() == "x-request-id" for each in headers)


# --- the middleware -----------------------------------------------------------------------------


async def answers(scope: dict[str, Any], *, sends: list[dict[str, Any]], **options: Any) -> list[Any]:
    """Run the middleware around an application that sends these messages; return what came out."""
    out: list[Any] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        for message in sends:
            await send(message)

    async def receive() -> MutableMapping[str, Any]:
        return {}

    async def send(message: MutableMapping[str, Any]) -> None:
        out.append(message)

    await PropagationMiddleware(app, **options)(scope, receive, send)
    return out


async def test_a_request_id_that_the_application_answers_stays() -> None:
    """It is said once, as the application said it; other messages pass as they are."""
    start = {"type": "http.response.start", "status": 200, "headers": [(b"X-Request-ID", b"mine")]}
    body = {"type": "http.response.body", "body": b"x"}
    assert [start, body] == await answers({"type": "http", "headers": []}, sends=[start, body])


async def test_an_answer_without_headers_gets_the_request_id() -> None:
    """An application may leave them out."""
    scope = {"type": "http", "headers": [(b"x-request-id", b"edge")]}
    (found,) = await answers(scope, sends=[{"type": "http.response.start", "status": 200}])
    assert [(b"x-request-id", b"edge")] == found["headers"]


async def test_headers_that_are_trusted_are_read() -> None:
    """``trust`` may say yes, too."""
    scope = {"type": "http", "headers": [(b"x-request-id", b"edge")]}
    start = {"type": "http.response.start", "status": 200, "headers": []}
    (found,) = await answers(scope, sends=[start], trust=lambda scope: scope["type"] == "http")
    assert [(b"x-request-id", b"edge")] == found["headers"]


async def test_what_is_no_request_passes() -> None:
    """The lifespan of the application has no headers."""
    message = {"type": "lifespan.startup.complete"}
    assert [message] == await answers({"type": "lifespan"}, sends=[message])


async def test_nothing_stays_current_after_a_request() -> None:
    """What the task does next belongs to no run elsewhere."""
    before = get_current()
    await answers({"type": "websocket", "headers": [(b"x-request-id", b"edge")]}, sends=[])
    assert before == get_current()


@pytest.mark.usefixtures("swallowing")
async def test_an_error_in_trust_stops_no_request() -> None:
    """The request is served, as if nothing had come with it."""
    message = {"type": "http.response.body"}

    def trust(_scope: Any) -> bool:
        raise ZeroDivisionError

    assert [message] == await answers({"type": "http", "headers": []}, sends=[message], trust=trust)
