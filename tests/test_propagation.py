"""The current run is carried into threads and tasks, and over HTTP into other services."""

import asyncio
import threading
from collections.abc import Callable, Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import baggage, trace
from opentelemetry.context import Context, attach, detach
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


@tp.observed_agent
class PlannerAgent:
    """Calls its tool in whatever way it is told."""

    def run(self, call: Callable[[Callable[[], str]], None]) -> None:
        """Run."""
        call(lambda: create_task("x"))


def in_a_thread(work: Callable[[], object]) -> None:
    """Run work in a thread of its own."""
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


class OwnRun(threading.Thread):
    """A thread that overrides ``run``, as many do."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__()
        self.work = work

    def run(self) -> None:
        """Work."""
        self.work()


def in_a_subclass(work: Callable[[], object]) -> None:
    """Run work in a thread whose class has its own ``run``."""
    thread = OwnRun(work)
    thread.start()
    thread.join()
    assert "run" not in vars(thread)


def in_a_timer(work: Callable[[], object]) -> None:
    """Run work in a timer."""
    timer = threading.Timer(0, work)
    timer.start()
    timer.join()


def in_a_pool(work: Callable[[], object]) -> None:
    """Run work in a thread pool."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result()
        list(pool.map(lambda _: None, range(2)))


def with_to_thread(work: Callable[[], object]) -> None:
    """Run work through asyncio's own way into threads."""
    asyncio.run(asyncio.to_thread(work))


def in_a_task_group(work: Callable[[], object]) -> None:
    """Run work in a task of a task group."""

    async def task() -> None:
        work()

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(task())

    asyncio.run(main())


def in_a_callback(work: Callable[[], object]) -> None:
    """Run work in a callback of the event loop."""

    async def main() -> None:
        asyncio.get_running_loop().call_soon(work)
        await asyncio.sleep(0.01)

    asyncio.run(main())


NATIVE = [with_to_thread, in_a_task_group, in_a_callback]
THREADS = [in_a_thread, in_a_subclass, in_a_timer, in_a_pool]


@pytest.mark.parametrize("way", NATIVE)
def test_asyncio_carries_the_run(way: Callable[[Callable[[], str]], None]) -> None:
    """Tasks, callbacks and ``to_thread`` carry the run without any setting."""
    with capture() as captured:
        PlannerAgent().run(way)
    assert captured.span("PlannerAgent.execute").context.span_id == captured.span("create_task").parent.span_id


@pytest.mark.parametrize("way", THREADS)
def test_threads_carry_the_run_where_asked(way: Callable[[Callable[[], str]], None]) -> None:
    """With ``propagate_threads`` a tool called in a thread or pool belongs to the agent that started it."""
    with capture(propagate_threads=True) as captured:
        PlannerAgent().run(way)
    assert captured.span("PlannerAgent.execute").context.span_id == captured.span("create_task").parent.span_id


@pytest.mark.parametrize("way", THREADS)
def test_threads_are_left_alone_by_default(way: Callable[[Callable[[], str]], None]) -> None:
    """Without the setting a thread begins with an empty context, as Python has it."""
    with capture() as captured:
        PlannerAgent().run(way)
    assert captured.span("create_task").parent is None


def test_threads_outside_of_a_run_are_not_touched() -> None:
    """Where nothing is current a thread is started as it is, and results and errors stay."""
    with capture(propagate_threads=True), ThreadPoolExecutor(1) as pool:
        in_a_thread(lambda: None)
        assert pool.submit(divmod, 7, 2).result() == (3, 1)
        with tp.workflow("w"), pytest.raises(ZeroDivisionError):
            pool.submit(divmod, 7, 0).result()
        with tp.workflow("w"), pytest.raises(TypeError):
            pool.submit()  # type: ignore[call-arg]


def test_a_pools_thread_is_of_no_run() -> None:
    """What is given to a pool outside of a run is outside, though its thread was started by what was given inside."""
    with capture(propagate_threads=True) as captured, ThreadPoolExecutor(1) as pool:
        with tp.workflow("triage"):
            pool.submit(create_task, "inside").result()
        pool.submit(create_task, "outside").result()
    assert ["workflow.run", "  create_task", "create_task"] == captured.tree()


def test_uninstrument_gives_the_standard_library_back() -> None:
    """The patches on threads and pools go with the instrumentation."""
    before = [vars(threading.Thread)["start"], vars(ThreadPoolExecutor)["submit"]]
    with capture(propagate_threads=True):
        assert before[0] is not vars(threading.Thread)["start"]
    assert before == [vars(threading.Thread)["start"], vars(ThreadPoolExecutor)["submit"]]


# --- over HTTP ----------------------------------------------------------------------------------


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
