"""LangChain and LangGraph: graphs, their nodes and tools become operations.

    pip install taskpilot-instrument[langchain]

    instrument(frameworks=["langchain"])

A graph that is a model with its tools, as ``create_agent`` and ``create_react_agent`` make it, is an agent. Any other
graph is a workflow, and each of its nodes an agent, but for nodes that are graphs themselves or only run tools. LLM
calls are seen by the provider's own client.

The methods that run them are patched, for the framework's callbacks cannot do it: those of async runs end in a context
of their own, so that what began there could not be taken back, and what follows would be counted under a run that is
over.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from taskpilot_instrument._framework_runs import FrameworkRun, Signals, begin, begin_tool, checked, drive, guarded
from taskpilot_instrument._operation import current
from taskpilot_instrument.integrations._patches import ModulePatch, Switch
from taskpilot_instrument.patches._patching import Patch
from taskpilot_instrument.semconv import Kind

#: What the framework calls a graph that was given no name.
_NAMELESS: Final = "LangGraph"
#: The node of an agent without tools that calls the model, as the framework's makers of agents call it.
_MODEL_NODES: Final = frozenset({"agent", "model"})
#: What else they put into it: hooks and middleware around the model, and the step that gives the answer its form.
_BESIDE_MODEL: Final = (
    "pre_model_hook", "post_model_hook", "generate_structured_response",
    ".before_agent", ".before_model", ".after_model", ".after_agent",
)  # fmt: skip
#: The subject of a node's run: what a node calls beneath itself is a part of it, and no agent of its own.
_NODE: Final = object()


def patches() -> list[Switch]:
    """Return what observes every tool, and every graph where LangGraph is installed.

    :raises ImportError: where LangChain is not installed.
    """
    from langchain_core.tools import BaseTool

    tools: list[Switch] = [Patch(BaseTool, "run", _run_tool), Patch(BaseTool, "arun", _run_tool)]
    try:
        from langgraph.pregel import Pregel, _runner
    except ImportError:
        return tools
    return [
        *tools,
        Patch(Pregel, "stream", _run_graph),
        Patch(Pregel, "astream", _run_graph),
        ModulePatch(_runner, "run_with_retry", _run_node, optional=True),
        ModulePatch(_runner, "arun_with_retry", _run_node, optional=True),
    ]


# --- tools ----------------------------------------------------------------------------------------


def _run_tool(wrapped: Callable[..., Any], tool: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    given = args[0] if args else kwargs.get("tool_input")
    run = _begin_tool(tool, given, kwargs.get("tool_call_id"))
    if run is None:
        return wrapped(*args, **kwargs)
    return drive(run, checked(run, wrapped, lambda: _by_name(tool, given)), *args, **kwargs)


@guarded
def _begin_tool(tool: Any, given: Any, call_id: Any) -> FrameworkRun | None:
    return begin_tool(
        str(tool.name), _by_name(tool, given), subject=tool,
        fn=getattr(tool, "coroutine", None) or getattr(tool, "func", None),
        description=getattr(tool, "description", None), call_id=call_id, said=_said, signals=_signals(),
    )  # fmt: skip


def _by_name(tool: Any, given: Any) -> dict[str, Any]:
    """Return a tool's arguments by name, without those that the framework and not the model gives."""
    if not isinstance(given, Mapping):
        return {"input": given}
    only_the_models: Any = getattr(tool, "_filter_injected_args", dict)
    return dict(only_the_models(dict(given)))


def _said(result: Any) -> Any:
    return getattr(result, "content", result)


# --- graphs ---------------------------------------------------------------------------------------


def _run_graph(wrapped: Callable[..., Any], graph: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    given = args[0] if args else kwargs.get("input")
    config = args[1] if len(args) > 1 else kwargs.get("config")
    run = _begin_graph(graph, given, config)
    if run is None:
        return wrapped(*args, **kwargs)
    call = checked(run, wrapped, lambda: {"input": given}) if run.kind is Kind.AGENT else wrapped
    return drive(run, call, *args, **kwargs)


@guarded
def _begin_graph(graph: Any, given: Any, config: Any) -> FrameworkRun | None:
    kind = Kind.AGENT if _is_agent(graph) else Kind.WORKFLOW
    return begin(kind, _name(graph, config), subject=graph, given=lambda: given, signals=_signals())


def _name(graph: Any, config: Any) -> str:
    """Return a graph's name; one without a name goes by the node that it is, if any."""
    name = str(graph.get_name())
    if name == _NAMELESS and isinstance(config, Mapping):
        name = str((config.get("metadata") or {}).get("langgraph_node") or name)
    return name


def _is_agent(graph: Any) -> bool:
    """Tell whether a graph is a model with its tools."""
    nodes = {name: node for name, node in graph.nodes.items() if not name.startswith("__")}
    if any(_runs_tools(getattr(node, "bound", None)) for node in nodes.values()):
        return True
    steps = [name for name in nodes if not name.endswith(_BESIDE_MODEL)]
    return len(steps) == 1 and steps[0] in _MODEL_NODES


def _runs_tools(step: Any) -> bool:
    return any(each.__name__ == "ToolNode" for each in type(step).__mro__)


# --- nodes ----------------------------------------------------------------------------------------


def _run_node(wrapped: Callable[..., Any], _none: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    run = _begin_node(args[0] if args else kwargs.get("task"))
    if run is None:
        return wrapped(*args, **kwargs)
    return drive(run, wrapped, *args, **kwargs)


@guarded
def _begin_node(task: Any) -> FrameworkRun | None:
    around = current()
    within_agent = around is not None and around.kind is Kind.AGENT and hasattr(around.subject, "nodes")
    if within_agent or task.name.startswith("__") or not _is_step(task.proc):
        return None
    return begin(Kind.AGENT, str(task.name), subject=_NODE, given=lambda: task.input, signals=_signals())


def _is_step(proc: Any) -> bool:
    """Tell whether a node does something itself: it is no graph, and does not only run tools."""
    steps = getattr(proc, "steps", None)
    first = steps[0] if steps else proc
    return not (hasattr(first, "nodes") and hasattr(first, "stream")) and not _runs_tools(first)


def _signals() -> Signals:
    """Return with what a node or tool stops for a person, or hands over to another."""
    try:
        from langgraph.errors import GraphBubbleUp
    except ImportError:
        return ()
    return (GraphBubbleUp,)
