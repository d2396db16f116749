"""Pydantic AI, with its real package and the real openai client."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from frameworks import MODEL, assert_cancelled, assert_refused, assert_spent, calls, need, outcomes, says

import taskpilot_instrument as tp
from taskpilot_instrument import _guard
from taskpilot_instrument.embedded import EmbeddedServer, Reply
from taskpilot_instrument.testing import Captured, capture

need("pydantic_ai")

import pydantic_ai as pa  # noqa: E402 - only where it is installed
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel  # noqa: E402
from pydantic_ai.providers.openai import OpenAIProvider  # noqa: E402

from taskpilot_instrument.integrations import pydantic_ai as ours  # noqa: E402

CHAT = f"chat {MODEL}"


@pytest.fixture(params=["one line", "capability", "both"])
def way(request: pytest.FixtureRequest) -> str:
    """The way in which the framework is put under observation."""
    return str(request.param)


@pytest.fixture
def frameworks(way: str) -> tuple[str, ...]:
    """What ``instrument(frameworks=…)`` is given."""
    return () if way == "capability" else ("pydantic_ai",)


@pytest.fixture
def captured(frameworks: tuple[str, ...]) -> Iterator[Captured]:
    """Instrumentation that records in memory."""
    with capture(frameworks=frameworks) as everything:
        yield everything


@pytest.fixture(params=[OpenAIChatModel, OpenAIResponsesModel], ids=["chat", "responses"])
def model(request: pytest.FixtureRequest, aclient: openai.AsyncOpenAI) -> Any:
    """The framework's model on the chat completions and on the responses API."""
    return request.param(MODEL, provider=OpenAIProvider(openai_client=aclient))


@pytest.fixture
def chat_model(aclient: openai.AsyncOpenAI) -> Any:
    """The framework's model, where one API is enough."""
    return OpenAIChatModel(MODEL, provider=OpenAIProvider(openai_client=aclient))


def create_task(title: str) -> str:
    """Create a task.

    :param title: What to do.
    """
    return f"created {title}"


def agent_of(model: Any, way: str, *tools: Any, name: str | None = "PlannerAgent", **more: Any) -> Any:
    """Return an agent that is observed in the given way."""
    observed = [] if way == "one line" else [ours.capability()]
    return pa.Agent(model, name=name, tools=tools, capabilities=observed, **more)


async def run_plain(agent: Any) -> None:
    """Run an agent to its end."""
    assert "done" == (await agent.run("Create a task")).output


async def run_stream(agent: Any) -> None:
    """Read an agent's stream to its end."""
    async with agent.run_stream("Create a task") as result:
        assert ["done"] == [text async for text in result.stream_text(delta=False)][-1:]


async def run_iter(agent: Any) -> None:
    """Go through an agent's steps."""
    async with agent.iter("Create a task") as run:
        async for _ in run:
            pass
    assert "done" == run.result.output


RUNS: list[Callable[[Any], Any]] = [run_plain, run_stream, run_iter]


# --- agents and tools -----------------------------------------------------------------------------


@pytest.mark.parametrize("run", RUNS)
async def test_an_agent_with_a_tool(
    captured: Captured, server: EmbeddedServer, model: Any, way: str, run: Callable[[Any], Any]
) -> None:
    """A run is one workflow, one agent, its calls and its tool, each once."""
    server.script(calls("create_task", title="Tea"), says())

    await run(agent_of(model, way, create_task))

    expected = ["workflow.run", "  PlannerAgent.execute", f"    {CHAT}", "    create_task", f"    {CHAT}"]
    assert expected == captured.tree()
    assert {"success"} == set(outcomes(captured).values())
    assert "PlannerAgent" == captured.tags("create_task")["agent"]
    assert "Create a task." == captured.tags("create_task")["gen_ai.tool.description"]
    assert captured.tags("create_task")["gen_ai.tool.call.id"]
    assert_spent(captured, 2)


async def test_agents_beside_each_other(captured: Captured, server: EmbeddedServer, chat_model: Any, way: str) -> None:
    """Agents that run at the same time keep their calls apart."""
    server.script(*[says()] * 4)
    agents = [agent_of(chat_model, way, name=f"Agent{number}") for number in range(4)]

    await asyncio.gather(*(run(agent) for run, agent in zip([run_plain, run_stream] * 2, agents, strict=True)))

    by_id = {span.context.span_id: span for span in captured.spans if span.context is not None}
    chats = [span for span in captured.spans if span.name == CHAT]
    assert {f"Agent{number}.execute" for number in range(4)} == {by_id[span.parent.span_id].name for span in chats}
    assert_spent(captured, 4, runs=4)


async def test_tools_beside_each_other(captured: Captured, server: EmbeddedServer, chat_model: Any, way: str) -> None:
    """Tools that the model asks for at once, in threads and in tasks, each have a span beneath the agent."""
    both = Reply(tool_calls=calls("create_task", title="a").tool_calls + calls("later", title="b").tool_calls)
    server.script(both, says())

    async def later(title: str) -> str:
        return title

    await run_plain(agent_of(chat_model, way, create_task, later))

    assert {"    create_task", "    later"} <= set(captured.tree())


async def test_an_agent_that_a_tool_runs(captured: Captured, server: EmbeddedServer, chat_model: Any, way: str) -> None:
    """An agent that another one's tool runs is beneath that tool call."""
    server.script(calls("review", title="Tea"), says("fine"), says())
    reviewer = agent_of(chat_model, way, name="ReviewerAgent")

    async def review(title: str) -> str:
        return str((await reviewer.run(title)).output)

    await run_plain(agent_of(chat_model, way, review))

    assert [
        "workflow.run", "  PlannerAgent.execute", f"    {CHAT}", "    review", "      ReviewerAgent.execute",
        f"        {CHAT}", f"    {CHAT}",
    ] == captured.tree()  # fmt: skip
    assert_spent(captured, 3)


async def test_a_run_within_a_workflow_of_the_caller(
    captured: Captured, server: EmbeddedServer, chat_model: Any, way: str
) -> None:
    """Within the caller's own workflow an agent opens no other, and nothing of it stays current."""
    server.script(says(), says(), says())
    agent = agent_of(chat_model, way)

    with tp.workflow("triage"):
        for run in (run_plain, run_stream, run_iter):
            await run(agent)

    assert ["workflow.run", *["  PlannerAgent.execute", f"    {CHAT}"] * 3] == captured.tree()
    assert_spent(captured, 3)


def test_a_synchronous_run(captured: Captured, server: EmbeddedServer, way: str) -> None:
    """``run_sync`` is observed as ``run`` is, in this thread and in others."""
    server.script(*[calls("create_task", title="Tea"), says()] * 2)

    def run() -> None:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)  # the framework would make one and leave it open
        client = openai.AsyncOpenAI(api_key="sk-test", base_url=server.url)
        model = OpenAIChatModel(MODEL, provider=OpenAIProvider(openai_client=client))
        assert "done" == agent_of(model, way, create_task).run_sync("Create a task").output
        loop.run_until_complete(client.close())
        loop.close()
        asyncio.set_event_loop(None)

    run()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(run).result()

    tree = ["workflow.run", "  PlannerAgent.execute", f"    {CHAT}", "    create_task", f"    {CHAT}"]
    assert tree * 2 == captured.tree()
    assert_spent(captured, 4, runs=2)


# --- how a run ends -------------------------------------------------------------------------------


@pytest.mark.parametrize("run", RUNS)
async def test_a_failing_call(
    captured: Captured, server: EmbeddedServer, chat_model: Any, way: str, run: Callable[[Any], Any]
) -> None:
    """The framework's error reaches the caller as it is, and ends the run as one."""
    server.script(Reply.error(400))

    with pytest.raises(pa.exceptions.ModelHTTPError) as raised:
        await run(agent_of(chat_model, way))

    assert {"workflow.run": "error", "PlannerAgent.execute": "error"} == outcomes(captured)
    assert raised.type.__name__ == captured.tags("PlannerAgent.execute")["error.type"]


async def test_a_failing_tool(captured: Captured, server: EmbeddedServer, chat_model: Any, way: str) -> None:
    """A tool that raises fails the run with its own error."""
    server.script(calls("break_down"))

    def break_down() -> str:
        raise ZeroDivisionError("no")

    with pytest.raises(ZeroDivisionError):
        await agent_of(chat_model, way, break_down).run("Go")

    assert {"workflow.run": "error", "PlannerAgent.execute": "error", "break_down": "error"} == outcomes(captured)
    assert "ZeroDivisionError" == captured.tags("break_down")["error.type"]


async def test_a_tool_that_asks_for_another_try(
    captured: Captured, server: EmbeddedServer, chat_model: Any, way: str
) -> None:
    """A tool that sends the model back with ``ModelRetry`` has failed; the run goes on."""
    server.script(calls("pick"), calls("pick"), says())
    tries: list[int] = []

    def pick() -> str:
        tries.append(1)
        if len(tries) == 1:
            raise pa.ModelRetry("again")
        return "picked"

    await run_plain(agent_of(chat_model, way, pick))

    assert ["error", "success"] == [span.attributes["outcome"] for span in captured.spans if span.name == "pick"]
    assert "success" == captured.tags("workflow.run")["outcome"]
    assert_spent(captured, 3)


@pytest.mark.parametrize("run", RUNS)
async def test_a_cancelled_run(
    captured: Captured, server: EmbeddedServer, chat_model: Any, way: str, run: Callable[[Any], Any]
) -> None:
    """A cancelled task ends its run as cancelled."""
    await assert_cancelled(captured, server, run(agent_of(chat_model, way)))


async def test_a_consumer_that_leaves_the_steps(
    captured: Captured, server: EmbeddedServer, chat_model: Any, way: str
) -> None:
    """Leaving an agent's steps before the last ends its run as cancelled."""
    server.script(says())
    async with agent_of(chat_model, way).iter("Go") as run:
        async for _ in run:
            break

    assert {"workflow.run": "cancelled", "PlannerAgent.execute": "cancelled"} == outcomes(captured)


async def test_a_consumer_that_leaves_the_stream(
    captured: Captured, server: EmbeddedServer, chat_model: Any, way: str
) -> None:
    """Leaving a stream before its end ends its call and its run, once."""
    server.script(Reply("one two three four five six", part_delay=0.02))

    async with agent_of(chat_model, way).run_stream("Go") as result:
        async for _ in result.stream_text(delta=True, debounce_by=None):
            break

    assert ["workflow.run", "  PlannerAgent.execute", f"    {CHAT}"] == captured.tree()
    assert "cancelled" == captured.tags(CHAT).get("outcome", "cancelled")
    assert 1 == captured.golden_signals().sample.runs


async def test_a_refused_call_is_blocked(
    server: EmbeddedServer, chat_model: Any, way: str, frameworks: tuple[str, ...]
) -> None:
    """A budget that refuses the call ends the run as blocked, and the caller gets the refusal."""
    await assert_refused(server, frameworks, lambda: agent_of(chat_model, way).run("Go"))


# --- decorated tools, policies --------------------------------------------------------------------


@tp.observed_tool
def look_up(title: str, limit: int = 3) -> str:
    """Look up tasks.

    :param title: What to look up.
    """
    return f"{limit} of {title}"


@tp.observed_tool
async def look_up_later(title: str) -> str:
    """Look up tasks, later."""
    return f"found {title}"


def test_a_decorated_tool_has_its_schema() -> None:
    """The framework reads the same name, text and schema off a decorated function."""
    plain, decorated = pa.Tool(look_up.__wrapped__), pa.Tool(look_up)  # type: ignore[attr-defined] # the original

    assert plain.tool_def == decorated.tool_def


async def test_a_decorated_tool_is_one_span(
    captured: Captured, server: EmbeddedServer, chat_model: Any, way: str
) -> None:
    """The framework's call and the decorator's are one call; an async tool likewise."""
    server.script(calls("look_up", title="Tea", limit=5), calls("look_up_later", title="Tea"), says())

    await run_plain(agent_of(chat_model, way, look_up, look_up_later))

    assert [
        "workflow.run", "  PlannerAgent.execute", f"    {CHAT}", "    look_up", f"    {CHAT}", "    look_up_later",
        f"    {CHAT}",
    ] == captured.tree()  # fmt: skip
    results = [each["content"] for each in server.requests[-1].payload["messages"] if each["role"] == "tool"]
    assert ["5 of Tea", "found Tea"] == results


@pytest.mark.parametrize("decorated", [False, True])
async def test_a_policy_denies_a_tool(
    server: EmbeddedServer, chat_model: Any, way: str, frameworks: tuple[str, ...], decorated: bool
) -> None:
    """A denied tool does not run, and the denial counts once."""
    server.script(calls("look_up", title="Tea"))
    ran: list[str] = []

    def plain(title: str) -> str:
        ran.append(title)
        return title

    plain.__name__ = "look_up"
    policy = tp.ToolAllowList({"PlannerAgent": ["create_task"]})
    with capture(frameworks=frameworks, policies=[policy]) as captured:
        with pytest.raises(tp.PolicyViolationError):
            await agent_of(chat_model, way, tp.observed_tool(plain) if decorated else plain).run("Go")

        assert ([], "blocked") == (ran, captured.tags("look_up")["outcome"])
        assert "blocked" == captured.tags("workflow.run")["outcome"]
        assert 1 == captured.golden_signals().violations


@pytest.mark.parametrize("direction", ["input", "output"])
async def test_a_guardrail_answers_in_the_agents_place(
    server: EmbeddedServer, chat_model: Any, way: str, frameworks: tuple[str, ...], direction: str
) -> None:
    """A guardrail that blocks what was asked or answered may answer itself."""
    server.script(says("Create"))
    check: Any = {f"check_{direction}": lambda text: "Create" not in text}
    guardrail = tp.Guardrail("no-tasks", on_block="replace", replacement="done", **check)
    with capture(frameworks=frameworks, guardrails=[guardrail]) as captured:
        await run_plain(agent_of(chat_model, way))

        assert (0 if direction == "input" else 1) == len(server.requests)
        name = "guardrails.blocked" if direction == "input" else "guardrails.output_blocked"
        assert 1 == captured.metrics.get_counter(f"agent.PlannerAgent.{name}")


# --- our own failures, and the undo ---------------------------------------------------------------


@pytest.mark.parametrize("run", RUNS)
async def test_our_failures_stay_ours(
    server: EmbeddedServer, chat_model: Any, way: str, run: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where our own code fails at every turn, the framework and its caller see what they would without us."""
    server.script(calls("create_task", title="Tea"), says())
    agent = agent_of(chat_model, way, create_task)

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("ours")

    with capture(frameworks=() if way == "capability" else ["pydantic_ai"], reraise=False):
        for name in ("capability", "_output", "_signals"):
            monkeypatch.setattr(ours, name, fail)
        monkeypatch.setattr("taskpilot_instrument._framework_runs.FrameworkRun.__init__", fail)
        await run(agent)
        assert {"start": 1} == dict.fromkeys(_guard.swallowed(), 1)


async def test_the_undo(captured: Captured, server: EmbeddedServer, chat_model: Any, way: str) -> None:
    """Undone, nothing is observed, and the framework's method is its own again."""
    server.script(says())
    before = vars(pa.Agent)["iter"]

    captured.handle.uninstrument()
    await run_plain(agent_of(chat_model, way))

    assert [] == captured.spans
    assert (way == "capability") == (vars(pa.Agent)["iter"] is before)


async def test_content(server: EmbeddedServer, chat_model: Any, way: str, frameworks: tuple[str, ...]) -> None:
    """Where content is captured, agents and tools have what they were given and what they gave."""
    server.script(calls("create_task", title="Tea"), says())
    with capture(frameworks=frameworks, capture_content=True) as captured:
        await run_plain(agent_of(chat_model, way, create_task))

        agent, tool = captured.tags("PlannerAgent.execute"), captured.tags("create_task")
        assert "Create a task" in agent["gen_ai.input.messages"]
        assert "done" in agent["gen_ai.output.messages"]
        assert '{"title": "Tea"}' == tool["gen_ai.tool.call.arguments"]
        assert "created Tea" == tool["gen_ai.tool.call.result"]
