"""Pydantic AI: agent runs and tool calls become operations.

    pip install taskpilot-instrument[pydantic-ai]

    instrument(frameworks=["pydantic_ai"])

sees every agent, whenever it was made. Or name the capability where it is wanted:

    from taskpilot_instrument.integrations.pydantic_ai import capability

    Agent("openai:gpt-4o-mini", name="PlannerAgent", capabilities=[capability()])

LLM calls are seen by the provider's own client. The framework's ``Instrumentation``, where you have added it, makes
spans of its own beside these; figures and signals count each call once all the same.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Final

from taskpilot_instrument._callables import note_result
from taskpilot_instrument._framework_runs import FrameworkRun, begin, begin_tool, checked, guarded, judged
from taskpilot_instrument._guard import swallow
from taskpilot_instrument._recorder import active
from taskpilot_instrument.integrations._patches import Switch
from taskpilot_instrument.patches._patching import Patch
from taskpilot_instrument.semconv import Kind

_NAMELESS: Final = "agent"


def patches() -> list[Switch]:
    """Return what observes every agent.

    :raises ImportError: where the framework is not installed, or has no capabilities yet.
    """
    _capability_class()
    from pydantic_ai import Agent

    return [Patch(Agent, "iter", _iter)]


def _iter(wrapped: Callable[..., Any], _agent: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if active() is not None:
        try:
            # First, so outermost. With one that the agent has already, one run is still one operation.
            kwargs = {**kwargs, "capabilities": [capability(), *(kwargs.get("capabilities") or ())]}
        except Exception as error:
            swallow("start", error)
    return wrapped(*args, **kwargs)


def capability() -> Any:
    """Return the capability for ``Agent(capabilities=[…])`` or ``agent.run(capabilities=[…])``.

    :raises ImportError: where the framework is not installed, or has no capabilities yet.
    """
    return _capability_class()()


@functools.cache
def _capability_class() -> Any:
    from pydantic_ai.capabilities import AbstractCapability, CapabilityOrdering

    base: Any = AbstractCapability

    class TaskpilotCapability(base):  # type: ignore[misc] # found at run time
        """Make each run of an agent, and each call of its tools, an operation."""

        #: It only looks on, so it may be added to a run that is replayed.
        _safe_at_runtime: ClassVar[bool] = True

        def get_ordering(self) -> Any:
            """Return that it goes around all others."""
            return CapabilityOrdering(position="outermost")

        async def wrap_run(self, ctx: Any, *, handler: Callable[..., Any]) -> Any:
            """Make one run of an agent an operation."""
            run = _begin_agent(ctx)
            if run is None:
                return await handler()
            with run:
                result = await judged(run, handler, lambda: {"prompt": ctx.prompt}, _output, _with_output)()
                note_result(run, result)
            return result

        async def wrap_tool_execute(
            self,
            ctx: Any,  # noqa: ARG002 - the framework's signature
            *,
            call: Any,
            tool_def: Any,
            args: Any,
            handler: Callable[..., Any],
        ) -> Any:
            """Make one call of a tool an operation."""
            run = _begin_tool(call, tool_def, args)
            if run is None:
                return await handler(args)
            with run:
                result = await checked(run, handler, lambda: dict(args))(args)
                note_result(run, result)
            return result

    TaskpilotCapability.__qualname__ = TaskpilotCapability.__name__
    return TaskpilotCapability


@guarded
def _begin_agent(ctx: Any) -> FrameworkRun | None:
    if getattr(ctx, "realtime", False):
        return None
    agent = ctx.agent
    name = getattr(agent, "name", None) or _NAMELESS
    return begin(Kind.AGENT, str(name), subject=agent, given=lambda: ctx.prompt, said=_output)


@guarded
def _begin_tool(call: Any, tool_def: Any, args: Any) -> FrameworkRun | None:
    return begin_tool(
        str(call.tool_name), args, subject=call, description=getattr(tool_def, "description", None),
        call_id=getattr(call, "tool_call_id", None), signals=_signals(),
    )  # fmt: skip


@functools.cache
def _signals() -> tuple[type[BaseException], ...]:
    """Return what a tool raises to be called again, to wait for a person, or not to be called at all."""
    from pydantic_ai import exceptions

    names = ("CallDeferred", "ApprovalRequired", "SkipToolExecution")
    return tuple(getattr(exceptions, name) for name in names if hasattr(exceptions, name))


def _output(result: Any) -> Any:
    return getattr(result, "output", result)


def _with_output(answer: Any, result: Any) -> Any:
    """Make a result of what a policy or guardrail wants to be said."""
    from pydantic_ai.run import AgentRunResult

    return AgentRunResult(answer) if result is None else replace(result, output=answer)
