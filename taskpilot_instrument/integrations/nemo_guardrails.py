"""NVIDIA NeMo Guardrails as a guardrail: its input and output rails are asked around each agent.

    pip install taskpilot-instrument[nemo]

    instrument(guardrails=[nemo_guardrail("config/rails")])

Only the input and output rails run, through ``LLMRails.check_async``: no dialogue, no retrieval, and no model unless a
rail calls one itself. Rails that call a model cost what it costs, which is counted for the agent that is checked; what
is made through the openai client is seen, as anywhere. Rails in Colang 2 cannot be checked apart from their dialogue.
"""

import os
from collections.abc import Collection
from typing import Any, Final, Literal, Protocol

from taskpilot_instrument.errors import ConfigurationError
from taskpilot_instrument.guardrails import Direction, Guardrail, OnError, Verdict
from taskpilot_instrument.policy import OnDeny

OnModified = Literal["block", "allow"]

_ROLES: Final[dict[Direction, str]] = {"input": "user", "output": "assistant"}
#: What the rails answer, blocking, where one of their actions raised: nobody has judged the text then.
_INTERNAL_ERROR: Final = "I'm sorry, an internal error has occurred."


class Rails(Protocol):
    """What is used of ``nemoguardrails.LLMRails``."""

    config: Any

    async def check_async(self, messages: list[dict[str, str]]) -> Any:
        """Run the input or output rails on messages."""


class RailsFailedError(Exception):
    """Say that the rails could not judge a text."""


def nemo_guardrail(
    rails: object,
    *,
    name: str = "nemo",
    timeout_s: float | None = 30.0,
    on_error: OnError = "allow",
    on_modified: OnModified = "block",
    on_block: OnDeny = "raise",
    replacement: Any = None,
    agents: Collection[str] | None = None,
) -> Guardrail:
    """Make a guardrail of NeMo's rails; input is checked where there are input rails, and output likewise.

    :param rails: an ``LLMRails`` (register your actions on it), a ``RailsConfig``, or the path of a configuration.
    :param name: what log lines and metrics call it; the reason names the rail that blocked.
    :param timeout_s: seconds that one check may take; None for any.
    :param on_error: what happens where the rails fail or take too long: ``allow`` or ``block``.
    :param on_modified: what happens to a text that a rail would rewrite, such as to mask a name: ``block`` it, or
        ``allow`` it as it was. It is never rewritten here.
    :param on_block: as in :class:`Guardrail`; so ``replacement`` and ``agents``.
    :raises ConfigurationError: where the package is missing, the configuration cannot be read, or has no such rails.
    """
    if on_modified not in {"block", "allow"}:
        raise ConfigurationError(f"nemo_guardrail: on_modified={on_modified!r}: expected one of block, allow")
    made = _rails(rails)
    flows = made.config.rails
    checks = {"input": bool(flows.input.flows), "output": bool(flows.output.flows)}
    if not any(checks.values()):
        raise ConfigurationError(
            f"nemo_guardrail {name}: the configuration has neither input nor output rails "
            "(rails: input: flows: …, in Colang 1.0)"
        )
    return Guardrail(
        name,
        check_input=_Check(made, "input", on_modified) if checks["input"] else None,
        check_output=_Check(made, "output", on_modified) if checks["output"] else None,
        timeout_s=timeout_s,
        on_error=on_error,
        on_block=on_block,
        replacement=replacement,
        agents=agents,
    )


class _Check:
    """One direction of the rails."""

    def __init__(self, rails: Rails, direction: Direction, on_modified: OnModified) -> None:
        self._rails = rails
        self._role = _ROLES[direction]
        self._on_modified = on_modified

    async def __call__(self, text: str) -> Verdict:
        """Have a text judged."""
        result = await self._rails.check_async([{"role": self._role, "content": text}])
        status = result.status.value
        if status == "blocked" and result.content == _INTERNAL_ERROR:
            raise RailsFailedError(status)
        if status == "modified" and self._on_modified == "block":
            return Verdict(allowed=False, reason="[modified] a rail would rewrite it")
        return Verdict(status != "blocked", f"[{result.rail}] a rail blocks it")


def _rails(given: Any) -> Rails:
    if hasattr(given, "check_async") and hasattr(given, "config"):
        rails: Rails = given
        return rails
    try:
        from nemoguardrails import LLMRails, RailsConfig
    except ImportError:
        raise ConfigurationError(
            "nemo_guardrail: the package nemoguardrails is missing, or older than 0.21: "
            "pip install taskpilot-instrument[nemo]"
        ) from None
    if isinstance(given, str | os.PathLike):
        try:
            given = RailsConfig.from_path(os.fspath(given))
        except Exception as error:
            raise ConfigurationError(
                f"nemo_guardrail: {os.fspath(given)!r}: expected the path of a rails configuration ({error})"
            ) from error
    if not isinstance(given, RailsConfig):
        raise ConfigurationError(
            f"nemo_guardrail: {given!r:.80}: expected an LLMRails, a RailsConfig or the path of a configuration"
        )
    made: Rails = LLMRails(given)
    return made
