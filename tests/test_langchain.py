"""LangChain and LangGraph, with their real packages and the real openai client."""

import asyncio
import gc
import operator
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, TypedDict

import openai
import pytest
from frameworks import MODEL, assert_cancelled, assert_refused, assert_spent, calls, need, outcomes, says, until

import taskpilot_instrument as tp
from taskpilot_instrument import _guard
from taskpilot_instrument.embedded import EmbeddedServer, Reply
from taskpilot_instrument.testing import Captured, capture

need("langchain_openai", "langgraph")

from langchain_core.runnables import RunnableLambda  # noqa: E402 - only where they are installed
from langchain_core.tools import BaseTool, StructuredTool, tool  # noqa: E402
from langchain_openai import ChatOpenAI  # noqa: E402
from langgraph.checkpoint.memory import InMemorySaver  # noqa: E402
from langgraph.graph import END, START, MessagesState, StateGraph  # noqa: E402
from langgraph.prebuilt import ToolNode, tools_condition  # noqa: E402
from langgraph.pregel import Pregel, _runner  # noqa: E402
from langgraph.types import Command, RetryPolicy, interrupt  # noqa: E402

from taskpilot_instrument.integrations import langchain as ours  # noqa: E402

CHAT = f"chat {MODEL}"


@pytest.fixture
def captured() -> Iterator[Captured]:
    """Instrumentation that records in memory."""
    with capture(frameworks=["langchain"]) as everything:
        yield everything


@pytest.fixture
def model(client: openai.OpenAI, aclient: openai.AsyncOpenAI) -> Any:
    """The framework's chat model with the real clients."""
    return ChatOpenAI(
        model=MODEL, client=client.chat.completions, async_client=aclient.chat.completions, root_client=client,
        root_async_client=aclient, api_key="sk-test", stream_usage=True, max_retries=0,
    )  # fmt: skip


@tool
def create_task(title: str) -> str:
    """Create a task."""
    return f"created {title}"


def agent_of(model: Any, *tools: Any, name: str | None = "PlannerAgent", checkpointer: Any = None) -> Any:
    """Return a graph of a model and its tools, as the framework's makers of agents build it."""
    bound = model.bind_tools(tools) if tools else model

    def think(state: Any) -> Any:
        return {"messages": [bound.invoke(state["messages"])]}

    async def think_later(state: Any) -> Any:
        return {"messages": [await bound.ainvoke(state["messages"])]}

    graph: Any = StateGraph(MessagesState)
    graph.add_node("agent", RunnableLambda(think, think_later))
    graph.add_edge(START, "agent")
    if tools:
        graph.add_node("tools", ToolNode(list(tools), handle_tool_errors=False))
        graph.add_conditional_edges("agent", tools_condition)
        graph.add_edge("tools", "agent")
    return graph.compile(name=name, checkpointer=checkpointer)


GO: dict[str, Any] = {"messages": [("user", "Create a task")]}


async def run_invoke(graph: Any, given: Any = GO) -> Any:
    """Run a graph to its end."""
    return graph.invoke(given)


async def run_ainvoke(graph: Any, given: Any = GO) -> Any:
    """Run a graph to its end, in tasks."""
    return await graph.ainvoke(given)


async def run_stream(graph: Any, given: Any = GO) -> Any:
    """Read a graph's stream to its end."""
    return list(graph.stream(given, stream_mode="messages"))


async def run_astream(graph: Any, given: Any = GO) -> Any:
    """Read a graph's async stream to its end."""
    return [chunk async for chunk in graph.astream(given, stream_mode="messages")]


async def run_thread(graph: Any, given: Any = GO) -> Any:
    """Run a graph in another thread."""
    return await asyncio.to_thread(graph.invoke, given)


async def run_events(graph: Any, given: Any = GO) -> Any:
    """Read a graph's events to their end."""
    return [event async for event in graph.astream_events(given, version="v2")]


RUNS: list[Callable[..., Any]] = [run_invoke, run_ainvoke, run_stream, run_astream, run_thread, run_events]


# --- agents and tools -----------------------------------------------------------------------------


@pytest.mark.parametrize("run", RUNS)
async def test_an_agent_with_a_tool(
    captured: Captured, server: EmbeddedServer, model: Any, run: Callable[..., Any]
) -> None:
    """A model with its tools is one workflow, one agent, its calls and its tool, each once."""
    server.script(calls("create_task", title="Tea"), says())

    await run(agent_of(model, create_task))

    expected = ["workflow.run", "  PlannerAgent.execute", f"    {CHAT}", "    create_task", f"    {CHAT}"]
    assert expected == captured.tree()
    assert {"success"} == set(outcomes(captured).values())
    assert "PlannerAgent" == captured.tags("create_task")["agent"]
    assert "Create a task." == captured.tags("create_task")["gen_ai.tool.description"]
    assert captured.tags("create_task")["gen_ai.tool.call.id"]
    assert_spent(captured, 2)


@pytest.mark.parametrize("run", RUNS)
async def test_tools_beside_each_other(
    captured: Captured, server: EmbeddedServer, model: Any, run: Callable[..., Any]
) -> None:
    """Tools that the model asks for at once run in threads or tasks, each with what it calls beneath it."""
    server.script(
        Reply(tool_calls=calls("ask", text="a").tool_calls + calls("ask", text="b").tool_calls, usage=says().usage),
        says("a"), says("b"), says(),
    )  # fmt: skip

    def ask(text: str) -> str:
        """Ask the model."""
        return str(model.invoke(text).content)

    async def ask_later(text: str) -> str:
        """Ask the model."""
        return str((await model.ainvoke(text)).content)

    await run(agent_of(model, StructuredTool.from_function(ask, ask_later, name="ask")))

    tree = captured.tree()
    assert [f"      {CHAT}"] * 2 == [line for line in tree if line.startswith("      ")]
    assert 2 == tree.count("    ask")
    assert_spent(captured, 4)


@pytest.mark.parametrize("run", RUNS)
async def test_what_a_tool_calls_is_beneath_it_and_what_follows_is_not(
    captured: Captured, model: Any, server: EmbeddedServer, run: Callable[..., Any]
) -> None:
    """A tool that is called directly is over when it returns; nothing of it stays current."""
    server.script(says(), says())

    with tp.workflow("triage"):
        if run is run_ainvoke:
            await create_task.ainvoke({"title": "Tea"})
            await model.ainvoke("hello")
        else:
            create_task.invoke({"title": "Tea"})
            model.invoke("hello")

    assert ["workflow.run", "  create_task", f"  {CHAT}"] == captured.tree()


@pytest.mark.parametrize(
    ("model_node", "beside"),
    [
        ("model", "Log.before_agent"),
        ("model", "Log.before_model"),
        ("model", "Log.after_model"),
        ("model", "Log.after_agent"),
        ("agent", "pre_model_hook"),
        ("agent", "post_model_hook"),
        ("agent", "generate_structured_response"),
    ],
)
async def test_an_agent_without_tools_has_hooks(
    captured: Captured, server: EmbeddedServer, model: Any, model_node: str, beside: str
) -> None:
    """What the makers of agents put around the model makes no workflow of an agent that has no tools."""
    server.script(says())
    graph: Any = StateGraph(MessagesState)
    graph.add_node(model_node, lambda state: {"messages": [model.invoke(state["messages"])]})
    graph.add_node(beside, lambda _state: {})
    graph.add_edge(START, model_node)
    graph.add_edge(model_node, beside)

    graph.compile(name="PlannerAgent").invoke(GO)

    assert ["workflow.run", "  PlannerAgent.execute", f"    {CHAT}"] == captured.tree()


async def test_agents_beside_each_other(captured: Captured, server: EmbeddedServer, model: Any) -> None:
    """Agents that run at the same time, in tasks and in threads, keep their calls apart."""
    server.script(*[says()] * 4)
    agents = [agent_of(model, name=f"Agent{number}") for number in range(4)]

    await asyncio.gather(*(run(agent) for run, agent in zip([run_ainvoke, run_thread] * 2, agents, strict=True)))

    by_id = {span.context.span_id: span for span in captured.spans if span.context is not None}
    chats = [span for span in captured.spans if span.name == CHAT]
    assert {f"Agent{number}.execute" for number in range(4)} == {by_id[span.parent.span_id].name for span in chats}
    assert_spent(captured, 4, runs=4)


async def test_a_run_within_a_workflow_of_the_caller(captured: Captured, server: EmbeddedServer, model: Any) -> None:
    """Within the caller's own workflow an agent opens no other."""
    server.script(says())

    with tp.workflow("triage"):
        await run_invoke(agent_of(model))

    assert ["workflow.run", "  PlannerAgent.execute", f"    {CHAT}"] == captured.tree()
    assert_spent(captured, 1)


# --- workflows ------------------------------------------------------------------------------------


class Notes(TypedDict):
    """What the nodes of a workflow write."""

    notes: Annotated[list[str], operator.add]


def chain_of(model: Any, *, name: str | None = "taskpilot") -> Any:
    """Return the workflow Planner → Reviewer → Executor."""
    graph: Any = StateGraph(Notes)
    names = ["PlannerAgent", "ReviewerAgent", "ExecutorAgent"]
    for each in names:

        def step(_: Notes) -> Any:
            return {"notes": [model.invoke("go").content]}

        graph.add_node(each, step)
    graph.add_edge(START, names[0])
    graph.add_edge(names[0], names[1])
    graph.add_edge(names[1], names[2])
    graph.add_edge(names[2], END)
    return graph.compile(name=name)


CHAIN = [
    "workflow.run", "  PlannerAgent.execute", f"    {CHAT}", "  ReviewerAgent.execute", f"    {CHAT}",
    "  ExecutorAgent.execute", f"    {CHAT}",
]  # fmt: skip


@pytest.mark.parametrize("run", RUNS)
async def test_a_workflow(captured: Captured, server: EmbeddedServer, model: Any, run: Callable[..., Any]) -> None:
    """Planner → Reviewer → Executor is one workflow run with three agents beneath."""
    server.script(says("plan"), says("fine"), says())

    await run(chain_of(model), {"notes": []})

    assert captured.tree() == CHAIN
    assert "taskpilot" == captured.tags("workflow.run")["workflow"]
    assert {"success"} == set(outcomes(captured).values())
    assert_spent(captured, 3)


@pytest.mark.parametrize("run", RUNS)
async def test_agents_as_nodes(captured: Captured, server: EmbeddedServer, model: Any, run: Callable[..., Any]) -> None:
    """A node that is an agent itself is one agent, by its own name or by that of the node."""
    server.script(calls("create_task", title="Tea"), says(), says())
    graph: Any = StateGraph(MessagesState)
    graph.add_node("planner", agent_of(model, create_task))
    graph.add_node("reviewer", agent_of(model, name=None))
    graph.add_edge(START, "planner")
    graph.add_edge("planner", "reviewer")

    await run(graph.compile(name="taskpilot"))

    assert [
        "workflow.run", "  PlannerAgent.execute", f"    {CHAT}", "    create_task", f"    {CHAT}",
        "  reviewer.execute", f"    {CHAT}",
    ] == captured.tree()  # fmt: skip
    assert_spent(captured, 3)


@pytest.mark.parametrize("run", RUNS)
async def test_nodes_beside_each_other(
    captured: Captured, server: EmbeddedServer, model: Any, run: Callable[..., Any]
) -> None:
    """Nodes that run at the same time, each in its thread or task, keep their calls apart."""
    server.script(*[says()] * 3)
    graph: Any = StateGraph(Notes)
    for number in range(3):

        def step(_: Notes) -> Any:
            return {"notes": [model.invoke("go").content]}

        graph.add_node(f"Agent{number}", step)
        graph.add_edge(START, f"Agent{number}")

    await run(graph.compile(name="taskpilot"), {"notes": []})

    tree = captured.tree()
    assert "workflow.run" == tree[0]
    assert [f"    {CHAT}"] * 3 == tree[2::2]
    assert {f"  Agent{number}.execute" for number in range(3)} == set(tree[1::2])
    assert_spent(captured, 3)


# --- how a run ends -------------------------------------------------------------------------------


@pytest.mark.parametrize("run", RUNS)
async def test_a_failing_call(captured: Captured, server: EmbeddedServer, model: Any, run: Callable[..., Any]) -> None:
    """The provider's error reaches the caller as it is, and ends the run as one."""
    server.script(Reply.error(400))

    with pytest.raises(openai.BadRequestError) as raised:
        await run(agent_of(model))

    assert {"workflow.run": "error", "PlannerAgent.execute": "error"} == outcomes(captured)
    assert raised.type.__name__ == captured.tags("PlannerAgent.execute")["error.type"]


@pytest.mark.parametrize("run", [run_invoke, run_ainvoke])
async def test_a_failing_tool(captured: Captured, server: EmbeddedServer, model: Any, run: Callable[..., Any]) -> None:
    """A tool that raises has failed, and its error ends the run unless the graph handles it."""
    server.script(calls("break_down"))

    @tool
    def break_down() -> str:
        """Break."""
        raise ZeroDivisionError("no")

    with pytest.raises(ZeroDivisionError):
        await run(agent_of(model, break_down))

    assert {"workflow.run": "error", "PlannerAgent.execute": "error", "break_down": "error"} == outcomes(captured)


async def test_a_node_that_is_tried_again(captured: Captured, server: EmbeddedServer, model: Any) -> None:
    """The tries of one node are one agent run."""
    server.script(Reply.error(400), says())

    def step(_: Notes) -> Any:
        return {"notes": [model.invoke("go").content]}

    graph: Any = StateGraph(Notes)
    again = RetryPolicy(initial_interval=0.01, jitter=False, retry_on=openai.BadRequestError)
    graph.add_node("PlannerAgent", step, retry_policy=again)
    graph.add_edge(START, "PlannerAgent")

    graph.compile(name="taskpilot").invoke({"notes": []})

    assert ["workflow.run", "  PlannerAgent.execute", f"    {CHAT}", f"    {CHAT}"] == captured.tree()
    assert {"success"} == set(outcomes(captured).values())


@pytest.mark.parametrize("run", [run_ainvoke, run_astream])
async def test_a_cancelled_run(captured: Captured, server: EmbeddedServer, model: Any, run: Callable[..., Any]) -> None:
    """A cancelled task ends its run as cancelled."""
    await assert_cancelled(captured, server, run(agent_of(model)))


@pytest.mark.parametrize("leave", ["close", "forget"])
async def test_a_consumer_that_leaves_early(
    captured: Captured, server: EmbeddedServer, model: Any, client: openai.OpenAI, leave: str
) -> None:
    """A consumer that leaves a stream ends its run as cancelled, once; what the consumer does is not the agent's."""
    server.script(says("plan"), says("mine"), says("fine"), says())
    stream = chain_of(model).stream({"notes": []})

    next(stream)
    client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "mine"}])
    if leave == "close":
        stream.close()
    del stream
    gc.collect()

    assert "cancelled" == captured.tags("workflow.run")["outcome"]
    assert 1 == captured.golden_signals().sample.runs
    mine = next(span for span in captured.spans if span.name == CHAT and span.parent is None)
    assert "agent" not in (mine.attributes or {})


@pytest.mark.parametrize("leave", ["close", "forget"])
async def test_a_consumer_that_leaves_an_async_stream_early(
    captured: Captured, server: EmbeddedServer, model: Any, aclient: openai.AsyncOpenAI, leave: str
) -> None:
    """The same of an async stream."""
    server.script(says("plan"), says("mine"), says("fine"), says())
    stream = chain_of(model).astream({"notes": []})

    await anext(stream)
    await aclient.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "mine"}])
    if leave == "close":
        await stream.aclose()
    del stream
    gc.collect()
    await until(lambda: "workflow.run" in captured.names())

    assert "cancelled" == captured.tags("workflow.run")["outcome"]
    assert 1 == captured.golden_signals().sample.runs
    assert 1 == sum(span.name == CHAT and span.parent is None for span in captured.spans)


@pytest.mark.parametrize("run", ["invoke", "ainvoke"])
async def test_a_graph_that_waits_for_a_person(
    captured: Captured, server: EmbeddedServer, model: Any, run: str
) -> None:
    """A tool that waits for a person ends nothing as an error; each part of the run is a run."""
    server.script(calls("ask_person", text="sure?"), says())

    @tool
    def ask_person(text: str) -> str:
        """Ask a person."""
        return str(interrupt(text))

    graph = agent_of(model, ask_person, checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    for given in (GO, Command(resume="yes")):
        if run == "invoke":
            graph.invoke(given, config)
        else:
            await graph.ainvoke(given, config)

    assert {"success"} == set(outcomes_of_all(captured))
    assert_spent(captured, 2, runs=2)


def outcomes_of_all(captured: Captured) -> list[Any]:
    """Return the outcome of each workflow, agent and tool run."""
    return [(span.attributes or {})["outcome"] for span in captured.spans if span.name != CHAT]


async def test_a_hand_over_to_the_graph_around(captured: Captured, server: EmbeddedServer, model: Any) -> None:
    """A node that hands over to another graph's node has done its part, though the framework raises for it."""
    server.script(says("over"), says())

    def hand_over(_: Notes) -> Any:
        return Command(goto="ExecutorAgent", graph=Command.PARENT, update={"notes": [model.invoke("go").content]})

    def execute(_: Notes) -> Any:
        return {"notes": [model.invoke("go").content]}

    inner: Any = StateGraph(Notes)
    inner.add_node("PlannerAgent", hand_over)
    inner.add_edge(START, "PlannerAgent")
    outer: Any = StateGraph(Notes)
    outer.add_node("planning", inner.compile(name="planning"), destinations=("ExecutorAgent",))
    outer.add_node("ExecutorAgent", execute)
    outer.add_edge(START, "planning")

    await outer.compile(name="taskpilot").ainvoke({"notes": []})

    assert captured.tree() == [*CHAIN[:3], *CHAIN[5:]]
    assert {"success"} == set(outcomes(captured).values())
    assert_spent(captured, 2)


async def test_a_refused_call_is_blocked(server: EmbeddedServer, model: Any) -> None:
    """A budget that refuses the call ends the run as blocked, and the caller gets the refusal."""
    await assert_refused(server, ["langchain"], lambda: run_invoke(agent_of(model)))


# --- decorated tools, policies --------------------------------------------------------------------


@tp.observed_tool
def look_up(title: str, limit: int = 3) -> str:
    """Look up tasks."""
    return f"{limit} of {title}"


@tp.observed_tool
async def look_up_later(title: str) -> str:
    """Look up tasks, later."""
    return f"found {title}"


@tp.observed_tool(name="search")
class Search(BaseTool):
    """A tool that is a class of its own."""

    name: str = "search"
    description: str = "Search."

    def _run(self, title: str) -> str:
        return f"found {title}"


def test_a_decorated_tool_has_its_schema() -> None:
    """The framework reads the same name, text and schema off a decorated function."""
    plain, decorated = tool(look_up.__wrapped__), tool(look_up)  # type: ignore[attr-defined] # the original

    assert (plain.name, plain.description, plain.args) == (decorated.name, decorated.description, decorated.args)


@pytest.mark.parametrize("name", [None, "find"])
@pytest.mark.parametrize("run", [run_ainvoke, run_astream])
async def test_a_decorated_tool_is_one_span(
    captured: Captured, server: EmbeddedServer, model: Any, run: Callable[..., Any], name: str | None
) -> None:
    """The framework's call and the decorator's are one call, whatever either calls it; an async tool likewise."""
    server.script(calls(name or "look_up", title="Tea", limit=5), calls("look_up_later", title="Tea"), says())
    first = StructuredTool.from_function(look_up, name=name)
    then = StructuredTool.from_function(coroutine=look_up_later)

    await run(agent_of(model, first, then))

    assert [
        "workflow.run", "  PlannerAgent.execute", f"    {CHAT}", f"    {name or 'look_up'}", f"    {CHAT}",
        "    look_up_later", f"    {CHAT}",
    ] == captured.tree()  # fmt: skip
    results = [each["content"] for each in server.requests[-1].payload["messages"] if each["role"] == "tool"]
    assert ["5 of Tea", "found Tea"] == results


@pytest.mark.parametrize("run", [run_invoke, run_ainvoke])
async def test_a_decorated_class_is_one_span(
    captured: Captured, server: EmbeddedServer, model: Any, run: Callable[..., Any]
) -> None:
    """A tool class of the framework's that is decorated is one call, too."""
    server.script(calls("search", title="Tea"), says())

    await run(agent_of(model, Search()))

    expected = ["workflow.run", "  PlannerAgent.execute", f"    {CHAT}", "    search", f"    {CHAT}"]
    assert expected == captured.tree()


@pytest.mark.parametrize("decorated", [False, True])
@pytest.mark.parametrize("run", [run_invoke, run_ainvoke])
async def test_a_policy_denies_a_tool(
    server: EmbeddedServer, model: Any, decorated: bool, run: Callable[..., Any]
) -> None:
    """A denied tool does not run, and the denial counts once."""
    server.script(calls("look_up", title="Tea"))
    ran: list[str] = []

    def plain(title: str) -> str:
        """Look up."""
        ran.append(title)
        return title

    plain.__name__ = "look_up"
    policy = tp.ToolAllowList({"PlannerAgent": ["create_task"]})
    with capture(frameworks=["langchain"], policies=[policy]) as captured:
        with pytest.raises(tp.PolicyViolationError):
            await run(agent_of(model, tool(tp.observed_tool(plain) if decorated else plain)))

        assert ([], "blocked") == (ran, captured.tags("look_up")["outcome"])
        assert "blocked" == captured.tags("workflow.run")["outcome"]
        assert 1 == captured.golden_signals().violations


@pytest.mark.parametrize("run", [run_invoke, run_ainvoke, run_stream, run_astream])
async def test_a_guardrail_blocks_what_was_asked(server: EmbeddedServer, model: Any, run: Callable[..., Any]) -> None:
    """A guardrail that blocks what was asked of an agent keeps it from running."""
    guardrail = tp.Guardrail("no-tasks", check_input=lambda text: "Create" not in text)
    with capture(frameworks=["langchain"], guardrails=[guardrail]) as captured:
        with pytest.raises(tp.GuardrailBlockedError):
            await run(agent_of(model))

        assert [] == server.requests
        assert {"blocked"} == set(outcomes(captured).values())


# --- our own failures, and the undo ---------------------------------------------------------------


@pytest.mark.parametrize("run", RUNS)
async def test_our_failures_stay_ours(
    server: EmbeddedServer, model: Any, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where our own code fails at every turn, the framework and its caller see what they would without us."""
    server.script(calls("create_task", title="Tea"), says())

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("ours")

    with capture(frameworks=["langchain"], reraise=False):
        for name in ("begin", "begin_tool", "_is_agent", "_signals", "_by_name"):
            monkeypatch.setattr(ours, name, fail)
        assert await run(agent_of(model, create_task))
        assert {"start"} == set(_guard.swallowed())


async def test_the_undo(captured: Captured, server: EmbeddedServer, model: Any) -> None:
    """Undone, nothing is observed, and every method of the frameworks is its own again."""
    server.script(calls("create_task", title="Tea"), says())
    places = [(BaseTool, "run"), (BaseTool, "arun"), (Pregel, "stream"), (Pregel, "astream")]
    places += [(_runner, "run_with_retry"), (_runner, "arun_with_retry")]
    patched = [vars(owner)[name] for owner, name in places]
    assert not captured.handle.health().missing

    captured.handle.uninstrument()

    now = [vars(owner)[name] for owner, name in places]
    assert [each.__wrapped__ for each in patched] == now
    await run_invoke(agent_of(model, create_task))
    assert [] == captured.spans


def test_a_pool_of_threads(captured: Captured, server: EmbeddedServer, model: Any) -> None:
    """Graphs that run in a pool's threads are each a run of their own."""
    server.script(*[says()] * 4)
    graph = agent_of(model)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(graph.invoke, [GO] * 4))

    assert ["workflow.run", "  PlannerAgent.execute", f"    {CHAT}"] * 4 == captured.tree()
    assert_spent(captured, 4, runs=4)


async def test_content(server: EmbeddedServer, model: Any) -> None:
    """Where content is captured, agents and tools have what they were given, and tools what they gave."""
    server.script(calls("create_task", title="Tea"), says())
    with capture(frameworks=["langchain"], capture_content=True) as captured:
        await run_invoke(agent_of(model, create_task))

        agent, tags = captured.tags("PlannerAgent.execute"), captured.tags("create_task")
        assert "Create a task" in agent["gen_ai.input.messages"]
        assert '{"title": "Tea"}' == tags["gen_ai.tool.call.arguments"]
        assert "created Tea" == tags["gen_ai.tool.call.result"]
