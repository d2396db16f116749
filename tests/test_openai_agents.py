"""OpenAI Agents SDK, with its real package and the real openai client."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from frameworks import MODEL, assert_cancelled, assert_refused, assert_spent, calls, names, need, outcomes, says, until

import taskpilot_instrument as tp
from taskpilot_instrument import _guard
from taskpilot_instrument.embedded import EmbeddedServer, Reply
from taskpilot_instrument.testing import Captured, capture

need("agents")

import agents  # noqa: E402 - only where it is installed
from agents.tracing import get_trace_provider  # noqa: E402

from taskpilot_instrument.integrations import openai_agents as ours  # noqa: E402

CHAT = f"chat {MODEL}"


class Exporter(agents.TracingProcessor):
    """Stands for the SDK's own processor, which would send traces away."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def on_trace_start(self, trace: Any) -> None:
        """Note it."""
        self.heard.append(f"trace {trace.name}")

    def on_trace_end(self, trace: Any) -> None:
        """Do nothing."""

    def on_span_start(self, span: Any) -> None:
        """Note it."""
        self.heard.append(span.span_data.type)

    def on_span_end(self, span: Any) -> None:
        """Do nothing."""

    def shutdown(self) -> None:
        """Do nothing."""

    def force_flush(self) -> None:
        """Do nothing."""


@pytest.fixture(params=["one line", "processor", "both", "tracing off"])
def way(request: pytest.FixtureRequest) -> str:
    """The way in which the SDK is put under observation."""
    return str(request.param)


@pytest.fixture(autouse=True)
def exporter(way: str) -> Iterator[Exporter]:
    """What the application has set up in the SDK."""
    exporter = Exporter()
    agents.set_trace_processors([exporter])
    if way in {"processor", "both"}:
        agents.add_trace_processor(ours.TaskpilotProcessor())
    agents.set_tracing_disabled(way == "tracing off")
    yield exporter
    agents.set_trace_processors([])
    agents.set_tracing_disabled(False)
    assert not ours._open


@pytest.fixture
def frameworks(way: str) -> tuple[str, ...]:
    """What ``instrument(frameworks=…)`` is given."""
    return () if way == "processor" else ("openai_agents",)


@pytest.fixture
def captured(frameworks: tuple[str, ...]) -> Iterator[Captured]:
    """Instrumentation that records in memory."""
    with capture(frameworks=frameworks) as everything:
        yield everything


@pytest.fixture(params=[agents.OpenAIChatCompletionsModel, agents.OpenAIResponsesModel], ids=["chat", "responses"])
def model(request: pytest.FixtureRequest, aclient: openai.AsyncOpenAI) -> Any:
    """The SDK's model on the chat completions and on the responses API."""
    return request.param(MODEL, aclient)


@pytest.fixture
def chat_model(aclient: openai.AsyncOpenAI) -> Any:
    """The SDK's model, where one API is enough."""
    return agents.OpenAIChatCompletionsModel(MODEL, aclient)


@agents.function_tool
def create_task(title: str) -> str:
    """Create a task."""
    return f"created {title}"


def agent_of(model: Any, name: str = "PlannerAgent", **more: Any) -> Any:
    """Return an agent; its streams tell their usage."""
    return agents.Agent(name, model=model, model_settings=agents.ModelSettings(include_usage=True), **more)


async def run_plain(agent: Any, **more: Any) -> Any:
    """Run an agent to its end."""
    result = await agents.Runner.run(agent, "Create a task", **more)
    assert "done" == result.final_output
    return result


async def run_stream(agent: Any, **more: Any) -> Any:
    """Read an agent's stream to its end."""
    result = agents.Runner.run_streamed(agent, "Create a task", **more)
    async for _ in result.stream_events():
        pass
    assert "done" == result.final_output
    return result


RUNS: list[Callable[..., Any]] = [run_plain, run_stream]


# --- agents, tools, handoffs ----------------------------------------------------------------------


@pytest.mark.parametrize("run", RUNS)
async def test_an_agent_with_a_tool(
    captured: Captured, server: EmbeddedServer, model: Any, exporter: Exporter, way: str, run: Callable[..., Any]
) -> None:
    """A run is one workflow, one agent, its calls and its tool, each once; the SDK's own processors hear all of it."""
    server.script(calls("create_task", title="Tea"), says())

    await run(agent_of(model, tools=[create_task]))

    expected = ["workflow.run", "  PlannerAgent.execute", f"    {CHAT}", "    create_task", f"    {CHAT}"]
    assert expected == captured.tree()
    assert {"success"} == set(outcomes(captured).values())
    assert ("Agent workflow", "PlannerAgent") == (
        captured.tags("workflow.run")["workflow"],
        captured.tags("create_task")["agent"],
    )
    assert_spent(captured, 2)
    assert (way != "tracing off") == ({"trace Agent workflow", "agent", "function"} <= set(exporter.heard))


@pytest.mark.parametrize("run", RUNS)
async def test_a_handoff(captured: Captured, server: EmbeddedServer, chat_model: Any, run: Callable[..., Any]) -> None:
    """With a handoff the next agent's run follows in the same workflow."""
    server.script(calls("transfer_to_revieweragent"), says())
    reviewer = agent_of(chat_model, "ReviewerAgent")

    await run(agent_of(chat_model, handoffs=[reviewer]))

    assert [
        "workflow.run", "  PlannerAgent.execute", f"    {CHAT}", "  ReviewerAgent.execute", f"    {CHAT}",
    ] == captured.tree()  # fmt: skip
    assert_spent(captured, 2)


async def test_agents_beside_each_other(captured: Captured, server: EmbeddedServer, chat_model: Any) -> None:
    """Agents that run at the same time keep their calls apart."""
    server.script(*[says()] * 4)
    mine = [agent_of(chat_model, f"Agent{number}") for number in range(4)]

    await asyncio.gather(*(run(agent) for run, agent in zip(RUNS * 2, mine, strict=True)))

    by_id = {span.context.span_id: span for span in captured.spans if span.context is not None}
    chats = [span for span in captured.spans if span.name == CHAT]
    assert {f"Agent{number}.execute" for number in range(4)} == {by_id[span.parent.span_id].name for span in chats}
    assert_spent(captured, 4, runs=4)


async def test_an_agent_as_a_tool_of_another(captured: Captured, server: EmbeddedServer, chat_model: Any) -> None:
    """An agent that another one calls as its tool runs beneath that tool call."""
    server.script(calls("review", input="look"), says("fine"), says())
    reviewer = agent_of(chat_model, "ReviewerAgent").as_tool("review", "Review a task.")

    await run_plain(agent_of(chat_model, tools=[reviewer]))

    assert [
        "workflow.run", "  PlannerAgent.execute", f"    {CHAT}", "    review", "      ReviewerAgent.execute",
        f"        {CHAT}", f"    {CHAT}",
    ] == captured.tree()  # fmt: skip
    assert_spent(captured, 3)


async def test_two_runs_in_one_trace(captured: Captured, server: EmbeddedServer, chat_model: Any, way: str) -> None:
    """A trace of the caller's around two runs is one workflow, by its name."""
    server.script(says(), says())

    with agents.trace("triage"):
        await run_plain(agent_of(chat_model))
        await run_stream(agent_of(chat_model, "ReviewerAgent"))

    assert [
        "workflow.run", "  PlannerAgent.execute", f"    {CHAT}", "  ReviewerAgent.execute", f"    {CHAT}",
    ] == captured.tree()  # fmt: skip
    named = "Agent workflow" if way == "tracing off" else "triage"
    assert named == captured.tags("workflow.run")["workflow"]
    assert_spent(captured, 2)


@pytest.mark.skipif(not hasattr(agents, "RunState"), reason="this release has no runs that wait for a person")
async def test_a_run_that_waits_for_a_person(
    captured: Captured, server: EmbeddedServer, chat_model: Any, way: str
) -> None:
    """What goes on afterwards is a run of the same workflow, and both have ended well."""

    @agents.function_tool(needs_approval=True)
    def publish() -> str:
        return "published"

    server.script(calls("publish"), says())
    agent = agent_of(chat_model, tools=[publish])
    config = agents.RunConfig(workflow_name="release")

    waiting = await agents.Runner.run(agent, "Publish", run_config=config)
    state = waiting.to_state()
    state.approve(waiting.interruptions[0])
    assert "done" == (await agents.Runner.run(agent, state, run_config=config)).final_output

    runs = [dict(span.attributes or {}) for span in captured.spans if span.name == "workflow.run"]
    expected = "PlannerAgent" if way == "processor" else "Agent workflow" if way == "tracing off" else "release"
    assert ["success", "success"] == [each["outcome"] for each in runs]
    assert expected == runs[1]["workflow"]
    if way != "processor":  # which is not told of the trace, so that older releases leave the tool outside of the run
        assert_spent(captured, 2, runs=2)


async def test_a_run_within_a_workflow_of_the_caller(
    captured: Captured, server: EmbeddedServer, chat_model: Any
) -> None:
    """Within the caller's own workflow a run opens no other."""
    server.script(says(), says())

    with tp.workflow("triage"):
        await run_plain(agent_of(chat_model))
        await run_stream(agent_of(chat_model))

    assert ["workflow.run", *["  PlannerAgent.execute", f"    {CHAT}"] * 2] == captured.tree()
    assert_spent(captured, 2)


def test_a_synchronous_run(captured: Captured, server: EmbeddedServer) -> None:
    """``run_sync`` is observed as ``run`` is, in a thread of its own too."""
    server.script(says(), says())

    def run() -> None:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        client = openai.AsyncOpenAI(api_key="sk-test", base_url=server.url)
        agent = agent_of(agents.OpenAIChatCompletionsModel(MODEL, client))
        assert "done" == agents.Runner.run_sync(agent, "Go").final_output
        loop.run_until_complete(client.close())
        loop.close()
        asyncio.set_event_loop(None)

    run()
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()

    assert ["workflow.run", "  PlannerAgent.execute", f"    {CHAT}"] * 2 == captured.tree()
    assert_spent(captured, 2, runs=2)


# --- guardrails -----------------------------------------------------------------------------------


def tripping(decorate: Any, name: str, trips: bool = True) -> Any:
    """Return a guardrail that trips."""

    @decorate(name=name)
    async def guardrail(context: Any, agent: Any, what: Any) -> agents.GuardrailFunctionOutput:
        return agents.GuardrailFunctionOutput(None, trips)

    return guardrail


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("direction", ["input", "output"])
async def test_a_tripwire(
    captured: Captured, server: EmbeddedServer, chat_model: Any, run: Callable[..., Any], direction: str
) -> None:
    """A tripwire counts once as a block of its guardrail, and ends the run as blocked."""
    server.script(says())
    if direction == "input":
        guardrails: dict[str, Any] = {"input_guardrails": [tripping(agents.input_guardrail, "no-tasks")]}
    else:
        guardrails = {"output_guardrails": [tripping(agents.output_guardrail, "no-tasks")]}

    with pytest.raises((agents.InputGuardrailTripwireTriggered, agents.OutputGuardrailTripwireTriggered)):
        await run(agent_of(chat_model, **guardrails))
    await asyncio.sleep(0.05)

    assert "blocked" == captured.tags("workflow.run")["outcome"]
    counted = [
        line.rpartition(" ")
        for line in captured.prometheus_text.splitlines()
        if line.startswith("taskpilot_guardrail_blocks_total")
    ]
    assert ["1.0"] == [value for _, _, value in counted]
    expected = {'agent="PlannerAgent"', f'direction="{direction}"', 'guardrail="no-tasks"'}
    assert expected == set(counted[0][0].partition("{")[2].rstrip("}").split(","))
    assert ["guardrail.blocked"] == [line["event_name"] for line in captured.logs if line["category"] == "decision"]


@pytest.mark.parametrize("run", RUNS)
async def test_a_guardrail_that_lets_pass(
    captured: Captured, server: EmbeddedServer, chat_model: Any, run: Callable[..., Any]
) -> None:
    """A guardrail that does not trip blocks nothing, and makes the run one that was checked."""
    server.script(says())

    await run(agent_of(chat_model, input_guardrails=[tripping(agents.input_guardrail, "no-tasks", False)]))

    assert "taskpilot_guardrail_blocks_total{" not in captured.prometheus_text
    assert 1 == captured.golden_signals().sample.checked


@pytest.mark.parametrize("direction", ["input", "output"])
async def test_a_tripwire_of_a_tool(
    captured: Captured, server: EmbeddedServer, chat_model: Any, direction: str
) -> None:
    """A tool's guardrail that raises counts once, and the tool is blocked."""
    server.script(calls("create_task", title="Tea"))
    decorate: Any = agents.tool_input_guardrail if direction == "input" else agents.tool_output_guardrail

    @decorate(name="no-tea")
    def guardrail(data: Any) -> Any:
        return agents.ToolGuardrailFunctionOutput.raise_exception()

    @agents.function_tool
    def create_task(title: str) -> str:
        return title

    setattr(create_task, f"tool_{direction}_guardrails", [guardrail])

    with pytest.raises((agents.ToolInputGuardrailTripwireTriggered, agents.ToolOutputGuardrailTripwireTriggered)):
        await agents.Runner.run(agent_of(chat_model, tools=[create_task]), "Go")

    assert {"blocked"} == set(outcomes(captured).values())
    name = "guardrails.blocked" if direction == "input" else "guardrails.output_blocked"
    assert 1 == captured.metrics.get_counter(f"agent.PlannerAgent.{name}")


# --- how a run ends -------------------------------------------------------------------------------


@pytest.mark.parametrize("run", RUNS)
async def test_a_failing_call(
    captured: Captured, server: EmbeddedServer, chat_model: Any, run: Callable[..., Any]
) -> None:
    """The SDK's error reaches the caller as it is, and ends the run as one."""
    server.script(Reply.error(400))

    with pytest.raises(openai.BadRequestError):
        await run(agent_of(chat_model))

    assert {"workflow.run": "error", "PlannerAgent.execute": "error"} == outcomes(captured)
    assert "BadRequestError" == captured.tags("PlannerAgent.execute")["error.type"]


async def test_a_run_while_an_error_is_handled(captured: Captured, server: EmbeddedServer, chat_model: Any) -> None:
    """An error that the caller is handling when it starts a run is not the run's."""
    server.script(says())

    try:
        {}["before"]
    except KeyError:
        await run_plain(agent_of(chat_model))

    assert {"success"} == set(outcomes(captured).values())


@pytest.mark.parametrize("decorated", [False, True])
async def test_a_failing_tool(
    captured: Captured, server: EmbeddedServer, chat_model: Any, decorated: bool, way: str
) -> None:
    """A tool whose error the SDK tells the model has failed; the run goes on."""
    server.script(calls("break_down"), says())

    def break_down() -> str:
        raise ZeroDivisionError("no")

    tool = agents.function_tool(tp.observed_tool(break_down) if decorated else break_down)
    await run_plain(agent_of(chat_model, tools=[tool]))

    assert "success" == captured.tags("workflow.run")["outcome"]
    if decorated:
        assert ("error", "ZeroDivisionError") == (
            captured.tags("break_down")["outcome"],
            captured.tags("break_down")["error.type"],
        )
    else:  # without tracing the SDK tells nobody
        assert ("success" if way == "tracing off" else "error") == captured.tags("break_down")["outcome"]
    assert_spent(captured, 2)


async def test_a_failing_tool_that_ends_the_run(captured: Captured, server: EmbeddedServer, chat_model: Any) -> None:
    """A tool whose error the SDK passes on fails the run."""
    server.script(calls("break_down"))

    @agents.function_tool(failure_error_function=None)
    def break_down() -> str:
        raise ZeroDivisionError("no")

    with pytest.raises(agents.UserError):
        await agents.Runner.run(agent_of(chat_model, tools=[break_down]), "Go")

    assert {"error"} == set(outcomes(captured).values())


async def test_too_many_turns(captured: Captured, server: EmbeddedServer, chat_model: Any) -> None:
    """A run that takes too many turns has failed."""
    server.script(*[calls("create_task", title="Tea")] * 3)

    with pytest.raises(agents.MaxTurnsExceeded):
        await agents.Runner.run(agent_of(chat_model, tools=[create_task]), "Go", max_turns=2)

    assert "error" == captured.tags("workflow.run")["outcome"]
    assert "MaxTurnsExceeded" == captured.tags("workflow.run")["error.type"]


async def test_a_cancelled_run(captured: Captured, server: EmbeddedServer, chat_model: Any) -> None:
    """A cancelled task ends its run as cancelled."""
    await assert_cancelled(captured, server, run_plain(agent_of(chat_model)))


async def test_a_consumer_that_leaves_early(captured: Captured, server: EmbeddedServer, chat_model: Any) -> None:
    """A stream that its consumer cancels ends its run as cancelled, once; nothing of it is the consumer's."""
    server.script(Reply("one two three four five six", part_delay=0.05))
    result = agents.Runner.run_streamed(agent_of(chat_model), "Go")

    async for event in result.stream_events():
        if event.type == "raw_response_event":
            assert tp._operation.current() is None  # type: ignore[attr-defined] # a look at the inside
            break
    result.cancel()
    await until(lambda: "workflow.run" in captured.names())

    assert {"workflow.run": "cancelled", "PlannerAgent.execute": "cancelled"} == outcomes(captured)
    assert 1 == captured.golden_signals().sample.runs


async def test_a_refused_call_is_blocked(server: EmbeddedServer, chat_model: Any, frameworks: tuple[str, ...]) -> None:
    """A budget that refuses the call ends the run as blocked, and the caller gets the refusal."""
    await assert_refused(server, frameworks, lambda: agents.Runner.run(agent_of(chat_model), "Go"))


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
    """The SDK reads the same name, text and schema off a decorated function."""
    plain = agents.function_tool(look_up.__wrapped__)  # type: ignore[attr-defined] # the original
    decorated = agents.function_tool(look_up)

    assert (plain.name, plain.description, plain.params_json_schema) == (
        decorated.name, decorated.description, decorated.params_json_schema,
    )  # fmt: skip


@pytest.mark.parametrize("run", RUNS)
async def test_a_decorated_tool_is_one_span(
    captured: Captured, server: EmbeddedServer, chat_model: Any, run: Callable[..., Any]
) -> None:
    """The SDK's call and the decorator's are one call; an async tool likewise."""
    server.script(calls("look_up", title="Tea", limit=5), calls("look_up_later", title="Tea"), says())
    tools = [agents.function_tool(look_up), agents.function_tool(look_up_later)]

    await run(agent_of(chat_model, tools=tools))

    assert [
        "workflow.run", "  PlannerAgent.execute", f"    {CHAT}", "    look_up", f"    {CHAT}", "    look_up_later",
        f"    {CHAT}",
    ] == captured.tree()  # fmt: skip
    results = [each["content"] for each in server.requests[-1].payload["messages"] if each["role"] == "tool"]
    assert ["5 of Tea", "found Tea"] == results


async def test_a_policy_denies_a_decorated_tool(
    server: EmbeddedServer, chat_model: Any, frameworks: tuple[str, ...]
) -> None:
    """A decorated tool that a policy denies does not run; the SDK tells the model, and the denial counts once."""
    server.script(calls("look_up", title="Tea"), says())
    policy = tp.ToolAllowList({"PlannerAgent": ["create_task"]})
    with capture(frameworks=frameworks, policies=[policy]) as captured:
        await run_plain(agent_of(chat_model, tools=[agents.function_tool(look_up)]))

        assert "blocked" == captured.tags("look_up")["outcome"]
        assert 1 == captured.golden_signals().violations
        assert "of Tea" not in server.requests[-1].payload["messages"][-1]["content"]


# --- our own failures, and the undo ---------------------------------------------------------------


@pytest.mark.parametrize("run", RUNS)
async def test_our_failures_stay_ours(
    server: EmbeddedServer,
    chat_model: Any,
    frameworks: tuple[str, ...],
    run: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where our own code fails at every turn, the SDK and its caller see what they would without us."""
    server.script(calls("create_task", title="Tea"), says())

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("ours")

    with capture(frameworks=frameworks, reraise=False):
        for name in ("begin", "begin_tool", "_leave", "_guarded"):
            monkeypatch.setattr(ours, name, fail)
        await run(agent_of(chat_model, tools=[create_task]))
        assert {"start", "finish"} == set(_guard.swallowed())


async def test_what_is_open_is_bounded(captured: Captured, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans that are never finished do not fill the memory; the oldest is let go as cancelled."""
    monkeypatch.setattr(ours, "_MOST_OPEN", 3)

    def leave_open(number: int) -> None:
        agents.agent_span(f"Agent{number}").start()

    with agents.trace("triage"):
        for number in range(6):
            await asyncio.to_thread(leave_open, number)
    assert len(ours._open) <= 3
    assert "cancelled" == captured.tags("Agent0.execute")["outcome"]
    ours._open.clear()


async def test_the_undo(
    captured: Captured, server: EmbeddedServer, chat_model: Any, exporter: Exporter, way: str
) -> None:
    """Undone, nothing is observed, and the application's processors are as they were set."""
    server.script(says())
    provider: Any = get_trace_provider()
    processors = provider._multi_processor._processors
    assert (2 if way in {"processor", "both"} else 1) == len(processors)

    captured.handle.uninstrument()
    await run_plain(agent_of(chat_model))

    assert [] == captured.spans
    assert exporter is processors[0]
    assert processors == provider._multi_processor._processors


async def test_content(server: EmbeddedServer, chat_model: Any, frameworks: tuple[str, ...], way: str) -> None:
    """Where content is captured, tools have what they were given and what they gave."""
    server.script(calls("create_task", title="Tea"), says())
    with capture(frameworks=frameworks, capture_content=True) as captured:
        await run_plain(agent_of(chat_model, tools=[create_task]))

        tool = captured.tags("create_task")
        assert '{"title": "Tea"}' == tool["gen_ai.tool.call.arguments"]
        assert "created Tea" == tool["gen_ai.tool.call.result"]
    assert names(captured.spans)
