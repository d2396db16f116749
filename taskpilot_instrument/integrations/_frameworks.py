"""Which agent frameworks there are, and what each needs to be installed."""

from collections.abc import Iterable
from importlib import import_module
from typing import Final, NamedTuple

from taskpilot_instrument.errors import ConfigurationError
from taskpilot_instrument.integrations._patches import Switch


class _Framework(NamedTuple):
    """One framework.

    :param package: what has to be importable.
    :param extra: the extra of this library that brings it.
    """

    package: str
    extra: str


_FRAMEWORKS: Final = {
    "agent_framework": _Framework("agent-framework-core", "agent-framework"),
    "openai_agents": _Framework("openai-agents", "openai-agents"),
    "langchain": _Framework("langchain-core", "langchain"),
    "pydantic_ai": _Framework("pydantic-ai-slim", "pydantic-ai"),
}


def switches(names: Iterable[str]) -> list[Switch]:
    """Return what puts these frameworks under observation; only these are imported.

    :param names: as in the setting ``frameworks``.
    :raises ConfigurationError: where one of them is not installed, or too old.
    """
    found: list[Switch] = []
    for name in dict.fromkeys(names):
        package, extra = _FRAMEWORKS[name]
        try:
            found += import_module(f"taskpilot_instrument.integrations.{name}").patches()
        except ImportError as error:
            raise ConfigurationError(
                f"frameworks={name!r} needs {package}, which is not installed or too old ({error}): "
                f"pip install 'taskpilot-instrument[{extra}]'"
            ) from error
    return found
