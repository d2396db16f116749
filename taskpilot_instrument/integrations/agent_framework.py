"""Microsoft agent-framework: workflows, agents and tools become operations.

    pip install taskpilot-instrument[agent-framework]

    instrument(frameworks=["agent_framework"])

sees every agent, tool and workflow, whenever it was made. Or name the middleware where it is wanted:

    from taskpilot_instrument.integrations.agent_framework import middleware

    Agent(client=client, name="PlannerAgent", tools=[...], middleware=middleware())

LLM calls are seen by the provider's own client, and tokens are taken from the framework's ``usage_details`` only where
none was. While a run of ours goes on, the framework's own spans and metrics, which would tell the same again, are off.
"""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from taskpilot_instrument._callables import deliver, note_result
from taskpilot_instrument._framework_runs import FrameworkRun, checked, drive, judged
from taskpilot_instrument._guard import swallow
from taskpilot_instrument.integrations._agent_framework_runs import (
    agent_run,
    as_response,
    as_stream,
    by_name,
    is_stream,
    said,
    tool_call,
    workflow_run,
)
from taskpilot_instrument.integrations._agent_framework_streams import begin_chat, follow_stream, tell_usage
from taskpilot_instrument.integrations._agent_framework_telemetry import quiet
from taskpilot_instrument.integrations._patches import Switch
from taskpilot_instrument.patches._patching import Patch
from taskpilot_instrument.semconv import Kind

if TYPE_CHECKING:
    from agent_framework import AgentContext, ChatContext, FunctionInvocationContext

_Next = Callable[[], Awaitable[None]]

# --- one line -------------------------------------------------------------------------------------


def patches() -> list[Switch]:
    """Return what observes every agent, tool, workflow and chat client of the framework.

    :raises ImportError: where it is not installed.
    """
    from agent_framework import BaseChatClient, FunctionTool, RawAgent, Workflow
    from agent_framework._middleware import AgentMiddlewareLayer
    from agent_framework.observability import AgentTelemetryLayer

    found: list[Switch] = [
        # Each layer of an agent, for an agent may have any of them; one run is one operation.
        Patch(AgentMiddlewareLayer, "run", _run_agent, optional=True),
        Patch(AgentTelemetryLayer, "run", _run_agent, optional=True),
        Patch(RawAgent, "run", _run_agent),
        Patch(FunctionTool, "invoke", _invoke_tool),
        Patch(BaseChatClient, "get_response", _get_response),
        Patch(Workflow, "run", _run_workflow),
        quiet(),
    ]
    try:
        from agent_framework import FunctionalWorkflow
    except ImportError:  # younger than the rest
        return found
    return [*found, Patch(FunctionalWorkflow, "run", _run_workflow, optional=True)]


def _run_agent(wrapped: Callable[..., Any], agent: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    messages = args[0] if args else kwargs.get("messages")
    run = agent_run(agent, messages)
    if run is None:
        return wrapped(*args, **kwargs)
    if run.recorder.controls is not None:
        wrapped = _judging(run, wrapped, messages)
    with run:
        return _hand_over(run, wrapped(*args, **kwargs), agent)


def _judging(run: FrameworkRun, wrapped: Callable[..., Any], messages: Any) -> Callable[..., Any]:
    """Return what to call in place of an agent's ``run``, so that policies and guardrails judge what is said."""

    def call(*args: Any, **kwargs: Any) -> Any:
        async def start() -> Any:
            return await wrapped(*args, **kwargs)

        streamed = bool(kwargs.get("stream"))
        rebuild = as_stream if streamed else as_response
        asked = judged(run, start, lambda: {"messages": said(messages)}, said, rebuild)
        if asked is start:
            return wrapped(*args, **kwargs)
        if not streamed:
            return asked()
        from agent_framework import ResponseStream

        return ResponseStream.from_awaitable(asked())

    return call


def _hand_over(run: FrameworkRun, result: Any, agent: Any) -> Any:
    """Give back what the framework returned, and let the run end with it."""
    if is_stream(result):
        follow_stream(result, run, (lambda response: _tell(run, agent, response)) if run.kind is Kind.AGENT else None)
        return result
    if run.kind is Kind.AGENT:
        return deliver(run, _told(run, agent, result))
    return deliver(run, result)


async def _told(run: FrameworkRun, agent: Any, result: Awaitable[Any]) -> Any:
    response = await result
    _tell(run, agent, response)
    return response


def _tell(run: FrameworkRun, agent: Any, response: Any) -> None:
    """Take the tokens of an agent that calls no chat client, such as one in another process."""
    try:
        if not run.is_finished:
            tell_usage(run, run.recorder, agent, response)
    except Exception as error:
        swallow("usage", error)


def _invoke_tool(wrapped: Callable[..., Any], tool: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    context = kwargs.get("context")
    call_id = kwargs.get("tool_call_id")
    given = kwargs.get("arguments")
    if given is None:
        plain = {name: value for name, value in kwargs.items() if name not in _OF_THE_CALL}
        given = plain or getattr(context, "arguments", None)
    run = tool_call(tool, given, call_id)
    if run is None:
        return wrapped(*args, **kwargs)
    return drive(run, checked(run, wrapped, lambda: by_name(given)), *args, **kwargs)


_OF_THE_CALL: Final = frozenset({"arguments", "context", "tool_call_id", "skip_parsing"})


def _get_response(wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    call = begin_chat(client, kwargs.get("options"), streamed=bool(kwargs.get("stream")))
    if call is None:
        return wrapped(*args, **kwargs)
    with call:
        result = wrapped(*args, **kwargs)
        if is_stream(result):
            follow_stream(result, call, call.keep)
            return result

        async def keep() -> Any:
            response = await result
            call.keep(response)
            return response

        return deliver(call, keep())


def _run_workflow(wrapped: Callable[..., Any], workflow: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    run = workflow_run(workflow, args[0] if args else kwargs.get("message"))
    if run is None:
        return wrapped(*args, **kwargs)
    with run:
        return _hand_over(run, wrapped(*args, **kwargs), workflow)


# --- middleware -----------------------------------------------------------------------------------


def middleware() -> list[Any]:
    """Return the middleware for one agent, for ``Agent(middleware=…)`` or ``agent.run(middleware=…)``.

    Put it first: what stands before it is not part of the run. Workflows have no middleware; ``workflow(…)`` around
    their run, or ``instrument(frameworks=["agent_framework"])``, makes it one run.

    :raises ImportError: where the framework is not installed.
    """
    quiet().apply()
    return [agent_middleware, function_middleware, chat_middleware]


async def agent_middleware(context: "AgentContext", call_next: _Next) -> None:
    """Make one run of an agent an operation."""
    run = agent_run(context.agent, context.messages)
    if run is None:
        await call_next()
        return
    with run:

        async def answer() -> Any:
            await call_next()
            return context.result

        rebuild = as_stream if context.stream else as_response
        context.result = await judged(run, answer, lambda: {"messages": said(context.messages)}, said, rebuild)()
        result: Any = context.result
        if is_stream(result):
            follow_stream(result, run, lambda response: _tell(run, context.agent, response))
        else:
            _tell(run, context.agent, result)
            note_result(run, result)


async def function_middleware(context: "FunctionInvocationContext", call_next: _Next) -> None:
    """Make one call of a tool an operation."""
    run = tool_call(context.function, context.arguments, context.metadata.get("call_id"))
    if run is None:
        await call_next()
        return

    async def answer() -> Any:
        await call_next()
        return context.result

    with run:
        context.result = await checked(run, answer, lambda: by_name(context.arguments))()
        note_result(run, context.result)


async def chat_middleware(context: "ChatContext", call_next: _Next) -> None:
    """Take the tokens of a chat call from the framework, where the provider's own client is not observed."""
    call = begin_chat(context.client, context.options, streamed=context.stream)
    if call is None:
        await call_next()
        return
    with call:
        await call_next()
        result: Any = context.result
        if is_stream(result):
            follow_stream(result, call, call.keep)
        else:
            call.keep(result)


# By these the framework tells its three sorts of middleware apart.
for _each, _sort in ((agent_middleware, "agent"), (function_middleware, "function"), (chat_middleware, "chat")):
    setattr(_each, "_middleware_type", _sort)  # noqa: B010 - a function has no such attribute of its own
