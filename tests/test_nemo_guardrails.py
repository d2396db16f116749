"""NeMo Guardrails: the real package, with rails that need no model."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from backends import package
from checked_agents import KINDS, RAN, Agent, items

import taskpilot_instrument as tp
from taskpilot_instrument.integrations.nemo_guardrails import nemo_guardrail
from taskpilot_instrument.testing import Captured, capture

nemoguardrails = package("nemoguardrails", "pip install taskpilot-instrument[nemo]")

#: The package's own libraries warn of each other.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")

YAML = """
colang_version: "1.0"
models: []
rails:
  input:
    flows:
      - check input
  output:
    flows:
      - check output
"""
COLANG = """
define bot refuse
  "I cannot help with that."

define flow check input
  $allowed = execute judge_text(text=$user_message)
  if not $allowed
    bot refuse
    stop

define flow check output
  $allowed = execute judge_text(text=$bot_message)
  if not $allowed
    bot refuse
    stop
"""
MASKING_YAML = YAML.partition("  output:")[0].replace("check input", "mask")
MASKING = """
define subflow mask
  $user_message = execute mask_text(text=$user_message)
"""


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    """No agent has run yet."""
    RAN.clear()


async def judge_text(text: str) -> bool:
    """Judge without a model."""
    return "bad" not in text


async def fails(text: str) -> bool:
    """Fail."""
    raise ValueError(text)


async def mask_text(text: str) -> str:
    """Write a word over."""
    return text.replace("bob", "***")


def rails(action: Callable[..., Any] = judge_text) -> Any:
    """Return rails whose one action judges a text."""
    made = nemoguardrails.LLMRails(nemoguardrails.RailsConfig.from_content(COLANG, YAML))
    made.register_action(action, "judge_text")
    return made


def masking() -> Any:
    """Return input rails that rewrite a text."""
    made = nemoguardrails.LLMRails(nemoguardrails.RailsConfig.from_content(MASKING, MASKING_YAML))
    made.register_action(mask_text, "mask_text")
    return made


def counts(captured: Captured) -> tuple[float, float]:
    """Return how often input and output were blocked."""
    counter = captured.metrics.get_counter
    return counter("agent.Echo.guardrails.blocked"), counter("agent.Echo.guardrails.output_blocked")


@pytest.mark.parametrize("agent", KINDS)
async def test_input_rails_stand_before_the_agent(agent: Agent) -> None:
    """What the input rails block does not run the agent; the reason names the rail."""
    with capture(guardrails=[nemo_guardrail(rails(), name="rails")]) as captured:
        assert "echo good" == "".join(await items(agent, "good"))
        with pytest.raises(tp.GuardrailBlockedError, match="rails blocked the input of Echo") as caught:
            await items(agent, "bad")
        assert (1, 0) == counts(captured)
    assert (["good"], "[check input] a rail blocks it") == (RAN, caught.value.reason)


@pytest.mark.parametrize("agent", KINDS)
async def test_output_rails_stand_behind_the_agent(agent: Agent) -> None:
    """What the output rails block is not returned."""
    config = nemo_guardrail(rails())
    guardrail = tp.Guardrail("rails", check_output=config.check_output)
    with capture(guardrails=[guardrail]) as captured:
        with pytest.raises(tp.GuardrailBlockedError, match=r"rails blocked the output of Echo: \[check output\]"):
            await items(agent, "bad")
        assert (0, 1) == counts(captured)
    assert ["bad"] == RAN


@pytest.mark.parametrize(("on_error", "outcome"), [("allow", "success"), ("block", "blocked")])
async def test_rails_that_fail_are_a_failed_check(on_error: Any, outcome: str) -> None:
    """An action that raises has judged nothing, though the rails block on it; what follows is the user's choice."""
    with capture(guardrails=[nemo_guardrail(rails(fails), on_error=on_error)]) as captured:
        with suppress(tp.GuardrailBlockedError):
            await items(KINDS[1], "hi")
        reasons = {line["reason"].split(" in ")[0] for line in captured.logs if line["category"] == "decision"}
        assert {"[check_failed] RailsFailedError"} == reasons
        assert outcome == captured.tags("Echo.execute")["outcome"]
        assert 1 == captured.golden_signals().check_failed_runs


async def test_what_a_rail_would_rewrite() -> None:
    """A text that would be masked is blocked, or allowed as it was where that was chosen; others pass."""
    with capture(guardrails=[nemo_guardrail(masking())]):
        assert ["echo hi"] == await items(KINDS[1], "hi")
        with pytest.raises(tp.GuardrailBlockedError, match=r"\[modified\] a rail would rewrite it"):
            await items(KINDS[1], "hi bob")
    with capture(guardrails=[nemo_guardrail(masking(), on_modified="allow")]):
        assert ["echo hi bob"] == await items(KINDS[1], "hi bob")


async def test_rails_from_a_folder(tmp_path: Path) -> None:
    """The path of a configuration is enough, with its actions beside it."""
    (tmp_path / "config.yml").write_text(YAML)
    (tmp_path / "rails.co").write_text(COLANG)
    (tmp_path / "actions.py").write_text(
        "from nemoguardrails.actions import action\n\n\n"
        "@action(name='judge_text')\nasync def judge_text(text: str) -> bool:\n    return 'bad' not in text\n"
    )
    with capture(guardrails=[nemo_guardrail(tmp_path)]):
        assert ["echo hi"] == await items(KINDS[1], "hi")
        with pytest.raises(tp.GuardrailBlockedError):
            await items(KINDS[1], "bad")


def test_wrong_rails_are_refused(tmp_path: Path) -> None:
    """What is no configuration, or one without input and output rails, is refused at once."""
    empty = nemoguardrails.RailsConfig.from_content("", 'colang_version: "1.0"\nmodels: []\n')
    for wrong, said in (
        (empty, "neither input nor output rails"),
        (tmp_path / "nowhere", "the path of a rails configuration"),
        (3, "expected an LLMRails"),
    ):
        with pytest.raises(tp.ConfigurationError, match=said):
            nemo_guardrail(wrong)
    with pytest.raises(tp.ConfigurationError, match="on_modified='x'"):
        nemo_guardrail(rails(), on_modified="x")  # type: ignore[arg-type]
