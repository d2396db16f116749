"""Beginning the runs of agent-framework, and reading and making what it says."""

import functools
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from taskpilot_instrument._framework_runs import FrameworkRun, Signals, begin, begin_tool, guarded
from taskpilot_instrument.semconv import Kind

#: The name that a workflow gets which was given none; an id is no label.
_MADE_UP: Final = re.compile(r"-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")


# --- beginning ------------------------------------------------------------------------------------


@guarded
def agent_run(agent: Any, messages: Any) -> FrameworkRun | None:
    name = getattr(agent, "name", None) or type(agent).__name__
    return begin(Kind.AGENT, str(name), subject=agent, given=lambda: said(messages), said=said, signals=_signals())


@guarded
def tool_call(tool: Any, given: Any, call_id: Any) -> FrameworkRun | None:
    return begin_tool(
        str(tool.name), by_name(given), subject=tool, fn=getattr(tool, "func", None),
        description=getattr(tool, "description", None), call_id=call_id, said=said, signals=_signals(),
    )  # fmt: skip


@guarded
def workflow_run(workflow: Any, message: Any) -> FrameworkRun | None:
    return begin(
        Kind.WORKFLOW, _workflow_name(workflow), subject=workflow, given=lambda: said(message), signals=_signals()
    )


@functools.cache
def _signals() -> Signals:
    """Return with what a middleware ends a run, and a tool waits for a person."""
    import agent_framework

    names = ("MiddlewareTermination", "UserInputRequiredException")
    return tuple(getattr(agent_framework, name) for name in names if hasattr(agent_framework, name))


def _workflow_name(workflow: Any) -> str:
    name = str(getattr(workflow, "name", None) or type(workflow).__name__)
    return type(workflow).__name__ if _MADE_UP.search(name) else name


# --- reading and making ---------------------------------------------------------------------------


def is_stream(result: Any) -> bool:
    return hasattr(type(result), "__anext__") and hasattr(result, "with_result_hook")


def by_name(given: Any) -> dict[str, Any]:
    """Return a tool's arguments by name; the framework has them as a mapping or as a model."""
    if isinstance(given, Mapping):
        return dict(given)
    return {} if given is None else dict(given.model_dump())


def said(messages: Any) -> Any:
    """Return the text of a message, of a response or of a list of them."""
    if messages is None or isinstance(messages, str) or is_stream(messages):
        return messages
    if isinstance(messages, list | tuple):
        return "\n".join(str(said(each)) for each in messages)
    text = getattr(messages, "text", None)
    return text if isinstance(text, str) else str(messages)


def as_response(answer: Any, _result: Any) -> Any:
    """Make an agent's response of what a policy or guardrail wants to be said."""
    from agent_framework import AgentResponse, Message

    return AgentResponse(messages=[Message("assistant", [str(answer)])])


def as_stream(answer: Any, _result: Any) -> Any:
    """Make a stream of one update of it."""
    from agent_framework import AgentResponse, AgentResponseUpdate, Content, ResponseStream

    async def updates() -> AsyncIterator[Any]:
        yield AgentResponseUpdate(contents=[Content.from_text(str(answer))], role="assistant")

    return ResponseStream(updates(), finalizer=AgentResponse.from_updates)
