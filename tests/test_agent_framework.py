"""Microsoft agent-framework, with its real packages and the real openai client."""

import asyncio
import gc
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any

import openai
import pytest
from frameworks import MODEL, assert_cancelled, assert_refused, assert_spent, calls, names, need, outcomes, says
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import taskpilot_instrument as tp
from taskpilot_instrument import _guard, health
from taskpilot_instrument.embedded import EmbeddedServer, Reply
from taskpilot_instrument.testing import Captured, capture

need("agent_framework_openai")

import agent_framework as af  # noqa: E402 - only where it is installed
from agent_framework import observability  # noqa: E402
from agent_framework.openai import OpenAIChatClient, OpenAIChatCompletionClient  # noqa: E402

from taskpilot_instrument.integrations import agent_framework as ours  # noqa: E402


@pytest.fixture(params=["one line", "middleware"])
def way(request: pytest.FixtureRequest) -> str:
    """The way in which the framework is put under observation."""
    return str(request.param)


@pytest.fixture
def captured(way: str) -> Iterator[Captured]:
    """Instrumentation that records in memory."""
    with capture(frameworks=["agent_framework"] if way == "one line" else ()) as everything:
        yield everything
    ours.quiet().undo()


@pytest.fixture(params=[OpenAIChatCompletionClient, OpenAIChatClient], ids=["chat", "responses"])
def chat_client(request: pytest.FixtureRequest, aclient: openai.AsyncOpenAI) -> Any:
    """The framework's client on the chat completions and on the responses API."""
    return request.param(model=MODEL, async_client=aclient)


@pytest.fixture
def plain_client(aclient: openai.AsyncOpenAI) -> Any:
    """The framework's client, where one API is enough."""
    return OpenAIChatCompletionClient(model=MODEL, async_client=aclient)


@af.tool(approval_mode="never_require")
def create_task(title: Annotated[str, "What to do."]) -> str:
    """Create a task."""
    return f"created {title}"


def agent_of(client: Any, way: str, name: str = "PlannerAgent", *, middleware: Any = (), **more: Any) -> Any:
    """Return an agent that is observed in the given way."""
    observed = ours.middleware() if way == "middleware" else []
    return af.Agent(client, name=name, middleware=[*observed, *middleware], **more)


async def run_plain(agent: Any) -> None:
    """Run an agent to its end."""
    assert "done" == (await agent.run("Create a task")).text


async def run_stream(agent: Any) -> None:
    """Read an agent's stream to its end."""
    stream = agent.run("Create a task", stream=True)
    assert isinstance(stream, af.ResponseStream)
    assert "".join([update.text async for update in stream]) in STREAMED
    assert "done" == (await stream.get_final_response()).text


async def run_final(agent: Any) -> None:
    """Ask an agent's stream for its final response only."""
    stream = agent.run("Create a task", stream=True)
    assert "done" == (await stream.get_final_response()).text


async def run_awaited(agent: Any) -> None:
    """Await an agent's stream before it is read."""
    stream = await agent.run("Create a task", stream=True)
    assert "".join([update.text async for update in stream]) in STREAMED


#: Of the responses API the framework passes on what the event at the end of a text repeats.
STREAMED = ("done", "donedone")
RUNS: list[Callable[[Any], Any]] = [run_plain, run_stream, run_final, run_awaited]


# --- agents and tools -----------------------------------------------------------------------------


@pytest.mark.parametrize("run", RUNS)
async def test_an_agent_with_a_tool(
    captured: Captured, server: EmbeddedServer, chat_client: Any, way: str, run: Callable[[Any], Any]
) -> None:
    """A run is one workflow, one agent, its calls and its tool, each once; the caller keeps the framework's objects."""
    server.script(calls("create_task", title="Tea"), says())

    await run(agent_of(chat_client, way, tools=[create_task]))

    chat = f"chat {MODEL}"
    expected = ["workflow.run", "  PlannerAgent.execute", f"    {chat}", "    create_task", f"    {chat}"]
    assert expected == captured.tree()
    assert {"success"} == set(outcomes(captured).values())
    assert ("PlannerAgent", "PlannerAgent") == (
        captured.tags("workflow.run")["workflow"],
        captured.tags("create_task")["agent"],
    )
    assert "Create a task." == captured.tags("create_task")["gen_ai.tool.description"]
    assert way == "middleware" or captured.tags("create_task")["gen_ai.tool.call.id"]  # which once had no id
    assert_spent(captured, 2)


async def test_agents_beside_each_other(
    captured: Captured, server: EmbeddedServer, plain_client: Any, way: str
) -> None:
    """Agents that run at the same time keep their calls apart."""
    server.script(*[says()] * 4)
    agents = [agent_of(plain_client, way, name=f"Agent{number}") for number in range(4)]

    await asyncio.gather(
        *(run_plain(agent) if number % 2 else run_stream(agent) for number, agent in enumerate(agents))
    )

    by_id = {span.context.span_id: span for span in captured.spans if span.context is not None}
    chats = [span for span in captured.spans if span.name.startswith("chat ")]
    assert {f"Agent{number}.execute" for number in range(4)} == {by_id[span.parent.span_id].name for span in chats}
    assert_spent(captured, 4, runs=4)


async def test_an_agent_as_a_tool_of_another(
    captured: Captured, server: EmbeddedServer, plain_client: Any, way: str
) -> None:
    """An agent that another one calls as its tool runs beneath that tool call."""
    server.script(calls("reviewer", task="look"), says("fine"), says())
    reviewer = agent_of(plain_client, way, name="ReviewerAgent")

    await run_plain(
        agent_of(plain_client, way, tools=[reviewer.as_tool(name="reviewer", approval_mode="never_require")])
    )

    chat = f"chat {MODEL}"
    assert [
        "workflow.run", "  PlannerAgent.execute", f"    {chat}", "    reviewer", "      ReviewerAgent.execute",
        f"        {chat}", f"    {chat}",
    ] == captured.tree()  # fmt: skip
    assert_spent(captured, 3)


async def test_a_tool_that_runs_its_own_agent(
    captured: Captured, server: EmbeddedServer, plain_client: Any, way: str
) -> None:
    """A tool that is called again by the agent which it runs is a further call, beneath that agent."""
    planners: list[Any] = []

    @af.tool(approval_mode="never_require")
    async def split() -> str:
        """Split the task."""
        return str((await planners[0].run("Create a part")).text)

    planners.append(agent_of(plain_client, way, tools=[split]))
    server.script(calls("split"), calls("split"), *[says()] * 3)
    await run_plain(planners[0])

    assert ["PlannerAgent.execute", "split"] * 2 + ["PlannerAgent.execute"] == [
        line.strip() for line in captured.tree() if not line.strip().startswith(("chat", "workflow"))
    ]
    assert_spent(captured, 5)


async def test_a_run_within_a_workflow_of_the_caller(
    captured: Captured, server: EmbeddedServer, plain_client: Any, way: str
) -> None:
    """Within the caller's own workflow an agent opens no other."""
    server.script(says())

    with tp.workflow("triage", request_id="req-abc-123"):
        await run_plain(agent_of(plain_client, way))

    assert ["workflow.run", "  PlannerAgent.execute", f"    chat {MODEL}"] == captured.tree()
    assert ("triage", "req-abc-123") == (
        captured.tags("workflow.run")["workflow"],
        captured.tags("PlannerAgent.execute")["request_id"],
    )
    assert_spent(captured, 1)


# --- how a run ends -------------------------------------------------------------------------------


@pytest.mark.parametrize("run", RUNS)
async def test_a_failing_call(
    captured: Captured, server: EmbeddedServer, plain_client: Any, way: str, run: Callable[[Any], Any]
) -> None:
    """The framework's error reaches the caller as it is, and ends the run as one."""
    server.script(*[Reply.error(400)] * 2)

    with pytest.raises(af.exceptions.ChatClientException):
        await run(agent_of(plain_client, way))

    assert {"workflow.run": "error", "PlannerAgent.execute": "error"} == outcomes(captured)
    assert "ChatClientException" in captured.tags("PlannerAgent.execute")["error.type"]


async def test_a_failing_tool(captured: Captured, server: EmbeddedServer, plain_client: Any, way: str) -> None:
    """A tool that raises is a failed tool; the framework tells the model, and the run goes on."""
    server.script(calls("break_down"), says())

    @af.tool(approval_mode="never_require")
    def break_down() -> str:
        """Break."""
        raise ZeroDivisionError("no")

    await run_plain(agent_of(plain_client, way, tools=[break_down]))

    assert {"workflow.run": "success", "PlannerAgent.execute": "success", "break_down": "error"} == outcomes(captured)
    assert "ZeroDivisionError" == captured.tags("break_down")["error.type"]
    assert_spent(captured, 2)


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_cancelled_run(
    captured: Captured, server: EmbeddedServer, plain_client: Any, way: str, streamed: bool
) -> None:
    """A cancelled task ends its run as cancelled."""
    agent = agent_of(plain_client, way)
    await assert_cancelled(captured, server, run_stream(agent) if streamed else run_plain(agent))


#: Younger than the rest: before, a stream could only be forgotten.
CLOSES = [] if not hasattr(af.ResponseStream, "close") else ["close", "block"]


@pytest.mark.parametrize("leave", [*CLOSES, "forget"])
async def test_a_consumer_that_leaves_early(
    captured: Captured, server: EmbeddedServer, plain_client: Any, way: str, leave: str
) -> None:
    """A stream that is left before its end, in whichever way, ends its run as cancelled, once."""
    server.script(Reply("one two three four five six", part_delay=0.01))
    agent = agent_of(plain_client, way)

    async def consume() -> None:
        stream = agent.run("Go", stream=True)
        if leave == "block":
            async with stream:
                async for _ in stream:
                    break
            return
        async for _ in stream:
            break
        if leave == "close":
            await stream.close()

    await consume()
    gc.collect()
    await asyncio.sleep(0.05)
    gc.collect()

    assert {"workflow.run": "cancelled", "PlannerAgent.execute": "cancelled"} == outcomes(captured)
    assert 1 == captured.golden_signals().sample.runs


async def test_a_stream_that_nobody_reads(
    captured: Captured, server: EmbeddedServer, plain_client: Any, way: str
) -> None:
    """A stream that is never read sends nothing, and leaves no run open."""
    forgotten = [agent_of(plain_client, way).run("Go", stream=True)]
    with pytest.warns(RuntimeWarning, match="never awaited"):  # the framework's own
        forgotten.clear()
    gc.collect()

    assert [] == server.requests
    assert {"cancelled"} >= set(outcomes(captured).values())


async def test_the_consumer_of_a_stream_is_outside(
    captured: Captured, server: EmbeddedServer, plain_client: Any, aclient: openai.AsyncOpenAI, way: str
) -> None:
    """What the consumer does between two updates is not the agent's."""
    server.script(Reply("one two three", part_delay=0.01), says())
    stream = agent_of(plain_client, way).run("Go", stream=True)

    async for _ in stream:
        await aclient.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "mine"}])
        break
    del stream
    gc.collect()

    mine = next(span for span in captured.spans if span.name == f"chat {MODEL}" and span.parent is None)
    assert "agent" not in (mine.attributes or {})


class Terminator(af.AgentMiddleware):
    """Answers in the agent's place."""

    async def process(self, context: af.AgentContext, call_next: Any) -> None:
        """End the run with an answer of its own."""
        context.result = af.AgentResponse(messages=[af.Message("assistant", ["done"])])
        raise af.MiddlewareTermination


class Stopper(af.AgentMiddleware):
    """Ends a run without an answer."""

    async def process(self, context: af.AgentContext, call_next: Any) -> None:
        """End the run."""
        raise af.MiddlewareTermination


async def test_a_run_that_a_middleware_ends(
    captured: Captured, server: EmbeddedServer, plain_client: Any, way: str
) -> None:
    """A middleware that answers in the agent's place ends the run as the framework does: without an error."""
    await run_plain(agent_of(plain_client, way, middleware=[Terminator()]))

    assert ([], {"workflow.run": "success", "PlannerAgent.execute": "success"}) == (server.requests, outcomes(captured))


async def test_a_run_that_a_middleware_ends_without_an_answer(
    captured: Captured, server: EmbeddedServer, plain_client: Any, way: str
) -> None:
    """A middleware that ends a run without an answer leaves the caller with none, streamed or not."""
    agent = agent_of(plain_client, way, middleware=[Stopper()])

    assert await agent.run("Go") is None
    assert [] == [update async for update in agent.run("Go", stream=True)]

    assert ["PlannerAgent.execute", "workflow.run"] * 2 == captured.names()
    assert {"success"} == set(outcomes(captured).values())


async def test_a_tool_that_a_middleware_answers(
    captured: Captured, server: EmbeddedServer, plain_client: Any, way: str
) -> None:
    """A function middleware that answers in the tool's place is no failure."""
    server.script(calls("create_task", title="Tea"))

    @af.function_middleware
    async def cache(context: af.FunctionInvocationContext, call_next: Any) -> None:
        context.result = "cached"
        raise af.MiddlewareTermination

    await agent_of(plain_client, way, tools=[create_task], middleware=[cache]).run("Go")

    assert {"success"} == set(outcomes(captured).values())
    assert_spent(captured, 1)


@pytest.mark.skipif(not hasattr(af, "UserInputRequiredException"), reason="this release has no such tools")
async def test_a_tool_that_waits_for_a_person(
    captured: Captured, server: EmbeddedServer, plain_client: Any, way: str
) -> None:
    """A tool that asks the user for something first has not failed, and neither has its run."""

    @af.tool(approval_mode="never_require")
    def publish() -> str:
        """Publish."""
        raise af.UserInputRequiredException([af.Content.from_oauth_consent_request("https://example.org/consent")])

    server.script(calls("publish"), says())
    answer = await agent_of(plain_client, way, tools=[publish]).run("Publish")

    assert ["oauth_consent_request"] == [each.type for each in answer.user_input_requests]
    assert {"success"} == set(outcomes(captured).values())
    assert "publish" in captured.names()


async def test_a_refused_call_is_blocked(server: EmbeddedServer, plain_client: Any) -> None:
    """A budget that refuses the call ends the run as blocked, though the framework wraps the refusal."""
    await assert_refused(
        server,
        ["agent_framework"],
        lambda: agent_of(plain_client, "one line").run("Go"),
        af.exceptions.ChatClientException,
    )


# --- workflows ------------------------------------------------------------------------------------


def chain_of(client: Any, way: str, **more: Any) -> Any:
    """Return the workflow Planner → Reviewer → Executor."""
    planner, reviewer, executor = (
        agent_of(client, way, name=name) for name in ("PlannerAgent", "ReviewerAgent", "ExecutorAgent")
    )
    return (
        af.WorkflowBuilder(start_executor=planner, **more)
        .add_edge(planner, reviewer)
        .add_edge(reviewer, executor)
        .build()
    )


CHAIN = [
    "workflow.run", "  PlannerAgent.execute", f"    chat {MODEL}", "  ReviewerAgent.execute", f"    chat {MODEL}",
    "  ExecutorAgent.execute", f"    chat {MODEL}",
]  # fmt: skip


@pytest.mark.parametrize("way", ["one line"])
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_workflow(captured: Captured, server: EmbeddedServer, plain_client: Any, streamed: bool) -> None:
    """Planner → Reviewer → Executor is one workflow run with three agents beneath."""
    server.script(says("plan"), says("fine"), says())
    workflow = chain_of(plain_client, "one line", name="taskpilot")

    if streamed:
        async for _ in workflow.run("Create a task", stream=True):
            pass
    else:
        await workflow.run("Create a task")

    assert captured.tree() == CHAIN
    assert "taskpilot" == captured.tags("workflow.run")["workflow"]
    assert {"success"} == set(outcomes(captured).values())
    assert_spent(captured, 3)


@pytest.mark.parametrize("way", ["middleware"])
async def test_a_workflow_with_middleware(captured: Captured, server: EmbeddedServer, plain_client: Any) -> None:
    """With middleware alone, a workflow block around it makes it one run."""
    server.script(says("plan"), says("fine"), says())
    workflow = chain_of(plain_client, "middleware")

    with tp.workflow("taskpilot"):
        await workflow.run("Create a task")

    assert captured.tree() == CHAIN
    assert_spent(captured, 3)


@pytest.mark.parametrize("way", ["one line"])
async def test_a_workflow_without_a_name(captured: Captured, server: EmbeddedServer, plain_client: Any) -> None:
    """A workflow that was given no name goes by its class: the id that the framework makes up is no label."""
    server.script(says("plan"), says("fine"), says())

    await chain_of(plain_client, "one line").run("Create a task")

    assert "Workflow" == captured.tags("workflow.run")["workflow"]


@pytest.mark.parametrize("way", ["one line"])
async def test_a_workflow_that_fails(captured: Captured, server: EmbeddedServer, plain_client: Any) -> None:
    """An agent that fails ends its workflow as failed; the one before it has succeeded."""
    server.script(says("plan"), *[Reply.error(400)] * 2)

    with pytest.raises(af.exceptions.ChatClientException):
        await chain_of(plain_client, "one line").run("Create a task")

    assert {"workflow.run": "error", "PlannerAgent.execute": "success", "ReviewerAgent.execute": "error"} == outcomes(
        captured
    )


@pytest.mark.parametrize("way", ["one line"])
@pytest.mark.parametrize("end", [*CLOSES[:1], "forget"])
async def test_a_workflow_that_is_left(captured: Captured, server: EmbeddedServer, plain_client: Any, end: str) -> None:
    """A consumer that leaves a workflow's stream cancels the run."""
    server.script(says("plan"), says("fine"), says())
    workflow = chain_of(plain_client, "one line")

    async def leave() -> None:
        stream = workflow.run("Create a task", stream=True)
        async for event in stream:
            if event.type == "executor_completed":
                break
        if end == "close":
            await stream.close()

    await leave()
    gc.collect()
    await asyncio.sleep(0.05)
    gc.collect()

    assert "cancelled" == captured.tags("workflow.run")["outcome"]
    assert 1 == captured.golden_signals().sample.runs


@pytest.mark.parametrize("way", ["one line"])
async def test_a_workflow_as_an_agent(captured: Captured, server: EmbeddedServer, plain_client: Any) -> None:
    """A workflow that is used as an agent is still one run."""
    server.script(says("plan"), says("fine"), says())

    await chain_of(plain_client, "one line", name="taskpilot").as_agent("TeamAgent").run("Create a task")

    assert captured.tree() == CHAIN
    assert_spent(captured, 3)


# --- tokens that only the framework tells ---------------------------------------------------------


class OwnClient(af.BaseChatClient):
    """A chat client of a provider whose own client nobody observes."""

    OTEL_PROVIDER_NAME = "openai"
    model = "gpt-4o-mini"

    def _inner_get_response(self, *, messages: Any, stream: bool, options: Any, **kwargs: Any) -> Any:
        details = af.UsageDetails(input_token_count=150, output_token_count=50, total_token_count=200)
        if stream:

            async def updates() -> AsyncIterator[Any]:
                yield af.ChatResponseUpdate(contents=[af.Content.from_text("do")], role="assistant", model=MODEL)
                yield af.ChatResponseUpdate(
                    contents=[af.Content.from_text("ne"), af.Content.from_usage(details)], role="assistant", model=MODEL
                )

            return af.ResponseStream(updates(), finalizer=af.ChatResponse.from_updates)

        async def answer() -> Any:
            return af.ChatResponse(
                messages=[af.Message("assistant", ["done"])], usage_details=details, model=MODEL, response_id="resp-1"
            )

        return answer()


class LayeredClient(af.FunctionInvocationLayer, af.ChatMiddlewareLayer, observability.ChatTelemetryLayer, OwnClient):
    """The same with all that the framework puts around a client."""


@pytest.mark.parametrize("run", RUNS)
async def test_usage_details(captured: Captured, way: str, run: Callable[[Any], Any]) -> None:
    """Where no observed client is beneath, the framework's usage is one LLM call, priced once."""
    await run(agent_of(LayeredClient(), way))

    assert ["workflow.run", "  PlannerAgent.execute", f"    chat {MODEL}"] == captured.tree()
    tags = captured.tags(f"chat {MODEL}")
    assert ("openai", "PlannerAgent") == (tags["gen_ai.provider.name"], tags["agent"])
    assert_spent(captured, 1)


@pytest.mark.parametrize("way", ["one line"])
@pytest.mark.parametrize("run", RUNS)
async def test_usage_details_of_an_agent_without_a_client(captured: Captured, run: Callable[[Any], Any]) -> None:
    """An agent that works elsewhere, and tells only what it used in all, is one LLM call."""

    class Elsewhere:
        def run(self, messages: Any = None, *, stream: bool = False, **kwargs: Any) -> Any:
            details = af.UsageDetails(input_token_count=150, output_token_count=50)
            response = af.AgentResponse(messages=[af.Message("assistant", ["done"])], usage_details=details)
            if stream:

                async def updates() -> AsyncIterator[Any]:
                    yield af.AgentResponseUpdate(contents=[af.Content.from_text("done")], role="assistant")

                return af.ResponseStream(updates(), finalizer=lambda _: response)

            async def answer() -> Any:
                return response

            return answer()

    class Remote(observability.AgentTelemetryLayer, Elsewhere, af.BaseAgent):  # type: ignore[misc] # found at run time
        pass

    await run(Remote(name="PlannerAgent"))

    assert ["workflow.run", "  PlannerAgent.execute", "    chat"] == captured.tree()
    assert (150, 50) == tuple(captured.tags("chat")[name] for name in ("input_tokens", "output_tokens"))


# --- the framework's own telemetry ----------------------------------------------------------------


@pytest.fixture
def application(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """An application whose own provider the framework's spans go to."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    monkeypatch.setattr(
        trace,
        "get_tracer",
        lambda instrumenting_module_name, *_, **__: provider.get_tracer(instrumenting_module_name),
    )
    yield exporter
    provider.shutdown()


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("enabled", [True, False])
async def test_the_frameworks_own_spans(
    application: InMemorySpanExporter,
    captured: Captured,
    server: EmbeddedServer,
    chat_client: Any,
    way: str,
    run: Callable[[Any], Any],
    enabled: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its telemetry on or off, each agent, tool and call is one span; without us its own are there again."""
    monkeypatch.setattr(observability.OBSERVABILITY_SETTINGS, "enable_instrumentation", enabled)
    server.script(*[calls("create_task", title="Tea"), says()] * 2)
    agent = agent_of(chat_client, way, tools=[create_task])

    await run(agent)

    assert [] == names(application.get_finished_spans())
    assert 5 == len(captured.spans)
    assert_spent(captured, 2)
    captured.handle.uninstrument()
    await run(agent)
    assert enabled == ("invoke_agent PlannerAgent" in names(application.get_finished_spans()))


# --- decorated tools ------------------------------------------------------------------------------


@tp.observed_tool
def look_up(title: Annotated[str, "What to look up."], limit: int = 3) -> str:
    """Look up tasks."""
    return f"{limit} of {title}"


def undecorated(title: Annotated[str, "What to look up."], limit: int = 3) -> str:
    """Look up tasks."""
    return f"{limit} of {title}"


@tp.observed_tool
async def look_up_later(title: Annotated[str, "What to look up."]) -> str:
    """Look up tasks, later."""
    return f"found {title}"


def test_a_decorated_tool_has_its_schema() -> None:
    """The framework reads the same name, text and schema off a decorated function."""
    plain, decorated = af.tool(name="look_up")(undecorated), af.tool(look_up)

    assert (plain.name, plain.description) == (decorated.name, decorated.description)
    theirs = {**plain.parameters(), "title": None}
    assert theirs == {**decorated.parameters(), "title": None}


@pytest.mark.parametrize("name", [None, "find"])
async def test_a_decorated_tool_is_one_span(
    captured: Captured, server: EmbeddedServer, plain_client: Any, way: str, name: str | None
) -> None:
    """The framework's call and the decorator's are one call, whatever either calls it; an async tool likewise."""
    server.script(calls(name or "look_up", title="Tea", limit=5), calls("look_up_later", title="Tea"), says())
    tool = af.tool(look_up, name=name, approval_mode="never_require")
    later = af.tool(look_up_later, approval_mode="never_require")

    await run_plain(agent_of(plain_client, way, tools=[tool, later]))

    chat = f"    chat {MODEL}"
    tree = ["workflow.run", "  PlannerAgent.execute", chat, f"    {name or 'look_up'}", chat, "    look_up_later", chat]
    assert captured.tree() == tree
    results = [each["content"] for each in server.requests[-1].payload["messages"] if each["role"] == "tool"]
    assert ["5 of Tea", "found Tea"] == results


async def test_a_decorated_tool_beneath_another(
    captured: Captured, server: EmbeddedServer, plain_client: Any, way: str
) -> None:
    """A decorated tool that a tool of the framework calls is a call of its own."""
    server.script(calls("search", title="Tea"), says())

    @af.tool(approval_mode="never_require")
    def search(title: str) -> str:
        return look_up(title)

    await run_plain(agent_of(plain_client, way, tools=[search]))

    assert "      look_up" in captured.tree()


# --- policies -------------------------------------------------------------------------------------


@pytest.mark.parametrize("decorated", [False, True])
async def test_a_policy_denies_a_tool(server: EmbeddedServer, plain_client: Any, way: str, decorated: bool) -> None:
    """A denied tool does not run; the framework tells the model, and the denial counts once."""
    server.script(calls("look_up", title="Tea"), says())
    ran: list[str] = []

    def plain(title: str) -> str:
        ran.append(title)
        return title

    plain.__name__ = "look_up"
    tool = af.tool(tp.observed_tool(plain) if decorated else plain, approval_mode="never_require")
    policy = tp.ToolAllowList({"PlannerAgent": ["create_task"]})
    with capture(frameworks=["agent_framework"] if way == "one line" else (), policies=[policy]) as captured:
        await run_plain(agent_of(plain_client, way, tools=[tool]))

        assert ([], "blocked") == (ran, captured.tags("look_up")["outcome"])
        assert 1 == captured.golden_signals().violations
    ours.quiet().undo()


@pytest.mark.parametrize("run", RUNS)
async def test_a_guardrail_answers_in_the_agents_place(
    server: EmbeddedServer, plain_client: Any, way: str, run: Callable[[Any], Any]
) -> None:
    """A guardrail that blocks what was asked may answer in the framework's own words; no call is made."""
    guardrail = tp.Guardrail(
        "no-tasks", check_input=lambda text: "Create" not in text, on_block="replace", replacement="done"
    )
    with capture(frameworks=["agent_framework"] if way == "one line" else (), guardrails=[guardrail]) as captured:
        await run(agent_of(plain_client, way))

        assert [] == server.requests
        assert 1 == captured.metrics.get_counter("agent.PlannerAgent.guardrails.blocked")
    ours.quiet().undo()


# --- our own failures, and the undo ---------------------------------------------------------------


@pytest.mark.parametrize("run", RUNS)
async def test_our_failures_stay_ours(
    server: EmbeddedServer,
    chat_client: Any,
    way: str,
    run: Callable[[Any], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where our own code fails at every turn, the framework and its caller see what they would without us."""
    server.script(calls("create_task", title="Tea"), says())

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("ours")

    with capture(frameworks=["agent_framework"] if way == "one line" else (), reraise=False) as captured:
        for name in ("said", "by_name", "_signals"):
            monkeypatch.setattr(f"taskpilot_instrument.integrations._agent_framework_runs.{name}", fail)
        monkeypatch.setattr("taskpilot_instrument.integrations._agent_framework_streams.tell_usage", fail)
        monkeypatch.setattr("taskpilot_instrument._framework_runs.FrameworkRun.__init__", fail)
        await run(agent_of(chat_client, way, tools=[create_task]))
        monkeypatch.undo()
        assert _guard.swallowed()
        assert captured is not None
    ours.quiet().undo()


@pytest.mark.parametrize("way", ["one line"])
async def test_the_undo(captured: Captured, server: EmbeddedServer, plain_client: Any) -> None:
    """Undone, every method and property of the framework is its own again."""
    classes = [
        (af.RawAgent, "run"), (af.FunctionTool, "invoke"), (af.BaseChatClient, "get_response"), (af.Workflow, "run"),
        (observability.ObservabilitySettings, "ENABLED"),
    ]  # fmt: skip
    patched = [vars(owner)[name] for owner, name in classes]
    assert not health().missing

    captured.handle.uninstrument()

    assert all(vars(owner)[name] is not before for (owner, name), before in zip(classes, patched, strict=True))
    assert inspect.isfunction(vars(af.RawAgent)["run"])
    server.script(says())
    await run_plain(agent_of(plain_client, "one line"))
    assert [] == captured.spans


async def test_middleware_without_instrument(server: EmbeddedServer, plain_client: Any) -> None:
    """Middleware before ``instrument()`` and after ``uninstrument()`` lets everything through."""
    server.script(calls("create_task", title="Tea"), says(), says())
    agent = agent_of(plain_client, "middleware", tools=[create_task])

    await run_plain(agent)
    await run_stream(agent)
    ours.quiet().undo()


async def test_content(server: EmbeddedServer, plain_client: Any, way: str) -> None:
    """Where content is captured, agents and tools have what they were given and what they gave."""
    server.script(calls("create_task", title="Tea"), says())
    frameworks = ["agent_framework"] if way == "one line" else ()
    with capture(frameworks=frameworks, capture_content=True) as captured:
        await run_plain(agent_of(plain_client, way, tools=[create_task]))

        agent, tool = captured.tags("PlannerAgent.execute"), captured.tags("create_task")
        assert "Create a task" in agent["gen_ai.input.messages"]
        assert '{"title": "Tea"}' == tool["gen_ai.tool.call.arguments"]
        assert "created Tea" in tool["gen_ai.tool.call.result"]
    ours.quiet().undo()
