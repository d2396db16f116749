"""README.md: its example runs as written, and what it shows is what comes out."""

import ast
import re
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from prometheus_client import CollectorRegistry
from readme import README, generated, programs, shown, without_times

import taskpilot_instrument as tp

pytestmark = pytest.mark.skipif(not README.exists(), reason="the README is not copied along with the tests")


@pytest.fixture(scope="module")
def text() -> str:
    """Return the README."""
    return README.read_text()


@pytest.fixture(scope="module")
def blocks(text: str) -> Iterator[dict[str, str]]:
    """Run the example once and return every generated block."""
    yield generated(text)
    tp.uninstrument()


def test_first_example_is_short(text: str) -> None:
    """The first example has fewer than twelve lines of code."""
    assert 12 > len([line for line in programs(text)[0].splitlines() if line.strip()])


@pytest.mark.parametrize("name", ["trace", "log", "metrics", "signals"])
def test_what_the_example_yields_is_shown(text: str, blocks: dict[str, str], name: str) -> None:
    """Trace, log line, metrics and golden signals are what the example yields, times and ids apart."""
    assert without_times(blocks[name]) == without_times(shown(text)[name])


def test_settings_table_is_complete(text: str, blocks: dict[str, str]) -> None:
    """The table of settings is what Settings.table() says, word for word."""
    assert blocks["settings"] == shown(text)["settings"]


def test_every_generated_block_is_known(text: str, blocks: dict[str, str]) -> None:
    """No block claims to be generated that is not."""
    assert set(blocks) == set(shown(text))


def test_two_commands(text: str) -> None:
    """There are two set-up commands, each one line that can be pasted: the demo, then the tests."""
    install = "python3 -m venv .venv && .venv/bin/pip install -q -e '.[dev]' && "
    commands = re.findall(r"<!-- (\w+) -->\n```bash\n(.*?)\n```", text, re.DOTALL)
    assert [
        ("demo", f"{install}.venv/bin/taskpilot-instrument demo"),
        ("tests", f"{install}.venv/bin/pytest -q"),
    ] == commands


def test_other_snippets_run(text: str) -> None:
    """What the README shows of the Python API runs from top to bottom, and prices as it says."""
    elsewhere = ("await", "def test_", "http://prometheus")  # no Prometheus has that name here; test_fleet.py has one
    parts = [part for part in programs(text)[1:] if not any(word in part for word in elsewhere)]
    usage = {"prompt_tokens": 150, "completion_tokens": 50}
    with tp.instrument(logs="off", registry=CollectorRegistry()) as handle:
        known: dict[str, Any] = {"tp": tp, "handle": handle, "result": {"model": "gpt-4o-mini", "usage": usage}}
        try:
            # Any free port in place of the page's: on this machine it may be in use.
            exec("\n".join(parts).replace("port=8080", "port=0"), known)
        finally:
            tp.MODEL_PRICING.clear()
    assert "tp.golden_signals" in "".join(parts)
    assert 1 == handle.metrics.get_counter("policy.violations.total")
    assert 0.0000525 == tp.calculate_cost(150, 50, "gpt-4o-mini")


def test_snippet_of_a_test_passes(text: str) -> None:
    """The test that the README offers as a model passes for an agent that calls the model."""

    @tp.observed_agent
    class PlannerAgent:
        def __init__(self, client: openai.OpenAI) -> None:
            self.client = client

        def run(self, goal: str) -> None:
            self.client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": goal}])

    known: dict[str, Any] = {"openai": openai, "PlannerAgent": PlannerAgent}
    exec(next(part for part in programs(text) if "def test_" in part), known)
    known["test_planner_retries"]()


def test_snippets_compile(text: str) -> None:
    """Every block of Python is Python."""
    for part in programs(text):
        compile(part, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_public_names_are_real(text: str) -> None:
    """Every `tp.name` in the README exists."""
    assert set() == {name for name in re.findall(r"\btp\.(\w+)", text) if not hasattr(tp, name)}


def test_links_lead_somewhere(text: str) -> None:
    """Every relative link names a file of the repository."""
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    assert [] == [target for target in targets if not (README.parent / target).exists()]
