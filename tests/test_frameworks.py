"""The setting ``frameworks``: what it may be, and what is said where it cannot be had."""

import subprocess
import sys
from typing import get_args

import pytest

import taskpilot_instrument as tp
from taskpilot_instrument.integrations import _frameworks
from taskpilot_instrument.settings import Framework, Settings
from taskpilot_instrument.testing import capture

NAMES = get_args(Framework)


def test_every_name_of_the_setting_is_known() -> None:
    """The setting's words are the frameworks that there are."""
    assert set(NAMES) == set(_frameworks._FRAMEWORKS)


@pytest.mark.parametrize(
    ("given", "suggestion"),
    [(["langchian"], "did you mean 'langchain'?"), (["agent_framework", "autogen"], ""), ("langchain", "a list of")],
)
def test_an_unknown_framework(given: object, suggestion: str) -> None:
    """What is no framework is refused, with those that there are."""
    with pytest.raises(tp.ConfigurationError) as raised:
        Settings.resolve({"frameworks": given}, {})

    assert all(name in str(raised.value) for name in ("frameworks=", suggestion, *NAMES))


def test_frameworks_of_the_environment() -> None:
    """The variable takes names with commas between them, in any case."""
    settings = Settings.resolve({}, {"TASKPILOT_FRAMEWORKS": "LangChain, pydantic_ai"})

    assert ("langchain", "pydantic_ai") == settings.frameworks


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("agent_framework", "agent_framework", "agent-framework-core"),
        ("openai_agents", "agents.tracing.provider", "openai-agents"),
        ("langchain", "langchain_core.tools", "langchain-core"),
        ("pydantic_ai", "pydantic_ai.capabilities", "pydantic-ai-slim"),
    ],
)
def test_a_framework_that_is_not_installed(
    name: Framework, module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A framework that is asked for and not there is named with what installs it, and nothing is left in force."""
    while module:
        monkeypatch.setitem(sys.modules, module, None)
        module = module.rpartition(".")[0]
    if name == "pydantic_ai":
        from taskpilot_instrument.integrations import pydantic_ai

        pydantic_ai._capability_class.cache_clear()

    with pytest.raises(tp.ConfigurationError, match=package) as raised, capture(frameworks=[name]):
        pass

    assert f"taskpilot-instrument[{name.replace('_', '-')}]" in str(raised.value)


def test_nothing_is_imported_unasked() -> None:
    """Without the setting no framework is imported, though it is installed."""
    code = (
        "import sys, taskpilot_instrument as tp; tp.instrument(logs='off', frameworks=[]); import "
        "taskpilot_instrument.integrations.agent_framework, taskpilot_instrument.integrations.openai_agents, "
        "taskpilot_instrument.integrations.langchain, taskpilot_instrument.integrations.pydantic_ai; "
        "print([name for name in ('agent_framework', 'agents', 'langchain_core', 'langgraph', 'pydantic_ai') "
        "if name in sys.modules])"
    )

    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert "[]\n" == loaded.stdout


def test_switched_off_no_framework_is_looked_for() -> None:
    """With ``enabled=False`` a framework need not even be installed."""
    handle = tp.instrument(enabled=False, frameworks=["agent_framework"], settings=Settings.resolve({}, {}))

    handle.uninstrument()

    assert not handle.health().patched
