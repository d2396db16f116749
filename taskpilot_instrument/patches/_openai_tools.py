"""Count what a response bills beside its tokens: searches, pictures, sandboxes, other models."""

from typing import Any, Final

from taskpilot_instrument.usage import (
    CODE_CALLS,
    IMAGE_GENERATIONS,
    STORAGE_SEARCHES,
    WEB_SEARCHES,
    Beside,
    Fields,
    TokenUsage,
    fields_of,
    usage_from,
)

#: Items of a response's output that a hosted tool made, which bills apart.
_WEB: Final = "web_search_call"
_FILES: Final = "file_search_call"
_IMAGE: Final = "image_generation_call"
_SHELL: Final = "shell_call"
_UNITS: Final = {
    _WEB: WEB_SEARCHES,
    _FILES: STORAGE_SEARCHES,
    _IMAGE: IMAGE_GENERATIONS,
    "code_interpreter_call": CODE_CALLS,
    _SHELL: CODE_CALLS,
}
#: Tools of an assistant that bill apart; whether a run used them stands in its steps.
_ASSISTANT_TOOLS: Final = frozenset({"file_search", "code_interpreter"})
#: Actions of the web search tool that are free: only a search is a call of the tool.
_FREE_ACTIONS: Final = frozenset({"open_page", "find_in_page", "find"})
#: This older tool costs more where the model does not reason, and what it costs then is not listed.
_PREVIEW: Final = "web_search_preview"
_PREVIEWS: Final = "web_search_previews"
_UNTOLD: Final = "untold_tool_calls"


def tools_of(fields: Fields, output: Any, usage: TokenUsage | None) -> Beside | None:
    """Return what hosted tools did for a response of the Responses API; None where none was at work.

    :param fields: of the response.
    :param output: its items.
    """
    used = [item for item in output if getattr(item, "type", None) in _UNITS]
    told = fields.get("tool_usage")
    if not used and told is None:
        return None
    units: dict[str, int] = {}
    for item in used:
        if _is_billed(item):
            unit = _UNITS[item.type]
            units[unit] = units.get(unit, 0) + 1
    models: tuple[tuple[str | None, TokenUsage], ...] = ()
    if told is not None:
        searches = _in(_in(told, "web_search"), "num_requests")
        if type(searches) is int and searches >= 0:
            units[WEB_SEARCHES] = searches
        if IMAGE_GENERATIONS in units and (drawn := _drawn(fields, told)) is not None:
            del units[IMAGE_GENERATIONS]  # its tokens tell more
            models = (drawn,)
    models += tuple(_svg(item.svg_usage) for item in used if getattr(item, "svg_usage", None) is not None)
    if units.get(WEB_SEARCHES) and not (usage is not None and usage.reasoning_tokens) and _offers_preview(fields):
        units[_PREVIEWS] = units.pop(WEB_SEARCHES)
    units = {unit: count for unit, count in units.items() if count}
    return Beside(units, models) if units or models else None


def _is_billed(item: Any) -> bool:
    if getattr(item, "status", None) == "failed":
        return False
    if item.type == _SHELL:  # in a container of the provider's, unless the application runs it itself
        return _in(getattr(item, "environment", None), "type") not in {None, "local"}
    return item.type != _WEB or _in(getattr(item, "action", None), "type") not in _FREE_ACTIONS


def _in(holder: Any, name: str) -> Any:
    """Return a member of what may be a model, what an older client left a dictionary, or None."""
    return None if holder is None else fields_of(holder).get(name)


def _tools_in(fields: Fields) -> list[Any]:
    tools = fields.get("tools")
    return tools if isinstance(tools, list) else []


def _offers_preview(fields: Fields) -> bool:
    return any(str(getattr(tool, "type", "")).startswith(_PREVIEW) for tool in _tools_in(fields))


def _drawn(fields: Fields, told: Any) -> tuple[str | None, TokenUsage] | None:
    """Return which model drew the pictures, where the request says so, with its tokens."""
    given = _in(told, "image_gen")
    usage = usage_from(given) if given is not None else None
    if usage is None or not (usage.input_tokens or usage.output_tokens):
        return None
    models = [
        getattr(tool, "model", None) for tool in _tools_in(fields) if getattr(tool, "type", None) == "image_generation"
    ]
    return (models[0] if models and isinstance(models[0], str) else None), as_image(usage, given)


def _svg(given: Any) -> tuple[str | None, TokenUsage]:
    """Return the model that wrote a drawing as text, with its tokens."""
    fields = fields_of(given)
    usage, model, reasoning = usage_from(given), fields.get("model"), fields.get("reasoning_tokens")
    if usage is not None and type(reasoning) is int and reasoning >= 0:
        usage = usage._replace(reasoning_tokens=reasoning)
    return model if isinstance(model, str) else None, usage or TokenUsage()


def drawings_of(fields: Fields) -> Beside | None:
    """Return what images that are text cost beside those that are none."""
    given = fields.get("svg_usage")
    return None if given is None else Beside({}, (_svg(given),))


def as_image(usage: TokenUsage, given: Any) -> TokenUsage:
    """Count the output as pictures where nobody says what it is: the models that draw make nothing else.

    :param given: what the usage was read from.
    """
    told = fields_of(given).get("output_tokens_details") is not None
    return usage if told or not usage.output_tokens else usage._replace(output_image_tokens=usage.output_tokens)


def assistant_tools_of(run: Any) -> Beside | None:
    """Return that an assistant's run may have used tools which bill apart; whether it did, its steps would tell."""
    offered = {getattr(tool, "type", None) for tool in getattr(run, "tools", None) or ()}
    return None if offered.isdisjoint(_ASSISTANT_TOOLS) else Beside({_UNTOLD: 1})
