"""Decide about one agent input, tool call or agent output: ask, note what was decided, refuse or replace.

It is written once, as a generator that yields what has to be waited for and is sent the answers, so that one flow
serves plain and async callables.
"""

import traceback
from collections.abc import Callable, Generator
from functools import partial
from pathlib import PurePath
from typing import Any, Final, NamedTuple

from taskpilot_instrument import semconv as names
from taskpilot_instrument._operation import Operation
from taskpilot_instrument._records import Checked, Event
from taskpilot_instrument._subject import Subject, TextTooLongError
from taskpilot_instrument._waiting import Job, TimedOutError, is_awaitable
from taskpilot_instrument.errors import GuardrailBlockedError, PolicyViolationError
from taskpilot_instrument.guardrails import Check, verdict_of
from taskpilot_instrument.policy import Allow, Deny, Flag, Policy, ruling_of
from taskpilot_instrument.semconv import Outcome


class Side(NamedTuple):
    """Who is asked at one moment, in this order."""

    policies: tuple[Policy, ...]
    checks: tuple[Check, ...]


class Replacement(NamedTuple):
    """What the caller gets in place of a result."""

    value: Any


#: Yields what is to be waited for; returns a replacement where there is one.
Flow = Generator[Job, Any, Replacement | None]

_CONTENT_OF: Final = {
    "agent_input": names.GEN_AI_INPUT_MESSAGES,
    "tool_call": names.GEN_AI_TOOL_CALL_ARGUMENTS,
    "agent_output": names.GEN_AI_OUTPUT_MESSAGES,
}
#: Id of the rule of what is refused because it could not be judged.
CHECK_FAILED: Final = "check_failed"
#: Errors whose words are ours and quote nobody.
_OURS: Final = (TimedOutError, TextTooLongError)


def begin(side: Side, operation: Operation, subject: Subject, *, content: bool) -> Flow | None:
    """Ask the policies up to the first that has something to say; return what is left to do.

    Most runs end here, without the cost of a generator.

    :param content: let captured text into what is noted.
    """
    place = 0
    for policy in side.policies:
        try:
            answer = policy.ask(subject)
        except Exception as error:
            return Case(operation, subject, content=content).decide(side, place, partial(_raise, error))
        if answer is not None and answer is not True:
            return Case(operation, subject, content=content).decide(side, place, partial(_same, answer))
        place += 1
    if side.checks:
        return Case(operation, subject, content=content).decide(side, place, None)
    run = operation.totals
    if run is None and operation.parent is not None:
        run = operation.parent.totals
    if run is None or run.checked is Checked.NO:  # what is noted on a run is noted on those around it
        operation.note_check(Checked.YES)
    return None


class Case:
    """One subject about which somebody has something to say.

    :param content: let captured text into what is noted.
    """

    __slots__ = ("_checked", "_content", "_operation", "_subject")

    def __init__(self, operation: Operation, subject: Subject, *, content: bool) -> None:
        self._operation = operation
        self._subject = subject
        self._content = content
        self._checked = Checked.NO

    def decide(self, side: Side, place: int, first: Callable[[], Any] | None) -> Flow:
        """Go on from the policy at a place; those before it have consented.

        :param first: gives, or raises, what that one has answered.
        :raises PolicyViolationError: where a policy denies.
        :raises GuardrailBlockedError: where a guardrail blocks.
        """
        if place > 0:
            self._checked = Checked.YES
        try:
            replaced = yield from self._ask_policies(side.policies[place:], first)
            if replaced is None and side.checks:
                replaced = yield from self._ask_guardrails(side.checks)
            return replaced
        finally:
            if self._checked is not Checked.NO:
                self._operation.note_check(self._checked)

    # --- policies ---------------------------------------------------------------------------------

    def _ask_policies(self, policies: tuple[Policy, ...], first: Callable[[], Any] | None) -> Flow:
        granted: list[tuple[Policy, Allow]] = []
        for policy in policies:
            error: PolicyViolationError | None = None
            failed = False
            try:
                answer = policy.ask(self._subject) if first is None else first()
                if is_awaitable(answer):
                    answer = yield Job(partial(_same, answer), is_async=True)
                ruling = ruling_of(answer)
            except PolicyViolationError as raised:
                error, ruling = raised, Deny(raised.reason)
            except Exception as failure:
                self._checked, failed = Checked.FAILED, True
                ruling = self._failed_policy(policy, failure)
            first = None
            if self._checked is Checked.NO:
                self._checked = Checked.YES
            if isinstance(ruling, Deny):
                return self._deny(policy, ruling, error, failed=failed)
            if isinstance(ruling, Flag):
                self._note(names.E_POLICY_DECIDED, policy.name, "flag", _why(ruling), "flagged")
            elif ruling.reason is not None and self._subject.tool is not None:
                granted.append((policy, ruling))
        for policy, allow in granted:
            self._note(names.E_TOOL_AUTHORIZED, policy.name, "allow", _why(allow), "authorised", level="INFO")
        return None

    def _failed_policy(self, policy: Policy, failure: Exception) -> Allow | Deny:
        if policy.fail_closed:
            return Deny(_failure(failure), CHECK_FAILED)
        self._note_failure(policy.name, f"[{CHECK_FAILED}] {_failure(failure)}")
        return Allow()

    def _deny(self, policy: Policy, ruling: Deny, error: PolicyViolationError | None, *, failed: bool) -> Replacement:
        why = _why(ruling)
        replaces = ruling.replaces or policy.on_deny == "replace"
        name = names.E_TOOL_DENIED if self._subject.moment == "tool_call" else names.E_POLICY_DECIDED
        # Refused because nobody knows, not because a rule was broken: that is no violation, and not counted as one.
        decision = "block" if failed else "replace" if replaces else "deny"
        said = self._note(name, policy.name, decision, why, "denied", replaced=replaces)
        if replaces:
            return self._replace(ruling.replacement if ruling.replaces else policy.replacement, why)
        raise error or PolicyViolationError(f"{said}: {why}", policy=policy.name, reason=why) from None

    # --- guardrails -------------------------------------------------------------------------------

    def _ask_guardrails(self, checks: tuple[Check, ...]) -> Flow:
        subject = self._subject
        if not subject.text:
            return None
        for check in checks:
            guardrail = check.guardrail
            error: GuardrailBlockedError | None = None
            try:
                verdict = verdict_of((yield Job(check.call(subject), guardrail.timeout_s, check.is_async)))
                allowed, why = verdict.allowed, verdict.reason or "it is not allowed"
                if allowed:
                    subject.require_whole()
            except GuardrailBlockedError as raised:
                error, allowed, why = raised, False, raised.reason
            except Exception as failure:
                self._checked = Checked.FAILED
                allowed, why = guardrail.on_error == "allow", f"[{CHECK_FAILED}] {_failure(failure)}"
                if allowed:
                    self._note_failure(guardrail.name, why)
            if self._checked is Checked.NO:
                self._checked = Checked.YES
            if not allowed:
                return self._block(check, why, error)
        return None

    def _block(self, check: Check, why: str, error: GuardrailBlockedError | None) -> Replacement:
        guardrail, direction = check.guardrail, check.direction
        replaces = guardrail.on_block == "replace"
        said = self._note(
            names.E_GUARDRAIL_BLOCKED, guardrail.name, "replace" if replaces else "block", why, "blocked",
            replaced=replaces, direction=direction,
        )  # fmt: skip
        if replaces:
            return self._replace(guardrail.replacement, why)
        raise error or GuardrailBlockedError(
            f"{said}: {why}", guardrail=guardrail.name, direction=direction, reason=why
        ) from None

    # --- what both do -----------------------------------------------------------------------------

    def _replace(self, value: Any, why: str) -> Replacement:
        self._operation.verdict, self._operation.reason = Outcome.BLOCKED, why
        return Replacement(value)

    def _note_failure(self, rule: str, why: str) -> None:
        self._note(names.E_POLICY_DECIDED, rule, "fail", why, "could not judge", level="ERROR")

    def _note(
        self,
        name: str,
        rule: str,
        decision: str,
        why: str,
        verb: str,
        *,
        level: str = "WARNING",
        replaced: bool = False,
        **details: str,
    ) -> str:
        """Note a decision everywhere; return what was said of it."""
        operation = self._operation
        said = message = f"{rule} {verb} {self._object()}{' and replaced the result' if replaced else ''}"
        text = self._text() if self._content else None
        if text is not None:
            message = f"{said}: {text}"
            details[_CONTENT_OF[self._subject.moment]] = text
        category = names.CATEGORY_DECISION
        operation.recorder.note(Event(name, category, level, message, operation, rule, decision, why, details))
        return said

    def _object(self) -> str:
        subject = self._subject
        if subject.moment == "tool_call":
            return f"a call of {subject.tool}"
        return f"the {'input' if subject.moment == 'agent_input' else 'output'} of {subject.agent}"

    def _text(self) -> str | None:
        if self._subject.moment != "agent_output":
            return self._operation.input_text
        capture = self._operation.recorder.capture
        return capture(self._subject.value) if capture is not None else None


def _same(value: Any) -> Any:
    return value


def _raise(error: Exception) -> Any:
    raise error


def _why(ruling: Allow | Flag | Deny) -> str:
    return f"[{ruling.rule}] {ruling.reason}" if ruling.rule is not None else f"{ruling.reason}"


def _failure(error: Exception) -> str:
    """Say what went wrong in a check, and where; not in its own words, which may quote what was said."""
    if isinstance(error, _OURS):
        return str(error)
    kind, frames = type(error).__qualname__, traceback.extract_tb(error.__traceback__)
    return f"{kind} in {PurePath(frames[-1].filename).name}:{frames[-1].lineno}" if frames else kind
